/** Loads from devices: each instruction reads them once, in whatever engine, also where the operand is not one for the fast way. */
import { describe, expect, it } from 'vitest';
import { CR4 } from '../state-layout.ts';
import { TestMachine } from '../testing/index.ts';

const DEVICE = 0x80_0000;
/** [rsi] is a device's; xmm0 and the x87 stack hold what evaluate left there. */
const INSTRUCTIONS: Readonly<Record<string, readonly number[]>> = {
  'addps xmm0, [rsi]': [0x0f, 0x58, 0x06],
  'divsd xmm0, [rsi]': [0xf2, 0x0f, 0x5e, 0x06],
  'cvtpd2ps xmm0, [rsi]': [0x66, 0x0f, 0x5a, 0x06],
  'movups xmm1, [rsi]': [0x0f, 0x10, 0x0e],
  'fld qword [rsi]': [0xdd, 0x06],
  'fadd dword [rsi]': [0xd8, 0x06],
  'fld tbyte [rsi]': [0xdb, 0x2e],
  'div qword [rsi]': [0x48, 0xf7, 0x36],
  'add [rsi], eax': [0x01, 0x06],
  'cmpxchg [rsi], ecx': [0x0f, 0xb1, 0x0e],
  movsq: [0x48, 0xa5],
};
/** A denormal, a signalling NaN, one and zero in all formats. */
const VALUES = [0x0000_0001_0000_0001n, 0x7ff4_0000_7fa0_0000n, 0x3ff0_0000_3f80_0000n, 0n];

function run(engine: 'evaluate' | 'interpret' | 'translate', code: readonly number[], value: bigint) {
  const accesses: string[] = [];
  const bus = {
    pioIn: () => 0,
    pioOut: () => {},
    read: (pa: number, size: number) => {
      accesses.push(`read ${pa.toString(16)} ${size}`);
      return BigInt.asUintN(size * 8, value);
    },
    write: (pa: number, size: number, data: bigint) =>
      void accesses.push(`write ${pa.toString(16)} ${size} ${data.toString(16)}`),
    acknowledgeInterrupt: () => -1,
  };
  const machine = new TestMachine({ engine, bus });
  for (const vector of [0, 13, 14, 16, 19]) machine.setHandler(vector, 0x2_0000, 'long');
  machine.memory.write8(0x2_0000, 0xf4);
  // L: instruction; mov esi, DEVICE; dec ebx; jnz L; hlt
  const turn = [...code, 0xbe, 0x00, 0x00, 0x80, 0x00, 0xff, 0xcb];
  machine.load([...turn, 0x75, -(turn.length + 2) & 0xff, 0xf4], 'long');
  machine.state.cr4 |= CR4.OSFXSR | CR4.OSXMMEXCPT;
  machine.cpu.stateReplaced('test');
  machine.state.gpr[3] = 300n;
  machine.state.gpr[6] = BigInt(DEVICE);
  machine.state.gpr[7] = 0x3_0000n;
  const stop = machine.go();
  return { stop, accesses, tick: machine.cpu.tick, rip: machine.state.rip, rax: machine.reg(0) };
}

describe.each(['interpret', 'translate'] as const)('a device is read once on %s', (engine) => {
  it.each(Object.entries(INSTRUCTIONS))('%s', (_name, code) => {
    for (const value of VALUES) {
      const expected = run('evaluate', code, value);
      expect(expected.accesses.length).toBeGreaterThan(0);
      expect(run(engine, code, value)).toEqual(expected);
    }
  });
});
