/** KVM_REQ_*: work for the next entry. KVM: kvm_make_request and its family (include/linux/kvm_host.h). */
import type { Req } from './types.ts';
import type { Vcpu } from './vcpu.ts';

export function kvmMakeRequest(req: Req, vcpu: Vcpu): void {
  vcpu.requests.add(req);
}
export const kvmTestRequest = (req: Req, vcpu: Vcpu): boolean => vcpu.requests.has(req);
/** True if it was made; clears it. */
export const kvmCheckRequest = (req: Req, vcpu: Vcpu): boolean => vcpu.requests.delete(req);
export function kvmClearRequest(req: Req, vcpu: Vcpu): void {
  vcpu.requests.delete(req);
}
export const kvmRequestPending = (vcpu: Vcpu): boolean => vcpu.requests.size > 0;
/** Request of every vCPU of a VM. KVM: kvm_make_all_cpus_request. */
export function kvmMakeAllCpusRequest(vm: { readonly vcpus: readonly Vcpu[] }, req: Req): void {
  for (const vcpu of vm.vcpus) vcpu.requests.add(req);
}
