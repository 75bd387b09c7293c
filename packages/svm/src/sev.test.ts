import { Kvm, type KvmExit, type Vcpu, type Vm } from '@tskvm/core';
import { Seg } from '@tskvm/emulator';
import { describe, expect, it } from 'vitest';
import { svm, toSvm, V } from './index.ts';

const HLT = 0xf4;
const CODE = 0x1000;
const GHCB = 0x5000;
const MOV_EAX = (value: number): number[] => [
  0x66,
  0xb8,
  value & 255,
  (value >> 8) & 255,
  (value >> 16) & 255,
  value >>> 24,
];
/** mov ecx, C0010130h; mov eax, value; xor edx, edx; wrmsr; rep vmmcall */
const VMGEXIT = (value: number): number[] => [
  ...[0x66, 0xb9, 0x30, 0x01, 0x01, 0xc0, ...MOV_EAX(value), 0x66, 0x31, 0xd2, 0x0f, 0x30],
  ...[0xf3, 0x0f, 0x01, 0xd9],
];
/** rdmsr; mov [500h], eax; mov [504h], edx; hlt */
const STORE_MSR = [0x0f, 0x32, 0x66, 0xa3, 0, 5, 0x66, 0x89, 0x16, 4, 5, HLT];

interface Machine {
  kvm: Kvm;
  vm: Vm;
  vcpu: Vcpu;
  run(): KvmExit;
  dword(gpa: number): number;
}
async function machine(code: readonly number[]): Promise<Machine> {
  const kvm = await Kvm.create(svm({ sevEs: true }), { memory: 16 << 20 });
  const vm = kvm.createVm({ type: 'sev-es' });
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 1 << 20 });
  vm.writeGuest(CODE, Uint8Array.from(code));
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid(kvm.getSupportedCpuid());
  const cs = kvm.calls.getSegment(vcpu, Seg.CS);
  kvm.calls.setSegment(vcpu, { ...cs, selector: 0, base: 0n }, Seg.CS);
  vcpu.arch.regs[16] = BigInt(CODE);
  vcpu.arch.regs[4] = 0x8000n;
  const dword = (gpa: number): number => Number(vm.readGuestValue(gpa, 4));
  return { kvm, vm, vcpu, run: () => vcpu.run({ budget: 100_000 }), dword };
}
/** A GHCB with exit code, infos and registers, all marked valid. */
function fillGhcb(m: Machine, code: number, info1: number, registers: Record<number, number> = {}): void {
  const bytes = new Uint8Array(4096);
  const view = new DataView(bytes.buffer);
  const put = (offset: number, value: number): void => {
    view.setBigUint64(offset, BigInt(value), true);
    bytes[0x3f0 + (offset >> 6)] |= 1 << ((offset >> 3) & 7);
  };
  put(0x390, code);
  put(0x398, info1);
  put(0x3a0, 0);
  for (const [offset, value] of Object.entries(registers)) put(Number(offset), value);
  m.vm.writeGuest(GHCB, bytes);
}
const RAX = 0x1f8;
const RCX = 0x308;
const RBX = 0x318;

describe('a protected guest under svm({ sevEs: true })', () => {
  it('scenario 22: a MOV CR0 is trapped behind the instruction and mirrored, RIP is nobody else`s', async () => {
    const m = await machine([...MOV_EAX(0x11), 0x0f, 0x22, 0xc0, 0xeb, 0x00, HLT]);
    const exits: string[] = [];
    m.kvm.on('kvm_exit', (event) => {
      if (event.name !== 'npf') exits.push(event.name);
    });
    expect(m.run()).toMatchObject({ reason: 'hlt' });
    expect(exits).toEqual(['write_cr0_trap', 'hlt']);
    expect(m.vcpu.arch.cr0).toBe(0x11n);
    const callers = m.kvm.tracer
      ?.edges()
      .filter((edge) => edge.callee === 'svmSetCr0')
      .map((edge) => edge.caller);
    expect(callers).toContain('crTrap');
    expect(m.kvm.tracer?.edges().some((edge) => edge.caller === 'crTrap' && edge.callee === 'kvmSetCr0')).toBe(false);
  });
  it('keeps its registers out of KVM`s reach', async () => {
    // mov ebx, 5ec2e754h; hlt
    const m = await machine([0x66, 0xbb, 0x54, 0xe7, 0xc2, 0x5e, HLT]);
    m.run();
    expect(m.vcpu.arch.guestStateProtected).toBe(true);
    expect([...m.vcpu.arch.regs].every((value) => value === 0n)).toBe(true);
    expect(() => m.vcpu.getRegs()).toThrow();
    const { vmcb } = toSvm(m.vcpu);
    const page = Number(vmcb.get64(V.vmsaPa));
    const host = m.kvm.memory.readBytes(page, 4096);
    expect(Buffer.from(host).includes(Buffer.of(0x54, 0xe7, 0xc2, 0x5e))).toBe(false);
  });
  it('is refused without the parameter', async () => {
    const kvm = await Kvm.create(svm(), { memory: 16 << 20 });
    expect(() => kvm.createVm({ type: 'sev-es' })).toThrow();
  });
});

describe('the GHCB MSR protocol', () => {
  it('answers the SEV information request with versions and the C-bit', async () => {
    const m = await machine([...VMGEXIT(2), ...STORE_MSR]);
    m.run();
    expect(m.dword(0x500)).toBe(((51 << 24) | 1) >>> 0);
    expect(m.dword(0x504)).toBe(0x2_0001);
  });
  it('gives CPUID one register at a time', async () => {
    // function 0 in EDX, EBX wanted: bits 31:30 = 1
    const m = await machine([...VMGEXIT(0x4000_0004), ...STORE_MSR]);
    m.run();
    expect(m.dword(0x500)).toBe(0x4000_0005);
    expect(m.dword(0x504)).toBe(0x6874_7541);
  });
  it('ends the VM on a termination request', async () => {
    const m = await machine(VMGEXIT(0x2_1100));
    expect(m.run()).toMatchObject({ reason: 'system_event', type: 6, data: [0x2_1100n] });
  });
  it('leaves the MSR alone for a request that it does not know', async () => {
    const m = await machine([...VMGEXIT(0xffe), ...STORE_MSR]);
    m.run();
    expect(m.dword(0x500)).toBe(0xffe);
  });
});

describe('GHCB requests', () => {
  it('CPUID comes back in the page', async () => {
    const m = await machine([...VMGEXIT(GHCB), HLT]);
    fillGhcb(m, 0x72, 0, { [RAX]: 0, [RCX]: 0 });
    expect(m.run()).toMatchObject({ reason: 'hlt' });
    expect(m.dword(GHCB + RBX)).toBe(0x6874_7541);
    expect(m.dword(GHCB + 0x398)).toBe(0);
  });
  it('OUT goes to user space with the byte of the page, IN comes back into it', async () => {
    const m = await machine([...VMGEXIT(GHCB), ...VMGEXIT(GHCB), HLT]);
    fillGhcb(m, 0x7b, 0x80_0090, { [RAX]: 0x42 });
    const out = m.run();
    expect(out).toMatchObject({ reason: 'io', direction: 'out', port: 0x80, size: 1 });
    if (out.reason === 'io') expect(out.data[0]).toBe(0x42);
    fillGhcb(m, 0x7b, 0x81_0091);
    const input = m.run();
    expect(input).toMatchObject({ reason: 'io', direction: 'in', port: 0x81 });
    if (input.reason === 'io') input.data[0] = 0x99;
    expect(m.run()).toMatchObject({ reason: 'hlt' });
    expect(m.dword(GHCB + RAX)).toBe(0x99);
  });
  it('a refused WRMSR asks the guest to raise #GP', async () => {
    const m = await machine([...VMGEXIT(GHCB), HLT]);
    fillGhcb(m, 0x7c, 1, { [RAX]: 0, [RCX]: 0x7777, 784: 0 });
    expect(m.run()).toMatchObject({ reason: 'hlt' });
    expect(m.dword(GHCB + 0x398)).toBe(1);
    expect(m.dword(GHCB + 0x3a0)).toBe(0x8000_0b0d);
  });
  it('an unknown request and a missing register are malformed input', async () => {
    const m = await machine([...VMGEXIT(GHCB), HLT]);
    fillGhcb(m, 0x1234, 0);
    m.run();
    expect([m.dword(GHCB + 0x398), m.dword(GHCB + 0x3a0)]).toEqual([2, 6]);
    const other = await machine([...VMGEXIT(GHCB), HLT]);
    fillGhcb(other, 0x72, 0, { [RAX]: 0 });
    other.run();
    expect([other.dword(GHCB + 0x398), other.dword(GHCB + 0x3a0)]).toEqual([2, 4]);
  });
});
