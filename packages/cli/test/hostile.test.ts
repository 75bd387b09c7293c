/**
 * Guests and callers that mean harm: random code in every mode, random page and descriptor tables, random arguments of the API. Whatever comes
 * of it, nothing but KvmError and NotImplementedError is thrown, a budget ends every run, and nobody's memory changes but the guest's own.
 */
import { type Kvm, KvmError, type KvmExit, MpState, type Vcpu, type Vm } from '@tskvm/core';
import { type GuestModeName, MEMORY, makeGuest, Place } from '@tskvm/core/testing';
import { NotImplementedError } from '@tskvm/emulator';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { CONFIGURATION_NAMES, CONFIGURATIONS } from './harness.ts';

/** TSKVM_HOSTILE_SEED and TSKVM_HOSTILE_RUNS try others, and more. */
const SEED = Number(process.env.TSKVM_HOSTILE_SEED ?? 20_26);
const RUNS = Number(process.env.TSKVM_HOSTILE_RUNS ?? 25);
const BUDGET = 3000;
const MODES: readonly GuestModeName[] = ['real', 'protected', 'paging32', 'pae', 'compatibility', 'long'];
const CANARY = 0x5a;

/** Runs and answers exits until a budget is used up. */
function drive(vcpu: Vcpu, fill: number): void {
  const { kvm } = vcpu;
  const end = kvm.now() + BUDGET;
  for (let runs = 0; kvm.now() < end; runs++) {
    // An exit without a retired instruction must not come for ever.
    if (runs > 2 * BUDGET)
      throw new Error(`no progress at 0x${vcpu.getRegs().rip.toString(16)}, exit ${vcpu.exit.reason}`);
    const exit: KvmExit = vcpu.run({ budget: BUDGET });
    if (exit.reason === 'io' && exit.direction === 'in') exit.data.fill(fill);
    else if (exit.reason === 'mmio' && !exit.isWrite) exit.data.fill(fill);
    else if (exit.reason !== 'io' && exit.reason !== 'mmio') return;
  }
}
/** What a guest or a caller may bring about is refused by these two; anything else is ours. */
function tolerated(run: () => void): void {
  try {
    run();
  } catch (error) {
    if (!(error instanceof KvmError) && !(error instanceof NotImplementedError)) throw error;
    // An op that throws is reported as KvmError, but it is a fault of ours.
    if (error instanceof KvmError && error.code === 'OP_THREW') throw error;
  }
}

/** Another VM beside the hostile one, whose memory must stay as it is. */
interface Canary {
  check: () => void;
}
function addCanary(kvm: Kvm): Canary {
  const vm: Vm = kvm.createVm();
  const size = 64 * 4096;
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: size });
  vm.writeGuest(0, new Uint8Array(size).fill(CANARY));
  return {
    check: () => {
      const bytes = vm.readGuest(0, size);
      const at = bytes.findIndex((byte) => byte !== CANARY);
      expect(at, `the other VM's memory changed at 0x${at.toString(16)}`).toBe(-1);
    },
  };
}

const code = fc.uint8Array({ minLength: 1, maxLength: 64 });
/** Random bytes, leading with an opcode that does something privileged more often than chance would have it. */
const SPICES: readonly (readonly number[])[] = [
  [0x0f, 0x22, 0xc0],
  [0x0f, 0x22, 0xd8],
  [0x0f, 0x22, 0xe0],
  [0x0f, 0x01, 0xf0],
  [0x0f, 0x01, 0x16],
  [0x0f, 0x01, 0x1e],
  [0x0f, 0x00, 0xd8],
  [0x0f, 0x00, 0xd0],
  [0x0f, 0x30],
  [0x0f, 0xaa],
  [0x0f, 0x05],
  [0x0f, 0x07],
  [0x0f, 0x34],
  [0x0f, 0x35],
  [0x0f, 0xc7],
  [0x0f, 0xae],
  [0x8e, 0xd8],
  [0x8e, 0xd0],
  [0x9d],
  [0xcf],
  [0xcb],
  [0xea],
  [0xcd],
  [0x66, 0x67],
  [0xf3, 0x6f],
  [0xf2, 0xa7],
  [0xc4],
  [0x62],
  [0xdd],
];
const spiced = fc
  .array(
    fc.oneof(
      fc.constantFrom(...SPICES),
      fc.uint8Array({ minLength: 1, maxLength: 6 }).map((b) => [...b]),
    ),
    {
      minLength: 2,
      maxLength: 16,
    },
  )
  .map((parts) => parts.flat());
const u64 = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n });
const anyRegs = fc.array(fc.oneof(u64, fc.bigInt({ min: 0n, max: BigInt(MEMORY) })), { minLength: 16, maxLength: 16 });
const GPRS = [
  'rax',
  'rbx',
  'rcx',
  'rdx',
  'rsi',
  'rdi',
  'rsp',
  'rbp',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
] as const;
function setGprs(vcpu: Vcpu, values: readonly bigint[], rflags: bigint): void {
  const gprs = Object.fromEntries(GPRS.map((name, i) => [name, values[i]]));
  vcpu.setRegs({ ...vcpu.getRegs(), ...gprs, rip: BigInt(Place.code), rflags });
}

const parameters = { seed: SEED, numRuns: RUNS, endOnFailure: true } as const;

describe.each(CONFIGURATION_NAMES)('%s', (name) => {
  const make = CONFIGURATIONS[name];
  const bare = async (mode: GuestModeName, bytes: readonly number[] = []) => {
    const guest = await makeGuest(make(), { mode, code: bytes, kvm: { shuffleFrames: 3 } });
    return { ...guest, canary: addCanary(guest.kvm) };
  };

  test.each(MODES)('random code in %s mode', async (mode) => {
    await fc.assert(
      fc.asyncProperty(
        fc.oneof(
          code.map((b) => [...b]),
          spiced,
        ),
        anyRegs,
        u64,
        fc.nat(255),
        async (bytes, regs, flags, fill) => {
          const { vcpu, canary } = await bare(mode, bytes);
          tolerated(() => {
            setGprs(vcpu, regs, flags & 0x3f7fd7n);
            drive(vcpu, fill);
          });
          canary.check();
        },
      ),
      parameters,
    );
  });

  test('random code in virtual-8086 mode', async () => {
    await fc.assert(
      fc.asyncProperty(spiced, anyRegs, fc.nat(3), async (bytes, regs, iopl) => {
        const { vcpu, canary } = await bare('protected', bytes);
        tolerated(() => {
          const sregs = vcpu.getSregs();
          const segment = { ...sregs.ds, limit: 0xffff, selector: 0, base: 0n, dpl: 3, db: 0, g: 0 };
          vcpu.setSregs({
            ...sregs,
            cs: segment,
            ds: segment,
            es: segment,
            fs: segment,
            gs: segment,
            ss: segment,
          });
          setGprs(vcpu, regs, 0x20002n | (BigInt(iopl) << 12n));
          drive(vcpu, 0xff);
        });
        canary.check();
      }),
      parameters,
    );
  });

  test.each(['paging32', 'pae', 'long'] as const)('random page tables in %s mode', async (mode) => {
    await fc.assert(
      fc.asyncProperty(
        fc.uint8Array({ minLength: 512, maxLength: 512 }),
        fc.nat(511),
        spiced,
        async (noise, at, bytes) => {
          const { vcpu, vm, canary } = await bare(mode, bytes);
          tolerated(() => {
            for (const table of [Place.pml4, Place.pdpt, Place.pd, Place.paePdpt, Place.pd32]) {
              vm.writeGuest(table + at * 4, noise.subarray(0, Math.min(noise.length, 4096 - at * 4)));
            }
            setGprs(vcpu, new Array(16).fill(0x3ff000n), 2n);
            drive(vcpu, 0);
          });
          canary.check();
        },
      ),
      parameters,
    );
  });

  test.each(['real', 'protected', 'long'] as const)(
    'random descriptor and interrupt tables in %s mode',
    async (mode) => {
      await fc.assert(
        fc.asyncProperty(
          fc.uint8Array({ minLength: 256, maxLength: 256 }),
          spiced,
          fc.nat(0xffff),
          async (noise, bytes, limit) => {
            const { vcpu, vm, canary } = await bare(mode, [0xcd, noise[0], ...bytes]);
            tolerated(() => {
              for (const table of [0, Place.gdt + 0x28, Place.idt32, Place.idt64]) vm.writeGuest(table, noise);
              const sregs = vcpu.getSregs();
              vcpu.setSregs({ ...sregs, gdt: { ...sregs.gdt, limit }, idt: { ...sregs.idt, limit } });
              drive(vcpu, 0);
            });
            canary.check();
          },
        ),
        parameters,
      );
    },
  );

  test('random arguments of setSregs and setRegs', async () => {
    const segment = fc.record({
      base: u64,
      limit: fc.nat(0xffffffff),
      selector: fc.nat(0xffff),
      type: fc.nat(15),
      present: fc.nat(1),
      dpl: fc.nat(3),
      db: fc.nat(1),
      s: fc.nat(1),
      l: fc.nat(1),
      g: fc.nat(1),
      avl: fc.nat(1),
      unusable: fc.nat(1),
    });
    const control = fc.oneof(
      u64,
      fc.bigInt({ min: 0n, max: 0xffffffffn }),
      fc.constantFrom(0n, 0x11n, 0x80000011n, 0x20n, 0xd00n),
    );
    const change = fc.record(
      {
        cs: segment,
        ds: segment,
        es: segment,
        fs: segment,
        gs: segment,
        ss: segment,
        tr: segment,
        ldt: segment,
        gdt: fc.record({ base: u64, limit: fc.nat(0xffff) }),
        idt: fc.record({ base: u64, limit: fc.nat(0xffff) }),
        cr0: control,
        cr2: u64,
        cr3: control,
        cr4: control,
        cr8: u64,
        efer: control,
        interrupt: fc.integer({ min: -1, max: 255 }),
      },
      { requiredKeys: [] },
    );
    await fc.assert(
      fc.asyncProperty(fc.constantFrom(...MODES), change, anyRegs, u64, async (mode, sregs, regs, flags) => {
        const { vcpu, canary } = await bare(mode);
        tolerated(() => vcpu.setSregs({ ...vcpu.getSregs(), ...sregs }));
        tolerated(() => setGprs(vcpu, regs, flags));
        tolerated(() => drive(vcpu, 1));
        tolerated(() => void vcpu.getSregs());
        tolerated(() => void vcpu.save());
        canary.check();
      }),
      { ...parameters, numRuns: 3 * RUNS },
    );
  });

  test('random MSRs, events, debug registers, XCR0 and states', async () => {
    const msr = fc.oneof(fc.nat(0xffffffff), fc.integer({ min: 0xc0000080, max: 0xc0000110 }), fc.nat(0x8ff));
    const events = fc.record({
      exception: fc.record({
        injected: fc.boolean(),
        pending: fc.boolean(),
        nr: fc.nat(255),
        hasErrorCode: fc.boolean(),
        errorCode: fc.nat(0xffffffff),
      }),
      interrupt: fc.record({ injected: fc.boolean(), nr: fc.nat(255), soft: fc.boolean(), shadow: fc.nat(3) }),
      nmi: fc.record({ injected: fc.boolean(), pending: fc.nat(3), masked: fc.boolean() }),
      sipiVector: fc.nat(255),
      smi: fc.record({
        smm: fc.boolean(),
        pending: fc.boolean(),
        smmInsideNmi: fc.boolean(),
        latchedInit: fc.boolean(),
      }),
      tripleFaultPending: fc.boolean(),
    });
    const four = fc.tuple(u64, u64, u64, u64);
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...MODES),
        fc.array(fc.tuple(msr, u64), { maxLength: 6 }),
        events,
        fc.record({ db: four, dr6: u64, dr7: u64 }),
        u64,
        fc.constantFrom(...Object.values(MpState), 77),
        spiced,
        async (mode, msrs, event, debug, xcr0, state, bytes) => {
          const { vcpu, canary } = await bare(mode, bytes);
          for (const [index, value] of msrs) tolerated(() => void vcpu.setMsr(index, value));
          tolerated(() => vcpu.setDebugregs(debug));
          tolerated(() => vcpu.setXcrs({ xcr0 }));
          tolerated(() => vcpu.setMpState(state as MpState));
          tolerated(() => vcpu.setVcpuEvents(event));
          tolerated(() => drive(vcpu, 2));
          tolerated(() => void vcpu.save());
          canary.check();
        },
      ),
      { ...parameters, numRuns: 2 * RUNS },
    );
  });

  test('random memory slots under a running guest', async () => {
    const page = fc.oneof(
      fc.nat(0x400).map((n) => n * 4096),
      fc.nat(0xfffff).map((n) => n * 4096),
      fc.nat(2 ** 40),
    );
    const region = fc.record({
      slot: fc.oneof(fc.nat(3), fc.nat(0x20000)),
      guestPhysAddr: page,
      memorySize: fc.oneof(
        fc.constant(0),
        fc.nat(16).map((n) => n * 4096),
        fc.nat(2 ** 34),
      ),
      flags: fc.oneof(fc.nat(3), fc.nat(0xff)),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(region, { minLength: 1, maxLength: 6 }), spiced, async (regions, bytes) => {
        const { vm, vcpu, canary } = await bare('protected', bytes);
        for (const each of regions) {
          tolerated(() => vm.setUserMemoryRegion(each));
          tolerated(() => drive(vcpu, 3));
        }
        tolerated(() => vm.destroy());
        canary.check();
      }),
      parameters,
    );
  });
});

test('host memory outside slots and tables stays as it was: pages that nobody allocated', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...CONFIGURATION_NAMES),
      fc.constantFrom(...MODES),
      spiced,
      anyRegs,
      async (name, mode, bytes, regs) => {
        const { vcpu, kvm: own } = await makeGuest(CONFIGURATIONS[name](), {
          mode,
          code: bytes,
          kvm: { memory: 2 ** 23, shuffleFrames: 9 },
        });
        const changed: number[] = [];
        // Pages that belong to nobody's guest.
        const held = Array.from({ length: 64 }, () => own.allocPage());
        for (const pa of held) own.memory.writeBytes(pa, new Uint8Array(4096).fill(CANARY));
        tolerated(() => {
          setGprs(vcpu, regs, 2n);
          drive(vcpu, 0);
        });
        for (const pa of held) if (own.memory.readBytes(pa, 4096).some((byte) => byte !== CANARY)) changed.push(pa);
        expect(changed).toEqual([]);
      },
    ),
    { seed: SEED, numRuns: 2 * RUNS, endOnFailure: true },
  );
});
