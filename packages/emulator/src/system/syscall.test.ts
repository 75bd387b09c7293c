import { describe, expect, it } from 'vitest';
import { X86Emul } from '../ops.ts';
import { EFER, Flag, Seg, Vector } from '../state-layout.ts';
import { MSR } from './common.ts';
import { CODE, STACK, TestMachine } from './testing.ts';

const [RCX, RDX, RSP, R11] = [1, 2, 4, 11] as const;
const SYSCALL = [0x0f, 0x05] as const;
const SYSRET = [0x0f, 0x07] as const;
const SYSENTER = [0x0f, 0x34] as const;
const SYSEXIT = [0x0f, 0x35] as const;

const machine = (mode: 'prot32' | 'prot64', vendor: 'amd' | 'intel', cpl: 0 | 3, subset: 'x86' | 'kvm' = 'x86') => {
  const m = new TestMachine(mode, vendor, subset).setLevel(cpl);
  m.msrs.set(MSR.EFER, (m.msrs.get(MSR.EFER) ?? 0n) | EFER.SCE);
  m.msrs.set(MSR.STAR, (0x23n << 48n) | (0x10n << 32n) | 0x1234n);
  m.msrs.set(MSR.LSTAR, 0xffff_8000_0000_1000n);
  m.msrs.set(MSR.CSTAR, 0xffff_8000_0000_2000n);
  m.msrs.set(MSR.SFMASK, BigInt(Flag.IF | Flag.DF));
  m.msrs.set(MSR.SYSENTER_CS, 0x10n);
  m.msrs.set(MSR.SYSENTER_EIP, 0x4_0000n);
  m.msrs.set(MSR.SYSENTER_ESP, 0x5_0000n);
  m.rflags = BigInt(Flag.IF | Flag.DF | Flag.CF) | 2n;
  return m;
};
/** A compatibility-mode program: 32-bit code, long mode active. */
const compatibility = (vendor: 'amd' | 'intel', cpl: 0 | 3) => {
  const m = machine('prot32', vendor, cpl);
  m.msrs.set(MSR.EFER, EFER.SCE | EFER.LME | EFER.LMA);
  return m;
};

describe('syscall', () => {
  it.each(['amd', 'intel'] as const)('in 64-bit mode goes to LSTAR (%s)', (vendor) => {
    const m = machine('prot64', vendor, 3);
    expect(m.run(...SYSCALL).code).toBe(X86Emul.CONTINUE);
    expect(m.rip).toBe(0xffff_8000_0000_1000n);
    expect(m.gpr[RCX]).toBe(BigInt(CODE + 2));
    expect(m.gpr[R11]).toBe(BigInt(Flag.IF | Flag.DF | Flag.CF) | 2n);
    expect(m.rflags).toBe(BigInt(Flag.CF) | 2n);
    expect(m.segments[Seg.CS]).toEqual({ selector: 0x10, attrib: 0xa9b, limit: 0xffff_ffff, base: 0n });
    expect(m.segments[Seg.SS]).toEqual({ selector: 0x18, attrib: 0xc93, limit: 0xffff_ffff, base: 0n });
    expect(m.cpl()).toBe(0);
  });
  it('in compatibility mode goes to CSTAR on AMD, is #UD on Intel', () => {
    const m = compatibility('amd', 3);
    m.run(...SYSCALL);
    expect(m.rip).toBe(0xffff_8000_0000_2000n);
    expect(compatibility('intel', 3).run(...SYSCALL).exception?.vector).toBe(Vector.UD);
  });
  it('in legacy protected mode goes to STAR on AMD and clears IF', () => {
    const m = machine('prot32', 'amd', 3);
    m.run(...SYSCALL);
    expect(m.rip).toBe(0x1234n);
    expect(m.rflags & BigInt(Flag.IF)).toBe(0n);
    expect(m.segments[Seg.CS]?.attrib).toBe(0xc9b);
  });
  it('leaves a single step to the TF that SFMASK leaves', () => {
    const m = machine('prot64', 'amd', 3);
    m.rflags |= BigInt(Flag.TF);
    m.run(...SYSCALL);
    expect(m.evaluator.context.singleStep).toBe(true);
    m.setLevel(3).rip = BigInt(CODE);
    m.msrs.set(MSR.SFMASK, BigInt(Flag.TF));
    m.run(...SYSCALL);
    expect(m.evaluator.context.singleStep).toBe(false);
  });
  it('is #UD without EFER.SCE', () => {
    const m = machine('prot64', 'amd', 3);
    m.msrs.set(MSR.EFER, EFER.LME | EFER.LMA);
    expect(m.run(...SYSCALL).exception?.vector).toBe(Vector.UD);
  });
});

describe('sysret', () => {
  it('outside CPL 0 is #GP(0), without EFER.SCE #UD at any level', () => {
    for (const vendor of ['amd', 'intel'] as const) {
      const m = machine('prot64', vendor, 3);
      expect(m.run(...SYSRET).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
      m.msrs.set(MSR.EFER, (m.msrs.get(MSR.EFER) ?? 0n) & ~EFER.SCE);
      expect(m.run(...SYSRET).exception?.vector).toBe(Vector.UD);
    }
    expect(compatibility('intel', 3).run(...SYSRET).exception?.vector).toBe(Vector.UD);
  });
  it('with REX.W returns to 64-bit code at RCX with flags from R11', () => {
    const m = machine('prot64', 'intel', 0);
    m.gpr[RCX] = 0x7fff_0000_0000n;
    m.gpr[R11] = 0x3f_ffffn;
    m.run(0x48, ...SYSRET);
    expect(m.rip).toBe(0x7fff_0000_0000n);
    expect(m.rflags).toBe(0x3c_7fd7n);
    expect(m.segments[Seg.CS]).toMatchObject({ selector: 0x33, attrib: 0xafb });
    expect(m.segments[Seg.SS]).toMatchObject({ selector: 0x2b, attrib: 0xcf3 });
    expect(m.cpl()).toBe(3);
  });
  it('without REX.W returns to compatibility mode at ECX', () => {
    const m = machine('prot64', 'amd', 0);
    m.gpr[RCX] = 0x7_0000_1000n;
    m.run(...SYSRET);
    expect(m.rip).toBe(0x1000n);
    expect(m.segments[Seg.CS]).toMatchObject({ selector: 0x23, attrib: 0xcfb });
  });
  it('to a non-canonical RCX is #GP(0) at CPL 0 on Intel, and taken on AMD', () => {
    for (const vendor of ['intel', 'amd'] as const) {
      const m = machine('prot64', vendor, 0);
      m.gpr[RCX] = 1n << 47n;
      expect(m.run(0x48, ...SYSRET).exception?.vector).toBe(vendor === 'intel' ? Vector.GP : undefined);
      expect(m.cpl()).toBe(vendor === 'intel' ? 0 : 3);
    }
  });
  it('on AMD leaves the hidden part of SS', () => {
    const m = machine('prot64', 'amd', 0);
    m.segments[Seg.SS] = { selector: 0, attrib: 0x8013, limit: 0x1234, base: 0n };
    m.run(0x48, ...SYSRET);
    expect(m.segments[Seg.SS]).toMatchObject({ selector: 0x2b, limit: 0x1234, attrib: 0x8073 });
  });
  it('is #GP(0) at CPL 3, #UD in 32-bit code on Intel', () => {
    expect(machine('prot64', 'amd', 3).run(...SYSRET).exception?.vector).toBe(Vector.GP);
    expect(machine('prot32', 'intel', 0).run(...SYSRET).exception?.vector).toBe(Vector.UD);
  });
});

describe('sysenter, sysexit', () => {
  it('sysenter takes CS, EIP and ESP from MSRs', () => {
    const m = machine('prot32', 'amd', 3);
    m.run(...SYSENTER);
    expect([m.rip, m.gpr[RSP]]).toEqual([0x4_0000n, 0x5_0000n]);
    expect(m.segments[Seg.CS]).toMatchObject({ selector: 0x10, attrib: 0xc9b });
    expect(m.rflags & BigInt(Flag.IF)).toBe(0n);
  });
  it('sysenter in long mode: 64-bit code on Intel, #UD on AMD', () => {
    const m = machine('prot64', 'intel', 3);
    m.run(...SYSENTER);
    expect(m.segments[Seg.CS]?.attrib).toBe(0xa9b);
    expect(machine('prot64', 'amd', 3).run(...SYSENTER).exception?.vector).toBe(Vector.UD);
    expect(compatibility('amd', 3).run(...SYSENTER).exception?.vector).toBe(Vector.UD);
  });
  it('a null SYSENTER_CS is #GP(0), real mode too', () => {
    const m = machine('prot32', 'amd', 3);
    m.msrs.set(MSR.SYSENTER_CS, 3n);
    expect(m.run(...SYSENTER).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
    expect(new TestMachine('real').run(...SYSENTER).exception?.vector).toBe(Vector.GP);
  });
  it('sysexit returns to EDX with ECX as stack', () => {
    const m = machine('prot32', 'amd', 0);
    m.gpr[RCX] = 0x7000n;
    m.gpr[RDX] = 0x2_0000n;
    m.run(...SYSEXIT);
    expect([m.rip, m.gpr[RSP], m.cpl()]).toEqual([0x2_0000n, 0x7000n, 3]);
    expect(m.segments[Seg.CS]).toMatchObject({ selector: 0x23, attrib: 0xcfb });
    expect(m.segments[Seg.SS]?.selector).toBe(0x2b);
  });
  it('sysexit with REX.W wants canonical RCX and RDX', () => {
    const m = machine('prot64', 'intel', 0);
    m.gpr[RDX] = 1n << 50n;
    expect(m.run(0x48, ...SYSEXIT).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
    expect(m.gpr[RSP]).toBe(BigInt(STACK));
  });
  it("KVM's emulator does not do sysenter in 64-bit code", () => {
    expect(machine('prot64', 'intel', 3, 'kvm').run(...SYSENTER).code).toBe(X86Emul.UNHANDLEABLE);
  });
});
