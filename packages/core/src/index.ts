/** @module @tskvm/core: KVM without a vendor. */
export * from './backend.ts';
export * from './diagnostics.ts';
export type * from './kvm.ts';
export type * from './lapic.ts';
export * from './ops-table.ts';
export * from './types.ts';
export type * from './vcpu.ts';
export type * from './vm.ts';
