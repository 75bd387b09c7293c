/** struct kvm: one virtual machine. */
import type { Kvm } from './kvm.ts';
import type { Vcpu } from './vcpu.ts';

/** struct kvm_memory_slot: guest frames mapped onto host frames (which need not be contiguous). */
export interface Memslot {
  id: number;
  addressSpace: 0 | 1;
  baseGfn: number;
  npages: number;
  readonly: boolean;
  logDirty: boolean;
  dirtyBitmap: Uint32Array | null;
  /** Host page frame number of each guest page. */
  frames: Uint32Array;
}

export interface Vm {
  readonly kvm: Kvm;
  readonly vcpus: Vcpu[];
  readonly memslots: Memslot[];
  /** The vendor's part. */
  vendor: unknown;
  vmType: 'default' | 'sev-es';
  bugged: boolean;
  /** In-kernel PIC, IOAPIC and local APICs exist (KVM_CREATE_IRQCHIP). */
  irqchipInKernel: boolean;
  /** Reads guest physical memory through the slots; throws KvmError for an address without one. */
  readGuest(gpa: number, length: number): Uint8Array;
  writeGuest(gpa: number, bytes: Uint8Array): void;
  gfnToHfn(gfn: number, smm?: boolean): number;
}
