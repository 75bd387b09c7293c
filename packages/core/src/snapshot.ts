/** save() and load() of vCPUs and VMs: KVM's migration order, as plain versioned objects. */
import { type CpuModel, PAGE, type SavedSession } from '@tskvm/emulator';
import { KvmError } from './diagnostics.ts';
import type { MmioAccess } from './emulate-memory.ts';
import type { PioAnswer } from './emulate-ops.ts';
import { getFpu, kvmReadPkru, kvmWritePkru, setFpu } from './fpu.ts';
import { emulateCtxt } from './kvm-emulate.ts';
import type { Memslot } from './memslots.ts';
import { kvmMmuResetContext } from './mmu/mmu.ts';
import { requireShape } from './shape.ts';
import { VCPU_STATE, VM_STATE } from './state-shapes.ts';
import { Errno, type KvmExit, type MpState, type Req } from './types.ts';
import { hasUserspaceIoCompletion } from './userspace-io.ts';
import type { CpuidEntry, UserspaceCompletion, Vcpu } from './vcpu.ts';
import type { KvmDebugregs, KvmRegs, KvmSregs2, KvmVcpuEvents } from './vcpu-state.ts';
import type { Vm } from './vm.ts';
import { vcpuLoad } from './x86.ts';

/** MSRs that a snapshot carries (those that exist for the guest), in the order in which they are written back. */
const SAVED_MSRS = [
  0x10, 0x3b, 0x48, 0x6e1, 0x174, 0x175, 0x176, 0x1a0, 0x1d9, 0x277, 0x2ff, 0x9e, 0xda0, 0xc0000081, 0xc0000082,
  0xc0000083, 0xc0000084, 0xc0000102, 0xc0000103, 0x6e0, 0x12, 0x11, 0x4b564d00, 0x4b564d01, 0xc0010117,
];

/** The processor below: guests see more of it than their CPUID says (MSRs, address widths, what an entry accepts). */
export interface SavedProcessor {
  model: string;
  vendor: CpuModel['vendor'];
  /** Checksum of its CPUID leaves. */
  cpuid: number;
}

export interface VcpuSave {
  version: 1;
  vcpuId: number;
  processor: SavedProcessor;
  cpuid: CpuidEntry[];
  regs: KvmRegs;
  sregs: KvmSregs2;
  events: KvmVcpuEvents;
  debugregs: KvmDebugregs;
  mpState: MpState;
  xcr0: bigint;
  pkru: number;
  fpu: Uint8Array;
  msrs: [number, bigint][];
  stored: [number, bigint][];
  lapic: unknown;
  pendingApicEvents: number;
  nested: unknown;
  requests: Req[];
  exit: KvmExit;
  completion: UserspaceCompletion | null;
  pio: { port: number; in: boolean; size: number; count: number };
  session: SavedSession;
  tscOffset: bigint;
  /** What REP INS has read ahead and not stored yet. */
  input: PioAnswer | null;
  /** Vector of KVM_INTERRUPT that no entry has taken yet, -1: none. */
  externalVector: number;
  /** Entries in a row that retired nothing: from some number on they take ticks. */
  progress: { tick: number; fruitless: number };
}

const checksums = new WeakMap<CpuModel, number>();
function checksumOf({ cpuid }: CpuModel): number {
  let sum = 0x811c9dc5;
  for (const key of Object.keys(cpuid).sort()) {
    const text = `${key}:${cpuid[key].map((word) => word >>> 0).join()};`;
    for (let i = 0; i < text.length; i++) sum = Math.imul(sum ^ text.charCodeAt(i), 0x01000193) >>> 0;
  }
  return sum;
}
function processorOf(model: CpuModel): SavedProcessor {
  let cpuid = checksums.get(model);
  if (cpuid === undefined) checksums.set(model, (cpuid = checksumOf(model)));
  return { model: model.name, vendor: model.vendor, cpuid };
}

/** KVM_GET_* in one object. Throws KvmError PROTECTED_STATE for a guest whose registers are encrypted. */
export function saveVcpu(vcpu: Vcpu): VcpuSave {
  const { arch } = vcpu;
  vcpuLoad(vcpu);
  const msrs: [number, bigint][] = [];
  for (const index of SAVED_MSRS) {
    const value = vcpu.getMsr(index);
    if (value !== undefined) msrs.push([index, value]);
  }
  return {
    version: 1,
    vcpuId: vcpu.vcpuId,
    processor: processorOf(vcpu.kvm.model),
    cpuid: vcpu.getCpuid(),
    regs: vcpu.getRegs(),
    sregs: vcpu.getSregs2(),
    events: vcpu.getVcpuEvents(),
    debugregs: vcpu.getDebugregs(),
    mpState: arch.mpState,
    xcr0: arch.xcr0,
    pkru: kvmReadPkru(vcpu),
    fpu: getFpu(vcpu),
    msrs,
    stored: [...arch.msrs],
    lapic: arch.apic?.save() ?? null,
    pendingApicEvents: arch.pendingApicEvents,
    nested: vcpu.kvm.calls.getNestedState(vcpu),
    requests: [...vcpu.requests] as Req[],
    exit: structuredClone(vcpu.exit),
    completion: movable(arch.completeUserspaceIo),
    pio: { ...arch.pio },
    session: emulateCtxt(vcpu).evaluator.context.session.save(),
    tscOffset: arch.tscOffset,
    input: emulateCtxt(vcpu).ops.answer,
    externalVector: arch.pendingExternalVector,
    progress: { ...vcpu.progress },
  };
}

/** A fast port access ends by a skip whose length only the vendor's control block knows: elsewhere it is decoded. */
function movable(completion: UserspaceCompletion | null): UserspaceCompletion | null {
  const copy = structuredClone(completion);
  if (copy?.kind.startsWith('fastPio')) (copy.data as { decode?: boolean }).decode = true;
  return copy;
}

/** Does the answer that a completion waits for fit its exit. */
function checkCompletion({ completion, exit, pio }: VcpuSave): void {
  if (!completion) return;
  const { kind } = completion;
  const input = kind === 'emulatedPio' || kind === 'fastPioIn';
  const io = exit.reason === 'io' && exit.size === pio.size && exit.data.length === exit.size * exit.count;
  const mmio =
    exit.reason === 'mmio' && (completion.data as MmioAccess).at < (completion.data as MmioAccess).fragments?.length;
  if (hasUserspaceIoCompletion(kind) && (!input || io) && (kind !== 'emulatedMmio' || mmio)) return;
  refuseState(`its pending work '${kind}' does not belong to its exit '${exit.reason}'`);
}
const refuseState = (why: string): never => {
  throw new KvmError('VCPU_STATE', Errno.EINVAL, `the saved vCPU can't be loaded: ${why}; save it anew`);
};

function checkProcessor(saved: SavedProcessor, here: SavedProcessor): void {
  const name = ({ model, vendor }: SavedProcessor): string => `${model} (${vendor === 'amd' ? 'AMD' : 'Intel'})`;
  if (saved.vendor !== here.vendor || saved.model !== here.model)
    refuseState(`it ran on the processor ${name(saved)}, and this one is ${name(here)}`);
  if (saved.cpuid !== here.cpuid) refuseState(`it ran on a processor ${name(saved)} with other features`);
}

/** What can be said about a saved vCPU before anything changes. */
function checkVcpuSave(vcpu: Vcpu, saved: VcpuSave): void {
  requireShape('VCPU_STATE', Errno.EINVAL, 'the saved vCPU is damaged or foreign: ', saved, 'state', VCPU_STATE);
  if (saved.vcpuId !== vcpu.vcpuId) refuseState(`it is vCPU ${saved.vcpuId}, this one ${vcpu.vcpuId}`);
  checkProcessor(saved.processor, processorOf(vcpu.kvm.model));
  if ((saved.lapic === null) !== (vcpu.arch.apic === null)) refuseState('one of the two has no local APIC');
  checkCompletion(saved);
  const { input } = saved;
  const fits = input === null || (input.data.length % input.size === 0 && input.at % input.size === 0);
  if (!fits || (input !== null && input.at >= input.data.length))
    refuseState('its input does not consist of whole elements');
}

/**
 * Puts it back, in the order that user space uses (CPUID first, events last).
 * Throws KvmError VCPU_STATE (EINVAL) before anything has changed, and what the setters refuse: the vCPU is then half loaded.
 */
export function loadVcpu(vcpu: Vcpu, saved: VcpuSave): void {
  checkVcpuSave(vcpu, saved);
  const { arch } = vcpu;
  vcpuLoad(vcpu);
  // What the vCPU was about goes; what the steps below ask for (flushes, a new root) stays.
  vcpu.requests.clear();
  arch.msrs.clear();
  vcpu.setCpuid(saved.cpuid);
  vcpu.setSregs2(saved.sregs);
  vcpu.setRegs(saved.regs);
  vcpu.setXcrs({ xcr0: saved.xcr0 });
  setFpu(vcpu, saved.fpu);
  kvmWritePkru(vcpu, saved.pkru);
  for (const [index, value] of saved.stored) arch.msrs.set(index, value);
  // A write of what is there already would leave traces of its own (kvmclock's updates).
  for (const [index, value] of saved.msrs) if (vcpu.getMsr(index) !== value) vcpu.setMsr(index, value);
  arch.tscOffset = saved.tscOffset;
  vcpu.kvm.calls.writeTscOffset(vcpu);
  if (arch.apic && saved.lapic) arch.apic.load(saved.lapic);
  arch.pendingApicEvents = saved.pendingApicEvents;
  arch.mpState = saved.mpState;
  vcpu.setDebugregs(saved.debugregs);
  if (saved.nested !== undefined && saved.nested !== null) vcpu.kvm.calls.setNestedState(vcpu, saved.nested);
  vcpu.setVcpuEvents(saved.events);
  kvmMmuResetContext(vcpu);
  for (const req of saved.requests) vcpu.requests.add(req);
  vcpu.exit = structuredClone(saved.exit);
  arch.completeUserspaceIo = structuredClone(saved.completion);
  Object.assign(arch.pio, saved.pio);
  arch.pendingExternalVector = saved.externalVector;
  Object.assign(vcpu.progress, saved.progress);
  emulateCtxt(vcpu).ops.answer = structuredClone(saved.input);
  emulateCtxt(vcpu).evaluator.context.session.load(saved.session);
}

export interface VmSave {
  version: 1;
  vcpus: VcpuSave[];
  irqchip: unknown;
  /** Contents of each slot, by id and address space. */
  memory: { id: number; addressSpace: number; bytes: Uint8Array }[];
  nextVcpu: number;
  disabledQuirks: number;
}

export function saveVm(vm: Vm): VmSave {
  return {
    version: 1,
    vcpus: vm.vcpus.map(saveVcpu),
    irqchip: vm.irqchip?.save() ?? null,
    memory: vm.memslots.map((slot) => ({
      id: slot.id,
      addressSpace: slot.addressSpace,
      bytes: vm.readGuest(slot.baseGfn * PAGE, slot.npages * PAGE, slot.addressSpace === 1),
    })),
    nextVcpu: vm.nextVcpu,
    disabledQuirks: vm.disabledQuirks,
  };
}

const slotOf = (vm: Vm, id: number, addressSpace: number): Memslot | undefined =>
  vm.memslots.find((slot) => slot.id === id && slot.addressSpace === addressSpace);

/** What can be said about a saved VM before anything changes. */
function checkVmSave(vm: Vm, saved: VmSave): void {
  requireShape('VM_STATE', Errno.EINVAL, 'the saved VM is damaged or foreign: ', saved, 'state', VM_STATE);
  const refuse = (what: string): never => {
    throw new KvmError('VM_STATE', Errno.EINVAL, `the saved VM has ${what}; create the VM as it was when saved`);
  };
  if (saved.vcpus.length !== vm.vcpus.length) refuse(`${saved.vcpus.length} vCPUs, this one ${vm.vcpus.length}`);
  saved.vcpus.forEach((state, i) => {
    checkVcpuSave(vm.vcpus[i], state);
  });
  if (saved.memory.length !== vm.memslots.length) refuse('other memory slots');
  for (const { id, addressSpace, bytes } of saved.memory) {
    if (slotOf(vm, id, addressSpace)?.npages !== bytes.length / PAGE) refuse(`another memory slot ${id}`);
  }
  if ((saved.irqchip === null) !== (vm.irqchip === null)) refuse(saved.irqchip ? 'an irqchip' : 'no irqchip');
}

/**
 * Into a VM with the same slots and vCPUs. Throws KvmError VM_STATE, VCPU_STATE (EINVAL) before anything has changed, and what the
 * vCPUs' setters refuse: the VM is then half loaded, and good for another load or for destroy.
 */
export function loadVm(vm: Vm, saved: VmSave): void {
  checkVmSave(vm, saved);
  for (const { id, addressSpace, bytes } of saved.memory) {
    const slot = slotOf(vm, id, addressSpace);
    if (slot) vm.writeGuest(slot.baseGfn * PAGE, bytes, addressSpace === 1);
  }
  vm.disabledQuirks = saved.disabledQuirks;
  saved.vcpus.forEach((state, i) => {
    loadVcpu(vm.vcpus[i], state);
  });
  if (saved.irqchip && vm.irqchip) vm.irqchip.load(saved.irqchip);
  vm.nextVcpu = saved.nextVcpu;
}
