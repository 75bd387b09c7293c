/** @module @tskvm/emulator: x86 itself. */

export type * from './builder/builder.ts';
export * from './cpu/features.ts';
export type * from './cpu-model-types.ts';
export type * from './decode/instruction.ts';
export * from './exceptions.ts';
export * from './guest-mode.ts';
export * from './intercepts.ts';
export * from './memory/layout.ts';
export * from './memory/paging.ts';
export * from './memory/physical.ts';
export * from './ops.ts';
export * from './processor-api.ts';
export * from './state-layout.ts';
