/**
 * Port and MMIO accesses that user space completes: preparing the exit, and going on with the answer.
 * KVM: emulator_pio_in_out, complete_emulated_pio, complete_emulated_mmio, kvm_fast_pio (x86.c).
 */
import { Flag, PAGE, RCX, RDI, Seg } from '@tskvm/emulator';
import { KvmError } from './diagnostics.ts';
import type { MmioAccess } from './emulate-memory.ts';
import { kernelPioIn, kernelPioOut } from './emulate-ops.ts';
import { kvmRaxRead, kvmRaxWrite, kvmRegisterReadRaw } from './kvm-cache-regs.ts';
import {
  type EmulateCtxt,
  emulateCtxt,
  kvmGetLinearRip,
  kvmIsLinearRip,
  kvmSkipEmulatedInstruction,
  skipDecodedInstruction,
  x86EmulateInstruction,
} from './kvm-emulate.ts';
import { inFrame, ownFrame, trace, unframed } from './trace.ts';
import { EmulType, Errno } from './types.ts';
import type { Vcpu } from './vcpu.ts';

/** KVM_X86_QUIRK_OUT_7E_INC_RIP. */
const QUIRK_OUT_7E_INC_RIP = 8;
const DF = BigInt(Flag.DF);

/** Prepares the exit for the port or MMIO access that the instruction made. */
export function prepareIoExit(vcpu: Vcpu, ctxt: EmulateCtxt): void {
  const { ops } = ctxt;
  if (ops.pio) {
    const { port, size, value } = ops.pio;
    preparePioExit(vcpu, ops.pio.in, size, port, value, ops.pio.in ? readAheadCount(vcpu, ctxt, size) : 1);
    if (ops.pio.in) vcpu.arch.completeUserspaceIo = { kind: 'emulatedPio', data: null };
    return;
  }
  const access = ops.memory.pending;
  if (!access) return;
  ops.memory.pending = null;
  vcpu.arch.completeUserspaceIo = { kind: 'emulatedMmio', data: access };
  prepareMmioExit(vcpu, access);
}

/** Bytes that REP INS reads from user space at once. KVM: sizeof(rc->data) in struct read_cache. */
const READ_AHEAD = 1024;

/** Elements that REP INS may take in one exit: the count, and what fits before the end of the page. KVM: pio_in_emulated. */
function readAheadCount(vcpu: Vcpu, ctxt: EmulateCtxt, size: number): number {
  const { row, rep, addrSize } = ctxt.evaluator.instruction;
  if (row.mnemonic !== 'ins' || rep === 0 || (ctxt.ops.rflags & DF) !== 0n) return 1;
  const mask = (1n << BigInt(8 * addrSize)) - 1n;
  const left = kvmRegisterReadRaw(vcpu, RCX) & mask;
  const linear = vcpu.kvm.calls.getSegmentBase(vcpu, Seg.ES) + (kvmRegisterReadRaw(vcpu, RDI) & mask);
  const room = Math.min(READ_AHEAD, PAGE - Number(linear & BigInt(PAGE - 1)));
  return Math.max(1, Math.min(Math.floor(room / size), left > BigInt(READ_AHEAD) ? READ_AHEAD : Number(left)));
}

function preparePioExit(vcpu: Vcpu, isIn: boolean, size: number, port: number, value: number, count = 1): void {
  const data = new Uint8Array(size * count);
  if (!isIn) for (let i = 0; i < size; i++) data[i] = (value >>> (8 * i)) & 0xff;
  vcpu.arch.pio = { port, in: isIn, size, count: isIn ? count : 0 };
  vcpu.exit = { reason: 'io', direction: isIn ? 'in' : 'out', size, port, count, data };
}
function prepareMmioExit(vcpu: Vcpu, access: MmioAccess): void {
  const { gpa, len, value } = access.fragments[access.at];
  const data = new Uint8Array(8);
  if (access.isWrite) for (let i = 0; i < len; i++) data[i] = Number((value >> BigInt(8 * i)) & 0xffn);
  trace(vcpu, 'kvm_mmio', () => ({ type: access.isWrite ? 'write' : 'unsatisfied-read', len, gpa, val: value }));
  vcpu.exit = { reason: 'mmio', physAddr: gpa, len, isWrite: access.isWrite, data };
}
/** What user space has answered. Throws KvmError RUN_ANSWER (EINVAL) if it has put something else in the place of the bytes. */
function exitData(vcpu: Vcpu): Uint8Array {
  const { exit } = vcpu;
  if (exit.reason !== 'io' && exit.reason !== 'mmio') return new Uint8Array(8);
  const { data } = exit;
  if (data instanceof Uint8Array && data.length >= (exit.reason === 'io' ? exit.size * exit.count : 8)) return data;
  throw new KvmError(
    'RUN_ANSWER',
    Errno.EINVAL,
    "KVM_RUN: the exit's data is not what it was; fill the bytes that were there",
  );
}
/** The value that user space has supplied for an input. KVM: trace in complete_pio. */
function pioInput(vcpu: Vcpu): number {
  const { pio } = vcpu.arch;
  const value = Number(littleEndian(exitData(vcpu), pio.size));
  const { port, size, count } = pio;
  pio.count = 0;
  trace(vcpu, 'kvm_pio', () => ({ vcpuId: vcpu.vcpuId, rw: 'read', port, size, count, val: value }));
  return value;
}
const littleEndian = (data: Uint8Array, len: number): bigint => {
  if (len <= 4) return BigInt(littleEndian32(data, len));
  let value = 0n;
  for (let i = len - 1; i >= 0; i--) value = (value << 8n) | BigInt(data[i]);
  return value;
};
function littleEndian32(data: Uint8Array, len: number): number {
  let value = 0;
  for (let i = len - 1; i >= 0; i--) value = (value << 8) | data[i];
  return value >>> 0;
}

/** User space has answered IN of an emulated instruction. KVM: complete_emulated_pio. */
export function completeEmulatedPio(vcpu: Vcpu): number {
  const { port, size } = vcpu.arch.pio;
  pioInput(vcpu);
  emulateCtxt(vcpu).ops.answerPio(port, size, exitData(vcpu));
  return resume(vcpu);
}
const resume = (vcpu: Vcpu): number => x86EmulateInstruction(vcpu, 0, EmulType.NO_DECODE, null, 0);

/** One fragment of an MMIO access is done. KVM: complete_emulated_mmio. */
export function completeEmulatedMmio(vcpu: Vcpu, data: unknown): number {
  const access = data as MmioAccess;
  const fragment = access.fragments[access.at];
  if (!access.isWrite) {
    fragment.value = littleEndian(exitData(vcpu), fragment.len);
    trace(vcpu, 'kvm_mmio', () => ({ type: 'read', len: fragment.len, gpa: fragment.gpa, val: fragment.value }));
  }
  do access.at++;
  while (access.fragments[access.at]?.done);
  if (access.at < access.fragments.length) {
    vcpu.arch.completeUserspaceIo = { kind: 'emulatedMmio', data: access };
    prepareMmioExit(vcpu, access);
    return 0;
  }
  if (access.isWrite) return 1;
  emulateCtxt(vcpu).ops.memory.completed = { linear: access.linear, size: access.size, value: joined(access) };
  return resume(vcpu);
}
/** The value of a read whose fragments are all there. */
function joined({ fragments }: MmioAccess): bigint {
  if (fragments.length === 1) return fragments[0].value;
  let value = 0n;
  let shift = 0n;
  for (const part of fragments) {
    value |= part.value << shift;
    shift += BigInt(8 * part.len);
  }
  return value;
}

/** Non-string IN/OUT without the emulator. KVM: kvm_fast_pio. */
export function kvmFastPio(vcpu: Vcpu, size: number, port: number, isIn: boolean): number {
  if (unframed(vcpu, kvmFastPio)) return inFrame(kvmFastPio, vcpu, size, port, isIn);
  return isIn ? fastPioIn(vcpu, size, port) : fastPioOut(vcpu, size, port);
}
ownFrame('kvmFastPio', kvmFastPio);

function fastPioOut(vcpu: Vcpu, size: number, port: number): number {
  const value = Number(kvmRaxRead(vcpu) & 0xffffffffn) & (size === 4 ? -1 : (1 << (8 * size)) - 1);
  if (kernelPioOut(vcpu, size, port, value >>> 0)) return kvmSkipEmulatedInstruction(vcpu);
  preparePioExit(vcpu, false, size, port, value);
  if (port === 0x7e && (vcpu.vm.disabledQuirks & QUIRK_OUT_7E_INC_RIP) === 0) {
    kvmSkipEmulatedInstruction(vcpu);
    return 0;
  }
  vcpu.arch.completeUserspaceIo = { kind: 'fastPioOut', data: { linearRip: kvmGetLinearRip(vcpu) } };
  return 0;
}
/** What waits while user space does a fast port access. `decode`: the vendor's length of the instruction was lost on a move. */
interface FastPio {
  linearRip: bigint;
  decode?: boolean;
}
const skipFastPio = (vcpu: Vcpu, { decode }: FastPio): number =>
  decode ? skipDecodedInstruction(vcpu) : kvmSkipEmulatedInstruction(vcpu);

/** Skips OUT unless user space has moved RIP meanwhile (a reset). KVM: complete_fast_pio_out. */
export function completeFastPioOut(vcpu: Vcpu, data: unknown): number {
  vcpu.arch.pio.count = 0;
  if (!kvmIsLinearRip(vcpu, (data as FastPio).linearRip)) return 1;
  return skipFastPio(vcpu, data as FastPio);
}

/** RAX with the low bytes replaced; a 32-bit result clears the upper half. */
function mergeIn(vcpu: Vcpu, size: number, value: number): void {
  const keep = size < 4 ? kvmRaxRead(vcpu) & ~((1n << BigInt(8 * size)) - 1n) & 0xffffffffffffffffn : 0n;
  kvmRaxWrite(vcpu, keep | BigInt(value >>> 0));
}
function fastPioIn(vcpu: Vcpu, size: number, port: number): number {
  const value = kernelPioIn(vcpu, size, port);
  if (value !== undefined) {
    mergeIn(vcpu, size, value);
    return kvmSkipEmulatedInstruction(vcpu);
  }
  preparePioExit(vcpu, true, size, port, 0);
  vcpu.arch.completeUserspaceIo = { kind: 'fastPioIn', data: { linearRip: kvmGetLinearRip(vcpu) } };
  return 0;
}
/** KVM: complete_fast_pio_in. */
export function completeFastPioIn(vcpu: Vcpu, data: unknown): number {
  const value = pioInput(vcpu);
  if (!kvmIsLinearRip(vcpu, (data as FastPio).linearRip)) return 1;
  mergeIn(vcpu, vcpu.arch.pio.size, value);
  return skipFastPio(vcpu, data as FastPio);
}
