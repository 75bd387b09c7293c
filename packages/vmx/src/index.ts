/** @module @tskvm/vmx: VT-x silicon and KVM's VMX driver. */
import { BACKEND_API_VERSION, type Backend, checkModuleParams, defineBackend } from '@tskvm/core';
import { XEON } from '@tskvm/emulator';
import { VmxSilicon } from './hardware/instructions.ts';
import { vmxX86Ops } from './ops.ts';
import { DEFAULT_PARAMS, vmxHardwareSetup } from './setup.ts';
import type { VmxParams } from './vcpu-vmx.ts';

export * from './exits.ts';
export * as vmxHardware from './hardware/index.ts';
export { exitReasonName } from './run.ts';
export { toVmx, type VmxParams, vmcsOf } from './vcpu-vmx.ts';

/**
 * The VMX backend: `await Kvm.create(vmx({ unrestrictedGuest: false }))`. Throws KvmError UNKNOWN_PARAM or BAD_PARAM (EINVAL).
 * @param params parameters of kvm_intel, KVM's names in camel case; what the processor lacks is switched off as KVM does
 */
export function vmx(params: VmxParams = {}): Backend {
  checkModuleParams('vmx', params, DEFAULT_PARAMS);
  const given = Object.fromEntries(Object.entries(params).filter(([, value]) => value !== undefined)) as VmxParams;
  return defineBackend({
    name: 'vmx',
    apiVersion: BACKEND_API_VERSION,
    ops: vmxX86Ops,
    hardware: (processor, memory, model) => new VmxSilicon(processor, memory, model),
    model: XEON,
    hardwareSetup: (kvm) => vmxHardwareSetup(kvm, given),
    params: { ...DEFAULT_PARAMS, ...given },
  });
}
