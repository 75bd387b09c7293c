/**
 * L1's nested tables: KVM walks them for L2's physical addresses and keeps a shadow of the result in tables of its own format.
 * KVM: kvm_init_shadow_npt_mmu, kvm_init_shadow_ept_mmu (mmu.c), paging_tmpl.h for EPT. Manual: APM vol. 2 15.25, SDM vol. 3 28.2.
 *
 * As with shadow paging the shadow is kept like a TLB: L1 must flush what it takes away, and a flush drops the shadow.
 */
import { AccessKind, PAGE, PageWalker, type PagingConfig, type WalkMemory } from '@tskvm/emulator';
import { guestCpuidHas } from '../cpuid.ts';
import type { Vcpu } from '../vcpu.ts';
import { Role } from './role.ts';
import { type TdpRoot, tdpFreeRoot, tdpRoot } from './tdp.ts';

/** Access bits as in PFERR_*: 2 write, 4 user, 16 fetch. */
const WRITE = 2;
const FETCH = 16;

/** Why a walk of L1's nested tables failed. */
export interface NestedFault {
  /** L2's physical address. */
  gpa: number;
  /** PFERR_* bits 4:0 as the walk makes them (P, W, U, RSVD, F). */
  errorCode: number;
  /** EPT: an entry is misconfigured (exit 49 to L1). */
  misconfig: boolean;
  /** EPT: read, write, execute rights of the entries used (bits 5:3 of the exit qualification, shifted down). */
  rights: number;
}

/** A successful walk. */
export interface NestedMapping {
  /** L1's physical address. */
  gpa: number;
  writable: boolean;
  executable: boolean;
}

/** What L1 has set up for L2. */
export interface NestedMmu {
  kind: 'npt' | 'ept';
  /** L1's physical address of the top table (nCR3, or bits 51:12 of EPTP). */
  root: number;
  /** NPT: L1's own paging mode walks the tables (APM 15.25.3). */
  paging: PagingConfig['mode'];
  nx: boolean;
  /** EPT: accessed and dirty flags are on (EPTP bit 6). */
  accessedDirty: boolean;
  /** Turns a fault into L1's exit. KVM: nested_svm_inject_npf_exit, nested_ept_inject_page_fault. */
  inject: (vcpu: Vcpu, fault: NestedFault) => void;
}

const active = new WeakMap<Vcpu, NestedMmu>();
/** What L2 runs on, undefined outside L2 or without nested paging there. */
export const nestedMmuOf = (vcpu: Vcpu): NestedMmu | undefined => active.get(vcpu);

const keyOf = (vcpu: Vcpu): string => `nested/${vcpu.vcpuId}`;

/** The shadow's root; another top table of L1's starts an empty one. */
export const nestedRoot = (vcpu: Vcpu): TdpRoot =>
  tdpRoot(vcpu.vm, vcpu.arch.mmu.role, vcpu.kvm.mmu.tdpRootLevel, keyOf(vcpu));

/** L1 flushed (TLB_CONTROL, INVEPT, another nCR3): the shadow is dropped. */
export function kvmNestedFlush(vcpu: Vcpu): void {
  const root = vcpu.vm.mmu.roots.get(keyOf(vcpu));
  if (root) tdpFreeRoot(vcpu.vm, root);
  if (active.has(vcpu)) vcpu.arch.mmu.hpa = -1;
}

function activate(vcpu: Vcpu, mmu: NestedMmu): void {
  const last = active.get(vcpu) ?? remembered.get(vcpu);
  active.set(vcpu, mmu);
  if (last && (last.root !== mmu.root || last.kind !== mmu.kind)) kvmNestedFlush(vcpu);
  vcpu.arch.nestedTdp = true;
  Object.assign(vcpu.arch.mmu, {
    role: (Role.accessAll | Role.direct | Role.guestMode | vcpu.kvm.mmu.tdpRootLevel) >>> 0,
    level: vcpu.kvm.mmu.tdpRootLevel,
    hpa: -1,
  });
}
/** The shadow survives L2's exits: the next entry with the same tables finds it. */
const remembered = new WeakMap<Vcpu, NestedMmu>();

/** L2 starts on NPT tables of L1. Call kvmInitMmu afterwards for L2's own role. KVM: kvm_init_shadow_npt_mmu. */
export function kvmInitShadowNptMmu(
  vcpu: Vcpu,
  nestedCr3: number,
  paging: PagingConfig['mode'],
  nx: boolean,
  inject: NestedMmu['inject'],
): void {
  activate(vcpu, { kind: 'npt', root: nestedCr3 - (nestedCr3 % PAGE), paging, nx, accessedDirty: true, inject });
}
/** L2 starts on EPT tables of L1. KVM: kvm_init_shadow_ept_mmu. */
export function kvmInitShadowEptMmu(vcpu: Vcpu, eptp: bigint, inject: NestedMmu['inject']): void {
  const root = Number(eptp & 0xffffffffff000n);
  activate(vcpu, { kind: 'ept', root, paging: '4-level', nx: true, accessedDirty: (eptp & 64n) !== 0n, inject });
}
/** Back in L1. Call kvmMmuResetContext afterwards. KVM: nested_svm_uninit_mmu_context, nested_ept_uninit_mmu_context. */
export function kvmUninitNestedMmu(vcpu: Vcpu): void {
  const mmu = active.get(vcpu);
  if (!mmu) return;
  remembered.set(vcpu, mmu);
  active.delete(vcpu);
  vcpu.arch.nestedTdp = false;
  vcpu.arch.mmu.hpa = -1;
  vcpu.arch.mmu.role = 0;
}

/** Thrown inside a walk when a table lies outside memory. */
const NO_TABLE = new Error('nested table outside memory');

class L1Tables implements WalkMemory {
  #gfn = 0;
  constructor(readonly vcpu: Vcpu) {}
  entryAddress(gpa: number, _write: boolean): number {
    this.#gfn = Math.floor(gpa / PAGE);
    const hpa = this.vcpu.vm.gpaToHpa(gpa);
    if (hpa < 0) throw NO_TABLE;
    return hpa;
  }
  read32(hpa: number): number {
    return this.vcpu.kvm.memory.read32(hpa) | 0;
  }
  write32(hpa: number, value: number): void {
    this.vcpu.kvm.memory.write32(hpa, value >>> 0);
    this.vcpu.vm.markPageDirty(this.#gfn);
  }
}

/** Result of {@link kvmNestedTranslate}. */
export type NestedResult = { ok: true; mapping: NestedMapping } | { ok: false; fault: NestedFault };

const failed = (gpa: number, errorCode: number, misconfig = false, rights = 0): NestedResult => ({
  ok: false,
  fault: { gpa, errorCode, misconfig, rights },
});

/** NPT entries are walked as user accesses (APM 15.25.5). */
function walkNpt(vcpu: Vcpu, mmu: NestedMmu, gpa: number, access: number): NestedResult {
  const walker = new PageWalker(new L1Tables(vcpu));
  walker.configure({
    mode: mmu.paging,
    root: mmu.root,
    wp: true,
    nx: mmu.nx,
    smep: false,
    smap: false,
    pse: true,
    pge: false,
    maxphyaddr: vcpu.arch.maxphyaddr,
    gbPages: guestCpuidHas(vcpu, 'pdpe1gb'),
    bit8Reserved: true,
    pdpte: undefined,
  });
  const kind = (access & WRITE ? AccessKind.write : 0) | (access & FETCH ? AccessKind.fetch : 0);
  try {
    if (!walker.walk(gpa | 0, Math.floor(gpa / 2 ** 32), kind, true, false)) return failed(gpa, walker.errorCode);
  } catch (error) {
    if (error !== NO_TABLE) throw error;
    return failed(gpa, (access & (WRITE | FETCH)) | 4);
  }
  // A page that isn't dirty yet must fault for its first write, so that D is set.
  const writable = walker.writable && walker.dirty;
  return { ok: true, mapping: { gpa: walker.gpa, writable, executable: !walker.nx } };
}

const R = 1;
const W = 2;
const X = 4;
const LARGE = 0x80n;

/** SDM 28.2.3.1: write without read, execute alone, a reserved memory type, reserved bits. */
function isMisconfigured(entry: bigint, level: number, leaf: boolean, maxphyaddr: number): boolean {
  const rights = Number(entry & 7n);
  if ((rights & R) === 0 && (rights & W) !== 0) return true;
  if (entry >> BigInt(maxphyaddr) !== 0n && (entry & ((1n << 52n) - 1n)) >> BigInt(maxphyaddr) !== 0n) return true;
  if (!leaf) return level === 4 ? (entry & 0xf8n) !== 0n : (entry & 0x78n) !== 0n;
  const type = Number((entry >> 3n) & 7n);
  if (type === 2 || type === 3 || type === 7) return true;
  const offset = (1n << BigInt(12 + 9 * (level - 1))) - 1n;
  return (entry & offset & ~0xfffn) !== 0n;
}

/** Which right an access needs. */
const needed = (access: number): number => (access & FETCH ? X : access & WRITE ? W | R : R);

function walkEpt(vcpu: Vcpu, mmu: NestedMmu, gpa: number, access: number): NestedResult {
  const { vm } = vcpu;
  let table = mmu.root;
  let rights = R | W | X;
  for (let level = 4; ; level--) {
    const index = Math.floor(gpa / (PAGE * 512 ** (level - 1))) % 512;
    if (!vm.hasMemory(table, PAGE)) return failed(gpa, access & (WRITE | FETCH));
    const entry = vm.readGuestValue(table + 8 * index, 8);
    rights &= Number(entry & 7n);
    if ((entry & 7n) === 0n) return failed(gpa, access & (WRITE | FETCH), false, 0);
    const leaf = level === 1 || (level < 4 && (entry & LARGE) !== 0n);
    if (isMisconfigured(entry, level, leaf, vcpu.arch.maxphyaddr)) return failed(gpa, access & (WRITE | FETCH), true);
    const permitted = (rights & needed(access)) === needed(access);
    if (leaf && !permitted) return failed(gpa, (access & (WRITE | FETCH)) | 1, false, rights);
    if (mmu.accessedDirty) markEpt(vcpu, table + 8 * index, entry, leaf && (access & WRITE) !== 0);
    if (leaf) {
      const size = PAGE * 512 ** (level - 1);
      const base = Number(entry & 0xffffffffff000n);
      const dirty = !mmu.accessedDirty || (access & WRITE) !== 0 || (entry & 0x200n) !== 0n;
      const writable = (rights & W) !== 0 && dirty;
      return {
        ok: true,
        mapping: { gpa: base - (base % size) + (gpa % size), writable, executable: (rights & X) !== 0 },
      };
    }
    table = Number(entry & 0xffffffffff000n);
  }
}
/** Accessed 8 and dirty 9 (SDM 28.2.4). */
function markEpt(vcpu: Vcpu, at: number, entry: bigint, write: boolean): void {
  const marked = entry | 0x100n | (write ? 0x200n : 0n);
  if (marked !== entry) vcpu.vm.writeGuestValue(at, marked, 8);
}

/** L2's physical address to L1's through L1's nested tables. KVM: translate_nested_gpa. */
export function kvmNestedTranslate(vcpu: Vcpu, gpa: number, access: number): NestedResult {
  const mmu = active.get(vcpu);
  if (!mmu) return { ok: true, mapping: { gpa, writable: true, executable: true } };
  return mmu.kind === 'npt' ? walkNpt(vcpu, mmu, gpa, access) : walkEpt(vcpu, mmu, gpa, access);
}
