/**
 * The mode function: what CR0, CR4, EFER, RFLAGS.VM, CPL and the segments make of the processor.
 * Manual: APM vol. 2 ch. 1 and figure 1-6 (operating modes), SDM vol. 3 section 2.2.
 *
 * Everything that can change the mode goes through here: the mode's name, the rights of TLB contexts and the paging configuration derive
 * from the state block by these functions and by nothing else; the code key of the engines by code-key.ts.
 */
import type { GuestMode } from '../guest-mode.ts';
import { isLongPaging, type PagingConfig, type PagingMode } from '../memory/paging.ts';
import { Rights } from '../memory/tlb.ts';
import type { ModeName, ProcessorMode } from '../processor-api.ts';
import { Attrib, CR0, CR4, EFER, Flag, S, Seg, type SegmentIndex } from '../state-layout.ts';
import type { EmulateMode } from '../system/context.ts';
import type { StateBlock } from './state.ts';

const low = (value: bigint): number => Number(value & 0xffffffffn);
const Cr0 = { PE: low(CR0.PE), WP: low(CR0.WP), AM: low(CR0.AM), PG: low(CR0.PG) };
const Cr4 = {
  PSE: low(CR4.PSE),
  PAE: low(CR4.PAE),
  PGE: low(CR4.PGE),
  PCIDE: low(CR4.PCIDE),
  SMEP: low(CR4.SMEP),
  SMAP: low(CR4.SMAP),
  LA57: low(CR4.LA57),
  PKE: low(CR4.PKE),
  PKS: low(CR4.PKS),
};
const Efer = { LMA: low(EFER.LMA), NXE: low(EFER.NXE) };
const ALL: readonly SegmentIndex[] = [Seg.ES, Seg.CS, Seg.SS, Seg.DS, Seg.FS, Seg.GS];

/** Low halves of the control registers, read without bigint. */
const cr0Of = (state: StateBlock): number => state.block.getInt32(S.cr0, true);
const cr4Of = (state: StateBlock): number => state.block.getInt32(S.cr4, true);
const eferOf = (state: StateBlock): number => state.block.getInt32(S.efer, true);

/** EFER.LMA. */
export const isLongModeActive = (state: StateBlock): boolean => (eferOf(state) & Efer.LMA) !== 0;
/** 64-bit mode: LMA and CS.L. */
export const is64BitMode = (state: StateBlock): boolean =>
  isLongModeActive(state) && (state.attrib(Seg.CS) & Attrib.L) !== 0;

/**
 * Low halves of CR0 and CR4 as whoever runs sees them: in a guest with read shadows not the registers themselves. Reports of the mode
 * use the view; translation, engines and checks use the registers.
 */
export interface ControlView {
  cr0: number;
  cr4: number;
}
const registers = (state: StateBlock): ControlView => ({ cr0: cr0Of(state), cr4: cr4Of(state) });
/** Fills `view` from the registers and the guest's shadows. */
export function viewControls(state: StateBlock, guest: GuestMode | null, view: ControlView): ControlView {
  view.cr0 = cr0Of(state);
  view.cr4 = cr4Of(state);
  if (guest?.viewCr !== undefined) {
    view.cr0 = guest.viewCr(0, view.cr0);
    view.cr4 = guest.viewCr(4, view.cr4);
  }
  return view;
}

/** Paging mode of the control registers. */
export function pagingMode(state: StateBlock, view?: ControlView): PagingMode {
  if (((view === undefined ? cr0Of(state) : view.cr0) & Cr0.PG) === 0) return 'off';
  const cr4 = view === undefined ? cr4Of(state) : view.cr4;
  if (isLongModeActive(state)) return (cr4 & Cr4.LA57) !== 0 ? '5-level' : '4-level';
  return (cr4 & Cr4.PAE) !== 0 ? 'PAE' : '32-bit';
}

/** Name of the mode: "unreal" is real mode with a segment cache that real mode could not have loaded. */
export function modeName(state: StateBlock, view: ControlView = registers(state)): ModeName {
  if ((view.cr0 & Cr0.PE) === 0) return ALL.some((seg) => state.limit(seg) > 0xffff) ? 'unreal' : 'real';
  const big = (state.attrib(Seg.CS) & Attrib.DB) !== 0;
  if ((state.rflagsLow & Flag.VM) !== 0) return 'virtual8086';
  if (is64BitMode(state)) return 'long';
  if (isLongModeActive(state)) return big ? 'compatibility32' : 'compatibility16';
  return big ? 'protected32' : 'protected16';
}

/** The mode as a whole. */
export const computeMode = (
  state: StateBlock,
  guest: boolean,
  nested: boolean,
  view: ControlView = registers(state),
): ProcessorMode => ({
  name: modeName(state, view),
  paging: pagingMode(state, view),
  smm: state.smm,
  guest,
  nested,
});

/**
 * A number that differs whenever the mode differs: what the hot path compares before it builds a {@link ProcessorMode}.
 */
export function modeKey(
  state: StateBlock,
  guest: boolean,
  nested: boolean,
  view: ControlView = registers(state),
): number {
  const { cr0, cr4 } = view;
  const attrib = state.attrib(Seg.CS);
  const wide = (cr0 & Cr0.PE) === 0 && ALL.some((seg) => state.limit(seg) > 0xffff);
  return (
    (cr0 & Cr0.PE) |
    ((cr0 & Cr0.PG) !== 0 ? 2 : 0) |
    ((eferOf(state) & Efer.LMA) !== 0 ? 4 : 0) |
    ((cr4 & Cr4.PAE) !== 0 ? 8 : 0) |
    ((state.rflagsLow & Flag.VM) !== 0 ? 16 : 0) |
    ((attrib & Attrib.L) !== 0 ? 32 : 0) |
    ((attrib & Attrib.DB) !== 0 ? 64 : 0) |
    (wide ? 128 : 0) |
    (state.smm ? 256 : 0) |
    (guest ? 512 : 0) |
    (nested ? 1024 : 0) |
    ((cr4 & Cr4.LA57) !== 0 ? 2048 : 0)
  );
}

/** Equality of everything that makes a mode switch. */
export const sameMode = (a: ProcessorMode, b: ProcessorMode): boolean =>
  a.name === b.name && a.paging === b.paging && a.smm === b.smm && a.guest === b.guest && a.nested === b.nested;

/** X86EMUL_MODE_*: the mode as instructions see it. */
export function emulateModeOf(state: StateBlock): EmulateMode {
  if ((cr0Of(state) & Cr0.PE) === 0) return 'real';
  if ((state.rflagsLow & Flag.VM) !== 0) return 'vm86';
  const attrib = state.attrib(Seg.CS);
  if ((attrib & Attrib.L) !== 0 && isLongModeActive(state)) return 'prot64';
  return (attrib & Attrib.DB) !== 0 ? 'prot32' : 'prot16';
}

/** CR0.AM, RFLAGS.AC and CPL 3. */
export const isAlignmentChecked = (state: StateBlock): boolean =>
  (cr0Of(state) & Cr0.AM) !== 0 && (state.rflagsLow & Flag.AC) !== 0 && state.cpl === 3;

/** SMAP is active for explicit supervisor accesses: CR4.SMAP and not RFLAGS.AC. */
export const isSmapActive = (state: StateBlock): boolean =>
  (cr4Of(state) & Cr4.SMAP) !== 0 && (state.rflagsLow & Flag.AC) === 0;

/** Rights of the TLB context for explicit (`system` false) or implicit supervisor accesses. */
export function contextRights(state: StateBlock, system: boolean): number {
  const cr0 = cr0Of(state);
  const cr4 = cr4Of(state);
  if ((cr0 & Cr0.PG) === 0) return 0;
  const smap = system ? (cr4 & Cr4.SMAP) !== 0 : isSmapActive(state);
  return (
    Rights.paging |
    (!system && state.cpl === 3 ? Rights.user : 0) |
    ((cr0 & Cr0.WP) !== 0 ? Rights.wp : 0) |
    ((cr4 & Cr4.SMEP) !== 0 ? Rights.smep : 0) |
    (smap ? Rights.smap : 0) |
    ((eferOf(state) & Efer.NXE) !== 0 ? Rights.nx : 0)
  );
}

/** PCID of the address space, 0 without CR4.PCIDE. */
export const currentPcid = (state: StateBlock): number =>
  (cr4Of(state) & Cr4.PCIDE) !== 0 ? state.block.getUint32(S.cr3, true) & 0xfff : 0;

/** Physical address of the top table that CR3 holds. */
function rootAddress(state: StateBlock, mode: PagingMode, maxphyaddr: number): number {
  const cr3Low = state.block.getUint32(S.cr3, true);
  if (mode === 'PAE') return (cr3Low & 0xffffffe0) >>> 0;
  if (!isLongPaging(mode)) return (cr3Low & 0xfffff000) >>> 0;
  const high = state.block.getUint32(S.cr3 + 4, true) & ((1 << (maxphyaddr - 32)) - 1);
  return high * 0x100000000 + ((cr3Low & 0xfffff000) >>> 0);
}

/** Configuration of the page walker. `pdpte`: registers that hold the PDPTEs, if they do. */
export function pagingConfig(
  state: StateBlock,
  model: { maxphyaddr: number; gbPages: boolean; amd: boolean },
  pdpte: Uint32Array | undefined,
): PagingConfig {
  const mode = pagingMode(state);
  const cr4 = cr4Of(state);
  return {
    mode,
    root: rootAddress(state, mode, model.maxphyaddr),
    wp: (cr0Of(state) & Cr0.WP) !== 0,
    nx: (eferOf(state) & Efer.NXE) !== 0 && (mode === 'PAE' || isLongPaging(mode)),
    smep: (cr4 & Cr4.SMEP) !== 0,
    smap: (cr4 & Cr4.SMAP) !== 0,
    pse: (cr4 & Cr4.PSE) !== 0,
    pge: (cr4 & Cr4.PGE) !== 0,
    maxphyaddr: model.maxphyaddr,
    gbPages: model.gbPages,
    bit8Reserved: model.amd,
    pdpte,
    pkru: activePkru(state),
    pkrs: activePkrs(state),
  };
}

/** Protection keys in force: 0 without CR4.PKE or long mode. */
export const activePkru = (state: StateBlock): number =>
  (cr4Of(state) & Cr4.PKE) !== 0 && isLongModeActive(state) ? state.pkru : 0;
/** Likewise for supervisor pages, by CR4.PKS. */
export const activePkrs = (state: StateBlock): number =>
  (cr4Of(state) & Cr4.PKS) !== 0 && isLongModeActive(state) ? state.pkrs : 0;
