import { beforeEach, describe, expect, it } from 'vitest';
import { CR0, CR4, Vector } from '../../state-layout.ts';
import type { EmulateMode } from '../../system/context.ts';
import { TestMachine } from '../../system/testing.ts';
import { FpuArea } from '../fp/area.ts';

const DATA = 0x8000;
const RBX = 3;
/** vaddps xmm0, xmm1, xmm2; vpaddd ymm0, ymm1, ymm2; vfmadd213ps xmm0, xmm1, xmm2; vcvtph2ps xmm0, xmm1; andn ecx, ecx, edx. */
const VADDPS = [0xc5, 0xf0, 0x58, 0xc2];
const VPADDD_256 = [0xc5, 0xf5, 0xfe, 0xc2];
const VFMADD = [0xc4, 0xe2, 0x71, 0xa8, 0xc2];
const VCVTPH2PS = [0xc4, 0xe2, 0x79, 0x13, 0xc1];
const ANDN = [0xc4, 0xe2, 0x70, 0xf2, 0xca];

let m: TestMachine;
let fpu: FpuArea;
function start(mode: EmulateMode = 'prot64', vendor: 'amd' | 'intel' = 'amd'): void {
  m = new TestMachine(mode, vendor);
  for (const name of ['sse', 'sse2', 'xsave', 'avx', 'avx2', 'fma', 'f16c', 'bmi1', 'gfni', 'aes', 'vaes']) {
    m.features.add(name);
  }
  m.cr[4]! |= CR4.OSFXSR | CR4.OSXSAVE | CR4.OSXMMEXCPT;
  m.xcr0 = 7n;
  m.gpr[RBX] = BigInt(DATA);
  fpu = new FpuArea(m.fpu);
  fpu.mxcsr = 0x1f80;
}
beforeEach(() => start());
const vectorOf = (code: readonly number[]): number | undefined => m.run(...code).exception?.vector;

describe('availability', () => {
  it.each([
    ['XCR0 without AVX', (): unknown => (m.xcr0 = 3n), Vector.UD],
    ['CR4.OSXSAVE clear', (): unknown => (m.cr[4]! &= ~CR4.OSXSAVE), Vector.UD],
    ['CR0.TS', (): unknown => (m.cr[0]! |= CR0.TS), Vector.NM],
    [
      'TS and XCR0 without AVX: #UD comes first',
      () => {
        m.cr[0]! |= CR0.TS;
        m.xcr0 = 3n;
      },
      Vector.UD,
    ],
    ['the feature is off', (): unknown => m.features.delete('avx'), Vector.UD],
    ['CR4.OSFXSR clear does not matter', (): unknown => (m.cr[4]! &= ~CR4.OSFXSR), undefined],
  ] as const)('vaddps, %s', (_, change, vector) => {
    change();
    expect(vectorOf(VADDPS)).toBe(vector);
  });
  it.each([
    ['vpaddd ymm', VPADDD_256, 'avx2'],
    ['vfmadd213ps', VFMADD, 'fma'],
    ['vcvtph2ps', VCVTPH2PS, 'f16c'],
    ['andn', ANDN, 'bmi1'],
  ] as const)('%s needs its own feature', (_, code, feature) => {
    expect(vectorOf(code)).toBeUndefined();
    m.features.delete(feature);
    expect(vectorOf(code)).toBe(Vector.UD);
  });
  it('andn looks at neither XCR0 nor CR4.OSXSAVE', () => {
    m.xcr0 = 1n;
    m.cr[4]! &= ~CR4.OSXSAVE;
    expect(vectorOf(ANDN)).toBeUndefined();
  });
  it('in virtual-8086 mode VEX is #UD', () => {
    start('vm86');
    expect(vectorOf(VADDPS)).toBe(Vector.UD);
  });
});

describe('encodings', () => {
  it.each([
    ['66 before VEX', [0x66, ...VADDPS]],
    ['REX before VEX', [0x40, ...VADDPS]],
    ['F3 before VEX', [0xf3, ...VADDPS]],
    ['LOCK', [0xf0, 0xc5, 0xf0, 0x58, 0x03]],
    ['vvvv in use where there is no such operand (vmovaps)', [0xc5, 0xf0, 0x28, 0xc2]],
    ['VEX.L in a 128-bit instruction (vmovd)', [0xc5, 0xfd, 0x6e, 0xc0]],
    ['VEX.W in a W0 instruction (vpermilps)', [0xc4, 0xe2, 0xf1, 0x0c, 0xc2]],
    ['a gather into its own mask', [0xc4, 0xe2, 0x79, 0x90, 0x04, 0x0b]],
  ])('%s: #UD', (_, code) => {
    expect(vectorOf(code)).toBe(Vector.UD);
  });
});

describe('the upper half', () => {
  beforeEach(() => fpu.setHigh(0, 7n));
  it('vaddps xmm clears it', () => {
    m.run(...VADDPS);
    expect(fpu.high(0)).toBe(0n);
  });
  it('addps leaves it', () => {
    m.run(0x0f, 0x58, 0xc2);
    expect(fpu.high(0)).toBe(7n);
  });
  it('vzeroupper clears sixteen of them, outside 64-bit mode eight', () => {
    fpu.setHigh(15, 8n);
    m.run(0xc5, 0xf8, 0x77);
    expect([fpu.high(0), fpu.high(15)]).toEqual([0n, 0n]);
    start('prot32');
    fpu.setHigh(15, 8n);
    m.run(0xc5, 0xfc, 0x77);
    expect(fpu.high(15)).toBe(8n);
  });
});

describe('memory', () => {
  it('vaddps takes an unaligned operand, vmovaps ymm wants 32 bytes', () => {
    m.gpr[RBX] = BigInt(DATA + 1);
    expect(vectorOf([0xc5, 0xf0, 0x58, 0x03])).toBeUndefined();
    m.gpr[RBX] = BigInt(DATA + 16);
    expect(vectorOf([0xc5, 0xf8, 0x28, 0x03])).toBeUndefined();
    expect(vectorOf([0xc5, 0xfc, 0x28, 0x03])).toBe(Vector.GP);
  });
  it('vmaskmovps does not touch what its mask leaves out', () => {
    m.absentPages.add(9);
    m.gpr[RBX] = 0x8ff8n;
    fpu.setXmm(1, 0x8000000080000000n);
    m.put(0x8ff8, 0x22222222_11111111n, 8);
    expect(vectorOf([0xc4, 0xe2, 0x71, 0x2c, 0x03])).toBeUndefined();
    expect(fpu.xmm(0)).toBe(0x22222222_11111111n);
    fpu.setXmm(1, 0x80000000n << 64n);
    expect(vectorOf([0xc4, 0xe2, 0x71, 0x2c, 0x03])).toBe(Vector.PF);
    expect(fpu.xmm(0)).toBe(0x22222222_11111111n);
  });
  it('a gather that faults keeps the elements before, and their masks are clear', () => {
    m.absentPages.add(9);
    m.put(DATA, 0x1234n, 4);
    fpu.setXmm(1, 0x1000n << 32n);
    fpu.setXmm(2, (1n << 128n) - 1n);
    // vpgatherdd xmm0, [rbx+xmm1], xmm2
    expect(vectorOf([0xc4, 0xe2, 0x69, 0x90, 0x04, 0x0b])).toBe(Vector.PF);
    expect(fpu.xmm(0) & 0xffffffffn).toBe(0x1234n);
    expect(fpu.xmm(2)).toBe((1n << 128n) - (1n << 32n));
  });
});

describe('Galois fields', () => {
  /** Inverse, and AES's affine map with 63h: the S-box. */
  it('gf2p8affineinvqb with the matrix of AES is SubBytes', () => {
    fpu.setXmm(0, 0x53n);
    fpu.setXmm(1, 0xf1e3c78f1f3e7cf8n);
    m.run(0x66, 0x0f, 0x3a, 0xcf, 0xc1, 0x63);
    expect(fpu.xmm(0) & 0xffn).toBe(0xedn);
  });
  it('gf2p8mulb of an element and its inverse is 1', () => {
    fpu.setXmm(0, 0x53n);
    fpu.setXmm(1, 0xcan);
    m.run(0x66, 0x0f, 0x38, 0xcf, 0xc1);
    expect(fpu.xmm(0) & 0xffn).toBe(1n);
  });
});
