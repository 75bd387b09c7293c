import { describe, expect, it } from 'vitest';
import { AccessKind } from '../memory/paging.ts';
import type { PlatformBus } from '../processor-api.ts';
import { CR0, Flag } from '../state-layout.ts';
import { TestMachine } from '../testing/index.ts';

/** A bus that writes down what reaches it. */
function logging(): { bus: PlatformBus; log: string[] } {
  const log: string[] = [];
  const bus: PlatformBus = {
    pioIn: () => 0,
    pioOut: () => {},
    read: (pa, size) => {
      log.push(`read ${pa.toString(16)} ${size}`);
      return 0x8877665544332211n;
    },
    write: (pa, size, value) => log.push(`write ${pa.toString(16)} ${size} ${value.toString(16)}`),
    acknowledgeInterrupt: () => -1,
  };
  return { bus, log };
}

describe('linear accesses', () => {
  it('cross pages that lie apart in physical memory', () => {
    const machine = new TestMachine();
    machine.load([0xf4], 'long');
    // 200000h.. by 4 KiB pages: 200000 -> 30000, 201000 -> 50000
    machine.memory.write64(0x5000 + 8, 0x6003n);
    machine.memory.write64(0x6000, 0x30003n);
    machine.memory.write64(0x6008, 0x50003n);
    machine.cpu.ops.writeEmulated(0x200ffdn, 0x0807060504030201n, 8);
    expect([...machine.memory.readBytes(0x30ffd, 3)]).toEqual([1, 2, 3]);
    expect([...machine.memory.readBytes(0x50000, 5)]).toEqual([4, 5, 6, 7, 8]);
    expect(machine.cpu.ops.readEmulated(0x200ffdn, 8)).toBe(0x0807060504030201n);
  });
  it('a crossing write whose second page faults changes nothing', () => {
    const machine = new TestMachine();
    machine.load([0xf4], 'long');
    machine.memory.write64(0x5000 + 8, 0x6003n);
    machine.memory.write64(0x6000, 0x30003n);
    expect(() => machine.cpu.ops.writeEmulated(0x200ffdn, -1n & 0xffffffffffffffffn, 8)).toThrow();
    expect(machine.cpu.exception).toMatchObject({ vector: 14, errorCode: 2, payload: 0x201000n });
    expect([...machine.memory.readBytes(0x30ffd, 3)]).toEqual([0, 0, 0]);
  });
  it('reach the bus outside RAM, in naturally aligned pieces', () => {
    const { bus, log } = logging();
    const machine = new TestMachine({ bus });
    machine.load([0xf4], 'prot32');
    expect(machine.cpu.ops.readEmulated(0xfee00020n, 4)).toBe(0x44332211n);
    machine.cpu.ops.writeEmulated(0xfee00032n, 0x11223344n, 4);
    expect(log).toEqual(['read fee00020 4', 'write fee00032 2 3344', 'write fee00034 2 1122']);
  });
  it('read ones where there is nothing', () => {
    const machine = new TestMachine();
    machine.load([0xf4], 'prot32');
    expect(machine.cpu.ops.readEmulated(0xfee00020n, 4)).toBe(0xffffffffn);
    machine.cpu.ops.writeEmulated(0xfee00020n, 0n, 4);
  });
  it('wrap at 4 GiB outside long mode', () => {
    const { bus, log } = logging();
    const machine = new TestMachine({ bus });
    machine.load([0xf4], 'prot32');
    machine.memory.write8(0, 0x5a);
    expect(machine.cpu.ops.readStd(0xffffffffn, 2, false) >> 8n).toBe(0x5an);
    expect(log).toEqual(['read ffffffff 1']);
  });
  it('a non-canonical address is #GP(0)', () => {
    const machine = new TestMachine();
    machine.load([0xf4], 'long');
    expect(() => machine.cpu.ops.readStd(0x800000000000n, 1, true)).toThrow();
    expect(machine.cpu.exception).toMatchObject({ vector: 13, errorCode: 0 });
  });
  it('#AC comes only at CPL 3 with AM and AC, and behind page faults', () => {
    const machine = new TestMachine();
    machine.load([0xf4], 'long');
    const { access } = machine.cpu;
    machine.state.cr0 |= CR0.AM;
    machine.state.rflags |= BigInt(Flag.AC);
    expect(access.read(0x1001, 0, 4, AccessKind.read)).toBe(0n);
    machine.state.cpl = 3;
    expect(() => access.read(0x1001, 0, 4, AccessKind.read)).toThrow();
    expect(machine.cpu.exception).toMatchObject({ vector: 17, errorCode: 0 });
    expect(access.read(0x1001, 0, 4, AccessKind.system)).toBe(0n);
    machine.memory.write64(0x5000 + 8, 0n);
    expect(() => access.read(0x200001, 0, 4, AccessKind.read)).toThrow();
    expect(machine.cpu.exception).toMatchObject({ vector: 14, errorCode: 4 });
  });
  it('a write by the outside world into predecoded code is seen at once', () => {
    const machine = new TestMachine({ engine: 'interpret' });
    // L: inc eax; jmp L
    machine.load([0xff, 0xc0, 0xeb, 0xfc], 'prot32');
    machine.go(100);
    expect(machine.reg(0)).toBe(50n);
    // dec eax
    machine.memory.writeBytes(0x10000, Uint8Array.from([0xff, 0xc8]));
    machine.go(100);
    expect(machine.reg(0)).toBe(0n);
  });
});
