/**
 * A machine that is saved and loaded into a fresh kernel before each KVM_RUN gives the same exits at the same ticks, and ends with the
 * same registers, as the one that goes on: with steps, shadows and NMIs just where the move comes.
 */
import type { KvmExit } from '@tskvm/core';
import { bytes, type Guest, type GuestOptions, MEMORY, makeGuest, Place } from '@tskvm/core/testing';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { describe, expect, test } from 'vitest';
import { CONFIGURATIONS } from './harness.ts';

const BACKENDS = {
  ...CONFIGURATIONS,
  'svm without NPT': () => svm({ npt: false }),
  'vmx without EPT': () => vmx({ ept: false }),
};
const BUDGETS = [1, 3, 2, 7, 1, 1, 2, 5];
const RUNS = 36;
const TF = 0x100;
const RF = 0x10000;
const IRET = 0x9000;
const FAULTS = 3000;

/** pushf or push: an image of RFLAGS with `flag` set goes through the stack. */
const setFlags = (mode: 'real' | 'long', flags: number): number[] =>
  mode === 'real' ? [0x66, 0x68, ...bytes(BigInt(flags), 4), 0x66, 0x9d] : [0x68, ...bytes(BigInt(flags), 4), 0x9d];
/** Port accesses under TF and RF, behind STI, MOV SS and POP SS; then round again. */
function program(mode: 'real' | 'long'): number[] {
  const code = [
    ...[0x8c, 0xd3], // mov bx, ss
    ...[...setFlags(mode, TF | 2), 0xe4, 0x42, 0xe6, 0x43, 0xfb, 0xe4, 0x44], // in, out and sti; in, stepped
    ...[...setFlags(mode, RF | 2), 0xe4, 0x45, 0x90],
    ...[0xfb, 0xe4, 0x46, 0xfa, 0x8e, 0xd3, 0xe6, 0x47, 0xfb, 0x8e, 0xd3, 0x90],
    ...[0x53, 0x0f, 0xa2, 0x5b, 0xfa],
  ];
  return [...code, 0xeb, -(code.length + 2) & 0xff];
}
function prepare(mode: 'real' | 'long'): GuestOptions['prepare'] {
  return (vm) => {
    vm.writeGuest(IRET, Uint8Array.from(mode === 'long' ? [0x48, 0xcf] : [0xcf]));
    for (const vector of [1, 2]) {
      if (mode === 'real') vm.writeGuestValue(4 * vector, BigInt(IRET), 4);
      else vm.writeGuestValue(Place.idt64 + 16 * vector, BigInt(IRET) | (0x18n << 16n) | (0x8en << 40n), 8);
    }
  };
}

/** User space's answer to a read: a sequence of its own. */
function answer(exit: KvmExit, run: number): void {
  if (exit.reason === 'io' && exit.direction === 'in') exit.data.fill((run * 37) & 0xff);
}
async function moved(from: Guest, fresh: () => Promise<Guest>): Promise<Guest> {
  const { kvm, vm } = structuredClone({ kvm: from.kvm.save(), vm: from.vm.save() });
  const to = await fresh();
  to.kvm.load(kvm);
  to.vm.load(vm);
  return { ...to, vcpu: to.vm.vcpus[0] };
}
/** One line a run, and the state in the end. */
async function play(fresh: () => Promise<Guest>, isMoved: (run: number) => boolean): Promise<string[]> {
  let guest = await fresh();
  const lines: string[] = [];
  for (let run = 0; run < RUNS; run++) {
    if (isMoved(run)) guest = await moved(guest, fresh);
    if (run % 9 === 5) guest.vcpu.nmi();
    const exit = guest.vcpu.run({ budget: BUDGETS[run % BUDGETS.length] });
    const { rip, rflags, rax } = guest.vcpu.getRegs();
    lines.push(`${run}: ${text(exit)} at tick ${guest.kvm.now()}, ${text([rip, rflags, rax])}`);
    answer(exit, run);
  }
  const memory = guest.vm.readGuest(0, MEMORY).reduce((sum, byte) => (Math.imul(sum, 31) + byte) | 0, 7);
  return [...lines, text([guest.vcpu.getRegs(), guest.vcpu.getSregs(), memory])];
}
const text = (value: unknown): string =>
  JSON.stringify(value, (_key, v: unknown) =>
    typeof v === 'bigint' ? `0x${v.toString(16)}` : v instanceof Uint8Array ? [...v] : v,
  );

describe.each(Object.keys(BACKENDS) as (keyof typeof BACKENDS)[])('%s', (name) => {
  test.each(['real', 'long'] as const)('%s mode', async (mode) => {
    const fresh = () =>
      makeGuest(BACKENDS[name](), {
        mode,
        code: program(mode),
        irqchip: true,
        prepare: prepare(mode),
        kvm: { engine: 'evaluate', memory: 2 ** 22 },
      });
    const wentOn = await play(fresh, () => false);
    expect(wentOn.filter((line) => line.includes('"port":')).length).toBeGreaterThan(10);
    for (const isMoved of [() => true, (run: number) => run % 7 === 3]) {
      const other = await play(fresh, isMoved);
      const at = wentOn.findIndex((line, i) => line !== other[i]);
      expect(other[at]).toBe(wentOn[at]);
    }
  });
});

/**
 * div al by 0, and the handler of every exception and of the NMI is that instruction: nothing ever retires, and each delivery but the first
 * takes a tick. Without unrestricted guest KVM delivers all of it by itself, as virtual-8086 mode has no stack of 4 GiB.
 */
describe.each(Object.keys(BACKENDS) as (keyof typeof BACKENDS)[])('%s: a guest of faults alone', (name) => {
  test.each([false, true])('ends with its budget, whatever came before, unreal: %s', async (unreal) => {
    for (const budget of [FAULTS, 1, 7, 100]) {
      const { vcpu, kvm } = await makeGuest(BACKENDS[name](), {
        mode: 'real',
        code: [0xf6, 0xf0],
        patch: ({ ss }) => Object.assign(ss, unreal ? { limit: 0xffff_ffff, g: 1 } : {}),
        prepare: (vm) => {
          for (let vector = 0; vector < 32; vector++) vm.writeGuestValue(4 * vector, BigInt(Place.code), 4);
        },
        kvm: { engine: 'evaluate', memory: 2 ** 22 },
      });
      vcpu.nmi();
      while (kvm.now() < FAULTS) vcpu.run({ budget: Math.min(budget, FAULTS - kvm.now()) });
      const { rip, rsp } = vcpu.getRegs();
      expect([kvm.now(), rip, rsp]).toEqual([FAULTS, BigInt(Place.code), BigInt(Place.stack - 6 * (FAULTS + 1))]);
    }
  });
});
