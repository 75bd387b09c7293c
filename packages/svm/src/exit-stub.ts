/**
 * Exits that are answered before the guest's state is put away: CPUID, and a MOV to CR0 from which little follows. KVM has nothing of the
 * kind; it comes to the same as svm_vcpu_run's fastpath, entry after entry. Manual: APM vol. 2 section 15.6.
 */
import {
  kvmFastCpuid,
  kvmFollowPlainCr0,
  kvmIsPlainCr0,
  kvmPlainCr0Bits,
  kvmStubMayAnswer,
  lowWord,
  type Vcpu,
} from '@tskvm/core';
import type { ProcessorApi } from '@tskvm/emulator';
import { type ExitStub, SvmExit, W as vmcbWords } from './hardware/index.ts';
import { CD_NW, svmIsValidCr0, svmSetCr0 } from './registers.ts';
import { SEEN as seenWords, svmModule, toSvm } from './vcpu-svm.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const W = vmcbWords;
const SEEN = seenWords;
const { CPUID, CR0_SEL_WRITE, WRITE_CR0 } = SvmExit;

/** One vCPU's. Handed to VMRUN only where `kvmMayUseStub` says so. */
export class SvmExitStub implements ExitStub {
  readonly #vcpu: Vcpu;
  readonly #processor: ProcessorApi;
  /** Bits of CR0 that may change here. */
  #plain = 0;
  /** CD and NW as the guest sees them, which the hardware's CR0 lacks. */
  #kept = 0;
  #written = false;

  constructor(vcpu: Vcpu) {
    this.#vcpu = vcpu;
    this.#processor = vcpu.kvm.processor;
  }

  /** Before an entry: CR4 and EFER, whose writes exit, stay as they are until `settle`. */
  arm(): void {
    const vcpu = this.#vcpu;
    const { calls } = vcpu.kvm;
    const unwrapped = calls.setCr0 === svmSetCr0 && calls.isValidCr0 === svmIsValidCr0;
    const low = lowWord(vcpu.arch.cr0);
    this.#plain = unwrapped && svmModule(vcpu).params.npt ? kvmPlainCr0Bits(vcpu, low < 0) : 0;
    this.#kept = low & CD_NW;
  }

  answer(code: number, gprs: Uint32Array): boolean {
    const processor = this.#processor;
    if (!kvmStubMayAnswer(processor)) return false;
    if (code === CPUID ? !kvmFastCpuid(this.#vcpu, gprs) : !this.#setCr0(code, gprs)) return false;
    processor.tick++;
    return true;
  }
  /** The hardware's part of svmSetCr0; the rest waits for `settle`. */
  #setCr0(code: number, gprs: Uint32Array): boolean {
    if (code !== CR0_SEL_WRITE && code !== WRITE_CR0) return false;
    // Without nested paging the hardware's CR0 is not the guest's, and no bit is plain.
    if (this.#plain === 0) return false;
    const { words } = toSvm(this.#vcpu).vmcb;
    const gpr = (words[W.exitInfo1] & 15) * 2;
    const changed = gprs[gpr] ^ (words[W.cr0] | this.#kept);
    // EXITINFO1 bit 63: a decoded MOV.
    if (words[W.exitInfo1 + 1] >= 0 || gprs[gpr + 1] !== 0 || !kvmIsPlainCr0(changed, this.#plain)) return false;
    words[W.cr0] ^= changed;
    this.#written = true;
    return true;
  }

  /** Behind the exit that has no answer: takes over what became of CR0. */
  settle(): void {
    if (!this.#written) return;
    this.#written = false;
    const vcpu = this.#vcpu;
    const { seen, vmcb } = toSvm(vcpu);
    const hardware = vmcb.words[W.cr0];
    seen[SEEN.CR0] = hardware;
    vcpu.arch.cr0 = BigInt((hardware | this.#kept) >>> 0);
    kvmFollowPlainCr0(vcpu);
  }
}
