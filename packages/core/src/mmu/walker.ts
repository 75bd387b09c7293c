/**
 * Guest page tables walked by KVM for the emulator: linear to guest physical, with permissions and error codes.
 * KVM: mmu/paging_tmpl.h (walk_addr), kvm_mmu_gva_to_gpa_*; manual: APM vol. 2 ch. 5.
 */
import {
  AccessKind,
  CR0,
  CR4,
  EFER,
  Flag,
  isLongPaging,
  PAGE,
  PageWalker,
  type PagingConfig,
  type PagingMode,
  Vector,
  type WalkMemory,
} from '@tskvm/emulator';
import { guestCpuidHas, guestCpuidIsAmdCompatible } from '../cpuid.ts';
import { kvmReadPkrs, kvmReadPkru } from '../fpu.ts';
import {
  isLongMode,
  isPae,
  isPaging,
  isSmm,
  kvmPdptrRead,
  kvmReadCr0,
  kvmReadCr3,
  kvmReadCr4,
} from '../kvm-cache-regs.ts';
import type { X86ExceptionInfo } from '../types.ts';
import type { Vcpu } from '../vcpu.ts';

/** PFERR_* bits of a walk's access argument. */
export const Pferr = { write: 2, user: 4, fetch: 16 } as const;
/** PFERR_IMPLICIT_ACCESS (bit 48) as a flag of ours: descriptor tables and the TSS. */
export const IMPLICIT_ACCESS = 0x100;

/** Thrown inside a walk when a table lies outside memory. */
const NO_TABLE = new Error('page table outside memory');

/** The guest's physical memory as a walk sees it: slots, and L1's nested tables below an L2 with nested paging. */
class GuestTables implements WalkMemory {
  /** Guest frame of the entry last translated: its write marks the page dirty. */
  #gfn = 0;
  /** A debugger's walk: A and D bits stay as they are. */
  readOnly = false;
  constructor(readonly vcpu: Vcpu) {}

  entryAddress(gpa: number, write: boolean): number {
    const { vcpu } = this;
    let address = gpa;
    if (vcpu.arch.nestedTdp) {
      const page = vcpu.kvm.calls.translateNestedGpa(
        vcpu,
        gpa - (gpa % PAGE),
        write ? Pferr.write | Pferr.user : Pferr.user,
      );
      if (page < 0) throw NO_TABLE;
      address = page + (gpa % PAGE);
    }
    this.#gfn = Math.floor(address / PAGE);
    const hpa = vcpu.vm.gpaToHpa(address, isSmm(vcpu));
    if (hpa < 0) throw NO_TABLE;
    return hpa;
  }
  read32(hpa: number): number {
    return this.vcpu.kvm.memory.read32(hpa) | 0;
  }
  write32(hpa: number, value: number): void {
    if (this.readOnly) return;
    this.vcpu.kvm.memory.write32(hpa, value >>> 0);
    this.vcpu.vm.markPageDirty(this.#gfn, isSmm(this.vcpu));
  }
}

/** A vCPU's walker and the registers that it was configured from. */
interface Walk {
  tables: GuestTables;
  walker: PageWalker;
  config: PagingConfig;
  cr0: bigint;
  cr3: bigint;
  cr4: bigint;
  efer: bigint;
  pkru: number;
  pkrs: number;
  cpuid: Vcpu['cpuid'];
}
/** One per vCPU, made on first use. */
const walks = new WeakMap<Vcpu, Walk>();
/** The walker, configured anew only if the registers have changed. */
function walkOf(vcpu: Vcpu): Walk {
  const known = walks.get(vcpu);
  const cr0 = kvmReadCr0(vcpu);
  const cr3 = kvmReadCr3(vcpu);
  const cr4 = kvmReadCr4(vcpu);
  const { efer } = vcpu.arch;
  const pkru = kvmReadPkru(vcpu);
  const pkrs = kvmReadPkrs(vcpu);
  if (
    known &&
    known.cr0 === cr0 &&
    known.cr3 === cr3 &&
    known.cr4 === cr4 &&
    known.efer === efer &&
    known.cpuid === vcpu.cpuid &&
    known.pkru === pkru &&
    known.pkrs === pkrs &&
    // PDPTEs come from registers that can change by themselves.
    known.config.mode !== 'PAE'
  ) {
    return known;
  }
  const tables = known?.tables ?? new GuestTables(vcpu);
  const walker = known?.walker ?? new PageWalker(tables);
  const config = configOf(vcpu);
  walker.configure(config);
  const walk = { tables, walker, config, cr0, cr3, cr4, efer, pkru, pkrs, cpuid: vcpu.cpuid };
  walks.set(vcpu, walk);
  return walk;
}

function pagingModeOf(vcpu: Vcpu): PagingMode {
  if (!isPaging(vcpu)) return 'off';
  if (isLongMode(vcpu)) return kvmReadCr4(vcpu) & CR4.LA57 ? '5-level' : '4-level';
  return isPae(vcpu) ? 'PAE' : '32-bit';
}

function pdptes(vcpu: Vcpu): Uint32Array {
  const out = new Uint32Array(8);
  for (let i = 0; i < 4; i++) {
    const entry = kvmPdptrRead(vcpu, i);
    out[2 * i] = Number(entry & 0xffffffffn);
    out[2 * i + 1] = Number(entry >> 32n);
  }
  return out;
}

function configOf(vcpu: Vcpu): PagingConfig {
  const mode = pagingModeOf(vcpu);
  const cr0 = kvmReadCr0(vcpu);
  const cr3 = kvmReadCr3(vcpu);
  const cr4 = kvmReadCr4(vcpu);
  const long = isLongPaging(mode);
  const mask = long ? 0xffffffffff000n : mode === 'PAE' ? 0xffffffe0n : 0xfffff000n;
  return {
    mode,
    root: Number(cr3 & mask),
    wp: (cr0 & CR0.WP) !== 0n,
    nx: (vcpu.arch.efer & EFER.NXE) !== 0n && mode !== '32-bit' && mode !== 'off',
    smep: (cr4 & CR4.SMEP) !== 0n,
    smap: (cr4 & CR4.SMAP) !== 0n,
    pse: (cr4 & CR4.PSE) !== 0n,
    pge: (cr4 & CR4.PGE) !== 0n,
    maxphyaddr: vcpu.arch.maxphyaddr,
    gbPages: guestCpuidHas(vcpu, 'pdpe1gb'),
    bit8Reserved: guestCpuidIsAmdCompatible(vcpu),
    pdpte: mode === 'PAE' ? pdptes(vcpu) : undefined,
    pkru: long && (cr4 & CR4.PKE) !== 0n ? kvmReadPkru(vcpu) : 0,
    pkrs: long && (cr4 & CR4.PKS) !== 0n ? kvmReadPkrs(vcpu) : 0,
  };
}

/** SMAP applies to a supervisor data access unless RFLAGS.AC overrides an explicit one. */
function smapApplies(vcpu: Vcpu, access: number, smap: boolean): boolean {
  if (!smap || (access & Pferr.fetch) !== 0) return false;
  if ((access & IMPLICIT_ACCESS) !== 0) return true;
  return (vcpu.kvm.calls.getRflags(vcpu) & BigInt(Flag.AC)) === 0n;
}

function fill(fault: X86ExceptionInfo, errorCode: number, address: bigint): -1 {
  fault.vector = Vector.PF;
  fault.errorCodeValid = true;
  fault.errorCode = errorCode;
  fault.nestedPageFault = false;
  fault.address = address;
  return -1;
}

/**
 * Walks the guest's tables for a linear address: sets A and D, checks rights. KVM: FNAME(walk_addr).
 * @param access Pferr bits, and {@link IMPLICIT_ACCESS}
 * @returns the walker with its result (guest physical address before L1's nested tables), or null with `fault` filled (#PF)
 */
export function kvmMmuWalk(vcpu: Vcpu, gva: bigint, access: number, fault: X86ExceptionInfo): PageWalker | null {
  const { walker, config } = walkOf(vcpu);
  const kind =
    (access & Pferr.write ? AccessKind.write : 0) |
    (access & Pferr.fetch ? AccessKind.fetch : 0) |
    (access & IMPLICIT_ACCESS ? AccessKind.system : 0);
  const user = (access & Pferr.user) !== 0;
  try {
    const low = Number(gva & 0xffffffffn) | 0;
    const high = Number((gva >> 32n) & 0xffffffffn) | 0;
    if (walker.walk(low, high, kind, user, smapApplies(vcpu, access, config.smap))) return walker;
    fill(fault, walker.errorCode, gva);
  } catch (error) {
    if (error !== NO_TABLE) throw error;
    fill(fault, access & (Pferr.write | Pferr.user | Pferr.fetch), gva);
  }
  return null;
}

/**
 * Translates a guest linear address. KVM: mmu->gva_to_gpa.
 * @param access Pferr bits, and {@link IMPLICIT_ACCESS}
 * @returns guest physical address (L1's, below an L2 with nested paging), or -1 with `fault` filled (#PF)
 */
export function kvmMmuGvaToGpa(vcpu: Vcpu, gva: bigint, access: number, fault: X86ExceptionInfo): number {
  const walker = kvmMmuWalk(vcpu, gva, access, fault);
  if (!walker) return -1;
  if (!vcpu.arch.nestedTdp) return walker.gpa;
  const page = vcpu.kvm.calls.translateNestedGpa(vcpu, walker.gpa - (walker.gpa % PAGE), (access & 0xff) | Pferr.user);
  if (page >= 0) return page + (walker.gpa % PAGE);
  fill(fault, access & 0xff, BigInt(walker.gpa));
  fault.nestedPageFault = true;
  return -1;
}

/** An empty exception record. */
export const noFault = (): X86ExceptionInfo => ({
  vector: -1,
  errorCodeValid: false,
  errorCode: 0,
  nestedPageFault: false,
  address: 0n,
});

/** Access bits of the current CPL. */
export const cplAccess = (vcpu: Vcpu): number => (vcpu.kvm.calls.getCpl(vcpu) === 3 ? Pferr.user : 0);

/** KVM_TRANSLATE and debuggers: a supervisor read that faults nobody and marks nothing; undefined: not mapped. */
export function kvmMmuGvaToGpaSystem(vcpu: Vcpu, gva: bigint): number | undefined {
  const { tables } = walkOf(vcpu);
  tables.readOnly = true;
  try {
    const gpa = kvmMmuGvaToGpa(vcpu, gva, IMPLICIT_ACCESS, noFault());
    return gpa < 0 ? undefined : gpa;
  } finally {
    tables.readOnly = false;
  }
}
