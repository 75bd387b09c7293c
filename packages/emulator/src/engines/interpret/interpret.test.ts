import { describe, expect, it } from 'vitest';
import { Layout } from '../../memory/layout.ts';
import { Flag, S } from '../../state-layout.ts';
import { type HotCode, InterpretEngine, type InterpretOptions } from './interpret.ts';
import { MiniHost } from './mini-host.ts';

const CODE = 0x1000;
const RAX = 0;
const RCX = 1;
const RSI = 6;
const RDI = 7;

function load(
  code: readonly number[],
  at = CODE,
  hotCode?: InterpretOptions['hotCode'],
): { host: MiniHost; engine: InterpretEngine } {
  const host = new MiniHost(0x800000);
  const engine = new InterpretEngine(host, { vendor: 'amd', ...(hotCode && { hotCode }) });
  host.engine = engine;
  host.memory.writeBytes(at, Uint8Array.from(code));
  host.rip = BigInt(at);
  host.setGpr(4, 0x8000n);
  return { host, engine };
}

/** inc rax; inc rax; dec rcx; jnz back */
const LOOP = [0x48, 0xff, 0xc0, 0x48, 0xff, 0xc0, 0x48, 0xff, 0xc9, 0x75, 0xf5];

describe('ticks', () => {
  it('a run retires exactly what it may, wherever that is in a loop', () => {
    for (let ticks = 1; ticks < 300; ticks += 7) {
      const { host, engine } = load(LOOP);
      host.setGpr(RCX, 1000n);
      expect(engine.run(ticks)).toBe('budget');
      expect(engine.retired).toBe(ticks);
      const done = Math.floor(ticks / 4);
      expect(host.gpr(RAX)).toBe(BigInt(done * 2 + Math.min(ticks % 4, 2)));
      expect(host.gpr(RCX)).toBe(BigInt(1000 - done - (ticks % 4 === 3 ? 1 : 0)));
    }
  });

  it('rep movsb takes a tick per byte and stops between bytes', () => {
    const { host, engine } = load([0xf3, 0xa4, 0xf4]);
    host.setGpr(RCX, 100n);
    host.setGpr(RSI, 0x3000n);
    host.setGpr(RDI, 0x4000n);
    host.memory.fill(0x3000, 100, 7);
    expect(engine.run(30)).toBe('budget');
    expect([engine.retired, host.gpr(RCX), host.rip]).toEqual([30, 70n, BigInt(CODE)]);
    expect(host.rflags & BigInt(Flag.RF)).toBe(BigInt(Flag.RF));
    expect(engine.run(1000)).toBe('instruction');
    expect([engine.retired, host.gpr(RCX), host.rip]).toEqual([70, 0n, BigInt(CODE + 2)]);
    expect(host.rflags & BigInt(Flag.RF)).toBe(0n);
    expect(host.memory.readBytes(0x4000, 101)).toEqual(Uint8Array.from([...Array(100).fill(7), 0]));
  });
});

describe('what looks for hot code', () => {
  it('learns that blocks moved at once have nothing to gain', () => {
    const ran: number[][] = [];
    const hotCode = (): HotCode => ({
      slice: () => 16_000,
      ran: (_record, ticks, translated) => void ran.push([ticks, translated]),
      made: () => {},
      dropped: () => {},
      patched: () => {},
      unfuse: () => false,
      cleared: () => {},
      place: () => ({ region: null, at: -1, why: 'cold' }),
    });
    const { host, engine } = load([0xf3, 0xaa, 0xf4], CODE, hotCode);
    host.setGpr(RCX, 100_000n);
    host.setGpr(RDI, 0x10000n);
    expect(engine.run(1_000_000)).toBe('instruction');
    const [ticks, blocks] = [0, 1].map((i) => ran.reduce((sum, call) => sum + call[i]!, 0));
    expect(ticks).toBe(100_000);
    // The elements that fill the TLB go one by one.
    expect(blocks).toBeGreaterThan(99_000);
    expect(blocks).toBeLessThan(ticks!);
  });
});

describe('what goes back to JavaScript', () => {
  it('hlt, with the decoded instruction and RIP on it', () => {
    const { host, engine } = load([0x90, 0xf4]);
    expect(engine.run(100)).toBe('instruction');
    expect(engine.instruction?.row.mnemonic).toBe('hlt');
    expect([engine.retired, host.rip]).toEqual([1, BigInt(CODE + 1)]);
  });

  it('an instruction that crosses a page, undecoded', () => {
    const { host, engine } = load([0x90, 0x48, 0x01, 0xd8], 0x1ffd);
    expect(engine.run(100)).toBe('instruction');
    expect([engine.instruction, host.rip]).toEqual([null, 0x1ffen]);
  });

  it('cli above IOPL, nothing changed', () => {
    const { host, engine } = load([0xfa, 0xf4]);
    host.rflags = 0x202n;
    host.memory.u8[Layout.state + S.cpl] = 3;
    expect(engine.run(100)).toBe('instruction');
    expect(engine.instruction?.row.mnemonic).toBe('cli');
    expect([engine.retired, host.rflags]).toEqual([0, 0x202n]);
  });
});

describe('faults', () => {
  it('add [rbx], rax: registers, flags and RIP are those before it', () => {
    // xor edx, edx (its flags die in the add, but the fault shows them); add [rbx], rax
    const { host, engine } = load([0x31, 0xd2, 0x48, 0x01, 0x03, 0xf4]);
    host.setGpr(3, 0x1_0000_0000n);
    expect(engine.run(100)).toBe('fault');
    expect(host.fault).toEqual({ vector: 14, errorCode: 2, linear: 0x1_0000_0000 });
    expect([engine.retired, host.rip]).toEqual([1, BigInt(CODE + 2)]);
    expect(host.rflags & BigInt(Flag.arith)).toBe(BigInt(Flag.ZF | Flag.PF));
  });

  it('mov rax, [rbx] at a non-canonical address: #GP(0); through RSP: #SS(0)', () => {
    const { host, engine } = load([0x48, 0x8b, 0x03, 0xf4]);
    host.setGpr(3, 0x8000_0000_0000n);
    expect(engine.run(100)).toBe('fault');
    expect(host.fault).toEqual({ vector: 13, errorCode: 0, linear: 0 });
    const stack = load([0x58, 0xf4]);
    stack.host.setGpr(4, 0x8000_0000_0000n);
    expect(stack.engine.run(100)).toBe('fault');
    expect(stack.host.fault?.vector).toBe(12);
  });

  it('div by zero: #DE with nothing written', () => {
    const { host, engine } = load([0x48, 0xf7, 0xf1, 0xf4]);
    host.setGpr(RAX, 5n);
    expect(engine.run(100)).toBe('fault');
    expect([host.fault?.vector, host.gpr(RAX), host.rip]).toEqual([0, 5n, BigInt(CODE)]);
  });
});

describe('code that changes', () => {
  it('a store into the next instruction is executed as stored', () => {
    // mov byte [rip+1], 5; mov eax, 1 (its immediate becomes 5); hlt
    const { host, engine } = load([0xc6, 0x05, 0x01, 0x00, 0x00, 0x00, 0x05, 0xb8, 1, 0, 0, 0, 0xf4]);
    while (engine.run(100) === 'budget');
    expect([host.gpr(RAX), host.rip]).toEqual([5n, BigInt(CODE + 12)]);
  });

  it('a store beside code leaves the code as it is', () => {
    // mov byte [rip+0x100], 5; hlt
    const { host, engine } = load([0xc6, 0x05, 0x00, 0x01, 0x00, 0x00, 0x05, 0xf4]);
    expect(engine.run(100)).toBe('instruction');
    expect(host.memory.read8(CODE + 0x107)).toBe(5);
    expect([engine.holdsCode(CODE, 8), engine.holdsCode(CODE + 0x107, 1)]).toEqual([true, false]);
  });

  it('invalidatePage: new bytes are decoded anew', () => {
    const { host, engine } = load([0xb8, 1, 0, 0, 0, 0xf4]);
    engine.run(100);
    host.memory.writeBytes(CODE, Uint8Array.from([0xb8, 2]));
    engine.invalidatePage(CODE >> 12);
    host.rip = BigInt(CODE);
    engine.run(100);
    expect(host.gpr(RAX)).toBe(2n);
  });
});

describe('interrupt flag', () => {
  it('sti: one instruction runs in the shadow', () => {
    const { host, engine } = load([0xfb, 0x90, 0x90, 0xf4]);
    const shadow = (): number => host.memory.u8[Layout.state + S.shadow];
    expect(engine.run(1)).toBe('budget');
    expect([shadow(), host.rflags & BigInt(Flag.IF)]).toEqual([1, BigInt(Flag.IF)]);
    host.memory.u8[Layout.state + S.shadow] = 0;
    host.rflags = 2n;
    host.rip = BigInt(CODE);
    expect(engine.run(100)).toBe('instruction');
    expect([engine.retired, shadow()]).toEqual([3, 0]);
  });

  it('sti; hlt: HLT is handed back in the shadow', () => {
    const { host, engine } = load([0xfb, 0xf4]);
    expect(engine.run(100)).toBe('instruction');
    expect([engine.instruction?.row.mnemonic, host.memory.u8[Layout.state + S.shadow]]).toEqual(['hlt', 1]);
  });
});

describe('room for records', () => {
  it('more code than there is room for is decoded again', () => {
    const size = 0x200000;
    const { host, engine } = load([], 0x100000);
    host.memory.fill(0x100000, size, 0x90);
    host.memory.writeBytes(0x100000 + size, Uint8Array.from([0xf4]));
    let retired = 0;
    while (engine.run(1_000_000) === 'budget') retired += engine.retired;
    expect(retired + engine.retired).toBe(size);
    expect(host.rip).toBe(BigInt(0x100000 + size));
  });
});

describe('128-bit division', () => {
  it('div rcx by edge values', () => {
    const edges = [1n, 2n, 0xffffffffn, 0x100000000n, 0x1ffffffffn, 1n << 63n, (1n << 63n) - 1n, (1n << 64n) - 1n];
    const more = [0xfffffffe00000001n, 0x80000000ffffffffn, 0x8000000000000001n, 0xffffffff00000000n, 0n];
    const { host, engine } = load([0x48, 0xf7, 0xf1, 0xf4]);
    for (const divisor of [...edges, ...more]) {
      for (const high of [...edges, ...more].filter((x) => x < divisor)) {
        for (const low of [...edges, ...more]) {
          host.rip = BigInt(CODE);
          host.setGpr(RAX, low);
          host.setGpr(2, high);
          host.setGpr(RCX, divisor);
          expect(engine.run(100)).toBe('instruction');
          const dividend = (high << 64n) | low;
          expect([host.gpr(RAX), host.gpr(2)]).toEqual([dividend / divisor, dividend % divisor]);
        }
      }
    }
  });
});
