/**
 * SEV-ES: guests whose registers stand in an encrypted VMSA, and the GHCB by which they hand out what they want KVM to see.
 * KVM: svm/sev.c; manual: APM vol. 2 section 15.35, the SEV-ES Guest-Hypervisor Communication Block specification.
 */
import {
  Errno,
  type ExitOutcome,
  frame,
  kvmCompleteInsnGp,
  kvmEmulateApResetHold,
  trace,
  type Vcpu,
} from '@tskvm/core';
import { NotImplementedError, RAX, RBX, RCX, RDX, RSI, Vector } from '@tskvm/emulator';
import { svmInvokeExitHandler } from './exits.ts';
import { EventInfo, MiscCtl, MSR_EFER, SAVE_AREA, SvmExit, V, VMSA } from './hardware/index.ts';
import { exceptionIntercept } from './intercepts.ts';
import { setMsrIntercept } from './msrs.ts';
import { svmModule, toKvmSvm, toSvm } from './vcpu-svm.ts';

/** KVM: struct vcpu_sev_es_state. */
export interface GhcbState {
  vmsaPa: number;
  /** LAUNCH_UPDATE_VMSA has happened. */
  sealed: boolean;
  /** Guest physical address of the GHCB that the exit in progress came through, -1: none. */
  ghcbGpa: number;
  /** AP_HLT_LOOP or AP_RESET_HOLD: wait for a SIPI. */
  apResetHold: 'none' | 'nae' | 'msr';
}

/** Offsets in the GHCB page (specification table 3). */
const Ghcb = {
  RAX: 0x1f8,
  RCX: 0x308,
  RDX: 0x310,
  RBX: 0x318,
  RSI: 0x330,
  SW_EXITCODE: 0x390,
  SW_EXITINFO1: 0x398,
  SW_EXITINFO2: 0x3a0,
  SW_SCRATCH: 0x3a8,
  XCR0: 0x3e8,
  VALID: 0x3f0,
  USAGE: 0xffc,
} as const;

/** Registers that a GHCB carries both ways. */
const GHCB_REGISTERS = [
  [Ghcb.RAX, RAX],
  [Ghcb.RBX, RBX],
  [Ghcb.RCX, RCX],
  [Ghcb.RDX, RDX],
  [Ghcb.RSI, RSI],
] as const;

/** Reasons in SW_EXITINFO2 when SW_EXITINFO1 is 2. */
const GhcbError = { INVALID_USAGE: 2, MISSING_INPUT: 4, INVALID_EVENT: 6 } as const;

/** NAE events beyond the SVM exit codes. */
const Nae = {
  MMIO_READ: 0x8000_0001,
  MMIO_WRITE: 0x8000_0002,
  NMI_COMPLETE: 0x8000_0003,
  AP_HLT_LOOP: 0x8000_0004,
  AP_JUMP_TABLE: 0x8000_0005,
  HV_FEATURES: 0x8000_fffd,
  TERM_REQUEST: 0x8000_fffe,
  UNSUPPORTED: 0x8000_ffff,
} as const;

/** SVM exits that may come through the GHCB, with the registers that must be valid. */
const NAE_INPUTS: { readonly [code: number]: readonly number[] } = {
  [SvmExit.READ_DR7]: [],
  [SvmExit.WRITE_DR7]: [Ghcb.RAX],
  [SvmExit.RDTSC]: [],
  [SvmExit.RDTSCP]: [],
  [SvmExit.RDPMC]: [Ghcb.RCX],
  [SvmExit.CPUID]: [Ghcb.RAX, Ghcb.RCX],
  [SvmExit.INVD]: [],
  [SvmExit.IOIO]: [],
  [SvmExit.MSR]: [Ghcb.RCX],
  [SvmExit.VMMCALL]: [Ghcb.RAX],
  [SvmExit.WBINVD]: [],
  [SvmExit.MONITOR]: [Ghcb.RAX, Ghcb.RCX, Ghcb.RDX],
  [SvmExit.MWAIT]: [Ghcb.RAX, Ghcb.RCX],
};

const GHCB_VERSION_MAX = 2n;
const GHCB_VERSION_MIN = 1n;

// Making one

/** The VMSA page of a new vCPU. KVM: sev_es part of svm_vcpu_create. */
export function sevVcpuCreate(vcpu: Vcpu): GhcbState {
  const vmsaPa = vcpu.kvm.allocPage();
  return { vmsaPa, sealed: false, ghcbGpa: -1, apResetHold: 'none' };
}
export function sevVcpuFree(vcpu: Vcpu): void {
  const { sev } = toSvm(vcpu);
  if (sev === null) return;
  svmModule(vcpu).hw.decommissionVmsa(sev.vmsaPa);
  vcpu.kvm.freePage(sev.vmsaPa);
}

/** Write traps instead of CR intercepts: KVM could not be the MOV CR of a guest that it cannot read. KVM: sev_es_init_vmcb. */
export function sevEsInitVmcb(vcpu: Vcpu): void {
  const svm = toSvm(vcpu);
  const { vmcb, sev } = svm;
  if (sev === null) return;
  vmcb.set64(V.miscCtl, vmcb.get64(V.miscCtl) | BigInt(MiscCtl.SEV | MiscCtl.SEV_ES));
  vmcb.set64(V.vmsaPa, BigInt(sev.vmsaPa));
  svm.asid = toKvmSvm(vcpu.vm).sevAsid;
  vmcb.set32(V.asid, svm.asid);
  const off = [SvmExit.READ_CR0, SvmExit.READ_CR4, SvmExit.READ_CR8, SvmExit.WRITE_CR0, SvmExit.WRITE_CR4];
  for (const bit of [...off, SvmExit.WRITE_CR8, SvmExit.CR0_SEL_WRITE]) vmcb.setIntercept(bit, false);
  const traps = [SvmExit.EFER_WRITE_TRAP, SvmExit.CR0_WRITE_TRAP, SvmExit.CR4_WRITE_TRAP, SvmExit.CR8_WRITE_TRAP];
  for (const bit of traps) vmcb.setIntercept(bit, true);
  for (const vector of [Vector.UD, Vector.DB, Vector.GP]) vmcb.setIntercept(exceptionIntercept(vector), false);
  // RSM and the debug registers below DR7 are the guest's own.
  vmcb.setIntercept(SvmExit.RSM, false);
  for (const index of [MSR_EFER, 0x277]) setMsrIntercept(vcpu, index, false, false);
}

/**
 * KVM_SEV_LAUNCH_UPDATE_VMSA: the initial state is copied into the VMSA and sealed; from here on it is out of KVM's reach, and KVM's
 * own copies of the registers are scrubbed. KVM: sev_es_sync_vmsa, __sev_launch_update_vmsa.
 */
export const sevLaunchUpdateVmsa = frame('sevLaunchUpdateVmsa', (vcpu: Vcpu): void => {
  const { vmcb, sev } = toSvm(vcpu);
  if (sev === null || sev.sealed) return;
  const { memory } = vcpu.kvm;
  const { regs } = vcpu.arch;
  vmcb.set64(V.rax, regs[RAX]);
  vmcb.set64(V.rsp, regs[4]);
  vmcb.set64(V.rip, regs[16]);
  const page = new Uint8Array(4096);
  page.set(memory.readBytes(vmcb.pa + SAVE_AREA, 0x300));
  const view = new DataView(page.buffer);
  for (const [offset, reg] of VMSA_REGISTERS) view.setBigUint64(offset, regs[reg], true);
  view.setBigUint64(VMSA.xcr0, vcpu.arch.xcr0, true);
  view.setUint32(VMSA.mxcsr, 0x1f80, true);
  view.setUint16(VMSA.fcw, 0x37f, true);
  memory.writeBytes(sev.vmsaPa, page);
  svmModule(vcpu).hw.launchUpdateVmsa(sev.vmsaPa);
  sev.sealed = true;
  vcpu.arch.guestStateProtected = true;
  regs.fill(0n);
});
const VMSA_REGISTERS = [
  [VMSA.rcx, RCX],
  [VMSA.rdx, RDX],
  [VMSA.rbx, RBX],
  [VMSA.rbp, 5],
  [VMSA.rsi, 6],
  [VMSA.rdi, 7],
  ...Array.from({ length: 8 }, (_, n) => [VMSA.r8 + n * 8, 8 + n] as const),
] as const;

// The GHCB page

const ghcbView = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const isValid = (bytes: Uint8Array, offset: number): boolean =>
  (bytes[Ghcb.VALID + (offset >> 6)] & (1 << ((offset >> 3) & 7))) !== 0;
/** Writes a field of the mapped GHCB and marks it valid. */
function put(vcpu: Vcpu, offset: number, value: bigint): void {
  const { sev } = toSvm(vcpu);
  if (sev === null || sev.ghcbGpa < 0 || !vcpu.vm.hasMemory(sev.ghcbGpa, 4096)) return;
  const at = sev.ghcbGpa + Ghcb.VALID + (offset >> 6);
  const valid = vcpu.vm.readGuestValue(at, 1) | (1n << BigInt((offset >> 3) & 7));
  vcpu.vm.writeGuestValue(sev.ghcbGpa + offset, BigInt.asUintN(64, value), 8);
  vcpu.vm.writeGuestValue(at, valid, 1);
}

/** What the guest shows: registers whose valid bit is set; the others are zero. KVM: sev_es_sync_from_ghcb. */
function syncFromGhcb(vcpu: Vcpu, gpa: number, ghcb: Uint8Array): void {
  const { vmcb } = toSvm(vcpu);
  const view = ghcbView(ghcb);
  vcpu.arch.regs.fill(0n);
  for (const [offset, reg] of GHCB_REGISTERS) {
    if (isValid(ghcb, offset)) vcpu.arch.regs[reg] = view.getBigUint64(offset, true);
  }
  if (isValid(ghcb, Ghcb.XCR0)) vcpu.arch.xcr0 = view.getBigUint64(Ghcb.XCR0, true);
  vmcb.set64(V.exitCode, view.getBigUint64(Ghcb.SW_EXITCODE, true));
  vmcb.set64(V.exitInfo1, view.getBigUint64(Ghcb.SW_EXITINFO1, true));
  vmcb.set64(V.exitInfo2, view.getBigUint64(Ghcb.SW_EXITINFO2, true));
  vcpu.vm.writeGuest(gpa + Ghcb.VALID, new Uint8Array(16));
}

/** Before the guest runs again its GHCB gets the registers that the handler may have changed. KVM: sev_es_unmap_ghcb. */
export function sevEsUnmapGhcb(vcpu: Vcpu): void {
  const { sev } = toSvm(vcpu);
  if (sev === null || sev.ghcbGpa < 0) return;
  for (const [offset, reg] of GHCB_REGISTERS) {
    if (reg !== RSI) put(vcpu, offset, vcpu.arch.regs[reg]);
  }
  if (vcpu.kvm.tracer !== null) vcpu.kvm.tracer.emit('kvm_vmgexit_exit', vmgexitEvent(vcpu, sev.ghcbGpa));
  sev.ghcbGpa = -1;
  vcpu.arch.regs.fill(0n);
}
function vmgexitEvent(vcpu: Vcpu, gpa: number) {
  const field = (offset: number): bigint =>
    vcpu.vm.hasMemory(gpa, 4096) ? vcpu.vm.readGuestValue(gpa + offset, 8) : 0n;
  return {
    vcpuId: vcpu.vcpuId,
    exitReason: Number(field(Ghcb.SW_EXITCODE) & 0xffff_ffffn),
    info1: field(Ghcb.SW_EXITINFO1),
    info2: field(Ghcb.SW_EXITINFO2),
  };
}

/** Malformed input, with the reason. KVM: svm_vmgexit_bad_input. */
function badInput(vcpu: Vcpu, reason: number): ExitOutcome {
  put(vcpu, Ghcb.SW_EXITINFO1, 2n);
  put(vcpu, Ghcb.SW_EXITINFO2, BigInt(reason));
  return 1;
}

/** 0, or the reason why the request cannot be served. KVM: sev_es_validate_vmgexit. */
function validate(vcpu: Vcpu, ghcb: Uint8Array, code: number): number {
  if (ghcbView(ghcb).getUint32(Ghcb.USAGE, true) !== 0) return GhcbError.INVALID_USAGE;
  const needed = [Ghcb.SW_EXITCODE, Ghcb.SW_EXITINFO1, Ghcb.SW_EXITINFO2];
  if (!needed.every((offset) => isValid(ghcb, offset))) return GhcbError.MISSING_INPUT;
  const inputs = NAE_INPUTS[code];
  if (inputs === undefined) {
    return (Object.values(Nae) as number[]).includes(code) ? 0 : GhcbError.INVALID_EVENT;
  }
  const more = [...inputs];
  const info1 = ghcbView(ghcb).getBigUint64(Ghcb.SW_EXITINFO1, true);
  if (code === SvmExit.IOIO && (info1 & 5n) === 0n) more.push(Ghcb.RAX);
  if (code === SvmExit.MSR && info1 !== 0n) more.push(Ghcb.RAX, Ghcb.RDX);
  if (code === SvmExit.CPUID && vcpu.arch.guestStateProtected) {
    const leaf = ghcbView(ghcb).getBigUint64(Ghcb.RAX, true);
    if (leaf === 0xdn) more.push(Ghcb.XCR0);
  }
  return more.every((offset) => isValid(ghcb, offset)) ? 0 : GhcbError.MISSING_INPUT;
}

/** KVM: sev_handle_vmgexit. */
export function sevHandleVmgexit(vcpu: Vcpu): ExitOutcome {
  const { vmcb, sev } = toSvm(vcpu);
  if (sev === null) return -Errno.EINVAL;
  const gpa = vmcb.get64(V.ghcbGpa);
  if ((gpa & 0xfffn) !== 0n) return handleMsrProtocol(vcpu, gpa);
  const at = Number(gpa);
  // Without a GHCB there is nowhere to put an answer: back to the guest.
  if (gpa === 0n || !vcpu.vm.hasMemory(at, 4096)) return 1;
  const ghcb = vcpu.vm.readGuest(at, 4096);
  sev.ghcbGpa = at;
  trace(vcpu, 'kvm_vmgexit_enter', () => vmgexitEvent(vcpu, at));
  const code = Number(ghcbView(ghcb).getBigUint64(Ghcb.SW_EXITCODE, true) & 0xffff_ffffn);
  const reason = validate(vcpu, ghcb, code);
  syncFromGhcb(vcpu, at, ghcb);
  put(vcpu, Ghcb.SW_EXITINFO1, 0n);
  put(vcpu, Ghcb.SW_EXITINFO2, 0n);
  return reason === 0 ? dispatch(vcpu, sev, code) : badInput(vcpu, reason);
}

function dispatch(vcpu: Vcpu, sev: GhcbState, code: number): ExitOutcome {
  switch (code) {
    case Nae.MMIO_READ:
    case Nae.MMIO_WRITE:
      throw new NotImplementedError('SEV-ES MMIO through the GHCB', 'GHCB specification 4.1.9');
    case Nae.NMI_COMPLETE:
      toSvm(vcpu).nmiMasked = false;
      return 1;
    case Nae.AP_HLT_LOOP:
      sev.apResetHold = 'nae';
      return kvmEmulateApResetHold(vcpu);
    case Nae.HV_FEATURES:
      return 1;
    case Nae.TERM_REQUEST:
      return terminate(vcpu, toSvm(vcpu).vmcb.get64(V.ghcbGpa));
    case Nae.AP_JUMP_TABLE:
    case Nae.UNSUPPORTED:
      return badInput(vcpu, GhcbError.INVALID_EVENT);
    default:
      return svmInvokeExitHandler(vcpu, code);
  }
}

/** KVM_SYSTEM_EVENT_SEV_TERM. */
function terminate(vcpu: Vcpu, data: bigint): ExitOutcome {
  vcpu.exit = { reason: 'system_event', type: 6, data: [data] };
  return 0;
}

/** INS and OUTS of a protected guest go through the GHCB's buffer. KVM: sev_es_string_io. */
export function sevEsStringIo(_vcpu: Vcpu, _size: number, _port: number, _isIn: boolean): ExitOutcome {
  throw new NotImplementedError('SEV-ES string I/O through the GHCB', 'GHCB specification 4.1.2');
}

/** An MSR access that the guest asked for failed: tell it to raise #GP itself. KVM: svm_complete_emulated_msr. */
export function svmCompleteEmulatedMsr(vcpu: Vcpu, err: number): number {
  const { sev } = toSvm(vcpu);
  if (err === 0 || sev === null || sev.ghcbGpa < 0) return kvmCompleteInsnGp(vcpu, err);
  put(vcpu, Ghcb.SW_EXITINFO1, 1n);
  const exception = EventInfo.VALID | EventInfo.TYPE_EXCEPTION | EventInfo.ERROR_VALID | Vector.GP;
  put(vcpu, Ghcb.SW_EXITINFO2, BigInt(exception >>> 0));
  return 1;
}

// The GHCB MSR protocol

type MsrAnswer = (vcpu: Vcpu, request: bigint) => ExitOutcome;
const answer = (vcpu: Vcpu, value: bigint): ExitOutcome => {
  toSvm(vcpu).vmcb.set64(V.ghcbGpa, BigInt.asUintN(64, value));
  return 1;
};

/** CPUID by MSR: function in bits 63:32, register in 31:30; the value comes back in 63:32. */
function cpuidByMsr(vcpu: Vcpu, request: bigint): ExitOutcome {
  const { regs } = vcpu.arch;
  const register = Number((request >> 30n) & 3n);
  regs[RAX] = request >> 32n;
  regs[RCX] = 0n;
  const outcome = svmInvokeExitHandler(vcpu, SvmExit.CPUID);
  if (outcome <= 0) return -Errno.EINVAL;
  const value = regs[[RAX, RBX, RCX, RDX][register]] & 0xffff_ffffn;
  regs.fill(0n);
  return answer(vcpu, (value << 32n) | (BigInt(register) << 30n) | 0x005n);
}

/** Request code (bits 11:0) to what KVM does. */
const MSR_PROTOCOL: { readonly [code: number]: MsrAnswer } = {
  2: (vcpu) => answer(vcpu, sevInfo(vcpu)),
  4: cpuidByMsr,
  6: (vcpu) => {
    const { sev } = toSvm(vcpu);
    if (sev !== null) sev.apResetHold = 'msr';
    answer(vcpu, 7n);
    return kvmEmulateApResetHold(vcpu);
  },
  16: (vcpu) => answer(vcpu, (0xf_ffff_ffff_ffffn << 12n) | 0x11n),
  18: (vcpu, request) => answer(vcpu, (request & ~0xfffn) | 0x13n),
  128: (vcpu) => answer(vcpu, 0x81n),
  256: (vcpu, request) => terminate(vcpu, request),
};

/** SEV information: versions and the C-bit's position. */
function sevInfo(vcpu: Vcpu): bigint {
  const ebx = svmModule(vcpu).hw.cpuid(0x8000_001f, 0)[1];
  return (GHCB_VERSION_MAX << 48n) | (GHCB_VERSION_MIN << 32n) | (BigInt(ebx & 0x3f) << 24n) | 0x001n;
}

/** KVM: sev_handle_vmgexit_msr_protocol. */
function handleMsrProtocol(vcpu: Vcpu, request: bigint): ExitOutcome {
  trace(vcpu, 'kvm_vmgexit_msr_protocol_enter', () => ({ vcpuId: vcpu.vcpuId, ghcbGpa: request }));
  const serve = MSR_PROTOCOL[Number(request & 0xfffn)];
  // An unknown request keeps the MSR as it is: the guest sees that nobody answered.
  const result = serve === undefined ? 1 : serve(vcpu, request);
  const ghcbGpa = toSvm(vcpu).vmcb.get64(V.ghcbGpa);
  trace(vcpu, 'kvm_vmgexit_msr_protocol_exit', () => ({ vcpuId: vcpu.vcpuId, ghcbGpa, result }));
  return result;
}

/** SIPI for a protected AP: the guest finds its start address by itself. KVM: sev_vcpu_deliver_sipi_vector. */
export function sevDeliverSipiVector(vcpu: Vcpu): void {
  const { sev, vmcb } = toSvm(vcpu);
  if (sev === null) return;
  if (sev.apResetHold === 'nae') put(vcpu, Ghcb.SW_EXITINFO2, 1n);
  else if (sev.apResetHold === 'msr') vmcb.set64(V.ghcbGpa, (1n << 12n) | 7n);
  sev.apResetHold = 'none';
}
