; cpuid.asm: a boot sector that executes CPUID 4 x 500,000 times; 'S' and 'E' on port 0xE9 around each batch.
        org 0x7c00
        bits 16
        mov     bp, 4
.batch: mov     al, 'S'
        out     0xe9, al
        mov     edi, 500000
.loop:  xor     eax, eax
        cpuid
        dec     edi
        jnz     .loop
        mov     al, 'E'
        out     0xe9, al
        dec     bp
        jnz     .batch
        mov     al, 0
        out     0xf4, al
        hlt
        times   510 - ($ - $$) db 0
        dw      0xaa55
