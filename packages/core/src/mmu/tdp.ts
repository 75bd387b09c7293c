/**
 * Nested tables: real NPT and EPT tables in host memory, one root per role. KVM: arch/x86/kvm/mmu/tdp_mmu.c and spte.c.
 * Manual: APM vol. 2 15.25, SDM vol. 3 28.2.
 */
import { PAGE } from '@tskvm/emulator';
import type { Kvm } from '../kvm.ts';
import type { Memslot } from '../memslots.ts';
import { trace } from '../trace.ts';
import type { Vcpu } from '../vcpu.ts';
import type { Vm } from '../vm.ts';
import { roleIsSmm } from './role.ts';

/** A root and every table below it. */
export interface TdpRoot {
  hpa: number;
  level: number;
  role: number;
  /** Key of the root: its role, and for a shadow of L1's tables their address. */
  key: string;
  /** Host physical addresses of all tables, the root's first. */
  tables: number[];
}

/** The tables of one VM. */
export interface MmuVm {
  roots: Map<string, TdpRoot>;
}
export const newMmuVm = (): MmuVm => ({ roots: new Map() });

const ADDRESS = 0xffffffffff000n;
const LEAF = 0x80n;
const MMIO_GEN_LOW_SHIFT = 3n;
const MMIO_GEN_HIGH_SHIFT = 52n;
/** 19 bits: 8 at 10:3, 11 at 62:52. */
const MMIO_GEN_LOW_BITS = 8n;

/** Pages under one entry of a level. */
export const pagesPerLevel = (level: number): number => 512 ** (level - 1);
const indexAt = (gfn: number, level: number): number => Math.floor(gfn / pagesPerLevel(level)) % 512;

const isPresent = (kvm: Kvm, spte: bigint): boolean =>
  kvm.mmu.format === 'ept'
    ? (spte & 7n) !== 0n && !isMmioSpte(kvm, spte)
    : (spte & 1n) !== 0n && !isMmioSpte(kvm, spte);
/** KVM: is_mmio_spte. */
export const isMmioSpte = (kvm: Kvm, spte: bigint): boolean =>
  kvm.mmu.mmioMask !== 0n && (spte & kvm.mmu.mmioMask) === kvm.mmu.mmioValue;
const isLeaf = (spte: bigint, level: number): boolean => level === 1 || (spte & LEAF) !== 0n;

/** Entry that points to a table: all rights. */
function tableSpte(kvm: Kvm, hpa: number): bigint {
  const { present, writable, user, executable, accessed } = kvm.mmu;
  return BigInt(hpa) | present | writable | user | executable | accessed;
}

/** What a leaf maps. */
interface LeafArgs {
  hfn: number;
  gfn: number;
  level: number;
  writable: boolean;
  exec: boolean;
}

/** KVM: make_spte. */
function leafSpte(vcpu: Vcpu, leaf: LeafArgs): bigint {
  const { mmu } = vcpu.kvm;
  let spte = (BigInt(leaf.hfn) * BigInt(PAGE)) | mmu.present | mmu.user | mmu.accessed;
  if (leaf.writable) spte |= mmu.writable | mmu.dirty;
  spte |= leaf.exec ? mmu.executable : mmu.noExecute;
  if (leaf.level > 1) spte |= LEAF;
  if (mmu.format === 'ept') spte |= BigInt(vcpu.kvm.calls.getMtMask(vcpu, leaf.gfn, false));
  return spte;
}

/** KVM: make_mmio_spte: generation, frame and the mark. */
function mmioSpte(kvm: Kvm, gfn: number, generation: number): bigint {
  const gen = BigInt(generation);
  const low = gen & ((1n << MMIO_GEN_LOW_BITS) - 1n);
  return (
    kvm.mmu.mmioValue |
    ((BigInt(gfn) << 12n) & ADDRESS & ~(1n << 51n)) |
    (low << MMIO_GEN_LOW_SHIFT) |
    ((gen >> MMIO_GEN_LOW_BITS) << MMIO_GEN_HIGH_SHIFT)
  );
}
/** KVM: get_mmio_spte_generation. */
export function mmioSpteGeneration(spte: bigint): number {
  const low = (spte >> MMIO_GEN_LOW_SHIFT) & ((1n << MMIO_GEN_LOW_BITS) - 1n);
  return Number(low | (((spte >> MMIO_GEN_HIGH_SHIFT) & 0x7ffn) << MMIO_GEN_LOW_BITS));
}

/** The root of a role, made if there is none. KVM: kvm_tdp_mmu_alloc_root. */
export function tdpRoot(vm: Vm, role: number, level: number, key: string = role.toString(16)): TdpRoot {
  const known = vm.mmu.roots.get(key);
  if (known) return known;
  const hpa = vm.kvm.allocPage();
  const root: TdpRoot = { hpa, level, role, key, tables: [hpa] };
  vm.mmu.roots.set(key, root);
  trace(vm, 'kvm_mmu_get_page', () => ({ gfn: 0, level, role, created: true }));
  return root;
}

/** Walks down to `level`, making tables on the way; splits a large leaf that is in the way by dropping it. Host address of the entry. */
function entryAt(vm: Vm, root: TdpRoot, gfn: number, level: number): number {
  const { kvm } = vm;
  let table = root.hpa;
  for (let at = root.level; at > level; at--) {
    const entry = table + indexAt(gfn, at) * 8;
    let spte = kvm.memory.read64(entry);
    if (!isPresent(kvm, spte) || isLeaf(spte, at)) {
      const page = kvm.allocPage();
      root.tables.push(page);
      spte = tableSpte(kvm, page);
      kvm.memory.write64(entry, spte);
    }
    table = Number(spte & ADDRESS);
  }
  return table + indexAt(gfn, level) * 8;
}

/** The leaf that covers a frame: its entry's address, value and level; undefined if nothing is there. KVM: kvm_tdp_mmu_get_walk. */
export function tdpLookup(
  vm: Vm,
  root: TdpRoot,
  gfn: number,
): { entry: number; spte: bigint; level: number } | undefined {
  let table = root.hpa;
  for (let level = root.level; level >= 1; level--) {
    const entry = table + indexAt(gfn, level) * 8;
    const spte = vm.kvm.memory.read64(entry);
    if (!isPresent(vm.kvm, spte)) return isMmioSpte(vm.kvm, spte) ? { entry, spte, level } : undefined;
    if (isLeaf(spte, level)) return { entry, spte, level };
    table = Number(spte & ADDRESS);
  }
  return undefined;
}

/** Are the host frames of the 2 MiB around `gfn` one aligned run inside the slot. KVM: kvm_mmu_max_mapping_level. */
function hugeAllowed(vm: Vm, slot: Memslot, gfn: number): boolean {
  const start = gfn - (gfn % 512);
  if (start < slot.baseGfn || start + 512 > slot.baseGfn + slot.npages) return false;
  const first = slot.frames[start - slot.baseGfn];
  if (first % 512 !== 0) return false;
  for (let i = 1; i < 512; i++) if (slot.frames[start - slot.baseGfn + i] !== first + i) return false;
  return vm.kvm.mmu.hugePageLevel >= 2;
}

/** What {@link tdpMap} did. KVM: RET_PF_*. */
export type RetPf = 'fixed' | 'spurious' | 'emulate';

/**
 * Maps a guest frame into a root, or marks it as MMIO. KVM: kvm_tdp_mmu_map.
 * @param target frame that stands behind `gfn` (differs for a shadow of L1's tables)
 * @param rights limits (a shadow of L1's tables passes L1's)
 */
export function tdpMap(
  vcpu: Vcpu,
  root: TdpRoot,
  gfn: number,
  write: boolean,
  target: number = gfn,
  rights: { write: boolean; exec: boolean } = { write: true, exec: true },
): RetPf {
  const { vm } = vcpu;
  const smm = roleIsSmm(root.role);
  const slot = vm.gfnToMemslot(target, smm);
  if (!slot) return markMmio(vcpu, root, gfn);
  if (write && slot.readonly) return 'emulate';
  const shadow = target !== gfn || !rights.write || !rights.exec;
  const level = !shadow && !slot.logDirty && root.key.indexOf('/') < 0 && hugeAllowed(vm, slot, gfn) ? 2 : 1;
  const base = level === 2 ? gfn - (gfn % 512) : gfn;
  const writable = rights.write && !slot.readonly && (write || !slot.logDirty);
  const hfn = slot.frames[(level === 2 ? base : target) - slot.baseGfn];
  const spte = leafSpte(vcpu, { hfn, gfn: base, level, writable, exec: rights.exec });
  if (write) vm.markPageDirty(target, smm);
  return install(vcpu, root, base, level, spte);
}

function install(vcpu: Vcpu, root: TdpRoot, gfn: number, level: number, spte: bigint): RetPf {
  const { memory } = vcpu.kvm;
  const entry = entryAt(vcpu.vm, root, gfn, level);
  if (memory.read64(entry) === spte) return 'spurious';
  memory.write64(entry, spte);
  trace(vcpu, 'kvm_mmu_set_spte', () => ({ level, gfn, spte }));
  return 'fixed';
}

/** KVM: mark_mmio_spte. */
function markMmio(vcpu: Vcpu, root: TdpRoot, gfn: number): RetPf {
  const { kvm, vm } = vcpu;
  if (kvm.mmu.mmioMask !== 0n) {
    const entry = entryAt(vm, root, gfn, 1);
    const generation = vm.generation & 0x7ffff;
    kvm.memory.write64(entry, mmioSpte(kvm, gfn, generation));
    trace(vcpu, 'mark_mmio_spte', () => ({ sptep: entry, gfn, access: 7, generation }));
  }
  return 'emulate';
}

/** Frees a root and its tables. */
export function tdpFreeRoot(vm: Vm, root: TdpRoot): void {
  vm.mmu.roots.delete(root.key);
  for (const page of root.tables) vm.kvm.freePage(page);
}

/** Takes write access from every leaf of a slot; large leaves go. KVM: kvm_tdp_mmu_wrprot_slot. */
export function tdpWriteProtectSlot(vm: Vm, slot: Memslot): void {
  const { memory, mmu } = vm.kvm;
  for (const root of vm.mmu.roots.values()) {
    if (vm.addressSpace(roleIsSmm(root.role)) !== slot.addressSpace) continue;
    for (let gfn = slot.baseGfn; gfn < slot.baseGfn + slot.npages; ) {
      const leaf = tdpLookup(vm, root, gfn);
      if (leaf && !isMmioSpte(vm.kvm, leaf.spte)) {
        memory.write64(leaf.entry, leaf.level > 1 ? 0n : leaf.spte & ~(mmu.writable | mmu.dirty));
      }
      gfn += leaf && leaf.level > 1 ? 512 - (gfn % 512) : 1;
    }
  }
}
