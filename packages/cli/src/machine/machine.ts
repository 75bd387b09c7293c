/**
 * The PC: memory map, chipset and devices around a VM, and the loop that answers KVM's exits.
 * Free of Node: this is what an embedder gets from `import { createMachine } from 'tskvm'`.
 */
import { Kvm, KvmError, type KvmExit, shape, type Vcpu, type Vm, vmIsDead } from '@tskvm/core';
import { NotImplementedError } from '@tskvm/emulator';
import { type Device, type DeviceHost, type DeviceState, IoBus } from './bus.ts';
import { chooseProcessors, cpuName } from './cpu.ts';
import { withTopology } from './cpu-topology.ts';
import { DEFAULT_START } from './devices/rtc.ts';
import { UsageError } from './errors.ts';
import type { LoadPlan } from './loaders/image.ts';
import { checkOptions, LOW_RAM_LIMIT, type MachineOptions, requireFit } from './machine-options.ts';
import { addPcDevices, type PcDevices } from './pc.ts';
import { applyFirmwareMsrs, applyPowerOnMsrs } from './power-on-msrs.ts';
import { shutdownCause } from './shutdown.ts';
import { applyStart } from './start-state.ts';
import { turn } from './turn.ts';

const MIB = 2 ** 20;
const HIGH_MEMORY = 0x100000;
const ROM_TOP = 0x100000000;
const NS_PER_TICK = 10;

/** Why a machine stopped. */
export type MachineStop =
  /** The guest wrote the debug-exit port. */
  | { reason: 'debug-exit'; status: number }
  /** Triple fault or shutdown. */
  | {
      reason: 'shutdown';
      detail: string /** The exception, and the rule behind it if one refused a write. */;
      cause: string;
    }
  /** `maxInstructions` were executed. */
  | { reason: 'budget' }
  /** Every processor is halted and nothing will wake it but input from outside. */
  | { reason: 'idle' }
  /** KVM could not go on: entry failure, emulation failure, a hole in tskvm. */
  | { reason: 'error'; code: string; message: string; exit?: KvmExit }
  /** The guest asked for a reset (8042, port 92h, CF9h). */
  | { reason: 'reset' }
  | { reason: 'guest-terminated'; code: number };

export interface RunLimits {
  /** Instructions in all, counted from now. */
  maxInstructions?: number;
  /** Instructions between two looks at the outside world (default 2,000,000). */
  slice?: number;
  /** Called between slices; true stops the run with reason 'budget'. */
  between?: () => boolean | undefined;
}

interface Timer {
  time: number;
  callback: () => void;
}

export class Machine {
  readonly kvm: Kvm;
  readonly vm: Vm;
  readonly bus: IoBus;
  readonly devices: PcDevices;
  readonly memory: number;
  /** The guest's processor: `MODEL,+feature,-feature`. */
  readonly cpu: string;
  readonly #image: LoadPlan;
  readonly #timers = new Map<string, Timer>();
  #idleTicks = 0;
  #stop: MachineStop | null = null;
  #resetWanted = false;
  readonly #all: Device[];

  private constructor(kvm: Kvm, vm: Vm, options: MachineOptions, memory: number) {
    this.kvm = kvm;
    this.vm = vm;
    this.memory = memory;
    this.cpu = cpuName(options.cpu ?? 'host');
    this.#image = options.image;
    this.bus = new IoBus();
    this.devices = addPcDevices(this.bus, this.#host(), {
      memory,
      cpus: options.cpus ?? 1,
      disks: options.disks ?? [],
      cdrom: options.cdrom,
      serialConsole: options.serialConsole ?? true,
      onSerial: options.onSerial ?? (() => {}),
      onDebug: options.onDebug ?? (() => {}),
      exit: (status) => {
        this.#stop = { reason: 'debug-exit', status };
      },
    });
    this.#all = this.devices.all;
  }

  /** Makes a machine, loads its image and puts the boot processor into the start state. Throws UsageError or KvmError. */
  static async create(options: MachineOptions): Promise<Machine> {
    const memory = options?.memory ?? 64 * MIB;
    checkOptions(options, memory);
    const processors = options.cpu === undefined ? undefined : chooseProcessors(options.cpu, options.backend);
    const kvm = await Kvm.create(options.backend, {
      memory: memory + 16 * MIB + 2 * roundUp(options.image.rom?.length ?? 0, 65536),
      model: options.model ?? processors?.host,
      shuffleFrames: options.shuffleFrames,
      seed: options.seed,
      engine: options.engine,
      nsPerTick: options.nsPerTick ?? NS_PER_TICK,
      bootTime: DEFAULT_START,
    });
    const vm = kvm.createVm({
      type: options.backend.params?.sevEs === true ? 'sev-es' : 'default',
      quantum: options.quantum,
    });
    const machine = new Machine(kvm, vm, options, memory);
    machine.#mapMemory();
    vm.setTssAddr(0xfffbd000);
    vm.createIrqchip();
    vm.createPit2();
    const cpus = options.cpus ?? 1;
    for (let id = 0; id < cpus; id++) {
      const entries = processors?.guestCpuid(kvm) ?? kvm.getSupportedCpuid();
      vm.createVcpu(id).setCpuid(withTopology(entries, id, cpus));
    }
    machine.#loadImage();
    for (const vcpu of vm.vcpus) {
      applyPowerOnMsrs(vcpu);
      if (options.image.afterFirmware) applyFirmwareMsrs(vcpu, LOW_RAM_LIMIT);
    }
    applyStart(vm.vcpus[0], options.image.start);
    return machine;
  }

  /** Guest time since power-on. */
  get nanoseconds(): number {
    return this.kvm.now() * this.kvm.nsPerTick;
  }
  /** Ticks since power-on: instructions retired, and idle time that was skipped. */
  get instructions(): number {
    return this.kvm.processor.tick;
  }

  /** Those of {@link instructions} that were idle time, since the machine was made or loaded. */
  get idleTicks(): number {
    return this.#idleTicks;
  }

  #mapMemory(): void {
    const { vm, memory } = this;
    const rom = this.#image.rom;
    const backing = vm.allocBacking(memory);
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: Math.min(memory, HIGH_MEMORY), backing });
    if (memory > HIGH_MEMORY) {
      vm.setUserMemoryRegion({
        slot: 1,
        guestPhysAddr: HIGH_MEMORY,
        memorySize: memory - HIGH_MEMORY,
        backing,
        offset: HIGH_MEMORY,
      });
    }
    if (!rom) return;
    const size = roundUp(rom.length, 4096);
    vm.setUserMemoryRegion({ slot: 2, guestPhysAddr: ROM_TOP - size, memorySize: size });
  }
  #loadImage(): void {
    const { rom, segments } = this.#image;
    if (rom) {
      this.vm.writeGuest(ROM_TOP - rom.length, rom);
      const low = rom.subarray(Math.max(0, rom.length - 128 * 1024));
      this.vm.writeGuest(HIGH_MEMORY - low.length, low);
    }
    for (const { at, bytes } of segments) {
      if (at + bytes.length > this.memory) {
        throw new UsageError(
          'IMAGE_TOO_LARGE',
          `the image ends at 0x${(at + bytes.length).toString(16)}, behind the end of memory (0x${this.memory.toString(16)}): give a larger --memory or a lower address`,
        );
      }
      this.vm.writeGuest(at, bytes);
    }
  }

  #host(): DeviceHost {
    return {
      setIrq: (line, level) => this.vm.setIrqLine(line, level),
      now: () => this.nanoseconds,
      callAt: (key, time, callback) => {
        this.#timers.set(key, { time, callback });
      },
      readMemory: (gpa, length) =>
        this.vm.hasMemory(gpa, length) ? this.vm.readGuest(gpa, length) : new Uint8Array(length),
      writeMemory: (gpa, bytes) => {
        if (this.vm.hasMemory(gpa, bytes.length)) this.vm.writeGuest(gpa, bytes);
      },
      requestReset: () => {
        this.#resetWanted = true;
      },
      requestSmi: () => this.vm.vcpus[0].smi(),
    };
  }

  /** Runs in slices until something ends the run; between slices the event loop gets its turn. */
  async run(limits: RunLimits = {}): Promise<MachineStop> {
    requireFit('BAD_LIMIT', limits, 'limits', LIMITS);
    const end = this.instructions + (limits.maxInstructions ?? Number.POSITIVE_INFINITY);
    const slice = limits.slice ?? 2_000_000;
    for (;;) {
      const stop = this.runSlice(Math.min(slice, end - this.instructions));
      if (stop && stop.reason !== 'budget') return stop;
      if (this.instructions >= end || limits.between?.()) return { reason: 'budget' };
      await turn();
    }
  }

  /** Runs at most `budget` instructions; null or 'budget' when they are used up. Never throws for what a guest does. */
  runSlice(budget: number): MachineStop | null {
    requireFit('BAD_LIMIT', budget, 'budget', shape.limit(0));
    const end = this.instructions + budget;
    try {
      while (this.instructions < end) {
        const stop = this.#step(end);
        if (stop) return stop;
      }
      return null;
    } catch (error) {
      return this.#failure(error);
    }
  }

  #step(end: number): MachineStop | null {
    this.#fireTimers();
    const wake = this.#nextTimer();
    const limit = Math.max(1, Math.min(end, this.kvm.tickAt(wake)) - this.instructions);
    const { vcpu, exit } = this.vm.run({ budget: limit });
    const stop = this.#handle(vcpu, exit, end);
    if (this.#stop) {
      const result = this.#stop;
      this.#stop = null;
      return result;
    }
    if (stop) return stop;
    if (this.#resetWanted) return this.#reset();
    return null;
  }

  #handle(vcpu: Vcpu, exit: KvmExit, end: number): MachineStop | null {
    switch (exit.reason) {
      case 'io':
        this.#io(exit);
        return null;
      case 'mmio':
        this.#mmio(exit);
        return null;
      case 'intr':
        return null;
      case 'hlt':
      case 'idle':
        return this.#idle(exit.reason === 'idle' ? exit.idleUntil : Number.POSITIVE_INFINITY, end);
      case 'shutdown':
        return { reason: 'shutdown', detail: describePlace(vcpu, exit.at), cause: shutdownCause(vcpu, exit.at) };
      case 'system_event':
        // KVM_SYSTEM_EVENT_SEV_TERM: the GHCB MSR, reason set in bits 15:12 and reason in 23:16.
        return { reason: 'guest-terminated', code: Number(((exit.data[0] ?? 0n) >> 12n) & 0xfffn) };
      case 'fail_entry':
        return {
          reason: 'error',
          code: 'FAIL_ENTRY',
          message: `VM entry refused (0x${exit.hardwareEntryFailureReason.toString(16)}): ${exit.failures
            .map((f) => `${f.code}: ${f.field} = 0x${f.value.toString(16)}; ${f.rule} (${f.section})`)
            .join('; ')}`,
          exit,
        };
      case 'internal_error':
        return {
          reason: 'error',
          code: 'INTERNAL_ERROR',
          message: `KVM can't go on (suberror ${exit.suberror}${exit.detail ? `, ${exit.detail}` : ''}) at ${describePlace(vcpu)}`,
          exit,
        };
      default:
        return {
          reason: 'error',
          code: 'UNEXPECTED_EXIT',
          message: `exit ${exit.reason} has no handler in this machine`,
          exit,
        };
    }
  }

  #io(exit: Extract<KvmExit, { reason: 'io' }>): void {
    const { data } = exit;
    for (let i = 0; i < exit.count; i++) {
      const at = i * exit.size;
      if (exit.direction === 'in') putValue(data, at, exit.size, this.bus.readPort(exit.port, exit.size));
      else this.bus.writePort(exit.port, exit.size, getValue(data, at, exit.size));
      if (this.#stop) return;
    }
  }
  #mmio(exit: Extract<KvmExit, { reason: 'mmio' }>): void {
    if (exit.isWrite) {
      let value = 0n;
      for (let i = exit.len - 1; i >= 0; i--) value = (value << 8n) | BigInt(exit.data[i]);
      this.bus.writeMmio(exit.physAddr, exit.len, value);
      return;
    }
    const value = this.bus.readMmio(exit.physAddr, exit.len);
    for (let i = 0; i < exit.len; i++) exit.data[i] = Number((value >> BigInt(8 * i)) & 0xffn);
  }

  /** All processors sleep: guest time jumps to whatever comes first. */
  #idle(idleUntil: number, end: number): MachineStop | null {
    if (vmIsDead(this.vm)) return { reason: 'idle' };
    const next = Math.min(idleUntil, this.kvm.tickAt(this.#nextTimer()));
    // A timer that is set for later than the clock can count never comes.
    if (!(next <= shape.MAX_TICK)) return { reason: 'idle' };
    // At least a tick: a time that is rounded must not stop the clock.
    const before = this.instructions;
    this.kvm.warpTo(Math.max(Math.min(next, end), before + 1));
    this.#idleTicks += this.instructions - before;
    return null;
  }
  #nextTimer(): number {
    let next = Number.POSITIVE_INFINITY;
    for (const { time } of this.#timers.values()) next = Math.min(next, time);
    return next;
  }
  #fireTimers(): void {
    const now = this.nanoseconds;
    if (this.#nextTimer() > now) return;
    for (const [key, { time, callback }] of [...this.#timers]) {
      if (time > now) continue;
      this.#timers.delete(key);
      callback();
    }
  }

  /** A reset line was pulled: the run ends, and whoever runs the machine decides (a reset machine is a new machine). */
  #reset(): MachineStop {
    this.#resetWanted = false;
    return { reason: 'reset' };
  }

  #failure(error: unknown): MachineStop {
    if (error instanceof NotImplementedError || error instanceof KvmError) {
      const place = describePlace(this.vm.vcpus[0]);
      return { reason: 'error', code: error.name, message: `${error.message} at ${place}` };
    }
    throw error;
  }

  /** The text screen. */
  screen(): string[] {
    return this.devices.vga.dump();
  }

  /** State of the whole machine as a plain, versioned object. Images of disks are not part of it. */
  save(): MachineState {
    return {
      version: 1,
      memory: this.memory,
      cpu: this.cpu,
      kvm: this.kvm.save(),
      vm: this.vm.save(),
      devices: this.#all.map((device) => [device.name, device.save()]),
      timers: [...this.#timers].map(([key, { time }]) => [key, time]),
    };
  }
  /**
   * Restores what `save` gave, into a machine made with the same options. Throws UsageError BAD_STATE and KvmError VM_STATE, VCPU_STATE
   * before anything has changed, and what the setters of a vCPU refuse (SREGS_* and such): the machine is then good for another load only.
   */
  load(state: MachineState): void {
    const parts = this.#all.map(({ name, stateShape }) => shape.tuple(shape.oneOf(name), stateShape));
    const whole = shape.struct({
      ...STATE,
      memory: shape.oneOf(this.memory),
      cpu: shape.oneOf(this.cpu),
      devices: shape.tuple(...parts),
    });
    requireFit(
      'BAD_STATE',
      state,
      'state',
      whole,
      ' (a state fits only a machine with the options under which it was saved)',
    );
    const tick = this.kvm.save();
    this.kvm.load(state.kvm);
    try {
      this.vm.load(state.vm);
    } catch (error) {
      this.kvm.load(tick);
      throw error;
    }
    this.#timers.clear();
    this.#stop = null;
    this.#resetWanted = false;
    this.#all.forEach((device, i) => {
      device.load(state.devices[i][1] as DeviceState);
    });
  }
}

export interface MachineState {
  version: 1;
  memory: number;
  /** The guest's processor, as `cpu` of the options says it. */
  cpu: string;
  kvm: ReturnType<Kvm['save']>;
  vm: ReturnType<Vm['save']>;
  devices: [string, unknown][];
  timers: [string, number][];
}

/** Makes a machine; see {@link MachineOptions}. */
export const createMachine = (options: MachineOptions): Promise<Machine> => Machine.create(options);

const roundUp = (value: number, unit: number): number => Math.ceil(value / unit) * unit;

const LIMITS = shape.struct({
  maxInstructions: shape.optional(shape.limit(0)),
  slice: shape.optional(shape.limit(1)),
  between: shape.callback,
});
/** What `save` gives, but for what depends on the machine. */
const STATE = {
  version: shape.oneOf(1),
  kvm: shape.anything,
  vm: shape.anything,
  timers: shape.list(shape.tuple(shape.text, shape.time), 64),
};
/** CS:RIP of a processor for messages. */
function describePlace(vcpu: Vcpu, at?: { cs: number; rip: bigint; cr0: bigint }): string {
  try {
    const { cr0, cs } = at ?? { cr0: vcpu.getSregs().cr0, cs: vcpu.getSregs().cs.selector };
    const rip = at?.rip ?? vcpu.getRegs().rip;
    return `${cs.toString(16).padStart(4, '0')}:${rip.toString(16)} (CR0 0x${cr0.toString(16)}), instruction ${vcpu.kvm.processor.tick}`;
  } catch {
    return 'a place that can not be read (protected state)';
  }
}

/** Byte by byte: a view on so small an array would make V8 give it a buffer of its own, which costs more than the exit. */
function getValue(data: Uint8Array, at: number, size: number): number {
  let value = 0;
  for (let i = size - 1; i >= 0; i--) value = (value << 8) | data[at + i];
  return value >>> 0;
}
function putValue(data: Uint8Array, at: number, size: number, value: number): void {
  for (let i = 0; i < size; i++) data[at + i] = value >>> (8 * i);
}
