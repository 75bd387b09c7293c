/**
 * Exits that are answered before the guest's state is put away: CPUID, and a MOV to CR0 from which little follows. KVM has nothing of the
 * kind; it comes to the same as vmx_vcpu_run's fastpath, entry after entry. Manual: SDM vol. 3 section 27.3.
 */
import { kvmFastCpuid, kvmStubMayAnswer, type Vcpu } from '@tskvm/core';
import type { ProcessorApi } from '@tskvm/emulator';
import { Reason } from './hardware/bits.ts';
import type { ExitStub } from './hardware/instructions.ts';
import { type Vmcs, Word as vmcsWords } from './hardware/vmcs.ts';
import { vmxFastSetCr0 } from './registers.ts';
import type { VmxModule } from './vcpu-vmx.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const Word = vmcsWords;
const { CPUID, CR_ACCESS } = Reason;

/** One vCPU's. Handed to the entry only where `kvmMayUseStub` says so. */
export class VmxExitStub implements ExitStub {
  readonly #vcpu: Vcpu;
  readonly #processor: ProcessorApi;
  readonly #vmcs: Vmcs;

  constructor(vcpu: Vcpu, { silicon }: VmxModule) {
    this.#vcpu = vcpu;
    this.#processor = vcpu.kvm.processor;
    this.#vmcs = silicon.vmcs;
  }

  answer(reason: number, gprs: Uint32Array): boolean {
    const processor = this.#processor;
    if (!kvmStubMayAnswer(processor)) return false;
    if (reason === CPUID ? !kvmFastCpuid(this.#vcpu, gprs) : !this.#setCr0(reason, gprs)) return false;
    processor.tick++;
    return true;
  }
  #setCr0(reason: number, gprs: Uint32Array): boolean {
    if (reason !== CR_ACCESS) return false;
    // What was cached before the guest ran: as behind each exit.
    this.#vcpu.arch.regsAvail.clear();
    return vmxFastSetCr0(this.#vcpu, this.#vmcs.words[Word.exitQualification], gprs);
  }
}
