/**
 * The x87 control and status words and MXCSR: which bits exist, initial values, ES and B.
 * Manual: APM vol. 1 sections 4.2.2 and 6.2.2 to 6.2.5.
 */
import type { FpuArea } from './area.ts';

export const INITIAL_CW = 0x37f;
export const INITIAL_MXCSR = 0x1f80;
/** Bits of FCW that exist; bit 6 always reads as one. */
const CW_MASK = 0x1f7f;
const CW_ONES = 0x40;
/** MXCSR_MASK: all but the reserved upper half. */
export const MXCSR_MASK = 0xffff;
const ES_B = 0x8080;

/** ES and B follow the pending unmasked exceptions. */
export function updateSummary(fpu: FpuArea): void {
  const pending = (fpu.sw & ~fpu.cw & 0x3f) !== 0;
  fpu.sw = pending ? fpu.sw | ES_B : fpu.sw & ~ES_B;
}

export const legalControlWord = (value: number): number => (value & CW_MASK) | CW_ONES;

export function setControlWord(fpu: FpuArea, value: number): void {
  fpu.cw = legalControlWord(value);
  updateSummary(fpu);
}

/** FNINIT: the registers keep their contents, their tags say empty. */
export function initialise(fpu: FpuArea): void {
  fpu.cw = INITIAL_CW;
  fpu.sw = 0;
  fpu.tw = 0;
  fpu.opcode = 0;
  fpu.ip = 0n;
  fpu.dp = 0n;
}
