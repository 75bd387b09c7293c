/**
 * EvaluateContext: the registers, addresses and accesses of one instruction that evaluate executes.
 * Manual: APM vol. 2 ch. 4 (segment checks), section 5.3.1 (canonical form), section 8.2.18 (#AC). KVM: struct x86_emulate_ctxt, __linearize().
 *
 * Register writes are kept back until the instruction commits, so that a fault anywhere in it leaves all of them as they were.
 */
import type { Size } from '../../builder/builder.ts';
import type { Instruction } from '../../decode/instruction.ts';
import { GuestException } from '../../exceptions.ts';
import type { X86EmulateOps } from '../../ops.ts';
import { Attrib, CR0, CR4, Flag, RDI, RSI, RSP, Seg, type SegmentIndex, Vector } from '../../state-layout.ts';
import { endsAt4G, HIGH_HALF, LOW_HALF_END, untagged } from '../../system/common.ts';
import type { EmulateContext, EmulateMode } from '../../system/context.ts';
import { isMemory, type OperandForm, operandSize, registerOf } from './operands.ts';
import { EmulateSession } from './session.ts';

const EFER_MSR = 0xc0000080;
const LMA = 1n << 10n;
const RF = BigInt(Flag.RF);
const TF = BigInt(Flag.TF);
const VM = BigInt(Flag.VM);
const AC = BigInt(Flag.AC);

/** `MASK[size]`: the low `size` bytes. */
export const MASK: readonly bigint[] = [0n, 0xffn, 0xffffn, 0xffffffn, 0xffffffffn, 0n, 0n, 0n, (1n << 64n) - 1n];

/** X86EMUL_MODE_* of the processor that `ops` shows (KVM: init_emulate_ctxt). */
export function emulateMode(ops: X86EmulateOps): EmulateMode {
  return emulateModeWith(ops, ops.getSegment(Seg.CS).attrib);
}

/** As {@link emulateMode}, for a caller that has CS's attributes at hand. */
export function emulateModeWith(ops: X86EmulateOps, attrib: number): EmulateMode {
  if ((ops.getCr(0) & CR0.PE) === 0n) return 'real';
  if ((ops.getRflags() & VM) !== 0n) return 'vm86';
  if ((attrib & Attrib.L) !== 0 && ((ops.getMsr(EFER_MSR) ?? 0n) & LMA) !== 0n) return 'prot64';
  return (attrib & Attrib.DB) !== 0 ? 'prot32' : 'prot16';
}

export class EvaluateContext implements EmulateContext {
  mode: EmulateMode = 'real';
  insn!: Instruction;
  rip = 0n;
  eip = 0n;
  rflags = 0n;
  restart = false;
  interruptShadow: 0 | 1 | 2 = 0;
  modeChanged = false;
  debugTrap: bigint | undefined = undefined;
  singleStep = false;
  readonly session = new EmulateSession();
  readonly exception = new GuestException();
  /** The operands of the row at hand. */
  forms: readonly OperandForm[] = [];
  private readonly registers: bigint[] = new Array<bigint>(16).fill(0n);
  private dirty = 0;
  /** Operands that were read, one bit each, and their values. */
  private operandsRead = 0;
  private readonly operandValues: bigint[] = [0n, 0n, 0n, 0n];
  private stackBytes: 0 | 2 | 4 | 8 = 0;
  private checkAlignment = false;
  private initialRflags = 0n;

  constructor(
    readonly ops: X86EmulateOps,
    readonly subset: 'x86' | 'kvm',
    readonly vendor: 'amd' | 'intel',
  ) {}

  /** Prepares for the instruction at RIP. `mode` is set by the caller. */
  begin(insn: Instruction, forms: readonly OperandForm[]): void {
    const ops = this.ops;
    this.insn = insn;
    this.forms = forms;
    this.rip = ops.getRip();
    this.eip = this.truncateRip(this.rip + BigInt(insn.length));
    this.rflags = this.initialRflags = ops.getRflags();
    this.restart = false;
    this.interruptShadow = 0;
    this.modeChanged = false;
    this.debugTrap = undefined;
    this.singleStep = (this.rflags & TF) !== 0n;
    this.dirty = 0;
    this.stackBytes = 0;
    this.operandsRead = 0;
    this.checkAlignment =
      (this.rflags & AC) !== 0n && this.subset === 'x86' && (ops.getCr(0) & CR0.AM) !== 0n && ops.cpl() === 3;
  }

  /** RF is clear in what the instruction sees and leaves, unless it loads RFLAGS itself (APM vol. 2 section 13.1.3). */
  clearResume(): void {
    if ((this.rflags & RF) !== 0n) this.rflags &= ~RF;
  }

  /** Makes the instruction's effects on registers, RFLAGS and RIP visible. */
  commit(): void {
    const ops = this.ops;
    this.flushRegisters();
    // A REP iteration that is not the last keeps RF, so that a breakpoint on the instruction hits once.
    const rflags = this.restart ? this.rflags | RF : this.rflags;
    if (rflags !== this.initialRflags || this.modeChanged) ops.setRflags(rflags);
    if (!this.restart) ops.setRip(this.eip);
    if (this.interruptShadow !== 0) ops.setInterruptShadow(this.interruptShadow);
  }

  /** What AMD processors keep of an instruction that faults half-way; KVM's emulator keeps nothing. */
  checkpoint(): void {
    if (this.subset === 'x86') this.flushRegisters();
  }

  private flushRegisters(): void {
    for (let number = 0, left = this.dirty; left !== 0; number++, left >>>= 1) {
      if ((left & 1) !== 0) this.ops.writeGpr(number, this.registers[number]!);
    }
    this.dirty = 0;
  }

  truncateRip(value: bigint): bigint {
    return this.mode === 'prot64' ? BigInt.asUintN(64, value) : value & 0xffffffffn;
  }

  // Registers

  getReg(reg: number, size: number): bigint {
    const value = (this.dirty & (1 << reg)) !== 0 ? this.registers[reg]! : this.ops.readGpr(reg);
    return size === 8 ? value : value & MASK[size]!;
  }

  setReg(reg: number, size: number, value: bigint): void {
    let whole = value;
    if (size === 8) whole = BigInt.asUintN(64, value);
    else {
      whole = value & MASK[size]!;
      if (size < 4) whole |= this.getReg(reg, 8) & ~MASK[size]!;
    }
    this.registers[reg] = whole;
    this.dirty |= 1 << reg;
  }

  /** As `getReg`, but registers 4..7 of size 1 are AH CH DH BH unless the instruction has a REX prefix. */
  getEncodedReg(reg: number, size: number): bigint {
    if (size === 1 && reg >= 4 && reg < 8 && this.insn.rex === 0) return (this.getReg(reg - 4, 8) >> 8n) & 0xffn;
    return this.getReg(reg, size);
  }

  setEncodedReg(reg: number, size: number, value: bigint): void {
    if (size === 1 && reg >= 4 && reg < 8 && this.insn.rex === 0) {
      const low = this.getReg(reg - 4, 1);
      this.setReg(reg - 4, 2, ((value & 0xffn) << 8n) | low);
    } else this.setReg(reg, size, value);
  }

  // Addresses

  /** Offset of the memory operand; `popped` as in Builder.ea. */
  effectiveAddress(popped = 0): bigint {
    const insn = this.insn;
    const form = this.forms[0];
    if (form !== undefined && (form.place === 'moffs' || this.forms[1]?.place === 'moffs')) {
      return insn.imm & MASK[insn.addrSize]!;
    }
    let offset = insn.disp;
    if (insn.base >= 0) offset += this.getReg(insn.base, 8);
    if (insn.index >= 0) offset += this.getReg(insn.index, 8) << BigInt(insn.scale);
    if (insn.ripRelative) offset += this.rip + BigInt(insn.length);
    if (popped !== 0 && insn.base === RSP) offset += BigInt(popped);
    return offset & MASK[insn.addrSize]!;
  }

  stackSize(): 2 | 4 | 8 {
    if (this.stackBytes === 0) {
      if (this.mode === 'prot64') this.stackBytes = 8;
      else this.stackBytes = (this.ops.getSegment(Seg.SS).attrib & Attrib.DB) !== 0 ? 4 : 2;
    }
    return this.stackBytes;
  }

  linearize(seg: number, offset: bigint, size: number, write: boolean): bigint {
    return this.mode === 'prot64' ? this.linearize64(seg, offset, size) : this.linearize32(seg, offset, size, write);
  }

  private linearize64(seg: number, offset: bigint, size: number): bigint {
    const base = seg === Seg.FS || seg === Seg.GS ? this.ops.getCachedSegmentBase(seg) : 0n;
    const linear = untagged(this.ops, BigInt.asUintN(64, base + offset));
    if (!this.isCanonical(linear) || (size > 1 && !this.isCanonical(BigInt.asUintN(64, linear + BigInt(size - 1))))) {
      this.segmentFault(seg);
    }
    return linear;
  }

  private linearize32(seg: number, offset: bigint, size: number, write: boolean): bigint {
    const segment = this.ops.getSegment(seg as SegmentIndex);
    const attrib = segment.attrib;
    const first = Number(offset & 0xffffffffn);
    const last = first + size - 1;
    if (this.mode !== 'real' && this.mode !== 'vm86' && !isAccessible(attrib, write)) this.segmentFault(seg);
    const expandDown = (attrib & (Attrib.typeMask & 0xc)) === 0x4;
    const bad = expandDown
      ? first <= segment.limit || last > ((attrib & Attrib.DB) !== 0 ? 0xffffffff : 0xffff)
      : last > segment.limit && (segment.limit !== 0xffffffff || endsAt4G(this));
    if (bad) this.segmentFault(seg);
    return (segment.base + BigInt(first)) & 0xffffffffn;
  }

  /** #SS(0) for the stack segment, #GP(0) for the others. */
  private segmentFault(seg: number): never {
    this.raise(seg === Seg.SS ? Vector.SS : Vector.GP, 0);
  }

  isCanonical(linear: bigint): boolean {
    if (linear < LOW_HALF_END || linear >= HIGH_HALF) return true;
    if ((this.ops.getCr(4) & CR4.LA57) === 0n) return false;
    const top = BigInt.asIntN(64, linear) >> 56n;
    return top === 0n || top === -1n;
  }

  /** CS-relative target of a near or far transfer: #GP(0) if it can't be fetched from. */
  checkTarget(target: bigint): void {
    if (this.mode === 'prot64') {
      if (!this.isCanonical(target)) this.raise(Vector.GP, 0);
    } else if (target > BigInt(this.ops.getSegment(Seg.CS).limit)) this.raise(Vector.GP, 0);
  }

  // Memory

  read(seg: number, offset: bigint, size: number): bigint {
    return this.readLinear(this.linearize(seg, offset, size, false), size, false);
  }

  readForWrite(seg: number, offset: bigint, size: number): bigint {
    return this.readLinear(this.linearize(seg, offset, size, true), size, true);
  }

  write(seg: number, offset: bigint, value: bigint, size: number): void {
    const linear = this.linearize(seg, offset, size, true);
    this.checkAligned(linear, size);
    this.ops.writeEmulated(linear, value, size);
  }

  probeWrite(seg: number, offset: bigint, size: number): void {
    const linear = this.linearize(seg, offset, size, true);
    this.checkAligned(linear, size);
    this.ops.probeWrite(linear, size);
  }

  /** One read through the log. */
  readLinear(linear: bigint, size: number, forWrite: boolean): bigint {
    this.checkAligned(linear, size);
    const logged = this.session.replay('memory', linear, size);
    if (logged !== undefined) return logged;
    const value = forWrite ? this.ops.readForWrite(linear, size) : this.ops.readEmulated(linear, size);
    this.session.record('memory', linear, size, value);
    return value;
  }

  /** Port input through the log: for IN and INS. */
  pioIn(size: number, port: number): number {
    const address = BigInt(port);
    const logged = this.session.replay('port', address, size);
    if (logged !== undefined) return Number(logged);
    const value = this.ops.pioIn(size, port);
    this.session.record('port', address, size, BigInt(value));
    return value;
  }

  private checkAligned(linear: bigint, size: number): void {
    if (!this.checkAlignment || (size !== 2 && size !== 4 && size !== 8)) return;
    if ((linear & BigInt(size - 1)) !== 0n) this.raise(Vector.AC, 0);
  }

  push(value: bigint, size: number): void {
    const bytes = this.stackSize();
    const top = (this.getReg(RSP, bytes) - BigInt(size)) & MASK[bytes]!;
    this.write(Seg.SS, top, value & MASK[size]!, size);
    this.setReg(RSP, bytes, top);
  }

  pop(size: number): bigint {
    const bytes = this.stackSize();
    const top = this.getReg(RSP, bytes);
    const value = this.read(Seg.SS, top, size);
    this.setReg(RSP, bytes, top + BigInt(size));
    return value;
  }

  // Operands

  operandSize(n: number): number {
    return operandSize(this.forms[n]!, this.insn);
  }

  readOperand(n: number): bigint {
    if ((this.operandsRead & (1 << n)) !== 0) return this.operandValues[n]!;
    const value = this.fetchOperand(this.forms[n]!);
    this.operandValues[n] = value;
    this.operandsRead |= 1 << n;
    return value;
  }

  private fetchOperand(form: OperandForm): bigint {
    const insn = this.insn;
    const size = operandSize(form, insn);
    if (isMemory(form, insn)) return this.read(insn.seg, this.effectiveAddress(), size);
    return this.registerOperand(form, size);
  }

  /** Value of an operand that is not memory; 0 for what has no value of its own (strings, control registers). */
  registerOperand(form: OperandForm, size: Size): bigint {
    const insn = this.insn;
    switch (form.place) {
      case 'imm':
      case 'rel':
        return insn.imm & MASK[size]!;
      case 'one':
        return 1n;
      case 'gpr':
        return this.getReg(form.fixed, size);
      case 'segment':
        return BigInt(this.ops.getSegment((insn.reg & 7) as SegmentIndex).selector);
      case 'fixedSegment':
        return BigInt(this.ops.getSegment(form.fixed as SegmentIndex).selector);
      case 'rm':
      case 'rmRegister':
      case 'reg':
      case 'opReg':
      case 'vvvv':
        return this.getEncodedReg(registerOf(form, insn), size);
      default:
        return 0n;
    }
  }

  writeOperand(n: number, value: bigint): void {
    const form = this.forms[n]!;
    const insn = this.insn;
    const size = operandSize(form, insn);
    if (isMemory(form, insn)) this.write(insn.seg, this.effectiveAddress(), value & MASK[size]!, size);
    else if (form.place === 'gpr') this.setReg(form.fixed, size, value);
    else this.setOperandRegister(form, size, value);
  }

  setOperandRegister(form: OperandForm, size: number, value: bigint): void {
    this.setEncodedReg(registerOf(form, this.insn), size, value);
  }

  /** Offset of a string operand: rSI or rDI by address size. */
  stringOffset(place: 'source' | 'destination'): bigint {
    return this.getReg(place === 'source' ? RSI : RDI, this.insn.addrSize);
  }

  raise(vector: number, errorCode?: number, payload = 0n): never {
    throw this.exception.set(vector, errorCode, payload);
  }
}

/** Rights of a data access in protected mode (APM vol. 2 section 4.8.2): present, readable, writable. */
function isAccessible(attrib: number, write: boolean): boolean {
  if ((attrib & Attrib.unusable) !== 0 || (attrib & Attrib.P) === 0) return false;
  const code = (attrib & 8) !== 0;
  const readWrite = (attrib & 2) !== 0;
  return write ? !code && readWrite : !code || readWrite;
}
