/** Making and ending vCPUs. KVM: kvm_vm_ioctl_create_vcpu, kvm_arch_vcpu_create, kvm_arch_vcpu_destroy. */
import { KvmError } from './diagnostics.ts';
import { kvmCreateLapic } from './lapic.ts';
import { kvmInitMmu } from './mmu/mmu.ts';
import { initialMpState, kvmVcpuReset } from './reset.ts';
import { frame } from './trace.ts';
import { Errno, MpState } from './types.ts';
import { Vcpu } from './vcpu.ts';
import type { Vm } from './vm.ts';
import { vcpuLoad, vcpuPut } from './x86.ts';

/** KVM_MAX_VCPU_IDS as xAPIC ids allow. */
const MAX_VCPU_ID = 254;

function check(vm: Vm, id: number): void {
  if (!Number.isInteger(id) || id < 0 || id > MAX_VCPU_ID) {
    throw new KvmError('VCPU_ID', Errno.EINVAL, `vCPU id ${String(id)}: give 0 to ${MAX_VCPU_ID}`);
  }
  if (vm.vcpus.some((vcpu) => vcpu.vcpuId === id)) {
    throw new KvmError('VCPU_EXISTS', Errno.EEXIST, `vCPU ${id} exists already`);
  }
}

const demand = (what: string, err: number): void => {
  if (err < 0) throw new KvmError('VCPU_CREATE', -err, `the vendor's ${what} failed (-${-err})`);
};

/** KVM: kvm_arch_vcpu_create. Throws KvmError VCPU_ID (EINVAL), VCPU_EXISTS (EEXIST), VCPU_CREATE. */
export const kvmArchVcpuCreate = frame('kvmArchVcpuCreate', (vm: Vm, id: number): Vcpu => {
  check(vm, id);
  const { calls } = vm.kvm;
  demand('vcpuPrecreate', calls.vcpuPrecreate(vm));
  const vcpu = new Vcpu(vm, id);
  vcpu.arch.mpState = MpState.RUNNABLE;
  if (vm.irqchipInKernel) kvmCreateLapic(vcpu);
  vcpu.arch.mpState = initialMpState(vcpu);
  demand('vcpuCreate', calls.vcpuCreate(vcpu));
  vcpuLoad(vcpu);
  kvmVcpuReset(vcpu, false);
  kvmInitMmu(vcpu);
  vm.vcpus.push(vcpu);
  vm.vcpus.sort((a, b) => a.vcpuId - b.vcpuId);
  return vcpu;
});

/** KVM: kvm_arch_vcpu_destroy. */
export function kvmArchVcpuDestroy(vcpu: Vcpu): void {
  const { kvm } = vcpu;
  if (kvm.runningVcpu === vcpu) vcpuPut(kvm);
  kvm.calls.vcpuFree(vcpu);
}
