/** @module @tskvm/emulator: x86 itself. */

export type * from './builder/builder.ts';
export { modelCpuid, xsaveSize } from './cpu/cpuid.ts';
export { cr4Bits } from './cpu/cr4-bits.ts';
export { createProcessor, type EngineName } from './cpu/create.ts';
export * from './cpu/features.ts';
export { pagingMode } from './cpu/mode.ts';
export * from './cpu/models/index.ts';
export { isCanonical48, Msr, type MsrHook } from './cpu/msrs.ts';
export { Processor, type ProcessorOptions } from './cpu/processor.ts';
export { StateBlock } from './cpu/state.ts';
export type * from './cpu-model-types.ts';
export * from './decode/decode.ts';
export * from './decode/instruction.ts';
export type * from './engines/engine.ts';
export * from './engines/evaluate/index.ts';
export * from './engines/sampling.ts';
export * from './exceptions.ts';
export * from './guest-mode.ts';
export * from './intercepts.ts';
export * from './memory/layout.ts';
export * from './memory/paging.ts';
export * from './memory/physical.ts';
export { PageSize, Rights, Tlb, type TlbFill } from './memory/tlb.ts';
export * from './ops.ts';
export * from './processor-api.ts';
export * from './state-layout.ts';
export * from './system/index.ts';
