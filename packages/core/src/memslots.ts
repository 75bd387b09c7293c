/** Memory slots: which guest frames exist and which host frames stand behind them. KVM: virt/kvm/kvm_main.c (__kvm_set_memory_region). */
import { PAGE } from '@tskvm/emulator';
import { KvmError } from './diagnostics.ts';
import { kvmArchFlushShadowMemslot, kvmMmuSlotWriteProtect, kvmMmuZapAll } from './mmu/mmu.ts';
import { anyNumber, optional, requireShape, struct, u32, words } from './shape.ts';
import { Errno } from './types.ts';
import type { Vm } from './vm.ts';

/** KVM_USER_MEM_SLOTS; private slots of the vendor lie above. */
export const USER_MEM_SLOTS = 32764;
export const MEM_LOG_DIRTY_PAGES = 1;
export const MEM_READONLY = 2;
/** Flags that exist: LOG_DIRTY_PAGES 1, READONLY 2. */
const KNOWN_FLAGS = MEM_LOG_DIRTY_PAGES | MEM_READONLY;

/** struct kvm_memory_slot: guest frames mapped onto host frames (which need not be contiguous). */
export interface Memslot {
  id: number;
  addressSpace: 0 | 1;
  baseGfn: number;
  npages: number;
  readonly: boolean;
  logDirty: boolean;
  dirtyBitmap: Uint32Array | null;
  /** Host page frame number of each guest page. */
  frames: Uint32Array;
  /** The frames were made for this slot and go with it. */
  ownsFrames: boolean;
}

/** What stands behind a slot: host frames that slots may share (an alias shows the same bytes twice). */
export interface Backing {
  readonly frames: Uint32Array;
}

/** struct kvm_userspace_memory_region; the host address is a backing and an offset into it. */
export interface MemoryRegion {
  /** Id in bits 15:0, address space (1: SMM's view) in bits 31:16. */
  slot: number;
  flags?: number;
  guestPhysAddr: number;
  /** Bytes; 0 deletes the slot. */
  memorySize: number;
  /** Default: fresh zeroed memory. */
  backing?: Backing;
  /** Offset into the backing in bytes (default 0). */
  offset?: number;
}

const refuse = (code: string, errno: number, message: string): never => {
  throw new KvmError(code, errno, message);
};
const hex = (n: number): string => `0x${n.toString(16)}`;

const REGION = struct({
  slot: u32,
  flags: optional(u32),
  guestPhysAddr: anyNumber,
  memorySize: anyNumber,
  offset: optional(anyNumber),
  backing: optional(struct({ frames: words() })),
});

function checkRegion(region: MemoryRegion): void {
  requireShape('MEMSLOT_FIELD', Errno.EINVAL, 'KVM_SET_USER_MEMORY_REGION: ', region, 'region', REGION);
  const { slot, flags = 0, guestPhysAddr, memorySize, offset = 0 } = region;
  const id = slot & 0xffff;
  if (slot >>> 16 > 1) refuse('MEMSLOT_SPACE', Errno.EINVAL, `slot ${hex(slot)}: address space is 0 or 1`);
  if (id >= USER_MEM_SLOTS + 3) refuse('MEMSLOT_ID', Errno.EINVAL, `slot id ${id} is above ${USER_MEM_SLOTS - 1}`);
  if ((flags & ~KNOWN_FLAGS) !== 0) {
    refuse('MEMSLOT_FLAGS', Errno.EINVAL, `slot flags ${hex(flags)}: only LOG_DIRTY_PAGES (1) and READONLY (2) exist`);
  }
  for (const [what, value] of [
    ['guestPhysAddr', guestPhysAddr],
    ['memorySize', memorySize],
    ['offset', offset],
  ] as const) {
    if (!Number.isSafeInteger(value) || value < 0 || value % PAGE !== 0) {
      refuse('MEMSLOT_ALIGNMENT', Errno.EINVAL, `slot ${what} ${hex(value)} is not a multiple of 4096`);
    }
  }
  if (guestPhysAddr + memorySize > 2 ** 52) {
    refuse('MEMSLOT_RANGE', Errno.EINVAL, `slot ends above 2^52`);
  }
}

const overlaps = (slot: Memslot, space: number, base: number, npages: number): boolean =>
  slot.addressSpace === space && base < slot.baseGfn + slot.npages && slot.baseGfn < base + npages;

function checkOverlap(vm: Vm, region: MemoryRegion, self: Memslot | undefined): void {
  const base = region.guestPhysAddr / PAGE;
  const npages = region.memorySize / PAGE;
  const hit = vm.memslots.find((slot) => slot !== self && overlaps(slot, region.slot >>> 16, base, npages));
  if (hit) {
    refuse(
      'MEMSLOT_OVERLAP',
      Errno.EEXIST,
      `slot ${region.slot & 0xffff} at ${hex(region.guestPhysAddr)} overlaps slot ${hit.id} at ${hex(hit.baseGfn * PAGE)}; move or shrink one`,
    );
  }
}

function framesOf(vm: Vm, region: MemoryRegion): Uint32Array {
  const npages = region.memorySize / PAGE;
  if (!region.backing) return vm.kvm.hostMemory.allocGuestFrames(npages);
  const first = (region.offset ?? 0) / PAGE;
  if (first + npages > region.backing.frames.length) {
    refuse(
      'MEMSLOT_BACKING',
      Errno.EFAULT,
      `slot ${region.slot & 0xffff}: its backing has too few pages behind the offset`,
    );
  }
  return region.backing.frames.subarray(first, first + npages);
}

const bitmapFor = (npages: number): Uint32Array => new Uint32Array(Math.ceil(npages / 32));

function changed(vm: Vm): void {
  vm.memslots.sort((a, b) => a.addressSpace - b.addressSpace || a.baseGfn - b.baseGfn);
  vm.memslotsChanged();
}

function create(vm: Vm, region: MemoryRegion): void {
  const flags = region.flags ?? 0;
  const npages = region.memorySize / PAGE;
  const logDirty = (flags & MEM_LOG_DIRTY_PAGES) !== 0;
  vm.memslots.push({
    id: region.slot & 0xffff,
    addressSpace: (region.slot >>> 16) as 0 | 1,
    baseGfn: region.guestPhysAddr / PAGE,
    npages,
    readonly: (flags & MEM_READONLY) !== 0,
    logDirty,
    dirtyBitmap: logDirty ? bitmapFor(npages) : null,
    frames: framesOf(vm, region),
    ownsFrames: region.backing === undefined,
  });
  changed(vm);
}

function remove(vm: Vm, slot: Memslot): void {
  kvmArchFlushShadowMemslot(vm, slot);
  vm.memslots.splice(vm.memslots.indexOf(slot), 1);
  if (slot.ownsFrames) for (const frame of slot.frames) vm.kvm.hostMemory.freeFrame(frame);
  changed(vm);
}

function setFlags(vm: Vm, slot: Memslot, flags: number): void {
  const logDirty = (flags & MEM_LOG_DIRTY_PAGES) !== 0;
  if (logDirty && !slot.logDirty) {
    slot.dirtyBitmap = bitmapFor(slot.npages);
    slot.logDirty = true;
    kvmMmuSlotWriteProtect(vm, slot);
  } else if (!logDirty && slot.logDirty) {
    slot.dirtyBitmap = null;
    slot.logDirty = false;
    // Large pages may come back: the small ones are dropped and refault.
    kvmArchFlushShadowMemslot(vm, slot);
  }
}

function modify(vm: Vm, slot: Memslot, region: MemoryRegion): void {
  const flags = region.flags ?? 0;
  const baseGfn = region.guestPhysAddr / PAGE;
  if (region.memorySize / PAGE !== slot.npages) {
    refuse('MEMSLOT_RESIZE', Errno.EINVAL, `slot ${slot.id} can't change its size; delete it and create it anew`);
  }
  if (region.backing && region.backing.frames[(region.offset ?? 0) / PAGE] !== slot.frames[0]) {
    refuse('MEMSLOT_BACKING', Errno.EINVAL, `slot ${slot.id} can't change its memory; delete it and create it anew`);
  }
  if (((flags & MEM_READONLY) !== 0) !== slot.readonly) {
    refuse('MEMSLOT_READONLY', Errno.EINVAL, `slot ${slot.id} can't change READONLY; delete it and create it anew`);
  }
  if (baseGfn !== slot.baseGfn) {
    checkOverlap(vm, region, slot);
    kvmArchFlushShadowMemslot(vm, slot);
    slot.baseGfn = baseGfn;
    changed(vm);
  }
  setFlags(vm, slot, flags);
}

/**
 * Creates, moves, changes or (memorySize 0) deletes a slot. KVM: KVM_SET_USER_MEMORY_REGION.
 * Throws KvmError: MEMSLOT_* with EINVAL, MEMSLOT_OVERLAP EEXIST, MEMSLOT_BACKING EFAULT, HOST_MEMORY ENOMEM.
 */
export function kvmSetMemoryRegion(vm: Vm, region: MemoryRegion): void {
  checkRegion(region);
  const space = region.slot >>> 16;
  const slot = vm.memslots.find((s) => s.id === (region.slot & 0xffff) && s.addressSpace === space);
  if (region.memorySize === 0) {
    if (!slot) throw new KvmError('MEMSLOT_MISSING', Errno.EINVAL, `slot ${region.slot & 0xffff} does not exist`);
    remove(vm, slot);
    return;
  }
  if (slot) {
    modify(vm, slot, region);
    return;
  }
  checkOverlap(vm, region, undefined);
  create(vm, region);
}

/** Copies and clears a slot's dirty bitmap (bit n: page n) and write-protects what was dirty. KVM: KVM_GET_DIRTY_LOG. */
export function kvmGetDirtyLog(vm: Vm, slotNumber: number): Uint32Array {
  requireShape('DIRTY_LOG_SLOT', Errno.EINVAL, 'KVM_GET_DIRTY_LOG: ', slotNumber, 'slot', u32);
  const slot = vm.memslots.find((s) => s.id === (slotNumber & 0xffff) && s.addressSpace === slotNumber >>> 16);
  if (!slot?.dirtyBitmap) {
    throw new KvmError(
      'DIRTY_LOG',
      Errno.EINVAL,
      `slot ${slotNumber} has no dirty log; create it with LOG_DIRTY_PAGES`,
    );
  }
  const bitmap = slot.dirtyBitmap.slice();
  slot.dirtyBitmap.fill(0);
  kvmMmuSlotWriteProtect(vm, slot);
  return bitmap;
}

/** Zaps every table when the MMIO generation wraps. */
export function memslotGenerationWrapped(vm: Vm): void {
  kvmMmuZapAll(vm);
}
