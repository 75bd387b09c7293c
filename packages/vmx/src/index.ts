/** @module @tskvm/vmx: VT-x silicon and KVM's VMX driver. */
import { BACKEND_API_VERSION, type Backend, defineBackend, Errno, KvmError } from '@tskvm/core';
import { XEON } from '@tskvm/emulator';
import { VmxSilicon } from './hardware/instructions.ts';
import { vmxX86Ops } from './ops.ts';
import { DEFAULT_PARAMS, vmxHardwareSetup } from './setup.ts';
import type { VmxParams } from './vcpu-vmx.ts';

export * from './exits.ts';
export * as vmxHardware from './hardware/index.ts';
export { exitReasonName } from './run.ts';
export { toVmx, type VmxParams, vmcsOf } from './vcpu-vmx.ts';

/** A parameter that the module does not have, or of a wrong type: -EINVAL as insmod says it. */
function checkParams(given: VmxParams): void {
  const known: Record<string, unknown> = { ...DEFAULT_PARAMS };
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined) continue;
    if (!(name in known)) {
      throw new KvmError(
        'VMX_PARAM',
        Errno.EINVAL,
        `vmx has no parameter '${name}'; it has ${Object.keys(known).join(', ')}`,
      );
    }
    if (typeof value !== typeof known[name]) {
      throw new KvmError(
        'VMX_PARAM',
        Errno.EINVAL,
        `vmx: '${name}' is a ${typeof known[name]}, not ${JSON.stringify(value)}`,
      );
    }
  }
}

/**
 * The VMX backend: `await Kvm.create(vmx({ unrestrictedGuest: false }))`. Throws KvmError VMX_PARAM (EINVAL).
 * @param params parameters of kvm_intel, KVM's names in camel case; what the processor lacks is switched off as KVM does
 */
export function vmx(params: VmxParams = {}): Backend {
  checkParams(params);
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
