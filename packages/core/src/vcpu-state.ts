/**
 * The state that user space reads and writes: KVM_GET/SET_REGS, SREGS(2), VCPU_EVENTS, DEBUGREGS, MP_STATE, XCRS, FPU, MSRS, guest debug.
 * KVM: the vCPU ioctls of x86.c; facts: __set_sregs.
 */
import { CR0, CR4, EFER, RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP, Seg } from '@tskvm/emulator';
import { kvmUpdateCpuidRuntime } from './cpuid.ts';
import { kvmUpdateDr7, kvmUpdateDr0123 } from './debugregs.ts';
import { KvmError } from './diagnostics.ts';
import { kvmClearExceptionQueue, kvmProcessNmi, kvmQueueInterrupt } from './exceptions.ts';
import {
  HF_SMM_INSIDE_NMI_MASK,
  isPaePaging,
  isProtmode,
  isSmm,
  kvmPdptrRead,
  kvmReadCr0,
  kvmReadCr3,
  kvmReadCr4,
  kvmRegisterMarkDirty,
  kvmRegisterReadRaw,
  kvmRegisterWriteRaw,
  kvmRipRead,
  kvmRipWrite,
} from './kvm-cache-regs.ts';
import { kvmGetLinearRip } from './kvm-emulate.ts';
import { kvmSetApicBase } from './lapic.ts';
import { kvmMmuResetContext } from './mmu/mmu.ts';
import { kvmGetMsr, kvmSetMsr, kvmValidEfer } from './msrs.ts';
import {
  kvmGetCr8,
  kvmGetRflags,
  kvmIsValidCr0,
  kvmIsValidCr4,
  kvmSetCr8,
  kvmSetRflagsRaw,
  kvmVcpuIsLegalCr3,
  loadPdptrs,
} from './regs.ts';
import { kvmMakeRequest } from './requests.ts';
import { requireShape, u32, u64 } from './shape.ts';
import { kvmSmmChanged } from './smm.ts';
import { DEBUGREGS, GUEST_DEBUG_REGS, REGS, SREGS, SREGS2, VCPU_EVENTS } from './state-shapes.ts';
import { frame } from './trace.ts';
import { type DtPtr, Errno, type KvmSegment, MpState, Req } from './types.ts';
import type { Vcpu } from './vcpu.ts';
import { vcpuLoad } from './x86.ts';

/** struct kvm_regs. */
export interface KvmRegs {
  rax: bigint;
  rbx: bigint;
  rcx: bigint;
  rdx: bigint;
  rsi: bigint;
  rdi: bigint;
  rsp: bigint;
  rbp: bigint;
  r8: bigint;
  r9: bigint;
  r10: bigint;
  r11: bigint;
  r12: bigint;
  r13: bigint;
  r14: bigint;
  r15: bigint;
  rip: bigint;
  rflags: bigint;
}

/** struct kvm_sregs; `interruptBitmap` as the vector queued, -1 for none. */
export interface KvmSregs {
  cs: KvmSegment;
  ds: KvmSegment;
  es: KvmSegment;
  fs: KvmSegment;
  gs: KvmSegment;
  ss: KvmSegment;
  tr: KvmSegment;
  ldt: KvmSegment;
  gdt: DtPtr;
  idt: DtPtr;
  cr0: bigint;
  cr2: bigint;
  cr3: bigint;
  cr4: bigint;
  cr8: bigint;
  efer: bigint;
  apicBase: bigint;
  interrupt: number;
}
/** struct kvm_sregs2: with PDPTEs instead of the interrupt bitmap. */
export interface KvmSregs2 extends Omit<KvmSregs, 'interrupt'> {
  /** Undefined: loaded from memory (flags without PDPTRS_VALID). */
  pdptrs?: [bigint, bigint, bigint, bigint];
}

const GPRS = [
  ['rax', RAX],
  ['rbx', RBX],
  ['rcx', RCX],
  ['rdx', RDX],
  ['rsi', RSI],
  ['rdi', RDI],
  ['rsp', RSP],
  ['rbp', RBP],
  ['r8', 8],
  ['r9', 9],
  ['r10', 10],
  ['r11', 11],
  ['r12', 12],
  ['r13', 13],
  ['r14', 14],
  ['r15', 15],
] as const;
const SEGMENTS = [
  ['cs', Seg.CS],
  ['ds', Seg.DS],
  ['es', Seg.ES],
  ['fs', Seg.FS],
  ['gs', Seg.GS],
  ['ss', Seg.SS],
  ['tr', Seg.TR],
  ['ldt', Seg.LDTR],
] as const;

const invalid = (code: string, message: string, rule?: string): never => {
  throw new KvmError(code, Errno.EINVAL, message, rule);
};
const hex = (n: bigint): string => `0x${n.toString(16)}`;

/** Throws KvmError PROTECTED_STATE (EINVAL) for a guest whose registers are encrypted. */
export function requireUnprotected(vcpu: Vcpu, what: string): void {
  if (vcpu.vm.vmType !== 'default' && vcpu.arch.guestStateProtected) {
    invalid('PROTECTED_STATE', `${what}: the guest's registers are encrypted`);
  }
}

/** KVM_GET_REGS. Throws KvmError PROTECTED_STATE (EINVAL). */
export function getRegs(vcpu: Vcpu): KvmRegs {
  requireUnprotected(vcpu, 'getRegs');
  vcpuLoad(vcpu);
  const out = { rip: kvmRipRead(vcpu), rflags: kvmGetRflags(vcpu) } as KvmRegs;
  for (const [name, reg] of GPRS) out[name] = kvmRegisterReadRaw(vcpu, reg);
  return out;
}
/** KVM_SET_REGS: drops pending exceptions, sets bit 1 of RFLAGS. Throws KvmError REGS_FIELD (EINVAL). */
export function setRegs(vcpu: Vcpu, regs: KvmRegs): void {
  requireShape('REGS_FIELD', Errno.EINVAL, 'KVM_SET_REGS: ', regs, 'regs', REGS);
  requireUnprotected(vcpu, 'setRegs');
  vcpuLoad(vcpu);
  for (const [name, reg] of GPRS) kvmRegisterWriteRaw(vcpu, reg, regs[name]);
  kvmRipWrite(vcpu, regs.rip);
  kvmSetRflagsRaw(vcpu, regs.rflags | 2n);
  vcpu.arch.exception.pending = false;
  vcpu.arch.exceptionVmexit.pending = false;
  kvmMakeRequest(Req.EVENT, vcpu);
}

function sregsCommon(vcpu: Vcpu): Omit<KvmSregs, 'interrupt'> {
  const { calls } = vcpu.kvm;
  vcpuLoad(vcpu);
  const out = { apicBase: vcpu.arch.apicBase, efer: vcpu.arch.efer } as KvmSregs;
  if (!vcpu.arch.guestStateProtected) {
    for (const [name, seg] of SEGMENTS) out[name] = calls.getSegment(vcpu, seg);
    out.gdt = calls.getGdt(vcpu);
    out.idt = calls.getIdt(vcpu);
    out.cr2 = vcpu.arch.cr2[0];
    out.cr3 = kvmReadCr3(vcpu);
  }
  out.cr0 = kvmReadCr0(vcpu);
  out.cr4 = kvmReadCr4(vcpu);
  out.cr8 = kvmGetCr8(vcpu);
  return out;
}
/** KVM_GET_SREGS. */
export function getSregs(vcpu: Vcpu): KvmSregs {
  requireUnprotected(vcpu, 'getSregs');
  const { interrupt } = vcpu.arch;
  return { ...sregsCommon(vcpu), interrupt: interrupt.injected && !interrupt.soft ? interrupt.nr : -1 };
}
/** KVM_GET_SREGS2. */
export function getSregs2(vcpu: Vcpu): KvmSregs2 {
  requireUnprotected(vcpu, 'getSregs2');
  const common = sregsCommon(vcpu);
  if (!isPaePaging(vcpu)) return common;
  return { ...common, pdptrs: [0, 1, 2, 3].map((i) => kvmPdptrRead(vcpu, i)) as KvmSregs2['pdptrs'] };
}

/** One rule of kvm_is_valid_sregs. */
interface SregsRule {
  code: string;
  rule: string;
  broken: (vcpu: Vcpu, s: KvmSregs2) => boolean;
}
const longMode = (s: KvmSregs2): boolean => (s.efer & EFER.LME) !== 0n && (s.cr0 & CR0.PG) !== 0n;

/** KVM's refusals in KVM's order. */
const SREGS_RULES: readonly SregsRule[] = [
  {
    code: 'SREGS_LONG_MODE_WITHOUT_PAE',
    rule: 'EFER.LME and CR0.PG need CR4.PAE',
    broken: (_v, s) => longMode(s) && (s.cr4 & CR4.PAE) === 0n,
  },
  {
    code: 'SREGS_LONG_MODE_WITHOUT_LMA',
    rule: 'EFER.LME and CR0.PG need EFER.LMA',
    broken: (_v, s) => longMode(s) && (s.efer & EFER.LMA) === 0n,
  },
  {
    code: 'SREGS_CR3',
    rule: 'CR3 has no bits at or above the guest MAXPHYADDR',
    broken: (v, s) => longMode(s) && !kvmVcpuIsLegalCr3(v, s.cr3),
  },
  {
    code: 'SREGS_LMA_WITHOUT_PG',
    rule: 'EFER.LMA needs EFER.LME and CR0.PG',
    broken: (_v, s) => !longMode(s) && (s.efer & EFER.LMA) !== 0n,
  },
  {
    code: 'SREGS_CS_L_OUTSIDE_LONG_MODE',
    rule: 'CS.L needs EFER.LME and CR0.PG',
    broken: (_v, s) => !longMode(s) && s.cs.l !== 0,
  },
  {
    code: 'SREGS_CR4',
    rule: 'CR4 has no bits that the guest CPUID or the vendor forbids',
    broken: (v, s) => !kvmIsValidCr4(v, s.cr4),
  },
  { code: 'SREGS_CR0', rule: 'CR0 bits 63:32 must be 0', broken: (_v, s) => s.cr0 >> 32n !== 0n },
  { code: 'SREGS_CR0', rule: 'CR0.NW needs CR0.CD', broken: (_v, s) => (s.cr0 & (CR0.NW | CR0.CD)) === CR0.NW },
  { code: 'SREGS_CR0', rule: 'CR0.PG needs CR0.PE', broken: (_v, s) => (s.cr0 & (CR0.PG | CR0.PE)) === CR0.PG },
  { code: 'SREGS_CR0', rule: 'CR0 has a value that the vendor forbids', broken: (v, s) => !kvmIsValidCr0(v, s.cr0) },
];

/** Throws KvmError with the rule that is broken. KVM: kvm_is_valid_sregs and the checks around it. */
function checkSregs(vcpu: Vcpu, s: KvmSregs2): void {
  for (const { code, rule, broken } of SREGS_RULES) {
    if (broken(vcpu, s)) {
      invalid(
        code,
        `SET_SREGS refused: CR0 ${hex(s.cr0)}, CR3 ${hex(s.cr3)}, CR4 ${hex(s.cr4)}, EFER ${hex(s.efer)}: ${rule}`,
        rule,
      );
    }
  }
  if (!kvmValidEferOfHost(vcpu, s.efer)) {
    invalid(
      'SREGS_EFER',
      `SET_SREGS refused: EFER ${hex(s.efer)} has bits that KVM or the guest CPUID lacks`,
      'EFER bits exist',
    );
  }
}
/** Before SET_CPUID2 only KVM's own capabilities count. */
const kvmValidEferOfHost = (vcpu: Vcpu, efer: bigint): boolean =>
  vcpu.arch.cpuidSet ? kvmValidEfer(vcpu, efer) : (efer & ~vcpu.kvm.caps.efer) === 0n;

/** Installs control registers without further checks; true: something about paging has changed. */
function installControls(vcpu: Vcpu, s: KvmSregs2, updatePdptrs: boolean): boolean {
  const { arch, kvm } = vcpu;
  const { calls } = kvm;
  let reset = false;
  calls.setIdt(vcpu, s.idt);
  calls.setGdt(vcpu, s.gdt);
  arch.cr2[0] = s.cr2;
  reset ||= kvmReadCr3(vcpu) !== s.cr3;
  arch.cr3 = s.cr3;
  kvmRegisterMarkDirty(vcpu, 'cr3');
  calls.postSetCr3(vcpu, s.cr3);
  reset = reset || arch.efer !== s.efer;
  calls.setEfer(vcpu, s.efer);
  reset = reset || kvmReadCr0(vcpu) !== s.cr0;
  calls.setCr0(vcpu, s.cr0);
  const cr4Changes = kvmReadCr4(vcpu) ^ s.cr4;
  reset = reset || cr4Changes !== 0n;
  calls.setCr4(vcpu, s.cr4);
  if ((cr4Changes & (CR4.OSXSAVE | CR4.PKE)) !== 0n) kvmUpdateCpuidRuntime(vcpu);
  if (updatePdptrs && isPaePaging(vcpu)) {
    loadPdptrs(vcpu, kvmReadCr3(vcpu));
    reset = true;
  }
  return reset;
}

/** KVM: __set_sregs_common. */
const setSregsCommon = frame('setSregsCommon', (vcpu: Vcpu, s: KvmSregs2, updatePdptrs: boolean): boolean => {
  checkSregs(vcpu, s);
  if (kvmSetApicBase(vcpu, s.apicBase, true) !== 0) {
    invalid('SREGS_APIC_BASE', `SET_SREGS refused: APIC base ${hex(s.apicBase)} has reserved bits or an illegal mode`);
  }
  if (vcpu.arch.guestStateProtected) return false;
  const reset = installControls(vcpu, s, updatePdptrs);
  for (const [name, seg] of SEGMENTS) vcpu.kvm.calls.setSegment(vcpu, s[name], seg);
  kvmSetCr8(vcpu, s.cr8 & 0xfn);
  // Older user space starts the boot processor by its reset state alone.
  const atReset = s.cs.selector === 0xf000 && kvmRipRead(vcpu) === 0xfff0n && !isProtmode(vcpu);
  if (vcpu.vcpuId === vcpu.vm.bspVcpuId && atReset) vcpu.arch.mpState = MpState.RUNNABLE;
  return reset;
});
function finishSregs(vcpu: Vcpu, reset: boolean): void {
  if (reset) {
    kvmMmuResetContext(vcpu);
    kvmMakeRequest(Req.TLB_FLUSH_GUEST, vcpu);
  }
  kvmMakeRequest(Req.EVENT, vcpu);
}

/** KVM_SET_SREGS. Throws KvmError SREGS_* (EINVAL) with the rule; nothing has changed then. */
export const setSregs = frame('setSregs', (vcpu: Vcpu, sregs: KvmSregs): void => {
  requireShape('SREGS_FIELD', Errno.EINVAL, 'KVM_SET_SREGS: ', sregs, 'sregs', SREGS);
  requireUnprotected(vcpu, 'setSregs');
  vcpuLoad(vcpu);
  const reset = setSregsCommon(vcpu, sregs, true);
  finishSregs(vcpu, reset);
  if (sregs.interrupt >= 0) kvmQueueInterrupt(vcpu, sregs.interrupt, false);
});

/** KVM_SET_SREGS2: PDPTEs, if given, are used as they are. Throws KvmError SREGS_* (EINVAL). */
export const setSregs2 = frame('setSregs2', (vcpu: Vcpu, sregs: KvmSregs2): void => {
  requireShape('SREGS2_FIELD', Errno.EINVAL, 'KVM_SET_SREGS2: ', sregs, 'sregs', SREGS2);
  requireUnprotected(vcpu, 'setSregs2');
  vcpuLoad(vcpu);
  const pae = (sregs.cr0 & CR0.PG) !== 0n && (sregs.cr4 & CR4.PAE) !== 0n && (sregs.efer & EFER.LMA) === 0n;
  if (sregs.pdptrs && !pae) invalid('SREGS2_PDPTRS', 'SET_SREGS2: PDPTEs are valid only with PAE paging');
  let reset = setSregsCommon(vcpu, sregs, !sregs.pdptrs);
  if (sregs.pdptrs) {
    vcpu.arch.pdptrs = [...sregs.pdptrs];
    kvmRegisterMarkDirty(vcpu, 'pdptr');
    vcpu.arch.pdptrsFromUserspace = true;
    reset = true;
  }
  finishSregs(vcpu, reset);
});

/** struct kvm_vcpu_events. */
export interface KvmVcpuEvents {
  exception: {
    injected: boolean;
    pending: boolean;
    nr: number;
    hasErrorCode: boolean;
    errorCode: number;
    payload?: bigint;
  };
  /** `shadow`: 1 MOV SS, 2 STI. */
  interrupt: { injected: boolean; nr: number; soft: boolean; shadow: number };
  nmi: { injected: boolean; pending: number; masked: boolean };
  sipiVector: number;
  smi: { smm: boolean; pending: boolean; smmInsideNmi: boolean; latchedInit: boolean };
  tripleFaultPending: boolean;
}

/** KVM_GET_VCPU_EVENTS. */
export function getVcpuEvents(vcpu: Vcpu): KvmVcpuEvents {
  vcpuLoad(vcpu);
  const { arch, kvm } = vcpu;
  kvmProcessNmi(vcpu);
  const ex = arch.exceptionVmexit.pending ? arch.exceptionVmexit : arch.exception;
  return {
    exception: {
      injected: ex.injected,
      pending: ex.pending,
      nr: ex.vector,
      hasErrorCode: ex.hasErrorCode,
      errorCode: ex.errorCode,
      payload: ex.hasPayload ? ex.payload : undefined,
    },
    interrupt: {
      injected: arch.interrupt.injected && !arch.interrupt.soft,
      nr: arch.interrupt.nr,
      soft: arch.interrupt.soft,
      shadow: kvm.calls.getInterruptShadow(vcpu),
    },
    nmi: { injected: arch.nmiInjected, pending: arch.nmiPending, masked: kvm.calls.getNmiMask(vcpu) },
    sipiVector: arch.sipiVector,
    smi: {
      smm: isSmm(vcpu),
      pending: arch.smiPending,
      smmInsideNmi: (arch.hflags & HF_SMM_INSIDE_NMI_MASK) !== 0,
      latchedInit: (arch.pendingApicEvents & 1) !== 0,
    },
    tripleFaultPending: vcpu.requests.has(Req.TRIPLE_FAULT),
  };
}

/** KVM_SET_VCPU_EVENTS. Throws KvmError EVENTS_FIELD, EVENTS_EXCEPTION (EINVAL). */
export function setVcpuEvents(vcpu: Vcpu, events: KvmVcpuEvents): void {
  requireShape('EVENTS_FIELD', Errno.EINVAL, 'KVM_SET_VCPU_EVENTS: ', events, 'events', VCPU_EVENTS);
  vcpuLoad(vcpu);
  const { arch, kvm } = vcpu;
  const { exception, interrupt, nmi, smi } = events;
  if ((exception.injected || exception.pending) && (exception.nr > 31 || exception.nr === 2)) {
    invalid('EVENTS_EXCEPTION', `exception ${exception.nr} does not exist`);
  }
  Object.assign(arch.exception, {
    injected: exception.injected,
    pending: exception.pending,
    vector: exception.nr,
    hasErrorCode: exception.hasErrorCode,
    errorCode: exception.errorCode,
    hasPayload: exception.payload !== undefined,
    payload: exception.payload ?? 0n,
  });
  arch.interrupt = { injected: interrupt.injected, nr: interrupt.nr, soft: interrupt.soft };
  kvm.calls.setInterruptShadow(vcpu, interrupt.shadow);
  arch.nmiInjected = nmi.injected;
  arch.nmiPending = nmi.pending;
  arch.nmiQueued = 0;
  kvm.calls.setNmiMask(vcpu, nmi.masked);
  arch.sipiVector = events.sipiVector;
  if (isSmm(vcpu) !== smi.smm) {
    kvm.calls.leaveNested(vcpu);
    kvmSmmChanged(vcpu, smi.smm);
  }
  arch.smiPending = smi.pending;
  if (smi.smm && smi.smmInsideNmi) arch.hflags |= HF_SMM_INSIDE_NMI_MASK;
  if (smi.latchedInit) arch.pendingApicEvents |= 1;
  if (events.tripleFaultPending) kvmMakeRequest(Req.TRIPLE_FAULT, vcpu);
  kvmMakeRequest(Req.EVENT, vcpu);
}

/** struct kvm_debugregs. */
export interface KvmDebugregs {
  db: [bigint, bigint, bigint, bigint];
  dr6: bigint;
  dr7: bigint;
}
/** KVM_GET_DEBUGREGS. */
export const getDebugregs = (vcpu: Vcpu): KvmDebugregs => ({
  db: [...vcpu.arch.db],
  dr6: vcpu.arch.dr6,
  dr7: vcpu.arch.dr7,
});
/** KVM_SET_DEBUGREGS. Throws KvmError DEBUGREGS_FIELD, DEBUGREGS (EINVAL). */
export function setDebugregs(vcpu: Vcpu, regs: KvmDebugregs): void {
  requireShape('DEBUGREGS_FIELD', Errno.EINVAL, 'KVM_SET_DEBUGREGS: ', regs, 'regs', DEBUGREGS);
  if (regs.dr6 >> 32n !== 0n || regs.dr7 >> 32n !== 0n) invalid('DEBUGREGS', 'DR6 and DR7 have no bits above 31');
  vcpuLoad(vcpu);
  vcpu.arch.db = [...regs.db];
  kvmUpdateDr0123(vcpu);
  vcpu.arch.dr6 = regs.dr6;
  vcpu.arch.dr7 = regs.dr7;
  kvmUpdateDr7(vcpu);
}

/** KVM_SET_MP_STATE. Throws KvmError MP_STATE (EINVAL). */
export function setMpState(vcpu: Vcpu, state: MpState): void {
  const legal = Object.values(MpState).includes(state);
  if (!legal || (!vcpu.arch.apic && state !== MpState.RUNNABLE)) {
    invalid('MP_STATE', `mp_state ${String(state)}: without an in-kernel APIC only RUNNABLE (0) exists`);
  }
  if (state === MpState.SIPI_RECEIVED) {
    vcpu.arch.mpState = MpState.INIT_RECEIVED;
    vcpu.arch.pendingApicEvents |= 2;
  } else vcpu.arch.mpState = state;
  kvmMakeRequest(Req.EVENT, vcpu);
}

/** struct kvm_guest_debug. */
export const GuestDebug = {
  ENABLE: 1,
  SINGLESTEP: 2,
  USE_SW_BP: 0x10000,
  USE_HW_BP: 0x20000,
  INJECT_DB: 0x40000,
  INJECT_BP: 0x80000,
  BLOCKIRQ: 0x100000,
} as const;

/**
 * KVM_SET_GUEST_DEBUG. @param debugreg DR0-3 and DR7 for hardware breakpoints of user space.
 * Throws KvmError GUEST_DEBUG_FIELD, GUEST_DEBUG (EINVAL), GUEST_DEBUG_BUSY (EBUSY).
 */
export function setGuestDebug(vcpu: Vcpu, control: number, debugreg?: { db: bigint[]; dr7: bigint }): void {
  const { arch, kvm } = vcpu;
  requireShape('GUEST_DEBUG_FIELD', Errno.EINVAL, 'KVM_SET_GUEST_DEBUG: ', control, 'control', u32);
  requireShape('GUEST_DEBUG_FIELD', Errno.EINVAL, 'KVM_SET_GUEST_DEBUG: ', debugreg, 'debugreg', GUEST_DEBUG_REGS);
  if (arch.guestStateProtected) invalid('GUEST_DEBUG', 'a protected guest can not be debugged');
  vcpuLoad(vcpu);
  if ((control & (GuestDebug.INJECT_DB | GuestDebug.INJECT_BP)) !== 0) {
    if (arch.exception.pending) throw new KvmError('GUEST_DEBUG_BUSY', Errno.EBUSY, 'an exception is pending already');
    injectDebugException(vcpu, (control & GuestDebug.INJECT_DB) !== 0 ? 1 : 3);
  }
  const rflags = kvmGetRflags(vcpu);
  vcpu.guestDebug = (control & GuestDebug.ENABLE) !== 0 ? control : 0;
  if ((vcpu.guestDebug & GuestDebug.USE_HW_BP) !== 0 && debugreg) {
    for (let i = 0; i < 4; i++) arch.effDb[i] = debugreg.db[i] ?? 0n;
    arch.guestDebugDr7 = debugreg.dr7;
  } else kvmUpdateDr0123(vcpu);
  kvmUpdateDr7(vcpu);
  if ((vcpu.guestDebug & GuestDebug.SINGLESTEP) !== 0) arch.singlestepRip = kvmGetLinearRip(vcpu);
  kvmSetRflagsRaw(vcpu, rflags);
  kvm.calls.updateExceptionBitmap(vcpu);
}
function injectDebugException(vcpu: Vcpu, vector: number): void {
  kvmClearExceptionQueue(vcpu);
  Object.assign(vcpu.arch.exception, { pending: true, vector, hasErrorCode: false });
  kvmMakeRequest(Req.EVENT, vcpu);
}

/** KVM_GET_MSRS for one MSR, as the host. Undefined: it does not exist. Throws KvmError MSR_INDEX (EINVAL). */
export function getMsr(vcpu: Vcpu, index: number): bigint | undefined {
  requireShape('MSR_INDEX', Errno.EINVAL, 'KVM_GET_MSRS: ', index, 'index', u32);
  vcpuLoad(vcpu);
  const { err, data } = kvmGetMsr(vcpu, index, true);
  return err === 0 ? data : undefined;
}
/** KVM_SET_MSRS for one MSR, as the host. False: refused. Throws KvmError MSR_INDEX, MSR_DATA (EINVAL). */
export function setMsr(vcpu: Vcpu, index: number, data: bigint): boolean {
  requireShape('MSR_INDEX', Errno.EINVAL, 'KVM_SET_MSRS: ', index, 'index', u32);
  requireShape('MSR_DATA', Errno.EINVAL, 'KVM_SET_MSRS: ', data, 'data', u64);
  vcpuLoad(vcpu);
  return kvmSetMsr(vcpu, index, data, true) === 0;
}
