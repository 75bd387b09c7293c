/**
 * Save and load of the processor as one plain, versioned object: the state block, the TLB with its stale entries, MSRs, pending events.
 */
import { AssertionError } from '../exceptions.ts';
import type { PendingEvent } from '../guest-mode.ts';
import type { TlbSave } from '../memory/tlb.ts';
import type { Processor } from './processor.ts';

export interface ProcessorSave {
  version: 1;
  model: string;
  block: Uint8Array;
  tlb: TlbSave;
  msrs: [number, bigint][];
  tick: number;
  /** null: never. */
  deadline: number | null;
  tscAdjust: bigint;
  pendingDebug: bigint;
  deliveredAt: number;
  pending: { interrupt: boolean; nmi: boolean; smi: boolean; init: boolean };
  eventInDelivery: PendingEvent | null;
  nested: boolean;
  smmInsideNmi: boolean;
  ferr: boolean;
}

export function saveProcessor(cpu: Processor): ProcessorSave {
  return {
    version: 1,
    model: cpu.model.name,
    block: cpu.state.u8.slice(),
    tlb: cpu.access.tlb.save(),
    msrs: cpu.msrs.save(),
    tick: cpu.tick,
    deadline: Number.isFinite(cpu.deadline) ? cpu.deadline : null,
    tscAdjust: cpu.tscAdjust,
    pendingDebug: cpu.events.pendingDebug,
    deliveredAt: cpu.events.deliveredAt,
    pending: {
      interrupt: cpu.interruptPending,
      nmi: cpu.nmiPending,
      smi: cpu.smiPending,
      init: cpu.initPending,
    },
    eventInDelivery: cpu.eventInDelivery === undefined ? null : { ...cpu.eventInDelivery },
    nested: cpu.nested,
    smmInsideNmi: cpu.smmInsideNmi,
    ferr: cpu.ferr,
  };
}

/** Loads what `saveProcessor` made. Memory is the caller's, and so is a guest that was running. */
export function loadProcessor(cpu: Processor, state: unknown): void {
  const saved = state as ProcessorSave;
  if (saved?.version !== 1)
    throw new AssertionError(`processor state of version ${String(saved?.version)}: 1 is known`);
  if (saved.model !== cpu.model.name) {
    throw new AssertionError(`processor state of model ${saved.model} loaded into ${cpu.model.name}`);
  }
  cpu.state.u8.set(saved.block);
  cpu.state.keysStale = true;
  cpu.access.tlb.load(saved.tlb);
  cpu.msrs.load(saved.msrs);
  cpu.tick = saved.tick;
  cpu.deadline = saved.deadline ?? Number.POSITIVE_INFINITY;
  cpu.tscAdjust = saved.tscAdjust;
  cpu.events.pendingDebug = saved.pendingDebug;
  cpu.events.deliveredAt = saved.deliveredAt;
  cpu.interruptPending = saved.pending.interrupt;
  cpu.nmiPending = saved.pending.nmi;
  cpu.smiPending = saved.pending.smi;
  cpu.initPending = saved.pending.init;
  cpu.eventInDelivery = saved.eventInDelivery ?? undefined;
  cpu.nested = saved.nested;
  cpu.smmInsideNmi = saved.smmInsideNmi;
  cpu.ferr = saved.ferr;
  cpu.access.codePages.fill(0);
  cpu.engine?.invalidateAll();
  cpu.modeLoaded();
}
