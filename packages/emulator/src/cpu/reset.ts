/**
 * Register values after RESET and INIT.
 * Manual: APM vol. 2 table 14-1, SDM vol. 3 table 9-1.
 */
import { Attrib, CR0, S, Seg, type Segment } from '../state-layout.ts';
import type { Processor } from './processor.ts';
import type { StateBlock } from './state.ts';

const PRESENT_CODE = Attrib.P | Attrib.S | 0xb;
const PRESENT_DATA = Attrib.P | Attrib.S | 0x3;
const LDT = Attrib.P | 0x2;
const BUSY_TSS16 = Attrib.P | 0x3;
const BUSY_TSS32 = Attrib.P | 0xb;
const segment = (attrib: number, selector = 0, base = 0n): Segment => ({ selector, attrib, limit: 0xffff, base });

function resetSegments(state: StateBlock, intel: boolean): void {
  for (const seg of [Seg.ES, Seg.SS, Seg.DS, Seg.FS, Seg.GS] as const) state.setSegment(seg, segment(PRESENT_DATA));
  state.setSegment(Seg.CS, segment(PRESENT_CODE, 0xf000, 0xffff0000n));
  state.setSegment(Seg.LDTR, segment(LDT));
  state.setSegment(Seg.TR, segment(intel ? BUSY_TSS32 : BUSY_TSS16));
  state.setTable('gdtr', { base: 0n, limit: 0xffff });
  state.setTable('idtr', { base: 0n, limit: 0xffff });
}

/** What RESET clears and INIT keeps: extended state, MTRRs and the other MSRs. */
function powerOn(cpu: Processor): void {
  const { state } = cpu;
  state.u8.fill(0);
  state.keysStale = true;
  cpu.msrs.reset();
  cpu.tscAdjust = 0n;
  state.set64(S.xcr0, 1n);
  state.set64(S.random, cpu.seed);
  state.set64(S.smbase, 0x30000n);
  state.set64(S.apicBase, 0xfee00900n);
  state.block.setUint16(S.fcw, 0x37f, true);
  state.block.setUint32(S.mxcsr, 0x1f80, true);
  cpu.access.tlb.flushAll();
  cpu.access.codePages.fill(0);
}

/** Writes the values of RESET (`init` false) or INIT into the state block. */
export function resetState(cpu: Processor, init: boolean): void {
  const { state } = cpu;
  const cache = init ? state.cr0 & (CR0.CD | CR0.NW) : CR0.CD | CR0.NW;
  if (init) cpu.access.tlb.flushAsid(0, false);
  else powerOn(cpu);
  state.gpr.fill(0n);
  state.gpr[2] = BigInt(cpu.cpuid(1, 0)[0] >>> 0);
  state.rip = 0xfff0n;
  state.rflags = 2n;
  state.efer = 0n;
  state.cr0 = cache | CR0.ET;
  state.cr2 = 0n;
  state.cr3 = 0n;
  state.cr4 = 0n;
  state.cr8 = 0n;
  for (let n = 0; n < 4; n++) state.set64(S.dr0 + n * 8, 0n);
  state.set64(S.dr6, 0xffff0ff0n);
  state.set64(S.dr7, 0x400n);
  resetSegments(state, cpu.model.vendor === 'intel');
  state.cpl = 0;
  state.shadow = 0;
  state.nmiBlocked = false;
  state.activity = 0;
  state.smm = false;
}
