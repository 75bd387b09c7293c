/**
 * The handlers of made-up programs, as bytes: they mix vector, error code and address into the log, step over what faulted to the next chunk
 * of code, put base registers right, now and then the stack and the x87 unit, too, and end single-stepping after a while.
 */
import { hasErrorCode } from '../../src/exceptions.ts';
import { Place } from './layout.ts';
import { littleEndian } from './random.ts';

const bytes = (hex: string): number[] => Array.from(Buffer.from(hex.replace(/\s/g, ''), 'hex'));

/*
 * In 64-bit code (stack: vector, error code, frame):
 *   push rax; push rcx; mov eax, 23h; mov ds, eax; mov es, eax; mov eax, [rsp+16]; mov ecx, [rsp+32]
 *   rol dword [LOG], 5; add [LOG], eax; xor [LOG], ecx; mov ecx, [rsp+24]; add [LOG], ecx
 *   vector 1: unless LOG & 7, clear TF in the frame; 3, 4 and from 32 on: nothing; else:
 *   RIP = (RIP & 1FE0h) + CODE + 32; RBX, RBP, RSI, RDI from LOG+8; unless LOG & 15: RSP of the frame, CLTS, FNINIT, LDMXCSR
 *   pop rcx; pop rax; add rsp, 16; iretq
 * 32-bit: the same, with DS and ES from LOG+52 at the end, and IP without CODE for CS 3Bh and virtual-8086 mode; 16-bit: DS and ES are 4000h.
 */
const HANDLER = {
  64: bytes(
    '5051b8230000008ed88ec08b4424108b4c2420c10425009f000005010425009f0000310c25009f00008b4c2418010c25009f000083f801746983f803747683f804747183f820736c' +
      '8b4c242081e1e01f000081c12000010048894c2420488b1c25089f0000488b2c25109f0000488b3425189f0000488b3c25209f0000f60425009f00000f752d488b0c25289f0000' +
      '48894c24380f06dbe30fae1425309f0000eb12f60425009f000007750881642430fffeffff59584883c41048cf',
  ),
  32: bytes(
    '5051b8230000008ed88ec08b4424088b4c2410c105009f0000050105009f0000310d009f00008b4c240c010d009f000083f801746683f803747283f804746d83f82073688b4c' +
      '241081e1e01f000083c120f744241800000200750e66837c24143b740681c100000100894c24108b1d089f00008b2d109f00008b35189f00008b3d209f0000f605009f00000f' +
      '751e0f06dbe30fae15309f0000eb11f605009f000007750881642418fffeffffa1349f00008ed88ec0595883c408cf',
  ),
  16: bytes(
    '50515589e531c08ed88b46068b4e0a66c106009f050106009f310e009f83f801744183f803744883f804744383f820733e8b4e0a81e1e01f83c120894e0a8b1e089f8b0e109f894e00' +
      '8b36189f8b3e209ff606009f0f75170f06dbe30fae16309feb0cf606009f07750581660efffeb800408ed88ec05d595883c404cf',
  ),
} as const;

/** PUSH 0 (if the processor pushes no error code); PUSH vector; JMP handler. */
function stub(vector: number, bits: 16 | 32 | 64): number[] {
  const code = bits !== 16 && hasErrorCode(vector) ? [] : [0x6a, 0];
  code.push(0x68, ...littleEndian(vector, bits === 16 ? 2 : 4), 0xe9);
  const size = bits === 16 ? 2 : 4;
  const from = Place.stubs + vector * 16 + code.length + size;
  return [...code, ...littleEndian(Place.handler - from, size)];
}

/** Writes stubs and handler into a memory image. */
export function placeHandlers(image: Uint8Array, bits: 16 | 32 | 64): void {
  for (let vector = 0; vector < 256; vector++) image.set(stub(vector, bits), Place.stubs + vector * 16);
  image.set(HANDLER[bits], Place.handler);
}
