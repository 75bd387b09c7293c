/**
 * MXCSR in loops that are hot: rounding, DAZ, FTZ, sticky flags and unmasked exceptions are the same on all engines, whichever way they compute.
 * Manual: APM vol. 1 section 4.2.2, SDM vol. 1 sections 10.2.3 and 11.5.
 */
import { describe, expect, it } from 'vitest';
import { installInterpreter, installTranslator } from '../../cpu/create.ts';
import { EPYC } from '../../cpu/models/index.ts';
import { CR4, S } from '../../state-layout.ts';
import { TestMachine } from '../../testing/index.ts';

const CODE = 0x10000;
const HANDLER = 0x11000;
const MASKED = 0x1f80;
const [DOWN, UP, ZERO] = [0x2000, 0x4000, 0x6000];
const [DAZ, FTZ] = [0x40, 0x8000];
const [DE, ZE, UE, PE] = [0x2, 0x4, 0x10, 0x20];
const ZM = 0x200;
const f32 = (value: number): number => new DataView(Float32Array.of(value).buffer).getUint32(0, true);
const DENORMAL = 1;
const SMALLEST = 0x00800000;
const HALF_ULP = f32(2 ** -24);

/** movaps xmm0, xmm2; OP xmm0, xmm1 (or eax, xmm1), 400 times over. */
const loop = (op: readonly number[]): number[] => {
  const body = [0x0f, 0x28, 0xc2, ...op, 0xff, 0xc9];
  return [0xb9, 0x90, 1, 0, 0, ...body, 0x75, 256 - (body.length + 2), 0xf4];
};
const ADD = [0xf3, 0x0f, 0x58, 0xc1];
const MUL = [0xf3, 0x0f, 0x59, 0xc1];
const DIV = [0xf3, 0x0f, 0x5e, 0xc1];
const ADDPS = [0x0f, 0x58, 0xc1];
const CVT = [0xf3, 0x0f, 0x2d, 0xc1];

describe.each(['evaluate', 'interpret', 'translate'] as const)('MXCSR, %s', (engine) => {
  function run(op: readonly number[], a: number, b: number, mxcsr: number, cr4 = CR4.OSXMMEXCPT): TestMachine {
    const m = new TestMachine({ size: 0x100000, model: EPYC });
    if (engine === 'interpret') installInterpreter(m.cpu);
    if (engine === 'translate') installTranslator(m.cpu, { sample: 100, hot: 1 });
    m.load(loop(op), 'long', CODE);
    m.state.cr4 |= CR4.OSFXSR | cr4;
    for (const vector of [6, 19]) {
      // mov ebx, vector; hlt
      m.memory.writeBytes(HANDLER + vector * 16, Uint8Array.of(0xbb, vector, 0, 0, 0, 0xf4));
      m.setHandler(vector, HANDLER + vector * 16, 'long');
    }
    m.state.gpr[3] = 0n;
    m.state.block.setUint32(S.ymm + 2 * 32, a, true);
    m.state.block.setUint32(S.ymm + 32, b, true);
    m.state.block.setUint32(S.mxcsr, mxcsr, true);
    m.cpu.stateReplaced('test');
    expect(m.go()).toBe('halt');
    return m;
  }
  const result = (m: TestMachine): [number, number] => [
    m.state.block.getUint32(S.ymm, true),
    m.state.block.getUint32(S.mxcsr, true) & 0x3f,
  ];
  const integer = (m: TestMachine): number => Number(BigInt.asIntN(32, m.reg(0)));

  it.each([
    ['nearest', 0, f32(1)],
    ['down', DOWN, f32(1)],
    ['up', UP, f32(1) + 1],
    ['to zero', ZERO, f32(1)],
  ])('1 + 2^-24 rounded %s, PE sticky or not before', (_name, rounding, expected) => {
    for (const before of [0, PE]) {
      expect(result(run(ADD, f32(1), HALF_ULP, MASKED | rounding | before))).toEqual([expected, PE]);
      expect(result(run(ADDPS, f32(1), HALF_ULP, MASKED | rounding | before))).toEqual([expected, PE]);
    }
  });
  it.each([
    [0, 2, -2],
    [DOWN, 2, -3],
    [UP, 3, -2],
    [ZERO, 2, -2],
  ])('CVTSS2SI of 2.5 and -2.5, rounding %i', (rounding, plus, minus) => {
    expect(integer(run(CVT, 0, f32(2.5), MASKED | PE | rounding))).toBe(plus);
    expect(integer(run(CVT, 0, f32(-2.5), MASKED | PE | rounding))).toBe(minus);
  });
  it('a denormal source: DE without DAZ, zero with it', () => {
    expect(result(run(ADD, DENORMAL, 0, MASKED))).toEqual([DENORMAL, DE]);
    expect(result(run(ADD, DENORMAL, 0, MASKED | DAZ))).toEqual([0, 0]);
    expect(result(run(ADD, DENORMAL, 0, MASKED | DAZ | PE))).toEqual([0, PE]);
  });
  it('a denormal result: exact without a flag, zero with UE and PE under FTZ', () => {
    expect(result(run(MUL, SMALLEST, f32(0.5), MASKED))).toEqual([SMALLEST >> 1, 0]);
    expect(result(run(MUL, SMALLEST, f32(0.5), MASKED | FTZ))).toEqual([0, UE | PE]);
    expect(result(run(MUL, SMALLEST + 1, f32(0.5), MASKED | PE))).toEqual([SMALLEST >> 1, UE | PE]);
  });
  it('flags stay', () => {
    expect(result(run(ADD, f32(1), f32(1), MASKED | ZE | UE))).toEqual([f32(2), ZE | UE]);
  });
  it('an unmasked exception is #XM, or #UD without CR4.OSXMMEXCPT; the destination stays, the flag is set', () => {
    for (const [cr4, vector] of [
      [CR4.OSXMMEXCPT, 19n],
      [0n, 6n],
    ] as const) {
      const m = run(DIV, f32(1), 0, (MASKED & ~ZM) | PE, cr4);
      expect(m.reg(3)).toBe(vector);
      expect(result(m)).toEqual([f32(1), ZE | PE]);
    }
    expect(result(run(DIV, f32(1), 0, MASKED))).toEqual([0x7f800000, ZE]);
  });
});
