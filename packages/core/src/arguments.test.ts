/** What callers hand in with a wrong type, width or range is refused by a KvmError with code, errno and rule; nothing has changed then. */
import { beforeEach, describe, expect, test } from 'vitest';
import { KvmError } from './diagnostics.ts';
import { Kvm } from './kvm.ts';
import { bytes, integer, limit, list, oneOf, optional, type Shape, struct, tuple, u64, uint, union } from './shape.ts';
import { idleBackend } from './testing/idle-backend.ts';
import type { KvmSegment } from './types.ts';
import type { Vcpu } from './vcpu.ts';
import type { Vm } from './vm.ts';

/** What JavaScript lets a caller pass for anything. */
const JUNK: readonly unknown[] = [
  undefined,
  null,
  Number.NaN,
  -1,
  1.5,
  1e300,
  Number.POSITIVE_INFINITY,
  2 ** 53,
  '12',
  '',
  true,
  10n,
  -1n,
  1n << 64n,
  {},
  [],
  [1],
  () => 1,
  Symbol('x'),
  new Uint8Array(3),
  new Date(0),
];
/** The call is accepted, or refused by a KvmError that says what to do. */
function refusedOrAccepted(call: () => unknown): void {
  try {
    call();
  } catch (error) {
    expect(error).toBeInstanceOf(KvmError);
    expect(error).toMatchObject({ code: expect.stringMatching(/^[A-Z][A-Z0-9_]+$/), errno: expect.any(Number) });
    expect((error as KvmError).message).not.toBe('');
  }
}
const codeOf = (call: () => unknown): string | undefined => {
  try {
    call();
    return undefined;
  } catch (error) {
    return (error as KvmError).code;
  }
};
const any = (value: unknown): never => value as never;

/** A vendor that accepts everything and keeps nothing. */
const SEGMENT: KvmSegment = {
  base: 0n,
  limit: 0xffff,
  selector: 0,
  type: 3,
  present: 1,
  dpl: 0,
  db: 0,
  s: 1,
  l: 0,
  g: 0,
  avl: 0,
  unusable: 0,
};
const backend = idleBackend({
  getSegment: () => ({ ...SEGMENT }),
  getGdt: () => ({ base: 0n, limit: 0xffff }),
  getIdt: () => ({ base: 0n, limit: 0xffff }),
  getRflags: () => 2n,
  getSegmentBase: () => 0n,
  getNmiMask: () => false,
  isValidCr0: () => true,
  isValidCr4: () => true,
});

let kvm: Kvm;
let vm: Vm;
let vcpu: Vcpu;
beforeEach(async () => {
  kvm = await Kvm.create(backend, { memory: 4 * 1024 * 1024 });
  vm = kvm.createVm();
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 65536 });
  vm.createIrqchip();
  vcpu = vm.createVcpu(0);
  vcpu.setCpuid(kvm.getSupportedCpuid());
});

describe('anything for anything', () => {
  test('methods of a vCPU', () => {
    for (const v of JUNK) {
      for (const call of [
        () => vcpu.run(any(v ?? { budget: 0 })),
        () => vcpu.run({ budget: any(v === undefined || v === Number.POSITIVE_INFINITY ? 0 : v) }),
        () => vcpu.setRegs(any(v)),
        () => vcpu.setSregs(any(v)),
        () => vcpu.setSregs2(any(v)),
        () => vcpu.setVcpuEvents(any(v)),
        () => vcpu.setDebugregs(any(v)),
        () => vcpu.setMpState(any(v)),
        () => vcpu.getMsr(any(v)),
        () => vcpu.setMsr(any(v), 0n),
        () => vcpu.setMsr(0x10, any(v)),
        () => vcpu.setXcrs(any(v)),
        () => vcpu.setXcrs({ xcr0: any(v) }),
        () => vcpu.setFpu(any(v)),
        () => vcpu.setXsave(any(v)),
        () => vcpu.setCpuid(any(v)),
        () => vcpu.setCpuid(any([v])),
        () => vcpu.setGuestDebug(any(v)),
        () => vcpu.setGuestDebug(0, any(v)),
        () => vcpu.setGuestDebug(0x20001, any({ db: v, dr7: v })),
        () => vcpu.translate(any(v)),
        () => vcpu.interrupt(any(v)),
        () => vcpu.setLapic(any(v)),
        () => vcpu.load(any(v)),
      ])
        refusedOrAccepted(call);
    }
  });

  test('methods of a VM', () => {
    for (const v of JUNK) {
      for (const call of [
        () => vm.setUserMemoryRegion(any(v)),
        ...['slot', 'flags', 'guestPhysAddr', 'memorySize', 'offset', 'backing'].map((field) => () => {
          vm.setUserMemoryRegion(any({ slot: 7, guestPhysAddr: 0x100000, memorySize: 4096, [field]: v }));
          vm.setUserMemoryRegion({ slot: 7, guestPhysAddr: 0, memorySize: 0 });
        }),
        () => vm.allocBacking(any(v)),
        () => vm.getDirtyLog(any(v)),
        () => vm.readGuest(any(v), 4),
        () => vm.readGuest(0, any(v)),
        () => vm.writeGuest(any(v), new Uint8Array(4)),
        () => vm.writeGuest(0, any(v)),
        () => vm.createVcpu(any(v)),
        () => vm.setIrqLine(any(v), 1),
        () => vm.setIrqLine(1, any(v)),
        () => vm.setGsiRouting(any(v)),
        () => vm.setGsiRouting(any([v])),
        () => vm.setGsiRouting(any([{ gsi: v, type: 'irqchip', irqchip: 'ioapic', pin: v }])),
        () => vm.signalMsi(any(v), 0),
        () => vm.signalMsi(0xfee00000n, any(v)),
        () => vm.setTssAddr(any(v)),
        () => vm.setIdentityMapAddr(any(v)),
        () => vm.load(any(v)),
        () => kvm.createVm(any(v)),
        () => kvm.load(any(v)),
        () => kvm.warpTo(any(v)),
      ])
        refusedOrAccepted(call);
    }
  });

  test('fields of the structures', () => {
    const sregs = vcpu.getSregs();
    const events = vcpu.getVcpuEvents();
    for (const v of JUNK) {
      for (const name of Object.keys(vcpu.getRegs())) {
        refusedOrAccepted(() => vcpu.setRegs(any({ ...vcpu.getRegs(), [name]: v })));
      }
      for (const name of Object.keys(sregs)) refusedOrAccepted(() => vcpu.setSregs(any({ ...sregs, [name]: v })));
      for (const name of Object.keys(sregs.cs)) {
        refusedOrAccepted(() => vcpu.setSregs(any({ ...sregs, cs: { ...sregs.cs, [name]: v } })));
      }
      for (const name of Object.keys(events)) {
        refusedOrAccepted(() => vcpu.setVcpuEvents(any({ ...events, [name]: v })));
      }
      for (const name of Object.keys(vcpu.getDebugregs())) {
        refusedOrAccepted(() => vcpu.setDebugregs(any({ ...vcpu.getDebugregs(), [name]: v })));
      }
    }
  });

  test.each(['memory', 'nsPerTick', 'bootTime', 'shuffleFrames', 'engine', 'processor'])(
    'option %s of a kernel',
    async (field) => {
      for (const v of JUNK) {
        if (field === 'processor' && typeof v === 'function') continue;
        const made = Kvm.create(idleBackend(), any({ memory: 1 << 20, [field]: v }));
        await made.catch((error) => expect(error).toBeInstanceOf(KvmError));
      }
    },
  );
  test('a kernel without a backend, or with something else', async () => {
    for (const v of JUNK) await expect(Kvm.create(any(v))).rejects.toMatchObject({ code: 'BACKEND', errno: 22 });
  });
});

describe('widths', () => {
  test.each([
    ['a negative CR3', { cr3: -1n }],
    ['CR4 of 65 bits', { cr4: 1n << 64n }],
    ['an APIC base of 71 bits', { apicBase: 1n << 70n }],
    ['CR2 of 65 bits', { cr2: 1n << 64n }],
    ['a number for EFER', { efer: 0 }],
    ['a vector of 9 bits', { interrupt: 256 }],
  ])('KVM_SET_SREGS refuses %s and changes nothing', (_what, change) => {
    const before = vcpu.getSregs();
    expect(() => vcpu.setSregs({ ...before, ...(change as object) })).toThrow(
      expect.objectContaining({ code: 'SREGS_FIELD', errno: 22, rule: expect.any(String) }),
    );
    expect(vcpu.getSregs()).toEqual(before);
  });
  test.each([
    ['selector', 0x10000],
    ['limit', 2 ** 32],
    ['type', 16],
    ['dpl', 4],
    ['present', 2],
    ['base', 1n << 64n],
    ['unusable', true],
  ])('KVM_SET_SREGS refuses a segment whose %s is %s', (field, value) => {
    const sregs = vcpu.getSregs();
    const ds = { ...sregs.ds, [field]: value };
    expect(() => vcpu.setSregs({ ...sregs, ds })).toThrow(`sregs.ds.${field}`);
  });
  test('KVM_SET_REGS refuses what no u64 holds', () => {
    const regs = vcpu.getRegs();
    expect(codeOf(() => vcpu.setRegs({ ...regs, rip: 1n << 64n }))).toBe('REGS_FIELD');
    expect(codeOf(() => vcpu.setRegs({ ...regs, rax: -1n }))).toBe('REGS_FIELD');
    expect(vcpu.getRegs()).toEqual(regs);
  });
});

describe('limits of KVM_RUN', () => {
  test.each([Number.NaN, -1, '5', null, 5n, {}])('budget %s is refused', (budget) => {
    expect(codeOf(() => vcpu.run({ budget: any(budget) }))).toBe('RUN_BUDGET');
    expect(codeOf(() => vm.run({ budget: any(budget) }))).toBe('RUN_BUDGET');
  });
  test('a VM without a vCPU', () => {
    expect(codeOf(() => kvm.createVm().run())).toBe('RUN_NO_VCPU');
  });
  test('a tick beyond 2^52, where one more would not count, is not reached', () => {
    kvm.warpTo(2 ** 60);
    expect(kvm.now()).toBe(0);
  });
});

describe('shapes name the place and what belongs there', () => {
  const point = struct({ x: uint(4), name: optional(oneOf('a', 'b')), path: list(integer(-1, 1), 2) });
  test.each<[string, Shape, unknown, string | undefined]>([
    ['a good one', point, { x: 15, path: [1, -1] }, undefined],
    ['a field too wide', point, { x: 16, path: [] }, 'p.x is 16: give an integer from 0 to 0xf'],
    ['a field that lacks', point, { path: [] }, 'p.x is undefined: give an integer from 0 to 0xf'],
    ['an element', point, { x: 1, path: [0, 7] }, 'p.path[1] is 7: give an integer from -1 to 1'],
    ['too many', point, { x: 1, path: [0, 0, 0] }, 'p.path is an array of 3: give an array of at most 2'],
    ['an unknown word', point, { x: 1, path: [], name: 'c' }, 'p.name is "c": give "a" or "b"'],
    ['no object', point, null, 'p is null: give an object with x, path and, if wanted, name'],
    ['a wide bigint', u64, 1n << 64n, 'p is 0x10000000000000000n: give a bigint from 0 to 2^64-1'],
    ['a short buffer', bytes(4, 4), new Uint8Array(3), 'p has 3 elements: give 4'],
    ['a pair', tuple(u64, u64), [1n], 'p is an array of 1: give an array of 2'],
    ['NaN as a limit', limit(0), Number.NaN, 'p is NaN: give a number from 0, or Infinity'],
    ['a kind', union('kind', { a: struct({}) }), { kind: 'toString' }, 'p.kind is "toString": give one of a'],
  ])('%s', (_name, shape, value, problem) => {
    expect(shape(value, 'p')).toBe(problem);
  });
});
