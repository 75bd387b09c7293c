/**
 * Emulation on behalf of exits: x86_emulate_instruction, skipping, and completion of what user space answers.
 * KVM: x86.c (x86_emulate_instruction, kvm_skip_emulated_instruction, complete_emulated_*).
 */
import { Evaluator, Flag, Seg, Vector, X86Emul } from '@tskvm/emulator';
import { guestCpuidIsIntelCompatible } from './cpuid.ts';
import { KvmEmulateOps } from './emulate-ops.ts';
import {
  kvmClearExceptionQueue,
  kvmInjectEmulatedException,
  kvmInjectGp,
  kvmQueueException,
  kvmQueueExceptionP,
} from './exceptions.ts';
import { is64BitMode, isGuestMode, kvmRipRead, kvmRipWrite } from './kvm-cache-regs.ts';
import { prepareIoExit } from './kvm-emulate-io.ts';
import { lowWord } from './low-word.ts';
import { kvmGetRflags, kvmSetRflagsRaw } from './regs.ts';
import { kvmMakeRequest } from './requests.ts';
import { frame, inFrame, ownFrame, trace, unframed } from './trace.ts';
import { EmulType, Req } from './types.ts';
import type { Vcpu } from './vcpu.ts';

export { kvmInjectRealmodeInterrupt, kvmTaskSwitch } from './kvm-emulate-events.ts';
export * from './kvm-emulate-insns.ts';
export { kvmFastPio } from './kvm-emulate-io.ts';

/** KVM_GUESTDBG_SINGLESTEP. */
const GUESTDBG_SINGLESTEP = 2;
const DR6_BS = 0x4000n;
const DR6_INIT = 0xffff0ff0n;
const RF = BigInt(Flag.RF);
const IF = BigInt(Flag.IF);
/** Iterations of a string instruction after which the guest is entered again, so that events get their turn. */
const MAX_REP_ITERATIONS = 1024;
const INTERNAL_ERROR_EMULATION = 1;
const INTERNAL_ERROR_DELIVERY_EV = 3;
const INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4;

/** Emulator of one vCPU. KVM: struct x86_emulate_ctxt. */
export interface EmulateCtxt {
  ops: KvmEmulateOps;
  evaluator: Evaluator;
  intel: boolean;
}
const contexts = new WeakMap<Vcpu, EmulateCtxt>();

/** The vCPU's emulator; made anew when CPUID's vendor has changed. */
export function emulateCtxt(vcpu: Vcpu): EmulateCtxt {
  const intel = guestCpuidIsIntelCompatible(vcpu);
  let ctxt = contexts.get(vcpu);
  if (!ctxt || ctxt.intel !== intel) {
    const ops = new KvmEmulateOps(vcpu);
    ctxt = { ops, evaluator: new Evaluator(ops, { subset: 'kvm', vendor: intel ? 'intel' : 'amd' }), intel };
    contexts.set(vcpu, ctxt);
  }
  return ctxt;
}

/** CS base + RIP outside 64-bit mode. KVM: kvm_get_linear_rip. */
export function kvmGetLinearRip(vcpu: Vcpu): bigint {
  if (vcpu.arch.guestStateProtected) return 0n;
  if (is64BitMode(vcpu)) return kvmRipRead(vcpu);
  return (vcpu.kvm.calls.getSegmentBase(vcpu, Seg.CS) + kvmRipRead(vcpu)) & 0xffffffffn;
}
export const kvmIsLinearRip = (vcpu: Vcpu, rip: bigint): boolean => kvmGetLinearRip(vcpu) === rip;

/** An instruction that KVM executed counts as one that the guest retired. */
export function retire(vcpu: Vcpu): void {
  vcpu.kvm.processor.tick++;
}

/** #DB after a step, or a debug exit. KVM: kvm_vcpu_do_singlestep. */
function doSinglestep(vcpu: Vcpu): number {
  if ((vcpu.guestDebug & GUESTDBG_SINGLESTEP) !== 0) {
    vcpu.exit = {
      reason: 'debug',
      exception: Vector.DB,
      pc: kvmGetLinearRip(vcpu),
      dr6: DR6_BS | DR6_INIT,
      dr7: vcpu.arch.dr7,
    };
    return 0;
  }
  kvmQueueExceptionP(vcpu, Vector.DB, DR6_BS);
  return 1;
}

/** RIP past the instruction, shadow cleared, TF → #DB. KVM: kvm_skip_emulated_instruction. */
export function kvmSkipEmulatedInstruction(vcpu: Vcpu): number {
  if (unframed(vcpu, kvmSkipEmulatedInstruction)) return inFrame(kvmSkipEmulatedInstruction, vcpu);
  const rflags = vcpu.kvm.calls.getRflags(vcpu);
  const r = vcpu.kvm.calls.skipEmulatedInstruction(vcpu);
  return r === 0 ? 0 : endOfSkip(vcpu, rflags);
}
ownFrame('kvmSkipEmulatedInstruction', kvmSkipEmulatedInstruction);

function endOfSkip(vcpu: Vcpu, rflags: bigint): number {
  retire(vcpu);
  return (lowWord(rflags) & Flag.TF) !== 0 ? doSinglestep(vcpu) : 1;
}

/** The same where the vendor's length of the instruction was lost on a move: it is decoded. RF stays, as there. */
export function skipDecodedInstruction(vcpu: Vcpu): number {
  const rflags = vcpu.kvm.calls.getRflags(vcpu);
  if (!kvmEmulateInstruction(vcpu, EmulType.SKIP)) return 0;
  if ((rflags & RF) !== 0n) kvmSetRflagsRaw(vcpu, rflags);
  vcpu.kvm.calls.setInterruptShadow(vcpu, 0);
  return endOfSkip(vcpu, rflags);
}

/** err: #GP(0), RIP stays; 0: skip. KVM: kvm_complete_insn_gp. */
export function kvmCompleteInsnGp(vcpu: Vcpu, err: number): number {
  if (unframed(vcpu, kvmCompleteInsnGp)) return inFrame(kvmCompleteInsnGp, vcpu, err);
  if (err !== 0) {
    kvmInjectGp(vcpu, 0);
    return 1;
  }
  return kvmSkipEmulatedInstruction(vcpu);
}
ownFrame('kvmCompleteInsnGp', kvmCompleteInsnGp);

/** Prepares KVM_EXIT_INTERNAL_ERROR with the instruction's bytes. KVM: kvm_prepare_emulation_failure_exit. */
export function kvmPrepareEmulationFailureExit(vcpu: Vcpu): void {
  const { reason, info1, info2, intrInfo, errorCode, name } = vcpu.kvm.calls.getExitInfo(vcpu);
  vcpu.exit = {
    reason: 'internal_error',
    suberror: INTERNAL_ERROR_EMULATION,
    data: [BigInt(reason), info1, info2, BigInt(intrInfo), BigInt(errorCode)],
    insnBytes: emulateCtxt(vcpu).evaluator.fetchedBytes,
    detail: `KVM's emulator can not execute the instruction at ${hex(kvmGetLinearRip(vcpu))} (exit ${name})${noMemory(vcpu)}`,
  };
}
/** A jump into nowhere: the instruction itself can't be fetched. */
function noMemory(vcpu: Vcpu): string {
  if (vcpu.arch.guestStateProtected) return '';
  const gpa = vcpu.translate(kvmGetLinearRip(vcpu));
  if (gpa === undefined || vcpu.vm.hasMemory(gpa, 1)) return '';
  return `: the guest has no memory at physical address 0x${gpa.toString(16)}`;
}
const hex = (n: bigint): string => `0x${n.toString(16)}`;

/** KVM: kvm_prepare_event_vectoring_exit. */
export function kvmPrepareEventVectoringExit(vcpu: Vcpu, gpa: number): void {
  const { reason, info1, info2, name } = vcpu.kvm.calls.getExitInfo(vcpu);
  vcpu.exit = {
    reason: 'internal_error',
    suberror: INTERNAL_ERROR_DELIVERY_EV,
    data: [info2, BigInt(reason), info1, BigInt(gpa), BigInt(vcpu.arch.lastVmentryCpu)],
    detail: `an event was being delivered when exit ${name} came`,
  };
}
/** KVM: kvm_prepare_unexpected_reason_exit. */
export function kvmPrepareUnexpectedReasonExit(vcpu: Vcpu, reason: number): void {
  vcpu.exit = {
    reason: 'internal_error',
    suberror: INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
    data: [BigInt(reason), BigInt(vcpu.arch.lastVmentryCpu)],
    detail: `exit reason ${reason} has no handler`,
  };
}

/** KVM: handle_emulation_failure. */
const handleEmulationFailure = frame('handleEmulationFailure', (vcpu: Vcpu, type: number): number => {
  traceInsn(vcpu, true);
  if ((type & EmulType.VMWARE_GP) !== 0) {
    kvmInjectGp(vcpu, 0);
    return 1;
  }
  if ((type & EmulType.SKIP) !== 0) {
    kvmPrepareEmulationFailureExit(vcpu);
    return 0;
  }
  kvmQueueException(vcpu, Vector.UD);
  if (!isGuestMode(vcpu) && vcpu.kvm.calls.getCpl(vcpu) === 0) {
    kvmPrepareEmulationFailureExit(vcpu);
    return 0;
  }
  return 1;
});

const MODE_NAMES = { real: 'real', vm86: 'vm16', prot16: 'prot16', prot32: 'prot32', prot64: 'prot64' } as const;
function traceInsn(vcpu: Vcpu, failed: boolean): void {
  trace(vcpu, 'kvm_emulate_insn', () => {
    const { evaluator } = emulateCtxt(vcpu);
    const csBase = vcpu.kvm.calls.getSegmentBase(vcpu, Seg.CS);
    const rip = kvmRipRead(vcpu);
    const insn = evaluator.instruction.bytes.slice(0, evaluator.instruction.length);
    if (vcpu.kvm.tracer) vcpu.kvm.tracer.instruction = { rip: csBase + rip, bytes: insn };
    return {
      vcpuId: vcpu.vcpuId,
      csBase,
      rip,
      insn,
      mode: MODE_NAMES[evaluator.context.mode],
      failed,
    };
  });
}

/** Result of a step of emulation: a number ends it. */
type Early = number | undefined;

/** Decodes and deals with what fails there. */
function decodeStep(vcpu: Vcpu, ctxt: EmulateCtxt, type: number, insn: Uint8Array | null): Early {
  const { ops, evaluator } = ctxt;
  kvmClearExceptionQueue(vcpu);
  ops.begin();
  evaluator.context.session.begin();
  evaluator.instruction.length = 0;
  const code = evaluator.decode(insn ?? undefined);
  traceInsn(vcpu, false);
  const trapUd = (type & (EmulType.TRAP_UD | EmulType.TRAP_UD_FORCED)) !== 0;
  const known = code === X86Emul.CONTINUE && ((type & EmulType.TRAP_UD) === 0 || evaluator.instruction.row.emulateOnUD);
  if (known) return undefined;
  if (trapUd) {
    kvmQueueException(vcpu, Vector.UD);
    return 1;
  }
  if (code === X86Emul.PROPAGATE_FAULT && (type & EmulType.SKIP) === 0) {
    injectFault(vcpu, ctxt);
    return 1;
  }
  return handleEmulationFailure(vcpu, type);
}

/** An interrupted instruction goes on. After a move it has to be decoded once more, from the bytes that were saved. */
function resumeStep(ctxt: EmulateCtxt): void {
  ctxt.ops.begin();
  if (ctxt.evaluator.instruction.length === 0) ctxt.evaluator.decode();
}

function injectFault(vcpu: Vcpu, ctxt: EmulateCtxt): void {
  const ex = ctxt.evaluator.exception;
  kvmInjectEmulatedException(vcpu, {
    vector: ex.vector,
    errorCodeValid: ex.errorCode !== undefined,
    errorCode: ex.errorCode ?? 0,
    nestedPageFault: ctxt.ops.memory.nestedFault,
    address: ex.payload,
  });
}

const truncateEip = (vcpu: Vcpu, eip: bigint): bigint => (is64BitMode(vcpu) ? eip : eip & 0xffffffffn);

/** EMULTYPE_SKIP: only the length matters. */
function skipStep(vcpu: Vcpu, ctxt: EmulateCtxt, type: number): number {
  const { ops, evaluator } = ctxt;
  const { instruction } = evaluator;
  if ((type & EmulType.SKIP_SOFT_INT) !== 0 && !isMatchingSoftInt(ctxt, type)) return 0;
  kvmRipWrite(vcpu, truncateEip(vcpu, kvmRipRead(vcpu) + BigInt(instruction.length)));
  if ((type & EmulType.COMPLETE_USER_EXIT) !== 0) return writeBack(vcpu, ctxt, kvmGetRflags(vcpu), 1);
  if ((ops.rflags & RF) !== 0n) kvmSetRflagsRaw(vcpu, ops.rflags & ~RF);
  return 1;
}
/** INT3, INTO or INT n with the vector in bits 23:16 of the type. */
function isMatchingSoftInt(ctxt: EmulateCtxt, type: number): boolean {
  const { opcode, imm } = ctxt.evaluator.instruction;
  const vector = (type >> 16) & 0xff;
  if (opcode === 0xcc) return vector === Vector.BP;
  if (opcode === 0xce) return vector === Vector.OF;
  return opcode === 0xcd && Number(imm & 0xffn) === vector;
}

/** Interrupt shadow in KVM's numbers: 1 MOV SS, 2 STI. KVM: toggle_interruptibility. */
function toggleInterruptibility(vcpu: Vcpu, shadow: 0 | 1 | 2): void {
  const { calls } = vcpu.kvm;
  const current = calls.getInterruptShadow(vcpu);
  let mask = shadow === 1 ? 2 : shadow === 2 ? 1 : 0;
  // A second one in a row gives no further shadow.
  if ((current & mask) !== 0) mask = 0;
  if (current === 0 && mask === 0) return;
  calls.setInterruptShadow(vcpu, mask);
  if (mask === 0) kvmMakeRequest(Req.EVENT, vcpu);
}

/** The end of an instruction that has completed: RFLAGS, shadow, trap flag. */
function writeBack(vcpu: Vcpu, ctxt: EmulateCtxt, before: bigint, result: number): number {
  const { ops } = ctxt;
  let r = result;
  toggleInterruptibility(vcpu, ops.shadow);
  retire(vcpu);
  if (r > 0 && (ctxt.evaluator.context.singleStep || (vcpu.guestDebug & GUESTDBG_SINGLESTEP) !== 0))
    r = doSinglestep(vcpu);
  vcpu.kvm.calls.updateEmulatedInstruction(vcpu);
  kvmSetRflagsRaw(vcpu, ops.rflags);
  if ((ops.rflags & ~before & IF) !== 0n) kvmMakeRequest(Req.EVENT, vcpu);
  return r;
}

/** Executes until the instruction is over, needs user space, or has had enough iterations. */
function executeLoop(vcpu: Vcpu, ctxt: EmulateCtxt): X86Emul {
  const { evaluator, ops } = ctxt;
  for (let n = 0; ; n++) {
    const code = evaluator.execute(evaluator.instruction);
    if (code !== X86Emul.CONTINUE || !evaluator.context.restart) return code;
    if (ops.pio || ops.memory.pending) return code;
    // What was read ahead must be used before events get their turn.
    if (n >= MAX_REP_ITERATIONS && !ops.hasAnswer) return code;
    retire(vcpu);
  }
}

/** Executes a decoded (or interrupted) instruction. */
function executeStep(vcpu: Vcpu, ctxt: EmulateCtxt, type: number): number {
  const { ops, evaluator } = ctxt;
  const before = ops.rflags;
  ops.checkIntercepts = isGuestMode(vcpu) && (type & EmulType.NO_DECODE) === 0;
  const code = executeLoop(vcpu, ctxt);
  switch (code) {
    case X86Emul.INTERCEPTED:
      return 1;
    case X86Emul.RETRY_INSTR:
      return 1;
    case X86Emul.IO_NEEDED:
      prepareIoExit(vcpu, ctxt);
      return 0;
    case X86Emul.PROPAGATE_FAULT: {
      ops.memory.pending = null;
      const { trap } = evaluator.exception;
      injectFault(vcpu, ctxt);
      return trap ? writeBack(vcpu, ctxt, before, 1) : 1;
    }
    case X86Emul.CONTINUE: {
      const needsUser = ops.pio !== null || ops.memory.pending !== null || vcpu.arch.completeUserspaceIo !== null;
      if (ops.pio || ops.memory.pending) prepareIoExit(vcpu, ctxt);
      return writeBack(vcpu, ctxt, before, needsUser ? 0 : 1);
    }
    default:
      return handleEmulationFailure(vcpu, type);
  }
}

/** Asks the vendor whether KVM may emulate now. */
function checkEmulateStep(vcpu: Vcpu, gpa: number, type: number, insn: Uint8Array | null): Early {
  const code = vcpu.kvm.calls.checkEmulateInstruction(vcpu, type, insn);
  if (code === X86Emul.CONTINUE) return undefined;
  if (code === X86Emul.RETRY_INSTR || code === X86Emul.PROPAGATE_FAULT) return 1;
  if (code === X86Emul.UNHANDLEABLE_VECTORING) {
    kvmPrepareEventVectoringExit(vcpu, gpa);
    return 0;
  }
  return handleEmulationFailure(vcpu, type);
}

/**
 * Emulates the instruction at RIP (bytes in `insn` if the hardware delivered them).
 * @returns as an exit handler: > 0 go on, 0 to user space. KVM: x86_emulate_instruction
 */
export const x86EmulateInstruction = frame(
  'x86EmulateInstruction',
  (vcpu: Vcpu, cr2OrGpa: number, emulType: number, insn: Uint8Array | null, insnLen: number): number => {
    const checked = checkEmulateStep(vcpu, cr2OrGpa, emulType, insn);
    if (checked !== undefined) return checked;
    const ctxt = emulateCtxt(vcpu);
    if ((emulType & EmulType.NO_DECODE) === 0) {
      const bytes = insn && insnLen > 0 ? insn.subarray(0, insnLen) : null;
      const decoded = decodeStep(vcpu, ctxt, emulType, bytes);
      if (decoded !== undefined) return decoded;
    } else resumeStep(ctxt);
    if ((emulType & EmulType.VMWARE_GP) !== 0 && ctxt.evaluator.instruction.row.intercept === 'none') {
      kvmInjectGp(vcpu, 0);
      return 1;
    }
    if ((emulType & EmulType.SKIP) !== 0) return skipStep(vcpu, ctxt, emulType);
    return executeStep(vcpu, ctxt, emulType);
  },
);

/** KVM: kvm_emulate_instruction. */
export const kvmEmulateInstruction = frame('kvmEmulateInstruction', (vcpu: Vcpu, emulType: number): number =>
  x86EmulateInstruction(vcpu, 0, emulType, null, 0),
);
/** KVM: kvm_emulate_instruction_from_buffer. */
export const kvmEmulateInstructionFromBuffer = (vcpu: Vcpu, insn: Uint8Array, insnLen: number): number =>
  x86EmulateInstruction(vcpu, 0, 0, insn, insnLen);

/** KVM: kvm_handle_invalid_op. */
export function kvmHandleInvalidOp(vcpu: Vcpu): number {
  kvmQueueException(vcpu, Vector.UD);
  return 1;
}
/** Intercepted #UD: what KVM emulates on #UD, everything else goes to the guest. KVM: handle_ud. */
export const handleUd = frame('handleUd', (vcpu: Vcpu): number => kvmEmulateInstruction(vcpu, EmulType.TRAP_UD));
