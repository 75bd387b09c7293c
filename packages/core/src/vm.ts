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

export interface VmOptions {
  type?: 'default' | 'sev-es';
}

export class Vm {
  readonly vcpus: Vcpu[] = [];
  readonly memslots: Memslot[] = [];
  /** The vendor's part. */
  vendor: unknown = null;
  readonly vmType: 'default' | 'sev-es';
  bugged = false;
  /** In-kernel PIC, IOAPIC and local APICs exist (KVM_CREATE_IRQCHIP). */
  irqchipInKernel = false;
  constructor(
    readonly kvm: Kvm,
    options: VmOptions = {},
  ) {
    this.vmType = options.type ?? 'default';
  }
  readGuest(_gpa: number, _length: number, _smm = false): Uint8Array {
    throw new Error('body follows');
  }
  writeGuest(_gpa: number, _bytes: Uint8Array, _smm = false): void {
    throw new Error('body follows');
  }
  /** Is the whole range backed by slots. */
  hasMemory(_gpa: number, _length: number, _smm = false): boolean {
    throw new Error('body follows');
  }
  /** Host page frame number of a guest one, -1 without a slot. */
  gfnToHfn(_gfn: number, _smm = false): number {
    throw new Error('body follows');
  }
  createVcpu(_id: number): Vcpu {
    throw new Error('body follows');
  }
}
