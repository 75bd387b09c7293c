import { beforeEach, describe, expect, test } from 'vitest';
import { type Irqchip, kvmSetMsi } from './irqchip.ts';
import { Kvm } from './kvm.ts';
import {
  Apic,
  kvmApicHasInterrupt,
  kvmGetApicInterrupt,
  kvmLapicDeliver,
  kvmSetApicBase,
  type Lapic,
} from './lapic.ts';
import { kvmLapicRegRead, kvmLapicRegWrite, kvmX2apicMsrRead, kvmX2apicMsrWrite } from './lapic-regs.ts';
import { idleBackend } from './testing/idle-backend.ts';
import type { Vcpu } from './vcpu.ts';
import type { Vm } from './vm.ts';

let kvm: Kvm;
let vm: Vm;
let chip: Irqchip;
let vcpus: Vcpu[];
let apics: Lapic[];
beforeEach(async () => {
  const deliverInterrupt = (vcpu: Vcpu, _mode: number, _trig: number, vector: number): void =>
    kvmLapicDeliver(vcpu, vector);
  kvm = await Kvm.create(idleBackend({ deliverInterrupt, apicInitSignalBlocked: () => false }), { memory: 1 << 20 });
  vm = kvm.createVm();
  vm.createIrqchip();
  vm.createPit2();
  vcpus = [vm.createVcpu(0), vm.createVcpu(1)];
  for (const vcpu of vcpus) vcpu.setCpuid(kvm.getSupportedCpuid());
  apics = vcpus.map((vcpu) => vcpu.arch.apic as Lapic);
  chip = vm.irqchip as Irqchip;
});
const out = (port: number, value: number): void => {
  expect(chip.writePort(port, value)).toBe(true);
};
const enable = (apic: Lapic): boolean => kvmLapicRegWrite(apic, Apic.SPIV, 0x1ff);
const line = (gsi: number, level: boolean): void => chip.setIrq(gsi, level);

describe('8259', () => {
  beforeEach(() => {
    for (const [port, base, third] of [
      [0x20, 0x20, 4],
      [0xa0, 0x28, 2],
    ]) {
      out(port, 0x11);
      out(port + 1, base);
      out(port + 1, third);
      out(port + 1, 1);
      out(port + 1, 0);
    }
  });
  test('an edge is latched, acknowledged once, and ends with EOI', () => {
    line(4, true);
    line(4, false);
    expect(chip.pic.output).toBe(true);
    expect(chip.pic.readIrq()).toBe(0x24);
    expect(chip.pic.output).toBe(false);
    line(5, true);
    expect(chip.pic.output).toBe(false);
    out(0x20, 0x20);
    expect(chip.pic.readIrq()).toBe(0x25);
  });
  test('a higher line interrupts a lower one in service', () => {
    line(5, true);
    expect(chip.pic.readIrq()).toBe(0x25);
    line(1, true);
    expect(chip.pic.readIrq()).toBe(0x21);
  });
  test('the slave comes through line 2', () => {
    line(12, true);
    expect(chip.pic.readIrq()).toBe(0x2c);
    out(0x20, 0x0b);
    expect(chip.readPort(0x20)).toBe(4);
    out(0xa0, 0x20);
    out(0x20, 0x20);
    expect(chip.pic.output).toBe(false);
  });
  test('a masked line waits', () => {
    out(0x21, 0x10);
    line(4, true);
    expect(chip.pic.output).toBe(false);
    out(0x21, 0);
    expect(chip.pic.output).toBe(true);
  });
  test('without a request INTA gives the spurious vector 7', () => {
    expect(chip.pic.readIrq()).toBe(0x27);
  });
  test('ELCR: a level line asks again until it falls', () => {
    out(0x4d0, 0x20);
    line(5, true);
    expect(chip.pic.readIrq()).toBe(0x25);
    out(0x20, 0x20);
    expect(chip.pic.output).toBe(true);
    line(5, false);
    expect(chip.pic.output).toBe(false);
  });
});

describe('8254', () => {
  test('a latched count stands still while time goes on', () => {
    out(0x43, 0x34);
    out(0x40, 0);
    out(0x40, 0x10);
    kvm.warpTo(1_000_000);
    out(0x43, 0);
    const first = (chip.readPort(0x40) ?? 0) | ((chip.readPort(0x40) ?? 0) << 8);
    // 1 ms are 1193 counts.
    expect(first).toBe(0x1000 - 1193);
  });
  test('read-back gives mode and output of channel 2', () => {
    out(0x61, 1);
    out(0x43, 0xb0);
    out(0x42, 10);
    out(0x42, 0);
    out(0x43, 0xe8);
    expect(chip.readPort(0x42)).toBe(0x30);
    kvm.warpTo(kvm.now() + 20_000);
    expect((chip.readPort(0x61) ?? 0) & 0x20).toBe(0x20);
  });
  test('a snapshot keeps the next edge', () => {
    out(0x43, 0x34);
    out(0x40, 0);
    out(0x40, 0x10);
    const next = chip.pit?.nextDeadline();
    const saved = structuredClone(chip.save());
    out(0x43, 0x34);
    chip.load(saved);
    expect(chip.pit?.nextDeadline()).toBe(next);
  });
});

describe('8254 and 8259', () => {
  test('with automatic EOI the timer goes on: its edge is acknowledged with the interrupt', () => {
    for (const [port, value] of [
      [0x20, 0x11],
      [0x21, 0x20],
      [0x21, 4],
      [0x21, 3],
      [0x21, 0xfe],
      [0x43, 0x34],
      [0x40, 0x18],
      [0x40, 0],
    ])
      out(port, value);
    for (let n = 0; n < 3; n++) {
      kvm.warpTo(kvm.now() + 25_000);
      vm.runTimers();
      expect(chip.pic.output).toBe(true);
      expect(chip.pic.readIrq()).toBe(0x20);
    }
  });
});

describe('local APIC', () => {
  test('priority: PPR holds back what is not above the class in service', () => {
    const [apic] = apics;
    enable(apic);
    kvmLapicDeliver(vcpus[0], 0x51);
    expect(kvmGetApicInterrupt(vcpus[0])).toBe(0x51);
    kvmLapicDeliver(vcpus[0], 0x58);
    expect(kvmApicHasInterrupt(vcpus[0])).toBe(-1);
    kvmLapicDeliver(vcpus[0], 0x61);
    expect(kvmGetApicInterrupt(vcpus[0])).toBe(0x61);
    kvmLapicRegWrite(apic, Apic.EOI, 0);
    kvmLapicRegWrite(apic, Apic.EOI, 0);
    expect(kvmApicHasInterrupt(vcpus[0])).toBe(0x58);
  });
  test('TPR holds back its class and those below', () => {
    enable(apics[0]);
    kvmLapicRegWrite(apics[0], Apic.TPR, 0x60);
    kvmLapicDeliver(vcpus[0], 0x6f);
    expect(kvmApicHasInterrupt(vcpus[0])).toBe(-1);
    kvmLapicRegWrite(apics[0], Apic.TPR, 0x50);
    expect(kvmApicHasInterrupt(vcpus[0])).toBe(0x6f);
  });
  test('a disabled APIC takes nothing, and its LVTs are masked', () => {
    expect(kvmSetMsi(vm, 0xfee00000n, 0x55)).toBe(false);
    kvmLapicRegWrite(apics[0], Apic.LVTT, 0x30);
    expect(kvmLapicRegRead(apics[0], Apic.LVTT)).toBe(0x10030);
  });
  test.each([
    ['physical', 0xfee01000n, [false, true]],
    ['broadcast', 0xfeeff000n, [true, true]],
    ['logical, flat', 0xfee02004n, [false, true]],
  ])('MSI, %s destination', (_name, address, taken) => {
    for (const [i, apic] of apics.entries()) {
      enable(apic);
      kvmLapicRegWrite(apic, Apic.LDR, 1 << (24 + i));
    }
    expect(kvmSetMsi(vm, address, 0x77)).toBe(true);
    expect(vcpus.map((vcpu) => kvmApicHasInterrupt(vcpu) === 0x77)).toEqual(taken);
  });
  test('ICR shorthands: all but self, self', () => {
    for (const apic of apics) enable(apic);
    kvmLapicRegWrite(apics[0], Apic.ICR, 0xc4000 | 0x81);
    expect(vcpus.map(kvmApicHasInterrupt)).toEqual([-1, 0x81]);
    kvmLapicRegWrite(apics[0], Apic.ICR, 0x44000 | 0x82);
    expect(vcpus.map(kvmApicHasInterrupt)).toEqual([0x82, 0x81]);
  });
  test('x2APIC: 64-bit ICR, id and logical id; xAPIC does not come back without a stop', () => {
    const [, second] = vcpus;
    const base = second.arch.apicBase;
    expect(kvmX2apicMsrRead(apics[1], 0x802)).toBeUndefined();
    expect(kvmSetApicBase(second, base | 0x400n, false)).toBe(0);
    expect(kvmX2apicMsrRead(apics[1], 0x802)).toBe(1n);
    expect(kvmX2apicMsrRead(apics[1], 0x80d)).toBe(2n);
    enable(apics[0]);
    enable(apics[1]);
    expect(kvmX2apicMsrWrite(apics[1], 0x830, 0x4090n)).toBe(0);
    expect(kvmApicHasInterrupt(vcpus[0])).toBe(0x90);
    expect(kvmX2apicMsrWrite(apics[1], 0x80b, 1n)).toBe(1);
    expect(kvmSetApicBase(second, base, false)).toBe(1);
    expect(kvmSetApicBase(second, base & ~0x800n, false)).toBe(0);
  });
  test('x2APIC mode does not exist for a guest whose CPUID lacks it', () => {
    const [vcpu] = vcpus;
    vcpu.setCpuid(
      kvm
        .getSupportedCpuid()
        .map((e) => (e.function === 1 ? { ...e, ecx: e.ecx & ~(1 << 21) } : e))
        .map((e) => ({ ...e, ecx: e.ecx >>> 0 })),
    );
    expect(kvmSetApicBase(vcpu, vcpu.arch.apicBase | 0x400n, false)).toBe(1);
    expect(kvmSetApicBase(vcpu, vcpu.arch.apicBase, false)).toBe(0);
  });
  test('timer: the count falls with time, the divisor slows it', () => {
    const [apic] = apics;
    enable(apic);
    kvmLapicRegWrite(apic, Apic.TDCR, 3);
    kvmLapicRegWrite(apic, Apic.TMICT, 1000);
    kvm.warpTo(kvm.now() + 1600);
    expect(kvmLapicRegRead(apic, Apic.TMCCT)).toBe(900);
  });
  test('timer: a change between one-shot and periodic leaves it running, one to TSC deadline stops it', () => {
    const [apic] = apics;
    enable(apic);
    kvmLapicRegWrite(apic, Apic.TDCR, 0xb);
    kvmLapicRegWrite(apic, Apic.TMICT, 1000);
    kvmLapicRegWrite(apic, Apic.LVTT, 0x20030);
    expect([kvmLapicRegRead(apic, Apic.TMICT), kvmLapicRegRead(apic, Apic.TMCCT)]).toEqual([1000, 1000]);
    kvmLapicRegWrite(apic, Apic.LVTT, 0x40030);
    expect([kvmLapicRegRead(apic, Apic.TMICT), apic.timer.deadline]).toEqual([0, Number.POSITIVE_INFINITY]);
  });
  test('timer: a TSC deadline counts in TSC cycles, ten a tick where a tick is 10 ns', async () => {
    const slow = await Kvm.create(idleBackend(), { memory: 4 << 20, nsPerTick: 10 });
    const other = slow.createVm();
    other.createIrqchip();
    const apic = other.createVcpu(0).arch.apic as Lapic;
    enable(apic);
    expect([slow.tscPerTick, slow.tscKhz]).toEqual([10, 1_000_000]);
    kvmLapicRegWrite(apic, Apic.LVTT, 0x40030);
    apic.timer.setTscDeadline(12345n);
    expect(apic.timer.deadline).toBe(1235);
    slow.warpTo(1235);
    expect(slow.hostTsc()).toBe(12350n);
  });
  test('INIT by ICR leaves the target waiting for a SIPI', () => {
    kvmLapicRegWrite(apics[0], Apic.ICR2, 1 << 24);
    kvmLapicRegWrite(apics[0], Apic.ICR, 0x4500);
    expect(vcpus[1].arch.pendingApicEvents).toBe(1);
    kvmLapicRegWrite(apics[0], Apic.ICR, 0x4607);
    expect([vcpus[1].arch.pendingApicEvents, vcpus[1].arch.sipiVector]).toEqual([3, 7]);
  });
  test('physical mode goes by the APIC ID register: two with the same ID take one message each', () => {
    for (const apic of apics) {
      enable(apic);
      kvmLapicRegWrite(apic, Apic.ID, 0x19 << 24);
    }
    kvmLapicRegWrite(apics[0], Apic.ICR2, 1 << 24);
    kvmLapicRegWrite(apics[0], Apic.ICR, 0x40f1);
    expect(vcpus.map(kvmApicHasInterrupt)).toEqual([-1, -1]);
    kvmLapicRegWrite(apics[0], Apic.ICR2, 0x19 << 24);
    kvmLapicRegWrite(apics[0], Apic.ICR, 0x40f1);
    expect(vcpus.map(kvmApicHasInterrupt)).toEqual([0xf1, 0xf1]);
  });
});

describe('IOAPIC', () => {
  const redirect = (pin: number, low: number, high = 0): void => {
    for (const [index, value] of [
      [0x11 + 2 * pin, high],
      [0x10 + 2 * pin, low],
    ]) {
      chip.ioapic.write(0xfec00000, index);
      chip.ioapic.write(0xfec00010, value);
    }
  };
  test('an edge goes to the vector of its entry, once', () => {
    enable(apics[1]);
    redirect(4, 0x44, 1 << 24);
    line(4, true);
    line(4, true);
    expect(kvmGetApicInterrupt(vcpus[1])).toBe(0x44);
    expect(kvmApicHasInterrupt(vcpus[1])).toBe(-1);
  });
  test('a masked edge is lost, as in ioapic_write_indirect', () => {
    enable(apics[0]);
    redirect(4, 0x10044);
    line(4, true);
    line(4, false);
    expect(kvmApicHasInterrupt(vcpus[0])).toBe(-1);
    redirect(4, 0x44);
    expect(kvmApicHasInterrupt(vcpus[0])).toBe(-1);
  });
  test('a level line sets remote IRR until EOI, then comes again while it is high', () => {
    enable(apics[0]);
    redirect(9, 0x8049);
    line(9, true);
    chip.ioapic.write(0xfec00000, 0x10 + 18);
    expect(chip.ioapic.read(0xfec00010) & 0x4000).toBe(0x4000);
    expect(kvmGetApicInterrupt(vcpus[0])).toBe(0x49);
    kvmLapicRegWrite(apics[0], Apic.EOI, 0);
    expect(kvmGetApicInterrupt(vcpus[0])).toBe(0x49);
    line(9, false);
    kvmLapicRegWrite(apics[0], Apic.EOI, 0);
    expect(kvmApicHasInterrupt(vcpus[0])).toBe(-1);
  });
  test('IRQ 0 is wired to pin 2', () => {
    enable(apics[0]);
    redirect(2, 0x42);
    line(0, true);
    expect(kvmApicHasInterrupt(vcpus[0])).toBe(0x42);
  });
});

test('routing: a GSI may become an MSI', () => {
  enable(apics[1]);
  vm.setGsiRouting([{ gsi: 30, type: 'msi', address: 0xfee01000n, data: 0x66 }]);
  line(30, true);
  expect(vcpus.map(kvmApicHasInterrupt)).toEqual([-1, 0x66]);
});
