/** Several vCPUs on one processor: round robin with a fixed quantum, the same every time. No KVM counterpart: Linux's scheduler. */
import { KvmError } from './diagnostics.ts';
import { Errno, type KvmExit } from './types.ts';
import { checkRunOptions, type RunOptions, type Vcpu } from './vcpu.ts';
import type { Vm } from './vm.ts';

/** See {@link Vm.run}. Throws KvmError RUN_BUDGET, RUN_NO_VCPU (EINVAL). */
export function runVm(vm: Vm, options: RunOptions): { vcpu: Vcpu; exit: KvmExit } {
  const { kvm, vcpus } = vm;
  checkRunOptions(options);
  if (vcpus.length === 0) throw new KvmError('RUN_NO_VCPU', Errno.EINVAL, 'the VM has no vCPU; call createVcpu first');
  const end = kvm.now() + (options.budget ?? Number.POSITIVE_INFINITY);
  let idle = 0;
  for (;;) {
    const vcpu = vcpus[vm.nextVcpu % vcpus.length];
    const left = Math.max(0, end - kvm.now());
    const exit = vcpu.run({ budget: vcpus.length > 1 ? Math.min(vm.quantum, left) : left });
    if (exit.reason === 'idle') idle++;
    else idle = 0;
    if (exit.reason !== 'intr' && exit.reason !== 'idle') return { vcpu, exit };
    vm.nextVcpu = (vm.nextVcpu + 1) % vcpus.length;
    if (exit.reason === 'intr' && kvm.now() >= end) return { vcpu, exit };
    if (vcpu.runIo.immediateExit) return { vcpu, exit };
    // A processor without a budget comes back only when it is stuck.
    if (exit.reason === 'intr' && vcpus.length === 1) return { vcpu, exit };
    if (idle >= vcpus.length) return { vcpu, exit: { reason: 'idle', idleUntil: vm.nextTimer() } };
  }
}
