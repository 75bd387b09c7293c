/** @module @tskvm/core: KVM without a vendor. */
export * from './backend.ts';
export * from './cpuid.ts';
export * from './diagnostics.ts';
export * from './kvm.ts';
export * from './lapic.ts';
export { kvmSetMemoryRegion, type MemoryRegion, USER_MEM_SLOTS } from './memslots.ts';
export * from './mmu/mmu.ts';
export * from './ops-table.ts';
export * from './smm.ts';
export * from './trace.ts';
export * from './types.ts';
export * from './vcpu.ts';
export * from './vm.ts';
export * from './x86.ts';
