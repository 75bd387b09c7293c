import { describe, expect, it } from 'vitest';
import { NotImplementedError } from '../exceptions.ts';
import { X86Emul } from '../ops.ts';
import { CR4, EFER, Seg, Vector } from '../state-layout.ts';
import { MSR } from './common.ts';
import { CODE, TestMachine } from './testing.ts';

const [RAX, RCX] = [0, 1] as const;

describe('hlt and hints', () => {
  it('hlt halts at CPL 0, is #GP(0) at CPL 3', () => {
    const m = new TestMachine('prot32');
    m.run(0xf4);
    expect([m.halted, m.rip]).toEqual([true, BigInt(CODE + 1)]);
    expect(new TestMachine('prot32').setLevel(3).run(0xf4).exception?.vector).toBe(Vector.GP);
  });
  it.each([
    ['pause', [0xf3, 0x90]],
    ['lfence', [0x0f, 0xae, 0xe8]],
    ['nop [eax]', [0x0f, 0x1f, 0x00]],
    ['wbinvd', [0x0f, 0x09]],
  ] as const)('%s moves on', (_, code) => {
    const m = new TestMachine('prot32');
    m.features.add('sse2').add('sse');
    expect(m.run(...code).code).toBe(X86Emul.CONTINUE);
    expect(m.rip).toBe(BigInt(CODE + code.length));
  });
  it('clflush faults like a read', () => {
    const m = new TestMachine('prot32');
    m.features.add('clflush');
    m.absentPages.add(5);
    expect(m.run(0x0f, 0xae, 0x3d, 0x00, 0x50, 0x00, 0x00).exception?.vector).toBe(Vector.PF);
  });
  it('monitor with ECX set is #GP(0), mwait at CPL 3 #UD', () => {
    const m = new TestMachine('prot32');
    m.features.add('monitor');
    m.gpr[RCX] = 1n;
    expect(m.run(0x0f, 0x01, 0xc8).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
    expect(m.setLevel(3).run(0x0f, 0x01, 0xc9).exception?.vector).toBe(Vector.UD);
  });
});

describe('tlb maintenance', () => {
  it('invlpg adds the segment base and checks no limit', () => {
    const m = new TestMachine('prot32');
    m.segments[Seg.DS] = { selector: 8, attrib: 0xc93, limit: 0, base: 0x1000n };
    m.run(0x0f, 0x01, 0x3d, 0x00, 0x50, 0x00, 0x00);
    expect(m.invalidated).toEqual([0x6000n]);
  });
  it('invlpg of a non-canonical address does nothing', () => {
    const m = new TestMachine('prot64');
    m.gpr[RAX] = 1n << 50n;
    expect(m.run(0x0f, 0x01, 0x38).code).toBe(X86Emul.CONTINUE);
    expect(m.invalidated).toEqual([]);
  });
  it.each([
    ['type 4', 4n, 0n, 0n, Vector.GP],
    ['reserved bits', 2n, 0x1000n, 0n, Vector.GP],
    ['a PCID without PCIDE', 0n, 1n, 0n, Vector.GP],
    ['a non-canonical address', 0n, 0n, 1n << 50n, Vector.GP],
    ['all contexts', 2n, 0n, 1n << 50n, undefined],
  ] as const)('invpcid with %s', (_, type, pcid, linear, vector) => {
    const m = new TestMachine('prot64');
    m.gpr[RAX] = type;
    m.put(0x5000, pcid, 8);
    m.put(0x5008, linear, 8);
    expect(m.run(0x66, 0x0f, 0x38, 0x82, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00).exception?.vector).toBe(vector);
  });
});

describe('what is undefined', () => {
  it.each([
    ['ud2', [0x0f, 0x0b]],
    ['ud1', [0x0f, 0xb9, 0xc0]],
    ['rsm outside SMM', [0x0f, 0xaa]],
    ['vmcall', [0x0f, 0x01, 0xc1]],
    ['vmmcall', [0x0f, 0x01, 0xd9]],
    ['vmrun without EFER.SVME', [0x0f, 0x01, 0xd8]],
    ['vmxoff without CR4.VMXE', [0x0f, 0x01, 0xc4]],
  ] as const)('%s is #UD', (_, code) => {
    const m = new TestMachine('prot64');
    m.features.add('svm').add('vmx');
    expect(m.run(...code).exception?.vector).toBe(Vector.UD);
  });
  it('vmrun at CPL 3 is #GP(0) once SVME is set', () => {
    const m = new TestMachine('prot64').setLevel(3);
    m.features.add('svm');
    m.msrs.set(MSR.EFER, m.msrs.get(MSR.EFER)! | EFER.SVME);
    expect(m.run(0x0f, 0x01, 0xd8).exception).toMatchObject({ vector: Vector.GP, errorCode: 0 });
  });
  it('vmrun and vmxoff without their wing stop the machine', () => {
    const m = new TestMachine('prot64');
    m.features.add('svm').add('vmx');
    m.msrs.set(MSR.EFER, m.msrs.get(MSR.EFER)! | EFER.SVME);
    m.cr[4]! |= CR4.VMXE;
    expect(() => m.run(0x0f, 0x01, 0xd8)).toThrow(NotImplementedError);
    expect(() => m.run(0x0f, 0x01, 0xc4)).toThrow(NotImplementedError);
  });
});

describe('rdrand, rdseed', () => {
  it('rdrand sets CF, clears the other flags and fills the operand size', () => {
    const m = new TestMachine('prot64');
    m.features.add('rdrand');
    m.run(0x48, 0x0f, 0xc7, 0xf0);
    const first = m.gpr[RAX]!;
    expect(first >> 32n).not.toBe(0n);
    expect(m.rflags & 0x8d5n).toBe(1n);
    m.randomState = 0n;
    m.run(0x0f, 0xc7, 0xf1);
    expect(m.gpr[RCX]).toBe(first & 0xffff_ffffn);
  });
  it('rdseed goes on in the same sequence', () => {
    const m = new TestMachine('prot64');
    m.features.add('rdrand');
    m.features.add('rdseed');
    m.run(0x48, 0x0f, 0xc7, 0xf0);
    m.run(0x48, 0x0f, 0xc7, 0xf9);
    expect(m.gpr[RCX]).not.toBe(m.gpr[RAX]);
  });
});

describe('rsm', () => {
  it('leaves SMM with the RIP and RFLAGS that were loaded', () => {
    const m = new TestMachine('real');
    m.smm = true;
    m.leaveSmm = () => {
      m.setRip(0x1234n);
      m.setRflags(0x202n);
      return 0;
    };
    m.run(0x0f, 0xaa);
    expect([m.rip, m.rflags]).toEqual([0x1234n, 0x202n]);
  });
  it('with a corrupt map is a shutdown', () => {
    const m = new TestMachine('real');
    m.smm = true;
    m.leaveSmm = () => 1;
    m.run(0x0f, 0xaa);
    expect(m.tripleFaulted).toBe(true);
  });
});

it("a hypercall in KVM's emulator is patched and executed again", () => {
  const m = new TestMachine('prot64', 'amd', 'kvm');
  expect(m.run(0x0f, 0x01, 0xd9).code).toBe(X86Emul.CONTINUE);
  expect(m.rip).toBe(BigInt(CODE));
});
