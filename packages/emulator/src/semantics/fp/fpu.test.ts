import { beforeEach, describe, expect, it } from 'vitest';
import { X86Emul } from '../../ops.ts';
import { CR0, CR4, Seg, Vector } from '../../state-layout.ts';
import type { EmulateMode } from '../../system/context.ts';
import { TestMachine } from '../../system/testing.ts';
import { FpuArea } from './area.ts';

const DATA = 0x8000;
const EBX = 3;

function machine(mode: EmulateMode = 'prot32', subset: 'x86' | 'kvm' = 'x86'): { m: TestMachine; fpu: FpuArea } {
  const m = new TestMachine(mode, 'amd', subset);
  for (const feature of ['fpu', 'mmx', 'sse', 'sse2', 'fxsr']) m.features.add(feature);
  m.cr[0]! |= CR0.NE;
  m.cr[4]! |= CR4.OSFXSR | CR4.OSXMMEXCPT;
  m.gpr[EBX] = BigInt(DATA);
  const fpu = new FpuArea(m.fpu);
  fpu.cw = 0x37f;
  fpu.mxcsr = 0x1f80;
  return { m, fpu };
}

describe('availability', () => {
  let m: TestMachine;
  beforeEach(() => {
    m = machine().m;
  });
  it.each([
    ['fld1 with EM: #NM', CR0.EM, [0xd9, 0xe8], Vector.NM],
    ['fld1 with TS: #NM', CR0.TS, [0xd9, 0xe8], Vector.NM],
    ['fwait with TS alone runs', CR0.TS, [0x9b], undefined],
    ['fwait with MP and TS: #NM', CR0.MP | CR0.TS, [0x9b], Vector.NM],
    ['fwait with EM runs', CR0.EM, [0x9b], undefined],
    ['movaps with EM: #UD', CR0.EM, [0x0f, 0x28, 0xc1], Vector.UD],
    ['movaps with TS: #NM', CR0.TS, [0x0f, 0x28, 0xc1], Vector.NM],
    ['paddb mm with EM: #UD', CR0.EM, [0x0f, 0xfc, 0xc1], Vector.UD],
    ['fxsave with EM: #NM', CR0.EM, [0x0f, 0xae, 0x03], Vector.NM],
    ['fxsave with TS: #NM', CR0.TS, [0x0f, 0xae, 0x03], Vector.NM],
  ] as const)('%s', (_, bits, code, vector) => {
    m.cr[0]! |= bits;
    expect(m.run(...code).exception?.vector).toBe(vector);
  });
  it('movaps without CR4.OSFXSR: #UD', () => {
    m.cr[4]! &= ~CR4.OSFXSR;
    expect(m.run(0x0f, 0x28, 0xc1).exception?.vector).toBe(Vector.UD);
  });
});

describe('a pending unmasked exception', () => {
  function pending() {
    const made = machine();
    made.fpu.cw = 0x37b;
    made.fpu.sw = 0x8084;
    return made;
  }
  it.each([
    ['fwait', [0x9b]],
    ['fld1', [0xd9, 0xe8]],
    ['fldcw [ebx]', [0xd9, 0x2b]],
    ['emms', [0x0f, 0x77]],
    ['paddb mm0, mm1', [0x0f, 0xfc, 0xc1]],
  ] as const)('%s: #MF', (_, code) => {
    expect(pending().m.run(...code).exception?.vector).toBe(Vector.MF);
  });
  it.each([
    ['fnstsw ax', [0xdf, 0xe0]],
    ['fninit', [0xdb, 0xe3]],
    ['fnclex', [0xdb, 0xe2]],
    ['fxsave [ebx]', [0x0f, 0xae, 0x03]],
    ['addps xmm0, xmm1', [0x0f, 0x58, 0xc1]],
  ] as const)('%s does not wait', (_, code) => {
    expect(pending().m.run(...code).code).toBe(X86Emul.CONTINUE);
  });
  it('without CR0.NE it asserts FERR#', () => {
    const { m } = pending();
    m.cr[0]! &= ~CR0.NE;
    expect(m.run(0x9b).code).toBe(X86Emul.CONTINUE);
    expect(m.ferr).toBe(true);
  });
  it('fldcw that unmasks a recorded exception makes it pending', () => {
    const { m, fpu } = machine();
    fpu.sw = 0x04;
    m.put(DATA, 0x37bn, 2);
    m.run(0xd9, 0x2b);
    expect(fpu.sw).toBe(0x8084);
  });
});

describe('images', () => {
  it('fninit: FCW 37Fh, FSW 0, all registers empty', () => {
    const { m, fpu } = machine();
    fpu.sw = 0x3fff;
    fpu.tw = 0xff;
    m.run(0xdb, 0xe3);
    expect([fpu.cw, fpu.sw, fpu.tw]).toEqual([0x37f, 0, 0]);
  });
  it('fnstenv in real mode, 16 bits: linear pointers in 20 bits, the opcode beside the high part', () => {
    const { m, fpu } = machine('real');
    m.gpr[EBX] = 0x800n;
    m.segments[Seg.DS]!.base = 0x7800n;
    m.run(0xd9, 0x07);
    const { ip } = fpu;
    expect(fpu.opcode).toBe(0x107);
    m.run(0xd9, 0x37);
    const word = (i: number): number => Number(m.get(0x8000 + i * 2, 2));
    expect([word(0), word(2)]).toEqual([0x37f, 0x7fff]);
    expect(word(3)).toBe(Number(ip & 0xffffn));
    expect(word(4)).toBe((Number(ip >> 16n) << 12) | 0x107);
    expect(word(5)).toBe(0x8000);
  });
  it('fnsave and frstor give back what was there', () => {
    const { m, fpu } = machine();
    m.run(0xd9, 0xeb);
    m.run(0xd9, 0xe8);
    const before = [fpu.sw, fpu.tw, fpu.st(0), fpu.st(1)];
    m.run(0xdd, 0x33);
    expect([fpu.sw, fpu.tw]).toEqual([0, 0]);
    m.run(0xdd, 0x23);
    expect([fpu.sw, fpu.tw, fpu.st(0), fpu.st(1)]).toEqual(before);
  });
  it('fxsave in 32-bit mode leaves XMM8..15 alone, rex.w fxsave64 stores 64-bit pointers', () => {
    const { m, fpu } = machine();
    m.put(DATA + 160 + 8 * 16, 0x55n, 1);
    fpu.setXmm(8, 0x1234n);
    m.run(0x0f, 0xae, 0x03);
    expect(m.get(DATA + 160 + 8 * 16, 1)).toBe(0x55n);
    expect(m.get(DATA + 28, 4)).toBe(0xffffn);
    const long = machine('prot64');
    long.fpu.ip = 0xffff_8000_1234_5678n;
    long.m.run(0x48, 0x0f, 0xae, 0x03);
    expect(long.m.get(DATA + 8, 8)).toBe(0xffff_8000_1234_5678n);
  });
  it('fxrstor with a reserved MXCSR bit: #GP(0), nothing loaded', () => {
    const { m, fpu } = machine();
    m.put(DATA, 0x40n, 2);
    m.put(DATA + 24, 0x11f80n, 4);
    expect(m.run(0x0f, 0xae, 0x0b).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
    expect(fpu.cw).toBe(0x37f);
  });
  it('fxsave to a misaligned address: #GP(0)', () => {
    const { m } = machine();
    m.gpr[EBX] = BigInt(DATA + 8);
    expect(m.run(0x0f, 0xae, 0x03).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
  });
});

describe('SSE exceptions', () => {
  function divideByZero(os: boolean) {
    const made = machine();
    made.fpu.mxcsr = 0x1d80;
    made.fpu.setXmm(0, 0x3f800000n);
    if (!os) made.m.cr[4]! &= ~CR4.OSXMMEXCPT;
    return { ...made, result: made.m.run(0xf3, 0x0f, 0x5e, 0xc1) };
  }
  it('divss by zero, unmasked: #XM, ZE set, no result', () => {
    const { fpu, result } = divideByZero(true);
    expect(result.exception?.vector).toBe(Vector.XM);
    expect([fpu.mxcsr, fpu.xmm(0)]).toEqual([0x1d84, 0x3f800000n]);
  });
  it('the same without CR4.OSXMMEXCPT: #UD', () => {
    expect(divideByZero(false).result.exception?.vector).toBe(Vector.UD);
  });
  it('ldmxcsr with a reserved bit: #GP(0)', () => {
    const { m, fpu } = machine();
    m.put(DATA, 0x10000n, 4);
    expect(m.run(0x0f, 0xae, 0x13).exception?.vector).toBe(Vector.GP);
    expect(fpu.mxcsr).toBe(0x1f80);
  });
});

describe("KVM's emulator", () => {
  it('movdqu and movaps move 16 bytes', () => {
    const { m, fpu } = machine('prot32', 'kvm');
    const value = 0x0123456789abcdef_fedcba9876543210n;
    m.put(DATA + 1, value, 16);
    m.gpr[EBX]!++;
    m.run(0xf3, 0x0f, 0x6f, 0x13);
    expect(fpu.xmm(2)).toBe(value);
    m.gpr[EBX] = BigInt(DATA + 0x20);
    m.run(0x0f, 0x29, 0x13);
    expect(m.get(DATA + 0x20, 16)).toBe(value);
  });
  it('does not know addps', () => {
    expect(machine('prot32', 'kvm').m.run(0x0f, 0x58, 0xc1).code).toBe(X86Emul.UNHANDLEABLE);
  });
});

it('ffree and ffreep clear C1', () => {
  for (const opcode of [0xdd, 0xdf]) {
    const { m, fpu } = machine();
    fpu.sw |= 0x200;
    expect(m.run(opcode, 0xc3).code).toBe(X86Emul.CONTINUE);
    expect(fpu.sw & 0x200).toBe(0);
    expect(fpu.isEmpty(opcode === 0xdf ? 2 : 3)).toBe(true);
  }
});

describe('hostile operands end', () => {
  it.each([
    ['fyl2xp1 of -1 + 2^-64', [0xd9, 0xf9], (0xbffen << 64n) | ((1n << 64n) - 1n)],
    ['fsin of 2^62', [0xd9, 0xfe], (0x403dn << 64n) | (1n << 63n)],
    ['fprem of the largest by the smallest', [0xd9, 0xf8], (0x7ffen << 64n) | ((1n << 64n) - 1n)],
    ['fpatan of a denormal', [0xd9, 0xf3], 1n],
    ['f2xm1 of a denormal', [0xd9, 0xf0], 1n],
  ] as const)('%s', (_, code, value) => {
    const { m, fpu } = machine();
    fpu.setSt(0, value);
    fpu.setSt(1, 1n);
    expect(m.run(...code).code).toBe(X86Emul.CONTINUE);
  });
});
