; kernels.asm: small programs, paged: 32-bit (default) or long mode (-DLONG). A 64 KiB ROM at 0xF0000 and below 4 GiB.
; -DKERNEL_name chooses one of user-kernels.inc, PORT, CPUID, TS, WP, or ROUND, which starts in real mode. ITERATIONS is a kernel's own unit.
; PORT, CPUID, TS, WP and ROUND run WARM units before the 'S'.
; Writes 'S' to port 0xE9 at the start, 'E' at the end, then leaves by port 0xF4. Data at 4 MiB, 16 MiB are mapped.
%ifndef ITERATIONS
%error "give -DITERATIONS=n"
%endif
%ifdef KERNEL_PORT
%define WARMS
%elifdef KERNEL_CPUID
%define WARMS
%elifdef KERNEL_TS
%define WARMS
%elifdef KERNEL_WP
%define WARMS
%endif
%ifndef WARM
%define WARM 1
%endif
%include "registers.inc"
%define DATA 0x400000
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
%assign n 0
%rep 8
        mov     dword [0xa000 + n * 8], 0x83 + n * 0x200000
%assign n n + 1
%endrep
%else
%assign n 0
%rep 4
        mov     dword [0x8000 + n * 4], 0x83 + n * 0x400000
%assign n n + 1
%endrep
%endif
        lgdt    [cs:gdtr]
%ifdef KERNEL_ROUND
        jmp     kernel
%endif
        mov     eax, 0x8000
        mov     cr3, eax
%ifdef LONG
        mov     eax, 0x620              ; PAE, OSFXSR, OSXMMEXCPT
        mov     cr4, eax
        mov     ecx, 0xc0000080
        rdmsr
        or      eax, 0x100
        wrmsr
%else
        mov     eax, 0x610              ; PSE, OSFXSR, OSXMMEXCPT
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
        mov     SP_, 0x200000
%ifdef WARMS
        mov     ecx, WARM
        call    kernel.units
%endif
        mov     al, 'S'
        out     0xe9, al
        call    kernel
        mov     al, 'E'
        out     0xe9, al
        mov     al, 0
        out     0xf4, al
        hlt

; ROUND: from real mode to protected mode with 32-bit code and back, not paged; ITERATIONS times.
%ifdef KERNEL_ROUND
        bits 16
kernel: mov     ecx, WARM
        mov     ebp, ITERATIONS
        mov     ebx, cr0
.loop:  or      bl, 1
        mov     cr0, ebx
        jmp     dword 8:LIN(.flat)
        bits 32
.flat:  mov     ax, 16
        mov     ds, ax
        mov     ss, ax
        jmp     24:.back
        bits 16
.back:  mov     ax, 32
        mov     ds, ax
        mov     ss, ax
        and     bl, 0xfe
        mov     cr0, ebx
        jmp     0xf000:.real
.real:  xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        dec     ecx
        jnz     .loop
        test    ebp, ebp
        jz      .done
        mov     al, 'S'
        out     0xe9, al
        mov     ecx, ebp
        xor     ebp, ebp
        jmp     .loop
.done:  mov     al, 'E'
        out     0xe9, al
        mov     al, 0
        out     0xf4, al
        hlt
%endif
%ifdef LONG
        bits 64
%else
        bits 32
%endif
        align 16
%include "user-kernels.inc"

; PORT: OUT to the POST port. CPUID: leaf 0. TS: MOV CR0 sets CR0.TS, CLTS clears it. WP: two MOVs to CR0 clear and set CR0.WP.
%ifdef KERNEL_PORT
kernel: mov     ecx, ITERATIONS
.units:
.loop:  out     0x80, al
        dec     ecx
        jnz     .loop
        ret
%endif
%ifdef KERNEL_CPUID
kernel: mov     ecx, ITERATIONS
.units: mov     edi, ecx
.loop:  xor     eax, eax
        cpuid
        dec     edi
        jnz     .loop
        ret
%endif
%ifdef KERNEL_TS
kernel: mov     ecx, ITERATIONS
.units: mov     A, cr0
        or      eax, 8
.loop:  mov     cr0, A
        clts
        dec     ecx
        jnz     .loop
        ret
%endif
%ifdef KERNEL_WP
kernel: mov     ecx, ITERATIONS
.units: mov     A, cr0
        and     eax, ~(1 << 16)
        mov     B, A
        or      ebx, 1 << 16
.loop:  mov     cr0, A
        mov     cr0, B
        dec     ecx
        jnz     .loop
        ret
%endif

        align 8
gdt:    dq      0
%ifdef LONG
        dq      0x00af9b00_0000ffff
%else
        dq      0x00cf9b00_0000ffff
%endif
        dq      0x00cf9300_0000ffff
        dq      0x00009b0f_0000ffff     ; 16-bit code at 0xF0000
        dq      0x00009300_0000ffff
gdtr:   dw      gdtr - gdt - 1
        dd      LIN(gdt)
        times 0xfff0 - ($ - $$) db 0xff
        bits 16
        jmp     0xf000:start
        times 0x10000 - ($ - $$) db 0
