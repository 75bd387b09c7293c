/** @module @tskvm/svm: AMD-V, the silicon and KVM's SVM driver. */
import { type Backend, checkModuleParams, defineBackend } from '@tskvm/core';
import { EPYC } from '@tskvm/emulator';
import { type OptionalFeature, SvmHardware } from './hardware/index.ts';
import { SVM_X86_OPS } from './ops.ts';
import { svmHardwareSetup } from './setup.ts';
import type { SvmParams } from './vcpu-svm.ts';

export { svmExitName } from './exit-names.ts';
export { svmExitHandlers } from './exits.ts';
export * as svmHardware from './hardware/index.ts';
export { SvmExit, SvmHardware, V, VMCB_FIELDS, Vmcb } from './hardware/index.ts';
export { SVM_X86_OPS } from './ops.ts';
export { type SvmParams, svmModule, toSvm } from './vcpu-svm.ts';

/** KVM's module parameters, and features of the processor that a machine may be built without. */
export interface SvmOptions extends Partial<SvmParams> {
  /** Hardware: the decode assists of EXITINFO and the instruction bytes (default: as the CPU model has them). */
  decodeAssists?: boolean;
  /** Hardware: flushing by ASID (default: as the CPU model). */
  flushByAsid?: boolean;
  /** Hardware: clean bits (default: as the CPU model). */
  vmcbClean?: boolean;
}

const DEFAULTS: SvmParams = {
  npt: true,
  nrips: true,
  nested: false,
  vgif: false,
  interceptSmi: true,
  sevEs: false,
  pauseFilterCount: 3000,
};
const HARDWARE_OPTIONS = ['decodeAssists', 'flushByAsid', 'vmcbClean'] as const satisfies readonly OptionalFeature[];

const KNOWN = { ...DEFAULTS, decodeAssists: true, flushByAsid: true, vmcbClean: true };

/**
 * The SVM backend. Throws KvmError UNKNOWN_PARAM or BAD_PARAM (EINVAL) for a parameter that it does not have or of a wrong type.
 * @param options KVM's module parameters of kvm_amd in camel case, and hardware features to leave out
 */
export function svm(options: SvmOptions = {}): Backend {
  checkModuleParams('svm', options, KNOWN);
  const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
  const params: SvmParams = { ...DEFAULTS };
  for (const name of Object.keys(DEFAULTS)) if (name in given) Object.assign(params, { [name]: given[name] });
  const without = new Set<OptionalFeature>(HARDWARE_OPTIONS.filter((feature) => given[feature] === false));
  return defineBackend({
    name: 'svm',
    apiVersion: 1,
    ops: SVM_X86_OPS,
    hardware: (processor, memory, model) => new SvmHardware(processor, memory, model, without),
    model: EPYC,
    hardwareSetup: (kvm) => svmHardwareSetup(kvm, params),
    params: { ...KNOWN, ...given },
  });
}
