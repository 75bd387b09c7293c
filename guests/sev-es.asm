; sev-es.asm: the CR0 part of the tour for a guest whose register state KVM can't read (SEV-ES).
; CR writes are automatic exits behind the instruction (write traps); everything that needs the hypervisor raises #VC (vector 29) in
; the guest, whose handler fills the GHCB and executes VMGEXIT. Manual: APM vol. 2 section 15.35; GHCB specification (AMD 56421).
;
; RAM: 0500 variables, 1000 IDT, 4000 GDT, 7000 stack top, 10000 page tables, 20000 GHCB.

%define LIN(x) (0xF0000 + (x))

COM1      equ 0x3f8
GHCBMSR   equ 0xc0010130
EFERMSR   equ 0xc0000080

GPCOUNT   equ 0x500
RESUME    equ 0x508
LONGSEEN  equ 0x510
REALSEEN  equ 0x514

IDT       equ 0x1000
GDT       equ 0x4000
STACK     equ 0x7000
PML4      equ 0x10000
PDPT      equ 0x11000
PD        equ 0x12000
GHCB      equ 0x20000

CODE16    equ 0x08
DATA16    equ 0x10
CODE32    equ 0x18
DATA32    equ 0x20
CODE64    equ 0x28

CR0_PE    equ 1 << 0
CR0_TS    equ 1 << 3
CR0_NW    equ 1 << 29
CR0_CD    equ 1 << 30
CR0_PG    equ 1 << 31

        org 0
        bits 16

%macro SAY 1
        pushad
        mov     esi, LIN(%%text)
        call    puts
        popad
        jmp     %%over
%%text: db      %1, 10, 0
%%over:
%endmacro

%macro EXPECT 2                         ; 32-bit code: operand, value
        cmp     %1, %2
        je      %%ok
        mov     esi, LIN(%%where)
        jmp     fail
  %defstr %%operand %1
  %defstr %%value %2
%%where: db     "FAIL: expected ", %%operand, " ", %%value, 10, 0
%%ok:
%endmacro

start:
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, STACK
        mov     eax, cr0                ; the first CR0 write trap: CD and NW off
        and     eax, ~(CR0_CD | CR0_NW)
        mov     cr0, eax
        mov     dword [LONGSEEN], 0
        mov     dword [REALSEEN], 0
        mov     si, gdt
        mov     di, GDT
        mov     cx, gdt_end - gdt
        call    copy
        mov     di, PML4                ; es = 1000: page tables
        mov     ax, PML4 >> 4
        mov     es, ax
        xor     di, di
        mov     cx, 0xc00
        xor     eax, eax
        rep     stosd
        mov     dword [es:0], PDPT + 3
        mov     dword [es:PDPT - PML4], PD + 3
        mov     dword [es:PD - PML4], 0x83
        mov     ax, GHCB >> 4
        mov     es, ax
        xor     di, di
        mov     cx, 0x400
        xor     eax, eax
        rep     stosd
        xor     ax, ax
        mov     es, ax

again:                                  ; comes here twice: from reset and from long mode
        cli
        lgdt    [cs:gdtr]
        mov     eax, cr0
        or      al, CR0_PE
        mov     cr0, eax
        jmp     dword CODE32:LIN(protected)

        bits 32
protected:
        mov     ax, DATA32
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     esp, STACK
        cmp     dword [REALSEEN], 0
        jne     finish

        mov     edi, IDT                ; #GP and #VC
        mov     ecx, 0x200
        xor     eax, eax
        rep     stosd
        mov     eax, LIN(gp)
        mov     edi, IDT + 13 * 8
        call    gate
        mov     eax, LIN(vc)
        mov     edi, IDT + 29 * 8
        call    gate
        lidt    [LIN(idtr)]
        SAY     "stage sev-es protected32"

        xor     eax, eax                ; an intercepted instruction: #VC, then the GHCB MSR protocol
        cpuid
        EXPECT  ebx, 0x68747541         ; "Auth"
        SAY     "stage sev-es cpuid"

        mov     eax, cr0                ; TS by MOV (a trap), gone by CLTS
        or      eax, CR0_TS
        mov     cr0, eax
        mov     eax, cr0
        and     eax, CR0_TS
        EXPECT  eax, CR0_TS
        clts
        mov     dword [GPCOUNT], 0      ; refused by the silicon itself: no exit, no trap
        mov     dword [RESUME], LIN(.refused)
        mov     eax, cr0
        or      eax, CR0_NW
        mov     cr0, eax
.refused:
        EXPECT  dword [GPCOUNT], 1
        SAY     "stage sev-es refused-cr0"

        mov     eax, cr4
        or      eax, 1 << 5
        mov     cr4, eax
        mov     eax, PML4
        mov     cr3, eax
        mov     ecx, EFERMSR
        rdmsr
        or      eax, 1 << 8
        wrmsr
        mov     eax, cr0
        or      eax, CR0_PG
        mov     cr0, eax
        jmp     CODE64:LIN(long64)

        bits 64
long64: mov     rax, 0x123456789abcdef0
        shr     rax, 32
        mov     [abs LONGSEEN], eax
        push    CODE32
        push    LIN(leave)
        retfq

        bits 32
leave:
        mov     ax, DATA32
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     eax, cr0
        and     eax, ~CR0_PG
        mov     cr0, eax
        mov     ecx, EFERMSR
        rdmsr
        and     eax, ~(1 << 8)
        wrmsr
        xor     eax, eax
        mov     cr4, eax
        EXPECT  dword [LONGSEEN], 0x12345678
        SAY     "stage sev-es long"
        jmp     dword CODE16:leave16
        bits 16
leave16:
        mov     ax, DATA16
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     eax, cr0
        and     eax, ~CR0_PE
        mov     cr0, eax
        jmp     0xf000:real_again
real_again:
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, STACK
        smsw    ax
        and     ax, 1
        xor     ax, 0x8086
        movzx   eax, ax
        mov     [REALSEEN], eax
        jmp     again

copy:   mov     al, [cs:si]
        stosb
        inc     si
        loop    copy
        ret

        bits 32
finish:
        EXPECT  dword [REALSEEN], 0x8086
        lidt    [LIN(idtr)]
        SAY     "stage sev-es back-to-real"
        SAY     "tour complete, now a termination request"
        mov     eax, 0x100              ; GHCB MSR protocol: terminate, reason 0:0
        xor     edx, edx
        mov     ecx, GHCBMSR
        wrmsr
        rep     vmmcall
        hlt
fail:   call    puts
        mov     eax, 0x00010100         ; terminate, reason 1
        xor     edx, edx
        mov     ecx, GHCBMSR
        wrmsr
        rep     vmmcall
        hlt

puts:   mov     dx, COM1
.next:  lodsb
        test    al, al
        jz      .done
        out     dx, al
        jmp     .next
.done:  ret
gate:   mov     [edi], ax
        mov     word [edi + 2], CODE32
        mov     word [edi + 4], 0x8e00
        shr     eax, 16
        mov     [edi + 6], ax
        ret

gp:     inc     dword [GPCOUNT]
        add     esp, 4
        mov     eax, [RESUME]
        mov     [esp], eax
        iretd

vc:                                     ; error code = exit code
        cmp     dword [esp], 0x72
        je      .cpuid
        cmp     dword [esp], 0x7b
        je      .out
        mov     esi, LIN(.text)
        mov     eax, 0x00020100
        xor     edx, edx
        mov     ecx, GHCBMSR
        wrmsr
        rep     vmmcall
        hlt
.text:  db      "unexpected #VC", 10, 0

.out:                                   ; OUT DX, AL through the GHCB: exit code 7B, one byte, 32-bit addresses
        add     esp, 4
        pushad
        mov     [GHCB + 0x1f8], eax
        mov     dword [GHCB + 0x1fc], 0
        mov     dword [GHCB + 0x390], 0x7b
        mov     dword [GHCB + 0x394], 0
        movzx   ebx, dx
        shl     ebx, 16
        or      ebx, 0x110
        mov     [GHCB + 0x398], ebx
        mov     dword [GHCB + 0x39c], 0
        mov     dword [GHCB + 0x3a0], 0
        mov     dword [GHCB + 0x3a4], 0
        mov     byte [GHCB + 0x3f0 + 7], 0x80           ; valid: RAX
        mov     byte [GHCB + 0x3f0 + 14], 0x1c          ; exit code, info 1, info 2
        mov     word [GHCB + 0xffa], 1                  ; protocol version 1
        mov     dword [GHCB + 0xffc], 0
        mov     eax, GHCB
        xor     edx, edx
        mov     ecx, GHCBMSR
        wrmsr
        rep     vmmcall
        popad
        inc     dword [esp]             ; OUT DX, AL has one byte
        iretd

.cpuid:                                 ; four requests of one register each
        add     esp, 4
        push    esi
        push    edi
        mov     esi, eax                ; leaf
        mov     edi, 0
        sub     esp, 16
.reg:   mov     eax, edi
        shl     eax, 30
        or      eax, 4
        mov     edx, esi
        mov     ecx, GHCBMSR
        wrmsr
        rep     vmmcall
        mov     ecx, GHCBMSR
        rdmsr
        mov     [esp + edi * 4], edx
        inc     edi
        cmp     edi, 4
        jb      .reg
        pop     eax
        pop     ebx
        pop     ecx
        pop     edx
        pop     edi
        pop     esi
        add     dword [esp], 2
        iretd

        align 8
gdt:    dq      0
        dq      0x00009b0f_0000ffff     ; 08: 16-bit code, base F0000
        dq      0x00009300_0000ffff     ; 10: data, 64 KiB
        dq      0x00cf9b00_0000ffff     ; 18: 32-bit code, flat
        dq      0x00cf9300_0000ffff     ; 20: data, flat
        dq      0x00af9b00_0000ffff     ; 28: 64-bit code
gdt_end:
gdtr:   dw      gdt_end - gdt - 1
        dd      GDT
idtr:   dw      0x7ff
        dd      IDT

        times 0xfff0 - ($ - $$) db 0xff
        bits 16
        jmp     0xf000:start
        times 0x10000 - ($ - $$) db 0
