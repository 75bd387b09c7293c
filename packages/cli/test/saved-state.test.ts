/**
 * Saved states that are damaged, cut short or from elsewhere: every leaf changed, every key taken out. Each is refused by name or accepted;
 * an accepted one runs within its budget and is saved again. Nothing else is ever thrown.
 */
import { type Kvm, KvmError, type Vm } from '@tskvm/core';
import { makeGuest } from '@tskvm/core/testing';
import { NotImplementedError } from '@tskvm/emulator';
import { describe, expect, test } from 'vitest';
import { memoryImage } from '../src/machine/devices/ide.ts';
import { UsageError } from '../src/machine/errors.ts';
import { createMachine, type Machine } from '../src/machine/machine.ts';
import { CONFIGURATION_NAMES, CONFIGURATIONS } from './harness.ts';

const MIB = 2 ** 20;
/** Steps from the state to one of its values. */
type Path = readonly (string | number)[];

/** Every leaf and every container; of long arrays only the ends. */
function pathsOf(value: unknown, path: Path = []): Path[] {
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return [path];
  const keys = Array.isArray(value) ? ends(value.length) : Object.keys(value);
  const below = keys.flatMap((key) => pathsOf((value as Record<string | number, unknown>)[key], [...path, key]));
  return path.length > 0 ? [path, ...below] : below;
}
const ends = (length: number): number[] =>
  length <= 3 ? Array.from({ length }, (_, i) => i) : [0, length >> 1, length - 1];

const LACKS = Symbol('the key is taken out');
/** What a leaf becomes. The last six have its own type, so that they get past a check of types. */
function mutations(value: unknown): unknown[] {
  const foreign = [LACKS, undefined, null, Number.NaN, -1, 1.5, 'x', {}, [], true, 1n << 80n, -1n];
  if (typeof value === 'number') return [...foreign, 0, 1, 255, 65535, 2 ** 31, 2 ** 32 - 1, 2 ** 52, Infinity];
  if (typeof value === 'bigint') return [...foreign, 0n, 1n, 0xffffffffn, 1n << 63n, (1n << 64n) - 1n];
  if (typeof value === 'boolean') return [...foreign, !value];
  if (value instanceof Uint8Array) return [...foreign, value.subarray(1), new Uint8Array(value.length).fill(0xff)];
  if (value instanceof Uint32Array) return [...foreign, value.subarray(1), new Uint32Array(value.length).fill(-1)];
  return foreign;
}
/** A copy along the path only: the rest is shared, nobody may write to it. */
function changed(state: unknown, path: Path, to: unknown): unknown {
  if (path.length === 0) return to;
  const [key, ...rest] = path;
  const copy = (Array.isArray(state) ? [...state] : { ...(state as object) }) as Record<string | number, unknown>;
  if (rest.length === 0 && to === LACKS) {
    if (Array.isArray(copy)) copy.splice(key as number, 1);
    else delete copy[key];
  } else copy[key] = changed(copy[key], rest, to);
  return copy;
}

/** Refused by name, or done. */
function tolerated(what: string, run: () => void): boolean {
  try {
    run();
    return true;
  } catch (error) {
    const named = error instanceof KvmError || error instanceof UsageError || error instanceof NotImplementedError;
    if (!named || (error instanceof KvmError && error.code === 'OP_THREW')) {
      throw new Error(`${what}: ${String((error as Error).stack)}`);
    }
    return false;
  }
}
/** One mutation in `share` of a state's, each time others of a leaf. */
function* sample(state: unknown, share: number, start: number): Generator<[string, unknown]> {
  let n = start;
  for (const path of pathsOf(state)) {
    const value = path.reduce<unknown>((at, key) => (at as Record<string | number, unknown>)[key], state);
    for (const to of mutations(value)) {
      if (n++ % share === 0) yield [`${path.join('.')} = ${String(to)}`, changed(state, path, to)];
    }
  }
}

/** Equal, with memory compared as bytes. */
function expectSame(a: ReturnType<Machine['save']>, b: ReturnType<Machine['save']>): void {
  a.vm.memory.forEach(({ bytes }, i) => {
    expect(Buffer.compare(bytes, b.vm.memory[i].bytes)).toBe(0);
  });
  const rest = (state: typeof a) => ({ ...state, vm: { ...state.vm, memory: state.vm.memory.length } });
  expect(rest(a)).toEqual(rest(b));
}

/** One mutation in so many; TSKVM_STATE_SHARE=1 tries all. */
const share = Number(process.env.TSKVM_STATE_SHARE ?? 41);

describe.each(CONFIGURATION_NAMES)('%s', (name) => {
  /** in al, 1F7h … insw from the disk, CMOS, PIT, a store to MMIO; then again. */
  const code = Uint8Array.from([
    ...[0xba, 0xf2, 0x01, 0xb0, 0x02, 0xee, 0xba, 0xf7, 0x01, 0xb0, 0x20, 0xee, 0xba, 0xf0, 0x01],
    ...[0xb9, 0x00, 0x01, 0xbf, 0x00, 0x60, 0xfc, 0xf3, 0x6d, 0xb0, 0x0a, 0xe6, 0x70, 0xe4, 0x71],
    ...[0xb0, 0x34, 0xe6, 0x43, 0xe6, 0x40, 0xe6, 0x40, 0xeb, 0xd0],
  ]);
  const machine = (): Promise<Machine> =>
    createMachine({
      backend: CONFIGURATIONS[name](),
      memory: MIB,
      cpus: 2,
      image: { segments: [{ at: 0x7c00, bytes: code }], start: { kind: 'real', cs: 0, ip: 0x7c00, dl: 0 } },
      disks: [memoryImage(new Uint8Array(65536).fill(0x5a))],
      cdrom: memoryImage(new Uint8Array(65536)),
    });

  test('a machine in the middle of a transfer', async () => {
    const first = await machine();
    first.runSlice(100);
    const state = first.save();
    const target = await machine();
    for (const [what, broken] of sample(state, share, name.length)) {
      if (!tolerated(what, () => target.load(broken as typeof state))) continue;
      tolerated(`${what}, run`, () => void target.runSlice(40));
      tolerated(`${what}, save`, () => void target.save());
    }
    target.load(state);
    target.runSlice(300);
    first.runSlice(300);
    expectSame(target.save(), first.save());
  });

  const pending = [0xe4, 0x81, 0x00, 0x05, 0, 0x50, 0, 0, 0x8b, 0x1d, 0, 0, 0xd0, 0xfe];
  test.each([
    ['an IN waits for its answer', 1],
    ['an MMIO read waits for its answer', 2],
  ])('a VM in which %s', async (_what, runs) => {
    const make = () => makeGuest(CONFIGURATIONS[name](), { mode: 'pae', code: pending, irqchip: true });
    const { vm, vcpu } = await make();
    for (let i = 0; i < runs; i++) vcpu.run({ budget: 1000 });
    const state = vm.save();
    const twin: { vm: Vm; kvm: Kvm } = await make();
    for (const [what, broken] of sample(state, share, runs)) {
      if (!tolerated(what, () => twin.vm.load(broken as typeof state))) continue;
      for (let i = 0; i < 3; i++) tolerated(`${what}, run`, () => void twin.vm.run({ budget: 100 }));
      tolerated(`${what}, save`, () => void twin.vm.save());
    }
  });
});

test('a state of another machine says what differs', async () => {
  const options = {
    backend: CONFIGURATIONS.svm(),
    image: { segments: [], start: { kind: 'real', cs: 0, ip: 0, dl: 0 } },
  } as const;
  const make = (over: object) => createMachine({ ...options, image: { ...options.image, segments: [] }, ...over });
  const one = await make({ memory: MIB });
  const larger = await make({ memory: 2 * MIB });
  const two = await make({ memory: MIB, cpus: 2 });
  const withDisk = await make({ memory: MIB, disks: [memoryImage(new Uint8Array(512))] });
  const before = one.save();
  expect(() => one.load(larger.save())).toThrow(/state\.memory is 2097152: give 1048576/);
  expect(() => one.load(two.save())).toThrow(/2 vCPUs, this one 1/);
  expect(() => withDisk.load(one.save())).toThrow(/drive/);
  const slower = await make({ memory: MIB, nsPerTick: 3 });
  expect(() => one.load(slower.save())).toThrow(/state\.nsPerTick is 3: give 10/);
  const plain = await make({ memory: MIB, cpu: 'qemu64' });
  expect(() => one.load(plain.save())).toThrow(/state\.cpu is "qemu64": give "host"/);
  expect(() => one.load({ ...one.save(), version: 2 as never })).toThrow(/state\.version is 2: give 1/);
  expect(() => one.load(null as never)).toThrow(UsageError);
  expectSame(one.save(), before);
});

test('a state from another processor is refused by name, whoever loads it', async () => {
  const make = (backend: (typeof CONFIGURATION_NAMES)[number], cpu?: string) =>
    createMachine({
      backend: CONFIGURATIONS[backend](),
      image: { segments: [], start: { kind: 'real', cs: 0, ip: 0, dl: 0 } },
      memory: MIB,
      cpu,
    });
  const svm = await make('svm');
  const vmx = await make('vmx');
  expect(() => vmx.load(svm.save())).toThrow(/ran on the processor epyc \(AMD\), and this one is xeon \(Intel\)/);
  expect(() => svm.vm.load(vmx.vm.save())).toThrow(/ran on the processor xeon \(Intel\), and this one is epyc \(AMD\)/);
  expect(() => svm.vm.vcpus[0].load(vmx.vm.vcpus[0].save())).toThrow(KvmError);
  const less = await make('svm', 'host,-avx2,-vaes,-vpclmulqdq');
  expect(() => svm.vm.load(less.vm.save())).toThrow(/ran on a processor epyc \(AMD\) with other features/);
  const same = await make('svm');
  same.load(svm.save());
});
