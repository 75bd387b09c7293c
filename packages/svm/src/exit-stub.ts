/**
 * Exits that are answered before the guest's state is put away: CPUID, and a MOV to CR0 from which little follows. KVM has nothing of the
 * kind; it comes to the same as svm_vcpu_run's fastpath, entry after entry. Manual: APM vol. 2 section 15.6.
 */
import { kvmFastCpuid, kvmStubMayAnswer, type Vcpu } from '@tskvm/core';
import type { ProcessorApi } from '@tskvm/emulator';
import { type ExitStub, SvmExit, W as vmcbWords } from './hardware/index.ts';
import { svmFastSetCr0 } from './registers.ts';
import { SEEN as seenWords, toSvm, type VcpuSvm } from './vcpu-svm.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const W = vmcbWords;
const SEEN = seenWords;
const { CPUID, CR0_SEL_WRITE, WRITE_CR0 } = SvmExit;

/** One vCPU's. Handed to VMRUN only where `kvmMayUseStub` says so. */
export class SvmExitStub implements ExitStub {
  readonly #vcpu: Vcpu;
  readonly #processor: ProcessorApi;

  constructor(vcpu: Vcpu) {
    this.#vcpu = vcpu;
    this.#processor = vcpu.kvm.processor;
  }

  answer(code: number, gprs: Uint32Array): boolean {
    const processor = this.#processor;
    if (!kvmStubMayAnswer(processor)) return false;
    if (code === CPUID ? !kvmFastCpuid(this.#vcpu, gprs) : !this.#setCr0(code, gprs)) return false;
    processor.tick++;
    return true;
  }
  /** What the guest has made of CR0 without an exit is the run loop's to pick up. */
  #setCr0(code: number, gprs: Uint32Array): boolean {
    if (code !== CR0_SEL_WRITE && code !== WRITE_CR0) return false;
    const svm: VcpuSvm = toSvm(this.#vcpu);
    return svm.vmcb.words[W.cr0] === svm.seen[SEEN.CR0] && svmFastSetCr0(this.#vcpu, svm, gprs);
  }
}
