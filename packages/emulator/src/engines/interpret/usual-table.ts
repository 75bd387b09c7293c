/** Written by scripts/usual-forms.ts; how to read it: usual.ts. */
export const LONG = `
adc Ev,Iz 4b
adc Rb,Ib 1
adc Rv,Gv 8
adc Rv,Iz 4 8
add Eb,Ib 1b
add Ev,Gv 2b 2i 4bg5 4i 4rg5 8bL 8bg5 8i 8iL 8ig5 8r 8rg5
add Ev,Iz 2b 2i 4bL 4i 4r 4rg5 8bL 8i 8r
add Gb,Eb 1b 1i
add Gv,Ev 2b 2i 4i 8i 8r 8rg5
add Rb,Gb 1
and Eb,Gb 1b
and Eb,Ib 1b 1i
and Ev,Gv 2b 2i 4b 8b
and Ev,Iz 2b 4b 4rg5 8b
and Gb,Eb 1r
and Gv,Ev 2b 4b 4i 4r 8b 8i 8r
and Rb,Gb 1
and Rb,Ib 1
and Rv,Iz 2
bsf Gv,Rv 4
bsr Gv,Ev 8r
bsr Gv,Rv 4 8
bswap Rv 4 8
bt Ev,Gv 8b 8i 8r
bt Ev,Ib 4b
bt Rv,Gv 4 8
bt Rv,Ib 4 8
btr Ev,Gv 8b 8bL
btr Ev,Ib 8b
btr Rv,Gv 4
btr Rv,Ib 8
bts Ev,Gv 8b 8bL 8r 8rL
bts Ev,Ib 8b 8i
bts Rv,Gv 8
bts Rv,Ib 8
call Ev 8i 8r
cld  4
cli  4
cmovcc.12 Gv,Rv 4 8
cmovcc.13 Gv,Rv 4 8
cmovcc.14 Gv,Rv 4 8
cmovcc.15 Gv,Rv 4 8
cmovcc.2 Gv,Ev 4r
cmovcc.2 Gv,Rv 4 8
cmovcc.3 Gv,Ev 8b
cmovcc.3 Gv,Rv 4 8
cmovcc.4 Gv,Ev 4r 8b 8r
cmovcc.5 Gv,Ev 4b 8r
cmovcc.6 Gv,Rv 4 8
cmovcc.7 Gv,Rv 4 8
cmovcc.8 Gv,Rv 4 8
cmovcc.9 Gv,Rv 4 8
cmp Eb,Gb 1b 1i
cmp Eb,Ib 1r
cmp Ev,Gv 2b 4b 4i 4r 8b 8i 8r
cmp Ev,Iz 2b 2i 8bg4 8i
cmp Gb,Eb 1b 1i
cmp Gv,Ev 2b 4i 8bg5 8i
cmp Rb,Gb 1
cmp Rv,Gv 2
cmp Rv,Iz 2
cmpxchg Eb,Gb 1bg5
cmpxchg Ev,Gv 4b 4bL 4r 4rL 8b 8bL 8i 8rg5
cmpxchg16b Mdq 8b 8bL 8bg5
dec Ev 4b 4bg5 4r 4rg5 8b 8rg5
div Ev 8b
div Rv 4 8
fild Md 4bx
idiv Ev 4b
idiv Rv 4 8
imul Gv,Ev 4b 8b 8i
imul Gv,Ev,Iz 8b 8r
imul Gv,Rv,Iz 4 8
inc Ev 4b 4bL 4bg5 4ig5 4r 4rg5 8b 8bL 8bg5 8ig5 8rg5
jmp Ev 8r
ldmxcsr Md 4bv0
lfence  4
mov Eb,Gb 1bg5
mov Eb,Ib 1r 1rg5
mov Ev,Gv 2b 2i 2r 2rg5 4bg4 8bg4 8bg5 8rg5
mov Ev,Iz 2b 2rg5 4bg4 4r 4rg5 8r 8rg5
mov Gb,Eb 1b 1bg5 1i 1r 1rg5
mov Gv,Ev 2b 2i 2r 2rg5 4bg4 4bg5 4rg5 8bg4 8bg5 8ig5 8rg5
mov Rb,Gb 1
mov Rb,Ib 1
movaps Wdq,Vdq 4bv0
movd Vdq,Ey 4iv0 4v0 8v0
movdqa Vdq,Wdq 4bv0 4rv0 4v0
movdqu Vdq,Wdq 4bv0 4iv0
movdqu Wdq,Vdq 4bv0
movhps Vq,Mq 4bv0 4rv0
movq Vdq,Wq 4rv0
movs Yv,Xv 4e
movseg Rv/Mw,Sw 2 4
movsx Gv,Eb 4b 4i 4r 8b
movsx Gv,Ew 4b 4r 8b
movsx Gv,Rw 4
movsxd Gv,Ez 8b 8i 8r
movups Wdq,Vdq 4bv0 4rv0
movzx Gv,Eb 8b 8i
movzx Gv,Ew 4r
mul Rv 4 8
or Eb,Ib 1b 1bL 1rL
or Ev,Gv 2r 2rg5 4b 4i 4r 8b
or Ev,Iz 2b 4b 4r 4rg5 8b
or Gv,Ev 2b 4b 4r 8b 8i 8r
or Rb,Gb 1
or Rb,Ib 1
or Rv,Iz 2
paddd Vdq,Wdq 4v0
paddq Vdq,Wdq 4v0
pause  4
pcmpeqb Vdq,Wdq 4v0
pmovmskb Gd,Udq 4v0
popcnt Gv,Rv 8
popf  8
por Vdq,Wdq 4v0
pshufb Vdq,Wdq 4v0
pshufd Vdq,Wdq,Ib 4v147 4v57 4v78
pslld Udq,Ib 4v20 4v25
psrld Udq,Ib 4v12 4v7
punpckldq Vdq,Wdq 4v0
punpcklqdq Vdq,Wdq 4v0
push Ev 8b 8bg5
pushf  8
pxor Vdq,Wdq 4rv0 4v0
rdtsc  4
rdtscp  4
rol Rv,1 4
rol Rv,CL 8
rol Rv,Ib 2k 4k 8k
ror Rv,Ib 4k 8k
sar Ev,1 2b
sar Rv,1 4 8
sar Rv,CL 4 8
sbb Rb,Ib 1
sbb Rv,Gv 2 4 8
sbb Rv,Iz 4 8
setcc.12 Rb 1
setcc.14 Rb 1
setcc.15 Rb 1
setcc.2 Eb 1b
setcc.2 Rb 1
setcc.3 Rb 1
setcc.4 Eb 1b 1i
setcc.5 Eb 1b
setcc.6 Rb 1
setcc.7 Rb 1
shl Rv,CL 4 8
shr Ev,CL 8b
shr Rb,1 1
shr Rb,Ib 1k
shr Rv,1 4 8
shr Rv,CL 4 8
shr Rv,Ib 2k
shrd Rv,Gv,CL 8
shrd Rv,Gv,Ib 8k
sti  4
stos Yv,rAX 2e 4e
sub Eb,Ib 1b
sub Ev,Gv 4b 8b 8r
sub Ev,Iz 2i 4b 4i 4r 8b 8i 8r
sub Gv,Ev 2b 4b 4i 4r 8b 8bg4 8bg5 8r
sub Rb,Ib 1
sub Rv,Iz 2
swapgs  4
test Eb,Gb 1b
test Eb,Ib 1i 1r
test Ev,Gv 4b 8b
test Ev,Iz 2b 4b 8b
test Rv,Gv 2
test Rv,Iz 2 4 8
tzcnt Gv,Rv 4 8
vmovd Vdq,Ey 4vx0
vmovdqa Vx,Wx 4rvxw0
vmovdqa Wx,Vx 4bvxw0
vmovdqu Vx,Wx 4bvx0 4bvxw0 4ivxw0
vmovdqu Wx,Vx 4bvxw0
vpaddb Vx,Hx,Wx 4vx0 4vxw0
vpandn Vx,Hx,Wx 4vx0 4vxw0
vpbroadcastb Vx,Wb 4vxw0
vpcmpeqb Vx,Hx,Wx 4bvxw0 4ivxw0 4vx0 4vxw0
vpcmpgtb Vx,Hx,Wx 4vx0 4vxw0
vpmovmskb Gd,Ux 4vxw0
vpor Vx,Hx,Wx 4vxw0
vpxor Vx,Hx,Wx 4vx0
vzeroupper  4vx0
wait  4x
xadd Ev,Gv 4b 4r 4rg5 8b 8bL 8i 8r
xchg Ev,Gv 4b 4r 8b
xor Eb,Ib 1b 1i
xor Ev,Iz 4b
xor Gv,Ev 4b 4i 8b 8bg4 8i
xor Rb,Gb 1
xor Rv,Gv 2
`;
export const LEGACY = `
adc Eb,Ib 1b
adc Ev,Gv 4b 4i
adc Ev,Iz 4b
adc Gv,Ev 4b 4i
adc Rv,Gv 4
adc Rv,Iz 4
add Eb,Ib 1b
add Ev,Gv 2b 2i 4bL 4bg4 4bq 4i 4iL 4ig4
add Ev,Iz 2b 2i 4bL 4bg4 4i
add Gb,Eb 1b
add Gv,Ev 2b 2i 4bg4 4i
add Rb,Gb 1
add Rv,Iz 2
and Eb,Gb 1b
and Eb,Ib 1b 1i
and Ev,Gv 2b 2i 4b
and Ev,Iz 2b 2bq 4b 4bg4
and Gb,Eb 1b
and Gv,Ev 2i 4b 4i
and Rb,Gb 1
and Rb,Ib 1
and Rv,Iz 2
bsf Gv,Rv 4
bsr Gv,Rv 4
bswap Rv 4
bt Ev,Gv 4b 4i
bt Ev,Ib 4b
bt Rv,Gv 4
bt Rv,Ib 4
btc Rv,Gv 4
btr Ev,Gv 4b 4bL
btr Ev,Ib 4b
btr Rv,Gv 4
bts Ev,Gv 4b 4bL
bts Ev,Ib 4b 4i
bts Rv,Gv 4
call Ev 4bg5 4i
call Jz 4c2s2q
call Rv 4c2s2q
cbw  4
clc  4
cld  2 4
cli  2 4
cmovcc.12 Gv,Ev 4b
cmovcc.12 Gv,Rv 4
cmovcc.13 Gv,Ev 4b
cmovcc.13 Gv,Rv 4
cmovcc.14 Gv,Ev 4b
cmovcc.14 Gv,Rv 4
cmovcc.15 Gv,Rv 4
cmovcc.2 Gv,Ev 4b
cmovcc.2 Gv,Rv 4
cmovcc.3 Gv,Ev 4b
cmovcc.3 Gv,Rv 4
cmovcc.4 Gv,Ev 4b
cmovcc.5 Gv,Ev 4b
cmovcc.6 Gv,Ev 4b
cmovcc.6 Gv,Rv 4
cmovcc.7 Gv,Ev 4b
cmovcc.7 Gv,Rv 4
cmovcc.8 Gv,Ev 4b
cmovcc.8 Gv,Rv 4
cmovcc.9 Gv,Rv 4
cmp Eb,Gb 1b 1bq 1i
cmp Eb,Ib 1ba2q 1bq
cmp Ev,Gv 2b 4b 4i
cmp Ev,Iz 2b 2i 4bq 4i
cmp Gb,Eb 1b 1bq 1i
cmp Gv,Ev 2b 4i
cmp Rb,Gb 1
cmp Rv,Gv 2
cmp Rv,Iz 2
cmps Xb,Yb 1e
cmpxchg Eb,Gb 1bg4
cmpxchg Ev,Gv 4b 4bL 4i
cmpxchg8b Mq 4b 4bL 4bg4
dec Ev 4b 4bg4
dec Rb 1
div Ev 4b
div Rb 1
div Rv 4
fild Md 4bx
idiv Rv 4
imul Gv,Ev 4b
imul Gv,Ev,Iz 4b
imul Gv,Rv,Iz 4
imul Rv 4
inc Ev 4b 4bL 4bg4 4ig4
inc Rb 1
inc Rv 2
jcc.14 Jb 2c2s2q
jcc.2 Jb 2c2s2q
jcc.3 Jb 2c2s2q
jcc.4 Jb 2c2s2q
jcc.5 Jb 2c2s2q
jcc.6 Jb 2c2s2q
jcc.7 Jb 2c2s2q
jcc.8 Jb 2c2s2q
jcc.9 Jb 2c2s2q
jmp Ev 4i
jmp Jb 2c2s2q
jmp Rv 4c2s2q
lea Gv,M 4bq 4iq
lfence  4
lods AL,Xb 1
loop Jb 4
mov AL,Ob 1 1a2q 1g4
mov Eb,Gb 1ba2q 1bg4 1bq
mov Eb,Ib 1bg4 1bq 1iq
mov Ev,Gv 2b 2bq 2i 4ba2q 4bg4 4bg5 4bq
mov Ev,Iz 2b 2bg4 2bq 4bg4 4bg5
mov Gb,Eb 1b 1ba2q 1ba2qg1 1bg4 1bq 1bqg1 1i
mov Gv,Ev 2b 2ba2q 2ba2qg1 2bg4 2bq 2bqg1 2i 2iqg1 4ba2q 4ba2qg1 4bg4 4bg5 4bq 4bqg1 4ig4 4iqg1
mov Ob,AL 1 1a2q
mov Ov,rAX 2 2a2q 2a2qg1 2g4 4 4a2q 4a2qg1 4g4 4g5
mov Rb,Gb 1
mov Rb,Ib 1
mov Rv,Gv 2
mov Rv,Iz 2
mov rAX,Ov 2 2a2q 2g4 4 4a2q 4a2qg1 4g4 4g5
movd Ey,Vdq 4v0
movd Vdq,Ey 4bv0
movdqa Vdq,Wdq 4bv0 4v0
movdqa Wdq,Vdq 4bv0
movdqu Vdq,Wdq 4bv0 4iv0
movs Yb,Xb 1 1a2qe
movs Yv,Xv 2
movseg Rv/Mw,Sw 2 2bq 4
movseg Sw,Ew 2bc2s2q 4b
movseg Sw,Rw 2c2s2q 4 4q 4s2 4s2q
movsx Gv,Eb 4b 4i
movsx Gv,Ew 4b 4i
movsx Gv,Rw 4
movzx Gv,Eb 4bq
movzx Gv,Ew 4bq
mul Ev 4b 4i
mul Rv 4
or Eb,Gb 1b
or Eb,Ib 1b 1bL
or Ev,Gv 2b 2bg4 4b 4i
or Ev,Iz 2b 2bq 4b 4bg4
or Gb,Eb 1b
or Gv,Ev 2b 4b 4i
or Rb,Gb 1
or Rb,Ib 1
or Rv,Iz 2
pand Vdq,Wdq 4bv0 4v0
pause  2 4
pcmpeqb Vdq,Wdq 4v0
pcmpgtb Vdq,Wdq 4bv0 4v0
pmovmskb Gd,Udq 4v0
pop Ev 2bc2s2q 4b 4bc2s2q
pop Rv 2c2s2q 4c2s2q
popcnt Gv,Rv 4
popf  2c2s2q 4
popseg DS 2c2s2q
por Vdq,Wdq 4v0
pshufb Vdq,Wdq 4v0
pshufd Vdq,Wdq,Ib 4v0
ptest Vdq,Wdq 4v0
punpcklbw Vdq,Wdq 4v0
push Ev 2bc2s2q 4b 4ba2c2s2qg1 4bc2s2q 4i
push Iz 2c2s2q 4c2s2q
push Rv 2c2s2q 4c2s2q
pushf  2c2s2q 4
pushseg CS 2c2s2q 4
pushseg DS 2c2s2q 4
pushseg ES 4
pushseg FS 4
pushseg SS 4
pxor Vdq,Wdq 4v0
rdtsc  2 4
rdtscp  4
ret  4c2s2q
ret Iw 4
rol Rv,1 4
rol Rv,Ib 2k 4k
ror Rv,Ib 4k
sar Ev,1 2b
sar Rv,1 4
sar Rv,CL 4
sbb Ev,Gv 4b
sbb Ev,Iz 4b
sbb Gv,Ev 4b
sbb Rv,Gv 2 4
sbb Rv,Iz 4
scas AL,Yb 1 1n
setcc.0 Rb 1
setcc.12 Rb 1
setcc.14 Rb 1
setcc.15 Rb 1
setcc.2 Eb 1b
setcc.2 Rb 1
setcc.3 Rb 1
setcc.4 Eb 1b
setcc.5 Eb 1b
setcc.6 Eb 1b
setcc.6 Rb 1
setcc.7 Rb 1
shl Eb,1 1b
shl Ev,1 4b
shl Ev,Ib 4bk
shl Rv,1 4
shl Rv,CL 4
shld Rv,Gv,CL 4
shld Rv,Gv,Ib 4k
shr Ev,1 4b
shr Ev,CL 4b
shr Ev,Ib 4bk
shr Rb,1 1
shr Rb,Ib 1k
shr Rv,1 4
shr Rv,CL 4
shr Rv,Ib 2k
shrd Rv,Gv,CL 4
shrd Rv,Gv,Ib 4k
stc  4
sti  2 4
stos Yb,AL 1
stos Yv,rAX 2e
sub Eb,Ib 1b
sub Ev,Gv 4b
sub Ev,Iz 4b 4i
sub Gb,Eb 1b
sub Gv,Ev 2b 4b 4bg4 4bg5 4i
sub Rb,Ib 1
sub Rv,Iz 2
test Eb,Ib 1i
test Ev,Gv 4b
test Ev,Iz 2b 4b
test Rv,Gv 2
test Rv,Iz 2 4
tzcnt Gv,Rv 4
wait  4x
xadd Ev,Gv 4b 4bL 4bg4 4i
xchg Ev,Gv 4b
xchg Rb,Gb 1
xchg Rv,Gv 4
xchg Rv,rAX 4
xor Eb,Ib 1b 1i
xor Ev,Iz 4b
xor Gb,Eb 1b
xor Gv,Ev 4b 4bg5 4i
xor Rb,Gb 1
xor Rb,Ib 1
xor Rv,Gv 2
`;
