/**
 * Who reaches set_cr0, and when: every edge of KVM's call graph around a write of CR0 that needs no nested guest is taken by a run and stands in
 * what the tracer recorded. Shadow paging's edge (svm_set_cr0 to svm_set_cr4) is not among them. KVM: x86.c, svm.c, vmx.c, smm.c.
 */
import { type Backend, type CallerEdge, Kvm } from '@tskvm/core';
import { finish, type GuestOptions, makeGuest, movCr0, Place } from '@tskvm/core/testing';
import { CR0, CR4, EFER } from '@tskvm/emulator';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { describe, expect, test } from 'vitest';
import { CONFIGURATIONS, runTour } from '../src/commands/tour.ts';
import { graphRow } from '../src/report/call-graph.ts';
import { runGuest } from './harness.ts';

const { PE, ET, PG, CD, TS } = CR0;
const BASE = PE | ET;
/** Vendors and features of one run. */
const BACKENDS = {
  svm: () => svm(),
  'svm without decode assists': () => svm({ decodeAssists: false }),
  vmx: () => vmx(),
  'vmx without unrestricted guest': () => vmx({ unrestrictedGuest: false }),
} as const satisfies Record<string, () => Backend>;
type Name = keyof typeof BACKENDS;

const LMSW_1 = [0xb8, 1, 0, 0x0f, 0x01, 0xf0];
const CLTS = [0x0f, 0x06];
const REAL_TO_PROTECTED: GuestOptions = { mode: 'real', code: [0x66, ...movCr0(BASE)] };
const INTO_LONG: GuestOptions = {
  mode: 'protected',
  code: movCr0(BASE | PG),
  patch: (sregs) => {
    sregs.efer |= EFER.LME;
    sregs.cr4 |= CR4.PAE;
    sregs.cr3 = BigInt(Place.pml4);
  },
};
const OUT_OF_LONG: GuestOptions = { mode: 'compatibility', code: movCr0(BASE) };
/** TS set while CD is: every access of CR0 exits on AMD. */
const CLTS_WITH_CD: GuestOptions = {
  mode: 'protected',
  code: CLTS,
  patch: (sregs) => {
    sregs.cr0 |= CD | TS;
  },
};

interface Row {
  backend: Name;
  by: string;
  guest: GuestOptions;
  /** Callers and callees, outermost first: each link is an edge that the run must have taken. */
  chain: string[];
  /** The chain is also what a switch of the mode was reported with. */
  switches?: boolean;
}
const SVM_EXIT = ['vcpuEnterGuest', 'staticCall.handleExit', 'svmHandleExit', 'svmInvokeExitHandler'];
const VMX_EXIT = ['vcpuEnterGuest', 'staticCall.handleExit', 'vmxHandleExit'];
const SVM_SET = ['kvmSetCr0', 'staticCall.setCr0', 'svmSetCr0'];
const VMX_SET = ['kvmSetCr0', 'staticCall.setCr0', 'vmxSetCr0'];
const RUN = ['kvmArchVcpuIoctlRun', 'vcpuRun', 'vcpuEnterGuest'];

const ROWS: readonly Row[] = [
  { backend: 'svm', by: 'user space', guest: REAL_TO_PROTECTED, chain: ['user space', ...RUN] },
  {
    backend: 'svm',
    by: 'mov cr0',
    guest: REAL_TO_PROTECTED,
    chain: [...SVM_EXIT, 'crInterception', ...SVM_SET],
    switches: true,
  },
  { backend: 'svm', by: 'mov cr0', guest: REAL_TO_PROTECTED, chain: ['kvmSetCr0', 'kvmPostSetCr0'] },
  {
    backend: 'svm without decode assists',
    by: 'mov cr0',
    guest: REAL_TO_PROTECTED,
    chain: ['kvmEmulateInstruction', 'x86EmulateInstruction', 'emulatorSetCr', ...SVM_SET],
    switches: true,
  },
  {
    backend: 'svm',
    by: 'lmsw',
    guest: { mode: 'real', code: LMSW_1 },
    chain: ['kvmEmulateInstruction', 'x86EmulateInstruction', 'emulatorSetCr', ...SVM_SET],
    switches: true,
  },
  {
    backend: 'svm',
    by: 'clts with CD=1',
    guest: CLTS_WITH_CD,
    chain: ['kvmEmulateInstruction', 'x86EmulateInstruction', 'emulatorSetCr', ...SVM_SET],
  },
  {
    backend: 'vmx',
    by: 'mov cr0',
    guest: REAL_TO_PROTECTED,
    chain: [...VMX_EXIT, 'handleCr', 'handleSetCr0', ...VMX_SET],
    switches: true,
  },
  {
    backend: 'vmx',
    by: 'lmsw',
    guest: { mode: 'real', code: LMSW_1 },
    chain: [...VMX_EXIT, 'handleCr', 'kvmLmsw', ...VMX_SET],
    switches: true,
  },
  { backend: 'vmx', by: 'mov cr0', guest: INTO_LONG, chain: ['vmxSetCr0', 'enterLmode'] },
  { backend: 'vmx', by: 'mov cr0', guest: OUT_OF_LONG, chain: ['vmxSetCr0', 'exitLmode'] },
  {
    backend: 'vmx without unrestricted guest',
    by: 'mov cr0',
    guest: REAL_TO_PROTECTED,
    chain: [
      ...VMX_EXIT,
      'handleExceptionNmi',
      'handleRmodeException',
      'kvmEmulateInstruction',
      'x86EmulateInstruction',
      'emulatorSetCr',
      ...VMX_SET,
    ],
    switches: true,
  },
  {
    backend: 'vmx without unrestricted guest',
    by: 'mov cr0',
    guest: REAL_TO_PROTECTED,
    chain: ['vmxSetCr0', 'enterPmode'],
  },
  {
    backend: 'vmx without unrestricted guest',
    by: 'mov cr0 with PE=0',
    guest: { mode: 'protected', code: movCr0(ET) },
    chain: ['vmxSetCr0', 'enterRmode'],
  },
  {
    backend: 'vmx without unrestricted guest',
    by: 'mov cr0 with PG changed',
    guest: INTO_LONG,
    chain: ['vmxSetCr0', 'vmxSetCr4'],
  },
];

const has = (edges: readonly CallerEdge[], caller: string, callee: string): boolean =>
  edges.some((edge) => edge.caller === caller && edge.callee === callee);
function expectChain(edges: readonly CallerEdge[], chain: readonly string[]): void {
  for (let i = 1; i < chain.length; i++) {
    const callers = edges.filter((edge) => edge.callee === chain[i]).map((edge) => edge.caller);
    expect(callers, `callers of ${chain[i]}`).toContain(chain[i - 1]);
  }
}
/** Is `part` an unbroken piece of a path. */
const contains = (path: readonly string[], part: readonly string[]): boolean =>
  path.some((_, i) => part.every((name, j) => path[i + j] === name));

describe('taken by a guest', () => {
  test.each(ROWS.map((row) => [row.backend, row.by, row.chain.slice(-3).join(' → '), row] as const))(
    '%s: %s: %s',
    async (_backend, _by, _end, row) => {
      const guest = await makeGuest(BACKENDS[row.backend](), row.guest);
      const paths: (readonly string[])[] = [];
      guest.kvm.on('mode_switch', (event) => paths.push(event.path));
      finish(guest);
      expectChain(guest.kvm.tracer?.edges() ?? [], row.chain);
      if (row.switches) expect(paths.filter((path) => contains(path, row.chain)).length, `${paths}`).toBeGreaterThan(0);
      for (const name of row.chain) {
        if (name !== 'user space') expect(graphRow(name), `${name} stands in the static graph`).toBeDefined();
      }
    },
  );

  test('svm: a triple fault resets the vCPU: shutdownInterception → kvmVcpuReset → staticCall.setCr0', async () => {
    const { outcome, edges } = await runGuest(svm(), {
      mode: 'protected',
      code: [0x0f, 0x0b],
      patch: (sregs) => {
        sregs.idt = { base: 0n, limit: 0 };
      },
    });
    expect(outcome).toBe('shutdown');
    expectChain(edges(), [...SVM_EXIT, 'shutdownInterception', 'kvmVcpuReset', 'staticCall.setCr0', 'svmSetCr0']);
  });
});

describe.each([
  ['svm', () => svm(), 'svmSetCr0'],
  ['vmx', () => vmx(), 'vmxSetCr0'],
  ['vmx without unrestricted guest', () => vmx({ unrestrictedGuest: false }), 'vmxSetCr0'],
] as const)('%s, taken by others', (_name, make, setter) => {
  test('a vCPU is made: kvmArchVcpuCreate → kvmVcpuReset', async () => {
    const kvm = await Kvm.create(make(), { memory: 2 ** 24 });
    const tracer = kvm.enableTracing();
    kvm.createVm().createVcpu(0);
    expectChain(tracer.edges(), ['kvmArchVcpuCreate', 'kvmVcpuReset', 'staticCall.setCr0', setter]);
  });
  test('KVM_SET_SREGS and KVM_SET_SREGS2 → setSregsCommon', async () => {
    for (const call of ['setSregs', 'setSregs2'] as const) {
      const { kvm, vcpu } = await makeGuest(make(), { mode: 'protected', code: [] });
      const tracer = kvm.enableTracing();
      if (call === 'setSregs') vcpu.setSregs(vcpu.getSregs());
      else vcpu.setSregs2(vcpu.getSregs2());
      expectChain(tracer.edges(), ['user space', call, 'setSregsCommon', 'staticCall.setCr0', setter]);
    }
  });
  test('INIT → kvmVcpuReset', async () => {
    const { kvm, vm, vcpu } = await makeGuest(make(), { mode: 'protected', code: [0xeb, 0xfe], irqchip: true });
    vcpu.run({ budget: 10 });
    const tracer = kvm.enableTracing();
    vm.signalMsi(0xfee00000n, 0x500);
    vcpu.run({ budget: 1 });
    expectChain(tracer.edges(), ['vcpuEnterGuest', 'kvmVcpuReset', 'staticCall.setCr0', setter]);
  });
  test.each(['real', 'protected', 'long'] as const)(
    'SMI in %s mode → enterSmm; RSM → emulatorLeaveSmm',
    async (mode) => {
      const guest = await makeGuest(make(), {
        mode,
        code: [0xe6, 0x80, 0x90],
        prepare: (vm) => vm.writeGuest(0x38000, Uint8Array.of(0xe6, 0x81, 0x0f, 0xaa)),
      });
      const { kvm, vcpu } = guest;
      const paths: (readonly string[])[] = [];
      kvm.on('mode_switch', (event) => paths.push(event.path));
      vcpu.run({ budget: 1000 });
      vcpu.smi();
      expect(finish(guest)).toBe('done');
      const edges = kvm.tracer?.edges() ?? [];
      expectChain(edges, ['kvmCheckAndInjectEvents', 'enterSmm', 'staticCall.setCr0', setter]);
      expectChain(edges, [
        'x86EmulateInstruction',
        'emulatorLeaveSmm',
        'emulatorSetCr',
        'kvmSetCr0',
        'staticCall.setCr0',
      ]);
      expect(paths.some((path) => path.includes('enterSmm'))).toBe(true);
      expect(paths.some((path) => contains(path, ['emulatorLeaveSmm', 'emulatorSetCr', 'kvmSetCr0']))).toBe(true);
    },
  );
  test('a task switch sets TS: kvmTaskSwitch → emulatorSetCr', async () => {
    const TSS = 0x4000;
    const NEXT = 0x5000;
    const task = (base: number): bigint =>
      0x0000890000000067n | (BigInt(base & 0xffff) << 16n) | (BigInt(base >> 16) << 32n);
    const { edges, outcome, guest } = await runGuest(make(), {
      mode: 'protected',
      // ltr ax with 28h; jmp 30h:0
      code: [0xb8, 0x28, 0, 0, 0, 0x0f, 0x00, 0xd8, 0xea, 0, 0, 0, 0, 0x30, 0],
      patch: (sregs) => {
        sregs.gdt = { base: BigInt(Place.gdt), limit: 0x3f };
      },
      prepare: (vm) => {
        vm.writeGuestValue(Place.gdt + 0x28, task(TSS), 8);
        vm.writeGuestValue(Place.gdt + 0x30, task(NEXT), 8);
        const put = (at: number, value: number) => vm.writeGuestValue(NEXT + at, BigInt(value), 4);
        put(0x20, Place.code + 15);
        put(0x24, 2);
        put(0x38, Place.stack);
        for (const at of [0x48, 0x50, 0x54, 0x58, 0x5c]) put(at, 0x10);
        put(0x4c, 8);
      },
    });
    expect(outcome).toBe('done');
    expect(guest.vcpu.getSregs().cr0 & TS).toBe(TS);
    expectChain(edges(), ['kvmTaskSwitch', 'emulatorSetCr', 'kvmSetCr0', 'staticCall.setCr0', setter]);
  });
});

test('who called a setter of CR0 in the tours stands in the static graph', async () => {
  const setters = new Set([
    'kvmSetCr0',
    'kvmPostSetCr0',
    'staticCall.setCr0',
    'svmSetCr0',
    'vmxSetCr0',
    'kvmVcpuReset',
    'enterSmm',
  ]);
  for (const spec of CONFIGURATIONS) {
    const { tracer, passed } = await runTour(spec);
    expect(passed).toBe(true);
    const edges = (tracer?.edges() ?? []).filter((edge) => setters.has(edge.callee));
    expect(has(edges, 'kvmSetCr0', 'staticCall.setCr0')).toBe(true);
    for (const { caller, callee } of edges) {
      expect(graphRow(callee), callee).toBeDefined();
      if (caller !== 'user space') expect(graphRow(caller), caller).toBeDefined();
    }
  }
});
test('svm({ sevEs: true }): crTrap → svmSetCr0, crTrap → kvmPostSetCr0, never kvmSetCr0', async () => {
  const { tracer, switches } = await runTour('svm,sevEs=1', 'sevEs');
  const edges = tracer?.edges() ?? [];
  expectChain(edges, [...SVM_EXIT, 'crTrap', 'svmSetCr0']);
  expectChain(edges, ['crTrap', 'kvmPostSetCr0']);
  expect(has(edges, 'crTrap', 'kvmSetCr0')).toBe(false);
  expect(switches.some((event) => contains(event.path, ['svmInvokeExitHandler', 'crTrap', 'svmSetCr0']))).toBe(true);
});
