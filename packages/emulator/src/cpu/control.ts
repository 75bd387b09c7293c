/**
 * MOV to CR0, CR3, CR4, CR8, EFER and XCR0 as the silicon does them: what it refuses, and what a write flushes.
 * Manual: APM vol. 2 ch. 3.1 and 14, sections 5.3.1, 5.5.2; SDM vol. 3 sections 2.5, 4.1.2, 4.10.4 and 9.8.5.
 *
 * A refusal is `true` (the caller raises #GP(0)); then nothing was changed.
 */
import type { GuestMode } from '../guest-mode.ts';
import { Attrib, CR0, CR3, CR4, EFER, Seg } from '../state-layout.ts';
import { lowOf, type MemoryAccess } from './access.ts';
import { cr4Bits } from './cr4-bits.ts';
import type { FeatureName } from './features.ts';
import type { StateBlock } from './state.ts';

export interface ControlHost {
  readonly state: StateBlock;
  readonly access: MemoryAccess;
  readonly guest: GuestMode | null;
  readonly pagingModel: { maxphyaddr: number };
  has(feature: FeatureName): boolean;
}

const CR0_DEFINED = CR0.PE | CR0.MP | CR0.EM | CR0.TS | CR0.ET | CR0.NE | CR0.WP | CR0.AM | CR0.NW | CR0.CD | CR0.PG;
/** Bits whose change reloads the PDPTEs in PAE paging (SDM vol. 3 section 4.4.1). */
const CR0_PDPTE = CR0.CD | CR0.NW | CR0.PG;
const CR4_PDPTE = CR4.PGE | CR4.PSE | CR4.PAE | CR4.SMEP;
/** Bits whose change flushes all translations, globals too (SDM vol. 3 section 4.10.4.1). */
const CR4_FLUSH = CR4.PGE | CR4.PSE | CR4.PAE | CR4.PCIDE | CR4.SMEP;

const EFER_FEATURES: readonly (readonly [bigint, FeatureName])[] = [
  [EFER.SCE, 'syscall'],
  [EFER.LME | EFER.LMA, 'lm'],
  [EFER.NXE, 'nx'],
  [EFER.SVME, 'svm'],
  [EFER.FFXSR, 'ffxsr'],
];

/** Bits that exist on this processor. */
function definedBits(table: readonly (readonly [bigint, FeatureName])[], has: ControlHost['has']): bigint {
  return table.reduce((mask, [bits, feature]) => (has(feature) ? mask | bits : mask), 0n);
}

export class ControlRegisters {
  readonly cr4Defined: bigint;
  readonly eferDefined: bigint;
  readonly #host: ControlHost;
  readonly #state: StateBlock;

  constructor(host: ControlHost) {
    this.#host = host;
    this.#state = host.state;
    this.cr4Defined = cr4Bits(host.has.bind(host));
    this.eferDefined = definedBits(EFER_FEATURES, host.has.bind(host));
  }

  #flush(keepGlobal: boolean, pcid?: number): void {
    this.#host.access.tlb.flushAsid(this.#host.guest?.asid ?? 0, keepGlobal, pcid);
  }

  /** EFER.LMA and a 64-bit code segment. */
  #in64Bit(): boolean {
    return (this.#state.efer & EFER.LMA) !== 0n && (this.#state.attrib(Seg.CS) & Attrib.L) !== 0;
  }

  #refusesCr0(old: bigint, value: bigint): boolean {
    const { efer, cr4 } = this.#state;
    if (value >> 32n !== 0n) return true;
    if (value & CR0.NW && !(value & CR0.CD)) return true;
    if (value & CR0.PG && !(value & CR0.PE)) return true;
    if (this.#host.guest?.crIllegal(0, value)) return true;
    const enables = (value & CR0.PG) !== 0n && (old & CR0.PG) === 0n;
    if (enables && efer & EFER.LME && (!(cr4 & CR4.PAE) || this.#state.attrib(Seg.CS) & Attrib.L)) return true;
    const disables = (value & CR0.PG) === 0n && (old & CR0.PG) !== 0n;
    if (disables && (this.#in64Bit() || cr4 & CR4.PCIDE)) return true;
    return (value & CR0.WP) === 0n && (cr4 & CR4.CET) !== 0n;
  }

  /** CR0. Undefined bits are dropped, ET stays 1. LMA follows LME and PG. */
  setCr0(wanted: bigint): boolean {
    const state = this.#state;
    const old = state.cr0;
    if (this.#refusesCr0(old, wanted)) return true;
    const value = (wanted & CR0_DEFINED) | CR0.ET;
    const legacyPae = (value & CR0.PG) !== 0n && (state.cr4 & CR4.PAE) !== 0n && (state.efer & EFER.LME) === 0n;
    if (legacyPae && (value ^ old) & CR0_PDPTE && !this.#loadPdptes(state.cr3)) return true;
    if ((value ^ old) & CR0.PG) {
      this.#flush(false);
      if (state.efer & EFER.LME) state.efer = value & CR0.PG ? state.efer | EFER.LMA : state.efer & ~EFER.LMA;
    }
    state.cr0 = value;
    return false;
  }

  #loadPdptes(cr3: bigint): boolean {
    return !this.#host.access.usesPdpteRegisters() || this.#host.access.loadPdptes(lowOf(cr3));
  }

  #isLegacyPae(): boolean {
    const { cr0, cr4, efer } = this.#state;
    return (cr0 & CR0.PG) !== 0n && (cr4 & CR4.PAE) !== 0n && (efer & EFER.LMA) === 0n;
  }

  /** CR3. With CR4.PCIDE bit 63 means: keep what is cached under the new PCID. */
  setCr3(wanted: bigint): boolean {
    const state = this.#state;
    const pcide = (state.cr4 & CR4.PCIDE) !== 0n;
    const keep = pcide && (wanted & CR3.NOFLUSH) !== 0n;
    let value = keep ? wanted & ~CR3.NOFLUSH : wanted;
    const long = (state.efer & EFER.LMA) !== 0n;
    const address = this.#host.has('lam') ? value & ~(CR3.LAM_U48 | CR3.LAM_U57) : value;
    if (long && address >> BigInt(this.#host.pagingModel.maxphyaddr) !== 0n) return true;
    if (!long) value &= 0xffffffffn;
    if (this.#host.guest?.crIllegal(3, value)) return true;
    if (this.#isLegacyPae() && !this.#loadPdptes(value)) return true;
    if (!keep) this.#flush(true, pcide ? Number(value & 0xfffn) : undefined);
    state.cr3 = value;
    return false;
  }

  #refusesCr4(old: bigint, value: bigint): boolean {
    const { cr0, cr3, efer } = this.#state;
    if ((value & ~this.cr4Defined) !== 0n) return true;
    if (this.#host.guest?.crIllegal(4, value)) return true;
    const long = (efer & EFER.LMA) !== 0n;
    if (long && ((value & CR4.PAE) === 0n || ((value ^ old) & CR4.LA57) !== 0n)) return true;
    const setsPcide = (value & CR4.PCIDE) !== 0n && (old & CR4.PCIDE) === 0n;
    if (setsPcide && (!long || (cr3 & 0xfffn) !== 0n)) return true;
    return (value & CR4.CET) !== 0n && (cr0 & CR0.WP) === 0n;
  }

  setCr4(value: bigint): boolean {
    const state = this.#state;
    const old = state.cr4;
    if (this.#refusesCr4(old, value)) return true;
    const pae = (state.cr0 & CR0.PG) !== 0n && (value & CR4.PAE) !== 0n && (state.efer & EFER.LMA) === 0n;
    if (pae && (value ^ old) & CR4_PDPTE && !this.#loadPdptes(state.cr3)) return true;
    if ((value ^ old) & CR4_FLUSH) this.#flush(false);
    state.cr4 = value;
    return false;
  }

  /** CR8 is the task priority: four bits. */
  setCr8(value: bigint): boolean {
    if (value >> 4n !== 0n) return true;
    this.#state.cr8 = value;
    return false;
  }

  /** WRMSR to EFER: LMA cannot be written, LME not while paging is on (APM vol. 2 section 3.1.7). */
  setEfer(wanted: bigint): boolean {
    const state = this.#state;
    if ((wanted & ~this.eferDefined) !== 0n) return true;
    if ((wanted ^ state.efer) & EFER.LME && state.cr0 & CR0.PG) return true;
    const value = (wanted & ~EFER.LMA) | (state.efer & EFER.LMA);
    state.efer = value;
    return false;
  }
}
