/**
 * Breakpoints and traps on all engines, most of them in code that is hot already: the handler logs where it came from and what DR6 said.
 * Manual: SDM vol. 3 chapter 17, APM vol. 2 section 13.1.
 */
import { describe, expect, it } from 'vitest';
import { TranslateEngine } from '../engines/translate/translate.ts';
import { CR4, Flag, S } from '../state-layout.ts';
import { TestMachine } from '../testing/index.ts';

const CODE = 0x10000;
const HANDLER = 0x11000;
const LOG = 0x20000;
const DATA = 0x30000;
const SUB = 0x12000;
const NOP = 0x90;
const HLT = 0xf4;
const [BS, BD] = [0x4000, 0x2000];
const le32 = (x: number): number[] => [x & 255, (x >>> 8) & 255, (x >>> 16) & 255, x >>> 24];

/**
 * push eax; push edx; mov edx, [LOG]; mov eax, [esp+8]; mov [LOG+edx+8], eax; mov eax, dr6; mov [LOG+edx+12], eax; mov eax, [esp+16];
 * mov [LOG+edx+16], eax; add dword [LOG], 12; xor eax, eax; mov dr6, eax; pop edx; pop eax; iretd
 */
const LOGGER = [
  ...[0x50, 0x52, 0x8b, 0x15, ...le32(LOG), 0x8b, 0x44, 0x24, 8, 0x89, 0x82, ...le32(LOG + 8)],
  ...[0x0f, 0x21, 0xf0, 0x89, 0x82, ...le32(LOG + 12), 0x8b, 0x44, 0x24, 16, 0x89, 0x82, ...le32(LOG + 16)],
  ...[0x83, 0x05, ...le32(LOG), 12, 0x31, 0xc0, 0x0f, 0x23, 0xf0, 0x5a, 0x58, 0xcf],
];

interface Hit {
  /** From CODE on. */
  readonly at: number;
  readonly dr6: number;
  readonly rf: boolean;
}
interface Setup {
  readonly code: readonly number[];
  readonly dr?: readonly number[];
  readonly dr7?: number;
  readonly vendor?: 'amd' | 'intel';
  readonly flags?: number;
  readonly de?: boolean;
  readonly handler?: readonly number[];
}

function start(engine: 'evaluate' | 'interpret' | 'translate', setup: Setup): TestMachine {
  const machine = new TestMachine({ engine, vendor: setup.vendor ?? 'intel' });
  machine.memory.writeBytes(HANDLER, Uint8Array.from(setup.handler ?? LOGGER));
  machine.load([...setup.code, HLT], 'prot32', CODE);
  machine.setHandler(1, HANDLER, 'prot32');
  machine.state.gpr[3] = BigInt(DATA);
  machine.state.rflags = BigInt(2 | (setup.flags ?? 0));
  if (setup.de ?? true) machine.state.cr4 |= CR4.DE;
  setup.dr?.forEach((value, n) => {
    machine.cpu.ops.setDr(n, BigInt(value));
  });
  if (setup.dr7 !== undefined) machine.cpu.ops.setDr(7, BigInt(setup.dr7));
  machine.cpu.stateReplaced('test');
  return machine;
}
function hitsOf(machine: TestMachine): Hit[] {
  const count = machine.memory.read32(LOG) / 12;
  return Array.from({ length: count }, (_, n) => ({
    at: machine.memory.read32(LOG + 8 + n * 12) - CODE,
    dr6: machine.memory.read32(LOG + 12 + n * 12) & 0xe00f,
    rf: (machine.memory.read32(LOG + 16 + n * 12) & Flag.RF) !== 0,
  }));
}
const places = (machine: TestMachine): [number, number][] => hitsOf(machine).map(({ at, dr6 }) => [at, dr6]);

describe.each(['evaluate', 'interpret', 'translate'] as const)('debug exceptions, %s', (engine) => {
  const run = (setup: Setup): TestMachine => {
    const machine = start(engine, setup);
    expect(machine.go(500_000)).toBe('halt');
    return machine;
  };

  describe('a loop that is hot before breakpoints are set', () => {
    // mov ecx, 2000; L (5): add eax, ecx; mov [ebx], eax; dec ecx; cmp ecx, 3; jne L; mov dr7, edx; then three more turns
    const loop = [0x01, 0xc8, 0x89, 0x03, 0x49];
    const hot = [0xb9, ...le32(2000), ...loop, 0x83, 0xf9, 3, 0x75, 0xf6];
    const arm = (dr7: number): number[] => [0xba, ...le32(dr7), 0x0f, 0x23, 0xfa];
    const cold = [...loop, 0x85, 0xc9, 0x75, 0xf7];
    // The same loop once more, so that it is the very same code: jmp L with EDI as the second time's mark.
    const twice = (dr7: number): number[] => {
      const tail = [0x85, 0xff, 0x75, 0, ...arm(dr7), 0x47, 0xb9, ...le32(6), 0xe9];
      tail.push(...le32(5 - (hot.length + tail.length + 4)));
      tail[3] = tail.length - 4;
      return [...hot, ...tail];
    };
    it('an instruction breakpoint hits each time the translated code comes by, in front of the instruction, with RF', () => {
      const machine = run({ code: twice(0x1), dr: [CODE + 7] });
      expect(hitsOf(machine)).toEqual([1, 2, 3].map(() => ({ at: 7, dr6: 1, rf: true })));
    });
    it('a data breakpoint hits behind each write', () => {
      const machine = run({ code: twice(0x1 | (0xd << 16)), dr: [DATA] });
      expect(hitsOf(machine)).toEqual([1, 2, 3].map(() => ({ at: 9, dr6: 1, rf: false })));
    });
    it('is translated before and after', () => {
      const machine = run({ code: [...hot, ...cold] });
      const { engine: e } = machine.cpu;
      if (e instanceof TranslateEngine) expect(e.statistics.regions).toBeGreaterThan(0);
      expect(hitsOf(machine)).toEqual([]);
    });
  });

  describe('data breakpoints', () => {
    // mov eax, [ebx]; mov [ebx], al; mov [ebx + 3], ax
    const code = [0x8b, 0x03, 0x88, 0x03, 0x66, 0x89, 0x43, 3];
    it.each([
      [
        'on writes',
        1,
        0xd,
        DATA,
        [
          [4, 1],
          [8, 1],
        ],
      ],
      [
        'on reads and writes',
        1,
        0xf,
        DATA,
        [
          [2, 1],
          [4, 1],
          [8, 1],
        ],
      ],
      ['of one byte that only the second write touches', 1, 0x1, DATA + 4, [[8, 1]]],
      ['of two bytes, whose address is masked', 1, 0x5, DATA + 5, [[8, 1]]],
      ['of a byte that only the read touches', 1, 0x3, DATA + 2, [[2, 1]]],
      ['that are not enabled', 0, 0xd, DATA, []],
      [
        'enabled globally',
        2,
        0xd,
        DATA,
        [
          [4, 1],
          [8, 1],
        ],
      ],
    ] as const)('%s', (_name, enable, kind, at, expected) => {
      expect(places(run({ code, dr: [at], dr7: enable | (kind << 16) }))).toEqual(expected);
    });
    it('two at once are one #DB', () => {
      expect(places(run({ code, dr: [DATA, 0, 0, DATA + 3], dr7: 0x41 | (0x1 << 16) | (0x1 << 28) }))).toEqual([
        [4, 1],
        [8, 8],
      ]);
      expect(places(run({ code, dr: [DATA, DATA + 1], dr7: 5 | (0xf << 16) | (0x3 << 20) }))).toEqual([
        [2, 3],
        [4, 1],
        [8, 1],
      ]);
    });
    it('REP MOVS traps behind the iteration', () => {
      // mov ecx, 4; mov esi, DATA + 100h; mov edi, DATA; rep movsd
      const rep = [0xb9, ...le32(4), 0xbe, ...le32(DATA + 0x100), 0xbf, ...le32(DATA), 0xf3, 0xa5];
      const machine = run({ code: rep, dr: [DATA + 8], dr7: 1 | (0xd << 16) });
      expect(places(machine)).toEqual([[15, 1]]);
      expect(machine.reg(1)).toBe(0n);
    });
  });

  describe('I/O breakpoints', () => {
    // in al, 80h; out 81h, al
    const code = [0xe4, 0x80, 0xe6, 0x81];
    it('with CR4.DE, on reads and writes of the port', () => {
      expect(places(run({ code, dr: [0x80, 0x81], dr7: 5 | (0x2 << 16) | (0x2 << 20) }))).toEqual([
        [2, 1],
        [4, 2],
      ]);
    });
    it('not without CR4.DE', () => {
      expect(places(run({ code, dr: [0x80], dr7: 1 | (0x2 << 16), de: false }))).toEqual([]);
    });
  });

  describe('instruction breakpoints and RF', () => {
    it('RF in the frame lets the instruction pass once; it is gone behind it', () => {
      // nop; inc eax; jmp back once
      const code = [NOP, 0x40, 0x83, 0xf8, 2, 0x72, 0xf9];
      const machine = run({ code, dr: [CODE + 1], dr7: 1 });
      expect(hitsOf(machine)).toEqual([
        { at: 1, dr6: 1, rf: true },
        { at: 1, dr6: 1, rf: true },
      ]);
      expect(machine.state.rflags & BigInt(Flag.RF)).toBe(0n);
    });
    it('POPF does not set RF', () => {
      // push 10002h; popf; nop
      const machine = run({ code: [0x68, ...le32(0x10002), 0x9d, NOP], dr: [CODE + 6], dr7: 1 });
      expect(places(machine)).toEqual([[6, 1]]);
    });
    it('only the first byte of an instruction counts', () => {
      expect(places(run({ code: [0xb8, ...le32(5), NOP], dr: [CODE + 1], dr7: 1 }))).toEqual([]);
    });
  });

  describe('TF', () => {
    it('traps behind every instruction, and behind each iteration of REP', () => {
      // nop; mov ecx, 2; mov edi, DATA; rep stosb; nop
      const code = [NOP, 0xb9, ...le32(2), 0xbf, ...le32(DATA), 0xf3, 0xaa, NOP];
      const machine = start(engine, { code, flags: Flag.TF });
      machine.go(500);
      expect(places(machine).slice(0, 6)).toEqual([1, 6, 11, 11, 13, 14].map((at) => [at, BS]));
    });
    it('comes with a breakpoint that the same instruction hits: one #DB', () => {
      const machine = start(engine, { code: [0x88, 0x03, NOP], flags: Flag.TF, dr: [DATA], dr7: 1 | (0x1 << 16) });
      machine.go(500);
      expect(places(machine)[0]).toEqual([2, BS | 1]);
    });
    it('comes in front of the breakpoint of the next instruction', () => {
      const machine = start(engine, { code: [NOP, 0x40, NOP], flags: Flag.TF, dr: [CODE + 1], dr7: 1 });
      machine.go(500);
      expect(places(machine).slice(0, 3)).toEqual([
        [1, BS],
        [1, 1],
        [2, BS],
      ]);
    });
    it('with DEBUGCTL.BTF traps behind taken branches only, once: #DB clears BTF', () => {
      // nop; cmp eax, eax; jne +1 (not taken); nop; je +1 (taken); nop; nop; nop
      const code = [NOP, 0x39, 0xc0, 0x75, 1, NOP, 0x74, 1, NOP, NOP, NOP];
      const machine = start(engine, { code, flags: Flag.TF });
      machine.state.set64(S.debugctl, 2n);
      machine.go(500);
      expect(places(machine).slice(0, 2)).toEqual([
        [9, BS],
        [10, BS],
      ]);
      expect(machine.state.get64(S.debugctl)).toBe(0n);
    });
    it('BTF: a call, a return and a jump to the next instruction are branches, REP is none', () => {
      // mov ecx, 2; mov edi, DATA; rep stosb; call SUB
      const code = [0xb9, ...le32(2), 0xbf, ...le32(DATA), 0xf3, 0xaa, 0xe8, ...le32(SUB - CODE - 17)];
      const machine = start(engine, { code, flags: Flag.TF });
      machine.memory.writeBytes(SUB, Uint8Array.of(NOP, 0xc3));
      machine.state.set64(S.debugctl, 2n);
      machine.go(30);
      expect(places(machine)[0]).toEqual([SUB - CODE, BS]);
      const jump = start(engine, { code: [NOP, 0xeb, 0, NOP], flags: Flag.TF });
      jump.state.set64(S.debugctl, 2n);
      jump.go(30);
      expect(places(jump)[0]).toEqual([3, BS]);
    });
  });

  it('DR7.GD: MOV DR faults with BD, GD is clear in the handler', () => {
    // mov eax, dr7 as the handler's: the logger reads DR6
    const machine = run({ code: [NOP, 0x0f, 0x21, 0xf8], dr7: 0x2000 });
    expect(hitsOf(machine)).toEqual([{ at: 1, dr6: BD, rf: true }]);
  });

  it('INT1 is a #DB that says nothing in DR6, behind itself, and ignores DPL', () => {
    expect(hitsOf(run({ code: [0xf1, NOP] }))).toEqual([{ at: 1, dr6: 0, rf: false }]);
  });

  describe('MOV SS', () => {
    // mov ss, [ebx]; nop; nop, with the data selector in DATA
    const code = [0x8e, 0x13, NOP, NOP];
    const withSelector = (setup: Omit<Setup, 'code'>): TestMachine => {
      const machine = start(engine, { code, ...setup });
      machine.memory.write16(DATA, 0x10);
      machine.go(500);
      return machine;
    };
    it('holds a data breakpoint back until the next instruction has ended', () => {
      expect(places(withSelector({ dr: [DATA], dr7: 1 | (0x7 << 16) }))).toEqual([[3, 1]]);
    });
    it('drops the single step behind itself', () => {
      expect(places(withSelector({ flags: Flag.TF }))[0]).toEqual([3, BS]);
    });
    it('an instruction breakpoint behind it is lost on Intel, and taken on AMD', () => {
      expect(places(withSelector({ dr: [CODE + 2], dr7: 1 }))).toEqual([]);
      expect(places(withSelector({ dr: [CODE + 2], dr7: 1, vendor: 'amd' }))).toEqual([[2, 1]]);
    });
  });

  it('STI holds interrupts back, not debug traps', () => {
    // sti; nop; cli
    const machine = start(engine, { code: [0xfb, NOP, 0xfa], flags: Flag.TF });
    machine.go(500);
    expect(places(machine).slice(0, 2)).toEqual([
      [1, BS],
      [2, BS],
    ]);
  });
});
