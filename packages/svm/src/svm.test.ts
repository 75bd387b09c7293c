import { Kvm, type KvmExit, type Vcpu, type Vm } from '@tskvm/core';
import { Seg } from '@tskvm/emulator';
import { describe, expect, it } from 'vitest';
import { type SvmOptions, svm } from './index.ts';

const RAM = 1 << 20;
const HLT = 0xf4;
const CODE = 0x1000;
const MOV_EAX = (value: number): number[] => [0x66, 0xb8, value & 255, (value >> 8) & 255, (value >> 16) & 255, value >>> 24];

interface Machine {
  kvm: Kvm;
  vm: Vm;
  vcpu: Vcpu;
  run(): KvmExit;
}
/** A VM with 1 MiB at 0 whose vCPU starts in real mode at 0000:1000. */
async function machine(code: readonly number[], options: SvmOptions = {}): Promise<Machine> {
  const kvm = await Kvm.create(svm(options), { memory: 16 << 20, shuffleFrames: 7 });
  const vm = kvm.createVm();
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: RAM });
  vm.writeGuest(CODE, Uint8Array.from(code));
  const vcpu = vm.createVcpu(0);
  const cs = kvm.calls.getSegment(vcpu, Seg.CS);
  kvm.calls.setSegment(vcpu, { ...cs, selector: 0, base: 0n }, Seg.CS);
  vcpu.arch.regs[16] = BigInt(CODE);
  vcpu.arch.regs[4] = 0x8000n;
  return { kvm, vm, vcpu, run: () => vcpu.run({ budget: 100_000 }) };
}

describe('svm', () => {
  it('runs `mov eax, 11h; mov cr0, eax; hlt` into protected mode', async () => {
    const { vcpu, run } = await machine([...MOV_EAX(0x11), 0x0f, 0x22, 0xc0, HLT]);
    expect(run()).toMatchObject({ reason: 'hlt' });
    expect(vcpu.arch.cr0).toBe(0x11n);
  });
});
