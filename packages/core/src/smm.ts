/** System management mode. KVM: arch/x86/kvm/smm.c; manual: APM vol. 2 ch. 10. */
import {
  buildSmmSaveMap32,
  buildSmmSaveMap64,
  enterSmmState,
  emulatorLeaveSmm as leaveSmmCommon,
  SMM_MAP_OFFSET,
  SMM_MAP_SIZE,
  type SmmSource,
  X86Emul,
  type X86EmulateOps,
} from '@tskvm/emulator';
import { guestCpuidHas, kvmUpdateCpuidRuntime } from './cpuid.ts';
import { kvmGetDr, kvmUpdateDr7 } from './debugregs.ts';
import {
  HF_SMM_INSIDE_NMI_MASK,
  HF_SMM_MASK,
  kvmReadCr0,
  kvmReadCr3,
  kvmReadCr4,
  kvmRegisterReadRaw,
  kvmRipRead,
  kvmRipWrite,
} from './kvm-cache-regs.ts';
import { kvmMmuResetContext } from './mmu/mmu.ts';
import { kvmGetRflags, kvmSetRflags } from './regs.ts';
import { kvmMakeRequest } from './requests.ts';
import { fromSegment, toSegment } from './segments.ts';
import { frame, trace } from './trace.ts';
import { Req, type SmramState } from './types.ts';
import type { Vcpu } from './vcpu.ts';

const EFER_MSR = 0xc0000080;

/** The flag changed: MMU role, events, report. KVM: kvm_smm_changed. */
export const kvmSmmChanged = frame('kvmSmmChanged', (vcpu: Vcpu, inSmm: boolean): void => {
  trace(vcpu, 'kvm_smm_transition', () => ({ vcpuId: vcpu.vcpuId, smbase: vcpu.arch.smbase, entering: inSmm }));
  if (inSmm) vcpu.arch.hflags |= HF_SMM_MASK;
  else {
    vcpu.arch.hflags &= ~(HF_SMM_MASK | HF_SMM_INSIDE_NMI_MASK);
    // INIT and SMI were held back.
    kvmMakeRequest(Req.EVENT, vcpu);
  }
  kvmMmuResetContext(vcpu);
});

/** KVM numbers the shadows 1 MOV SS, 2 STI; the maps' builder expects 1 STI, 2 MOV SS. */
const swapShadow = (shadow: number): number => ((shadow & 1) << 1) | ((shadow >> 1) & 1);

function source(vcpu: Vcpu): SmmSource {
  const { calls } = vcpu.kvm;
  return {
    readGpr: (reg) => kvmRegisterReadRaw(vcpu, reg),
    getRip: () => kvmRipRead(vcpu),
    getRflags: () => kvmGetRflags(vcpu),
    getSegment: (seg) => toSegment(calls.getSegment(vcpu, seg)),
    getGdt: () => calls.getGdt(vcpu),
    getIdt: () => calls.getIdt(vcpu),
    getCr: (cr) => (cr === 0 ? kvmReadCr0(vcpu) : cr === 3 ? kvmReadCr3(vcpu) : kvmReadCr4(vcpu)),
    getDr: (dr) => kvmGetDr(vcpu, dr),
    getMsr: (index) => (index === EFER_MSR ? vcpu.arch.efer : undefined),
    getSmbase: () => Number(vcpu.arch.smbase),
    getInterruptShadow: () => swapShadow(calls.getInterruptShadow(vcpu)),
  };
}

const mapGpa = (vcpu: Vcpu): number => (Number(vcpu.arch.smbase) + SMM_MAP_OFFSET) % 2 ** 32;
const smram = (bytes: Uint8Array, is64: boolean): SmramState => ({
  bytes,
  view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength),
  is64,
});

/** The VM can't go on: KVM_REQ_VM_DEAD. */
function kill(vcpu: Vcpu): void {
  vcpu.vm.bugged = true;
  kvmMakeRequest(Req.VM_DEAD, vcpu);
}

/** SMI accepted: save map, then the state in which the handler starts. KVM: enter_smm. */
export const enterSmm = frame('enterSmm', (vcpu: Vcpu): void => {
  const { arch, kvm } = vcpu;
  const { calls } = kvm;
  const is64 = guestCpuidHas(vcpu, 'lm');
  const bytes = is64 ? buildSmmSaveMap64(source(vcpu)) : buildSmmSaveMap32(source(vcpu));
  // The vendor leaves L2 first: it may write into the map, and what follows must change L1's state.
  if (calls.enterSmm(vcpu, smram(bytes, is64)) !== 0) {
    kill(vcpu);
    return;
  }
  const cr0 = kvmReadCr0(vcpu);
  kvmSmmChanged(vcpu, true);
  if (!vcpu.vm.hasMemory(mapGpa(vcpu), SMM_MAP_SIZE, true)) {
    kill(vcpu);
    return;
  }
  vcpu.vm.writeGuest(mapGpa(vcpu), bytes, true);
  if (calls.getNmiMask(vcpu)) arch.hflags |= HF_SMM_INSIDE_NMI_MASK;
  else calls.setNmiMask(vcpu, true);
  calls.setInterruptShadow(vcpu, 0);
  enterSmmState(
    {
      setRflags: (value) => kvmSetRflags(vcpu, value),
      setRip: (value) => kvmRipWrite(vcpu, value),
      setCr0: (value) => calls.setCr0(vcpu, value),
      setCr4: (value) => calls.setCr4(vcpu, value),
      setIdt: (table) => calls.setIdt(vcpu, table),
      setDr7: (value) => {
        arch.dr7 = value;
        kvmUpdateDr7(vcpu);
      },
      setSegment: (seg, value) => calls.setSegment(vcpu, fromSegment(value), seg),
      setEfer: (value) => void calls.setEfer(vcpu, value),
    },
    Number(arch.smbase),
    cr0,
  );
  kvmUpdateCpuidRuntime(vcpu);
  kvmMmuResetContext(vcpu);
});

/** RSM; non-zero: triple fault. KVM: emulator_leave_smm. */
export const emulatorLeaveSmm = frame('emulatorLeaveSmm', (vcpu: Vcpu, ops: X86EmulateOps): number => {
  const { calls } = vcpu.kvm;
  const longMode = guestCpuidHas(vcpu, 'lm');
  return leaveSmmCommon({
    writeGpr: (reg, value) => ops.writeGpr(reg, value),
    setRip: (value) => ops.setRip(value),
    setRflags: (value) => ops.setRflags(value),
    setDr: (dr, value) => ops.setDr(dr, value),
    getCr: (cr) => ops.getCr(cr),
    setCr: (cr, value) => ops.setCr(cr, value),
    setMsr: (index, value) => ops.setMsr(index, value),
    setSegment: (seg, value) => ops.setSegment(seg, value),
    setGdt: (table) => ops.setGdt(table),
    setIdt: (table) => ops.setIdt(table),
    setSmbase: (smbase) => {
      vcpu.arch.smbase = BigInt(smbase);
    },
    setInterruptShadow: (shadow) => calls.setInterruptShadow(vcpu, swapShadow(shadow)),
    longMode,
    readSaveMap: () =>
      vcpu.vm.hasMemory(mapGpa(vcpu), SMM_MAP_SIZE, true)
        ? vcpu.vm.readGuest(mapGpa(vcpu), SMM_MAP_SIZE, true)
        : undefined,
    smmEnded: () => {
      if ((vcpu.arch.hflags & HF_SMM_INSIDE_NMI_MASK) === 0) calls.setNmiMask(vcpu, false);
      kvmSmmChanged(vcpu, false);
    },
    vendorLeaveSmm: (map) => calls.leaveSmm(vcpu, smram(map, longMode)),
  }) === X86Emul.CONTINUE
    ? 0
    : 1;
});
