/**
 * Shadow paging: tables that the hardware walks in place of the guest's, filled on #PF from a walk of the guest's own.
 * KVM: FNAME(page_fault) and direct_page_fault (paging_tmpl.h, mmu.c), without nested paging. Manual: APM vol. 2 5.5 (when a TLB may be stale).
 *
 * The tables are kept like a TLB: what the guest must flush (CR3, INVLPG, CR4.PGE) drops them, so its tables need no write protection.
 */
import { CR0, CR4, PAGE, PageSize, type PageWalker } from '@tskvm/emulator';
import { kvmInjectPageFault } from '../exceptions.ts';
import { isLongMode, isSmm, kvmIsCr0BitSet, kvmIsCr4BitSet, kvmRipRead } from '../kvm-cache-regs.ts';
import { x86EmulateInstruction } from '../kvm-emulate.ts';
import { trace } from '../trace.ts';
import { EmulType } from '../types.ts';
import type { Vcpu } from '../vcpu.ts';
import type { Vm } from '../vm.ts';
import { Role } from './role.ts';
import { type TdpRoot, tdpFreeRoot } from './tdp.ts';
import { kvmMmuWalk, noFault, Pferr } from './walker.ts';

const PRESENT = 1n;
const WRITABLE = 2n;
const USER = 4n;
const ACCESSED = 0x20n;
const DIRTY = 0x40n;
const NX = 1n << 63n;
const ADDRESS = 0xffffffffff000n;
const TABLE = PRESENT | WRITABLE | USER | ACCESSED;

/** A shadow root remembers whether a 1 GiB page stands behind some of its leaves: INVLPG then drops everything. */
interface ShadowRoot extends TdpRoot {
  huge: boolean;
}

/** Levels of the shadow tables: as the hardware's mode needs them, whatever the guest's own tables look like. */
const shadowLevel = (vcpu: Vcpu): number => (isLongMode(vcpu) ? 4 : 3);
/** Role of the root: the CPU role with at least three levels and NX. KVM: kvm_init_shadow_mmu. */
export const shadowRole = (vcpu: Vcpu): number =>
  (((vcpu.arch.cpuRole % 2 ** 32) & ~Role.levelMask) | Role.eferNx | shadowLevel(vcpu)) >>> 0;

const keyOf = (vcpu: Vcpu): string => `shadow/${vcpu.vcpuId}`;

function newTable(vm: Vm, root: TdpRoot): number {
  const page = vm.kvm.allocPage();
  root.tables.push(page);
  return page;
}

/** The root of a vCPU. PAE's four directories exist from the start: the processor loads PDPTEs only with CR3. */
export function shadowRoot(vcpu: Vcpu): ShadowRoot {
  const { vm } = vcpu;
  const known = vm.mmu.roots.get(keyOf(vcpu)) as ShadowRoot | undefined;
  const role = shadowRole(vcpu);
  if (known?.role === role) return known;
  if (known) tdpFreeRoot(vm, known);
  const hpa = vm.kvm.allocPage();
  const root: ShadowRoot = { hpa, level: shadowLevel(vcpu), role, key: keyOf(vcpu), tables: [hpa], huge: false };
  vm.mmu.roots.set(root.key, root);
  if (root.level === 3) {
    for (let i = 0; i < 4; i++) vm.kvm.memory.write64(hpa + 8 * i, BigInt(newTable(vm, root)) | PRESENT);
  }
  trace(vm, 'kvm_mmu_get_page', () => ({ gfn: 0, level: root.level, role, created: true }));
  return root;
}

/** Drops every leaf. The root, and PAE's directories, stay where they are. */
export function shadowClear(vcpu: Vcpu): void {
  const { vm } = vcpu;
  const root = vm.mmu.roots.get(keyOf(vcpu)) as ShadowRoot | undefined;
  if (!root) return;
  const kept = root.level === 3 ? 5 : 1;
  for (const page of root.tables.splice(kept)) vm.kvm.freePage(page);
  for (const page of root.tables.slice(root.level === 3 ? 1 : 0)) vm.kvm.memory.fill(page, PAGE, 0);
  root.huge = false;
}
/** Gives the root back. */
export function shadowFree(vcpu: Vcpu): void {
  const root = vcpu.vm.mmu.roots.get(keyOf(vcpu));
  if (root) tdpFreeRoot(vcpu.vm, root);
}

const indexAt = (gva: bigint, level: number): number => Number((gva >> BigInt(12 + 9 * (level - 1))) & 0x1ffn);

/** Host address of the leaf's entry; without `create` undefined if a table is missing. */
function entryAt(vm: Vm, root: TdpRoot, gva: bigint, create: boolean): number | undefined {
  let table = root.hpa;
  for (let level = root.level; level > 1; level--) {
    const index = level === 3 && root.level === 3 ? Number((gva >> 30n) & 3n) : indexAt(gva, level);
    const entry = table + index * 8;
    let spte = vm.kvm.memory.read64(entry);
    if ((spte & PRESENT) === 0n) {
      if (!create) return undefined;
      spte = BigInt(newTable(vm, root)) | TABLE;
      vm.kvm.memory.write64(entry, spte);
    }
    table = Number(spte & ADDRESS);
  }
  return table + indexAt(gva, 1) * 8;
}

/** INVLPG: drops the 4 MiB around an address, the largest page but one that can stand behind it. KVM: kvm_mmu_invalidate_addr. */
export function shadowInvalidate(vcpu: Vcpu, gva: bigint): void {
  const root = vcpu.vm.mmu.roots.get(keyOf(vcpu)) as ShadowRoot | undefined;
  if (!root) return;
  if (root.huge) {
    shadowClear(vcpu);
    return;
  }
  const start = gva & ~0x3fffffn;
  for (const part of [start, start + 0x200000n]) {
    const entry = entryAt(vcpu.vm, root, part, false);
    if (entry !== undefined) vcpu.kvm.memory.fill(entry - (entry % PAGE), PAGE, 0);
  }
}

/** Rights of a shadow leaf from the guest's walk. KVM: FNAME(fetch), make_spte. */
function leafRights(vcpu: Vcpu, walk: PageWalker, write: boolean, user: boolean): bigint {
  let rights = PRESENT | ACCESSED;
  let nx = walk.nx;
  if (walk.writable) {
    if (walk.dirty) rights |= WRITABLE | DIRTY;
    if (walk.user) rights |= USER;
  } else if (write && !user && !kvmIsCr0BitSet(vcpu, CR0.WP)) {
    // The hardware runs with WP=1: a supervisor's write to a read-only page makes it a writable supervisor page for now.
    rights |= WRITABLE | DIRTY;
    if (walk.user && kvmIsCr4BitSet(vcpu, CR4.SMEP)) nx = true;
  } else if (walk.user) rights |= USER;
  return nx ? rights | NX : rights;
}

/** Maps one page. False: it is not memory that may be accessed so, emulate. */
function map(
  vcpu: Vcpu,
  gva: bigint,
  walk: PageWalker,
  write: boolean,
  user: boolean,
): 'fixed' | 'spurious' | 'emulate' {
  const { vm, kvm } = vcpu;
  const gfn = Math.floor(walk.gpa / PAGE);
  const smm = isSmm(vcpu);
  const slot = vm.gfnToMemslot(gfn, smm);
  if (!slot || (write && slot.readonly)) return 'emulate';
  let spte = leafRights(vcpu, walk, write, user) | BigInt(slot.frames[gfn - slot.baseGfn] * PAGE);
  if (slot.readonly || (slot.logDirty && !write)) spte &= ~(WRITABLE | DIRTY);
  if (write) vm.markPageDirty(gfn, smm);
  const root = shadowRoot(vcpu);
  if (walk.size === PageSize.huge) root.huge = true;
  const entry = entryAt(vm, root, gva, true) as number;
  if (kvm.memory.read64(entry) === spte) return 'spurious';
  kvm.memory.write64(entry, spte);
  trace(vcpu, 'kvm_mmu_set_spte', () => ({ level: 1, gfn, spte }));
  return 'fixed';
}

/**
 * An intercepted #PF under shadow paging: the guest's own fault goes to the guest, otherwise the page is mapped or the access emulated.
 * @param gva the faulting linear address
 * @returns as an exit handler. KVM: kvm_handle_page_fault, kvm_mmu_page_fault
 */
export function shadowPageFault(
  vcpu: Vcpu,
  gva: bigint,
  errorCode: bigint,
  insn: Uint8Array | null,
  insnLen: number,
): number {
  trace(vcpu, 'kvm_page_fault', () => ({
    vcpuId: vcpu.vcpuId,
    rip: kvmRipRead(vcpu),
    address: Number(gva),
    errorCode,
  }));
  const access = Number(errorCode & 0x16n);
  const fault = noFault();
  const walk = kvmMmuWalk(vcpu, gva, access, fault);
  if (!walk) {
    kvmInjectPageFault(vcpu, fault);
    return 1;
  }
  const ret = map(vcpu, gva, walk, (access & Pferr.write) !== 0, (access & Pferr.user) !== 0);
  if (ret === 'emulate') return x86EmulateInstruction(vcpu, walk.gpa, EmulType.PF, insn, insnLen);
  if (ret === 'spurious') vcpu.kvm.calls.flushTlbGva(vcpu, gva);
  return 1;
}
