import { Kvm, KvmError } from '@tskvm/core';
import { svm } from '@tskvm/svm';

const kvm = await Kvm.create(svm()); // one kernel: its vendor, its static calls, its processor
const vm = kvm.createVm();
vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0x10000 });
const vcpu = vm.createVcpu(0);
vcpu.setCpuid(kvm.getSupportedCpuid());

// mov al, 42; out 0x10, al; hlt
vm.writeGuest(0x1000, Uint8Array.of(0xb0, 42, 0xe6, 0x10, 0xf4));
const sregs = vcpu.getSregs();
vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, selector: 0, base: 0n } });
vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x1000n });

const exit = vcpu.run(); // KVM_RUN: comes back with KVM's exit reasons in lower case
if (exit.reason === 'io') console.log(exit.direction, exit.port, exit.data[0]);
// prints: out 16 42
console.log(vcpu.run().reason);
// prints: hlt

try {
  vcpu.setSregs({ ...vcpu.getSregs(), efer: 0x400n }); // LMA without paging
} catch (error) {
  if (error instanceof KvmError) console.log(error.errno === 22, error.rule !== undefined);
  // prints: true true
}
