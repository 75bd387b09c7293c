/** @module @tskvm/vmx: VT-x silicon and KVM's VMX driver. */
import { BACKEND_API_VERSION, type Backend, defineBackend } from '@tskvm/core';
import { VmxSilicon } from './hardware/instructions.ts';
import { vmxX86Ops } from './ops.ts';
import { DEFAULT_PARAMS, vmxHardwareSetup } from './setup.ts';
import type { VmxParams } from './vcpu-vmx.ts';

export * from './exits.ts';
export * as vmxHardware from './hardware/index.ts';
export { exitReasonName } from './run.ts';
export { toVmx, type VmxParams, vmcsOf } from './vcpu-vmx.ts';

/**
 * The VMX backend: `await Kvm.create(vmx({ unrestrictedGuest: false }))`.
 * @param params module parameters, KVM's names in camel case; what the processor lacks is switched off as KVM does
 */
export function vmx(params: VmxParams = {}): Backend {
  return defineBackend({
    name: 'vmx',
    apiVersion: BACKEND_API_VERSION,
    ops: vmxX86Ops,
    hardware: (processor, memory, model) => new VmxSilicon(processor, memory, model),
    hardwareSetup: (kvm) => vmxHardwareSetup(kvm, params),
    params: { ...DEFAULT_PARAMS, ...params },
  });
}
