import { describe, expect, it } from 'vitest';
import { featureSet } from '../../cpu/features.ts';
import { EPYC } from '../../cpu/models/index.ts';
import { CR4, S } from '../../state-layout.ts';
import { TestMachine } from '../../testing/index.ts';
import type { Engine } from '../engine.ts';
import { InterpretEngine } from '../interpret/interpret.ts';
import { TranslateEngine } from './translate.ts';

const CODE = 0x10000;
const DATA = 0x20000;
const RBX = 3;
const RDX = 2;

/** A 32-bit xorshift. */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}

/** Opcodes on `xmm, xmm/m` (prefix, 0F opcode): moves, integers, numbers. */
const BODIES: readonly (readonly number[])[] = [
  ...[0xfe, 0xfa, 0xef, 0xdb, 0xeb, 0xd4, 0x76, 0x66, 0x62, 0x6a, 0xf5, 0xd5, 0xe4, 0x67, 0x6c, 0xdf].map((op) => [
    0x66,
    0x0f,
    op,
  ]),
  ...[0x58, 0x59, 0x5c, 0x5e, 0x5d, 0x5f, 0x51].flatMap((op) => [
    [0xf2, 0x0f, op],
    [0xf3, 0x0f, op],
  ]),
  [0x66, 0x0f, 0x58],
  [0x0f, 0x59],
  [0x66, 0x0f, 0x2e],
  [0x0f, 0x2f],
  [0xf2, 0x0f, 0x10],
  [0xf3, 0x0f, 0x6f],
  [0xf3, 0x0f, 0x5a],
  [0xf2, 0x0f, 0x5a],
  [0xf3, 0x0f, 0xe6],
];
/** Complete instructions without a memory form here: shuffles, shifts, conversions, general registers. */
const FIXED: readonly (readonly number[])[] = [
  [0x66, 0x0f, 0x70, 0xca, 0x1b],
  [0x66, 0x0f, 0x72, 0xf1, 0x05],
  [0x66, 0x0f, 0x73, 0xdb, 0x03],
  [0x66, 0x0f, 0x6e, 0xe0],
  [0x66, 0x0f, 0x7e, 0xc8],
  [0x66, 0x0f, 0xd7, 0xf3],
  [0xf2, 0x0f, 0x2c, 0xc1],
  [0xf2, 0x0f, 0x2a, 0xd1],
  [0x66, 0x0f, 0xd2, 0xd5],
  [0x0f, 0xc6, 0xca, 0x4e],
  // vpaddd ymm0, ymm1, ymm2; vaddpd ymm3, ymm1, [rbx+rdx]; vpshufd ymm4, ymm3, 4Eh; vzeroupper
  [0xc5, 0xf5, 0xfe, 0xc2],
  [0xc5, 0xf5, 0x58, 0x1c, 0x13],
  [0xc5, 0xfd, 0x70, 0xe3, 0x4e],
  [0xc5, 0xf8, 0x77],
  // vpbroadcastb ymm0, xmm1; vpermq ymm2, ymm1, 1Bh; vpermd ymm3, ymm1, ymm2; vinserti128; vextracti128; vperm2i128; vpsllvd; vpermilps
  [0xc4, 0xe2, 0x7d, 0x78, 0xc1],
  [0xc4, 0xe3, 0xfd, 0x00, 0xd1, 0x1b],
  [0xc4, 0xe2, 0x75, 0x36, 0xda],
  [0xc4, 0xe3, 0x75, 0x38, 0xe2, 0x01],
  [0xc4, 0xe3, 0x7d, 0x39, 0xd5, 0x01],
  [0xc4, 0xe3, 0x75, 0x46, 0xe2, 0x83],
  [0xc4, 0xe2, 0x75, 0x47, 0xe2],
  [0xc4, 0xe2, 0x75, 0x0c, 0xe2],
  // pblendvb xmm1, xmm2; psadbw; pmaddubsw; pmulhrsw; psignw; phaddd; roundsd xmm2, xmm1, 9; roundpd, 3; cvtps2dq
  [0x66, 0x0f, 0x38, 0x10, 0xca],
  [0x66, 0x0f, 0xf6, 0xca],
  [0x66, 0x0f, 0x38, 0x04, 0xca],
  [0x66, 0x0f, 0x38, 0x0b, 0xca],
  [0x66, 0x0f, 0x38, 0x09, 0xca],
  [0x66, 0x0f, 0x38, 0x02, 0xca],
  [0x66, 0x0f, 0x3a, 0x0b, 0xd1, 0x09],
  [0x66, 0x0f, 0x3a, 0x09, 0xd1, 0x03],
  [0x66, 0x0f, 0x5b, 0xd1],
  // aesenc xmm1, xmm2; aesdec; aeskeygenassist; pclmulqdq xmm3, xmm1, 10h; sha256rnds2; sha256msg2; sha1rnds4; stmxcsr; ldmxcsr
  [0x66, 0x0f, 0x38, 0xdc, 0xca],
  [0x66, 0x0f, 0x38, 0xde, 0xca],
  [0x66, 0x0f, 0x3a, 0xdf, 0xca, 0x1b],
  [0x66, 0x0f, 0x3a, 0x44, 0xd9, 0x10],
  [0x0f, 0x38, 0xcb, 0xca],
  [0x0f, 0x38, 0xcd, 0xca],
  [0x0f, 0x3a, 0xcc, 0xca, 0x02],
  [0x0f, 0xae, 0x5c, 0x13, 0x40],
  [0x0f, 0xae, 0x5c, 0x13, 0x40, 0x0f, 0xae, 0x54, 0x13, 0x40],
  // setb al; adc esi, ecx: they use what a comparison left.
  [0x0f, 0x92, 0xc0],
  [0x11, 0xce],
];

/** One instruction; memory is [rbx + rdx]. */
function instruction(random: () => number): number[] {
  if (random() % 2 === 0) return [...FIXED[random() % FIXED.length]!];
  const body = BODIES[random() % BODIES.length]!;
  const register = random() % 6;
  // Packed operands must be aligned; rdx is a multiple of 16.
  if (random() % 3 === 0) return [...body, 0x04 | (register << 3), 0x13];
  return [...body, 0xc0 | (register << 3) | (random() % 6)];
}
/** movsd [rbx+rdx], xmm; movaps; movdqu + 8. */
const STORES: readonly (readonly number[])[] = [
  [0xf2, 0x0f, 0x11, 0x0c, 0x13],
  [0x0f, 0x29, 0x14, 0x13],
  [0xf3, 0x0f, 0x7f, 0x5c, 0x13, 0x08],
  // vmovups [rbx+rdx+4], ymm1
  [0xc5, 0xfc, 0x11, 0x4c, 0x13, 0x04],
];

/** mov ecx, 1000; L: ...; add edx, 16; and edx, 0FF0h; dec ecx; jnz L; hlt */
function program(random: () => number): number[] {
  const body = Array.from({ length: 10 }, () => instruction(random)).flat();
  body.push(...STORES[random() % STORES.length]!, 0x83, 0xc2, 0x10, 0x81, 0xe2, 0xf0, 0x0f, 0, 0, 0xff, 0xc9);
  const back = -(body.length + 6);
  const jump = [0x0f, 0x85, back & 255, (back >> 8) & 255, (back >> 16) & 255, (back >> 24) & 255];
  return [0xb9, 0xe8, 3, 0, 0, ...body, ...jump, 0xf4];
}

function machine(code: readonly number[], seed: number, engine: (m: TestMachine) => Engine | null): TestMachine {
  const m = new TestMachine({ size: 0x40000, model: EPYC });
  m.load(code, 'long', CODE);
  const random = generator(seed);
  const number = (): bigint => {
    const exponent = random() % 40 === 0 ? random() % 2047 : 1023 + (random() % 30) - 15;
    return (BigInt(random() & 1) << 63n) | (BigInt(exponent) << 52n) | (BigInt(random()) << 20n);
  };
  m.state.cr4 |= CR4.OSFXSR | CR4.OSXMMEXCPT | CR4.OSXSAVE;
  m.state.set64(S.xcr0, 7n);
  for (let n = 0; n < 16; n++) for (const half of [0, 8, 16, 24]) m.state.set64(S.ymm + n * 32 + half, number());
  for (let at = 0; at < 0x1100; at += 8) m.memory.write64(DATA + at, number());
  m.state.block.setUint32(S.mxcsr, 0x1fa0, true);
  m.state.gpr[RBX] = BigInt(DATA);
  m.state.gpr[RDX] = 0n;
  m.cpu.stateReplaced('test');
  m.cpu.engine = engine(m);
  return m;
}

const image = (m: TestMachine): string =>
  Buffer.from(m.state.u8.subarray(S.ymm, S.mxcsr + 4)).toString('hex') +
  Buffer.from(m.memory.readBytes(DATA, 0x1100)).toString('hex');

const options = (m: TestMachine) =>
  ({ vendor: 'amd', features: featureSet((leaf, subleaf) => m.cpu.cpuid(leaf, subleaf)) }) as const;

describe('random vector programs on evaluate, interpret and translate', () => {
  it.each(Array.from({ length: 20 }, (_, i) => 0x1234567 + i * 7919))('seed %i', (seed) => {
    const code = program(generator(seed));
    let translated = 0;
    const machines = [
      machine(code, seed, () => null),
      machine(code, seed, (m) => new InterpretEngine(m.cpu, options(m))),
      machine(code, seed, (m) => new TranslateEngine(m.cpu, { ...options(m), translate: { sample: 100, hot: 1 } })),
    ];
    const stops = machines.map((m) => m.go(100_000));
    expect(stops).toEqual(['halt', 'halt', 'halt']);
    translated = (machines[2]!.cpu.engine as TranslateEngine).statistics.regions;
    for (const m of machines.slice(1)) {
      for (let n = 0; n < 16; n++) expect([n, m.state.gpr[n]]).toEqual([n, machines[0]!.state.gpr[n]]);
      expect(m.state.rflags).toBe(machines[0]!.state.rflags);
      expect(image(m)).toBe(image(machines[0]!));
    }
    expect(translated).toBeGreaterThan(0);
  });
});

describe('a region left by a vector instruction', () => {
  it('shows the flags of the instruction in front of it', () => {
    // mov ecx, 1000; L: cvtsi2sd xmm1, ecx; cmp eax, ecx; sqrtsd xmm0, xmm1; xor edx, edx; dec ecx; jmp L
    const loop = [0xf2, 0x0f, 0x2a, 0xc9, 0x39, 0xc8, 0xf2, 0x0f, 0x51, 0xc1, 0x31, 0xd2, 0xff, 0xc9, 0xeb, 0xf0];
    const results = [null, { sample: 100, hot: 1 }].map((translate) => {
      const m = machine([0xb9, 0xe8, 3, 0, 0, ...loop], 1, (x) =>
        translate === null ? null : new TranslateEngine(x.cpu, { ...options(x), translate }),
      );
      // Invalid operations are not masked: the root of -1 raises #XM, for which there is no handler.
      m.state.block.setUint32(S.mxcsr, 0x1f20, true);
      m.state.gpr[0] = 5n;
      expect(m.go(100_000)).toBe('shutdown');
      return [m.state.gpr[1], m.state.rip, m.state.rflags];
    });
    expect(results[1]).toEqual(results[0]);
  });
});

it('a vector store that misses the TLB behind a comparison leaves its flags', () => {
  // cmp eax, 9; movups [rbx], xmm1 (a page that is not there); inc ecx; hlt
  const code = [0x83, 0xf8, 9, 0x0f, 0x11, 0x0b, 0xff, 0xc1, 0x90, 0xf4];
  const run = (translated: boolean): bigint => {
    const m = machine(
      code,
      1,
      (x) => new TranslateEngine(x.cpu, { vendor: 'amd', features: featureSet((l, s) => x.cpu.cpuid(l, s)) }),
    );
    m.memory.writeBytes(0x11000, Uint8Array.of(0xf4));
    m.setHandler(14, 0x11000, 'long');
    m.go();
    m.state.activity = 0;
    m.state.gpr[0] = 5n;
    m.state.gpr[RBX] = 0x7fff_0000_0000n;
    m.state.gpr[4] = 0x9000n;
    m.state.rip = BigInt(CODE);
    m.state.rflags = 2n;
    if (translated) expect((m.cpu.engine as TranslateEngine).translateHere()).toBe(true);
    m.go();
    // RFLAGS in the handler's frame.
    return m.memory.read64(Number(m.state.gpr[4]) + 24);
  };
  expect(run(true)).toBe(run(false));
  expect(run(true) & 1n).toBe(1n);
});

it('an x87 store over its own instruction notes its opcode all the same', () => {
  // fninit; fld1; fstp qword [CODE + 5], which stands at CODE + 4; NOPs: enough that not every tick is exact
  const code = [0xdb, 0xe3, 0xd9, 0xe8, 0xdd, 0x1c, 0x25, 5, 0, 1, 0, ...new Array<number>(200).fill(0x90), 0xf4];
  const run = (engine: (m: TestMachine) => Engine | null): number => {
    const m = machine(code, 1, engine);
    m.go(150);
    return m.state.block.getUint16(S.fop, true);
  };
  expect(run((m) => new InterpretEngine(m.cpu, options(m)))).toBe(run(() => null));
  expect(run(() => null)).toBe(0x51c);
});
