/** Exits that are handled right behind the entry: nobody can tell from the outside. */
import { type Backend, defineBackend, type KvmX86Ops } from '@tskvm/core';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { bootSector, createMachine } from 'tskvm';
import { describe, expect, test } from 'vitest';

/** mov edi, 300; again: xor eax, eax; cpuid; mov ecx, 1bh; rdmsr; dec edi; jnz again; mov al, 0; out 0f4h, al; hlt */
const CODE = [
  ...[0x66, 0xbf, 0x2c, 0x01, 0x00, 0x00, 0x66, 0x31, 0xc0, 0x0f, 0xa2, 0x66, 0xb9, 0x1b, 0x00, 0x00, 0x00],
  ...[0x0f, 0x32, 0x66, 0x4f, 0x75, 0xef, 0xb0, 0x00, 0xe6, 0xf4, 0xf4],
];
const LOOPS = 300;
function image(): ReturnType<typeof bootSector> {
  const sector = new Uint8Array(512);
  sector.set(CODE);
  sector.set([0x55, 0xaa], 510);
  return bootSector(sector, 'fastpath');
}

async function run(backend: Backend, slice: number, traced: boolean): Promise<unknown> {
  const machine = await createMachine({ backend, image: image(), memory: 2 ** 21 });
  let exits = 0;
  if (traced) machine.kvm.on('kvm_exit', () => exits++);
  let stop = machine.runSlice(slice);
  while (stop === null || stop.reason === 'budget') stop = machine.runSlice(slice);
  if (traced) expect(exits).toBeGreaterThanOrEqual(2 * LOOPS);
  return { stop, tick: machine.kvm.now(), regs: machine.vm.vcpus[0].getRegs() };
}

describe.each([
  ['svm', svm],
  ['vmx', vmx],
] as const)('%s', (_name, vendor) => {
  test('a traced run, a run in small slices and a plain one end alike', async () => {
    const plain = await run(vendor(), 1_000_000, false);
    expect(plain).toMatchObject({ regs: { rdi: 0n } });
    expect(await run(vendor(), 1_000_000, true)).toEqual(plain);
    expect(await run(vendor(), 7, false)).toEqual(plain);
  });
  test('a wrapper of handleExit gets every exit to see', async () => {
    let seen = 0;
    const ops = (base: KvmX86Ops): Partial<KvmX86Ops> => ({
      handleExit: (vcpu, fastpath) => {
        seen++;
        return base.handleExit(vcpu, fastpath);
      },
    });
    await run(defineBackend({ name: 'wrapped', apiVersion: 1, extends: vendor(), ops }), 1_000_000, false);
    expect(seen).toBeGreaterThanOrEqual(2 * LOOPS);
  });
});
