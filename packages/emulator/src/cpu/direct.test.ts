import { describe, expect, it } from 'vitest';
import { type DirectExits, type GuestMode, Verdict } from '../guest-mode.ts';
import { INTERCEPT_ID, INTERCEPTS, type Intercept } from '../intercepts.ts';
import { AccessKind } from '../memory/paging.ts';
import type { InstructionInfo } from '../ops.ts';
import type { PlatformBus } from '../processor-api.ts';
import { CR0, CR4, Flag, S } from '../state-layout.ts';
import { TestLayout, TestMachine, type TestMode } from '../testing/index.ts';

/** Leaves for a set of intercepts, by either way, and writes down what it was told. */
class Owner implements GuestMode {
  asid = 1;
  nestedRoot = 0;
  tscOffset = 0x1_2345_6789n;
  interruptsExit = true;
  boundaryWork = false;
  deadline = Number.POSITIVE_INFINITY;
  readonly exits: string[] = [];
  readonly wanted: ReadonlySet<Intercept>;
  readonly direct: DirectExits | null;
  readonly #rip: () => bigint;

  constructor(wanted: ReadonlySet<Intercept>, direct: boolean, rip: () => bigint) {
    this.wanted = wanted;
    this.#rip = rip;
    this.direct = direct ? this.#short() : null;
  }
  #leave(what: string): true {
    this.exits.push(what);
    return true;
  }
  #short(): DirectExits {
    const verdicts = new Uint8Array(INTERCEPTS.length);
    for (const name of this.wanted) verdicts[INTERCEPT_ID[name]] = ASKED.has(name) ? Verdict.ask : Verdict.leave;
    return {
      verdicts,
      leave: (id, length) => void this.#leave(`${INTERCEPTS[id]} ${length}`),
      movCr: (cr, write, gpr, length) =>
        cr !== 2 && this.#leave(`${write ? 'crWrite' : 'crRead'} ${length} ${cr} ${gpr}`),
      msr: (index, write, length) => (index & 1) === 0 && this.#leave(`msr ${index} ${write} ${length}`),
      port: (port, size, input, imm, length, addrSize) =>
        this.#leave(`io ${port} ${size} ${input} ${imm} ${length} ${addrSize}`),
    };
  }
  intercept(info: InstructionInfo): boolean {
    const { intercept } = info;
    if (!this.wanted.has(intercept)) return false;
    const length = Number(BigInt.asUintN(32, info.nextRip - info.rip));
    if (intercept === 'crRead' || intercept === 'crWrite') {
      return info.reg !== 2 && this.#leave(`${intercept} ${length} ${info.reg} ${info.rm}`);
    }
    this.#length = length;
    return intercept !== 'rdmsr' && intercept !== 'wrmsr' && this.#leave(`${intercept} ${length}`);
  }
  #length = 0;
  interceptMsr(index: number, write: boolean): boolean {
    if (!this.wanted.has(write ? 'wrmsr' : 'rdmsr')) return false;
    return (index & 1) === 0 && this.#leave(`msr ${index} ${write} ${this.#length}`);
  }
  interceptIo(io: Parameters<GuestMode['interceptIo']>[0]): boolean {
    if (!this.wanted.has(io.in ? 'in' : 'out')) return false;
    const length = Number(io.nextRip - this.#rip());
    return this.#leave(`io ${io.port} ${io.size} ${io.in} ${io.imm} ${length} ${io.addrSize}`);
  }
  interceptException(vector: number, errorCode: number | undefined): boolean {
    return this.#leave(`exception ${vector} ${errorCode}`);
  }
  interceptTaskSwitch = () => true;
  interceptShutdown = () => this.#leave('shutdown');
  interceptInterrupt = () => this.#leave('interrupt');
  interceptNmi = () => true;
  interceptSmi = () => true;
  interceptInit = () => true;
  interceptSipi = () => false;
  boundary = () => 'none' as const;
  translate = (gpa: number) => ({ hpa: gpa - (gpa % 4096), writable: true, executable: true, shift: 12 });
  readCr = () => undefined;
  writeCr = () => undefined;
  crWritten = () => false;
  crIllegal = () => false;
}

const ASKED: ReadonlySet<Intercept> = new Set<Intercept>(['crRead', 'crWrite', 'rdmsr', 'wrmsr', 'in', 'out']);
const WANTED: readonly Intercept[] = [
  'cpuid', 'rdtsc', 'rdtscp', 'rdmsr', 'wrmsr', 'in', 'out', 'hlt', 'wbinvd', 'crRead', 'crWrite', 'clts',
]; // biome-ignore format: a list

/** Instructions by name; legal in every mode that runs them. */
const INSTRUCTIONS: Readonly<Record<string, readonly number[]>> = {
  cpuid: [0x0f, 0xa2],
  rdtsc: [0x0f, 0x31],
  rdtscp: [0x0f, 0x01, 0xf9],
  rdmsr: [0x0f, 0x32],
  wrmsr: [0x0f, 0x30],
  'in al, 0x60': [0xe4, 0x60],
  'in ax/eax, 0x60': [0xe5, 0x60],
  'in with a prefix': [0x66, 0xed],
  'in al, dx': [0xec],
  'out 0x60, al': [0xe6, 0x60],
  'out dx, eax': [0xef],
  hlt: [0xf4],
  pause: [0xf3, 0x90],
  wbinvd: [0x0f, 0x09],
  'mov eax, cr0': [0x0f, 0x20, 0xc0],
  'mov ecx, cr4': [0x0f, 0x20, 0xe1],
  'mov edx, cr2': [0x0f, 0x20, 0xd2],
  'mov cr0, eax': [0x0f, 0x22, 0xc0],
  'mov cr2, ecx': [0x0f, 0x22, 0xd1],
  'mov cr3, esi': [0x0f, 0x22, 0xde],
  'mov cr4, edi': [0x0f, 0x22, 0xe7],
  'lock mov cr0, eax': [0xf0, 0x0f, 0x22, 0xc0],
  'mov cr5, eax': [0x0f, 0x22, 0xe8],
  clts: [0x0f, 0x06],
  'invlpg [ebx]': [0x0f, 0x01, 0x3b],
  syscall: [0x0f, 0x05],
  sysretq: [0x48, 0x0f, 0x07],
  iretq: [0x48, 0xcf],
  'iretq again': [0x48, 0xcf],
  iretd: [0xcf],
  'iretd again': [0xcf],
  'int 20h': [0xcd, 0x20],
  'int 21h: a gate for level 0': [0xcd, 0x21],
  'int 22h: not present': [0xcd, 0x22],
  'lock cpuid': [0xf0, 0x0f, 0xa2],
  'mov ds, ebp': [0x8e, 0xdd],
  'mov ss, ebp': [0x8e, 0xd5],
  'mov ss, ebx': [0x8e, 0xd3],
  'mov es, ebp': [0x8e, 0xc5],
  'mov gs, ebp': [0x8e, 0xed],
  'mov cs, ebp': [0x8e, 0xcd],
  'mov ds, [esi]': [0x8e, 0x1e],
  'jmp 8:10010h': [0xea, 0x10, 0x00, 0x01, 0x00, 0x08, 0x00],
  'jmp 20h:10010h': [0xea, 0x10, 0x00, 0x01, 0x00, 0x20, 0x00],
  'jmp 10h:10010h': [0xea, 0x10, 0x00, 0x01, 0x00, 0x10, 0x00],
  'jmp 8:10h and 1000h:0': [0x66, 0xea, 0x10, 0x00, 0x08, 0x00, 0x00, 0x10],
};
const MSRS = [
  0x10, 0x1b, 0x174, 0x175, 0xc0000080, 0xc0000081, 0xc0000082, 0xc0000100, 0xc0000101, 0xc0000102, 0x12345,
];

/** Repeatable numbers. */
function* numbers(seed: number): Generator<number, never> {
  for (let x = seed; ; ) {
    x = (Math.imul(x, 1_664_525) + 1_013_904_223) | 0;
    yield (x ^ (x >>> 15)) >>> 0;
  }
}

interface Case {
  code: readonly number[];
  mode: TestMode;
  registers: readonly bigint[];
  cpl3: boolean;
  flags: bigint;
  cr0: bigint;
  cr4: bigint;
  wanted: ReadonlySet<Intercept> | null;
  /** What IRETQ finds: RIP, CS, RFLAGS, RSP, SS. */
  frame: readonly bigint[];
  r11: bigint;
}

/** Code of level 0 and 3, data of level 0 and 3, and others. */
const SELECTORS = [0x18n, 0x43n, 0x10n, 0x3bn, 0x33n, 0x08n, 0n, 0x1bn, 0x13n, 0x5bn];

function makeCase(seed: number): Case {
  const random = numbers(seed);
  const next = (): number => random.next().value;
  const below = (count: number): number => next() % count;
  const mode = (['real', 'prot32', 'long', 'long'] as const)[below(4)];
  const legacy = mode === 'prot32';
  const names = Object.keys(INSTRUCTIONS);
  const pick = (): readonly number[] => INSTRUCTIONS[names[below(names.length)]];
  const wide = (): bigint => (BigInt(below(4) === 0 ? next() : 0) << 32n) | BigInt(next());
  const registers = Array.from({ length: 8 }, wide);
  registers[0] = [0x11n, 0x60000011n, 0x80010033n, 0x8001003bn, 0x8005003bn, 0x80000019n, registers[0]][below(7)];
  if (below(2) === 0) registers[1] = BigInt(MSRS[below(MSRS.length)]);
  if (below(2) === 0) registers[2] = [0n, 0xffff8000n, 0xffffffffn, 0x7fffn][below(4)];
  if (below(3) === 0) registers[1] = 0x10003n;
  registers[6] = [0x3000n, 0x3018n, registers[6]][below(3)];
  registers[7] = [0x20n, 0xa0n, 0x20020n, registers[7]][below(4)];
  registers[4] = 0x9000n;
  registers[5] = [0x10n, 0x28n, 0x10n, 0x28n, 0x08n, 0n, 0x3bn, 0x13n, 0x1000n, 0x43n, 0x33n][below(11)];
  const wanted = below(3) === 0 ? null : new Set(WANTED.filter(() => below(3) === 0));
  return {
    code: [...pick(), ...pick(), ...pick(), 0xf4],
    mode,
    registers,
    cpl3: mode !== 'real' && below(5) === 0,
    flags: 2n | (below(2) === 0 ? BigInt(Flag.RF) : 0n) | (below(4) === 0 ? BigInt(Flag.IOPL) : 0n),
    cr0: below(2) === 0 ? CR0.TS : 0n,
    cr4: below(4) === 0 ? CR4.TSD : 0n,
    wanted,
    frame: [
      [0x10002n, 0x10004n, 0x8000_0000_0000n][below(9) >> 2],
      legacy && below(3) !== 0 ? [0x08n, 0x33n][below(2)] : SELECTORS[below(3) === 0 ? below(10) : below(2)],
      BigInt(below(0x400000) & ~(below(4) === 0 ? 0 : Flag.TF | Flag.NT)),
      0x9000n,
      SELECTORS[below(3) === 0 ? below(10) : 2 + below(2)],
    ],
    r11: BigInt(below(0x400000) & ~(below(4) === 0 ? 0 : Flag.TF)),
  };
}

/** Bytes of the block that an engine keeps for itself. */
const PRIVATE: readonly (readonly [number, number])[] = [
  [S.lazyResult, S.segments],
  [S.derived, S.ymm],
];

const ports: string[] = [];
const BLANK = new Uint8Array(0x20000);
const bus: PlatformBus = {
  pioIn: (port, size) => {
    ports.push(`in ${port} ${size}`);
    return 0x89abcdef;
  },
  pioOut: (port, size, value) => void ports.push(`out ${port} ${size} ${value}`),
  read: () => 0n,
  write: () => {},
  acknowledgeInterrupt: () => -1,
};

function run(test: Case, machine: TestMachine, direct: boolean) {
  ports.length = 0;
  machine.cpu.guest = null;
  machine.cpu.reset(false);
  machine.cpu.events.deliveredAt = -1;
  machine.cpu.flushTlb({ kind: 'all' });
  machine.memory.writeBytes(0, BLANK);
  machine.load(test.code, test.mode);
  const { state, cpu } = machine;
  test.registers.forEach((value, n) => {
    state.gpr[n] = value;
  });
  state.gpr[11] = test.r11;
  state.set64(S.star, 0x0033_0018_0000_0000n);
  state.set64(S.lstar, 0x10002n);
  state.set64(S.sfmask, 0x700n);
  test.frame.forEach((value, n) => {
    if (test.mode === 'prot32') machine.memory.write32(0x9000 + n * 4, Number(value & 0xffffffffn));
    else machine.memory.write64(0x9000 + n * 8, value);
  });
  state.rflags = test.flags;
  state.cr0 |= test.cr0;
  state.cr4 |= test.cr4;
  if (test.cpl3) state.cpl = 3;
  const owner = new Owner(test.wanted ?? new Set(), direct, () => state.rip);
  cpu.tick = 0x1_0000_0001;
  if (test.wanted !== null || test.cpl3) {
    cpu.guest = owner;
    cpu.stateReplaced('vmentry');
  }
  for (let vector = 0; vector < 32; vector++) machine.setHandler(vector, 0x11000, test.mode);
  machine.setHandler(0x20, 0x11000, test.mode, 3);
  machine.setHandler(0x21, 0x11000, test.mode);
  machine.memory.writeBytes(0x11000, Uint8Array.of(0xf4));
  if (test.mode !== 'real' && !test.cpl3) {
    // Stack and GDT are in the TLB, as they mostly are.
    cpu.access.translate(0x9000, 0, AccessKind.read);
    cpu.access.translate(0x8ff0, 0, AccessKind.write);
    cpu.access.translate(TestLayout.idt, 0, AccessKind.read | AccessKind.system);
    cpu.access.translate(0x1000, 0, AccessKind.read | AccessKind.system);
  }
  const stop = machine.go(40);
  const bytes = state.u8.slice();
  for (const [from, to] of PRIVATE) bytes.fill(0, from, to);
  return { stop, tick: cpu.tick, exits: owner.exits, ports: [...ports], fields: fieldsOf(bytes) };
}

/** The block's words that are not zero, by offset. */
function fieldsOf(bytes: Uint8Array): Record<string, string> {
  const view = new DataView(bytes.buffer);
  const fields: Record<string, string> = {};
  for (let at = 0; at < bytes.length; at += 8) {
    const value = view.getBigUint64(at, true);
    if (value !== 0n) fields[`+${at.toString(16)}`] = value.toString(16);
  }
  return fields;
}

describe('the short way of system instructions', () => {
  it('does what evaluate does, bare and in a guest, whichever way its owner is asked', () => {
    const [reference, machine] = [new TestMachine({ bus }), new TestMachine({ engine: 'interpret', bus })];
    for (let seed = 1; seed <= 900; seed++) {
      const test = makeCase(seed);
      const expected = run(test, reference, false);
      for (const direct of [true, false]) expect(run(test, machine, direct), `seed ${seed}`).toEqual(expected);
    }
  });
});
