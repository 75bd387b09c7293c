/**
 * Loading the module: which controls the processor offers, which parameters survive, VMXON.
 * KVM: setup_vmcs_config, vmx_hardware_setup, vmx_check_processor_compat, vmx_enable_virtualization_cpu in vmx.c.
 */
import { Errno, type Kvm, KvmError, kvmConfigureMmu, kvmMmuSetEptMasks } from '@tskvm/core';
import { EFER, NotImplementedError, S } from '@tskvm/emulator';
import { EntryCtl, EptCap, ExitCtl, FeatureControl, Pin, Primary, Secondary, VmxMsr } from './hardware/bits.ts';
import type { Allowed, VmxCapabilities } from './hardware/capabilities.ts';
import type { VmxSilicon } from './hardware/instructions.ts';
import { type VmcsConfig, type VmxModule, type VmxParams, vmxModule } from './vcpu-vmx.ts';

/** KVM's defaults of the module parameters. */
export const DEFAULT_PARAMS: Readonly<Required<VmxParams>> = {
  ept: true,
  unrestrictedGuest: true,
  emulateInvalidGuestState: true,
  vpid: true,
  vnmi: true,
  eptad: true,
  preemptionTimer: true,
  dumpInvalidVmcs: false,
  nested: false,
  enableApicv: false,
  flexpriority: false,
  pml: false,
};

/** Controls that KVM needs and those that it uses if they exist. KVM: KVM_REQUIRED_VMX_* and KVM_OPTIONAL_VMX_*. */
const WANTED = {
  pin: { required: Pin.externalInterrupt | Pin.nmi, optional: Pin.virtualNmis | Pin.preemptionTimer },
  primary: {
    required:
      Primary.hlt |
      Primary.cr8Load |
      Primary.cr8Store |
      Primary.cr3Load |
      Primary.cr3Store |
      Primary.unconditionalIo |
      Primary.movDr |
      Primary.tscOffset |
      Primary.mwait |
      Primary.monitor |
      Primary.invlpg |
      Primary.rdpmc |
      Primary.interruptWindow,
    optional: Primary.msrBitmaps | Primary.nmiWindow | Primary.secondary,
  },
  secondary: {
    required: 0,
    optional:
      Secondary.ept |
      Secondary.unrestrictedGuest |
      Secondary.vpid |
      Secondary.rdtscp |
      Secondary.invpcid |
      Secondary.xsaves |
      Secondary.descriptorTable |
      Secondary.wbinvd,
  },
  exit: {
    required: ExitCtl.saveDebug | ExitCtl.ackInterrupt | ExitCtl.host64,
    optional: ExitCtl.savePat | ExitCtl.loadPat | ExitCtl.loadEfer,
  },
  entry: { required: EntryCtl.loadDebug, optional: EntryCtl.loadPat | EntryCtl.loadEfer | EntryCtl.ia32e },
} as const;

/** Required and optional bits that the processor allows; undefined if a required one is missing. KVM: adjust_vmx_controls. */
function adjustControls(wanted: { required: number; optional: number }, allowed: Allowed): number | undefined {
  const value = ((wanted.required | wanted.optional) & allowed.one) | allowed.zero;
  return (value & wanted.required) === wanted.required ? value : undefined;
}

/** The controls that KVM uses on this processor, or undefined (-EIO). KVM: setup_vmcs_config. */
export function setupVmcsConfig(caps: VmxCapabilities): VmcsConfig | undefined {
  const pin = adjustControls(WANTED.pin, caps.pin);
  const primary = adjustControls(WANTED.primary, caps.primary);
  const exit = adjustControls(WANTED.exit, caps.exit);
  const entry = adjustControls(WANTED.entry, caps.entry);
  if (pin === undefined || primary === undefined || exit === undefined || entry === undefined) return undefined;
  const hasSecondary = (primary & Primary.secondary) !== 0;
  const secondary = hasSecondary ? (adjustControls(WANTED.secondary, caps.secondary) ?? 0) : 0;
  return { pin, primary, secondary, exit, entry };
}

/** Switches off what the processor lacks, in KVM's order. */
function effectiveParams(given: VmxParams, caps: VmxCapabilities, config: VmcsConfig): Required<VmxParams> {
  const p = { ...DEFAULT_PARAMS, ...given };
  const has = (bit: number): boolean => (config.secondary & bit) !== 0;
  if (!has(Secondary.vpid)) p.vpid = false;
  if (!has(Secondary.ept) || !(caps.ept & EptCap.walk4) || !(caps.ept & EptCap.writeBack)) p.ept = false;
  if (!p.ept || !(caps.ept & EptCap.accessedDirty)) p.eptad = false;
  if (!p.ept || !has(Secondary.unrestrictedGuest)) p.unrestrictedGuest = false;
  if (!(config.pin & Pin.virtualNmis)) p.vnmi = false;
  if (!(config.pin & Pin.preemptionTimer)) p.preemptionTimer = false;
  p.enableApicv = false;
  p.flexpriority = false;
  p.pml = false;
  return p;
}

/** Parameters whose `true` would be a promise that nobody keeps; left out they are off. */
const NOT_IMPLEMENTED: readonly (readonly [keyof VmxParams, feature: string, section: string])[] = [
  ['enableApicv', 'APIC virtualisation', 'SDM vol. 3 ch. 29'],
  ['flexpriority', 'the virtual-APIC page and TPR shadow', 'SDM vol. 3 29.3'],
  ['pml', 'page-modification logging', 'SDM vol. 3 28.2.6'],
];

/** KVM: vmx_hardware_setup. @returns 0 or -errno */
export function vmxHardwareSetup(kvm: Kvm, given: VmxParams): number {
  const silicon = kvm.hardware as VmxSilicon;
  const config = setupVmcsConfig(silicon.caps);
  if (!config) return -Errno.EIO;
  const params = effectiveParams(given, silicon.caps, config);
  for (const [name, feature, section] of NOT_IMPLEMENTED) {
    if (given[name]) throw new NotImplementedError(`${feature} (vmx({ ${name}: true }))`, section);
  }
  if (params.nested) throw new NotImplementedError('nested VMX (vmx({ nested: true }))', 'SDM vol. 3 ch. 23');
  const module: VmxModule = { params, config, silicon, vmxonRegion: kvm.allocPage(), vpids: [true], current: null };
  kvm.vendor = module;
  kvmConfigureMmu(kvm, params.ept, 0, 4, silicon.caps.ept & EptCap.page2m ? 2 : 1);
  if (params.ept) kvmMmuSetEptMasks(kvm, params.eptad, (silicon.caps.ept & EptCap.executeOnly) !== 0);
  return 0;
}
export function vmxHardwareUnsetup(kvm: Kvm): void {
  const module = vmxModule(kvm);
  if (module) kvm.freePage(module.vmxonRegion);
}

/** KVM: vmx_check_processor_compat. @returns 0 or -EIO */
export function vmxCheckProcessorCompat(kvm: Kvm): number {
  const [, , ecx] = kvm.processor.cpuid(1, 0);
  if ((ecx & (1 << 5)) === 0 || kvm.model.vendor !== 'intel') return -Errno.EIO;
  const { silicon, config } = vmxModule(kvm);
  const feature = silicon.rdmsr(VmxMsr.FEATURE_CONTROL) ?? 0n;
  const enabled = FeatureControl.lock | FeatureControl.vmxOutsideSmx;
  if ((feature & enabled) !== enabled) return -Errno.EIO;
  const now = setupVmcsConfig(silicon.caps);
  return now && JSON.stringify(now) === JSON.stringify(config) ? 0 : -Errno.EIO;
}

/** The host: a 64-bit kernel. Its values go into the host fields of every VMCS. */
export const HOST = {
  cr0: 0x80050033n,
  cr3: 0x1000n,
  /** PAE, MCE, PGE, OSFXSR, OSXMMEXCPT, VMXE. */
  cr4: 0x26e0n,
  efer: EFER.SCE | EFER.LME | EFER.LMA | EFER.NXE,
  pat: 0x0007040600070406n,
  cs: 0x10,
  ss: 0x18,
  tr: 0x40,
} as const;

/** Puts the processor into the host's mode and executes VMXON. KVM: vmx_enable_virtualization_cpu. */
export function vmxEnableVirtualizationCpu(kvm: Kvm): number {
  const { silicon, vmxonRegion } = vmxModule(kvm);
  const { state } = kvm.processor;
  state.set64(S.efer, HOST.efer);
  state.set64(S.cr3, HOST.cr3);
  state.set64(S.cr4, HOST.cr4 & silicon.caps.cr4Fixed1);
  state.set64(S.cr0, HOST.cr0);
  kvm.memory.write32(vmxonRegion, silicon.caps.revision);
  const result = silicon.vmxon(vmxonRegion);
  if (result === 0) return 0;
  throw new KvmError(
    'VMXON_FAILED',
    Errno.EIO,
    `VMXON failed (${result}): check IA32_FEATURE_CONTROL of the CPU model`,
  );
}
/** KVM: vmx_disable_virtualization_cpu. */
export function vmxDisableVirtualizationCpu(kvm: Kvm): void {
  vmxModule(kvm)?.silicon.vmxoff();
}
