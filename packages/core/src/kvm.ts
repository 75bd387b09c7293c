/** One kernel: the loaded vendor, its static calls, the host's physical memory and processor. */
import type { CpuModel, PhysicalMemory, ProcessorApi } from '@tskvm/emulator';
import type { Backend } from './backend.ts';
import type { KvmX86Calls } from './ops-table.ts';
import type { Tracer } from './trace.ts';
import type { Vm, VmOptions } from './vm.ts';

export interface KvmOptions {
  /** Host physical memory in bytes (default 64 MiB). */
  memory?: number;
  /** CPU model; default: the backend's. */
  model?: CpuModel;
  /** Hand out host frames in an order shuffled by this seed, so that a guest address taken for a host one is caught. */
  shuffleFrames?: number;
  /** Nanoseconds per tick (default 1). */
  nsPerTick?: number;
}

/** kvm_caps and kvm_host: what the vendor's hardwareSetup fills. */
export interface KvmCaps {
  supportedXcr0: bigint;
  supportedXss: bigint;
  supportedMceCap: bigint;
  hasTscControl: boolean;
  tdpEnabled: boolean;
  /** EFER bits that a guest may set. */
  efer: bigint;
}

export class Kvm {
  readonly memory!: PhysicalMemory;
  readonly processor!: ProcessorApi;
  readonly model!: CpuModel;
  /** The loaded vendor; null before load and after unload. */
  backend: Backend | null = null;
  /** The static calls. */
  calls!: KvmX86Calls;
  readonly caps: KvmCaps = {
    supportedXcr0: 0n,
    supportedXss: 0n,
    supportedMceCap: 0n,
    hasTscControl: false,
    tdpEnabled: false,
    efer: 0n,
  };
  /** The vendor's module state (module parameters after hardwareSetup, shared pages). */
  vendor: unknown = null;
  /** What the vendor's silicon returned from `hardware()`. */
  hardware: unknown = null;
  readonly vms: Vm[] = [];
  /** Listeners and call path; null: nobody looks. */
  tracer: Tracer | null = null;
  /** Makes a Kvm an owner for `frame` and `trace`. */
  get kvm(): this {
    return this;
  }

  static async create(_backend: Backend, _options: KvmOptions = {}): Promise<Kvm> {
    throw new Error('body follows');
  }
  /** Allocates a zeroed host page; returns its physical address. Shuffled if the kernel was created so. */
  allocPage(): number {
    throw new Error('body follows');
  }
  /** Contiguous zeroed host pages (control structures that need them). */
  allocPages(_count: number): number {
    throw new Error('body follows');
  }
  freePage(_pa: number): void {
    throw new Error('body follows');
  }
  createVm(_options: VmOptions = {}): Vm {
    throw new Error('body follows');
  }
}
