/**
 * Memory as KVM's emulator sees it: linear accesses through the guest's own tables, with devices in the kernel and MMIO exits.
 * KVM: emulator_read_write, kvm_read_guest_virt_helper (x86.c).
 */
import { type GuestException, IO_NEEDED, PAGE, UNHANDLEABLE, Vector } from '@tskvm/emulator';
import { isSmm } from './kvm-cache-regs.ts';
import { lapicContains, lapicMmioRead, lapicMmioWrite } from './lapic-regs.ts';
import { cplAccess, IMPLICIT_ACCESS, kvmMmuGvaToGpa, noFault, Pferr } from './mmu/walker.ts';
import { trace } from './trace.ts';
import type { Vcpu } from './vcpu.ts';

/** Up to eight bytes for user space. */
export interface MmioFragment {
  gpa: number;
  len: number;
  value: bigint;
  /** RAM beside MMIO in one access: read already, nothing to ask user space for. */
  done?: boolean;
}
/** An access that user space completes piece by piece. */
export interface MmioAccess {
  isWrite: boolean;
  linear: bigint;
  size: number;
  fragments: MmioFragment[];
  at: number;
}

const mask = (size: number): bigint => (1n << BigInt(8 * size)) - 1n;

/** Pieces of an access within one page each. */
interface Piece {
  gpa: number;
  shift: bigint;
  size: number;
}

export class EmulateMemory {
  /** MMIO writes of the instruction, and its read that waits. */
  pending: MmioAccess | null = null;
  /** A read that user space has completed: the re-executed instruction takes it. */
  completed: { linear: bigint; size: number; value: bigint } | null = null;
  readonly #fault = noFault();
  /** The last fault came from L1's nested tables. */
  nestedFault = false;

  constructor(
    readonly vcpu: Vcpu,
    readonly exception: GuestException,
  ) {}

  #translate(linear: bigint, access: number): number {
    const gpa = kvmMmuGvaToGpa(this.vcpu, linear, access, this.#fault);
    if (gpa >= 0) return gpa;
    this.nestedFault = this.#fault.nestedPageFault;
    throw this.exception.set(Vector.PF, this.#fault.errorCode, this.#fault.address);
  }
  #pieces(linear: bigint, size: number, access: number): Piece[] {
    const first = Math.min(size, PAGE - Number(linear & 0xfffn));
    const pieces: Piece[] = [{ gpa: this.#translate(linear, access), shift: 0n, size: first }];
    if (first < size) {
      const wrap = this.vcpu.kvm.calls.getCsDbLBits(this.vcpu).l ? 64 : 32;
      const next = BigInt.asUintN(Math.max(wrap, linear >> 32n ? 64 : 32), linear + BigInt(first));
      pieces.push({ gpa: this.#translate(next, access), shift: BigInt(8 * first), size: size - first });
    }
    return pieces;
  }

  #readRam(gpa: number, size: number): bigint {
    const { vcpu } = this;
    const hpa = vcpu.vm.gpaToHpa(gpa, isSmm(vcpu));
    const { memory } = vcpu.kvm;
    if (size === 1) return BigInt(memory.read8(hpa));
    if (size === 2) return BigInt(memory.read16(hpa));
    if (size === 4) return BigInt(memory.read32(hpa));
    if (size === 8) return memory.read64(hpa);
    let value = 0n;
    for (let i = size - 1; i >= 0; i--) value = (value << 8n) | BigInt(memory.read8(hpa + i));
    return value;
  }
  #writeRam(gpa: number, value: bigint, size: number): void {
    this.vcpu.vm.writeGuestValue(gpa, value & mask(size), size, isSmm(this.vcpu));
  }
  #isRam = (gpa: number): boolean => this.vcpu.vm.gfnToMemslot(Math.floor(gpa / PAGE), isSmm(this.vcpu)) !== undefined;
  #isWritable = (gpa: number): boolean => this.vcpu.vm.isWritable(gpa, 1, isSmm(this.vcpu));

  readStd(linear: bigint, size: number, system: boolean): bigint {
    let value = 0n;
    for (const piece of this.#pieces(linear, size, system ? IMPLICIT_ACCESS : cplAccess(this.vcpu))) {
      if (!this.#isRam(piece.gpa)) throw UNHANDLEABLE;
      value |= this.#readRam(piece.gpa, piece.size) << piece.shift;
    }
    return value;
  }
  writeStd(linear: bigint, value: bigint, size: number, system: boolean): void {
    const access = Pferr.write | (system ? IMPLICIT_ACCESS : cplAccess(this.vcpu));
    const pieces = this.#pieces(linear, size, access);
    if (pieces.some((piece) => !this.#isWritable(piece.gpa))) throw UNHANDLEABLE;
    for (const piece of pieces) this.#writeRam(piece.gpa, value >> piece.shift, piece.size);
  }
  fetch(linear: bigint, into: Uint8Array, length: number): number {
    const gpa = this.#translate(linear, Pferr.fetch | cplAccess(this.vcpu));
    if (!this.#isRam(gpa)) throw UNHANDLEABLE;
    const { vm, kvm } = this.vcpu;
    const count = Math.min(length, PAGE - (gpa % PAGE));
    into.set(kvm.memory.readBytes(vm.gpaToHpa(gpa, isSmm(this.vcpu)), count));
    return count;
  }

  /** Devices in the kernel. Undefined: none of them has this address. */
  #kernelRead(gpa: number, size: number): bigint | undefined {
    const { vcpu } = this;
    const { apic } = vcpu.arch;
    let value: bigint | undefined;
    if (apic && lapicContains(apic, gpa)) value = lapicMmioRead(apic, gpa, size);
    else if (vcpu.vm.irqchip?.ioapic.contains(gpa)) value = BigInt(vcpu.vm.irqchip.ioapic.read(gpa)) & mask(size);
    if (value !== undefined) {
      const read = value;
      trace(vcpu, 'kvm_mmio', () => ({ type: 'read', len: size, gpa, val: read }));
    }
    return value;
  }
  #kernelWrite(gpa: number, value: bigint, size: number): boolean {
    const { vcpu } = this;
    const { apic } = vcpu.arch;
    trace(vcpu, 'kvm_mmio', () => ({ type: 'write', len: size, gpa, val: value & mask(size) }));
    if (apic && lapicContains(apic, gpa)) lapicMmioWrite(apic, gpa, value, size);
    else if (vcpu.vm.irqchip?.ioapic.contains(gpa)) vcpu.vm.irqchip.ioapic.write(gpa, Number(value & 0xffffffffn));
    else return false;
    return true;
  }

  /** Cuts a piece into parts of at most 8 bytes. */
  #fragments(piece: Piece, value: bigint): MmioFragment[] {
    const out: MmioFragment[] = [];
    for (let at = 0; at < piece.size; at += 8) {
      const len = Math.min(8, piece.size - at);
      out.push({ gpa: piece.gpa + at, len, value: (value >> BigInt(8 * at)) & mask(len) });
    }
    return out;
  }

  #readFragments(piece: Piece): MmioFragment[] {
    const done = this.#isRam(piece.gpa);
    const value = done ? this.#readRam(piece.gpa, piece.size) : 0n;
    return this.#fragments(piece, value).map((fragment) => ({ ...fragment, done }));
  }

  read(linear: bigint, size: number, forWrite: boolean): bigint {
    const done = this.completed;
    if (done && done.linear === linear && done.size === size) {
      this.completed = null;
      return done.value;
    }
    const access = cplAccess(this.vcpu) | (forWrite ? Pferr.write : 0);
    if (Number(linear & 0xfffn) + size <= PAGE) return this.#readInPage(linear, size, access);
    const pieces = this.#pieces(linear, size, access);
    if (pieces.every((piece) => this.#isRam(piece.gpa))) {
      return pieces.reduce((value, piece) => value | (this.#readRam(piece.gpa, piece.size) << piece.shift), 0n);
    }
    const fragments = pieces.flatMap((piece) => this.#readFragments(piece));
    const at = fragments.findIndex((fragment) => !fragment.done);
    this.pending = { isWrite: false, linear, size, fragments, at };
    throw IO_NEEDED;
  }

  /** The usual access: one piece. */
  #readInPage(linear: bigint, size: number, access: number): bigint {
    const gpa = this.#translate(linear, access);
    if (this.#isRam(gpa)) return this.#readRam(gpa, size);
    const value = this.#kernelRead(gpa, size);
    if (value !== undefined) return value;
    const fragments = size <= 8 ? [{ gpa, len: size, value: 0n }] : this.#fragments({ gpa, shift: 0n, size }, 0n);
    this.pending = { isWrite: false, linear, size, fragments, at: 0 };
    throw IO_NEEDED;
  }

  write(linear: bigint, value: bigint, size: number): void {
    // All pages are translated before the first byte is stored.
    for (const piece of this.#pieces(linear, size, cplAccess(this.vcpu) | Pferr.write)) {
      const part = value >> piece.shift;
      if (this.#isWritable(piece.gpa)) this.#writeRam(piece.gpa, part, piece.size);
      else if (!this.#kernelWrite(piece.gpa, part, piece.size)) this.#deferWrite(linear, size, piece, part);
    }
  }
  #deferWrite(linear: bigint, size: number, piece: Piece, value: bigint): void {
    this.pending ??= { isWrite: true, linear, size, fragments: [], at: 0 };
    this.pending.fragments.push(...this.#fragments(piece, value));
  }
  probeWrite(linear: bigint, size: number): void {
    this.#pieces(linear, size, cplAccess(this.vcpu) | Pferr.write);
  }
  compareExchange(linear: bigint, old: bigint, replacement: bigint, size: number): boolean {
    if (this.read(linear, size, true) !== (old & mask(size))) return false;
    this.write(linear, replacement, size);
    return true;
  }
}
