/** struct kvm: one virtual machine. KVM: virt/kvm/kvm_main.c and kvm_arch_vm_ioctl. */
import { PAGE } from '@tskvm/emulator';
import { KvmError } from './diagnostics.ts';
import { type Irqchip, kvmCreateIrqchip, kvmCreatePit2, kvmSetMsi, type RoutingEntry } from './irqchip.ts';
import type { Kvm } from './kvm.ts';
import {
  type Backing,
  kvmGetDirtyLog,
  kvmSetMemoryRegion,
  type MemoryRegion,
  type Memslot,
  memslotGenerationWrapped,
  USER_MEM_SLOTS,
} from './memslots.ts';
import { kvmMmuZapAll, type MmuVm, newMmuVm } from './mmu/mmu.ts';
import { runVm } from './run-vm.ts';
import { integer, oneOf, optional, requireShape, struct, u32, u64, uint } from './shape.ts';
import { loadVm, saveVm, type VmSave } from './snapshot.ts';
import { ROUTING } from './state-shapes.ts';
import type { KvmExit } from './types.ts';
import { Errno } from './types.ts';
import type { RunOptions, Vcpu } from './vcpu.ts';
import { kvmArchVcpuCreate } from './vcpu-create.ts';

export type { Backing, MemoryRegion, Memslot } from './memslots.ts';

export interface VmOptions {
  /** `sev-es`: registers live in an encrypted save area (SVM only). */
  type?: 'default' | 'sev-es';
  /** Ticks that a vCPU runs in {@link Vm.run} before the next gets its turn (default 20,000). */
  quantum?: number;
}

const VM_OPTIONS = struct({ type: optional(oneOf('default', 'sev-es')), quantum: optional(integer(1, 2 ** 31 - 1)) });
const DEFAULT_QUANTUM = 20000;
const LEVEL = oneOf(0, 1, true, false);
/** Source of lines that user space drives (KVM_USERSPACE_IRQ_SOURCE_ID). */
const USERSPACE_IRQ_SOURCE = 0;
/** MMIO generations are 19 bits wide (facts: MMIO SPTEs). */
export const MMIO_GENERATION_MASK = 0x7ffff;

function checkRange(gpa: number, length: number): void {
  if (Number.isSafeInteger(gpa) && gpa >= 0 && Number.isSafeInteger(length) && length >= 0) return;
  throw new KvmError(
    'GUEST_RANGE',
    Errno.EINVAL,
    `guest range ${String(gpa)} (+${String(length)}): address and length are integers from 0`,
  );
}

export class Vm {
  readonly vcpus: Vcpu[] = [];
  /** Sorted by address space and base. */
  readonly memslots: Memslot[] = [];
  /** Counts changes of the slots; MMIO SPTEs and caches of an older generation are stale. */
  generation = 0;
  /** The vendor's part. */
  vendor: unknown = null;
  readonly vmType: 'default' | 'sev-es';
  readonly quantum: number;
  /** KVM_REQ_VM_DEAD: an internal inconsistency was met. */
  bugged = false;
  /** PIC, IOAPIC and PIT in the kernel, null before createIrqchip. */
  irqchip: Irqchip | null = null;
  /** KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR (VMX without unrestricted guest). */
  tssAddr = 0;
  identityMapAddr = 0xfffbc000;
  /** Quirk bits that user space switched off (KVM_CAP_DISABLE_QUIRKS2). */
  disabledQuirks = 0;
  /** The tables of this VM. */
  readonly mmu: MmuVm = newMmuVm();
  /** vcpuId of the boot processor. */
  bspVcpuId = 0;
  /** Round-robin position of `run`. */
  nextVcpu = 0;
  #lastSlot: Memslot | undefined;
  readonly #backings: Backing[] = [];
  /** Tick of the next timer event as last computed, the tick from which timers are asked, and whether one has moved since. */
  #nextTimer = Number.POSITIVE_INFINITY;
  #timersDue = -1;
  #timersStale = true;

  /** Use {@link Kvm.createVm}. */
  constructor(
    readonly kvm: Kvm,
    options: VmOptions = {},
  ) {
    requireShape('VM_OPTIONS', Errno.EINVAL, 'KVM_CREATE_VM: ', options, 'options', VM_OPTIONS);
    this.vmType = options.type ?? 'default';
    this.quantum = options.quantum ?? DEFAULT_QUANTUM;
  }
  /** In-kernel PIC, IOAPIC and local APICs exist (KVM_CREATE_IRQCHIP). */
  get irqchipInKernel(): boolean {
    return this.irqchip !== null;
  }

  /** KVM_SET_USER_MEMORY_REGION; see {@link kvmSetMemoryRegion} for the refusals. */
  setUserMemoryRegion(region: MemoryRegion): void {
    if (typeof region?.slot === 'number' && (region.slot & 0xffff) >= USER_MEM_SLOTS) {
      throw new KvmError('MEMSLOT_ID', Errno.EINVAL, `slot id ${region.slot & 0xffff} is above ${USER_MEM_SLOTS - 1}`);
    }
    kvmSetMemoryRegion(this, region);
  }
  /** The same for private slots of the vendor, ids from {@link USER_MEM_SLOTS}. KVM: __x86_set_memory_region. */
  setMemoryRegion(region: MemoryRegion): void {
    kvmSetMemoryRegion(this, region);
  }
  /** Host frames that slots can share. */
  allocBacking(bytes: number): Backing {
    requireShape('BACKING_SIZE', Errno.EINVAL, 'allocBacking: ', bytes, 'bytes', uint(40));
    const backing = { frames: this.kvm.hostMemory.allocGuestFrames(Math.ceil(bytes / PAGE)) };
    this.#backings.push(backing);
    return backing;
  }
  /** @internal The VM ends: frames that were handed out go back. */
  releaseMemory(): void {
    for (const slot of [...this.memslots]) {
      this.setMemoryRegion({ slot: slot.id | (slot.addressSpace << 16), guestPhysAddr: 0, memorySize: 0 });
    }
    kvmMmuZapAll(this);
    for (const { frames } of this.#backings) for (const frame of frames) this.kvm.hostMemory.freeFrame(frame);
    this.#backings.length = 0;
  }
  /** KVM_GET_DIRTY_LOG: bit n stands for page n. Throws KvmError DIRTY_LOG_SLOT, DIRTY_LOG (EINVAL). */
  getDirtyLog(slot: number): Uint32Array {
    return kvmGetDirtyLog(this, slot);
  }
  /** @internal The slots changed. */
  memslotsChanged(): void {
    this.#lastSlot = undefined;
    this.generation++;
    if ((this.generation & MMIO_GENERATION_MASK) === 0) memslotGenerationWrapped(this);
  }

  /** Address space in which a vCPU looks: SMM's has its own slots only if user space made some. */
  addressSpace(smm: boolean): 0 | 1 {
    return smm && this.memslots.some((slot) => slot.addressSpace === 1) ? 1 : 0;
  }
  /** Slot of a guest frame, undefined: MMIO. `smm`: look in SMM's address space. KVM: kvm_vcpu_gfn_to_memslot. */
  gfnToMemslot(gfn: number, smm = false): Memslot | undefined {
    const space = this.addressSpace(smm);
    const last = this.#lastSlot;
    if (last && last.addressSpace === space && gfn >= last.baseGfn && gfn < last.baseGfn + last.npages) return last;
    const found = this.#findSlot(gfn, space);
    if (found) this.#lastSlot = found;
    return found;
  }
  #findSlot(gfn: number, space: number): Memslot | undefined {
    for (const slot of this.memslots) {
      if (slot.addressSpace === space && gfn >= slot.baseGfn && gfn < slot.baseGfn + slot.npages) return slot;
    }
    return undefined;
  }
  /** Host page frame number of a guest one, -1 without a slot. */
  gfnToHfn(gfn: number, smm = false): number {
    const slot = this.gfnToMemslot(gfn, smm);
    return slot ? slot.frames[gfn - slot.baseGfn] : -1;
  }
  /** Host physical address of a guest one, -1 without a slot. */
  gpaToHpa(gpa: number, smm = false): number {
    const hfn = this.gfnToHfn(Math.floor(gpa / PAGE), smm);
    return hfn < 0 ? -1 : hfn * PAGE + (gpa % PAGE);
  }
  /** Is the whole range backed by slots. */
  hasMemory(gpa: number, length: number, smm = false): boolean {
    if (length <= 0) return true;
    for (let gfn = Math.floor(gpa / PAGE); gfn <= Math.floor((gpa + length - 1) / PAGE); gfn++) {
      if (!this.gfnToMemslot(gfn, smm)) return false;
    }
    return true;
  }
  /** Is the whole range writable memory (backed, not read-only). */
  isWritable(gpa: number, length: number, smm = false): boolean {
    for (let gfn = Math.floor(gpa / PAGE); gfn <= Math.floor((gpa + length - 1) / PAGE); gfn++) {
      const slot = this.gfnToMemslot(gfn, smm);
      if (!slot || slot.readonly) return false;
    }
    return true;
  }

  /** Calls `each` with the host address of every piece of a guest range. Throws KvmError GUEST_MEMORY (EFAULT). */
  #pieces(gpa: number, length: number, smm: boolean, each: (hpa: number, at: number, length: number) => void): void {
    checkRange(gpa, length);
    for (let at = 0; at < length; ) {
      const address = gpa + at;
      const hpa = this.gpaToHpa(address, smm);
      if (hpa < 0) {
        throw new KvmError('GUEST_MEMORY', Errno.EFAULT, `guest address 0x${address.toString(16)} has no memory slot`);
      }
      const piece = Math.min(length - at, PAGE - (address % PAGE));
      each(hpa, at, piece);
      at += piece;
    }
  }
  /** Reads guest physical memory through the slots (a copy). Throws KvmError GUEST_RANGE (EINVAL), GUEST_MEMORY (EFAULT). */
  readGuest(gpa: number, length: number, smm = false): Uint8Array {
    // A length that no memory can have must not be allocated before the slots are asked.
    checkRange(gpa, length);
    if (length > PAGE) this.#pieces(gpa, length, smm, () => {});
    const out = new Uint8Array(length);
    this.#pieces(gpa, length, smm, (hpa, at, piece) => out.set(this.kvm.memory.readBytes(hpa, piece), at));
    return out;
  }
  /** Writes guest physical memory: marks it dirty and tells the processor. Ignores READONLY (as the host's own store would). */
  writeGuest(gpa: number, bytes: Uint8Array, smm = false): void {
    if (!(bytes instanceof Uint8Array))
      throw new KvmError('GUEST_BYTES', Errno.EINVAL, 'writeGuest: give a Uint8Array');
    this.#pieces(gpa, bytes.length, smm, (hpa, at, piece) => {
      this.kvm.memory.writeBytes(hpa, bytes.subarray(at, at + piece));
      this.markPageDirty(Math.floor((gpa + at) / PAGE), smm);
    });
  }
  /** Little-endian value of 1, 2, 4 or 8 bytes inside one page. */
  readGuestValue(gpa: number, size: number, smm = false): bigint {
    const bytes = this.readGuest(gpa, size, smm);
    let value = 0n;
    for (let i = size - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[i]);
    return value;
  }
  writeGuestValue(gpa: number, value: bigint, size: number, smm = false): void {
    const bytes = new Uint8Array(size);
    for (let i = 0; i < size; i++) bytes[i] = Number((value >> BigInt(8 * i)) & 0xffn);
    this.writeGuest(gpa, bytes, smm);
  }
  /** KVM: mark_page_dirty. */
  markPageDirty(gfn: number, smm = false): void {
    const slot = this.gfnToMemslot(gfn, smm);
    if (slot?.dirtyBitmap) slot.dirtyBitmap[(gfn - slot.baseGfn) >>> 5] |= 1 << ((gfn - slot.baseGfn) & 31);
  }

  /** KVM_CREATE_VCPU. Throws KvmError VCPU_ID (EEXIST, EINVAL) and what the vendor refuses. */
  createVcpu(id: number): Vcpu {
    return kvmArchVcpuCreate(this, id);
  }
  /** KVM_CREATE_IRQCHIP: PIC, IOAPIC and (for vCPUs made afterwards) local APICs. Throws KvmError EEXIST, EINVAL. */
  createIrqchip(): void {
    kvmCreateIrqchip(this);
  }
  /** KVM_CREATE_PIT2. */
  createPit2(): void {
    kvmCreatePit2(this);
  }
  /** Drives an interrupt line (KVM_IRQ_LINE). Throws KvmError IRQCHIP_MISSING. */
  setIrqLine(gsi: number, level: boolean | number): void {
    requireShape('IRQ_LINE', Errno.EINVAL, 'KVM_IRQ_LINE: ', gsi, 'gsi', u32);
    requireShape('IRQ_LINE', Errno.EINVAL, 'KVM_IRQ_LINE: ', level, 'level', LEVEL);
    this.#needIrqchip().setIrq(gsi, level === true || level === 1, USERSPACE_IRQ_SOURCE);
  }
  /** KVM_SET_GSI_ROUTING. */
  setGsiRouting(entries: readonly RoutingEntry[]): void {
    requireShape('GSI_ROUTING', Errno.EINVAL, 'KVM_SET_GSI_ROUTING: ', entries, 'entries', ROUTING);
    this.#needIrqchip().setRouting(entries);
  }
  /** KVM_SIGNAL_MSI. @returns whether some APIC took it */
  signalMsi(address: bigint, data: number): boolean {
    requireShape('MSI', Errno.EINVAL, 'KVM_SIGNAL_MSI: ', address, 'address', u64);
    requireShape('MSI', Errno.EINVAL, 'KVM_SIGNAL_MSI: ', data, 'data', u32);
    this.#needIrqchip();
    return kvmSetMsi(this, address, data);
  }
  #needIrqchip(): Irqchip {
    if (!this.irqchip) throw new KvmError('IRQCHIP_MISSING', Errno.EINVAL, 'createIrqchip() comes first');
    return this.irqchip;
  }
  /** @internal An interrupt was acknowledged (EOI): the PIT may send its next. */
  irqAcknowledged(line: number): void {
    if (line === 0) this.irqchip?.pit?.acknowledge();
  }
  /** Tick of the next timer event of any device in the kernel, Infinity for none. */
  nextTimer(): number {
    if (this.#timersStale) this.#findNextTimer();
    return this.#nextTimer;
  }
  #findNextTimer(): void {
    let next = this.irqchip?.pit?.nextDeadline() ?? Number.POSITIVE_INFINITY;
    for (const vcpu of this.vcpus) next = Math.min(next, vcpu.arch.apic?.timer.deadline ?? Number.POSITIVE_INFINITY);
    this.#nextTimer = next;
    // A time that was rounded must not be passed over: the timers themselves look closely.
    this.#timersDue = Math.floor(next);
    this.#timersStale = false;
  }
  /** @internal A timer was armed, moved or stopped. */
  timersChanged(): void {
    this.#timersStale = true;
    this.#timersDue = -1;
  }
  /** @internal Since `nextTimer` was last asked. */
  get timersMoved(): boolean {
    return this.#timersStale;
  }
  /** @internal Would `runTimers` have to look at tick `tick`? */
  timersDueAt(tick: number): boolean {
    return tick >= this.#timersDue;
  }
  /** Fires the timers that are due. */
  runTimers(): void {
    if (this.kvm.processor.tick >= this.#timersDue) this.#fireTimers();
  }
  #fireTimers(): void {
    this.irqchip?.pit?.run();
    for (const vcpu of this.vcpus) vcpu.arch.apic?.timer.run();
    this.#findNextTimer();
  }

  /** KVM_SET_TSS_ADDR: three pages below 4 GiB for VMX's real-mode TSS. */
  setTssAddr(address: number): void {
    requireShape('TSS_ADDR', Errno.EINVAL, 'KVM_SET_TSS_ADDR: ', address, 'address', u32);
    if (address > 0xffffffff - 3 * PAGE) {
      throw new KvmError('TSS_ADDR', Errno.EINVAL, 'the TSS pages must lie below 4 GiB');
    }
    const err = this.kvm.calls.setTssAddr(this, address);
    if (err < 0) throw new KvmError('TSS_ADDR', -err, `the vendor refused the TSS address (-${-err})`);
  }
  /** KVM_SET_IDENTITY_MAP_ADDR; before any vCPU. */
  setIdentityMapAddr(address: number): void {
    requireShape('IDENTITY_MAP_ADDR', Errno.EINVAL, 'KVM_SET_IDENTITY_MAP_ADDR: ', address, 'address', u32);
    if (this.vcpus.length > 0) {
      throw new KvmError('IDENTITY_MAP_ADDR', Errno.EINVAL, 'set the identity map address before creating vCPUs');
    }
    this.kvm.calls.setIdentityMapAddr(this, address);
  }
  /**
   * Runs the vCPUs in turn, a fixed quantum each, until one of them needs the caller or the budget (ticks) is used up.
   * `idle`: all are halted; nothing happens before `idleUntil` (move the clock with `kvm.warpTo`).
   */
  run(options: RunOptions = {}): { vcpu: Vcpu; exit: KvmExit } {
    return runVm(this, options);
  }
  /** State as a plain, versioned object: vCPUs, irqchip, memory. */
  save(): VmSave {
    return saveVm(this);
  }
  load(saved: VmSave): void {
    loadVm(this, saved);
  }

  /** Ends the VM and gives its memory back. */
  destroy(): void {
    this.kvm.destroyVm(this);
  }
}
