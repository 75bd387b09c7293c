; exits.asm: a boot sector that causes one kind of exit BATCHES x COUNT times; 'S' and 'E' on port 0xE9 around each batch.
; -DWHAT=: 0 CPUID, 1 OUT to a port without a device, 2 MOV CR0 that toggles AM, 3 RDMSR of the APIC base, 4 a read of MMIO without
; a device, 5 HLT that the PIT wakes, 6 PAUSE as the loop's own cost.
%ifndef WHAT
%define WHAT 0
%endif
%ifndef COUNT
%define COUNT 200000
%endif
%ifndef BATCHES
%define BATCHES 10
%endif
        org 0x7c00
        bits 16
        cli
        xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, 0x7000
%if WHAT = 4
        lgdt    [gdtr]                  ; ES gets a limit of 4 GiB: MMIO lies above memory
        mov     eax, cr0
        or      al, 1
        mov     cr0, eax
        mov     cx, 8
        mov     es, cx
        and     al, 0xfe
        mov     cr0, eax
        mov     esi, 0xd0000000
%endif
%if WHAT = 5
        mov     word [8 * 4], irq0
        mov     word [8 * 4 + 2], 0
        mov     al, 0x11                ; ICW1: cascade (KVM's PIC knows no single mode), ICW4 follows
        out     0x20, al
        mov     al, 8
        out     0x21, al
        mov     al, 4                   ; ICW3
        out     0x21, al
        mov     al, 1                   ; 8086
        out     0x21, al
        mov     al, 0xfe
        out     0x21, al
        mov     al, 0x34                ; channel 0, rate generator
        out     0x43, al
        mov     al, 24
        out     0x40, al
        mov     al, 0
        out     0x40, al
        sti
%endif
        mov     bp, BATCHES
.batch: mov     al, 'S'
        out     0xe9, al
        mov     edi, COUNT
%if WHAT = 2
        mov     eax, cr0
        mov     ebx, eax
        xor     ebx, 1 << 18
%elif WHAT = 3
        mov     ecx, 0x1b
%endif
.loop:
%if WHAT = 0
        xor     eax, eax
        cpuid
%elif WHAT = 1
        out     0xe0, al
%elif WHAT = 2
        mov     cr0, ebx
        xchg    eax, ebx
%elif WHAT = 3
        rdmsr
%elif WHAT = 4
        mov     eax, [es:esi]
%elif WHAT = 5
        hlt
%elif WHAT = 6
        xor     eax, eax
%endif
        dec     edi
        jnz     .loop
        mov     al, 'E'
        out     0xe9, al
        dec     bp
        jnz     .batch
        mov     al, 0
        out     0xf4, al
        hlt
irq0:   push    ax
        mov     al, 0x20
        out     0x20, al
        pop     ax
        iret
        align   8
gdt:    dq      0, 0x008f93000000ffff
gdtr:   dw      15
        dd      gdt
        times   510 - ($ - $$) db 0
        dw      0xaa55
