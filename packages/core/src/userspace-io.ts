/** What happens when user space has answered an exit. KVM: the complete_userspace_io callbacks (x86.c). */
import { AssertionError } from '@tskvm/emulator';
import { completeHypercall } from './kvm-emulate-insns.ts';
import { completeEmulatedMmio, completeEmulatedPio, completeFastPioIn, completeFastPioOut } from './kvm-emulate-io.ts';
import { completeUserMsr } from './msrs.ts';
import type { Vcpu } from './vcpu.ts';

/** Finishes one kind of pending work; result as of an exit handler. */
export type UserspaceIoCompletion = (vcpu: Vcpu, data: unknown) => number;

const COMPLETIONS = new Map<string, UserspaceIoCompletion>([
  ['emulatedPio', completeEmulatedPio],
  ['emulatedMmio', completeEmulatedMmio],
  ['fastPioIn', completeFastPioIn],
  ['fastPioOut', completeFastPioOut],
  ['hypercall', completeHypercall],
  ['userMsr', completeUserMsr],
]);

/** A vendor's own kinds (VMGEXIT's, for one). The name goes into snapshots. */
export function registerUserspaceIoCompletion(kind: string, completion: UserspaceIoCompletion): void {
  COMPLETIONS.set(kind, completion);
}

/** Is this a kind of pending work that someone finishes. */
export const hasUserspaceIoCompletion = (kind: string): boolean => COMPLETIONS.has(kind);

export function completeUserspaceIo(vcpu: Vcpu, kind: string, data: unknown): number {
  const completion = COMPLETIONS.get(kind);
  if (!completion) throw new AssertionError(`no completion for user-space exits of kind '${kind}'`);
  return completion(vcpu, data);
}
