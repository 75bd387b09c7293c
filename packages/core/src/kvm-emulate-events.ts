/** Task switches and real-mode interrupt delivery by the emulator. KVM: kvm_task_switch, kvm_inject_realmode_interrupt (x86.c). */
import {
  deliverEvent,
  emulateMode,
  emulatorTaskSwitch,
  GuestException,
  Seg,
  type TaskSwitchReason,
  Unwind,
  X86Emul,
} from '@tskvm/emulator';
import { kvmClearExceptionQueue, kvmInjectEmulatedException } from './exceptions.ts';
import { kvmRipRead, kvmRipWrite } from './kvm-cache-regs.ts';
import { type EmulateCtxt, emulateCtxt, kvmPrepareEmulationFailureExit } from './kvm-emulate.ts';
import { kvmSetRflags } from './regs.ts';
import { kvmMakeRequest } from './requests.ts';
import { frame } from './trace.ts';
import { Req } from './types.ts';
import type { Vcpu } from './vcpu.ts';

const REASONS: readonly TaskSwitchReason[] = ['call', 'iret', 'jmp', 'gate'];

/** An emulation context without an instruction. KVM: init_emulate_ctxt. */
function eventContext(vcpu: Vcpu, ctxt: EmulateCtxt) {
  const { context } = ctxt.evaluator;
  ctxt.evaluator.forgetInstruction();
  ctxt.ops.begin();
  context.mode = emulateMode(ctxt.ops);
  context.eip = kvmRipRead(vcpu);
  context.rflags = ctxt.ops.rflags;
  context.modeChanged = false;
  return context;
}

/** Could the guest be entered: a switch that faulted on its CS or SS has none. */
const hasCodeAndStack = (vcpu: Vcpu): boolean =>
  [Seg.CS, Seg.SS].every((seg) => vcpu.kvm.calls.getSegment(vcpu, seg).unusable === 0);

/** A fault in the old task finds RIP at its instruction again, one in the new task finds that task's first. */
function injectTaskFault(vcpu: Vcpu, ctxt: EmulateCtxt, fault: GuestException, oldRip: bigint): number {
  const { context } = ctxt.evaluator;
  if (!context.modeChanged) kvmRipWrite(vcpu, oldRip);
  else kvmSetRflags(vcpu, context.rflags);
  kvmInjectEmulatedException(vcpu, {
    vector: fault.vector,
    errorCodeValid: fault.errorCode !== undefined,
    errorCode: fault.errorCode ?? 0,
    nestedPageFault: ctxt.ops.memory.nestedFault,
    address: fault.payload,
  });
  return 1;
}

/**
 * Task switch. What can't be emulated is an internal-error exit. KVM: kvm_task_switch, which loses the faults of a switch (its result says
 * only whether the emulator could do it); here they are injected, as a processor raises them, unless the new task has no code or stack segment yet.
 * @param idtIndex vector of a task gate that software used, or -1
 * @param reason 0 CALL, 1 IRET, 2 JMP, 3 gate
 * @param oldRip where the old task stands if the switch faults before it has left it
 * @returns as an exit handler
 */
export const kvmTaskSwitch = frame(
  'kvmTaskSwitch',
  (
    vcpu: Vcpu,
    tssSelector: number,
    idtIndex: number,
    reason: number,
    hasErrorCode: boolean,
    errorCode: number,
    oldRip: bigint,
  ): number => {
    const ctxt = emulateCtxt(vcpu);
    const context = eventContext(vcpu, ctxt);
    try {
      const code = emulatorTaskSwitch(context, tssSelector, idtIndex, REASONS[reason], hasErrorCode, errorCode);
      if (code === X86Emul.CONTINUE) {
        kvmRipWrite(vcpu, context.eip);
        kvmSetRflags(vcpu, context.rflags);
        return 1;
      }
    } catch (error) {
      if (!(error instanceof GuestException) && !(error instanceof Unwind)) throw error;
      if (error instanceof GuestException && hasCodeAndStack(vcpu)) return injectTaskFault(vcpu, ctxt, error, oldRip);
    }
    kvmPrepareEmulationFailureExit(vcpu);
    return 0;
  },
);

/** From the second delivery without an instruction between, one takes a tick, as the processor's own do. */
function countDelivery({ kvm }: Vcpu): void {
  const { processor } = kvm;
  if (processor.deliveredAt === processor.tick) processor.tick++;
  processor.deliveredAt = processor.tick;
}

/**
 * Delivers an event through the real-mode IVT: pushes FLAGS, CS, IP and loads the vector. Failure is a triple fault.
 * @param incEip bytes by which IP is moved first (soft events). KVM: kvm_inject_realmode_interrupt
 */
export const kvmInjectRealmodeInterrupt = frame(
  'kvmInjectRealmodeInterrupt',
  (vcpu: Vcpu, irq: number, incEip: number): void => {
    const ctxt = emulateCtxt(vcpu);
    const context = eventContext(vcpu, ctxt);
    context.mode = 'real';
    context.eip = (context.eip + BigInt(incEip)) & 0xffffn;
    try {
      deliverEvent(context, { kind: 'external', vector: irq, errorCode: undefined, instructionLength: 0 });
      kvmRipWrite(vcpu, context.eip);
      kvmSetRflags(vcpu, context.rflags);
      // A soft event ends its INT here; the exit that interrupted the delivery took no tick.
      if (incEip !== 0) vcpu.kvm.processor.tick++;
      else countDelivery(vcpu);
    } catch (error) {
      if (!(error instanceof GuestException) && !(error instanceof Unwind)) throw error;
      kvmClearExceptionQueue(vcpu);
      kvmMakeRequest(Req.TRIPLE_FAULT, vcpu);
    }
  },
);
