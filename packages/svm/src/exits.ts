/**
 * The exit handlers and their table: what KVM does about each #VMEXIT.
 * KVM: svm.c (svm_exit_handlers, svm_handle_exit); manual: APM vol. 2 sections 15.7-15.14.
 *
 * A handler answers > 0 (go on), 0 (to user space, `vcpu.exit` is set) or a negative errno.
 */
import {
  type ExitOutcome,
  FastPath as Fast,
  type FastPath,
  frame,
  GUESTDBG_SINGLESTEP,
  guestCpuidHas,
  handleUd,
  inFrame,
  isPaging,
  isSmm,
  kvmClearExceptionQueue,
  kvmClearInterruptQueue,
  kvmCompleteInsnGp,
  kvmEmulateCpuid,
  kvmEmulateHalt,
  kvmEmulateHypercall,
  kvmEmulateInstruction,
  kvmEmulateInstructionFromBuffer,
  kvmEmulateInvd,
  kvmEmulateMonitor,
  kvmEmulateMwait,
  kvmEmulateRdmsr,
  kvmEmulateRdpmc,
  kvmEmulateWbinvd,
  kvmEmulateWrmsr,
  kvmEmulateXsetbv,
  kvmFastPio,
  kvmGetCr8,
  kvmGetDr,
  kvmHandleInvalidOp,
  kvmHandleInvpcid,
  kvmHandlePageFault,
  kvmMakeRequest,
  kvmMmuInvlpg,
  kvmMmuPageFault,
  kvmPostSetCr0,
  kvmPostSetCr4,
  kvmPrepareUnexpectedReasonExit,
  kvmQueueException,
  kvmQueueExceptionE,
  kvmQueueExceptionP,
  kvmReadCr0,
  kvmReadCr3,
  kvmReadCr4,
  kvmRegisterRead,
  kvmRegisterWrite,
  kvmRipRead,
  kvmSetCr0,
  kvmSetCr3,
  kvmSetCr4,
  kvmSetCr8,
  kvmSetDr,
  kvmSetMsrCommon,
  kvmSkipEmulatedInstruction,
  kvmTaskSwitch,
  kvmVcpuReset,
  lapicInKernel,
  ownFrame,
  Req,
  shutdownPlace,
  trace,
  traceTrappedSwitch,
  unframed,
  type Vcpu,
} from '@tskvm/core';
import { EFER, Vector } from '@tskvm/emulator';
import { disableNmiSinglestep, svmClearVintr } from './events.ts';
import { EventInfo, MSR_EFER, SvmExit, V, W as vmcbWords } from './hardware/index.ts';
import { setDrIntercepts } from './intercepts.ts';
import { nestedInstruction } from './nested.ts';
import { DR6_ACTIVE_LOW, svmSetCr0, svmSetCr4 } from './registers.ts';
import { sevEsStringIo, sevHandleVmgexit } from './sev.ts';
import { SEEN as seenWords, sevEsGuest, svmModule, toSvm, type VcpuSvm, vmloading } from './vcpu-svm.ts';

/** Own constants are constants to the compiler; imported names are looked up at each use. */
const W = vmcbWords;
const SEEN = seenWords;

export type ExitHandler = (vcpu: Vcpu) => ExitOutcome;

const GPR_MASK = 0xfn;
const GUESTDBG_USE_HW_BP = 0x2_0000;

const exitCode = (vcpu: Vcpu): number => toSvm(vcpu).vmcb.get32(V.exitCode) | 0;
const info1 = (vcpu: Vcpu): bigint => toSvm(vcpu).vmcb.get64(V.exitInfo1);
const info2 = (vcpu: Vcpu): bigint => toSvm(vcpu).vmcb.get64(V.exitInfo2);
const decodeAssists = (vcpu: Vcpu): boolean => svmModule(vcpu).hw.features.decodeAssists;

/** The emulator decodes and does the whole instruction. KVM: emulate_on_interception. */
const emulateOnInterception = frame(
  'emulateOnInterception',
  (vcpu: Vcpu): ExitOutcome => kvmEmulateInstruction(vcpu, 0),
);

// Control registers

type CrWrite = (vcpu: Vcpu, value: bigint) => number;
const CR_WRITES: { readonly [cr: number]: CrWrite } = { 0: kvmSetCr0, 3: kvmSetCr3, 4: kvmSetCr4, 8: kvmSetCr8 };
const CR_READS: { readonly [cr: number]: (vcpu: Vcpu) => bigint } = {
  0: kvmReadCr0,
  2: (vcpu) => vcpu.arch.cr2[0],
  3: kvmReadCr3,
  4: kvmReadCr4,
  8: kvmGetCr8,
};

function undefinedCr(vcpu: Vcpu): ExitOutcome {
  kvmQueueException(vcpu, Vector.UD);
  return 1;
}

function traceCr(vcpu: Vcpu, rw: 'read' | 'write', cr: number, val: bigint): void {
  trace(vcpu, 'kvm_cr', () => ({ vcpuId: vcpu.vcpuId, rw, cr, val }));
}
function crWrite(vcpu: Vcpu, cr: number, register: number): ExitOutcome {
  const set = CR_WRITES[cr];
  if (set === undefined) return undefinedCr(vcpu);
  const val = kvmRegisterRead(vcpu, register);
  if (vcpu.kvm.tracer !== null) traceCr(vcpu, 'write', cr, val);
  return kvmCompleteInsnGp(vcpu, set(vcpu, val));
}

function crRead(vcpu: Vcpu, cr: number, register: number): ExitOutcome {
  const get = CR_READS[cr];
  if (get === undefined) return undefinedCr(vcpu);
  const val = get(vcpu);
  kvmRegisterWrite(vcpu, register, val);
  if (vcpu.kvm.tracer !== null) traceCr(vcpu, 'read', cr, val);
  return kvmCompleteInsnGp(vcpu, 0);
}

/**
 * An intercepted CR access is fault-like: nothing has happened yet, and KVM has to be the MOV. With decode assists the exit names the
 * register; without, or for CLTS, LMSW and SMSW, the emulator decodes the instruction. KVM: cr_interception.
 */
export function crInterception(vcpu: Vcpu): ExitOutcome {
  if (unframed(vcpu, crInterception)) return inFrame(crInterception, vcpu);
  const { words } = toSvm(vcpu).vmcb;
  // EXITINFO1 bit 63: a decoded MOV, register number in bits 3:0 (APM 15.8.1).
  if (!decodeAssists(vcpu) || words[W.exitInfo1 + 1] >= 0) return emulateOnInterception(vcpu);
  const register = words[W.exitInfo1] & 15;
  const code = words[W.exitCode];
  const cr = code === SvmExit.CR0_SEL_WRITE ? SvmExit.WRITE_CR0 : code;
  return cr >= 16 ? crWrite(vcpu, cr - 16, register) : crRead(vcpu, cr, register);
}
ownFrame('crInterception', crInterception);

/** KVM: cr8_write_interception: with the APIC in user space a lowered TPR is its business. */
const cr8WriteInterception = frame('cr8WriteInterception', (vcpu: Vcpu): ExitOutcome => {
  const before = kvmGetCr8(vcpu);
  const outcome = crInterception(vcpu);
  if (lapicInKernel(vcpu) || before <= kvmGetCr8(vcpu)) return outcome;
  vcpu.exit = { reason: 'set_tpr' };
  return 0;
});

/**
 * A CR write trap is trap-like: the processor has checked and committed the write inside the VMSA; KVM mirrors it and must not fail.
 * KVM: cr_trap.
 */
export const crTrap = frame('crTrap', (vcpu: Vcpu): ExitOutcome => {
  const value = info1(vcpu);
  const cr = exitCode(vcpu) - SvmExit.CR0_WRITE_TRAP;
  let err = 0;
  if (cr === 0) {
    const old = kvmReadCr0(vcpu);
    traceTrappedSwitch(vcpu, 'svmSetCr0');
    svmSetCr0(vcpu, value);
    kvmPostSetCr0(vcpu, old, value);
  } else if (cr === 4) {
    const old = kvmReadCr4(vcpu);
    traceTrappedSwitch(vcpu, 'svmSetCr4');
    svmSetCr4(vcpu, value);
    kvmPostSetCr4(vcpu, old, value);
  } else if (cr === 8) {
    err = kvmSetCr8(vcpu, value);
  } else return undefinedCr(vcpu);
  return kvmCompleteInsnGp(vcpu, err);
});

/** The EFER of a protected guest, as a guest's WRMSR without SVME. KVM: efer_trap. */
const eferTrap = frame('eferTrap', (vcpu: Vcpu): ExitOutcome => {
  const data = info1(vcpu) & ~EFER.SVME;
  return kvmCompleteInsnGp(vcpu, kvmSetMsrCommon(vcpu, { index: MSR_EFER, data, hostInitiated: false }));
});

/** The first access hands the debug registers to the guest; they are read back after the run. KVM: dr_interception. */
const drInterception = frame('drInterception', (vcpu: Vcpu): ExitOutcome => {
  if (!sevEsGuest(vcpu) && vcpu.guestDebug === 0) {
    setDrIntercepts(vcpu, false);
    vcpu.arch.switchDbRegs |= 2;
    return 1;
  }
  if (!decodeAssists(vcpu)) return emulateOnInterception(vcpu);
  const register = Number(info1(vcpu) & GPR_MASK);
  const dr = exitCode(vcpu) - SvmExit.READ_DR0;
  if (dr >= 16) return kvmCompleteInsnGp(vcpu, kvmSetDr(vcpu, dr - 16, kvmRegisterRead(vcpu, register)));
  kvmRegisterWrite(vcpu, register, kvmGetDr(vcpu, dr));
  return kvmCompleteInsnGp(vcpu, 0);
});

// Exceptions

function debugExit(vcpu: Vcpu, exception: number): ExitOutcome {
  const { vmcb } = toSvm(vcpu);
  const pc = vmcb.get64(V.cs + 8) + vmcb.get64(V.rip);
  vcpu.exit = { reason: 'debug', exception, pc, dr6: vmcb.get64(V.dr6), dr7: vmcb.get64(V.dr7) };
  return 0;
}

/** KVM: db_interception. */
const dbInterception = frame('dbInterception', (vcpu: Vcpu): ExitOutcome => {
  const svm = toSvm(vcpu);
  const debugging = (vcpu.guestDebug & (GUESTDBG_SINGLESTEP | GUESTDBG_USE_HW_BP)) !== 0;
  if (!debugging && !svm.nmiSinglestep) {
    kvmQueueExceptionP(vcpu, Vector.DB, (svm.vmcb.get64(V.dr6) ^ DR6_ACTIVE_LOW) & 0xffff_ffffn);
    return 1;
  }
  if (svm.nmiSinglestep) {
    disableNmiSinglestep(vcpu);
    kvmMakeRequest(Req.EVENT, vcpu);
  }
  return debugging ? debugExit(vcpu, Vector.DB) : 1;
});
/** KVM: bp_interception. */
const bpInterception = frame('bpInterception', (vcpu: Vcpu): ExitOutcome => debugExit(vcpu, Vector.BP));
const udInterception = frame('udInterception', (vcpu: Vcpu): ExitOutcome => handleUd(vcpu));
const acInterception = frame('acInterception', (vcpu: Vcpu): ExitOutcome => {
  kvmQueueExceptionE(vcpu, Vector.AC, 0);
  return 1;
});
const mcInterception = frame('mcInterception', (_vcpu: Vcpu): ExitOutcome => 1);

/** Instruction bytes of the fault, if the processor gave them (APM 15.8.4). */
function faultBytes(vcpu: Vcpu): Uint8Array | null {
  const { vmcb } = toSvm(vcpu);
  const length = vmcb.get8(V.insnLen);
  if (!decodeAssists(vcpu) || length === 0) return null;
  const bytes = new Uint8Array(length);
  for (let n = 0; n < length; n += 1) bytes[n] = vmcb.get8(V.insnBytes + n);
  return bytes;
}
/** A fault of nested tables. KVM: npf_interception. */
const pageFault = (vcpu: Vcpu): ExitOutcome => {
  const bytes = faultBytes(vcpu);
  return kvmMmuPageFault(vcpu, Number(info2(vcpu)), info1(vcpu), bytes, bytes === null ? 0 : bytes.length);
};
const pfInterception = frame('pfInterception', (vcpu: Vcpu): ExitOutcome => {
  const bytes = faultBytes(vcpu);
  return kvmHandlePageFault(vcpu, info1(vcpu), info2(vcpu), bytes, bytes === null ? 0 : bytes.length);
});
const npfInterception = frame('npfInterception', (vcpu: Vcpu): ExitOutcome => {
  trace(vcpu, 'kvm_page_fault', () => ({
    vcpuId: vcpu.vcpuId,
    rip: kvmRipRead(vcpu),
    address: Number(info2(vcpu)),
    errorCode: info1(vcpu),
  }));
  return pageFault(vcpu);
});

/** The VMCB is worthless after a shutdown: the vCPU is INITed before user space hears of it. KVM: shutdown_interception. */
const shutdownInterception = frame('shutdownInterception', (vcpu: Vcpu): ExitOutcome => {
  vcpu.exit = { reason: 'shutdown' };
  if (!sevEsGuest(vcpu)) {
    vcpu.exit = { reason: 'shutdown', at: shutdownPlace(vcpu) };
    vmloading(vcpu).clear();
    if (!isSmm(vcpu)) kvmVcpuReset(vcpu, true);
  }
  return 0;
});

// Instructions

/** KVM: io_interception. EXITINFO1 holds port, size and direction, EXITINFO2 the next RIP (APM 15.10.2). */
function ioInterception(vcpu: Vcpu): ExitOutcome {
  if (unframed(vcpu, ioInterception)) return inFrame(ioInterception, vcpu);
  const svm = toSvm(vcpu);
  const info = svm.vmcb.get32(V.exitInfo1);
  const size = (info & 0x70) >>> 4;
  const port = info >>> 16;
  const isIn = (info & 1) !== 0;
  if ((info & 4) !== 0) {
    if (svm.sev !== null) return sevEsStringIo(vcpu, size, port, isIn);
    return kvmEmulateInstruction(vcpu, 0);
  }
  svm.nextRip = info2(vcpu);
  return kvmFastPio(vcpu, size, port, isIn);
}
ownFrame('ioInterception', ioInterception);
/** KVM: msr_interception. */
function msrInterception(vcpu: Vcpu): ExitOutcome {
  if (unframed(vcpu, msrInterception)) return inFrame(msrInterception, vcpu);
  return info1(vcpu) !== 0n ? kvmEmulateWrmsr(vcpu) : kvmEmulateRdmsr(vcpu);
}
ownFrame('msrInterception', msrInterception);
function cpuidInterception(vcpu: Vcpu): ExitOutcome {
  if (unframed(vcpu, cpuidInterception)) return inFrame(cpuidInterception, vcpu);
  return kvmEmulateCpuid(vcpu);
}
ownFrame('cpuidInterception', cpuidInterception);
function hltInterception(vcpu: Vcpu): ExitOutcome {
  if (unframed(vcpu, hltInterception)) return inFrame(hltInterception, vcpu);
  return kvmEmulateHalt(vcpu);
}
ownFrame('hltInterception', hltInterception);
/** KVM: invlpg_interception. */
const invlpgInterception = frame('invlpgInterception', (vcpu: Vcpu): ExitOutcome => {
  if (!decodeAssists(vcpu)) return emulateOnInterception(vcpu);
  kvmMmuInvlpg(vcpu, info1(vcpu));
  return kvmSkipEmulatedInstruction(vcpu);
});
/** KVM: invpcid_interception. */
const invpcidInterception = frame('invpcidInterception', (vcpu: Vcpu): ExitOutcome => {
  if (guestCpuidHas(vcpu, 'invpcid')) return kvmHandleInvpcid(vcpu, Number(info2(vcpu)), info1(vcpu));
  kvmQueueException(vcpu, Vector.UD);
  return 1;
});
/** KVM: pause_interception; the guest goes on behind it. */
const pauseInterception = frame('pauseInterception', (vcpu: Vcpu): ExitOutcome => kvmSkipEmulatedInstruction(vcpu));
const RSM_BYTES = Uint8Array.of(0x0f, 0xaa);
/** KVM: rsm_interception. */
const rsmInterception = frame(
  'rsmInterception',
  (vcpu: Vcpu): ExitOutcome => kvmEmulateInstructionFromBuffer(vcpu, RSM_BYTES, 2),
);
/** The IRET that ends an NMI handler; NMIs open up behind it. KVM: iret_interception. */
const iretInterception = frame('iretInterception', (vcpu: Vcpu): ExitOutcome => {
  const svm = toSvm(vcpu);
  svm.awaitingIret = true;
  svm.vmcb.setIntercept(SvmExit.IRET, false);
  if (svm.sev === null) svm.nmiIretRip = kvmRipRead(vcpu);
  kvmMakeRequest(Req.EVENT, vcpu);
  return 1;
});

// Task switch

const TASK_SWITCH_CALL = 0;
const TASK_SWITCH_IRET = 1;
const TASK_SWITCH_JMP = 2;
const TASK_SWITCH_GATE = 3;

function taskSwitchReason(info: bigint, throughGate: boolean): number {
  if (info & (1n << 36n)) return TASK_SWITCH_IRET;
  if (info & (1n << 38n)) return TASK_SWITCH_JMP;
  return throughGate ? TASK_SWITCH_GATE : TASK_SWITCH_CALL;
}

/** The event that went through the gate is delivered by the switch. Its error code, if it has one. */
function takeGateEvent(vcpu: Vcpu, type: number, info: bigint): number | undefined {
  if (type === EventInfo.TYPE_NMI) vcpu.arch.nmiInjected = false;
  else if (type === EventInfo.TYPE_EXCEPTION) {
    kvmClearExceptionQueue(vcpu);
    if (info & (1n << 44n)) return Number(info & 0xffff_ffffn);
  } else kvmClearInterruptQueue(vcpu);
  return undefined;
}

/** KVM: task_switch_interception. */
const taskSwitchInterception = frame('taskSwitchInterception', (vcpu: Vcpu): ExitOutcome => {
  const { vmcb } = toSvm(vcpu);
  const event = vmcb.get32(V.exitIntInfo);
  const type = event & EventInfo.TYPE_MASK;
  const vector = event & EventInfo.VECTOR;
  const info = info2(vcpu);
  const reason = taskSwitchReason(info, (event & EventInfo.VALID) !== 0);
  const errorCode = reason === TASK_SWITCH_GATE ? takeGateEvent(vcpu, type, info) : undefined;
  const softException = type === EventInfo.TYPE_EXCEPTION && (vector === Vector.OF || vector === Vector.BP);
  const ofInstruction = reason !== TASK_SWITCH_GATE || type === EventInfo.TYPE_SOFT || softException;
  const rip = kvmRipRead(vcpu);
  if (ofInstruction && !vcpu.kvm.calls.skipEmulatedInstruction(vcpu)) return 0;
  const idtIndex = type === EventInfo.TYPE_SOFT ? vector : -1;
  const selector = Number(info1(vcpu) & 0xffffn);
  return kvmTaskSwitch(vcpu, selector, idtIndex, reason, errorCode !== undefined, errorCode ?? 0, rip);
});

// SVM's own instructions in a guest

/** KVM: nested_svm_check_permissions: #UD without EFER.SVME or paging, #GP(0) above CPL 0. */
function nestedPermission(vcpu: Vcpu): boolean {
  if ((vcpu.arch.efer & EFER.SVME) === 0n || !isPaging(vcpu)) {
    kvmQueueException(vcpu, Vector.UD);
    return false;
  }
  if (vcpu.kvm.calls.getCpl(vcpu) === 0) return true;
  kvmQueueExceptionE(vcpu, Vector.GP, 0);
  return false;
}
const svmInstruction = (name: string, instruction: string): ExitHandler =>
  frame(name, (vcpu: Vcpu): ExitOutcome => (nestedPermission(vcpu) ? nestedInstruction(instruction) : 1));

const interruptWindowInterception = frame('interruptWindowInterception', (vcpu: Vcpu): ExitOutcome => {
  kvmMakeRequest(Req.EVENT, vcpu);
  svmClearVintr(vcpu);
  return 1;
});
/** The host has taken it already. */
const hostEvent = (name: string): ExitHandler => frame(name, (_vcpu: Vcpu): ExitOutcome => 1);
const invalidOp = frame('kvmHandleInvalidOp', (vcpu: Vcpu): ExitOutcome => kvmHandleInvalidOp(vcpu));

const exceptionCode = (vector: number): number => SvmExit.EXCP_BASE + vector;

/** Exit code to handler. KVM: svm_exit_handlers. */
export const svmExitHandlers: { readonly [code: number]: ExitHandler } = {
  [SvmExit.READ_CR0]: crInterception,
  [SvmExit.READ_CR3]: crInterception,
  [SvmExit.READ_CR4]: crInterception,
  [SvmExit.READ_CR8]: crInterception,
  [SvmExit.CR0_SEL_WRITE]: crInterception,
  [SvmExit.WRITE_CR0]: crInterception,
  [SvmExit.WRITE_CR3]: crInterception,
  [SvmExit.WRITE_CR4]: crInterception,
  [SvmExit.WRITE_CR8]: cr8WriteInterception,
  ...Object.fromEntries(
    Array.from({ length: 8 }, (_, dr) => [
      [SvmExit.READ_DR0 + dr, drInterception],
      [SvmExit.WRITE_DR0 + dr, drInterception],
    ]).flat(),
  ),
  [exceptionCode(Vector.DB)]: dbInterception,
  [exceptionCode(Vector.BP)]: bpInterception,
  [exceptionCode(Vector.UD)]: udInterception,
  [exceptionCode(Vector.PF)]: pfInterception,
  [exceptionCode(Vector.MC)]: mcInterception,
  [exceptionCode(Vector.AC)]: acInterception,
  [SvmExit.INTR]: hostEvent('intrInterception'),
  [SvmExit.NMI]: hostEvent('nmiInterception'),
  [SvmExit.SMI]: hostEvent('smiInterception'),
  [SvmExit.VINTR]: interruptWindowInterception,
  [SvmExit.RDPMC]: frame('kvmEmulateRdpmc', (vcpu: Vcpu) => kvmEmulateRdpmc(vcpu)),
  [SvmExit.CPUID]: cpuidInterception,
  [SvmExit.IRET]: iretInterception,
  [SvmExit.INVD]: frame('kvmEmulateInvd', (vcpu: Vcpu) => kvmEmulateInvd(vcpu)),
  [SvmExit.PAUSE]: pauseInterception,
  [SvmExit.HLT]: hltInterception,
  [SvmExit.INVLPG]: invlpgInterception,
  [SvmExit.INVLPGA]: svmInstruction('invlpgaInterception', 'INVLPGA'),
  [SvmExit.IOIO]: ioInterception,
  [SvmExit.MSR]: msrInterception,
  [SvmExit.TASK_SWITCH]: taskSwitchInterception,
  [SvmExit.SHUTDOWN]: shutdownInterception,
  [SvmExit.VMRUN]: svmInstruction('vmrunInterception', 'VMRUN'),
  [SvmExit.VMMCALL]: frame('kvmEmulateHypercall', (vcpu: Vcpu) => kvmEmulateHypercall(vcpu)),
  [SvmExit.VMLOAD]: svmInstruction('vmloadInterception', 'VMLOAD'),
  [SvmExit.VMSAVE]: svmInstruction('vmsaveInterception', 'VMSAVE'),
  [SvmExit.STGI]: svmInstruction('stgiInterception', 'STGI'),
  [SvmExit.CLGI]: svmInstruction('clgiInterception', 'CLGI'),
  [SvmExit.SKINIT]: frame('skinitInterception', (vcpu: Vcpu) => undefinedCr(vcpu)),
  [SvmExit.RDTSCP]: invalidOp,
  [SvmExit.WBINVD]: frame('kvmEmulateWbinvd', (vcpu: Vcpu) => kvmEmulateWbinvd(vcpu)),
  [SvmExit.MONITOR]: frame('kvmEmulateMonitor', (vcpu: Vcpu) => kvmEmulateMonitor(vcpu)),
  [SvmExit.MWAIT]: frame('kvmEmulateMwait', (vcpu: Vcpu) => kvmEmulateMwait(vcpu)),
  [SvmExit.XSETBV]: frame('kvmEmulateXsetbv', (vcpu: Vcpu) => kvmEmulateXsetbv(vcpu)),
  [SvmExit.RDPRU]: invalidOp,
  [SvmExit.EFER_WRITE_TRAP]: eferTrap,
  [SvmExit.CR0_WRITE_TRAP]: crTrap,
  [SvmExit.CR4_WRITE_TRAP]: crTrap,
  [SvmExit.CR8_WRITE_TRAP]: crTrap,
  [SvmExit.INVPCID]: invpcidInterception,
  [SvmExit.RSM]: rsmInterception,
  [SvmExit.NPF]: npfInterception,
  [SvmExit.VMGEXIT]: frame('sevHandleVmgexit', (vcpu: Vcpu) => sevHandleVmgexit(vcpu)),
};

/** KVM: svm_invoke_exit_handler. */
export function svmInvokeExitHandler(vcpu: Vcpu, code: number): ExitOutcome {
  if (unframed(vcpu, svmInvokeExitHandler)) return inFrame(svmInvokeExitHandler, vcpu, code);
  const handler = code >= 0 && code < HANDLERS.length ? HANDLERS[code] : undefined;
  if (handler !== undefined) return handler(vcpu);
  kvmPrepareUnexpectedReasonExit(vcpu, code);
  return 0;
}
ownFrame('svmInvokeExitHandler', svmInvokeExitHandler);

/** The table as an array without holes: an object with keys this far apart is a hash table to engines. */
const HANDLERS: readonly (ExitHandler | undefined)[] = Array.from(
  { length: SvmExit.VMGEXIT + 1 },
  (_, code) => svmExitHandlers[code],
);

/** The entry was refused: EXITCODE -1, and the rows that refused it. */
function failEntry(vcpu: Vcpu): ExitOutcome {
  vcpu.exit = {
    reason: 'fail_entry',
    hardwareEntryFailureReason: toSvm(vcpu).vmcb.get64(V.exitCode),
    cpu: vcpu.arch.lastVmentryCpu,
    failures: svmModule(vcpu).hw.failures,
  };
  return 0;
}

/** What the guest may write without an exit is picked up now; an encrypted guest's is out of reach. */
export function svmReadGuestOwnedCr(vcpu: Vcpu, { vmcb, seen }: VcpuSvm): void {
  const { words } = vmcb;
  if (words[W.cr0] !== seen[SEEN.CR0] || words[W.cr0 + 1] !== seen[SEEN.CR0 + 1]) {
    if (!vmcb.hasIntercept(SvmExit.WRITE_CR0) && vmcb.copyOut(V.cr0, seen, SEEN.CR0)) vcpu.arch.cr0 = vmcb.get64(V.cr0);
  }
  if (words[W.cr3] !== seen[SEEN.CR3] || words[W.cr3 + 1] !== seen[SEEN.CR3 + 1]) {
    if (svmModule(vcpu).params.npt && vmcb.copyOut(V.cr3, seen, SEEN.CR3)) vcpu.arch.cr3 = vmcb.get64(V.cr3);
  }
}

/** KVM: svm_handle_exit. */
export function svmHandleExit(vcpu: Vcpu, fastpath: FastPath): ExitOutcome {
  if (unframed(vcpu, svmHandleExit)) return inFrame(svmHandleExit, vcpu, fastpath);
  const svm = toSvm(vcpu);
  const { vmcb } = svm;
  if (svm.sev === null) svmReadGuestOwnedCr(vcpu, svm);
  if (fastpath === Fast.EXIT_USERSPACE) return 0;
  const code = vmcb.get32(V.exitCode) | 0;
  if (code === SvmExit.INVALID) return failEntry(vcpu);
  if (fastpath !== Fast.NONE) return 1;
  return svmInvokeExitHandler(vcpu, code);
}
ownFrame('svmHandleExit', svmHandleExit);
