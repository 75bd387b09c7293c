; tour.asm: a guest that walks through every mode of an x86 processor and checks itself on the way.
; A 64 KiB ROM image, mapped at 0xF0000 and (alias) below 4 GiB. Each stage prints one line on COM1; a failed check prints FAIL and
; leaves through the debug-exit port with status 3. The last stage is a triple fault.
;
; RAM: 0500 variables, 1000 IDT (32-bit), 2000 IDT (64-bit), 4000 GDT, 5000/5100 TSSs, 7000 stack top, 8000 AP start-up page,
;      9000 SIPI stack, 10000 page tables, 38000 SMM entry.

%define LIN(x) (0xF0000 + (x))

COM1      equ 0x3f8
DEBUGEXIT equ 0xf4
APMCNT    equ 0xb2                      ; a write raises an SMI

GPCOUNT   equ 0x500                     ; dword: #GP(0)s seen
RESUME    equ 0x508                     ; qword: where the #GP handler goes on
PFADDR    equ 0x510                     ; dword: CR2 of the last #PF
VMSEEN    equ 0x518                     ; dword: what virtual-8086 mode left behind
TASKSEEN  equ 0x520
APSEEN    equ 0x528
SMISEEN   equ 0x530                     ; dword: SMIs handled
SMICR0    equ 0x534                     ; dword: CR0 inside SMM
SAVEDESP  equ 0x540
INTSEEN   equ 0x548

IDT32     equ 0x1000
IDT64     equ 0x2000
GDT       equ 0x4000
TSS1      equ 0x5000
TSS2      equ 0x5100
STACK     equ 0x7000
VMSTACK   equ 0x6000
AP        equ 0x8000
TABLES    equ 0x10000
PD32      equ TABLES                    ; 32-bit paging: one page directory of 4 MiB pages and one table
PT32      equ TABLES + 0x1000
PDPT      equ TABLES + 0x2000           ; PAE
PDPAE     equ TABLES + 0x3000
PML4      equ TABLES + 0x4000           ; long
PDPT64    equ TABLES + 0x5000
PD64      equ TABLES + 0x6000
BADPDPT   equ TABLES + 0x7000           ; a PDPTE with a reserved bit

CODE16    equ 0x08
DATA16    equ 0x10
CODE32    equ 0x18
DATA32    equ 0x20
CODE64    equ 0x28
TSSA      equ 0x30
TSSB      equ 0x38

CR0_PE    equ 1 << 0
CR0_TS    equ 1 << 3
CR0_ET    equ 1 << 4
CR0_WP    equ 1 << 16
CR0_NW    equ 1 << 29
CR0_CD    equ 1 << 30
CR0_PG    equ 1 << 31

        org 0
        bits 16

%macro SAY 1                            ; prints a string; keeps all registers
  %if __BITS__ = 16
        pusha
        mov     si, %%text
        call    puts16
        popa
  %elif __BITS__ = 32
        pushad
        mov     esi, LIN(%%text)
        call    puts32
        popad
  %else
        push    rsi
        mov     esi, LIN(%%text)
        call    puts64
        pop     rsi
  %endif
        jmp     %%over
%%text: db      %1, 10, 0
%%over:
%endmacro

%macro EXPECT 3                         ; EXPECT condition, register/operand, value: cmp and fail unless condition
        cmp     %2, %3
  %if __BITS__ = 16
        j%1     %%ok
        mov     si, %%where
        jmp     fail16
  %elif __BITS__ = 32
        j%1     %%ok
        mov     esi, LIN(%%where)
        jmp     fail32
  %else
        j%1     %%ok
        mov     esi, LIN(%%where)
        jmp     fail64
  %endif
  %defstr %%operand %2
  %defstr %%value %3
%%where: db     "FAIL: expected ", %%operand, " ", %%value, 10, 0
%%ok:
%endmacro

; ---------------------------------------------------------------------------------------------------------------- real mode

start:
        mov     ax, cs
        EXPECT  e, ax, 0xf000
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, STACK
        mov     eax, cr0                ; RESET: CD, NW and ET
        EXPECT  e, eax, 0x60000010
        SAY     "stage reset"

        mov     eax, cr0                ; caches on: the first write of CR0
        and     eax, ~(CR0_CD | CR0_NW)
        mov     cr0, eax
        mov     eax, cr0
        EXPECT  e, eax, 0x10
        mov     word [INTSEEN], 0
        mov     word [0x60 * 4], int60  ; an interrupt through the IVT
        mov     word [0x60 * 4 + 2], cs
        int     0x60
        EXPECT  e, word [INTSEEN], 0x1234
        SAY     "stage real"

        call    set_up

; SMI in real mode
        mov     al, 1
        out     APMCNT, al
        EXPECT  e, dword [SMISEEN], 1
        mov     eax, [SMICR0]           ; inside SMM: PE, EM, TS, PG are clear
        and     eax, CR0_PE | CR0_PG | CR0_TS
        EXPECT  e, eax, 0
        SAY     "stage smm-from-real"

; unreal: limits of 4 GiB survive the way back
        cli
        lgdt    [cs:gdtr]
        mov     eax, cr0
        or      al, CR0_PE
        mov     cr0, eax
        mov     bx, DATA32
        mov     ds, bx
        mov     es, bx
        and     al, ~CR0_PE
        mov     cr0, eax
        xor     bx, bx
        mov     ds, bx
        mov     es, bx
        mov     esi, 0x200000
        mov     dword [esi], 0x55aa1234
        mov     eax, [esi]
        EXPECT  e, eax, 0x55aa1234
        SAY     "stage unreal"

; protected mode, 16 bits, by LMSW
        smsw    ax
        or      al, CR0_PE
        lmsw    ax
        jmp     CODE16:prot16
prot16:
        mov     ax, DATA16
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        xor     ax, ax                  ; LMSW can't clear PE
        lmsw    ax
        smsw    ax
        test    al, CR0_PE
        setnz   al
        EXPECT  e, al, 1
        SAY     "stage protected16"

        jmp     dword CODE32:LIN(prot32)

; ------------------------------------------------------------------------------------------------------- protected mode, 32 bits
        bits 32
prot32:
        mov     ax, DATA32
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     fs, ax
        mov     gs, ax
        mov     esp, STACK
        lidt    [LIN(idtr32)]

        mov     eax, cr0                ; TS by MOV, gone by CLTS
        or      eax, CR0_TS
        mov     cr0, eax
        mov     eax, cr0
        and     eax, CR0_TS
        EXPECT  e, eax, CR0_TS
        clts
        mov     eax, cr0
        and     eax, CR0_TS
        EXPECT  e, eax, 0
        mov     eax, cr0                ; ET can't be cleared, an undefined bit is ignored
        and     eax, ~CR0_ET
        or      eax, 1 << 17
        mov     cr0, eax
        mov     eax, cr0
        and     eax, CR0_ET | (1 << 17)
        EXPECT  e, eax, CR0_ET
        SAY     "stage protected32"

; refused: NW without CD, PG without PE
        mov     dword [GPCOUNT], 0
        mov     dword [RESUME], LIN(.refused1)
        mov     eax, cr0
        or      eax, CR0_NW
        mov     cr0, eax
.refused1:
        EXPECT  e, dword [GPCOUNT], 1
        mov     dword [RESUME], LIN(.refused2)
        mov     eax, cr0
        or      eax, CR0_PG
        and     eax, ~CR0_PE
        mov     cr0, eax
.refused2:
        EXPECT  e, dword [GPCOUNT], 2
        SAY     "stage refused-cr0"

; SMI in protected mode
        mov     al, 2
        out     APMCNT, al
        EXPECT  e, dword [SMISEEN], 2
        mov     eax, [SMICR0]
        and     eax, CR0_PE | CR0_PG | CR0_TS
        EXPECT  e, eax, 0
        mov     eax, cr0
        and     eax, CR0_PE
        EXPECT  e, eax, CR0_PE
        SAY     "stage smm-from-protected"

; a task switch by JMP, and back by JMP
        mov     ax, TSSA
        ltr     ax
        mov     dword [TASKSEEN], 0
        jmp     TSSB:0
        EXPECT  e, dword [TASKSEEN], 0x7a5c
        mov     eax, cr0                ; a task switch sets TS
        and     eax, CR0_TS
        EXPECT  e, eax, CR0_TS
        clts
        SAY     "stage task-switch"

; virtual-8086 mode: in by IRET, out by the #GP of a software interrupt (IOPL 0)
        mov     dword [VMSEEN], 0
        mov     [SAVEDESP], esp
        push    dword 0                 ; GS FS DS ES
        push    dword 0
        push    dword 0
        push    dword 0
        push    dword 0                 ; SS:ESP
        push    dword VMSTACK
        push    dword 0x20002           ; EFLAGS: VM
        push    dword 0xf000
        push    dword vm86
        iretd
from_vm86:                              ; the #GP handler comes here
        mov     ax, DATA32
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     esp, [SAVEDESP]
        EXPECT  e, dword [VMSEEN], 0x8086
        SAY     "stage virtual-8086"

; a second processor: INIT, SIPI, SIPI
        mov     dword [APSEEN], 0
        mov     dword [0xfee000f0], 0x1ff       ; local APIC on
        mov     dword [0xfee00300], 0x000c4500  ; INIT, all but self
        mov     dword [0xfee00300], 0x000c4600 + (AP >> 12)
        mov     dword [0xfee00300], 0x000c4600 + (AP >> 12)
        mov     ecx, 2000000
.wait:  cmp     dword [APSEEN], 0xa9
        je      .started
        pause
        loop    .wait
.started:
        EXPECT  e, dword [APSEEN], 0xa9
        SAY     "stage init-sipi"

; 32-bit paging with a page fault on the way
        mov     eax, cr4
        or      eax, 1 << 4             ; PSE
        mov     cr4, eax
        mov     eax, PD32
        mov     cr3, eax
        mov     eax, cr0
        or      eax, CR0_PG | CR0_WP
        mov     cr0, eax
        mov     dword [RESUME], LIN(.faulted)
        mov     eax, [0x40003000]       ; not present
.faulted:
        EXPECT  e, dword [PFADDR], 0x40003000
        SAY     "stage paging"

; PAE; first refused for a reserved bit in a PDPTE
        mov     eax, cr0
        and     eax, ~CR0_PG
        mov     cr0, eax
        mov     eax, cr4
        or      eax, 1 << 5             ; PAE
        mov     cr4, eax
        mov     eax, BADPDPT
        mov     cr3, eax
        mov     dword [GPCOUNT], 0
        mov     dword [RESUME], LIN(.refused3)
        mov     eax, cr0
        or      eax, CR0_PG
        mov     cr0, eax
.refused3:
        EXPECT  e, dword [GPCOUNT], 1
        mov     eax, PDPT
        mov     cr3, eax
        mov     eax, cr0
        or      eax, CR0_PG
        mov     cr0, eax
        mov     eax, [LIN(start)]
        EXPECT  e, eax, [LIN(start)]
        SAY     "stage pae"

; long mode; first refused without CR4.PAE
        mov     eax, cr0
        and     eax, ~CR0_PG
        mov     cr0, eax
        mov     ecx, 0xc0000080
        rdmsr
        or      eax, 1 << 8             ; LME
        wrmsr
        mov     eax, cr4
        and     eax, ~(1 << 5)
        mov     cr4, eax
        mov     eax, PML4
        mov     cr3, eax
        mov     dword [GPCOUNT], 0
        mov     dword [RESUME], LIN(.refused4)
        mov     eax, cr0
        or      eax, CR0_PG
        mov     cr0, eax
.refused4:
        EXPECT  e, dword [GPCOUNT], 1
        mov     eax, cr4
        or      eax, 1 << 5
        mov     cr4, eax
        mov     eax, cr0
        or      eax, CR0_PG
        mov     cr0, eax
        mov     ecx, 0xc0000080
        rdmsr
        and     eax, 1 << 10            ; LMA
        EXPECT  e, eax, 1 << 10
        SAY     "stage compatibility"
        lidt    [LIN(idtr64)]
        jmp     CODE64:LIN(long64)

; ------------------------------------------------------------------------------------------------------------------- long mode
        bits 64
long64:
        mov     rax, 0x123456789abcdef0
        mov     rbx, rax
        shr     rbx, 32
        EXPECT  e, ebx, 0x12345678
        SAY     "stage long"

; refused: clearing PG in 64-bit code, bit 40 of CR0
        mov     dword [abs GPCOUNT], 0
        mov     rax, LIN(.refused5)
        mov     [abs RESUME], rax
        mov     rax, cr0
        and     eax, ~CR0_PG
        mov     cr0, rax
.refused5:
        EXPECT  e, dword [abs GPCOUNT], 1
        mov     rax, LIN(.refused6)
        mov     [abs RESUME], rax
        mov     rax, cr0
        bts     rax, 40
        mov     cr0, rax
.refused6:
        EXPECT  e, dword [abs GPCOUNT], 2
        SAY     "stage refused-long"

        mov     r15, 0xfedcba9876543210 ; SMI in long mode: all 64 bits come back
        mov     al, 3
        out     APMCNT, al
        mov     rax, 0xfedcba9876543210
        EXPECT  e, r15, rax
        EXPECT  e, dword [abs SMISEEN], 3
        mov     eax, [abs SMICR0]
        and     eax, CR0_PE | CR0_PG | CR0_TS
        EXPECT  e, eax, 0
        mov     ecx, 0xc0000080
        rdmsr
        and     eax, 1 << 10
        EXPECT  e, eax, 1 << 10
        SAY     "stage smm-from-long"

        push    CODE32                  ; out through compatibility mode
        push    LIN(leave)
        retfq

; ---------------------------------------------------------------------------------------------------------------- back to real
        bits 32
leave:
        mov     ax, DATA32
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     esp, STACK
        lidt    [LIN(idtr32)]
        mov     eax, cr0                ; PG off in compatibility mode: LMA goes
        and     eax, ~CR0_PG
        mov     cr0, eax
        mov     ecx, 0xc0000080
        rdmsr
        test    eax, 1 << 10
        setz    bl
        EXPECT  e, bl, 1
        and     eax, ~(1 << 8)
        wrmsr
        xor     eax, eax
        mov     cr4, eax
        SAY     "stage leave-long"
        jmp     dword CODE16:leave16
        bits 16
leave16:
        mov     ax, DATA16
        mov     ds, ax
        mov     es, ax
        mov     fs, ax
        mov     gs, ax
        mov     ss, ax
        mov     eax, cr0
        and     eax, ~CR0_PE
        mov     cr0, eax
        jmp     0xf000:real_again
real_again:
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     fs, ax
        mov     gs, ax
        mov     ss, ax
        mov     sp, STACK
        lidt    [cs:idtr16]
        mov     word [INTSEEN], 0
        int     0x60
        EXPECT  e, word [INTSEEN], 0x1234
        SAY     "stage back-to-real"

        SAY     "tour complete, now a triple fault"
        lidt    [cs:idtr_none]
        int3
        hlt

; --------------------------------------------------------------------------------------------------------------- subroutines
fail16:                                 ; cs:si = text
        call    puts16
        mov     al, 1
        out     DEBUGEXIT, al
        cli
        hlt
puts16:
        mov     dx, COM1
.next:  mov     al, [cs:si]
        test    al, al
        jz      .done
        out     dx, al
        inc     si
        jmp     .next
.done:  ret

int60:  mov     word [INTSEEN], 0x1234
        iret

; Copies tables and handlers into RAM, builds the page tables.
set_up:
        push    ds
        pop     ds
        mov     si, gdt                 ; the GDT needs RAM: busy bits
        mov     di, GDT
        mov     cx, gdt_end - gdt
        call    copy
        mov     si, smm_handler
        mov     di, 0
        mov     ax, 0x3800
        mov     es, ax
        mov     cx, smm_handler_end - smm_handler
        call    copy
        xor     ax, ax
        mov     es, ax
        mov     si, ap_start
        mov     di, AP
        mov     cx, ap_end - ap_start
        call    copy
        mov     dword [SMISEEN], 0

        mov     di, IDT32               ; 32-bit gates: all to `unexpected`, #GP and #PF to their handlers
        mov     cx, 256
        mov     eax, LIN(unexpected32)
        call    .gates32
        mov     di, IDT32 + 13 * 8
        mov     cx, 1
        mov     eax, LIN(gp32)
        call    .gates32
        mov     di, IDT32 + 14 * 8
        mov     cx, 1
        mov     eax, LIN(pf32)
        call    .gates32
        mov     di, IDT64
        mov     cx, 256
        mov     eax, LIN(unexpected64)
        call    .gates64
        mov     di, IDT64 + 13 * 16
        mov     cx, 1
        mov     eax, LIN(gp64)
        call    .gates64

        mov     di, TSS1                ; both TSSs
        mov     cx, 0x200 / 2
        xor     ax, ax
        rep     stosw
        mov     dword [TSS1 + 4], STACK - 0x200        ; ESP0, SS0
        mov     dword [TSS1 + 8], DATA32
        mov     word [TSS1 + 0x66], 0x68
        mov     dword [TSS2 + 0x20], LIN(task)         ; EIP, EFLAGS, ESP
        mov     dword [TSS2 + 0x24], 2
        mov     dword [TSS2 + 0x38], STACK - 0x400
        mov     dword [TSS2 + 0x48], DATA32            ; ES CS SS DS FS GS
        mov     dword [TSS2 + 0x4c], CODE32
        mov     dword [TSS2 + 0x50], DATA32
        mov     dword [TSS2 + 0x54], DATA32
        mov     dword [TSS2 + 0x58], DATA32
        mov     dword [TSS2 + 0x5c], DATA32
        mov     word [TSS2 + 0x66], 0x68

        mov     ax, TABLES >> 4         ; page tables: es = TABLES
        mov     es, ax
        xor     di, di
        mov     cx, 0x4000
        xor     eax, eax
        rep     stosd
        mov     di, PD32 - TABLES       ; 4 MiB pages: 0..4 MiB, the ROM's alias, the APIC
        mov     dword [es:di], 0x00000083
        mov     dword [es:di + 0x3fb * 4], 0xfec00083
        mov     dword [es:di + 0x3ff * 4], 0xffc00083
        mov     dword [es:PDPT - TABLES], PDPAE + 1
        mov     dword [es:PDPAE - TABLES], 0x00000083          ; 2 MiB pages
        mov     dword [es:PDPAE - TABLES + 8], 0x00200083
        mov     dword [es:BADPDPT - TABLES], PDPAE + 1
        mov     dword [es:BADPDPT - TABLES + 8], PDPAE + 1 + 0x1e0
        mov     dword [es:PML4 - TABLES], PDPT64 + 3
        mov     dword [es:PDPT64 - TABLES], PD64 + 3
        mov     dword [es:PD64 - TABLES], 0x00000083
        mov     dword [es:PD64 - TABLES + 8], 0x00200083
        xor     ax, ax
        mov     es, ax
        ret
.gates32:                               ; di = table, cx = count, eax = handler
        mov     [di], ax
        mov     word [di + 2], CODE32
        mov     word [di + 4], 0x8e00
        push    eax
        shr     eax, 16
        mov     [di + 6], ax
        pop     eax
        add     di, 8
        loop    .gates32
        ret
.gates64:
        mov     [di], ax
        mov     word [di + 2], CODE64
        mov     word [di + 4], 0x8e00
        push    eax
        shr     eax, 16
        mov     [di + 6], ax
        pop     eax
        mov     dword [di + 8], 0
        mov     dword [di + 12], 0
        add     di, 16
        loop    .gates64
        ret
copy:   mov     al, [cs:si]             ; cs:si to es:di, cx bytes
        stosb
        inc     si
        loop    copy
        ret

vm86:                                   ; runs in virtual-8086 mode, CS F000
        xor     ax, ax
        mov     ds, ax
        mov     dword [VMSEEN], 0x8086
        int     0x21                    ; IOPL 0: #GP
        hlt

smm_handler:                            ; SMBASE 30000: CS base 30000, ip 8000
        mov     ax, cs
        xor     ax, ax
        mov     ds, ax
        inc     dword [SMISEEN]
        mov     eax, cr0
        mov     [SMICR0], eax
        rsm
smm_handler_end:

ap_start:                               ; second processor, real mode, CS 0800
        cli
        xor     ax, ax
        mov     ds, ax
        smsw    ax
        test    al, CR0_PE
        jnz     .stop
        mov     byte [APSEEN], 0xa9
.stop:  hlt
        jmp     .stop
ap_end:

        bits 32
puts32:
        mov     dx, COM1
.next:  lodsb
        test    al, al
        jz      .done
        out     dx, al
        jmp     .next
.done:  ret
fail32: call    puts32
        mov     al, 1
        out     DEBUGEXIT, al
        cli
        hlt
task:                                   ; the second task: leaves a mark and jumps back
        mov     dword [TASKSEEN], 0x7a5c
        jmp     TSSA:0
unexpected32:
        mov     esi, LIN(.text)
        jmp     fail32
.text:  db      "FAIL: unexpected exception (protected mode)", 10, 0
gp32:
        test    dword [ss:esp + 12], 0x20000    ; from virtual-8086 mode?
        jnz     from_vm86
        inc     dword [GPCOUNT]
        add     esp, 4
        mov     eax, [RESUME]
        mov     [esp], eax
        iretd
pf32:
        mov     eax, cr2
        mov     [PFADDR], eax
        add     esp, 4
        mov     eax, [RESUME]
        mov     [esp], eax
        iretd

        bits 64
puts64:
        mov     dx, COM1
.next:  lodsb
        test    al, al
        jz      .done
        out     dx, al
        jmp     .next
.done:  ret
fail64: call    puts64
        mov     al, 1
        out     DEBUGEXIT, al
        cli
        hlt
unexpected64:
        mov     esi, LIN(.text)
        jmp     fail64
.text:  db      "FAIL: unexpected exception (long mode)", 10, 0
gp64:
        inc     dword [abs GPCOUNT]
        add     rsp, 8
        mov     rax, [abs RESUME]
        mov     [rsp], rax
        iretq

; --------------------------------------------------------------------------------------------------------------------- tables
        align 8
gdt:    dq      0
        dq      0x00009b0f_0000ffff     ; 08: 16-bit code, base F0000
        dq      0x00009300_0000ffff     ; 10: data, base 0, 64 KiB
        dq      0x00cf9b00_0000ffff     ; 18: 32-bit code, flat
        dq      0x00cf9300_0000ffff     ; 20: data, flat
        dq      0x00af9b00_0000ffff     ; 28: 64-bit code
        dw      0x67, TSS1
        db      0, 0x89, 0, 0           ; 30
        dw      0x67, TSS2
        db      0, 0x89, 0, 0           ; 38
gdt_end:
gdtr:   dw      gdt_end - gdt - 1
        dd      GDT
idtr32: dw      0x7ff
        dd      IDT32
idtr64: dw      0xfff
        dq      IDT64
idtr16: dw      0x3ff
        dd      0
idtr_none:
        dw      0
        dd      0

        times 0xfff0 - ($ - $$) db 0xff
        bits 16
        jmp     0xf000:start
        times 0x10000 - ($ - $$) db 0
