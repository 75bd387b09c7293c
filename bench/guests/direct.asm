; direct.asm: a ROM that starts a Linux kernel which already stands in memory, by the 32-bit entry of the boot protocol, for emulators
; that have no loader of their own. -DKERNEL=address of the kernel, -DPARAMS=address of its zero page, -DMEMORY=bytes of RAM.
        org 0
        bits 16
start:  cli
        lgdt    [cs:gdtr]
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        jmp     dword 0x10:0xF0000 + flat
        bits 32
flat:   mov     eax, 0x18               ; __BOOT_DS
        mov     ds, eax
        mov     es, eax
        mov     fs, eax
        mov     gs, eax
        mov     ss, eax
        xor     ebx, ebx                ; Bochs 2.7 gives memory out in the order in which it is first touched, whatever was loaded
.touch: mov     al, [ebx]
        add     ebx, 0x10000
        cmp     ebx, MEMORY
        jb      .touch
        mov     esi, PARAMS
        xor     ebp, ebp
        xor     edi, edi
        xor     ebx, ebx
        mov     eax, KERNEL
        jmp     eax
        align   8
gdt:    dq      0, 0
        dq      0x00cf9b000000ffff      ; __BOOT_CS
        dq      0x00cf93000000ffff
gdtr:   dw      gdtr - gdt - 1
        dd      0xF0000 + gdt
        times 0xfff0 - ($ - $$) db 0xff
        bits 16
        jmp     0xf000:start
        times 0x10000 - ($ - $$) db 0
