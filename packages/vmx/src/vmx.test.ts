import { Kvm, type KvmExit, type Vcpu, type Vm } from '@tskvm/core';
import { CR0, CR4, EPYC, Flag, NotImplementedError, Seg, XEON } from '@tskvm/emulator';
import { describe, expect, it } from 'vitest';
import { F } from './hardware/vmcs.ts';
import { toVmx, type VmxParams, vmcsOf, vmx } from './index.ts';

const RAM = 1 << 20;
const HLT = 0xf4;
const CODE = 0x1000;
const MOV_EAX = (value: number): number[] => [0x66, 0xb8, ...[0, 8, 16, 24].map((shift) => (value >>> shift) & 255)];
const MOV_CR0_EAX = [0x0f, 0x22, 0xc0];

interface Machine {
  kvm: Kvm;
  vm: Vm;
  vcpu: Vcpu;
  exits: string[];
  run(): KvmExit;
  callers(callee: string): string[];
}
/** A VM with 1 MiB at 0. `start`: real mode at 0000:1000, or the reset vector as it is. */
async function machine(
  code: readonly number[],
  params: VmxParams = {},
  start: 'code' | 'reset' = 'code',
): Promise<Machine> {
  const kvm = await Kvm.create(vmx(params), { memory: 32 << 20, shuffleFrames: 5 });
  const vm = kvm.createVm();
  if (params.unrestrictedGuest === false) vm.setTssAddr(0xfffbd000);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: RAM });
  vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0xffff0000, memorySize: 0x10000 });
  vm.writeGuest(CODE, Uint8Array.from(code));
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid(kvm.getSupportedCpuid());
  if (start === 'code') {
    const sregs = vcpu.getSregs();
    vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, selector: 0, base: 0n } });
    vcpu.setRegs({ ...vcpu.getRegs(), rip: BigInt(CODE), rsp: 0x8000n });
  }
  const exits: string[] = [];
  kvm.on('kvm_exit', (event) => {
    if (!event.name.startsWith('EPT_')) exits.push(event.name);
  });
  return {
    kvm,
    vm,
    vcpu,
    exits,
    run: () => vcpu.run({ budget: 100_000 }),
    callers: (callee) => (kvm.tracer?.edges() ?? []).filter((edge) => edge.callee === callee).map((e) => e.caller),
  };
}
const field = (m: Machine, name: keyof typeof F): bigint => vmcsOf(m.vcpu).read(F[name])!;
const hlt = (m: Machine): void => expect(m.run()).toMatchObject({ reason: 'hlt' });

describe('a write of CR0 under vmx', () => {
  it('without EPT: the hardware has SMAP exactly while the guest pages, whichever was set first', async () => {
    const set = (cr: number, value: number): number[] => [...MOV_EAX(value), 0x0f, 0x22, 0xc0 | (cr << 3)];
    const on = [...set(4, 0x200010), ...set(3, 0x2000), ...set(0, 0x80000011), HLT];
    const m = await machine([...on, ...set(0, 0x11), HLT], { ept: false, unrestrictedGuest: false });
    m.vm.writeGuestValue(0x2000, 0x87n, 4);
    hlt(m);
    expect(field(m, 'GUEST_CR4') & CR4.SMAP).toBe(CR4.SMAP);
    hlt(m);
    expect(field(m, 'GUEST_CR4') & CR4.SMAP).toBe(0n);
    expect(m.vcpu.getSregs().cr4).toBe(0x200010n);
  });
  it('PE: exits with CR_ACCESS and goes handleCr → handleSetCr0 → kvmSetCr0 → vmxSetCr0', async () => {
    const m = await machine([...MOV_EAX(0x11), ...MOV_CR0_EAX, HLT]);
    hlt(m);
    expect(m.exits).toEqual(['CR_ACCESS', 'HLT']);
    expect(m.vcpu.arch.cr0).toBe(0x11n);
    expect(m.callers('handleSetCr0')).toEqual(['handleCr']);
    expect(m.callers('kvmSetCr0')).toEqual(['handleSetCr0']);
    expect(m.callers('vmxSetCr0')).toContain('staticCall.setCr0');
  });
  it('TS and WP are the guest’s own: no exit, and KVM sees them when it asks', async () => {
    const m = await machine([...MOV_EAX(0x60010018), ...MOV_CR0_EAX, HLT]);
    hlt(m);
    expect(m.exits).toEqual(['HLT']);
    expect(m.vcpu.getSregs().cr0).toBe(0x60010018n);
  });
  it('the guest reads what it wrote, the hardware holds NE and neither CD nor NW', async () => {
    const m = await machine([0x0f, 0x20, 0xc0, HLT]);
    hlt(m);
    expect(m.vcpu.getRegs().rax).toBe(0x60000010n);
    expect(field(m, 'GUEST_CR0')).toBe(0x30n);
    expect(field(m, 'CR0_READ_SHADOW')).toBe(0x60000010n);
  });
  it('lmsw ax: kvmLmsw, and the instruction is skipped', async () => {
    const m = await machine([0xb8, 1, 0, 0x0f, 0x01, 0xf0, HLT]);
    hlt(m);
    expect(m.callers('kvmSetCr0')).toEqual(['kvmLmsw']);
    expect(m.callers('kvmLmsw')).toEqual(['handleCr']);
  });
  it('a refused value is #GP(0) and changes nothing', async () => {
    const m = await machine([...MOV_EAX(0x80000010), ...MOV_CR0_EAX, HLT]);
    m.vm.writeGuest(13 * 4, Uint8Array.of(0, 6, 0, 0));
    m.vm.writeGuest(0x600, Uint8Array.of(0xb3, 0x77, HLT));
    hlt(m);
    expect(m.vcpu.getRegs().rbx & 0xffn).toBe(0x77n);
    expect(m.vcpu.arch.cr0).toBe(0x60000010n);
  });
});

describe('without unrestricted guest', () => {
  const NO_URG: VmxParams = { unrestrictedGuest: false };

  it('the reset state is emulated until the segments are what virtual-8086 mode takes', async () => {
    const m = await machine([HLT], NO_URG, 'reset');
    m.vm.writeGuest(0xfffffff0, Uint8Array.of(0xea, 0x00, 0x10, 0x00, 0x00)); // jmp 0:1000h
    expect(m.vcpu.arch.emulationRequired).toBe(true);
    hlt(m);
    expect(m.callers('handleInvalidGuestState')).toEqual(['vmxHandleExit']);
    expect(m.vcpu.arch.emulationRequired).toBe(false);
  });

  it('real mode runs as virtual-8086 mode on the identity map', async () => {
    const m = await machine([HLT], NO_URG);
    hlt(m);
    expect(toVmx(m.vcpu).rmode.vm86Active).toBe(true);
    expect(field(m, 'GUEST_CR0') & 0x80000031n).toBe(0x80000031n);
    expect(field(m, 'GUEST_CR3')).toBe(0xfffbc000n);
    expect(field(m, 'GUEST_RFLAGS') & BigInt(Flag.VM | Flag.IOPL)).toBe(BigInt(Flag.VM | Flag.IOPL));
    expect(field(m, 'GUEST_CR4') & CR4.VME).toBe(CR4.VME);
    expect(field(m, 'GUEST_TR_BASE')).toBe(0xfffbd000n);
  });

  it('the guest sees none of it', async () => {
    const m = await machine([0x9c, 0x58, HLT], NO_URG); // pushf; pop ax
    hlt(m);
    expect(m.vcpu.getRegs().rflags & BigInt(Flag.VM | Flag.IOPL)).toBe(0n);
    expect(m.vcpu.getSregs().cr0 & (CR0.PE | CR0.PG)).toBe(0n);
    expect(m.vcpu.getSregs().cr3).toBe(0n);
    expect(m.vcpu.getSregs().cs).toMatchObject({ dpl: 0, selector: 0 });
  });

  it('mov cr0 with PE: #GP in virtual-8086 mode, the emulator, enterPmode', async () => {
    const m = await machine([...MOV_EAX(0x11), ...MOV_CR0_EAX, HLT], NO_URG);
    hlt(m);
    expect(m.exits[0]).toBe('EXCEPTION_NMI');
    expect(m.callers('handleRmodeException')).toEqual(['handleExceptionNmi']);
    expect(m.callers('kvmSetCr0')).toEqual(['emulatorSetCr']);
    expect(m.callers('enterPmode')).toEqual(['vmxSetCr0']);
    expect(toVmx(m.vcpu).rmode.vm86Active).toBe(false);
  });

  it('mov cr0 back to real mode: CR_ACCESS and enterRmode', async () => {
    const back = [...MOV_EAX(0x11), ...MOV_CR0_EAX, ...MOV_EAX(0x10), ...MOV_CR0_EAX, HLT];
    const m = await machine(back, NO_URG);
    hlt(m);
    expect(m.exits).toContain('CR_ACCESS');
    expect(m.callers('enterRmode').length).toBeGreaterThan(0);
    expect(toVmx(m.vcpu).rmode.vm86Active).toBe(true);
  });

  it('int n goes through the IVT in hardware: the redirection map is zero', async () => {
    const m = await machine([0xcd, 0x40, HLT], NO_URG);
    m.vm.writeGuest(0x40 * 4, Uint8Array.of(0, 6, 0, 0));
    m.vm.writeGuest(0x600, Uint8Array.of(0xb3, 0x55, 0xcf)); // mov bl,55h; iret
    hlt(m);
    expect(m.vcpu.getRegs().rbx & 0xffn).toBe(0x55n);
    expect(m.exits.filter((name) => name === 'EXCEPTION_NMI').length).toBeLessThan(3);
  });

  it('the TSS and the identity map are what KVM writes', async () => {
    const { vm } = await machine([HLT], NO_URG);
    expect([...vm.readGuest(0xfffbd066, 2)]).toEqual([0x88, 0]);
    expect(vm.readGuest(0xfffbd000 + 0x2088, 1)[0]).toBe(0xff);
    expect(vm.readGuestValue(0xfffbc000 + 4 * 3, 4)).toBe(0xc000e7n);
  });

  it('an external interrupt is pushed by the emulator', async () => {
    const m = await machine([0xfb, 0x90, 0xeb, 0xfe], NO_URG);
    m.vm.writeGuest(0x41 * 4, Uint8Array.of(0, 6, 0, 0));
    m.vm.writeGuest(0x600, Uint8Array.of(HLT));
    m.run();
    m.vcpu.interrupt(0x41);
    hlt(m);
    expect(m.callers('kvmInjectRealmodeInterrupt')).toEqual(['vmxInjectIrq']);
  });

  it('with emulateInvalidGuestState off, segments are bent to fit instead', async () => {
    const m = await machine([HLT], { unrestrictedGuest: false, emulateInvalidGuestState: false });
    const sregs = m.vcpu.getSregs();
    m.vcpu.setSregs({ ...sregs, ds: { ...sregs.ds, selector: 0x10, base: 0x12345n, limit: 0xffffffff, g: 1 } });
    expect(m.vcpu.arch.emulationRequired).toBe(false);
    expect(field(m, 'GUEST_DS_BASE')).toBe(0x12340n);
    expect(field(m, 'GUEST_DS_LIMIT')).toBe(0xffffn);
    expect(m.vcpu.getSregs().ds.limit).toBe(0xffffffff);
  });
});

describe('entries and parameters', () => {
  it('a failed entry names the rows that failed', async () => {
    const m = await machine([HLT]);
    vmcsOf(m.vcpu).write64(F.GUEST_CR4, 0n);
    vmcsOf(m.vcpu).write32(F.GUEST_TR_AR_BYTES, 0x10000);
    const exit = m.run();
    expect(exit.reason).toBe('fail_entry');
    if (exit.reason !== 'fail_entry') return;
    expect(exit.hardwareEntryFailureReason).toBe(0x80000021n);
    expect(exit.failures.map((f) => f.code)).toEqual(
      expect.arrayContaining(['vmx.guest.cr4.fixed', 'vmx.guest.tr.unusable']),
    );
  });
  it('a control that the processor lacks is VM-instruction error 7', async () => {
    const m = await machine([HLT]);
    vmcsOf(m.vcpu).write16(F.VIRTUAL_PROCESSOR_ID, 0);
    const exit = m.run();
    expect(exit).toMatchObject({ reason: 'fail_entry', hardwareEntryFailureReason: 7n });
    if (exit.reason === 'fail_entry') expect(exit.failures[0].code).toBe('vmx.control.vpid-zero');
  });
  it('two kernels with different parameters live side by side', async () => {
    const [a, b] = [await machine([HLT]), await machine([HLT], { vpid: false, unrestrictedGuest: false })];
    hlt(a);
    hlt(b);
    expect(toVmx(a.vcpu).vpid).toBe(1);
    expect(toVmx(b.vcpu).vpid).toBe(0);
  });
  it('a CPU model without VT-x is refused', async () => {
    await expect(Kvm.create(vmx(), { model: EPYC })).rejects.toThrow();
  });
  it('without the secondary controls in the model there is no EPT and no unrestricted guest', async () => {
    const msrs = new Map(XEON.msrs);
    msrs.set(0x48b, 0n);
    const kvm = await Kvm.create(vmx(), { model: { ...XEON, name: 'old', msrs } });
    expect(kvm.caps.tdpEnabled).toBe(false);
  });
  it('an unknown parameter and one of a wrong type say so', () => {
    expect(() => vmx({ unrestricted: true } as VmxParams)).toThrow(/no parameter 'unrestricted'/);
    expect(() => vmx({ ept: 1 } as unknown as VmxParams)).toThrow(/'ept' is a boolean/);
  });
  it('guest VMXON is #UD', async () => {
    const m = await machine([0xf3, 0x0f, 0xc7, 0x36, 0x00, 0x50]);
    m.vm.writeGuest(6 * 4, Uint8Array.of(0, 6, 0, 0));
    m.vm.writeGuest(0x600, Uint8Array.of(HLT));
    hlt(m);
    expect(m.vcpu.getRegs().rip).toBe(0x601n);
  });
  it('segments outside the VMCS keep their cached selector of virtual-8086 mode', async () => {
    const m = await machine([0xb8, 0x34, 0x12, 0x8e, 0xd8, HLT], { unrestrictedGuest: false });
    hlt(m);
    expect(m.kvm.calls.getSegment(m.vcpu, Seg.DS)).toMatchObject({ selector: 0x1234, base: 0x12340n, dpl: 0 });
  });
});

describe('an unmasked x87 exception', () => {
  it('is #MF for a guest whose CR0.NE is clear: VMX operation keeps the bit set', async () => {
    // fninit; fldcw [500h] (ZE not masked); fld1; fldz; fdivp; fld1
    const m = await machine([0xdb, 0xe3, 0xd9, 0x2e, 0, 5, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0xd9, 0xe8, HLT]);
    m.vm.writeGuest(0x500, Uint8Array.of(0x7b, 3));
    m.vm.writeGuest(16 * 4, Uint8Array.of(0, 6, 0, 0));
    m.vm.writeGuest(0x600, Uint8Array.of(HLT));
    expect(m.vcpu.getSregs().cr0 & 0x20n).toBe(0n);
    hlt(m);
    expect(m.vcpu.getRegs().rip).toBe(0x601n);
  });
});

describe('loading and unloading', () => {
  it('the module can go and come again', async () => {
    const kvm = await Kvm.create(vmx(), { memory: 16 << 20 });
    for (let round = 0; round < 2; round++) {
      const vm = kvm.createVm();
      vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: RAM });
      vm.createVcpu(0);
      expect(() => kvm.unload()).toThrow(/exist/);
      vm.destroy();
      kvm.unload();
      kvm.load(vmx({ unrestrictedGuest: round === 0 }));
    }
    expect(kvm.backend?.name).toBe('vmx');
  });
});

describe('module parameters that are not implemented', () => {
  it.each(['enableApicv', 'flexpriority', 'pml'] as const)(
    '%s: true ends the load, false and absent do not',
    async (name) => {
      await expect(Kvm.create(vmx({ [name]: true }), { memory: 32 << 20 })).rejects.toThrow(NotImplementedError);
      await expect(Kvm.create(vmx({ [name]: false }), { memory: 32 << 20 })).resolves.toBeInstanceOf(Kvm);
    },
  );
});

it('a segment without rights is written back as it was read; in others the accessed bit is set', async () => {
  const { vcpu } = await machine([HLT]);
  const before = vcpu.getSregs();
  const absent = { ...before.gs, selector: 0, type: 0, present: 0, unusable: 1 };
  vcpu.setSregs({ ...before, gs: absent, fs: { ...before.fs, type: 2 } });
  expect(vcpu.getSregs().gs).toEqual(absent);
  expect(vcpu.getSregs().fs.type).toBe(3);
});
