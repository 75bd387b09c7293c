/**
 * The host's part of a made-up guest: answers to exits, interrupts, NMIs and SMIs between them, and what it does beside that must make no
 * difference: reading state, writing back what was read, tracing, going on from a saved state in another kernel.
 */
import { Apic, type Kvm, type KvmExit, type Vcpu } from '@tskvm/core';
import { EFER } from '@tskvm/emulator';
import { CHUNK, CODE_SIZE, codeBase, type FuzzMode, Place } from '../../../emulator/test/fuzz/layout.ts';
import type { Random } from '../../../emulator/test/fuzz/random.ts';

/** One KVM_RUN with what comes before it. */
export interface Turn {
  readonly budget: number;
  readonly event: 'none' | 'nmi' | 'smi' | 'pulse' | 'raise' | 'lower' | 'debug';
  readonly line: number;
  /** Registers and memory are compared behind it. */
  readonly look: boolean;
}
const EVENTS = [
  'none',
  'none',
  'none',
  'none',
  'none',
  'pulse',
  'pulse',
  'raise',
  'lower',
  'nmi',
  'smi',
  'debug',
] as const;

export function makeTurns(random: Random): Turn[] {
  return Array.from({ length: 260 }, () => ({
    budget: random.chance(60) ? random.between(1, 50) : random.between(1, 900),
    event: random.pick(EVENTS),
    line: random.pick([1, 3, 4, 5, 7, 8, 10, 12]),
    look: random.chance(5),
  }));
}

/** What a variant does beside running the guest; `split`: it runs in smaller steps. */
export type Variant = 'plain' | 'reads' | 'writes' | 'traced' | 'moved' | 'split';

function readAll(vcpu: Vcpu, withMemory: boolean): void {
  vcpu.getRegs();
  vcpu.getSregs2();
  vcpu.getVcpuEvents();
  vcpu.getDebugregs();
  vcpu.getXsave();
  vcpu.getFpu();
  vcpu.getXcrs();
  for (const index of [0x10, 0xc0000080, 0xc0000102]) vcpu.getMsr(index);
  if (vcpu.arch.apic !== null) vcpu.getLapic();
  if (withMemory) vcpu.vm.save();
  else vcpu.save();
}
/** KVM takes no sregs back with L in a code segment outside long mode, where processors ignore it. */
const sregsRefused = (vcpu: Vcpu): boolean => {
  const { cs, efer } = vcpu.getSregs();
  return cs.l === 1 && (efer & EFER.LMA) === 0n;
};
/** CR8 has only the upper half of the TPR: the other is lost on the way unless the local APIC's registers follow. */
const sregsLossy = (vcpu: Vcpu): boolean => vcpu.arch.apic !== null && (vcpu.arch.apic.get(Apic.TPR) & 15) !== 0;
/** Writes back one kind of state as it was read. */
function writeBack(vcpu: Vcpu, kind: number): void {
  if (kind === 0 && !sregsRefused(vcpu) && !sregsLossy(vcpu)) vcpu.setSregs2(vcpu.getSregs2());
  if (kind === 1) vcpu.setDebugregs(vcpu.getDebugregs());
  if (kind === 2) vcpu.setXsave(vcpu.getXsave());
  if (kind === 3) vcpu.setVcpuEvents(vcpu.getVcpuEvents());
  if (kind === 4) vcpu.setXcrs(vcpu.getXcrs());
  if (kind !== 5) return;
  for (const index of [0xc0000080, 0xc0000082, 0xc0000100, 0xc0000101, 0xc0000102, 0x174, 0x277]) {
    const value = vcpu.getMsr(index);
    if (value !== undefined) vcpu.setMsr(index, value);
  }
}

/** Saves a vCPU's VM, loads it into a VM of the other kernel, and goes on there. */
function move(vcpu: Vcpu, other: Kvm, open: (kvm: Kvm) => Vcpu): Vcpu {
  const saved = structuredClone({ kvm: vcpu.kvm.save(), vm: vcpu.vm.save() });
  const { requestInterruptWindow, readyForInterruptInjection } = vcpu.runIo;
  vcpu.vm.destroy();
  const next = open(other);
  other.load(saved.kvm);
  next.vm.load(saved.vm);
  Object.assign(next.runIo, { requestInterruptWindow, readyForInterruptInjection });
  return next;
}

export class Host {
  vcpu: Vcpu;
  /** Of what devices were told and asked. */
  seen = 1;
  readonly #mode: FuzzMode;
  readonly #variant: Variant;
  /** Kernels between which a guest moves. */
  readonly #kernels: readonly Kvm[];
  readonly #open: (kvm: Kvm) => Vcpu;
  #stuck = 0;
  #turns = 0;

  constructor(kernels: readonly Kvm[], open: (kvm: Kvm) => Vcpu, mode: FuzzMode, variant: Variant) {
    this.vcpu = open(kernels[0]!);
    this.#kernels = kernels;
    this.#open = open;
    this.#mode = mode;
    this.#variant = variant;
    if (variant === 'traced') this.vcpu.kvm.enableTracing();
  }

  #mix(...values: number[]): number {
    for (const value of values) this.seen = (Math.imul(this.seen, 0x01000193) ^ value) >>> 0;
    return this.seen;
  }

  /** What makes no difference. */
  #beside(): void {
    const n = this.#turns++;
    if (this.#variant === 'reads') readAll(this.vcpu, n % 16 === 0);
    if (this.#variant === 'writes') writeBack(this.vcpu, n % 6);
    if (this.#variant === 'moved' && n % 7 === 3 && !sregsRefused(this.vcpu)) {
      const other = this.#kernels[this.vcpu.kvm === this.#kernels[0] ? 1 : 0]!;
      this.vcpu = move(this.vcpu, other, this.#open);
    }
  }

  #interrupt(line: number): void {
    const { vcpu } = this;
    if (vcpu.vm.irqchipInKernel) {
      vcpu.vm.setIrqLine(line, 1);
      vcpu.vm.setIrqLine(line, 0);
    } else if (vcpu.arch.pendingExternalVector >= 0) return;
    else if (vcpu.runIo.readyForInterruptInjection) vcpu.interrupt(0x20 + line);
    else vcpu.runIo.requestInterruptWindow = true;
  }
  #raise({ event, line }: Turn): void {
    const { vcpu } = this;
    // How many of several NMIs are kept depends on when KVM counts them, and a reader has it count.
    if (event === 'nmi' && vcpu.arch.nmiQueued + vcpu.arch.nmiPending === 0) vcpu.nmi();
    if (event === 'smi') vcpu.smi();
    if (event === 'debug') vcpu.setGuestDebug(0);
    if (event === 'pulse') this.#interrupt(line);
    if ((event === 'raise' || event === 'lower') && vcpu.vm.irqchipInKernel)
      vcpu.vm.setIrqLine(line, event === 'raise' ? 1 : 0);
  }

  turn(turn: Turn): KvmExit {
    this.#raise(turn);
    this.#beside();
    return this.#variant === 'split' ? this.#inSteps(turn.budget) : this.vcpu.run({ budget: turn.budget });
  }
  #inSteps(budget: number): KvmExit {
    const { kvm } = this.vcpu;
    const end = kvm.now() + budget;
    for (;;) {
      const exit = this.vcpu.run({ budget: Math.min(end - kvm.now(), 1 + (this.#turns++ % 9) * 7) });
      if (exit.reason !== 'intr' || kvm.now() >= end) return exit;
    }
  }

  /** Answers an exit. False: the guest is at its end. */
  answer(exit: KvmExit): boolean {
    switch (exit.reason) {
      case 'io':
        return this.#io(exit);
      case 'mmio':
        return this.#mmio(exit);
      case 'idle':
        return this.#idle(exit.idleUntil);
      case 'hlt':
        return this.#idle(Number.POSITIVE_INFINITY);
      case 'irq_window_open':
        this.vcpu.runIo.requestInterruptWindow = false;
        if (this.vcpu.arch.pendingExternalVector < 0) this.vcpu.interrupt(0x2a);
        return true;
      case 'internal_error':
        return this.#skip();
      case 'intr':
      case 'hypercall':
      case 'debug':
      case 'set_tpr':
        return true;
      default:
        return false;
    }
  }
  #io(exit: Extract<KvmExit, { reason: 'io' }>): boolean {
    const { direction, port, size, data } = exit;
    if (direction === 'out') this.#mix(1, port, size, ...data);
    else for (let n = 0; n < data.length; n++) data[n] = this.#mix(2, port, size) >>> 8;
    return true;
  }
  #mmio(exit: Extract<KvmExit, { reason: 'mmio' }>): boolean {
    const { physAddr, len, isWrite, data } = exit;
    if (isWrite) this.#mix(3, physAddr, len, ...data.subarray(0, len));
    else for (let n = 0; n < len; n++) data[n] = this.#mix(4, physAddr, len) >>> 8;
    return true;
  }
  /** Time passes, an interrupt comes, at last an NMI; a guest that none of them wakes is at its end. */
  #idle(until: number): boolean {
    const { vcpu } = this;
    if (++this.#stuck > 12) return false;
    if (Number.isFinite(until)) vcpu.kvm.warpTo(until);
    else if (this.#stuck % 3 === 0 && vcpu.arch.nmiQueued + vcpu.arch.nmiPending === 0) vcpu.nmi();
    else this.#interrupt(4);
    return true;
  }
  /** What KVM's emulator does not know: the guest goes on at the next chunk. */
  #skip(): boolean {
    if (++this.#stuck > 12) return false;
    const { vcpu } = this;
    const regs = vcpu.getRegs();
    const start = BigInt(Place.code - codeBase(this.#mode));
    const next = (regs.rip - start + BigInt(CHUNK)) & BigInt((CODE_SIZE - 1) & ~(CHUNK - 1));
    vcpu.setRegs({ ...regs, rip: start + next });
    return true;
  }

  close(): void {
    const { kvm, vm } = this.vcpu;
    vm.destroy();
    if (this.#variant === 'traced') kvm.disableTracing();
  }
}
