/** KVM_REQ_*: work for the next entry. KVM: kvm_make_request and its family (include/linux/kvm_host.h). */
import type { Req } from './types.ts';
import type { Vcpu } from './vcpu.ts';

/** vcpu->requests: a set of small numbers as two words, so that an entry's "is there anything?" is one test. */
export class RequestSet {
  #low = 0;
  #high = 0;

  has(req: number): boolean {
    return ((req < 32 ? this.#low : this.#high) & (1 << (req & 31))) !== 0;
  }
  add(req: number): void {
    if (req < 32) this.#low |= 1 << req;
    else this.#high |= 1 << (req & 31);
  }
  /** True if it was in it. */
  delete(req: number): boolean {
    const had = this.has(req);
    if (req < 32) this.#low &= ~(1 << req);
    else this.#high &= ~(1 << (req & 31));
    return had;
  }
  clear(): void {
    this.#low = this.#high = 0;
  }
  get isEmpty(): boolean {
    return (this.#low | this.#high) === 0;
  }
  get size(): number {
    return [...this].length;
  }
  /** In the order of the numbers. */
  *[Symbol.iterator](): Generator<Req> {
    for (let req = 0; req < 64; req++) if (this.has(req)) yield req as Req;
  }
}

export function kvmMakeRequest(req: Req, vcpu: Vcpu): void {
  vcpu.requests.add(req);
}
export const kvmTestRequest = (req: Req, vcpu: Vcpu): boolean => vcpu.requests.has(req);
/** True if it was made; clears it. */
export const kvmCheckRequest = (req: Req, vcpu: Vcpu): boolean => vcpu.requests.delete(req);
export function kvmClearRequest(req: Req, vcpu: Vcpu): void {
  vcpu.requests.delete(req);
}
export const kvmRequestPending = (vcpu: Vcpu): boolean => !vcpu.requests.isEmpty;
/** Request of every vCPU of a VM. KVM: kvm_make_all_cpus_request. */
export function kvmMakeAllCpusRequest(vm: { readonly vcpus: readonly Vcpu[] }, req: Req): void {
  for (const vcpu of vm.vcpus) vcpu.requests.add(req);
}
