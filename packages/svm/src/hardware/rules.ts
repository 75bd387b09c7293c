/**
 * Rules of AMD-V that are data or plain functions: automatic exits, the MSR permission map, illegal CR0 values, event types.
 * Manual: APM vol. 2 sections 15.11, 15.20, 15.35.4, 3.1.1 and table 15-7.
 */
import { CR0, CR4, EFER, type PendingEvent, type ProcessorApi, S, Vector } from '@tskvm/emulator';
import { SvmExit } from './exit-codes.ts';
import { EventInfo } from './vmcb.ts';

/** Exits of a SEV-ES guest that leave directly; every other intercept becomes #VC in the guest (APM 15.35.4). */
export const AUTOMATIC_EXITS: ReadonlySet<number> = new Set([
  SvmExit.INTR,
  SvmExit.NMI,
  SvmExit.SMI,
  SvmExit.INIT,
  SvmExit.VINTR,
  SvmExit.EXCP_BASE + Vector.MC,
  SvmExit.HLT,
  SvmExit.PAUSE,
  SvmExit.SHUTDOWN,
  SvmExit.EFER_WRITE_TRAP,
  ...Array.from({ length: 16 }, (_, cr) => SvmExit.CR0_WRITE_TRAP + cr),
  SvmExit.NPF,
  SvmExit.VMGEXIT,
  SvmExit.BUS_LOCK,
]);

/** MSR of the GHCB protocol: a SEV-ES guest owns it; VMGEXIT puts it into the VMCB. */
export const MSR_SEV_ES_GHCB = 0xc001_0130;

/** Base index and byte offset of the three ranges of the MSR permission map (APM 15.11). */
export const MSRPM_RANGES = [
  [0x0000_0000, 0x0000],
  [0xc000_0000, 0x0800],
  [0xc001_0000, 0x1000],
] as const;

/** Bit number of an MSR's read permission in the map (write is the next one), or -1: outside, always intercepted. */
export function msrpmBit(index: number): number {
  for (const [base, offset] of MSRPM_RANGES) {
    if (index >= base && index < base + 0x2000) return offset * 8 + (index - base) * 2;
  }
  return -1;
}

/** A page-aligned physical address from a 64-bit field. */
export const pa64 = (view: DataView, at: number): number =>
  view.getUint32(at + 4, true) * 0x1_0000_0000 + ((view.getUint32(at, true) & 0xffff_f000) >>> 0);

const low = (bits: bigint): number => Number(bits) | 0;
const [PE, NW, CD, PG] = [low(CR0.PE), low(CR0.NW), low(CR0.CD), low(CR0.PG)];
const PAE = low(CR4.PAE);
const LME = low(EFER.LME);
/** The combinations for which MOV CR0 raises #GP by itself (APM 3.1.1, 5.3.1; before any intercept, table 15-7). */
export function cr0Illegal({ state: { view, base } }: ProcessorApi, low: number, high: number): boolean {
  if (high !== 0 || (low & (NW | CD)) === NW) return true;
  if ((low & PG) === 0) return false;
  if ((low & PE) === 0) return true;
  const enablesPaging = (view.getInt32(base + S.cr0, true) & PG) === 0;
  const long = (view.getInt32(base + S.efer, true) & LME) !== 0;
  return enablesPaging && long && (view.getInt32(base + S.cr4, true) & PAE) === 0;
}

/** EVENTINJ / EXITINTINFO type field of a pending event (APM table 15-10). */
export const EVENT_TYPE: { readonly [K in PendingEvent['kind']]: number } = {
  external: EventInfo.TYPE_INTR,
  nmi: EventInfo.TYPE_NMI,
  exception: EventInfo.TYPE_EXCEPTION,
  softexception: EventInfo.TYPE_EXCEPTION,
  icebp: EventInfo.TYPE_EXCEPTION,
  softint: EventInfo.TYPE_SOFT,
};
