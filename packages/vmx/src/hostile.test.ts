/** Guests of random bytes: whatever they do ends in an exit, never in an exception of ours or an entry that KVM's own state broke. */
import { Kvm, type Vcpu } from '@tskvm/core';
import { describe, expect, it } from 'vitest';
import { type VmxParams, vmx } from './index.ts';

/** mulberry32. */
function random(seed: number): () => number {
  let a = seed;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  };
}

/** Prologues that put the processor into a mode before the random bytes begin. */
const STARTS: Record<string, readonly number[]> = {
  real: [],
  // lgdt [0600h]; mov eax,cr0; or al,1; mov cr0,eax; jmp 8:1020h
  protected: [0x0f, 0x01, 0x16, 0x00, 0x06, 0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0, 0xea, 0x20, 0x10, 8, 0],
};

async function guest(params: VmxParams, start: string, seed: number): Promise<Vcpu> {
  const next = random(seed);
  const kvm = await Kvm.create(vmx(params), { memory: 16 << 20 });
  const vm = kvm.createVm();
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0x20000 });
  vm.writeGuest(
    0,
    Uint8Array.from({ length: 0x20000 }, () => next() & 0xff),
  );
  vm.writeGuest(0x600, Uint8Array.of(0xff, 0, 0, 7, 0, 0));
  vm.writeGuest(0x708, Uint8Array.of(0xff, 0xff, 0, 0, 0, 0x9b, 0xcf, 0, 0xff, 0xff, 0, 0, 0, 0x93, 0xcf, 0));
  vm.writeGuest(0x1000, Uint8Array.from(STARTS[start]));
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid(kvm.getSupportedCpuid());
  const sregs = vcpu.getSregs();
  vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, selector: 0, base: 0n } });
  vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x1000n, rsp: 0x8000n, rflags: BigInt(2 | (next() & 0x300)) });
  return vcpu;
}

/** Runs until the guest is done for; answers reads with ones. */
function play(vcpu: Vcpu): string {
  for (let i = 0; i < 200; i++) {
    const exit = vcpu.run({ budget: 2000 });
    if (exit.reason === 'io' || exit.reason === 'mmio') exit.data.fill(0xff);
    else if (exit.reason !== 'hlt' || i > 20) return exit.reason;
  }
  return 'budget';
}

const CONFIGURATIONS: readonly VmxParams[] = [
  {},
  { unrestrictedGuest: false },
  { unrestrictedGuest: false, emulateInvalidGuestState: false },
  { ept: false },
];
describe.each(CONFIGURATIONS)('random guests under vmx %j', (params) => {
  it.each(Object.keys(STARTS))('in %s mode', async (start) => {
    const outcomes = new Map<string, number>();
    for (let seed = 1; seed <= 40; seed++) {
      const outcome = play(await guest(params, start, seed * 7919));
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    }
    expect(outcomes.has('fail_entry'), [...outcomes].join()).toBe(false);
    expect([...outcomes.values()].reduce((a, b) => a + b)).toBe(40);
  });
});
