/**
 * VMs and vCPUs: creation, reset, the VMCS's constant fields.
 * KVM: vmx_vm_init, vmx_vcpu_create, init_vmcs, vmx_vcpu_reset, vmx_vcpu_load in vmx.c.
 */
import { guestCpuidHas, kvmMakeRequest, kvmSetCr8, Req, type Vcpu, type Vm } from '@tskvm/core';
import { CR0, Seg } from '@tskvm/emulator';
import { vmxUpdateExceptionBitmap } from './events.ts';
import { VmxExitStub } from './exit-stub.ts';
import { EntryCtl, ExitCtl, Pin, Primary, Secondary } from './hardware/bits.ts';
import { F, type Vmcs } from './hardware/vmcs.ts';
import { vmxFlushTlbGuest } from './mmu.ts';
import { initMsrBitmap, vmxSaveGuestMsrs } from './msrs.ts';
import { setCr4GuestHostMask } from './registers.ts';
import { initRmodeIdentityMap } from './rmode.ts';
import { HOST } from './setup.ts';
import { controlsClearBit, controlsSetBit, toVmx, VcpuVmx, vmcsOf, vmxModule } from './vcpu-vmx.ts';

const ALL = 0xffffffffffffffffn;

/** KVM: vmx_vm_init. @returns 0 */
export function vmxVmInit(vm: Vm): number {
  vm.vendor = { tssAddr: undefined, identityMapAddr: vm.identityMapAddr, identityMapDone: false };
  return 0;
}
export function vmxVmDestroy(vm: Vm): void {
  vm.vendor = null;
}

/** KVM: vmx_vcpu_create. @returns 0 */
export function vmxVcpuCreate(vcpu: Vcpu): number {
  const module = vmxModule(vcpu.kvm);
  const vmx = new VcpuVmx(vcpu, module, new VmxExitStub(vcpu, module));
  vmx.vmcsPa = vcpu.kvm.allocPage();
  vmx.msrBitmap = vcpu.kvm.allocPage();
  vmx.vpid = module.params.vpid ? allocVpid(module.vpids) : 0;
  vcpu.vendor = vmx;
  vcpu.kvm.memory.write32(vmx.vmcsPa, module.silicon.caps.revision);
  module.silicon.vmclear(vmx.vmcsPa);
  initMsrBitmap(vcpu);
  if (!module.params.unrestrictedGuest) initRmodeIdentityMap(vcpu.vm);
  return 0;
}
function allocVpid(vpids: boolean[]): number {
  const free = vpids.indexOf(false);
  const vpid = free < 0 ? vpids.length : free;
  if (vpid > 0xffff) return 0;
  vpids[vpid] = true;
  return vpid;
}
/** KVM: vmx_vcpu_free. */
export function vmxVcpuFree(vcpu: Vcpu): void {
  const vmx = toVmx(vcpu);
  const { silicon, vpids } = vmx.module;
  vmxSaveGuestMsrs(vcpu);
  silicon.vmclear(vmx.vmcsPa);
  if (vmx.vpid !== 0) vpids[vmx.vpid] = false;
  vcpu.kvm.freePage(vmx.vmcsPa);
  vcpu.kvm.freePage(vmx.msrBitmap);
  vcpu.vendor = null;
}

/** KVM: vmx_vcpu_load. */
export function vmxVcpuLoad(vcpu: Vcpu, _cpu: number): void {
  vmcsOf(vcpu);
}

/** KVM: vmx_exec_control. */
function execControl(vcpu: Vcpu): number {
  const { config, params } = toVmx(vcpu).module;
  let control = config.primary & ~(Primary.interruptWindow | Primary.nmiWindow);
  if (params.ept) control &= ~(Primary.cr3Load | Primary.cr3Store | Primary.invlpg);
  return control;
}
/** KVM: vmx_secondary_exec_control. */
function secondaryExecControl(vcpu: Vcpu): number {
  const vmx = toVmx(vcpu);
  const { config, params } = vmx.module;
  // Descriptor-table exiting comes with UMIP's emulation; RDTSCP, INVPCID and XSAVES with the guest's CPUID.
  let control =
    config.secondary & ~(Secondary.descriptorTable | Secondary.rdtscp | Secondary.invpcid | Secondary.xsaves);
  if (vmx.vpid === 0) control &= ~Secondary.vpid;
  if (!params.ept) control &= ~Secondary.ept;
  if (!params.unrestrictedGuest) control &= ~Secondary.unrestrictedGuest;
  return control;
}
function writeControls(vcpu: Vcpu, v: Vmcs): void {
  const { config, params } = toVmx(vcpu).module;
  const pin = config.pin & ~(params.vnmi ? 0 : Pin.virtualNmis) & ~Pin.preemptionTimer;
  v.write32(F.PIN_BASED_VM_EXEC_CONTROL, pin >>> 0);
  v.write32(F.CPU_BASED_VM_EXEC_CONTROL, execControl(vcpu) >>> 0);
  v.write32(F.SECONDARY_VM_EXEC_CONTROL, secondaryExecControl(vcpu) >>> 0);
  v.write32(F.VM_EXIT_CONTROLS, (config.exit & ~ExitCtl.savePreemptionTimer) >>> 0);
  v.write32(F.VM_ENTRY_CONTROLS, (config.entry & ~EntryCtl.ia32e) >>> 0);
}

/** KVM: vmx_set_constant_host_state. */
function writeHostState(vcpu: Vcpu, v: Vmcs): void {
  const { caps } = toVmx(vcpu).silicon;
  v.write64(F.HOST_CR0, HOST.cr0);
  v.write64(F.HOST_CR3, HOST.cr3);
  v.write64(F.HOST_CR4, HOST.cr4 & caps.cr4Fixed1);
  v.write16(F.HOST_CS_SELECTOR, HOST.cs);
  v.write16(F.HOST_SS_SELECTOR, HOST.ss);
  v.write16(F.HOST_TR_SELECTOR, HOST.tr);
  v.write64(F.HOST_IA32_PAT, HOST.pat);
  v.write64(F.HOST_IA32_EFER, HOST.efer);
}

/** Everything that stays as it is from creation on. KVM: init_vmcs. */
function initVmcs(vcpu: Vcpu): void {
  const v = vmcsOf(vcpu);
  const vmx = toVmx(vcpu);
  writeControls(vcpu, v);
  writeHostState(vcpu, v);
  v.writeNumber(F.MSR_BITMAP, vmx.msrBitmap);
  v.write64(F.VMCS_LINK_POINTER, ALL);
  v.write64(F.GUEST_IA32_PAT, vcpu.arch.pat);
  if (vmx.vpid !== 0) v.write16(F.VIRTUAL_PROCESSOR_ID, vmx.vpid);
  vcpu.arch.cr0GuestOwnedBits = vmx.module.params.ept ? CR0.TS | CR0.WP : CR0.TS;
  v.write64(F.CR0_GUEST_HOST_MASK, ~vcpu.arch.cr0GuestOwnedBits & ALL);
  setCr4GuestHostMask(vcpu);
  v.write64(F.TSC_OFFSET, vcpu.arch.tscOffset);
}

/** A real-mode segment after reset. KVM: seg_setup. */
function resetSegments(v: Vmcs): void {
  for (let i = 0; i < 6; i++) {
    v.write16(F.GUEST_ES_SELECTOR + 2 * i, 0);
    v.write64(F.GUEST_ES_BASE + 2 * i, 0n);
    v.write32(F.GUEST_ES_LIMIT + 2 * i, 0xffff);
    v.write32(F.GUEST_ES_AR_BYTES + 2 * i, i === Seg.CS ? 0x9b : 0x93);
  }
  v.write16(F.GUEST_CS_SELECTOR, 0xf000);
  v.write64(F.GUEST_CS_BASE, 0xffff0000n);
  for (const [selector, base, limit, ar, rights] of [
    [F.GUEST_TR_SELECTOR, F.GUEST_TR_BASE, F.GUEST_TR_LIMIT, F.GUEST_TR_AR_BYTES, 0x8b],
    [F.GUEST_LDTR_SELECTOR, F.GUEST_LDTR_BASE, F.GUEST_LDTR_LIMIT, F.GUEST_LDTR_AR_BYTES, 0x82],
  ] as const) {
    v.write16(selector, 0);
    v.write64(base, 0n);
    v.write32(limit, 0xffff);
    v.write32(ar, rights);
  }
  for (const [base, limit] of [
    [F.GUEST_GDTR_BASE, F.GUEST_GDTR_LIMIT],
    [F.GUEST_IDTR_BASE, F.GUEST_IDTR_LIMIT],
  ]) {
    v.write64(base, 0n);
    v.write32(limit, 0xffff);
  }
}

/** KVM: vmx_vcpu_reset. */
export function vmxVcpuReset(vcpu: Vcpu, initEvent: boolean): void {
  const vmx = toVmx(vcpu);
  if (!initEvent) initVmcs(vcpu);
  vmx.rmode.vm86Active = false;
  vmx.softVnmiBlocked = false;
  kvmSetCr8(vcpu, 0n);
  const v = vmcsOf(vcpu);
  resetSegments(v);
  v.write32(F.GUEST_SYSENTER_CS, 0);
  v.write64(F.GUEST_SYSENTER_ESP, 0n);
  v.write64(F.GUEST_SYSENTER_EIP, 0n);
  v.write64(F.GUEST_IA32_DEBUGCTL, 0n);
  v.write32(F.GUEST_ACTIVITY_STATE, 0);
  v.write32(F.GUEST_INTERRUPTIBILITY_INFO, 0);
  v.write64(F.GUEST_PENDING_DBG_EXCEPTIONS, 0n);
  v.write32(F.VM_ENTRY_INTR_INFO_FIELD, 0);
  kvmMakeRequest(Req.APIC_PAGE_RELOAD, vcpu);
  vmxUpdateExceptionBitmap(vcpu);
  vmxFlushTlbGuest(vcpu);
}

/** KVM: vmx_vcpu_after_set_cpuid. */
export function vmxVcpuAfterSetCpuid(vcpu: Vcpu): void {
  const { config } = toVmx(vcpu).module;
  for (const [feature, bit] of [
    ['rdtscp', Secondary.rdtscp],
    ['invpcid', Secondary.invpcid],
    ['xsaves', Secondary.xsaves],
  ] as const) {
    if (!(config.secondary & bit)) continue;
    if (guestCpuidHas(vcpu, feature)) controlsSetBit(vcpu, F.SECONDARY_VM_EXEC_CONTROL, bit);
    else controlsClearBit(vcpu, F.SECONDARY_VM_EXEC_CONTROL, bit);
  }
  setCr4GuestHostMask(vcpu);
  vmxUpdateExceptionBitmap(vcpu);
}
