/**
 * SMI and RSM on the bare processor: where the shared SMM code meets the silicon.
 * Manual: APM vol. 2 ch. 10, SDM vol. 3 ch. 31.
 */
import { NotImplementedError } from '../exceptions.ts';
import { X86Emul } from '../ops.ts';
import { S } from '../state-layout.ts';
import {
  buildSmmSaveMap32,
  buildSmmSaveMap64,
  emulatorLeaveSmm,
  enterSmmState,
  type LeaveSmmHost,
  SMM_MAP_OFFSET,
  SMM_MAP_SIZE,
  type SmmSource,
} from '../system/smm.ts';
import type { Processor } from './processor.ts';

const smbaseOf = (cpu: Processor): number => Number(cpu.state.get64(S.smbase));
const mapAddress = (cpu: Processor): number => (smbaseOf(cpu) + SMM_MAP_OFFSET) % 0x100000000;

function source(cpu: Processor): SmmSource {
  const { ops, state } = cpu;
  return {
    readGpr: (reg) => ops.readGpr(reg),
    getRip: () => state.rip,
    getRflags: () => state.rflags,
    getSegment: (seg) => state.getSegment(seg),
    getGdt: () => ops.getGdt(),
    getIdt: () => ops.getIdt(),
    getCr: (cr) => ops.getCr(cr),
    getDr: (dr) => ops.getDr(dr),
    getMsr: (index) => ops.getMsr(index),
    getSmbase: () => smbaseOf(cpu),
    getInterruptShadow: () => state.shadow,
  };
}

/** SMI: writes the save map, then starts the handler at SMBASE + 8000. A halted processor goes on behind HLT after RSM. */
export function enterSmm(cpu: Processor): void {
  if (cpu.guest !== null)
    throw new NotImplementedError('SMI in a guest without SMI intercept', 'APM vol. 2 section 15.22');
  const { state, ops } = cpu;
  const map = cpu.has('lm') ? buildSmmSaveMap64(source(cpu)) : buildSmmSaveMap32(source(cpu));
  const at = mapAddress(cpu);
  for (let n = 0; n < SMM_MAP_SIZE; n++) cpu.access.store(at + n, BigInt(map[n]), 1);
  const cr0 = state.cr0;
  cpu.smmInsideNmi = state.nmiBlocked;
  state.nmiBlocked = true;
  state.activity = 0;
  state.shadow = 0;
  cpu.access.tlb.flushAsid(0, false);
  enterSmmState(
    {
      setRip: (value) => ops.setRip(value),
      setRflags: (value) => ops.setRflags(value),
      setSegment: (seg, value) => ops.setSegment(seg, value),
      setIdt: (value) => ops.setIdt(value),
      setCr0: (value) => {
        state.cr0 = value;
      },
      setCr4: (value) => {
        state.cr4 = value;
      },
      setDr7: (value) => state.set64(S.dr7, value),
      setEfer: (value) => {
        state.efer = value;
      },
    },
    smbaseOf(cpu),
    cr0,
  );
  state.smm = true;
  cpu.stateReplaced('smi');
}

/** RSM. Non-zero: the map is corrupt, shutdown. */
export function leaveSmm(cpu: Processor): number {
  const { ops, state } = cpu;
  const host: LeaveSmmHost = {
    longMode: cpu.has('lm'),
    readSaveMap: () =>
      Uint8Array.from({ length: SMM_MAP_SIZE }, (_, n) => Number(cpu.access.load(mapAddress(cpu) + n, 1))),
    smmEnded: () => {
      state.nmiBlocked = cpu.smmInsideNmi;
      state.smm = false;
      cpu.access.tlb.flushAsid(0, false);
    },
    vendorLeaveSmm: () => 0,
    writeGpr: (reg, value) => ops.writeGpr(reg, value),
    setRip: (value) => ops.setRip(value),
    setRflags: (value) => ops.setRflags(value),
    setDr: (dr, value) => ops.setDr(dr, value),
    getCr: (cr) => ops.getCr(cr),
    setCr: (cr, value) => ops.setCr(cr, value),
    setMsr: (index, value) => ops.setMsr(index, value),
    setSegment: (seg, value) => ops.setSegment(seg, value),
    setGdt: (value) => ops.setGdt(value),
    setIdt: (value) => ops.setIdt(value),
    setSmbase: (value) => state.set64(S.smbase, BigInt(value >>> 0)),
    setInterruptShadow: (shadow) => {
      ops.newShadow = shadow;
    },
  };
  return emulatorLeaveSmm(host) === X86Emul.CONTINUE ? 0 : 1;
}
