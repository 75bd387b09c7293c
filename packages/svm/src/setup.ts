/**
 * Loading the driver, and making VMs and vCPUs. KVM: svm.c (svm_hardware_setup, svm_enable_virtualization_cpu, init_vmcb,
 * svm_vcpu_create, svm_vcpu_reset).
 */

import { Errno, type Kvm, kvmConfigureMmu, kvmCpuCapClear, type Vcpu, type Vm } from '@tskvm/core';
import { EFER, Seg } from '@tskvm/emulator';
import { SvmExitStub } from './exit-stub.ts';
import {
  Clean,
  IntCtl,
  MiscCtl,
  MSR_EFER,
  MSR_VM_CR,
  MSR_VM_HSAVE_PA,
  SvmExit,
  type SvmHardware,
  segmentOffset,
  V,
  Vmcb,
} from './hardware/index.ts';
import { DEFAULT_INTERCEPTS, NPT_DROPS, recalcIntercepts, setDrIntercepts } from './intercepts.ts';
import { recalcMsrIntercepts } from './msrs.ts';
import { sevEsInitVmcb, sevVcpuCreate, sevVcpuFree } from './sev.ts';
import {
  type SvmModule,
  type SvmParams,
  svmModule,
  toKvmSvm,
  toSvm,
  type VcpuSvm,
  vmloading,
  vmsaved,
} from './vcpu-svm.ts';

const IOPM_PAGES = 3;
const MSRPM_PAGES = 2;
/** PG_LEVEL_1G. */
const HUGE_PAGE_LEVEL = 3;
const NPT_LEVELS = 4;

/** CPUID.1:ECX and Fn8000_0001_ECX bits. */
const CPUID_SVM = 1 << 2;

// Module

/** KVM: svm_hardware_setup. Parameters that the processor cannot satisfy are turned off. */
export function svmHardwareSetup(kvm: Kvm, wanted: SvmParams): number {
  const hw = kvm.hardware as SvmHardware;
  const { features } = hw;
  const params: SvmParams = {
    ...wanted,
    npt: wanted.npt && features.nestedPaging,
    nrips: wanted.nrips && features.nextRip,
    sevEs: wanted.sevEs && features.sevEs && wanted.npt,
  };
  const [, , sevAsids, minSevAsid] = hw.cpuid(0x8000_001f, 0);
  const iopm = kvm.allocPages(IOPM_PAGES);
  kvm.memory.fill(iopm, IOPM_PAGES * 4096, 0xff);
  const module: SvmModule = {
    hw,
    params,
    iopm,
    hsave: 0,
    asidGeneration: 1,
    nextAsid: 0,
    minAsid: params.sevEs ? sevAsids + 1 : 1,
    maxAsid: Math.max(1, features.asids - 1),
    sevAsids: new Set(Array.from({ length: params.sevEs ? Math.max(0, minSevAsid - 1) : 0 }, (_, n) => n + 1)),
  };
  // No ASID of this generation has been given out: the first vCPU starts the next one.
  module.nextAsid = module.maxAsid + 1;
  kvm.vendor = module;
  kvmCpuCapClear(kvm, 'svm');
  kvmConfigureMmu(kvm, params.npt, NPT_LEVELS, NPT_LEVELS, HUGE_PAGE_LEVEL);
  return 0;
}
/** KVM: svm_hardware_unsetup. */
export function svmHardwareUnsetup(kvm: Kvm): void {
  const module = kvm.vendor as SvmModule | null;
  if (module === null) return;
  for (let page = 0; page < IOPM_PAGES; page += 1) kvm.freePage(module.iopm + page * 4096);
}

/** KVM: svm_check_processor_compat: an AMD processor with SVM that the firmware has not locked. */
export function svmCheckProcessorCompatibility(kvm: Kvm): number {
  const hw = kvm.hardware as SvmHardware | null;
  if (hw === null || kvm.model.vendor !== 'amd') return -Errno.EIO;
  if ((hw.cpuid(0x8000_0001, 0)[2] & CPUID_SVM) === 0) return -Errno.EIO;
  return ((hw.rdmsr(MSR_VM_CR) ?? 0n) & 0x10n) === 0n ? 0 : -Errno.EIO;
}

/** EFER.SVME and the page for the host's state. KVM: svm_enable_virtualization_cpu. */
export function svmEnableVirtualizationCpu(kvm: Kvm): number {
  const module = svmModule(kvm);
  const { hw } = module;
  const efer = hw.rdmsr(MSR_EFER) ?? 0n;
  if ((efer & EFER.SVME) !== 0n) return -Errno.EBUSY;
  const hostEfer = (EFER.SCE | EFER.LME | EFER.LMA | EFER.NXE) & ~hw.limits.eferReserved;
  if (hw.wrmsr(MSR_EFER, efer | hostEfer | EFER.SVME) !== 0) return -Errno.EIO;
  module.hsave = kvm.allocPage();
  return hw.wrmsr(MSR_VM_HSAVE_PA, BigInt(module.hsave)) === 0 ? 0 : -Errno.EIO;
}
/** KVM: svm_disable_virtualization_cpu. */
export function svmDisableVirtualizationCpu(kvm: Kvm): void {
  const module = svmModule(kvm);
  module.hw.wrmsr(MSR_VM_HSAVE_PA, 0n);
  module.hw.wrmsr(MSR_EFER, (module.hw.rdmsr(MSR_EFER) ?? 0n) & ~EFER.SVME);
  if (module.hsave !== 0) kvm.freePage(module.hsave);
  module.hsave = 0;
}

// VMs

/** KVM: svm_vm_init, and KVM_SEV_ES_INIT's ASID for a VM of that type. */
export function svmVmInit(vm: Vm): number {
  vm.vendor = { sevAsid: 0 };
  if (vm.vmType !== 'sev-es') return 0;
  const module = svmModule(vm);
  if (!module.params.sevEs) return -Errno.EINVAL;
  const [asid] = module.sevAsids;
  if (asid === undefined) return -Errno.EBUSY;
  module.sevAsids.delete(asid);
  toKvmSvm(vm).sevAsid = asid;
  return 0;
}
/** KVM: svm_vm_destroy. */
export function svmVmDestroy(vm: Vm): void {
  const { sevAsid } = toKvmSvm(vm);
  if (sevAsid !== 0) svmModule(vm).sevAsids.add(sevAsid);
}

// vCPUs

/** KVM: svm_vcpu_create. */
export function svmVcpuCreate(vcpu: Vcpu): number {
  const { kvm } = vcpu;
  const msrpm = kvm.allocPages(MSRPM_PAGES);
  kvm.memory.fill(msrpm, MSRPM_PAGES * 4096, 0xff);
  const svm: VcpuSvm = {
    vmcb: new Vmcb(kvm.memory, kvm.allocPage()),
    regWords: new Int32Array(vcpu.arch.regs.buffer, vcpu.arch.regs.byteOffset, 34),
    seen: new Int32Array(4),
    cr0Before: 0n,
    rflags: { low: 0, value: 0n },
    tscAux: { value: 0n, low: 0, high: 0 },
    vmsaveDue: false,
    vmloadDue: true,
    msrpm,
    asid: 0,
    asidGeneration: 0,
    nextRip: 0n,
    guestGif: true,
    nmiMasked: false,
    nmiSinglestep: false,
    nmiSinglestepRflags: 0n,
    awaitingIret: false,
    nmiIretRip: 0n,
    softInt: { injected: false, csBase: 0n, oldRip: 0n, nextRip: 0n },
    msrs: new Map(),
    sev: null,
    stub: new SvmExitStub(vcpu),
  };
  vcpu.vendor = svm;
  if (vcpu.vm.vmType === 'sev-es') svm.sev = sevVcpuCreate(vcpu);
  return 0;
}
/** KVM: svm_vcpu_free. */
export function svmVcpuFree(vcpu: Vcpu): void {
  const svm = toSvm(vcpu);
  sevVcpuFree(vcpu);
  svmModule(vcpu).hw.forget();
  vcpu.kvm.freePage(svm.vmcb.pa);
  for (let page = 0; page < MSRPM_PAGES; page += 1) vcpu.kvm.freePage(svm.msrpm + page * 4096);
}

/** KVM: svm_vcpu_reset. */
export function svmVcpuReset(vcpu: Vcpu, initEvent: boolean): void {
  const svm = toSvm(vcpu);
  initVmcb(vcpu);
  if (initEvent) return;
  svm.msrs.clear();
  svm.nmiSinglestep = false;
  svm.awaitingIret = false;
  svm.nextRip = 0n;
  svm.softInt.injected = false;
}

/** P, S, W and P alone with a type, as the VMCB holds them. */
const DATA_ATTRIB = 0x92;
const CODE_ATTRIB = 0x9a;
const LDT_TYPE = 2;
const TSS16_BUSY_TYPE = 3;

function initSegments(vmcb: Vmcb): void {
  for (const seg of [Seg.ES, Seg.SS, Seg.DS, Seg.FS, Seg.GS] as const)
    initSegment(vmcb, segmentOffset(seg), DATA_ATTRIB);
  initSegment(vmcb, V.cs, CODE_ATTRIB);
  vmcb.set16(V.cs, 0xf000);
  vmcb.set64(V.cs + 8, 0xffff_0000n);
  for (const table of [V.gdtr, V.idtr]) initSegment(vmcb, table, 0);
  initSegment(vmcb, V.ldtr, 0x80 | LDT_TYPE);
  initSegment(vmcb, V.tr, 0x80 | TSS16_BUSY_TYPE);
  vmcb.set8(V.cpl, 0);
}
function initSegment(vmcb: Vmcb, at: number, attrib: number): void {
  vmcb.set16(at, 0);
  vmcb.set16(at + 2, attrib);
  vmcb.set32(at + 4, 0xffff);
  vmcb.set64(at + 8, 0n);
}

/** Control area and reset state of the segments; the rest of the reset state comes through the setters. KVM: init_vmcb. */
function initVmcb(vcpu: Vcpu): void {
  const svm = toSvm(vcpu);
  const vmcb = vmloading(vcpu);
  const { params, iopm, hw } = svmModule(vcpu);
  for (let word = 0; word < 6; word += 1) vmcb.set32(word * 4, 0);
  for (const bit of DEFAULT_INTERCEPTS) vmcb.setIntercept(bit, true);
  vmcb.setIntercept(SvmExit.SMI, params.interceptSmi);
  setDrIntercepts(vcpu);
  vmcb.set64(V.iopmBasePa, BigInt(iopm));
  vmcb.set64(V.msrpmBasePa, BigInt(svm.msrpm));
  vmcb.set32(V.intCtl, IntCtl.V_INTR_MASKING);
  vmcb.set32(V.intState, 0);
  vmcb.set32(V.eventInj, 0);
  vmcb.set64(V.tscOffset, vcpu.arch.tscOffset);
  initSegments(vmcb);
  if (params.npt) initNestedPaging(vcpu, vmcb);
  svm.asid = 0;
  svm.asidGeneration = 0;
  if (hw.features.pauseFilter) {
    vmcb.set16(V.pauseFilterCount, params.pauseFilterCount);
    vmcb.setIntercept(SvmExit.PAUSE, params.pauseFilterCount > 0);
  }
  svm.guestGif = true;
  svm.nmiMasked = false;
  recalcIntercepts(vcpu);
  recalcMsrIntercepts(vcpu);
  sevEsInitVmcb(vcpu);
  vmcb.set32(V.clean, 0);
}

function initNestedPaging(vcpu: Vcpu, vmcb: Vmcb): void {
  vmcb.set64(V.miscCtl, BigInt(MiscCtl.NP));
  for (const bit of NPT_DROPS) vmcb.setIntercept(bit, false);
  vmcb.set64(V.gPat, vcpu.arch.pat);
  vmcb.set64(V.cr3, 0n);
  vmcb.markDirty(Clean.NPT);
}

/** KVM: svm_vcpu_after_set_cpuid. */
export function svmVcpuAfterSetCpuid(vcpu: Vcpu): void {
  recalcIntercepts(vcpu);
  recalcMsrIntercepts(vcpu);
  sevEsInitVmcb(vcpu);
}
/** KVM: svm_recalc_intercepts. */
export const svmRecalcIntercepts = (vcpu: Vcpu): void => svmVcpuAfterSetCpuid(vcpu);

/** Another vCPU's state is about to replace this one's in the processor. KVM: svm_vcpu_load, svm_vcpu_put. */
export function svmVcpuLoad(vcpu: Vcpu, _cpu: number): void {
  toSvm(vcpu).vmloadDue = true;
}
export function svmVcpuPut(vcpu: Vcpu): void {
  vmsaved(vcpu);
}
