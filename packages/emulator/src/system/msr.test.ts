import { describe, expect, it } from 'vitest';
import { X86Emul } from '../ops.ts';
import { CR4, Seg, Vector } from '../state-layout.ts';
import { MSR } from './common.ts';
import { TestMachine } from './testing.ts';

const [RAX, RCX, RDX] = [0, 1, 2] as const;
const ALL = 0xffff_ffff_ffff_ffffn;

describe('rdmsr, wrmsr', () => {
  it('wrmsr joins EDX:EAX, rdmsr splits and clears the upper halves', () => {
    const m = new TestMachine('prot64');
    m.gpr[RCX] = BigInt(MSR.LSTAR) | (1n << 40n);
    m.gpr[RAX] = 0xffff_ffff_8000_0000n;
    m.gpr[RDX] = 0xffff_8000n;
    m.run(0x0f, 0x30);
    expect(m.msrs.get(MSR.LSTAR)).toBe(0xffff_8000_8000_0000n);
    m.gpr[RDX] = ALL;
    m.run(0x0f, 0x32);
    expect([m.gpr[RAX], m.gpr[RDX]]).toEqual([0x8000_0000n, 0xffff_8000n]);
  });
  it('an MSR that does not exist is #GP(0), and so is CPL 3', () => {
    const m = new TestMachine('prot32');
    m.gpr[RCX] = 0xdead_beefn;
    expect(m.run(0x0f, 0x32).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
    expect(m.run(0x0f, 0x30).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
    m.gpr[RCX] = BigInt(MSR.EFER);
    expect(m.setLevel(3).run(0x0f, 0x32).exception?.vector).toBe(Vector.GP);
  });
});

describe('time and counters', () => {
  it.each([
    ['rdtsc', [0x0f, 0x31]],
    ['rdtscp', [0x0f, 0x01, 0xf9]],
  ] as const)('%s is #GP(0) at CPL 3 with CR4.TSD', (_, code) => {
    const m = new TestMachine('prot32').setLevel(3);
    expect(m.run(...code).code).toBe(X86Emul.CONTINUE);
    expect([m.gpr[RAX], m.gpr[RDX]]).toEqual([2n, 1n]);
    m.cr[4]! |= CR4.TSD;
    expect(m.run(...code).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
  });
  it('rdtscp and rdpid give TSC_AUX', () => {
    const m = new TestMachine('prot64');
    m.msrs.set(MSR.TSC_AUX, 0x77n);
    m.run(0x0f, 0x01, 0xf9);
    expect(m.gpr[RCX]).toBe(0x77n);
    m.run(0xf3, 0x0f, 0xc7, 0xf8);
    expect(m.gpr[RAX]).toBe(0x77n);
  });
  it('rdpmc at CPL 3 needs CR4.PCE', () => {
    const m = new TestMachine('prot32').setLevel(3);
    expect(m.run(0x0f, 0x33).exception?.vector).toBe(Vector.GP);
    m.cr[4]! |= CR4.PCE;
    m.run(0x0f, 0x33);
    expect(m.gpr[RAX]).toBe(7n);
    m.gpr[RCX] = 9n;
    expect(m.run(0x0f, 0x33).exception?.vector).toBe(Vector.GP);
  });
});

describe('cpuid', () => {
  it('takes EAX and ECX, clears the upper halves', () => {
    const m = new TestMachine('prot64');
    m.gpr[RAX] = 0x1_0000_0007n;
    m.gpr[RCX] = 2n;
    m.gpr[RDX] = ALL;
    m.run(0x0f, 0xa2);
    expect(m.gpr.slice(0, 4)).toEqual([7n, 3n, 4n, 2n]);
  });
  it('faults at CPL 3 with CPUID faulting on', () => {
    const m = new TestMachine('prot32').setLevel(3);
    m.msrs.set(MSR.MISC_FEATURES_ENABLES, 1n);
    expect(m.run(0x0f, 0xa2).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
  });
});

describe('GS and FS bases', () => {
  it('swapgs exchanges GS.base and KERNEL_GS_BASE, at CPL 0 only', () => {
    const m = new TestMachine('prot64');
    m.msrs.set(MSR.KERNEL_GS_BASE, 0xffff_8000_0000_0000n);
    m.segments[Seg.GS]!.base = 0x1000n;
    m.run(0x0f, 0x01, 0xf8);
    expect(m.segments[Seg.GS]?.base).toBe(0xffff_8000_0000_0000n);
    expect(m.msrs.get(MSR.KERNEL_GS_BASE)).toBe(0x1000n);
    expect(m.setLevel(3).run(0x0f, 0x01, 0xf8).exception?.vector).toBe(Vector.GP);
  });
  it('wrgsbase and rdfsbase need CR4.FSGSBASE and a canonical base', () => {
    const m = new TestMachine('prot64').setLevel(3);
    m.gpr[RAX] = 0x7fff_0000_0000n;
    expect(m.run(0xf3, 0x48, 0x0f, 0xae, 0xd8).exception?.vector).toBe(Vector.UD);
    m.cr[4]! |= CR4.FSGSBASE;
    m.run(0xf3, 0x48, 0x0f, 0xae, 0xd8);
    expect(m.segments[Seg.GS]?.base).toBe(0x7fff_0000_0000n);
    m.run(0xf3, 0x0f, 0xae, 0xc1);
    expect(m.gpr[RCX]).toBe(0n);
    m.gpr[RAX] = 1n << 47n;
    expect(m.run(0xf3, 0x48, 0x0f, 0xae, 0xd8).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
  });
});
