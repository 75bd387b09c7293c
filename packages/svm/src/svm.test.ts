import { Kvm, type KvmExit, type Vcpu, type Vm } from '@tskvm/core';
import { Seg } from '@tskvm/emulator';
import { describe, expect, it } from 'vitest';
import { type SvmOptions, svm, toSvm, V } from './index.ts';

const RAM = 1 << 20;
const HLT = 0xf4;
const CODE = 0x1000;
const MOV_EAX = (value: number): number[] => [
  0x66,
  0xb8,
  value & 255,
  (value >> 8) & 255,
  (value >> 16) & 255,
  value >>> 24,
];

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

const MOV_CR0_EAX = [0x0f, 0x22, 0xc0];
const NO_CACHE_BITS = [...MOV_EAX(0x10), ...MOV_CR0_EAX];
/** Exits of a run by KVM's symbols but those that fill the nested tables, and who called a function. */
function watch(m: Machine): { exits: string[]; callers: (callee: string) => string[] } {
  const exits: string[] = [];
  m.kvm.on('kvm_exit', (event) => {
    if (event.name !== 'npf') exits.push(event.name);
  });
  return {
    exits,
    callers: (callee) => (m.kvm.tracer?.edges() ?? []).filter((edge) => edge.callee === callee).map((e) => e.caller),
  };
}
/** Vector `n` of the guest's IVT stores 1 at 0x500 and halts. */
function catchVector(m: Machine, n: number): void {
  m.vm.writeGuest(n * 4, Uint8Array.of(0, 6, 0, 0));
  m.vm.writeGuest(0x600, Uint8Array.of(0xc7, 0x06, 0, 5, 1, 0, HLT));
}
const caught = (m: Machine): boolean => m.vm.readGuest(0x500, 1)[0] === 1;
const hlt = (m: Machine): void => expect(m.run()).toMatchObject({ reason: 'hlt' });

describe('a write of CR0 under svm', () => {
  it('leaves with 0x10 while CD and NW are set, and by the selective intercept afterwards', async () => {
    const m = await machine([...NO_CACHE_BITS, ...MOV_EAX(0x11), ...MOV_CR0_EAX, HLT]);
    const { exits, callers } = watch(m);
    hlt(m);
    expect(exits).toEqual(['write_cr0', 'cr0_sel_write', 'hlt']);
    expect(m.vcpu.arch.cr0).toBe(0x11n);
    expect(callers('crInterception')).toEqual(['svmInvokeExitHandler']);
    expect(callers('kvmSetCr0')).toEqual(['crInterception']);
    expect(callers('svmSetCr0')).toHaveLength(1);
  });
  it('goes through the emulator without decode assists, to the same end', async () => {
    const m = await machine([...NO_CACHE_BITS, ...MOV_EAX(0x11), ...MOV_CR0_EAX, HLT], { decodeAssists: false });
    const { exits, callers } = watch(m);
    hlt(m);
    expect(exits).toEqual(['write_cr0', 'cr0_sel_write', 'hlt']);
    expect(m.vcpu.arch.cr0).toBe(0x11n);
    expect(callers('kvmSetCr0')).toEqual(['emulatorSetCr']);
  });
  it('is skipped by decoding without nrips', async () => {
    const m = await machine([...NO_CACHE_BITS, ...MOV_EAX(0x11), ...MOV_CR0_EAX, HLT], { nrips: false });
    hlt(m);
    expect(m.vcpu.arch.cr0).toBe(0x11n);
  });
  const refused: [string, number][] = [
    ['scenario 1: NW without CD', 0x2000_0010],
    ['scenario 2: PG without PE', 0x8000_0010],
  ];
  for (const [name, value] of refused) {
    it(`${name} is #GP(0) raised by the silicon, without an exit`, async () => {
      const m = await machine([...NO_CACHE_BITS, ...MOV_EAX(value), ...MOV_CR0_EAX, HLT]);
      catchVector(m, 13);
      const { exits } = watch(m);
      hlt(m);
      expect(caught(m)).toBe(true);
      expect(exits).toEqual(['write_cr0', 'hlt']);
      expect(m.vcpu.arch.cr0).toBe(0x10n);
    });
  }
  it('scenario 3: an undefined bit is ignored', async () => {
    const m = await machine([...MOV_EAX(0x2_0011), ...MOV_CR0_EAX, HLT]);
    hlt(m);
    expect(m.vcpu.arch.cr0).toBe(0x11n);
  });
  it('scenario 4: ET reads back 1', async () => {
    const m = await machine([...MOV_EAX(0x1), ...MOV_CR0_EAX, 0x0f, 0x20, 0xc3, HLT]);
    hlt(m);
    expect(m.vcpu.arch.regs[3]).toBe(0x11n);
  });
  it('scenario 15: LMSW 0 keeps PE, LMSW replaces TS, EM, MP', async () => {
    // mov ax, 0fh; lmsw ax; xor ax, ax; lmsw ax; hlt
    const m = await machine([...NO_CACHE_BITS, 0xb8, 0x0f, 0, 0x0f, 0x01, 0xf0, 0x31, 0xc0, 0x0f, 0x01, 0xf0, HLT]);
    const { exits, callers } = watch(m);
    hlt(m);
    expect(exits).toEqual(['write_cr0', 'cr0_sel_write', 'cr0_sel_write', 'hlt']);
    expect(m.vcpu.arch.cr0).toBe(0x11n);
    expect(callers('kvmSetCr0')).toContain('emulatorSetCr');
  });
  it('scenario 16: CLTS with CD=NW=0 does not exit', async () => {
    const m = await machine([...MOV_EAX(0x18), ...MOV_CR0_EAX, 0x0f, 0x06, HLT]);
    const { exits } = watch(m);
    hlt(m);
    expect(exits).toEqual(['write_cr0', 'hlt']);
    expect(m.vcpu.arch.cr0).toBe(0x10n);
  });
  it('scenario 17: CLTS with CD=1 leaves with 0x10 and is emulated', async () => {
    const m = await machine([0x0f, 0x06, HLT]);
    const { exits, callers } = watch(m);
    hlt(m);
    expect(exits).toEqual(['write_cr0', 'hlt']);
    expect(callers('kvmSetCr0')).toEqual(['emulatorSetCr']);
    expect(m.vcpu.arch.cr0).toBe(0x6000_0010n);
  });
  it('scenario 18: a change of TS alone does not exit and is picked up at the next exit', async () => {
    const m = await machine([...NO_CACHE_BITS, ...MOV_EAX(0x18), ...MOV_CR0_EAX, HLT]);
    const { exits } = watch(m);
    hlt(m);
    expect(exits).toEqual(['write_cr0', 'hlt']);
    expect(m.vcpu.arch.cr0).toBe(0x18n);
  });
  it('what KVM has set between two exits and the guest takes back is picked up, too', async () => {
    // out 80h, al: CR0 is seen with TS clear. KVM sets TS; clts; out 80h, al
    const m = await machine([...NO_CACHE_BITS, 0xe6, 0x80, 0x0f, 0x06, 0xe6, 0x80]);
    expect(m.run()).toMatchObject({ reason: 'io' });
    const sregs = m.vcpu.getSregs();
    expect(sregs.cr0).toBe(0x10n);
    m.vcpu.setSregs({ ...sregs, cr0: sregs.cr0 | 8n });
    expect(m.run()).toMatchObject({ reason: 'io' });
    expect(m.vcpu.getSregs().cr0).toBe(0x10n);
  });
  it('a read of CR0 with CD=1 gives the guest view', async () => {
    const m = await machine([0x0f, 0x20, 0xc3, HLT]);
    const { exits } = watch(m);
    hlt(m);
    expect(exits).toEqual(['read_cr0', 'hlt']);
    expect(m.vcpu.arch.regs[3]).toBe(0x6000_0010n);
  });
});

describe('exits to user space under svm', () => {
  it('`out 80h, al` and `in al, 81h`', async () => {
    const m = await machine([0xb0, 0x42, 0xe6, 0x80, 0xe4, 0x81, HLT]);
    const out = m.run();
    expect(out).toMatchObject({ reason: 'io', direction: 'out', port: 0x80, size: 1, count: 1 });
    if (out.reason === 'io') expect(out.data[0]).toBe(0x42);
    const input = m.run();
    expect(input).toMatchObject({ reason: 'io', direction: 'in', port: 0x81 });
    if (input.reason === 'io') input.data[0] = 0x99;
    hlt(m);
    expect(m.vcpu.arch.regs[0] & 0xffn).toBe(0x99n);
  });
  it('a write outside every slot is MMIO', async () => {
    // mov ax, F000h; mov ds, ax; mov byte [0], 5ah  -- with ds base F0000 + 1 MiB through ffff:0010
    const m = await machine([0xb8, 0xff, 0xff, 0x8e, 0xd8, 0xc6, 0x06, 0x10, 0x00, 0x5a, 0xa0, 0x11, 0x00, HLT]);
    const write = m.run();
    expect(write).toMatchObject({ reason: 'mmio', physAddr: 0x10_0000, len: 1, isWrite: true });
    if (write.reason === 'mmio') expect(write.data[0]).toBe(0x5a);
    const read = m.run();
    expect(read).toMatchObject({ reason: 'mmio', physAddr: 0x10_0001, len: 1, isWrite: false });
    if (read.reason === 'mmio') read.data[0] = 0x77;
    hlt(m);
    expect(m.vcpu.arch.regs[0] & 0xffn).toBe(0x77n);
  });
  it('a triple fault is a shutdown, and the vCPU has been INITed', async () => {
    const m = await machine([0x0f, 0x01, 0x1e, 0, 7, 0x0f, 0x0b]); // lidt [700h]; ud2
    expect(m.run()).toMatchObject({ reason: 'shutdown' });
    expect(m.vcpu.arch.regs[16]).toBe(0xfff0n);
  });
  it('an entry that VMRUN refuses names the rows', async () => {
    const m = await machine([HLT]);
    const { vmcb } = toSvm(m.vcpu);
    vmcb.set32(V.intercept4, vmcb.get32(V.intercept4) & ~1);
    const exit = m.run();
    expect(exit).toMatchObject({ reason: 'fail_entry', hardwareEntryFailureReason: 0xffff_ffff_ffff_ffffn });
    if (exit.reason === 'fail_entry') expect(exit.failures.map((f) => f.code)).toEqual(['svm.intercept.vmrun-clear']);
  });
  it('a budget ends an endless loop', async () => {
    const m = await machine([0xeb, 0xfe]);
    expect(m.run()).toMatchObject({ reason: 'intr' });
  });
});

describe('instructions that KVM does for the guest', () => {
  it('CPUID gives the guest view and goes on behind the instruction', async () => {
    const m = await machine([0x66, 0x31, 0xc0, 0x0f, 0xa2, HLT]);
    const { exits } = watch(m);
    hlt(m);
    expect(exits).toEqual(['cpuid', 'hlt']);
  });
  it('VMRUN in a guest without SVM is #UD', async () => {
    const m = await machine([...MOV_EAX(0x11), ...MOV_CR0_EAX, 0x0f, 0x01, 0xd8, HLT]);
    const { exits, callers } = watch(m);
    // Without an IDT the #UD ends in a shutdown.
    expect(m.run()).toMatchObject({ reason: 'shutdown' });
    expect(exits).toEqual(['write_cr0', 'vmrun', 'shutdown']);
    expect(callers('kvmQueueException')).toEqual(['vmrunInterception']);
  });
  it('WRMSR to a passed-through MSR does not exit, and RDMSR through KVM sees it', async () => {
    // mov ecx, C0000082h; mov eax, 1234h; xor edx, edx; wrmsr; hlt
    const m = await machine([0x66, 0xb9, 0x82, 0, 0, 0xc0, ...MOV_EAX(0x1234), 0x66, 0x31, 0xd2, 0x0f, 0x30, HLT]);
    const { exits } = watch(m);
    hlt(m);
    expect(exits).toEqual(['hlt']);
    const msr = { index: 0xc000_0082, data: 0n, hostInitiated: true };
    expect(m.kvm.calls.getMsr(m.vcpu, msr)).toBe(0);
    expect(msr.data).toBe(0x1234n);
  });
});

describe('events', () => {
  /** Vector `n` of the guest's IVT points to `code` at 0x700. */
  const handler = (m: Machine, n: number, code: number[]): void => {
    m.vm.writeGuest(n * 4, Uint8Array.of(0, 7, 0, 0));
    m.vm.writeGuest(0x700, Uint8Array.from(code));
  };
  const COUNT = [0xfe, 0x06, 0, 5]; // inc byte [500h]
  const count = (m: Machine): number => m.vm.readGuest(0x500, 1)[0];

  it('an interrupt waits for IF by an interrupt window, then is injected', async () => {
    const m = await machine([0x90, 0xe6, 0x80, 0xfb, 0x90, 0x90, HLT]); // nop; out 80h, al; sti; nop; nop; hlt
    handler(m, 0x21, [...COUNT, 0xcf]);
    const { exits } = watch(m);
    m.run();
    m.vcpu.runIo.requestInterruptWindow = true;
    expect(m.run()).toMatchObject({ reason: 'irq_window_open' });
    m.vcpu.runIo.requestInterruptWindow = false;
    m.vcpu.interrupt(0x21);
    hlt(m);
    expect(count(m)).toBe(1);
    expect(exits).toContain('vintr');
  });
  it('a second NMI waits for the IRET of the first', async () => {
    const m = await machine([0xe6, 0x80, 0x90, 0x90, HLT]); // out 80h, al; nop; nop; hlt
    handler(m, 2, [...COUNT, 0xe6, 0x81, 0xcf]); // inc byte [500h]; out 81h, al; iret
    const { exits } = watch(m);
    m.run();
    m.vcpu.nmi();
    expect(m.run()).toMatchObject({ reason: 'io', port: 0x81 });
    m.vcpu.nmi();
    expect(count(m)).toBe(1);
    expect(m.run()).toMatchObject({ reason: 'io', port: 0x81 });
    expect(count(m)).toBe(2);
    hlt(m);
    expect(exits).toContain('iret');
  });
  it('an exit during the delivery of INT n injects it again, and it returns behind the INT', async () => {
    const m = await machine([0xcd, 0x22, HLT]);
    // The handler's page and the IVT are touched first by the delivery: nested faults on the way.
    handler(m, 0x22, [...COUNT, 0xcf]);
    hlt(m);
    expect(count(m)).toBe(1);
    expect(m.vcpu.arch.regs[16]).toBe(BigInt(CODE + 3));
  });
  it('an SMI runs its handler at SMBASE and RSM goes back', async () => {
    const m = await machine([0xe6, 0x80, 0x90, HLT]);
    m.vm.writeGuest(0x38000, Uint8Array.of(0x2e, 0xc6, 0x06, 0x00, 0x90, 0x77, 0x0f, 0xaa)); // mov byte cs:[9000h], 77h; rsm
    const { exits } = watch(m);
    m.run();
    m.vcpu.smi();
    hlt(m);
    expect(m.vm.readGuest(0x39000, 1)[0]).toBe(0x77);
    expect(exits).toContain('rsm');
  });
  it('a debugger steps one instruction at a time', async () => {
    const m = await machine([0x90, 0x90, HLT]);
    m.vcpu.setGuestDebug(3); // ENABLE, SINGLESTEP
    expect(m.run()).toMatchObject({ reason: 'debug', exception: 1, pc: BigInt(CODE + 1) });
    expect(m.run()).toMatchObject({ reason: 'debug', exception: 1, pc: BigInt(CODE + 2) });
  });
});

describe('loading and unloading', () => {
  it('the module can go and come again', async () => {
    const kvm = await Kvm.create(svm(), { memory: 16 << 20 });
    for (let round = 0; round < 2; round += 1) {
      const vm = kvm.createVm();
      vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: RAM });
      vm.createVcpu(0);
      expect(() => kvm.unload()).toThrow(/exist/);
      vm.destroy();
      kvm.unload();
      kvm.load(svm({ nrips: round === 0 }));
    }
    expect(kvm.backend?.name).toBe('svm');
  });
});

describe('module parameters', () => {
  it('are refused by name and type', () => {
    expect(() => svm({ ept: true } as SvmOptions)).toThrow(/no parameter 'ept'/);
    expect(() => svm({ npt: 1 } as unknown as SvmOptions)).toThrow(/'npt' is a boolean/);
  });
});
