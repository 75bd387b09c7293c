; kernels.asm: small programs, paged: 32-bit (default) or long mode (-DLONG). A 64 KiB ROM at 0xF0000 and below 4 GiB.
; -DKERNEL_name chooses: ALU, MEMORY, FIB, SIEVE, MIX, MOVS, STOS, SSED, SSEI, X87. ITERATIONS is a kernel's own unit.
; Writes 'S' to port 0xE9 at the start, 'E' at the end, then leaves by port 0xF4. Data at 4 MiB, 16 MiB are mapped.
%ifndef ITERATIONS
%error "give -DITERATIONS=n"
%endif
%ifdef LONG
%define A rax
%define B rbx
%define C rcx
%define D rdx
%define SI_ rsi
%define DI_ rdi
%define SP_ rsp
%define X r8
%define XD r8d
%define Y r9
%define YD r9d
%else
%define A eax
%define B ebx
%define C ecx
%define D edx
%define SI_ esi
%define DI_ edi
%define SP_ esp
%define X esi
%define XD esi
%define Y edi
%define YD edi
%endif
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
        mov     al, 'S'
        out     0xe9, al
        call    kernel
        mov     al, 'E'
        out     0xe9, al
        mov     al, 0
        out     0xf4, al
        hlt
        align 16

; ALU: eight ALU instructions, dec, jnz.
%ifdef KERNEL_ALU
kernel: mov     ecx, ITERATIONS
        mov     eax, 1
        mov     ebx, 2
        mov     edx, 3
        mov     esi, 4
        mov     edi, 5
.loop:  add     A, B
        xor     D, A
        sub     SI_, D
        and     DI_, SI_
        or      B, DI_
        lea     A, [A + D]
        shl     D, 3
        adc     SI_, A
        dec     ecx
        jnz     .loop
        ret
%endif

; MEMORY: two loads and two stores over 4 MB. CR3 is reloaded from time to time: QEMU sizes its TLB when it is flushed.
%ifdef KERNEL_MEMORY
kernel: mov     ebx, DATA
        xor     edx, edx
        mov     ecx, ITERATIONS / 1000000
.outer: push    C
        mov     ecx, 1000000
.loop:  mov     A, [B + D]
        add     A, C
        mov     [B + D + 8], A
        mov     XD, [B + D + 4]
        add     Y, X
        mov     [B + D + 16], YD
        add     edx, 0x1048
        and     edx, 0x3ffff8
        dec     ecx
        jnz     .loop
        mov     A, cr3
        mov     cr3, A
        pop     C
        dec     ecx
        jnz     .outer
        ret
%endif

; FIB: recursive fib(27), ITERATIONS times.
%ifdef KERNEL_FIB
kernel: mov     ecx, ITERATIONS
.loop:  mov     edi, 27
        call    fib
        dec     ecx
        jnz     .loop
        ret
fib:    cmp     edi, 2
        jb      .leaf
        push    DI_
        dec     edi
        call    fib
        pop     DI_
        push    A
        sub     edi, 2
        call    fib
        pop     B
        add     eax, ebx
        ret
.leaf:  mov     eax, edi
        ret
%endif

; SIEVE: the primes below a million, ITERATIONS times.
%ifdef KERNEL_SIEVE
kernel: mov     edx, ITERATIONS
.again: push    D
        mov     ebx, DATA
        mov     esi, 1000000
        mov     ecx, esi
        mov     DI_, B
        mov     al, 1
.fill:  mov     [DI_], al
        inc     DI_
        dec     ecx
        jnz     .fill
        mov     ecx, 2
.outer: cmp     byte [B + C], 0
        je      .next
        mov     eax, ecx
        imul    eax, ecx
        cmp     eax, esi
        jae     .next
.inner: mov     byte [B + A], 0
        add     eax, ecx
        cmp     eax, esi
        jb      .inner
.next:  inc     ecx
        cmp     ecx, 1001
        jb      .outer
        pop     D
        dec     edx
        jnz     .again
        ret
%endif

; SSED: double precision: loads, stores, the four operations, conversions, a comparison.
%ifdef KERNEL_SSED
kernel: mov     ebx, DATA
        mov     ecx, ITERATIONS
        mov     eax, 3
        cvtsi2sd xmm1, eax
        mov     eax, 7
        cvtsi2sd xmm3, eax
        divsd   xmm1, xmm3              ; 3/7: inexact from here on
        movapd  xmm2, xmm3
        movsd   [B], xmm1
        xor     edx, edx
.loop:  movsd   xmm0, [B + D]
        mulsd   xmm0, xmm3
        addsd   xmm0, xmm1
        cvtsi2sd xmm4, ecx
        divsd   xmm4, xmm0
        subsd   xmm4, xmm1
        addsd   xmm2, xmm4
        cvttsd2si eax, xmm4
        ucomisd xmm0, xmm4
        jb      .skip
        movsd   [B + D + 8], xmm1
.skip:  add     edx, 8
        and     edx, 0xff8
        dec     ecx
        jnz     .loop
        ret
%endif

; SSEI: packed integers: aligned and unaligned loads, arithmetic, logic, shuffles, a store.
%ifdef KERNEL_SSEI
kernel: mov     ebx, DATA
        mov     ecx, ITERATIONS
        pxor    xmm1, xmm1
        pcmpeqd xmm2, xmm2
        xor     edx, edx
.loop:  movdqa  xmm0, [B + D]
        paddd   xmm1, xmm0
        psubd   xmm1, xmm2
        movdqu  xmm3, [B + D + 8]
        pxor    xmm3, xmm1
        pand    xmm3, xmm2
        pshufd  xmm4, xmm3, 0x1b
        punpckldq xmm4, xmm1
        pcmpgtd xmm4, xmm0
        por     xmm1, xmm4
        movdqa  [B + D + 16], xmm1
        add     edx, 32
        and     edx, 0xfe0
        dec     ecx
        jnz     .loop
        ret
%endif

; X87: loads, the four operations, a store.
%ifdef KERNEL_X87
kernel: mov     ebx, DATA
        mov     ecx, ITERATIONS
        fninit
        fldpi
        fld1
.loop:  fadd    st0, st1
        fld     st0
        fmul    st0, st2
        fsub    st0, st1
        fstp    qword [B + 8]
        fld     qword [B + 8]
        fdiv    st0, st2
        fstp    st0
        fxch    st1
        fxch    st1
        dec     ecx
        jnz     .loop
        ret
%endif

; MIX: what programs do: a list is walked, a matrix multiplied, a state machine fed, a CRC computed; calls between them.
%ifdef KERNEL_MIX
kernel: mov     ebx, DATA
        mov     ecx, 4096               ; 4096 nodes of 32 bytes, each linked to one further on
        xor     edx, edx
.make:  lea     eax, [edx + 7 * 32]
        and     eax, 0x1ffff
        add     eax, DATA
        mov     [B + D], A
        mov     [B + D + 8], ecx
        add     edx, 32
        dec     ecx
        jnz     .make
        mov     ecx, ITERATIONS
.loop:  push    C
        call    list
        push    A
        call    matrix
        pop     D
        add     eax, edx
        call    machine
        call    crc
        pop     C
        dec     ecx
        jnz     .loop
        ret
list:   mov     ebx, DATA
        xor     eax, eax
        mov     ecx, 500
.walk:  mov     edx, [B + 8]
        test    dl, 1
        jz      .even
        add     eax, edx
        jmp     .step
.even:  sub     eax, edx
.step:  mov     B, [B]
        dec     ecx
        jnz     .walk
        ret
matrix: xor     ebx, ebx                ; 8x8 words at DATA + 0x40000
.row:   xor     edx, edx
.column:
        push    C
        xor     ecx, ecx
        xor     edi, edi
.dot:   lea     eax, [ebx * 8]
        add     eax, ecx
        movsx   eax, word [DATA + 0x40000 + A * 2]
        lea     esi, [ecx * 8]
        add     esi, edx
        movsx   esi, word [DATA + 0x40080 + SI_ * 2]
        imul    eax, esi
        add     edi, eax
        inc     ecx
        cmp     ecx, 8
        jb      .dot
        lea     eax, [ebx * 8]
        add     eax, edx
        mov     [DATA + 0x40100 + A * 4], edi
        pop     C
        inc     edx
        cmp     edx, 8
        jb      .column
        inc     ebx
        cmp     ebx, 8
        jb      .row
        mov     eax, edi
        ret
machine:
        mov     ecx, 200
        xor     edx, edx
.next:  movzx   ebx, byte [DATA + 0x50000 + C]
        cmp     edx, 1
        je      .digits
        ja      .other
        cmp     bl, '0'
        jb      .to2
        inc     edx
        jmp     .fed
.digits:
        cmp     bl, '9'
        jbe     .fed
.to2:   mov     edx, 2
        jmp     .fed
.other: xor     bl, 0x30
        jnz     .fed
        xor     edx, edx
.fed:   add     eax, edx
        dec     ecx
        jnz     .next
        ret
crc:    mov     ecx, 64
.byte:  movzx   ebx, byte [DATA + 0x50000 + C]
        xor     al, bl
        mov     edx, 8
.bit:   shr     eax, 1
        jnc     .even
        xor     eax, 0xa001
.even:  dec     edx
        jnz     .bit
        dec     ecx
        jnz     .byte
        ret
%endif

; MOVS, STOS: 1 MB each time, ITERATIONS times.
%ifdef KERNEL_MOVS
kernel: mov     edx, ITERATIONS
.loop:  mov     esi, DATA
        mov     edi, DATA + 0x400000
        mov     ecx, 0x100000 / 4
        rep     movsd
        dec     edx
        jnz     .loop
        ret
%endif
%ifdef KERNEL_STOS
kernel: mov     edx, ITERATIONS
.loop:  mov     edi, DATA
        mov     ecx, 0x100000 / 4
        rep     stosd
        dec     edx
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
gdtr:   dw      gdtr - gdt - 1
        dd      LIN(gdt)
        times 0xfff0 - ($ - $$) db 0xff
        bits 16
        jmp     0xf000:start
        times 0x10000 - ($ - $$) db 0
