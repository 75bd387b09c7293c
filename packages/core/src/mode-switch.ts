/** Joins the processor's mode changes with the exit and the call path that led to them: the mode_switch event. */
import { CR0, CR4, EFER, Flag, type ModeChange, type ModeName, PAGE, type ProcessorMode, Seg } from '@tskvm/emulator';
import type { Kvm } from './kvm.ts';
import { isGuestMode, isSmm, kvmRipRead } from './kvm-cache-regs.ts';
import type { LastExit, ModeSwitch, Tracer } from './trace.ts';
import type { Vcpu } from './vcpu.ts';

/** Cause of a switch that happened in KVM's emulator, with no entry of the guest in between. */
const EMULATION = 'emulation';
/** Changes that come with a world switch, after KVM has changed the guest's state. */
const WORLD_SWITCH = new Set(['vmentry', 'vmexit', EMULATION]);

const controlsChanged = (change: ModeChange): boolean =>
  change.cr0.before !== change.cr0.after || change.cr4.before !== change.cr4.after;

/** Why a guest could switch by itself. */
function nativeReason(change: ModeChange): string {
  if (controlsChanged(change)) return 'the guest owns the bit';
  return 'neither a control register nor EFER changed, nothing to intercept';
}

function describe(kvm: Kvm, tracer: Tracer, change: ModeChange): ModeSwitch {
  const vcpuId = kvm.runningVcpu?.vcpuId ?? -1;
  if (!WORLD_SWITCH.has(change.cause)) {
    return { ...change, vcpuId, exit: null, path: [], why: nativeReason(change) };
  }
  const setter = tracer.lastSetter;
  tracer.lastSetter = null;
  // Emulation without a setter (a far jump): the frames that are open now.
  const path = setter?.path ?? (change.cause === EMULATION ? tracer.stack.slice() : []);
  const event = EVENT_CAUSES.find(([frame]) => path.includes(frame));
  const exit = ownExit(setter?.exit ?? tracer.lastExit, vcpuId);
  if (event) return { ...change, cause: event[1], vcpuId, exit, path, why: null };
  if (change.cause === EMULATION) {
    const by = setter?.instruction ?? tracer.instruction;
    return { ...change, rip: by?.rip, bytes: by?.bytes, vcpuId, exit, path, why: null };
  }
  return { ...change, rip: setter?.instruction?.rip, bytes: setter?.instruction?.bytes, vcpuId, exit, path, why: null };
}

/** The exit as the event shows it; another vCPU's explains nothing. */
const ownExit = (exit: LastExit | null, vcpuId: number): ModeSwitch['exit'] =>
  exit === null || exit.vcpuId !== vcpuId ? null : { reason: exit.reason, name: exit.name };

/** Frames that say that an event changed the mode, not an instruction. */
const EVENT_CAUSES: readonly (readonly [string, string])[] = [
  ['enterSmm', 'SMI'],
  ['kvmVcpuReset', 'INIT'],
  ['setSregsCommon', 'KVM_SET_SREGS'],
];

/** Longest instruction. */
const MAX_INSTRUCTION = 15;

/** The bytes at CS:RIP, as many as can be read without a fault (up to 15), and their linear address. Without effect on the guest. */
export function peekInstruction(vcpu: Vcpu): { rip: bigint; bytes: Uint8Array } {
  const rip = vcpu.kvm.calls.getSegmentBase(vcpu, Seg.CS) + kvmRipRead(vcpu);
  // One translation a page: this runs at every exit while somebody traces.
  const bytes = new Uint8Array(MAX_INSTRUCTION);
  let length = 0;
  while (length < MAX_INSTRUCTION) {
    const at = rip + BigInt(length);
    const gpa = vcpu.translate(at);
    const piece = Math.min(MAX_INSTRUCTION - length, PAGE - Number(at & 0xfffn));
    if (gpa === undefined || !vcpu.vm.hasMemory(gpa, piece)) break;
    bytes.set(vcpu.vm.readGuest(gpa, piece), length);
    length += piece;
  }
  return { rip, bytes: bytes.subarray(0, length) };
}

/** Remembers the instruction that exited, for the switch that it may lead to. Only while somebody traces; without effect on the guest. */
export function noteInstruction(vcpu: Vcpu, tracer: Tracer): void {
  tracer.instruction = null;
  if (vcpu.arch.guestStateProtected || vcpu.arch.emulationRequired) return;
  tracer.instruction = peekInstruction(vcpu);
}

function releaseHeld(tracer: Tracer): void {
  const { held } = tracer;
  tracer.held = null;
  if (held !== null) tracer.emit('mode_switch', held);
}

/**
 * The exit behind a trapped write of a control register is being handled: the switch that the processor made is reported with that exit
 * and the path down to `setter`, which mirrors it.
 */
export function traceTrappedSwitch(vcpu: Vcpu, setter: string): void {
  const { tracer } = vcpu.kvm;
  if (tracer === null || tracer.held === null) return;
  const why = 'the processor checked and committed the write inside the VMSA; the trap behind it tells KVM';
  tracer.held = { ...tracer.held, exit: ownExit(tracer.lastExit, vcpu.vcpuId), path: [...tracer.stack, setter], why };
  releaseHeld(tracer);
}

/** Is it a switch of the guest's mode, rather than the processor's going to and fro between host and guest. */
const differs = (a: ProcessorMode, b: ProcessorMode): boolean =>
  a.name !== b.name || a.paging !== b.paging || a.smm !== b.smm || a.nested !== b.nested;

/** Control registers as the guest sees them. */
interface GuestView {
  cr0: bigint;
  cr4: bigint;
  efer: bigint;
}
const viewOf = (vcpu: Vcpu): GuestView => ({ cr0: vcpu.arch.cr0, cr4: vcpu.arch.cr4, efer: vcpu.arch.efer });
const pairs = (before: GuestView, after: GuestView): Pick<ModeChange, 'cr0' | 'cr4' | 'efer'> => ({
  cr0: { before: before.cr0, after: after.cr0 },
  cr4: { before: before.cr4, after: after.cr4 },
  efer: { before: before.efer, after: after.efer },
});

/** What is remembered of a guest between an exit and the next entry. */
interface Last {
  mode: ProcessorMode;
  view: GuestView;
}

/**
 * Reports switches of guests. The processor compares with whoever ran last; here each vCPU is compared with itself, so that a change of
 * vCPU is no switch. Control registers are the guest's view: the hardware's differ in bits that KVM forces.
 */
export function joinModeChanges(kvm: Kvm, tracer: Tracer): void {
  const lastOf = lastModes(tracer);
  kvm.processor.onModeChange = (change) => {
    const vcpu = kvm.runningVcpu;
    if (!vcpu || !change.to.guest) return;
    // Listeners may come while a guest runs: then the processor's own memory must do.
    const last = lastOf.get(vcpu) ?? (change.from.guest ? { mode: change.from, view: viewOf(vcpu) } : undefined);
    const native = !WORLD_SWITCH.has(change.cause);
    const view = native ? nativeView(last?.view ?? viewOf(vcpu), change) : viewOf(vcpu);
    // The guest's SMM is KVM's business: the processor knows only its own.
    const to = { ...change.to, smm: isSmm(vcpu) };
    lastOf.set(vcpu, { mode: to, view });
    if (!last || !differs(last.mode, to)) return;
    const event = describe(kvm, tracer, { ...change, from: last.mode, to, ...pairs(last.view, view) });
    releaseHeld(tracer);
    // The trap behind a protected guest's write says who mirrors it: `traceTrappedSwitch` reports it with that exit.
    if (native && vcpu.arch.guestStateProtected && controlsChanged(change)) tracer.held = event;
    else tracer.emit('mode_switch', event);
  };
}

const memories = new WeakMap<Tracer, WeakMap<Vcpu, Last>>();
/** What a tracer remembers of each vCPU. */
function lastModes(tracer: Tracer): WeakMap<Vcpu, Last> {
  let memory = memories.get(tracer);
  if (!memory) memories.set(tracer, (memory = new WeakMap()));
  return memory;
}

/** The mode that KVM's own view of the guest makes. */
function guestMode(vcpu: Vcpu): ProcessorMode {
  const { cr0, cr4, efer } = vcpu.arch;
  const long = (efer & EFER.LMA) !== 0n;
  const levels = (cr4 & CR4.LA57) !== 0n ? '5-level' : '4-level';
  const paged = long ? levels : (cr4 & CR4.PAE) !== 0n ? 'PAE' : '32-bit';
  return {
    name: guestModeName(vcpu, long),
    paging: (cr0 & CR0.PG) === 0n ? 'off' : paged,
    smm: isSmm(vcpu),
    guest: true,
    nested: isGuestMode(vcpu),
  };
}
const DATA_AND_CODE = [Seg.ES, Seg.CS, Seg.SS, Seg.DS, Seg.FS, Seg.GS] as const;
function guestModeName(vcpu: Vcpu, long: boolean): ModeName {
  const { calls } = vcpu.kvm;
  if ((vcpu.arch.cr0 & CR0.PE) === 0n) {
    return DATA_AND_CODE.some((seg) => calls.getSegment(vcpu, seg).limit > 0xffff) ? 'unreal' : 'real';
  }
  if ((calls.getRflags(vcpu) & BigInt(Flag.VM)) !== 0n) return 'virtual8086';
  const { db, l } = calls.getCsDbLBits(vcpu);
  if (long) return l ? 'long' : db ? 'compatibility32' : 'compatibility16';
  return db ? 'protected32' : 'protected16';
}

/**
 * Reports a switch of a guest that KVM emulates instruction by instruction (VMX without unrestricted guest): the processor does not see
 * it before the next entry, which may be many switches away. Without effect when nobody traces.
 */
export function noteEmulatedSwitch(vcpu: Vcpu): void {
  const { tracer } = vcpu.kvm;
  if (tracer === null) return;
  const lastOf = lastModes(tracer);
  const last = lastOf.get(vcpu);
  const to = guestMode(vcpu);
  const view = viewOf(vcpu);
  lastOf.set(vcpu, { mode: to, view });
  if (!last || !differs(last.mode, to)) return;
  const change = { tick: vcpu.kvm.now(), from: last.mode, to, cause: EMULATION, rip: undefined, bytes: undefined };
  tracer.emit('mode_switch', describe(vcpu.kvm, tracer, { ...change, ...pairs(last.view, view) }));
}

/** The bits that the guest changed by itself, on top of its view before. */
function nativeView(before: GuestView, change: ModeChange): GuestView {
  const apply = (old: bigint, pair: { before: bigint; after: bigint }): bigint => old ^ pair.before ^ pair.after;
  return {
    cr0: apply(before.cr0, change.cr0),
    cr4: apply(before.cr4, change.cr4),
    efer: apply(before.efer, change.efer),
  };
}
