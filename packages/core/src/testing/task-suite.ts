/** Hardware task switches, which every backend leaves to KVM's emulator: the plain case, and faults in the old and in the new task. */
import { describe, expect, test } from 'vitest';
import type { Backend } from '../backend.ts';
import { finish, type Guest, makeGuest, Place } from './guest.ts';

const OLD = 0x4000;
const NEXT = 0x5000;
const SELECTOR = 0x30;
/** In the 32-bit TSS (SDM vol. 3 figure 7-2). */
const Tss = { eip: 0x20, eflags: 0x24, esp: 0x38, es: 0x48, cs: 0x4c, ss: 0x50, ds: 0x54, fs: 0x58, gs: 0x5c } as const;
const VECTOR_TS = 10;
const VECTOR_GP = 13;
/** mov eax, 28h; ltr ax; jmp 30h:0 */
const CODE = [0xb8, 0x28, 0, 0, 0, 0x0f, 0x00, 0xd8, 0xea, 0, 0, 0, 0, SELECTOR, 0];
const JUMP = Place.code + 8;

const task = (base: number, limit: number): bigint => 0x0000890000000000n | BigInt(limit) | (BigInt(base) << 16n);
const gate = (handler: number): bigint => BigInt(handler) | (8n << 16n) | (0x8en << 40n);

/** A guest that jumps to another task, with these fields of its TSS; #TS and #GP go to the handler that reports a fault. */
const jumper = (make: () => Backend, fields: Partial<Record<keyof typeof Tss, number>>, limit = 0x67): Promise<Guest> =>
  makeGuest(make(), {
    mode: 'protected',
    code: CODE,
    patch: (sregs) => {
      sregs.gdt = { base: BigInt(Place.gdt), limit: 0x3f };
    },
    prepare: (vm) => {
      vm.writeGuestValue(Place.gdt + 0x28, task(OLD, 0x67), 8);
      vm.writeGuestValue(Place.gdt + SELECTOR, task(NEXT, limit), 8);
      vm.writeGuestValue(Place.idt32 + VECTOR_TS * 8, gate(Place.handler), 8);
      vm.writeGuestValue(Place.idt32 + VECTOR_GP * 8, gate(Place.handler), 8);
      const data = 0x10;
      const good = {
        eip: Place.code + CODE.length,
        eflags: 2,
        esp: Place.stack,
        es: data,
        cs: 8,
        ss: data,
        ds: data,
        fs: data,
        gs: data,
      };
      for (const [name, value] of Object.entries({ ...good, ...fields })) {
        vm.writeGuestValue(NEXT + Tss[name as keyof typeof Tss], BigInt(value), 4);
      }
    },
  });
/** Error code, EIP and CS that the fault pushed. */
const frameOf = ({ vcpu, vm }: Guest): number[] => {
  const esp = Number(vcpu.getRegs().rsp);
  return [0, 4, 8].map((at) => Number(vm.readGuestValue(esp + at, 4)));
};

export function taskSuite(make: () => Backend): void {
  describe('task switches', () => {
    test('JMP to a TSS', async () => {
      const guest = await jumper(make, {});
      expect(finish(guest)).toBe('done');
      expect(guest.vcpu.getSregs().tr.selector).toBe(SELECTOR);
    });
    test('a TSS that is too short: #TS in the old task, at the instruction', async () => {
      const guest = await jumper(make, {}, 0x66);
      expect(finish(guest)).toBe('fault');
      expect(frameOf(guest)).toEqual([SELECTOR, JUMP, 8]);
      expect(guest.vcpu.getSregs().tr.selector).toBe(0x28);
    });
    test('a bad code segment: there is nothing to enter, user space is told', async () => {
      const guest = await jumper(make, { cs: 0x70 });
      expect(finish(guest)).toBe('internal_error');
    });
    test('a bad data segment: #TS in the new task, in front of its first instruction', async () => {
      const guest = await jumper(make, { ds: 0x70 });
      expect(finish(guest)).toBe('fault');
      expect(frameOf(guest)).toEqual([0x70, Place.code + CODE.length, 8]);
      expect(guest.vcpu.getSregs().tr.selector).toBe(SELECTOR);
      expect(guest.vm.readGuestValue(OLD + Tss.eip, 4)).toBe(BigInt(JUMP + 7));
    });
  });
}
