/**
 * Exits that are answered before the guest's state is put away: CPUID, and a MOV to CR0 from which little follows. KVM has nothing of the
 * kind; it comes to the same as vmx_vcpu_run's fastpath, entry after entry. Manual: SDM vol. 3 section 27.3.
 */
import {
  kvmFastCpuid,
  kvmFollowPlainCr0,
  kvmIsPlainCr0,
  kvmPlainCr0Bits,
  kvmStubMayAnswer,
  type Vcpu,
} from '@tskvm/core';
import { type ProcessorApi, RSP, S } from '@tskvm/emulator';
import { Reason } from './hardware/bits.ts';
import type { ExitStub } from './hardware/instructions.ts';
import { type Vmcs, Word as vmcsWords } from './hardware/vmcs.ts';
import { CR0_ALWAYS_OFF, CR0_ALWAYS_ON_UNRESTRICTED, vmxIsValidCr0, vmxSetCr0 } from './registers.ts';
import { isUnrestrictedGuest, type VmxModule } from './vcpu-vmx.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const Word = vmcsWords;
const { CPUID, CR_ACCESS } = Reason;
const CR0_WORD = S.cr0 >> 2;
const ALWAYS_OFF = CR0_ALWAYS_OFF;
const ALWAYS_ON = CR0_ALWAYS_ON_UNRESTRICTED;

/** One vCPU's. Handed to the entry only where `kvmMayUseStub` says so. */
export class VmxExitStub implements ExitStub {
  readonly #vcpu: Vcpu;
  readonly #processor: ProcessorApi;
  readonly #vmcs: Vmcs;
  /** Bits of CR0 that may change here. */
  #plain = 0;
  #written = false;

  constructor(vcpu: Vcpu, { silicon }: VmxModule) {
    this.#vcpu = vcpu;
    this.#processor = vcpu.kvm.processor;
    this.#vmcs = silicon.vmcs;
  }

  /** Before an entry: CR0.PG, CR4 and EFER, whose writes exit, stay as they are until `settle`. */
  arm(): void {
    const vcpu = this.#vcpu;
    const { calls } = vcpu.kvm;
    const unwrapped = calls.setCr0 === vmxSetCr0 && calls.isValidCr0 === vmxIsValidCr0;
    const paging = this.#vmcs.block[CR0_WORD] < 0;
    this.#plain = unwrapped && isUnrestrictedGuest(vcpu) ? kvmPlainCr0Bits(vcpu, paging) : 0;
  }

  answer(reason: number, gprs: Uint32Array): boolean {
    const processor = this.#processor;
    if (!kvmStubMayAnswer(processor)) return false;
    if (reason === CPUID ? !kvmFastCpuid(this.#vcpu, gprs) : !this.#setCr0(reason, gprs)) return false;
    processor.tick++;
    return true;
  }
  /** The hardware's part of vmxSetCr0; the rest waits for `settle`. */
  #setCr0(reason: number, gprs: Uint32Array): boolean {
    if (reason !== CR_ACCESS || this.#plain === 0) return false;
    const vmcs = this.#vmcs;
    const { block, words } = vmcs;
    const qual = words[Word.exitQualification];
    const at = ((qual >> 8) & 15) * 2;
    // Bits 3:0 number the register, 5:4 are 0 for a MOV to it; RSP is read late.
    if ((qual & 0x3f) !== 0 || at === RSP * 2 || gprs[at + 1] !== 0) return false;
    const mask = words[Word.cr0Mask];
    const low = gprs[at] | 0;
    const changed = low ^ ((block[CR0_WORD] & ~mask) | (words[Word.cr0ReadShadow] & mask));
    if (!kvmIsPlainCr0(changed, this.#plain)) return false;
    vmcs.writeCr0((low & ~ALWAYS_OFF) | ALWAYS_ON, low);
    this.#written = true;
    return true;
  }

  /** Behind the exit that has no answer, with nothing cached: takes over what became of CR0. */
  settle(): void {
    if (!this.#written) return;
    this.#written = false;
    const vcpu = this.#vcpu;
    vcpu.arch.cr0 = BigInt(this.#vmcs.words[Word.cr0ReadShadow] >>> 0);
    kvmFollowPlainCr0(vcpu);
  }
}
