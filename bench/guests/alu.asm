; alu.asm: the ALU loop, paged: 32-bit (default) or long mode (-DLONG). A 64 KiB ROM at 0xF0000 and below 4 GiB.
; ITERATIONS x 10 instructions: 8 ALU, dec, jnz. Writes 'S' to port 0xE9 at the start, 'E' at the end, then leaves by port 0xF4.
%ifndef ITERATIONS
%define ITERATIONS 60000000
%endif
%define LIN(x) (0xF0000 + (x))
        org 0
        bits 16
start:  cli
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, 0x7000
        mov     di, 0x8000              ; tables at 8000..BFFF
        mov     cx, 0x1000
        xor     eax, eax
        rep     stosd
%ifdef LONG
        mov     dword [0x8000], 0x9003
        mov     dword [0x9000], 0xa003
        mov     dword [0xa000], 0x83
%else
        mov     dword [0x8000], 0x83
%endif
        lgdt    [cs:gdtr]
        mov     eax, 0x8000
        mov     cr3, eax
%ifdef LONG
        mov     eax, 0x20
        mov     cr4, eax
        mov     ecx, 0xc0000080
        rdmsr
        or      eax, 0x100
        wrmsr
%else
        mov     eax, 0x10
        mov     cr4, eax
%endif
        mov     eax, 0x80000011
        mov     cr0, eax
        jmp     dword 8:LIN(run)
%ifdef LONG
        bits 64
%else
        bits 32
%endif
run:    mov     ax, 16
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     al, 'S'
        out     0xe9, al
        mov     ecx, ITERATIONS
        mov     eax, 1
        mov     ebx, 2
        mov     edx, 3
        mov     esi, 4
        mov     edi, 5
        align 16
.loop:
%ifdef LONG
        add     rax, rbx
        xor     rdx, rax
        sub     rsi, rdx
        and     rdi, rsi
        or      rbx, rdi
        lea     rax, [rax + rdx]
        shl     rdx, 3
        adc     rsi, rax
%else
        add     eax, ebx
        xor     edx, eax
        sub     esi, edx
        and     edi, esi
        or      ebx, edi
        lea     eax, [eax + edx]
        shl     edx, 3
        adc     esi, eax
%endif
        dec     ecx
        jnz     .loop
        mov     al, 'E'
        out     0xe9, al
        mov     al, 0
        out     0xf4, al
        hlt
        align 8
gdt:    dq      0
%ifdef LONG
        dq      0x00af9b00_0000ffff
%else
        dq      0x00cf9b00_0000ffff
%endif
        dq      0x00cf9300_0000ffff
gdtr:   dw      gdtr - gdt - 1
        dd      LIN(gdt)
        times 0xfff0 - ($ - $$) db 0xff
        bits 16
        jmp     0xf000:start
        times 0x10000 - ($ - $$) db 0
