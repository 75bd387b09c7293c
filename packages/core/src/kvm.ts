/** One kernel: the loaded vendor, its static calls, the host's physical memory and processor. */
import type { PhysicalMemory, ProcessorApi } from '@tskvm/emulator';
import type { Backend } from './backend.ts';
import type { KvmX86Calls } from './ops-table.ts';
import type { Vm } from './vm.ts';

export interface Kvm {
  readonly memory: PhysicalMemory;
  readonly processor: ProcessorApi;
  /** The loaded vendor; null before load and after unload. */
  readonly backend: Backend | null;
  /** The static calls. */
  readonly calls: KvmX86Calls;
  /** Non-call members that the vendor's hardwareSetup fills (kvm_caps, tdp…). */
  readonly caps: {
    supportedXcr0: bigint;
    supportedMceCap: bigint;
    hasTscControl: boolean;
    tdpEnabled: boolean;
    efer: bigint;
  };
  /** The vendor's module state (module parameters after hardwareSetup, shared pages). */
  vendor: unknown;
  /** What the vendor's silicon returned from `hardware()`. */
  readonly hardware: unknown;
  /** Allocates a zeroed host page; returns its physical address. Shuffled if the kernel was created so. */
  allocPage(): number;
  /** Contiguous zeroed host pages (control structures that need them). */
  allocPages(count: number): number;
  freePage(pa: number): void;
  readonly vms: Vm[];
}
