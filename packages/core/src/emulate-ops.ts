/**
 * X86EmulateOps for KVM: what an instruction that KVM emulates may ask of the vCPU.
 * KVM: struct x86_emulate_ops emulate_ops and the emulator_* functions (x86.c).
 */
import {
  type DescriptorTable,
  GuestException,
  type InstructionInfo,
  type InterceptStage,
  IO_NEEDED,
  type Segment,
  type SegmentIndex,
  X86Emul,
  type X86EmulateOps,
} from '@tskvm/emulator';
import { guestCpuidHas, guestCpuidIsIntelCompatible, kvmCpuid } from './cpuid.ts';
import { kvmGetDr, kvmSetDr } from './debugregs.ts';
import { EmulateMemory } from './emulate-memory.ts';
import { fpuView } from './fpu.ts';
import {
  isGuestMode,
  isSmm,
  kvmReadCr0,
  kvmReadCr3,
  kvmReadCr4,
  kvmRegisterReadRaw,
  kvmRegisterWriteRaw,
  kvmRipRead,
  kvmRipWrite,
} from './kvm-cache-regs.ts';
import { kvmMmuInvlpg, noFault } from './mmu/mmu.ts';
import { kvmGetMsr, kvmReadL1Tsc, kvmSetMsr, kvmSetXcr } from './msrs.ts';
import { kvmGetCr8, kvmGetRflags, kvmSetCr0, kvmSetCr3, kvmSetCr4, kvmSetCr8 } from './regs.ts';
import { kvmMakeRequest } from './requests.ts';
import { fromSegment, toSegment } from './segments.ts';
import { emulatorLeaveSmm } from './smm.ts';
import { frame, trace } from './trace.ts';
import { Req } from './types.ts';
import type { Vcpu } from './vcpu.ts';

/** Upper half of the current value, lower half of the new one. KVM: mk_cr_64. */
const mergeCr = (current: bigint, value: bigint): bigint => (current & 0xffffffff00000000n) | (value & 0xffffffffn);

/** KVM: emulator_set_cr. */
const emulatorSetCr = frame('emulatorSetCr', (vcpu: Vcpu, cr: number, value: bigint): number => {
  switch (cr) {
    case 0:
      return kvmSetCr0(vcpu, mergeCr(kvmReadCr0(vcpu), value));
    case 2:
      vcpu.arch.cr2[0] = value;
      return 0;
    case 3:
      return kvmSetCr3(vcpu, value);
    case 4:
      return kvmSetCr4(vcpu, mergeCr(kvmReadCr4(vcpu), value));
    case 8:
      return kvmSetCr8(vcpu, value);
    default:
      return 1;
  }
});

/** Port I/O that user space has answered or must answer. */
export interface PendingPio {
  port: number;
  size: number;
  in: boolean;
  value: number;
}

/** What user space has supplied for the instruction at `rip`: elements of `size` bytes, used up to byte `at`. */
export interface PioAnswer {
  port: number;
  size: number;
  rip: bigint;
  data: Uint8Array;
  at: number;
}

export class KvmEmulateOps implements X86EmulateOps {
  readonly exception = new GuestException();
  readonly memory: EmulateMemory;
  /** RFLAGS of the instruction; written back when it has completed. */
  rflags = 0n;
  /** Shadow that the instruction leaves behind: 0, or 1 STI, 2 MOV SS. */
  shadow: 0 | 1 | 2 = 0;
  /** Port output for user space, or an input that it must supply. */
  pio: PendingPio | null = null;
  /** An input that user space has supplied. */
  #answer: PioAnswer | null = null;
  /** Nested intercepts are asked (L2, and not a restart). */
  checkIntercepts = false;

  constructor(readonly vcpu: Vcpu) {
    this.memory = new EmulateMemory(vcpu, this.exception);
  }

  /** A new instruction. KVM: init_emulate_ctxt. */
  begin(): void {
    this.rflags = kvmGetRflags(this.vcpu);
    this.shadow = 0;
    this.pio = null;
    this.memory.pending = null;
  }

  readGpr(reg: number): bigint {
    return kvmRegisterReadRaw(this.vcpu, reg);
  }
  writeGpr(reg: number, value: bigint): void {
    kvmRegisterWriteRaw(this.vcpu, reg, value);
  }
  getRip(): bigint {
    return kvmRipRead(this.vcpu);
  }
  setRip(value: bigint): void {
    kvmRipWrite(this.vcpu, value);
  }
  getRflags(): bigint {
    return this.rflags;
  }
  setRflags(value: bigint): void {
    this.rflags = value;
  }

  readStd(linear: bigint, size: number, system: boolean): bigint {
    return this.memory.readStd(linear, size, system);
  }
  writeStd(linear: bigint, value: bigint, size: number, system: boolean): void {
    this.memory.writeStd(linear, value, size, system);
  }
  fetch(linear: bigint, into: Uint8Array, length: number): number {
    return this.memory.fetch(linear, into, length);
  }
  readEmulated(linear: bigint, size: number): bigint {
    return this.memory.read(linear, size, false);
  }
  readForWrite(linear: bigint, size: number): bigint {
    return this.memory.read(linear, size, true);
  }
  writeEmulated(linear: bigint, value: bigint, size: number): void {
    this.memory.write(linear, value, size);
  }
  probeWrite(linear: bigint, size: number): void {
    this.memory.probeWrite(linear, size);
  }
  cmpxchgEmulated(linear: bigint, old: bigint, replacement: bigint, size: number): boolean {
    return this.memory.compareExchange(linear, old, replacement, size);
  }
  invlpg(linear: bigint): void {
    kvmMmuInvlpg(this.vcpu, linear);
  }

  /** User space has answered an input: elements for the instruction at RIP. KVM: struct read_cache io_read. */
  answerPio(port: number, size: number, data: Uint8Array): void {
    this.#answer = { port, size, rip: kvmRipRead(this.vcpu), data: data.slice(), at: 0 };
  }
  /** What is left of it, for a snapshot. */
  get answer(): PioAnswer | null {
    return this.#answer === null ? null : { ...this.#answer, data: this.#answer.data.slice() };
  }
  set answer(answer: PioAnswer | null) {
    this.#answer = answer;
  }
  /** Elements that were read ahead are left. */
  get hasAnswer(): boolean {
    return this.#answer !== null;
  }
  #takeAnswer(size: number, port: number): number | undefined {
    const answer = this.#answer;
    if (!answer) return undefined;
    if (answer.port !== port || answer.size !== size || answer.rip !== kvmRipRead(this.vcpu)) {
      this.#answer = null;
      return undefined;
    }
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = value * 256 + answer.data[answer.at + i];
    answer.at += size;
    if (answer.at >= answer.data.length) this.#answer = null;
    return value;
  }
  pioIn(size: number, port: number): number {
    const answered = this.#takeAnswer(size, port);
    if (answered !== undefined) return answered;
    const value = kernelPioIn(this.vcpu, size, port);
    if (value !== undefined) return value;
    this.pio = { port, size, in: true, value: 0 };
    throw IO_NEEDED;
  }
  pioOut(size: number, port: number, value: number): void {
    if (!kernelPioOut(this.vcpu, size, port, value)) this.pio = { port, size, in: false, value };
  }

  getSegment(seg: SegmentIndex): Segment {
    return toSegment(this.vcpu.kvm.calls.getSegment(this.vcpu, seg));
  }
  setSegment(seg: SegmentIndex, value: Segment): void {
    this.vcpu.kvm.calls.setSegment(this.vcpu, fromSegment(value), seg);
  }
  getCachedSegmentBase(seg: SegmentIndex): bigint {
    return this.vcpu.kvm.calls.getSegmentBase(this.vcpu, seg);
  }
  getGdt(): DescriptorTable {
    return this.vcpu.kvm.calls.getGdt(this.vcpu);
  }
  getIdt(): DescriptorTable {
    return this.vcpu.kvm.calls.getIdt(this.vcpu);
  }
  setGdt(value: DescriptorTable): void {
    this.vcpu.kvm.calls.setGdt(this.vcpu, value);
  }
  setIdt(value: DescriptorTable): void {
    this.vcpu.kvm.calls.setIdt(this.vcpu, value);
  }
  /** KVM: emulator_get_cr. */
  getCr(cr: number): bigint {
    const { vcpu } = this;
    if (cr === 0) return kvmReadCr0(vcpu);
    if (cr === 2) return vcpu.arch.cr2[0];
    if (cr === 3) return kvmReadCr3(vcpu);
    return cr === 4 ? kvmReadCr4(vcpu) : kvmGetCr8(vcpu);
  }
  setCr(cr: number, value: bigint): number {
    return emulatorSetCr(this.vcpu, cr, value);
  }
  cpl(): number {
    return this.vcpu.kvm.calls.getCpl(this.vcpu);
  }
  getDr(dr: number): bigint {
    return kvmGetDr(this.vcpu, dr);
  }
  setDr(dr: number, value: bigint): number {
    return kvmSetDr(this.vcpu, dr, value);
  }
  getMsr(index: number): bigint | undefined {
    const { err, data } = kvmGetMsr(this.vcpu, index);
    return err === 0 ? data : undefined;
  }
  setMsr(index: number, value: bigint): number {
    return kvmSetMsr(this.vcpu, index, value);
  }
  readPmc(_index: number): bigint | undefined {
    return undefined;
  }
  rdtsc(): bigint {
    return kvmReadL1Tsc(this.vcpu, this.vcpu.kvm.hostTsc());
  }
  halt(): void {
    this.vcpu.arch.haltRequest = true;
  }
  wbinvd(): void {
    // No cache is modelled: there is nothing to write back.
  }
  /** Quirk FIX_HYPERCALL_INSN: puts the native opcode where the guest has the other vendor's; it is executed again. */
  fixHypercall(): X86Emul {
    const { vcpu } = this;
    if ((vcpu.vm.disabledQuirks & (1 << 5)) !== 0) return X86Emul.UNHANDLEABLE;
    const bytes = new Uint8Array(3);
    vcpu.kvm.calls.patchHypercall(vcpu, bytes);
    const at = this.getRip() + (this.getSegment(1).attrib & 0x200 ? 0n : this.getCachedSegmentBase(1));
    this.memory.write(at, BigInt(bytes[0]) | (BigInt(bytes[1]) << 8n) | (BigInt(bytes[2]) << 16n), 3);
    return X86Emul.RETRY_INSTR;
  }
  intercept(info: InstructionInfo, stage: InterceptStage): X86Emul {
    if (!this.checkIntercepts || !isGuestMode(this.vcpu)) return X86Emul.CONTINUE;
    const fault = noFault();
    const code = this.vcpu.kvm.calls.checkIntercept(this.vcpu, info, stage, fault);
    if (code === X86Emul.PROPAGATE_FAULT) {
      throw this.exception.set(fault.vector, fault.errorCodeValid ? fault.errorCode : undefined, fault.address);
    }
    return code;
  }
  getCpuid(leaf: number, subleaf: number): readonly [number, number, number, number] {
    const { eax, ebx, ecx, edx } = kvmCpuid(this.vcpu, leaf, subleaf);
    return [eax, ebx, ecx, edx];
  }
  guestHas(feature: string): boolean {
    return guestCpuidHas(this.vcpu, feature);
  }
  isIntelCompatible(): boolean {
    return guestCpuidIsIntelCompatible(this.vcpu);
  }
  setNmiMask(masked: boolean): void {
    this.vcpu.kvm.calls.setNmiMask(this.vcpu, masked);
  }
  isSmm(): boolean {
    return isSmm(this.vcpu);
  }
  leaveSmm(): number {
    return emulatorLeaveSmm(this.vcpu, this);
  }
  tripleFault(): void {
    kvmMakeRequest(Req.TRIPLE_FAULT, this.vcpu);
  }
  getXcr(index: number): bigint {
    return index === 0 ? this.vcpu.arch.xcr0 : 0n;
  }
  setXcr(index: number, value: bigint): number {
    return kvmSetXcr(this.vcpu, index, value);
  }
  fpuArea(): DataView {
    return fpuView(this.vcpu);
  }
  setInterruptShadow(kind: 1 | 2): void {
    this.shadow = kind;
  }
}

/** Ports of devices in the kernel. Undefined: user space has it. KVM: kernel_pio. */
export function kernelPioIn(vcpu: Vcpu, size: number, port: number): number | undefined {
  const value = vcpu.vm.irqchip?.readPort(port);
  if (value === undefined) return undefined;
  const masked = size === 4 ? value >>> 0 : value & ((1 << (8 * size)) - 1);
  trace(vcpu, 'kvm_pio', () => ({ vcpuId: vcpu.vcpuId, rw: 'read', port, size, count: 1, val: masked }));
  return masked;
}
export function kernelPioOut(vcpu: Vcpu, size: number, port: number, value: number): boolean {
  trace(vcpu, 'kvm_pio', () => ({ vcpuId: vcpu.vcpuId, rw: 'write', port, size, count: 1, val: value }));
  return vcpu.vm.irqchip?.writePort(port, value) ?? false;
}
