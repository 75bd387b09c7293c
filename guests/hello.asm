; hello.asm: a boot sector that says hello on COM1, visits protected mode and leaves through the debug-exit port with status 1.
        org 0x7c00
        bits 16
        cli
        xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, 0x7c00
        mov     si, text
        call    puts
        lgdt    [gdtr]
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        jmp     0x08:protected
        bits 32
protected:
        mov     ax, 0x10
        mov     ds, ax
        mov     ss, ax
        mov     dword [0x500], 0x12345678
        jmp     0x18:leave
        bits 16
leave:  mov     ax, 0x20
        mov     ds, ax
        mov     ss, ax
        mov     eax, cr0
        and     al, ~1
        mov     cr0, eax
        jmp     0:real
real:   xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     si, done
        call    puts
        mov     al, 0
        out     0xf4, al
        hlt
puts:   mov     dx, 0x3f8
.next:  lodsb
        test    al, al
        jz      .done
        out     dx, al
        jmp     .next
.done:  ret
text:   db      "hello from real mode", 10, 0
done:   db      "back in real mode", 10, 0
        align 8
gdt:    dq      0
        dq      0x00cf9b00_0000ffff     ; 08: 32-bit code
        dq      0x00cf9300_0000ffff     ; 10: data
        dq      0x00009b00_0000ffff     ; 18: 16-bit code
        dq      0x00009300_0000ffff     ; 20: 16-bit data
gdtr:   dw      gdtr - gdt - 1
        dd      gdt
        times   510 - ($ - $$) db 0
        dw      0xaa55
