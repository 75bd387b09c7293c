/** Joins the processor's mode changes with the exit and the call path that led to them: the mode_switch event. */
import type { ModeChange } from '@tskvm/emulator';
import type { Kvm } from './kvm.ts';
import type { ModeSwitch, Tracer } from './trace.ts';

/** Changes that come with a world switch, after KVM has changed the guest's state. */
const WORLD_SWITCH = new Set(['vmentry', 'vmexit']);

/** Why a guest could switch by itself. */
function nativeReason(change: ModeChange): string {
  const bits = change.cr0.before !== change.cr0.after || change.cr4.before !== change.cr4.after;
  if (bits) return `${change.cause}: the guest owns the bit, no exit`;
  return `${change.cause}: neither a control register nor EFER changed, nothing to intercept`;
}

function describe(kvm: Kvm, tracer: Tracer, change: ModeChange): ModeSwitch {
  const vcpuId = kvm.runningVcpu?.vcpuId ?? -1;
  if (!WORLD_SWITCH.has(change.cause)) {
    return { ...change, vcpuId, exit: null, path: [], why: nativeReason(change) };
  }
  const setter = tracer.lastSetter;
  tracer.lastSetter = null;
  return { ...change, vcpuId, exit: setter?.exit ?? tracer.lastExit, path: setter?.path ?? [], why: null };
}

/** Is it a switch of the guest's mode, rather than the processor's going to and fro between host and guest. */
const isGuestSwitch = (last: ModeChange['to'] | null, change: ModeChange): boolean =>
  change.to.guest &&
  last !== null &&
  (last.name !== change.to.name ||
    last.paging !== change.to.paging ||
    last.smm !== change.to.smm ||
    last.nested !== change.to.nested);

/**
 * Reports switches of guests. The processor sees host → guest → host at every exit; what counts is the guest's mode at one entry against
 * its mode at the last exit.
 */
export function joinModeChanges(kvm: Kvm, tracer: Tracer): void {
  const lastOf = new Map<number, ModeChange>();
  kvm.processor.onModeChange = (change) => {
    const id = kvm.runningVcpu?.vcpuId ?? -1;
    if (change.from.guest && !change.to.guest) {
      // An exit: `from` is the guest's mode, `before` its control registers.
      lastOf.set(id, {
        ...change,
        to: change.from,
        cr0: { before: 0n, after: change.cr0.before },
        cr4: { before: 0n, after: change.cr4.before },
        efer: { before: 0n, after: change.efer.before },
      });
      return;
    }
    const last = lastOf.get(id);
    if (!change.to.guest) return;
    if (change.from.guest) {
      tracer.emit('mode_switch', describe(kvm, tracer, change));
      return;
    }
    if (last && isGuestSwitch(last.to, change)) {
      tracer.emit(
        'mode_switch',
        describe(kvm, tracer, {
          ...change,
          from: last.to,
          cr0: { before: last.cr0.after, after: change.cr0.after },
          cr4: { before: last.cr4.after, after: change.cr4.after },
          efer: { before: last.efer.after, after: change.efer.after },
        }),
      );
    }
  };
}
