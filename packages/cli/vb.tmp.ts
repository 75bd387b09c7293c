import { getSupportedCpuid, Kvm, setCpuid2 } from '@tskvm/core';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';

for (const [name, backend] of [['vmx', vmx()]] as const) {
  for (const engine of ['interpret']) {
    const kvm = await Kvm.create(backend, { engine } as any);
    const vm = kvm.createVm();
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0x100000 });
    const vcpu = vm.createVcpu(0);
    setCpuid2(vcpu, getSupportedCpuid(kvm));
    // mov eax,0 (66 b8); cpuid; jmp
    vm.writeGuest(0x7c00, Uint8Array.of(0x66, 0x31, 0xc0, 0x0f, 0xa2, 0xeb, 0xf9));
    const cs = kvm.calls.getSegment(vcpu, 1);
    kvm.calls.setSegment(vcpu, { ...cs, selector: 0, base: 0n }, 1);
    vcpu.arch.regs[16] = 0x7c00n;
    vcpu.arch.regsDirty.add('rip');
    vcpu.arch.regsAvail.add('rip');
    for (let r = 0; r < 4; r++) {
      const n = 3000000;
      const c0 = process.cpuUsage().user;
      const t0 = kvm.now();
      const e = vcpu.run({ budget: n });
      const ticks = kvm.now() - t0;
      console.log(
        name,
        engine,
        e.reason,
        (((process.cpuUsage().user - c0) * 1e3) / (ticks / 3)).toFixed(0),
        'ns per cpuid+xor+jmp',
      );
    }
  }
}
