import { beforeEach, describe, expect, it } from 'vitest';
import { SvmExit } from './exit-codes.ts';
import { GUEST_RAM, type SiliconTest, silicon } from './testing.ts';
import { SAVE_AREA, V, VMSA } from './vmcb.ts';

const VMSA_PA = 0x3000;
const HLT = 0xf4;
const MOV_EAX = (value: number): number[] => [
  0x66,
  0xb8,
  value & 255,
  (value >> 8) & 255,
  (value >> 16) & 255,
  value >>> 24,
];

let t: SiliconTest;
beforeEach(async () => {
  t = await silicon();
  t.vmcb.set64(V.miscCtl, 7n);
  t.vmcb.set64(V.vmsaPa, BigInt(VMSA_PA));
  t.vmcb.setIntercept(SvmExit.MSR, true);
  t.memory.fill(0x8000, 0x2000, 0xff);
});
/** Seals a VMSA that stands as the VMCB's save area says, with code at `CODE`. */
function seal(...code: number[]): void {
  t.load(...code);
  t.memory.writeBytes(VMSA_PA, t.memory.readBytes(t.vmcb.pa + SAVE_AREA, 0x400));
  t.memory.fill(VMSA_PA + 0x300, 0xd00, 0);
  t.memory.write16(VMSA_PA + VMSA.fcw, 0x37f);
  t.hw.launchUpdateVmsa(VMSA_PA);
}
const everywhere = (): string => Buffer.from(t.memory.readBytes(0, 0x20000)).toString('latin1');

describe('a SEV-ES guest', () => {
  it('keeps its registers out of the VMCB, the register array and host memory', () => {
    seal(...MOV_EAX(0x5ec2e754), 0x66, 0x89, 0xc3, HLT); // mov eax, …; mov ebx, eax; hlt
    const before = t.memory.readBytes(VMSA_PA, 4096);
    t.gprs.fill(0x77n);
    t.vmcb.set64(V.rax, 0n);
    expect(t.run()).toBe(SvmExit.HLT);
    expect(t.vmcb.get64(V.rax)).toBe(0n);
    expect([...t.gprs].every((value) => value === 0x77n)).toBe(true);
    expect(t.memory.readBytes(VMSA_PA, 4096)).toEqual(before);
    expect(everywhere()).not.toContain('\x54\xe7\xc2\x5e');
  });
  it('goes on behind a HLT: automatic exits are trap-like', () => {
    seal(HLT, 0x66, 0x40, HLT, 0xc7, 0x06, 0, 5, 0x34, 0x12, HLT);
    t.run();
    expect(t.run()).toBe(SvmExit.HLT);
    expect(t.run()).toBe(SvmExit.HLT);
    expect(t.guest(0x500)).toBe(0x1234);
  });
  it('gets #VC for an intercept that is not automatic', () => {
    t.memory.write16(GUEST_RAM + 29 * 4, 0x600);
    t.memory.writeBytes(GUEST_RAM + 0x600, Uint8Array.of(0xc7, 0x06, 0, 5, 1, 0, HLT));
    t.vmcb.setIntercept(SvmExit.CPUID, true);
    seal(0x0f, 0xa2, HLT);
    expect(t.run()).toBe(SvmExit.HLT);
    expect(t.guest(0x500)).toBe(1);
  });
  it('commits `mov cr0, eax` by itself and reports the new value', () => {
    t.vmcb.setIntercept(SvmExit.CR0_WRITE_TRAP, true);
    seal(...MOV_EAX(0x12), 0x0f, 0x22, 0xc0, 0x0f, 0x20, 0xc3, 0x89, 0x1e, 0, 5, HLT);
    expect(t.run()).toBe(SvmExit.CR0_WRITE_TRAP);
    expect(t.vmcb.get64(V.exitInfo1)).toBe(0x12n);
    expect(t.vmcb.get64(V.cr0)).toBe(0x10n);
    expect(t.run()).toBe(SvmExit.HLT);
    expect(t.guest(0x500)).toBe(0x12);
  });
  it('owns the GHCB MSR, and VMGEXIT hands its value out', () => {
    // mov ecx, C0010130h; mov eax, 2; xor edx, edx; wrmsr; rep vmmcall; rdmsr; mov [500h], ax; hlt
    seal(
      ...[0x66, 0xb9, 0x30, 0x01, 0x01, 0xc0, ...MOV_EAX(2), 0x66, 0x31, 0xd2, 0x0f, 0x30],
      ...[0xf3, 0x0f, 0x01, 0xd9, 0x0f, 0x32, 0xa3, 0, 5, HLT],
    );
    expect(t.run()).toBe(SvmExit.VMGEXIT);
    expect(t.vmcb.get64(V.ghcbGpa)).toBe(2n);
    t.vmcb.set64(V.ghcbGpa, 0x5001n);
    expect(t.run()).toBe(SvmExit.HLT);
    expect(t.guest(0x500)).toBe(0x5001);
  });
  it('traps a write of EFER behind the WRMSR', () => {
    t.vmcb.setIntercept(SvmExit.EFER_WRITE_TRAP, true);
    t.memory.write8(0x8000 + 0x800 + 0x20, 0); // C0000080: pass through
    seal(0x66, 0xb9, 0x80, 0, 0, 0xc0, ...MOV_EAX(0x1100), 0x66, 0x31, 0xd2, 0x0f, 0x30, HLT);
    expect(t.run()).toBe(SvmExit.EFER_WRITE_TRAP);
    expect(t.vmcb.get64(V.exitInfo1)).toBe(0x1100n);
  });
  it('cannot be entered after the host wrote to its VMSA, nor before it is sealed', () => {
    seal(HLT);
    t.memory.write8(VMSA_PA + 0x178, 0);
    expect(t.run()).toBe(-1);
    expect(t.hw.failures.map((failure) => failure.code)).toEqual(['svm.sev-es.vmsa-integrity']);
    t.vmcb.set64(V.vmsaPa, 0x7000n);
    expect(t.run()).toBe(-1);
  });
  it('shows the host its IF and shadow only', () => {
    seal(0xfb, 0x90, HLT);
    t.run();
    expect(t.vmcb.get32(V.intState)).toBe(2);
    expect(t.vmcb.get64(V.rflags)).toBe(2n);
  });
});
