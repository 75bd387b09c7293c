import { beforeEach, describe, expect, it } from 'vitest';
import { CR0, CR4, RAX, RCX, RDX, Vector } from '../../state-layout.ts';
import { TestMachine } from '../../system/testing.ts';
import { FpuArea } from './area.ts';

const AREA = 0x8000;
const RBX = 3;
const HEADER = AREA + 512;
const AVX = AREA + 576;
const COMPACTED = 1n << 63n;

/** On [rbx]. */
const XSAVE = [0x0f, 0xae, 0x23];
const XRSTOR = [0x0f, 0xae, 0x2b];
const XSAVEOPT = [0x0f, 0xae, 0x33];
const XSAVEC = [0x0f, 0xc7, 0x23];
const XSAVES = [0x0f, 0xc7, 0x2b];
const XRSTORS = [0x0f, 0xc7, 0x1b];
const XGETBV = [0x0f, 0x01, 0xd0];

let m: TestMachine;
let fpu: FpuArea;
beforeEach(() => {
  m = new TestMachine('prot64', 'amd');
  for (const name of ['fpu', 'sse', 'fxsr', 'xsave', 'xsaveopt', 'xsavec', 'xsaves', 'xgetbvEcx1', 'avx']) {
    m.features.add(name);
  }
  m.cr[4]! |= CR4.OSFXSR | CR4.OSXSAVE;
  m.xcr0 = 7n;
  m.gpr[RBX] = BigInt(AREA);
  m.gpr[RAX] = 7n;
  m.gpr[RDX] = 0n;
  fpu = new FpuArea(m.fpu);
  fpu.cw = 0x37f;
  fpu.mxcsr = 0x1f80;
});

function useAll(): void {
  fpu.cw = 0x27f;
  fpu.setXmm(3, 0x1111n);
  fpu.setHigh(15, 0x2222n);
  fpu.mxcsr = 0x1fa0;
}

describe('xsave', () => {
  it('writes what is requested and enabled, and says what is in use', () => {
    fpu.setXmm(3, 0x1111n);
    m.put(HEADER, 0x40n, 8);
    m.run(...XSAVE);
    expect(m.get(HEADER, 8)).toBe(0x42n);
    expect(m.get(AREA + 160 + 48, 8)).toBe(0x1111n);
    expect(m.get(AREA, 2)).toBe(0x37fn);
  });
  it('xcr0 limits it: AVX disabled stays out', () => {
    useAll();
    m.xcr0 = 3n;
    m.run(...XSAVE);
    expect(m.get(HEADER, 8)).toBe(3n);
    expect(m.get(AVX + 15 * 16, 8)).toBe(0n);
  });
  it('of AVX alone stores MXCSR and the upper halves', () => {
    useAll();
    m.gpr[RAX] = 4n;
    m.run(...XSAVE);
    expect([m.get(AREA, 2), m.get(AREA + 24, 4), m.get(AVX + 240, 8)]).toEqual([0n, 0x1fa0n, 0x2222n]);
  });
  it('xsaveopt leaves out what is in its initial state', () => {
    m.put(AREA, 0x5555n, 2);
    m.run(...XSAVEOPT);
    expect([m.get(HEADER, 8), m.get(AREA, 2), m.get(AREA + 24, 4)]).toEqual([0n, 0x5555n, 0x1f80n]);
  });
  it('xsavec writes the compacted format; MXCSR counts as SSE in use', () => {
    fpu.mxcsr = 0x1fa0;
    m.run(...XSAVEC);
    expect([m.get(HEADER, 8), m.get(HEADER + 8, 8)]).toEqual([2n, COMPACTED | 7n]);
    expect(m.get(AREA + 24, 4)).toBe(0x1fa0n);
  });
  it('to a page that is not there: nothing is written', () => {
    useAll();
    m.gpr[RBX] = 0x8fc0n;
    m.absentPages.add(9);
    expect(m.run(...XSAVE).exception?.vector).toBe(Vector.PF);
    expect(m.get(0x8fc0, 2)).toBe(0n);
  });
});

describe('xrstor', () => {
  it('takes back what each save wrote', () => {
    for (const [save, restore] of [
      [XSAVE, XRSTOR],
      [XSAVEC, XRSTOR],
      [XSAVES, XRSTORS],
    ] as const) {
      useAll();
      m.run(...save);
      fpu.cw = 0x37f;
      fpu.setXmm(3, 5n);
      fpu.setHigh(15, 0n);
      fpu.mxcsr = 0x1f80;
      m.run(...restore);
      expect([fpu.cw, fpu.xmm(3), fpu.high(15), fpu.mxcsr]).toEqual([0x27f, 0x1111n, 0x2222n, 0x1fa0]);
      m.put(HEADER, 0n, 8);
      m.put(HEADER + 8, 0n, 8);
    }
  });
  it('initialises what the image lacks', () => {
    useAll();
    m.put(AREA + 24, 0x1f80n, 4);
    m.run(...XRSTOR);
    expect([fpu.cw, fpu.xmm(3), fpu.high(15), fpu.mxcsr]).toEqual([0x37f, 0n, 0n, 0x1f80]);
  });
  it('compacted without SSE: MXCSR becomes 1F80h', () => {
    useAll();
    m.put(HEADER + 8, COMPACTED | 7n, 8);
    m.run(...XRSTOR);
    expect(fpu.mxcsr).toBe(0x1f80);
  });
  it('leaves alone what is not requested', () => {
    useAll();
    m.gpr[RAX] = 1n;
    m.run(...XRSTOR);
    expect([fpu.cw, fpu.xmm(3), fpu.mxcsr]).toEqual([0x37f, 0x1111n, 0x1fa0]);
  });
  it.each([
    ['a component that XCR0 lacks', 0, 8n],
    ['XCOMP_BV without its bit 63', 8, 7n],
    ['a reserved byte', 16, 1n],
  ])('%s: #GP(0)', (_, at, value) => {
    m.put(HEADER + at, value, 8);
    expect(m.run(...XRSTOR).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
  });
  it('bytes 63:24 of the header: #GP(0) in the compacted form alone', () => {
    for (const at of [24, 32, 56]) {
      m.put(HEADER + at, 1n, 8);
      m.put(HEADER + 8, 0n, 8);
      expect(m.run(...XRSTOR).exception).toBeUndefined();
      m.put(HEADER + 8, COMPACTED | 7n, 8);
      expect(m.run(...XRSTOR).exception?.vector).toBe(Vector.GP);
      m.put(HEADER + at, 0n, 8);
    }
  });
  it('compacted: XSTATE_BV beyond XCOMP_BV: #GP(0)', () => {
    m.put(HEADER, 4n, 8);
    m.put(HEADER + 8, COMPACTED | 3n, 8);
    expect(m.run(...XRSTOR).exception?.vector).toBe(Vector.GP);
  });
  it('a reserved bit of MXCSR: #GP(0), nothing is loaded', () => {
    useAll();
    m.put(AREA + 24, 0x10000n, 4);
    expect(m.run(...XRSTOR).exception?.vector).toBe(Vector.GP);
    expect(fpu.cw).toBe(0x27f);
  });
  it('xrstors of the standard format: #GP(0)', () => {
    expect(m.run(...XRSTORS).exception?.vector).toBe(Vector.GP);
  });
});

describe('availability', () => {
  it.each([
    ['xsave', XSAVE],
    ['xrstor', XRSTOR],
    ['xsaveopt', XSAVEOPT],
    ['xsavec', XSAVEC],
    ['xsaves', XSAVES],
    ['xrstors', XRSTORS],
  ])('%s: #UD without CR4.OSXSAVE or the feature, #NM with TS, #GP(0) misaligned', (_name, code) => {
    const vector = (change: () => void): number | undefined => {
      change();
      return m.run(...code).exception?.vector;
    };
    expect(vector(() => (m.gpr[RBX] = BigInt(AREA + 16)))).toBe(Vector.GP);
    expect(vector(() => (m.cr[0]! |= CR0.TS))).toBe(Vector.NM);
    expect(vector(() => (m.cr[4]! &= ~CR4.OSXSAVE))).toBe(Vector.UD);
    m.cr[4]! |= CR4.OSXSAVE;
    m.cr[0]! &= ~CR0.TS;
    for (const name of ['xsave', 'xsaveopt', 'xsavec', 'xsaves']) m.features.delete(name);
    expect(vector(() => {})).toBe(Vector.UD);
  });
  it('xsave does not look at CR0.EM', () => {
    m.cr[0]! |= CR0.EM;
    expect(m.run(...XSAVE).exception).toBeUndefined();
  });
  it('xsaves outside CPL 0: #GP(0)', () => {
    m.setLevel(3);
    expect(m.run(...XSAVES).exception?.vector).toBe(Vector.GP);
  });
});

it('xgetbv with ECX 1 gives what is enabled and in use', () => {
  useAll();
  fpu.cw = 0x37f;
  m.gpr[RCX] = 1n;
  m.run(...XGETBV);
  expect([m.gpr[RAX], m.gpr[RDX]]).toEqual([6n, 0n]);
});
