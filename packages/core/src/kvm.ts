/** One kernel: the loaded vendor, its static calls, the host's physical memory and processor. KVM: the kvm module's global state. */
import {
  type CpuModel,
  createProcessor,
  type EngineName,
  PAGE,
  PhysicalMemory,
  PRIVATE,
  type ProcessorApi,
  S,
} from '@tskvm/emulator';
import { type Backend, backendModel } from './backend.ts';
import { getSupportedCpuid } from './cpuid.ts';
import { KvmError } from './diagnostics.ts';
import { HostMemory } from './host-memory.ts';
import { newMmuConfig } from './mmu/config.ts';
import { joinModeChanges } from './mode-switch.ts';
import type { KvmX86Calls } from './ops-table.ts';
import { callback, i32, MAX_TICK, oneOf, optional, requireShape, type Shape, struct, u32, u64 } from './shape.ts';
import { kvmState } from './state-shapes.ts';
import { unloadedCalls } from './static-calls.ts';
import { type TraceListener, type TraceName, Tracer } from './trace.ts';
import { Errno } from './types.ts';
import type { CpuidEntry, Vcpu } from './vcpu.ts';
import { kvmArchVcpuDestroy } from './vcpu-create.ts';
import { kvmX86VendorExit, kvmX86VendorInit, retargetCalls } from './vendor.ts';
import { Vm, type VmOptions } from './vm.ts';

/** Makes the processor on which a kernel stands. Asynchronous because its engines compile wasm. */
export type ProcessorFactory = (
  memory: PhysicalMemory,
  model: CpuModel,
  options: { engine?: EngineName; tscPerTick?: number; seed?: bigint },
) => ProcessorApi | Promise<ProcessorApi>;

export interface KvmOptions {
  /** Host physical memory in bytes (default 64 MiB); guests' memory and all tables come out of it. */
  memory?: number;
  /** CPU model; default: the backend's. */
  model?: CpuModel;
  /** Hand out host frames in an order shuffled by this seed, so that a guest address taken for a host one is caught. */
  shuffleFrames?: number;
  /** Nanoseconds per tick (default 1). */
  nsPerTick?: number;
  /** Time of power-on in seconds since 1970, as kvmclock's wall clock tells it (default 0). */
  bootTime?: number;
  /** Where RDRAND's and RDSEED's numbers start, 64 bits (default 0): the same seed gives the same numbers. */
  seed?: bigint;
  /** Engine that runs guests' code (default: the emulator's). */
  engine?: EngineName;
  /** The processor; default: the emulator's. */
  processor?: ProcessorFactory;
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

export interface KvmSave {
  version: 1;
  tick: number;
  /** State of the sequence behind RDRAND and RDSEED. */
  random: bigint;
  /** Tick of the last delivered event, -1: none. A second one at the same tick takes a tick of its own. */
  deliveredAt: number;
  /** What a tick lasted: time goes on only where it lasts as long. */
  nsPerTick: number;
}

const PAGE_OF_WASM = 65536;
/** What a wasm memory can hold beside the processor's own structures. */
const MAX_MEMORY = 65535 * PAGE_OF_WASM - PRIVATE;
const memorySize: Shape = (value, at) =>
  typeof value === 'number' && value > 0 && value <= MAX_MEMORY && value % PAGE_OF_WASM === 0
    ? undefined
    : `${at} ${typeof value === 'number' ? value : `(a ${typeof value})`}: give a multiple of 65536 bytes, at most ${MAX_MEMORY}`;
const nsPerTick: Shape = (value, at) =>
  typeof value === 'number' && value >= 1e-3 && value <= 1e6 ? undefined : `${at}: give a number from 0.001 to 1000000`;
const KVM_OPTIONS = struct({
  memory: optional(memorySize),
  shuffleFrames: optional(i32),
  nsPerTick: optional(nsPerTick),
  bootTime: optional(u32),
  seed: optional(u64),
  engine: optional(oneOf('translate', 'interpret', 'evaluate')),
  processor: callback,
});
const tscPerTickOf = (ns: number): number => Math.max(1, Math.round(ns));
/** Host physical memory; a host that has no room for it is ENOMEM. */
function allocateMemory(size: number): PhysicalMemory {
  try {
    return new PhysicalMemory(size);
  } catch (error) {
    throw new KvmError('HOST_MEMORY_SIZE', Errno.ENOMEM, `no room for ${size} bytes of memory: ${String(error)}`);
  }
}

export class Kvm {
  readonly memory: PhysicalMemory;
  readonly processor: ProcessorApi;
  readonly model: CpuModel;
  readonly hostMemory: HostMemory;
  readonly nsPerTick: number;
  /** Seconds since 1970 at tick 0. */
  readonly bootTime: number;
  /** The host's TSC counts nanoseconds where that makes whole ticks: 1 GHz, as fast as the APIC bus, which no processor's TSC falls below. */
  readonly tscPerTick: number;
  /** The loaded vendor; null before load and after unload. */
  backend: Backend | null = null;
  /** The static calls. */
  calls: KvmX86Calls = unloadedCalls();
  readonly caps: KvmCaps = {
    supportedXcr0: 0n,
    supportedXss: 0n,
    supportedMceCap: 0n,
    hasTscControl: false,
    tdpEnabled: false,
    efer: 0n,
  };
  /** Features that guests may have, by name (kvm_cpu_caps); the vendor adds and removes in hardwareSetup. */
  cpuCaps: Set<string> = new Set();
  /** Masks and levels of the tables (kvm_configure_mmu, kvm_mmu_set_ept_masks). */
  readonly mmu = newMmuConfig();
  /** The vendor's module state (module parameters after hardwareSetup, shared pages). */
  vendor: unknown = null;
  /** What the vendor's silicon returned from `hardware()`. */
  hardware: unknown = null;
  readonly vms: Vm[] = [];
  /** Listeners and call path; null: nobody looks. */
  tracer: Tracer | null = null;
  /** The vCPU whose state is on the processor (KVM: kvm_get_running_vcpu). */
  runningVcpu: Vcpu | null = null;

  private constructor(options: KvmOptions, memory: PhysicalMemory, processor: ProcessorApi, model: CpuModel) {
    this.memory = memory;
    this.processor = processor;
    this.model = model;
    this.nsPerTick = options.nsPerTick ?? 1;
    this.bootTime = options.bootTime ?? 0;
    this.tscPerTick = tscPerTickOf(this.nsPerTick);
    this.hostMemory = new HostMemory(memory, options.shuffleFrames);
  }
  /** Makes a Kvm an owner for `frame` and `trace`. */
  get kvm(): this {
    return this;
  }

  /**
   * Makes a machine's kernel and loads a vendor into it.
   * Throws KvmError: KVM_OPTIONS, BACKEND, NO_CPU_MODEL (EINVAL), HOST_MEMORY_SIZE (ENOMEM), and what {@link kvmX86VendorInit} refuses.
   */
  static async create(backend: Backend, options: KvmOptions = {}): Promise<Kvm> {
    requireShape('KVM_OPTIONS', Errno.EINVAL, 'Kvm.create: ', options, 'options', KVM_OPTIONS);
    if (backend?.kind !== 'tskvm-backend') {
      throw new KvmError(
        'BACKEND',
        Errno.EINVAL,
        'Kvm.create: give a backend: svm(), vmx(), or what defineBackend makes',
      );
    }
    const model = options.model ?? backendModel(backend);
    if (!model) {
      throw new KvmError('NO_CPU_MODEL', Errno.EINVAL, `backend '${backend.name}' brings no CPU model; give { model }`);
    }
    const memory = allocateMemory(options.memory ?? 64 * 1024 * 1024);
    const make = options.processor ?? createProcessor;
    const engineOptions = {
      engine: options.engine,
      tscPerTick: tscPerTickOf(options.nsPerTick ?? 1),
      seed: options.seed,
    };
    const kvm = new Kvm(options, memory, await make(memory, model, engineOptions), model);
    kvm.load(backend);
    return kvm;
  }

  /**
   * Loads a vendor (modprobe kvm_amd, see {@link kvmX86VendorInit}), or what `save` gave.
   * Throws KvmError KVM_STATE (EINVAL) for something else.
   */
  load(what: Backend | KvmSave): void {
    if (typeof what === 'object' && what !== null && 'kind' in what) {
      kvmX86VendorInit(this, what);
      return;
    }
    const wanted = kvmState(this.nsPerTick);
    requireShape('KVM_STATE', Errno.EINVAL, 'the saved kernel is damaged or foreign: ', what, 'state', wanted);
    this.processor.tick = what.tick;
    this.processor.state.set64(S.random, what.random);
    this.processor.deliveredAt = what.deliveredAt;
  }
  /** The kernel's own state: the clock, what it counted last, and the random sequence. VMs are saved by themselves. */
  save(): KvmSave {
    const { tick, state, deliveredAt } = this.processor;
    return { version: 1, tick, random: state.get64(S.random), deliveredAt, nsPerTick: this.nsPerTick };
  }
  /** KVM_GET_SUPPORTED_CPUID. */
  getSupportedCpuid(): CpuidEntry[] {
    return getSupportedCpuid(this);
  }
  /** Unloads it. Throws KvmError VENDOR_BUSY while a VM exists. */
  unload(): void {
    kvmX86VendorExit(this);
  }

  /** Ticks since power-on: instructions retired, and idle time that was skipped. */
  now(): number {
    return this.processor.tick;
  }
  /** Time passes while nothing runs: the clock moves on to `tick`, at most 2^52 (beyond it a tick would not count). */
  warpTo(tick: number): void {
    if (typeof tick === 'number' && tick > this.processor.tick && tick <= MAX_TICK)
      this.processor.tick = Math.ceil(tick);
  }
  /** Tick at which so many nanoseconds since power-on have passed. */
  tickAt(ns: number): number {
    return ns / this.nsPerTick;
  }
  /** Host TSC: {@link tscPerTick} a tick. */
  hostTsc(): bigint {
    return BigInt(Math.floor(this.now())) * BigInt(this.tscPerTick);
  }
  /** TSC frequency in kHz that follows from nsPerTick. */
  get tscKhz(): number {
    return Math.round((1e6 * this.tscPerTick) / this.nsPerTick);
  }

  /** Allocates a zeroed host page; returns its physical address. Shuffled if the kernel was created so. */
  allocPage(): number {
    return this.hostMemory.allocFrame() * PAGE;
  }
  /** Contiguous zeroed host pages (control structures that need them). */
  allocPages(count: number): number {
    return this.hostMemory.allocRun(count) * PAGE;
  }
  freePage(pa: number): void {
    this.hostMemory.freeFrame(pa / PAGE);
  }

  /** KVM_CREATE_VM. Throws KvmError VM_INIT with the vendor's errno. */
  createVm(options: VmOptions = {}): Vm {
    const vm = new Vm(this, options);
    const err = this.calls.vmInit(vm);
    if (err < 0) throw new KvmError('VM_INIT', -err, `backend '${this.backend?.name}' refused the VM (-${-err})`);
    this.vms.push(vm);
    return vm;
  }
  /** @internal Use vm.destroy(). */
  destroyVm(vm: Vm): void {
    const at = this.vms.indexOf(vm);
    if (at < 0) return;
    this.calls.vmPreDestroy(vm);
    for (const vcpu of vm.vcpus) kvmArchVcpuDestroy(vcpu);
    vm.vcpus.length = 0;
    vm.releaseMemory();
    this.calls.vmDestroy(vm);
    this.vms.splice(at, 1);
  }

  /**
   * Listens to a tracepoint, or to all (`*`). The first listener switches the call path on, the last one off.
   * @returns a function that takes the listener off
   */
  on<N extends TraceName>(name: N | '*', listener: TraceListener<N>): () => void {
    const tracer = this.enableTracing();
    const off = tracer.on(name, listener);
    return () => {
      off();
      if (!tracer.listening && this.tracer === tracer) this.disableTracing();
    };
  }
  /** Keeps the call path and counts edges even without listeners. */
  enableTracing(): Tracer {
    if (!this.tracer) {
      this.tracer = new Tracer();
      retargetCalls(this);
      joinModeChanges(this, this.tracer);
    }
    return this.tracer;
  }
  disableTracing(): void {
    this.tracer = null;
    this.processor.onModeChange = null;
    retargetCalls(this);
  }
}
