/**
 * What ends an instruction early: a guest-visible exception, a wait for user space, or a hole of ours.
 * Faults unwind by `throw` of one preallocated object per engine (no stack trace, no allocation on the hot path).
 */
import { Vector } from './state-layout.ts';

/** A guest-visible exception (APM vol. 2 ch. 8). Reused: read its fields before executing anything else. */
export class GuestException {
  vector = 0;
  /** `undefined` where the vector has none. */
  errorCode: number | undefined = undefined;
  /** #PF: the linear address (CR2). #DB: the bits to merge into DR6. */
  payload = 0n;
  /** Faults restart at the instruction, traps go on behind it. */
  trap = false;

  set(vector: number, errorCode?: number, payload = 0n, trap = false): this {
    this.vector = vector;
    this.errorCode = errorCode;
    this.payload = payload;
    this.trap = trap;
    return this;
  }
}

/** Vectors that push an error code (APM vol. 2 section 8.2). */
export const hasErrorCode = (vector: number): boolean =>
  vector === Vector.DF ||
  (vector >= Vector.TS && vector <= Vector.PF) ||
  vector === Vector.AC ||
  vector === Vector.CP ||
  vector === Vector.VC;

/**
 * Thrown by memory and port accessors of {@link X86EmulateOps} when the access must be completed outside (KVM: X86EMUL_IO_NEEDED),
 * and by the silicon's accessors when the access left the guest (a nested page fault became a #VMEXIT).
 * A singleton: the details stand with whoever threw it.
 */
export class Unwind {
  constructor(readonly reason: 'io-needed' | 'vmexit' | 'unhandleable' | 'retry') {}
}
export const IO_NEEDED = new Unwind('io-needed');
export const VMEXIT = new Unwind('vmexit');
export const UNHANDLEABLE = new Unwind('unhandleable');
export const RETRY = new Unwind('retry');

/** A part of the architecture that tskvm does not have yet. It stops the machine loudly; it never pretends. */
export class NotImplementedError extends Error {
  override readonly name = 'NotImplementedError';
  /**
   * @param feature what is missing, e.g. `FSIN`
   * @param section the manual's section, e.g. `APM vol. 5, FSIN`
   */
  constructor(
    readonly feature: string,
    readonly section: string,
  ) {
    super(`not implemented: ${feature} (${section})`);
  }
}

/** A bug of ours, with the state needed to reproduce it. */
export class AssertionError extends Error {
  override readonly name = 'AssertionError';
}
