/**
 * MSRs that the VMX driver answers itself, and the guest-only ones that the processor holds while a vCPU runs.
 * KVM: vmx_get_msr, vmx_set_msr, vmx_prepare_switch_to_guest, vmx_disable_intercept_for_msr in vmx.c.
 */
import {
  type GetMsr,
  type Kvm,
  kvmCompleteInsnGp,
  kvmGetMsrCommon,
  kvmSetMsrCommon,
  type MsrData,
  type Vcpu,
  type Vm,
} from '@tskvm/core';
import { S } from '@tskvm/emulator';
import { FeatureControl, VmxMsr } from './hardware/bits.ts';
import { F } from './hardware/vmcs.ts';
import { type GuestMsrs, toVmx, vmcsOf, vmxModule } from './vcpu-vmx.ts';

const MSR_SMBASE = 0x9e;
const MSR_SYSENTER_CS = 0x174;
const MSR_SYSENTER_ESP = 0x175;
const MSR_SYSENTER_EIP = 0x176;
const MSR_DEBUGCTL = 0x1d9;
const MSR_PAT = 0x277;
const MSR_FS_BASE = 0xc0000100;
const MSR_GS_BASE = 0xc0000101;

/** MSRs in VMCS fields. */
const FIELDS = new Map<number, number>([
  [MSR_FS_BASE, F.GUEST_FS_BASE],
  [MSR_GS_BASE, F.GUEST_GS_BASE],
  [MSR_SYSENTER_ESP, F.GUEST_SYSENTER_ESP],
  [MSR_SYSENTER_EIP, F.GUEST_SYSENTER_EIP],
  [MSR_DEBUGCTL, F.GUEST_IA32_DEBUGCTL],
]);
/** MSRs that entry does not switch: their place while the vCPU is not on the processor, and the state block's. */
const GUEST_ONLY: readonly (readonly [number, keyof GuestMsrs, number])[] = [
  [0xc0000081, 'star', S.star],
  [0xc0000082, 'lstar', S.lstar],
  [0xc0000083, 'cstar', S.cstar],
  [0xc0000084, 'sfmask', S.sfmask],
  [0xc0000102, 'kernelGsBase', S.kernelGsBase],
  [0xc0000103, 'tscAux', S.tscAux],
];
const guestOnly = (index: number) => GUEST_ONLY.find(([msr]) => msr === index);

/** Reads and writes that never exit (the guest has the register itself). KVM: vmx_possible_passthrough_msrs. */
const PASSTHROUGH = [MSR_FS_BASE, MSR_GS_BASE, 0xc0000102, MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP];
const MSR_TSC = 0x10;

/** Fills a vCPU's MSR bitmap. */
export function initMsrBitmap(vcpu: Vcpu): void {
  const { msrBitmap } = toVmx(vcpu);
  const { memory } = vcpu.kvm;
  memory.fill(msrBitmap, 4096, 0xff);
  const clear = (index: number, write: boolean): void => {
    const high = index >= 0xc0000000;
    const bit = high ? index - 0xc0000000 : index;
    const at = msrBitmap + (high ? 0x400 : 0) + (write ? 0x800 : 0) + (bit >>> 3);
    memory.write8(at, memory.read8(at) & ~(1 << (bit & 7)));
  };
  for (const index of PASSTHROUGH) {
    clear(index, false);
    clear(index, true);
  }
  clear(MSR_TSC, false);
}

/** Puts the guest-only MSRs into the processor, when another vCPU's stand there. KVM: vmx_prepare_switch_to_guest. */
export function vmxLoadGuestMsrs(vcpu: Vcpu): void {
  const module = vmxModule(vcpu.kvm);
  if (module.current === vcpu) return;
  if (module.current !== null) vmxSaveGuestMsrs(module.current);
  const { msrs } = toVmx(vcpu);
  const { state } = vcpu.kvm.processor;
  for (const [, name, at] of GUEST_ONLY) state.set64(at, msrs[name]);
  module.current = vcpu;
}
/** Takes them out again. KVM: vmx_prepare_switch_to_host. */
export function vmxSaveGuestMsrs(vcpu: Vcpu): void {
  const module = vmxModule(vcpu.kvm);
  if (module.current !== vcpu) return;
  const { msrs } = toVmx(vcpu);
  const { state } = vcpu.kvm.processor;
  for (const [, name, at] of GUEST_ONLY) msrs[name] = state.get64(at);
  module.current = null;
}

/** KVM: vmx_get_msr. @returns 0, or 1 for #GP */
export function vmxGetMsr(vcpu: Vcpu, msr: MsrData): number {
  const field = FIELDS.get(msr.index);
  if (field !== undefined) {
    msr.data = vmcsOf(vcpu).read64(field);
    return 0;
  }
  if (msr.index === MSR_SYSENTER_CS) {
    msr.data = BigInt(vmcsOf(vcpu).read32(F.GUEST_SYSENTER_CS));
    return 0;
  }
  const own = guestOnly(msr.index);
  if (own) {
    vmxSaveGuestMsrs(vcpu);
    msr.data = toVmx(vcpu).msrs[own[1]];
    return 0;
  }
  if (msr.index === VmxMsr.FEATURE_CONTROL) {
    msr.data = toVmx(vcpu).ia32FeatureControl;
    return 0;
  }
  return kvmGetMsrCommon(vcpu, msr);
}

/** KVM: vmx_set_msr. @returns 0, or 1 for #GP */
export function vmxSetMsr(vcpu: Vcpu, msr: MsrData): number {
  const field = FIELDS.get(msr.index);
  if (field !== undefined) return setFieldMsr(vcpu, msr, field);
  if (msr.index === MSR_SYSENTER_CS) {
    vmcsOf(vcpu).write32(F.GUEST_SYSENTER_CS, Number(msr.data & 0xffffffffn));
    return 0;
  }
  const own = guestOnly(msr.index);
  if (own) {
    vmxSaveGuestMsrs(vcpu);
    toVmx(vcpu).msrs[own[1]] = msr.data;
    return 0;
  }
  if (msr.index === VmxMsr.FEATURE_CONTROL) return setFeatureControl(vcpu, msr);
  const result = kvmSetMsrCommon(vcpu, msr);
  if (result === 0 && msr.index === MSR_PAT) vmcsOf(vcpu).write64(F.GUEST_IA32_PAT, msr.data);
  return result;
}
function setFieldMsr(vcpu: Vcpu, msr: MsrData, field: number): number {
  // LBR and BTF are what a guest may ask for; KVM ignores the others silently or refuses them.
  if (field === F.GUEST_IA32_DEBUGCTL && (msr.data & ~3n) !== 0n && !msr.hostInitiated) return 1;
  vmcsOf(vcpu).write64(field, msr.data);
  return 0;
}
function setFeatureControl(vcpu: Vcpu, msr: MsrData): number {
  const vmx = toVmx(vcpu);
  const locked = (vmx.ia32FeatureControl & FeatureControl.lock) !== 0n;
  // Without VMX for guests only the lock bit exists.
  if ((locked && !msr.hostInitiated) || (msr.data & ~FeatureControl.lock) !== 0n) return 1;
  vmx.ia32FeatureControl = msr.data;
  return 0;
}

/** VMX capability MSRs belong to nested VMX. KVM: vmx_get_feature_msr. */
export const vmxGetFeatureMsr = (_kvm: Kvm, _index: number): GetMsr => ({ err: 1, data: 0n });

/** KVM: vmx_has_emulated_msr. */
export function vmxHasEmulatedMsr(vm: Vm | null, index: number): boolean {
  if (index === MSR_SMBASE) {
    const params = vm ? vmxModule(vm.kvm).params : undefined;
    return params === undefined || params.unrestrictedGuest || params.emulateInvalidGuestState;
  }
  const amdOnly = index === 0xc001011f;
  return !amdOnly && (index < VmxMsr.BASIC || index > 0x493);
}

/** KVM: kvm_complete_insn_gp. */
export const vmxCompleteEmulatedMsr = (vcpu: Vcpu, err: number): number => kvmCompleteInsnGp(vcpu, err);
