/** Interrupts through the controllers in the kernel: PIC, PIT, local APIC, IOAPIC, IPIs, INIT and SIPI. */
import { describe, expect, test } from 'vitest';
import type { Backend } from '../backend.ts';
import { MpState } from '../types.ts';
import { bytes, type Guest, type GuestOptions, makeGuest, Place } from './guest.ts';

const ISR = 0x700;
const APIC = 0xfee00000;
const IOAPIC = 0xfec00000;
const out = (port: number): number[] => [0xe6, port];
const movAl = (value: number): number[] => [0xb0, value];
const outValue = (port: number, value: number): number[] => [...movAl(value), ...out(port)];
/** mov dword [address], value (32-bit code). */
const store = (address: number, value: number): number[] => [
  0xc7,
  0x05,
  ...bytes(BigInt(address), 4),
  ...bytes(BigInt(value >>> 0), 4),
];
const gate = (handler: number): bigint => BigInt(handler) | (8n << 16n) | (0x8en << 40n);
/** sti; hlt; jmp to the hlt. */
const WAIT = [0xfb, 0xf4, 0xeb, 0xfd];
/** ICW1-4 with vectors 20h and 28h, then the masks. */
const initPics = (mask: number): number[] => [
  ...[outValue(0x20, 0x11), outValue(0x21, 0x20), outValue(0x21, 4), outValue(0x21, 1)].flat(),
  ...[outValue(0xa0, 0x11), outValue(0xa1, 0x28), outValue(0xa1, 2), outValue(0xa1, 1)].flat(),
  ...[outValue(0x21, mask), outValue(0xa1, 0xff)].flat(),
];

/** Runs all vCPUs; idle time is skipped. Answers with the ports that were written, and the vCPU. */
function ports(guest: Guest, count: number, limit = 1000): string[] {
  const seen: string[] = [];
  for (let i = 0; i < limit && seen.length < count; i++) {
    const { vcpu, exit } = guest.vm.run({ budget: 100000 });
    if (exit.reason === 'idle') {
      if (exit.idleUntil === Number.POSITIVE_INFINITY) return [...seen, 'idle for ever'];
      guest.kvm.warpTo(exit.idleUntil);
    } else if (exit.reason === 'io') seen.push(`${vcpu.vcpuId}:${exit.port.toString(16)}`);
    else if (exit.reason !== 'intr') return [...seen, exit.reason];
  }
  return seen;
}

const withIrqchip = (make: () => Backend, options: GuestOptions): Promise<Guest> =>
  makeGuest(make(), { ...options, irqchip: true });

/** Interrupt handler: out port, al; EOI to the local APIC; iret. */
const apicHandler = (port: number): Uint8Array => Uint8Array.from([...out(port), ...store(APIC + 0xb0, 0), 0xcf]);
const picHandler = (port: number): Uint8Array => Uint8Array.from([...outValue(0x20, 0x20), ...out(port), 0xcf]);

export function irqSuite(make: () => Backend): void {
  describe('interrupts', () => {
    test('PIT channel 0 in mode 2 comes again and again through the PIC', async () => {
      const guest = await withIrqchip(make, {
        mode: 'real',
        code: [...initPics(0xfe), ...outValue(0x43, 0x34), ...outValue(0x40, 0xe8), ...outValue(0x40, 3), ...WAIT],
        prepare: (vm) => {
          vm.createPit2();
          vm.writeGuest(ISR, picHandler(0x80));
          vm.writeGuestValue(0x20 * 4, BigInt(ISR), 4);
        },
      });
      const from = guest.kvm.now();
      expect(ports(guest, 4)).toEqual(['0:80', '0:80', '0:80', '0:80']);
      // 1000 counts of 1.193182 MHz are 838 us.
      const elapsed = guest.kvm.now() - from;
      expect(elapsed).toBeGreaterThan(4 * 838000);
      expect(elapsed).toBeLessThan(4.2 * 838100);
    });
    test('a line of user space reaches a halted guest; a masked one does not', async () => {
      const guest = await withIrqchip(make, {
        mode: 'real',
        code: [...initPics(0xef), ...WAIT],
        prepare: (vm) => {
          vm.writeGuest(ISR, picHandler(0x81));
          vm.writeGuestValue(0x24 * 4, BigInt(ISR), 4);
        },
      });
      expect(ports(guest, 1)).toEqual(['idle for ever']);
      guest.vm.setIrqLine(3, true);
      expect(ports(guest, 1)).toEqual(['idle for ever']);
      guest.vm.setIrqLine(4, true);
      expect(ports(guest, 2)).toEqual(['0:81', 'idle for ever']);
    });
    test('local APIC timer, one-shot', async () => {
      const guest = await withIrqchip(make, {
        mode: 'protected',
        code: [
          ...store(APIC + 0xf0, 0x1ff),
          ...store(APIC + 0x3e0, 0xb),
          ...store(APIC + 0x320, 0x30),
          ...store(APIC + 0x380, 50000),
          ...WAIT,
        ],
        prepare: (vm) => {
          vm.writeGuest(ISR, apicHandler(0x82));
          vm.writeGuestValue(Place.idt32 + 0x30 * 8, gate(ISR), 8);
        },
      });
      expect(ports(guest, 2)).toEqual(['0:82', 'idle for ever']);
      expect(guest.kvm.now()).toBeGreaterThan(50000);
    });
    test('local APIC timer, periodic, interrupts a loop', async () => {
      const guest = await withIrqchip(make, {
        mode: 'protected',
        code: [
          ...store(APIC + 0xf0, 0x1ff),
          ...store(APIC + 0x3e0, 0xb),
          ...store(APIC + 0x320, 0x20030),
          ...store(APIC + 0x380, 3000),
          ...[0xfb, 0xeb, 0xfe],
        ],
        prepare: (vm) => {
          vm.writeGuest(ISR, apicHandler(0x82));
          vm.writeGuestValue(Place.idt32 + 0x30 * 8, gate(ISR), 8);
        },
      });
      expect(ports(guest, 3)).toEqual(['0:82', '0:82', '0:82']);
    });
    test('two NMIs and an interrupt at once: the NMIs first, then the interrupt, none is lost', async () => {
      const nmi = 0x780;
      const guest = await withIrqchip(make, {
        mode: 'protected',
        // sti; jmp $
        code: [...store(APIC + 0xf0, 0x1ff), 0xfb, 0xeb, 0xfe],
        prepare: (vm) => {
          // inc ebx; iretd: an exit here would make KVM look again anyway
          vm.writeGuest(nmi, Uint8Array.from([0x43, 0xcf]));
          vm.writeGuest(ISR, apicHandler(0x82));
          vm.writeGuestValue(Place.idt32 + 2 * 8, gate(nmi), 8);
          vm.writeGuestValue(Place.idt32 + 0x44 * 8, gate(ISR), 8);
        },
      });
      guest.vm.run({ budget: 1000 });
      guest.vcpu.nmi();
      guest.vcpu.nmi();
      guest.vm.signalMsi(0xfee00000n, 0x44);
      const before = guest.vcpu.getRegs().rbx;
      expect(ports(guest, 1, 50)).toEqual(['0:82']);
      expect(guest.vcpu.getRegs().rbx - before).toBe(2n);
    });
    test('IOAPIC pin 5, level-triggered, is sent again until the line falls', async () => {
      const guest = await withIrqchip(make, {
        mode: 'protected',
        code: [
          ...[outValue(0x21, 0xff), outValue(0xa1, 0xff)].flat(),
          ...store(APIC + 0xf0, 0x1ff),
          ...store(IOAPIC, 0x1b),
          ...store(IOAPIC + 0x10, 0),
          ...store(IOAPIC, 0x1a),
          ...store(IOAPIC + 0x10, 0x8031),
          ...WAIT,
        ],
        prepare: (vm) => {
          vm.writeGuest(ISR, apicHandler(0x83));
          vm.writeGuestValue(Place.idt32 + 0x31 * 8, gate(ISR), 8);
        },
      });
      expect(ports(guest, 1)).toEqual(['idle for ever']);
      guest.vm.setIrqLine(5, true);
      expect(ports(guest, 2)).toEqual(['0:83', '0:83']);
      guest.vm.setIrqLine(5, false);
      expect(ports(guest, 1)).toEqual(['idle for ever']);
    });
    test('an interrupt waits for sti', async () => {
      const guest = await withIrqchip(make, {
        mode: 'real',
        // A thousand turns with IF=0, then: sti; nop; out 84h, al; hlt
        code: [...initPics(0xef), 0xb9, 0xe8, 3, 0xe2, 0xfe, 0xfb, 0x90, ...out(0x84), 0xf4],
        prepare: (vm) => {
          vm.writeGuest(ISR, picHandler(0x81));
          vm.writeGuestValue(0x24 * 4, BigInt(ISR), 4);
        },
      });
      guest.vm.vcpus[0].run({ budget: 100 });
      guest.vm.setIrqLine(4, true);
      expect(ports(guest, 2)).toEqual(['0:81', '0:84']);
    });
    test('INIT and SIPI start a second processor, which sends an IPI back', async () => {
      const guest = await withIrqchip(make, {
        mode: 'protected',
        code: [
          ...store(APIC + 0xf0, 0x1ff),
          ...store(APIC + 0x310, 0x01000000),
          ...store(APIC + 0x300, 0x4500),
          ...store(APIC + 0x300, 0x4609),
          ...WAIT,
        ],
        prepare: (vm) => {
          const ap = vm.createVcpu(1);
          ap.setCpuid(vm.kvm.getSupportedCpuid());
          // In real mode: out 85h, al; a 32-bit store through a 4 GiB segment is not there, so the IPI goes by x2APIC.
          vm.writeGuest(0x9000, Uint8Array.from([...out(0x85), ...x2apicIpi(0x32), 0xf4]));
          vm.writeGuest(ISR, apicHandler(0x86));
          vm.writeGuestValue(Place.idt32 + 0x32 * 8, gate(ISR), 8);
        },
      });
      expect(guest.vm.vcpus[1].getMpState()).toBe(MpState.UNINITIALIZED);
      expect(ports(guest, 3)).toEqual(['1:85', '0:86', 'idle for ever']);
      expect(guest.vm.vcpus[1].getMpState()).toBe(MpState.HALTED);
    });
    test('an NMI wakes a guest that has interrupts off', async () => {
      const guest = await withIrqchip(make, {
        mode: 'real',
        code: [0xfa, 0xf4, ...out(0x87), 0xf4],
        prepare: (vm) => {
          vm.writeGuest(ISR, Uint8Array.from([...out(0x88), 0xcf]));
          vm.writeGuestValue(2 * 4, BigInt(ISR), 4);
        },
      });
      expect(ports(guest, 1)).toEqual(['idle for ever']);
      guest.vm.vcpus[0].nmi();
      expect(ports(guest, 2)).toEqual(['0:88', '0:87']);
    });
    test('two processors take turns, the same way every time', async () => {
      const run = async (): Promise<string[]> => {
        const guest = await withIrqchip(make, {
          mode: 'real',
          code: spin(0x89),
          prepare: (vm) => {
            const second = vm.createVcpu(1);
            second.setCpuid(vm.kvm.getSupportedCpuid());
            second.setMpState(MpState.RUNNABLE);
            second.setSregs({ ...second.getSregs(), cs: { ...second.getSregs().cs, selector: 0, base: 0n } });
            second.setRegs({ ...second.getRegs(), rip: 0x9000n });
            vm.writeGuest(0x9000, Uint8Array.from(spin(0x8a)));
          },
        });
        return ports(guest, 6);
      };
      const first = await run();
      expect(new Set(first)).toEqual(new Set(['0:89', '1:8a']));
      expect(await run()).toEqual(first);
    });
  });
}

/** mov cx, ffffh; loop $; out port, al; jmp to the start. */
const spin = (port: number): number[] => [0xb9, 0xff, 0xff, 0xe2, 0xfe, ...out(port), 0xeb, 0xf7];

/** Real mode: switches to x2APIC, enables it and sends `vector` to processor 0. */
function x2apicIpi(vector: number): number[] {
  const mov = (reg: 'eax' | 'ecx' | 'edx', value: number): number[] => [
    0x66,
    { eax: 0xb8, ecx: 0xb9, edx: 0xba }[reg],
    ...bytes(BigInt(value >>> 0), 4),
  ];
  const wrmsr = (index: number, high: number, low: number): number[] => [
    ...mov('ecx', index),
    ...mov('edx', high),
    ...mov('eax', low),
    0x0f,
    0x30,
  ];
  return [...wrmsr(0x1b, 0, 0xfee00c00), ...wrmsr(0x80f, 0, 0x1ff), ...wrmsr(0x830, 0, 0x4000 | vector)];
}
