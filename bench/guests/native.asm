; native.asm: the kernels of user-kernels.inc as a program of 64-bit Linux: the same instructions on the host's own processor.
; Writes its processor time in nanoseconds, 8 bytes, to standard output. Data at 4 MiB, as in kernels.asm; the program itself stands higher.
%ifndef ITERATIONS
%error "give -DITERATIONS=n"
%endif
%define LONG
%define NATIVE
%include "registers.inc"
%define DATA 0x400000
%define LIN(x) (x)
%define SYS_write 1
%define SYS_mmap 9
%define SYS_exit 60
%define SYS_clock_gettime 228
%define CLOCK_PROCESS_CPUTIME_ID 2
        bits 64
        default rel
        global _start
        section .text exec
_start: mov     eax, SYS_mmap
        mov     edi, DATA
        mov     esi, 0xc00000
        mov     edx, 7                  ; read, write, execute
        mov     r10d, 0x100032          ; MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED_NOREPLACE
        mov     r8, -1
        xor     r9d, r9d
        syscall
        cmp     rax, DATA
        jne     .failed
        mov     rdi, DATA               ; pages are there before the clock runs
        mov     ecx, 0xc00000 / 8
        xor     eax, eax
        rep     stosq
        call    clock
        mov     [began], rax
        call    kernel
        call    clock
        sub     rax, [began]
        mov     [began], rax
        mov     eax, SYS_write
        mov     edi, 1
        lea     rsi, [began]
        mov     edx, 8
        syscall
        xor     edi, edi
        jmp     .exit
.failed:
        mov     edi, 1
.exit:  mov     eax, SYS_exit
        syscall
clock:  mov     eax, SYS_clock_gettime
        mov     edi, CLOCK_PROCESS_CPUTIME_ID
        lea     rsi, [now]
        syscall
        imul    rax, [now], 1000000000
        add     rax, [now + 8]
        ret
        default abs
        align 16
%include "user-kernels.inc"
        section .bss
        alignb  8
began:  resq    1
now:    resq    2
