/** Features as KVM gives them to guests: reserved bits of CR4 and CR3, and the MSRs that go by CPUID. Under both vendors. */
import { kvmGetMsr, kvmSetCr3, kvmSetCr4, kvmSetMsr, type Vcpu } from '@tskvm/core';
import { CR3, CR4 } from '@tskvm/emulator';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { describe, expect, test } from 'vitest';
import { bootSector } from './loaders/image.ts';
import { createMachine } from './machine.ts';

const BACKENDS = { svm, vmx } as const;
const image = bootSector(
  Uint8Array.from({ length: 512 }, (_, n) => (n === 510 ? 0x55 : n === 511 ? 0xaa : 0xf4)),
  'halt',
);
/** The first virtual processor of a machine that has not run. */
const vcpuOf = async (backend: keyof typeof BACKENDS, cpu: string): Promise<Vcpu> =>
  (await createMachine({ backend: BACKENDS[backend](), cpu, image, memory: 2 ** 20 })).vm.vcpus[0];

const SPEC_CTRL = 0x48;
const PRED_CMD = 0x49;
const ARCH_CAPABILITIES = 0x10a;
const FLUSH_CMD = 0x10b;
const PKRS = 0x6e1;
const TSC_AUX = 0xc0000103;
const KERNEL_GS_BASE = 0xc0000102;
const GP = 1;

describe.each(['svm', 'vmx'] as const)('under %s', (backend) => {
  test.each([
    ['umip', CR4.UMIP],
    ['pku', CR4.PKE],
    ['la57', CR4.LA57],
    ['smep', CR4.SMEP],
    ['smap', CR4.SMAP],
    ['fsgsbase', CR4.FSGSBASE],
  ] as const)('CR4 has a bit for %s only if the guest has it', async (feature, bit) => {
    expect(kvmSetCr4(await vcpuOf(backend, `qemu64,+${feature}`), bit)).toBe(0);
    expect(kvmSetCr4(await vcpuOf(backend, 'qemu64'), bit)).toBe(GP);
  });
  test('addresses in MSRs are as wide as LA57 makes them', async () => {
    const wide = 1n << 48n;
    expect(kvmSetMsr(await vcpuOf(backend, 'host,+la57'), KERNEL_GS_BASE, wide)).toBe(0);
    expect(kvmSetMsr(await vcpuOf(backend, 'host,-la57'), KERNEL_GS_BASE, wide)).toBe(GP);
    expect(kvmSetMsr(await vcpuOf(backend, 'host,+la57'), KERNEL_GS_BASE, 1n << 56n)).toBe(GP);
  });
  test('SPEC_CTRL holds IBRS, STIBP and SSBD, nothing else', async () => {
    const vcpu = await vcpuOf(backend, 'host');
    expect(kvmSetMsr(vcpu, SPEC_CTRL, 7n)).toBe(0);
    expect(kvmGetMsr(vcpu, SPEC_CTRL)).toEqual({ err: 0, data: 7n });
    expect(kvmSetMsr(vcpu, SPEC_CTRL, 1n << 3n)).toBe(GP);
  });
  test('PRED_CMD takes IBPB and can not be read', async () => {
    const vcpu = await vcpuOf(backend, 'host');
    expect(kvmSetMsr(vcpu, PRED_CMD, 1n)).toBe(0);
    expect(kvmSetMsr(vcpu, PRED_CMD, 2n)).toBe(GP);
    expect(kvmGetMsr(vcpu, PRED_CMD).err).toBe(GP);
  });
  test('a modest guest has neither', async () => {
    const vcpu = await vcpuOf(backend, 'qemu64');
    for (const msr of [SPEC_CTRL, PRED_CMD, ARCH_CAPABILITIES, FLUSH_CMD, PKRS]) {
      expect(kvmGetMsr(vcpu, msr).err, msr.toString(16)).toBe(GP);
    }
  });
  test('TSC_AUX: 32 bits, for RDTSCP or RDPID', async () => {
    const vcpu = await vcpuOf(backend, 'qemu64,+rdtscp');
    expect(kvmSetMsr(vcpu, TSC_AUX, 0xffffffffn)).toBe(0);
    expect(kvmSetMsr(vcpu, TSC_AUX, 1n << 32n)).toBe(GP);
  });
});

describe('what VT-x processors have', () => {
  test('ARCH_CAPABILITIES is read-only and says that Meltdown does not concern it', async () => {
    const vcpu = await vcpuOf('vmx', 'host');
    expect(kvmGetMsr(vcpu, ARCH_CAPABILITIES).data & 1n).toBe(1n);
    expect(kvmSetMsr(vcpu, ARCH_CAPABILITIES, 0n)).toBe(GP);
  });
  test('LAM: CR4.LAM_SUP and two bits of CR3', async () => {
    const lam = await vcpuOf('vmx', 'host,+lam');
    expect(kvmSetCr4(lam, CR4.LAM_SUP)).toBe(0);
    expect(kvmSetCr3(lam, CR3.LAM_U48 | CR3.LAM_U57)).toBe(0);
    const none = await vcpuOf('vmx', 'host');
    expect(kvmSetCr4(none, CR4.LAM_SUP)).toBe(GP);
    expect(kvmSetCr3(none, CR3.LAM_U48)).toBe(GP);
  });
  test('PKS: CR4.PKS and IA32_PKRS of 32 bits', async () => {
    const vcpu = await vcpuOf('vmx', 'host,+pks');
    expect(kvmSetCr4(vcpu, CR4.PKS)).toBe(0);
    expect(kvmSetMsr(vcpu, PKRS, 0x55555554n)).toBe(0);
    expect(kvmGetMsr(vcpu, PKRS).data).toBe(0x55555554n);
    expect(kvmSetMsr(vcpu, PKRS, 1n << 32n)).toBe(GP);
  });
});
