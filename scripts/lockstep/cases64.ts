/**
 * Random cases in long mode: 64-bit gates, IST, far transfers between 64-bit and compatibility code, SYSCALL and its kin, pages of every kind,
 * addresses that are not canonical, control registers and MSRs.
 */
import {
  descriptor,
  EXIT_VECTOR,
  FIRST_CASE,
  firstCase,
  gate,
  HANDLER,
  hex,
  LANDING,
  LAYOUT,
  makeRandom,
  type Program,
  pick,
  type Random,
  ROM,
  TSS_STRIDE,
} from './common.ts';

const CODE64 = 0x08;
const DATA = 0x10;
const CODE32 = 0x18;
const DATA3 = 0x23;
/** SYSRET's order: 32-bit code, stack, 64-bit code of level 3. */
const CODE32_3 = 0x2b;
const DATA3_SYSRET = 0x33;
const CODE64_3 = 0x3b;
/** SYSEXIT's order, behind SYSENTER_CS: code, stack, 32-bit code, stack, 64-bit code, stack. */
const SYSENTER = 0x08;
const TSS_MAIN = 0x50;
const LDT = 0x60;
const FIRST_RANDOM = 0x70;
const GDT_ENTRIES = 64;
const LDT_ENTRIES = 16;
const FIRST_GATE = 0x40;
const GATES = 64;
const DOUBLE_FAULT = 8;

/** Page tables, behind everything else: no case writes them, and their A and D bits are set from the start. */
const PML4 = 0x8000;
const PDPT = 0x9000;
const PD = 0xa000;
const PT = 0xb000;
const PRESENT = 1n;
const WRITABLE = 2n;
const USER = 4n;
const MARKED = 0x60n;
const LARGE = 0x80n;
const NX = 1n << 63n;
/** Linear addresses of pages of each kind, from 2 MiB: 4 KiB pages that all map the same frame. */
const KINDS: readonly bigint[] = [
  PRESENT | WRITABLE | USER,
  PRESENT | USER,
  PRESENT | WRITABLE,
  PRESENT,
  PRESENT | WRITABLE | USER | NX,
  PRESENT | USER | NX,
  WRITABLE | USER,
  PRESENT | WRITABLE | USER | (1n << 51n),
];
const FIRST_PAGE = 0x200000;
const FRAME = 0xc000n;

function pageTables(): [number, Uint8Array][] {
  const table = (...entries: bigint[]): Uint8Array => {
    const bytes = new Uint8Array(8 * entries.length);
    const view = new DataView(bytes.buffer);
    for (const [i, entry] of entries.entries()) view.setBigUint64(8 * i, entry, true);
    return bytes;
  };
  const all = PRESENT | WRITABLE | USER | MARKED;
  const frame = Uint8Array.from({ length: 64 }, (_, i) => (i % 2 === 0 ? 0xcd : EXIT_VECTOR));
  return [
    [PML4, table(BigInt(PDPT) | all)],
    [PDPT, table(BigInt(PD) | all)],
    [PD, table(all | LARGE, BigInt(PT) | all)],
    [PT, table(...KINDS.map((kind) => FRAME | kind | MARKED))],
    [Number(FRAME), frame],
  ];
}

interface Tables {
  ram: Uint8Array;
  selectors: number[];
  code: number[];
}

function randomSegment(random: Random): bigint {
  const isCode = random(2) === 1;
  const access = (random(12) === 0 ? 0 : 0x80) | (random(4) << 5) | 16 | (isCode ? 8 : 0) | random(8);
  // Code of 64 bits, of 32 bits, of 16 bits. Of both, which is reserved, QEMU takes as 64.
  const flags = isCode ? pick(random, [0xa, 0xa, 0xc, 0xc, 0x8]) : 0x8 | random(8);
  return descriptor(0, isCode ? 0xfffff : pick(random, [0xfffff, 0xfff, 0]), access, flags);
}
function randomSystem(random: Random, code: readonly number[]): bigint {
  const access = (random(12) === 0 ? 0 : 0x80) | (random(4) << 5);
  const target = pick(random, code) | random(4);
  const kind = pick(random, [0xc, 0xc, 0xc, 9, 2, 0xb, random(16)]);
  if (kind === 0xc) return gate(target, ROM + LANDING, access | kind);
  return descriptor(kind === 2 ? LAYOUT.ldt : LAYOUT.tss + TSS_STRIDE, 0x7f, access | kind, 0);
}

function makeTables(random: Random): Tables {
  const ram = new Uint8Array(LAYOUT.end - LAYOUT.idt);
  const view = new DataView(ram.buffer);
  const set = (address: number, value: bigint): void => view.setBigUint64(address - LAYOUT.idt, value, true);
  const gdt = (selector: number, value: bigint): void => set(LAYOUT.gdt + (selector & ~7), value);
  const code = (dpl: number, flags: number): bigint => descriptor(0, 0xfffff, 0x9b | (dpl << 5), flags);
  const data = (dpl: number): bigint => descriptor(0, 0xfffff, 0x93 | (dpl << 5), 0xc);
  gdt(CODE64, code(0, 0xa));
  gdt(DATA, data(0));
  gdt(CODE32, code(0, 0xc));
  gdt(DATA3, data(3));
  gdt(CODE32_3, code(3, 0xc));
  gdt(DATA3_SYSRET, data(3));
  gdt(CODE64_3, code(3, 0xa));
  gdt(TSS_MAIN, descriptor(LAYOUT.tss, 0x67, 0x89, 0));
  gdt(LDT, descriptor(LAYOUT.ldt, LDT_ENTRIES * 8 - 1, 0x82, 0));

  const selectors: number[] = [];
  for (let index = FIRST_RANDOM / 8; index < GDT_ENTRIES; index++) selectors.push(index * 8);
  for (let index = 1; index < LDT_ENTRIES; index++) selectors.push(index * 8 + 4);
  const place = (selector: number): number => (selector & 4 ? LAYOUT.ldt : LAYOUT.gdt) + (selector & ~7);
  const codes = [CODE64, CODE64, CODE32, CODE64_3 & ~3, CODE32_3 & ~3];
  const systems: number[] = [];
  for (let i = 0; i < selectors.length; i++) {
    // A system descriptor takes two slots; the second one's type must be 0.
    if (random(3) === 0 && selectors[i + 1] === selectors[i] + 8) {
      systems.push(selectors[i]);
      i++;
      continue;
    }
    const value = randomSegment(random);
    if ((value >> 43n) & 1n) codes.push(selectors[i]);
    set(place(selectors[i]), value);
  }
  for (const selector of systems) {
    set(place(selector), randomSystem(random, codes));
    set(place(selector) + 8, random(8) === 0 ? 0x8000n : 0n);
  }
  selectors.push(CODE64, DATA, CODE32, DATA3 & ~3, CODE32_3 & ~3, CODE64_3 & ~3, TSS_MAIN, LDT, GDT_ENTRIES * 8);

  for (const tss of [LAYOUT.tss, LAYOUT.tss + TSS_STRIDE]) {
    for (let ring = 0; ring < 3; ring++) set(tss + 4 + 8 * ring, BigInt(LAYOUT.stacks[ring] - 8 * random(2)));
    set(tss + 0x24, BigInt(LAYOUT.doubleFaultStack));
    const stacks = [0x5a00n, 0x5a08n, 0x5b07n, 0x8000_0000_0000n, 0x20_4800n, 0x20_6800n];
    for (const [i, value] of stacks.entries()) set(tss + 0x2c + 8 * i, value);
    view.setUint16(tss - LAYOUT.idt + 0x66, 0x68, true);
  }
  for (let vector = 0; vector < 256; vector++) {
    const at = LAYOUT.idt + 16 * vector;
    let value = gate(CODE64, ROM + HANDLER, vector === EXIT_VECTOR ? 0xee : 0x8e);
    if (vector === DOUBLE_FAULT) value |= 1n << 32n;
    const isRandom = vector >= FIRST_GATE && vector < FIRST_GATE + GATES;
    if (isRandom) {
      const access = (random(12) === 0 ? 0 : 0x80) | (pick(random, [0, 3, 3, random(4)]) << 5);
      const type = pick(random, [14, 14, 15, random(16)]);
      value = gate(pick(random, codes) | random(4), ROM + LANDING, access | type);
      if (random(2) === 0) value |= BigInt(random(8)) << 32n;
    }
    set(at, value);
    set(at + 8, isRandom && random(8) === 0 ? 0x8000n : 0n);
  }
  return { ram, selectors, code: codes };
}

const SYSCALLS = ['syscall', 'db 0x0f, 0x07', 'db 0x48, 0x0f, 0x07'];
const SYSENTERS = ['sysenter', 'sysexit', 'db 0x48, 0x0f, 0x35'];
const EDGES = ['0x800000000000', '0xffff7fffffffffff', '0xffff800000000000'];

interface Place {
  /** 64-bit code, or compatibility code. */
  long: boolean;
  ring: number;
  /** KVM on AMD emulates SYSENTER and SYSEXIT in long mode, where AMD's processors and QEMU have none. */
  amd: boolean;
}
/** What a case does. */
function instructionOf(random: Random, tables: Tables, { long, ring, amd }: Place): string {
  const sel = (): number =>
    random(16) === 0 ? random(4) : pick(random, tables.selectors) | (random(2) ? random(4) : 0);
  const code = (): number => (random(3) === 0 ? sel() : pick(random, tables.code) | random(4));
  const flags = (): number => 2 | (random(0x1000) & 0xad5) | (random(4) << 12) | (random(8) === 0 ? 0x4000 : 0);
  const stack = long ? 'rsp' : 'esp';
  const push = (...values: number[]): string =>
    values.map((value) => `push ${long ? 'qword' : 'dword'} ${hex(value)}`).join('\n');
  const landing = ROM + LANDING;
  const pointer = (selector: number, wide: boolean): string =>
    wide
      ? `mov dword [${stack}-24], ${hex(landing)}\nmov dword [${stack}-20], ${random(8) === 0 ? '0x8000' : '0'}\nmov dword [${stack}-16], ${hex(selector)}`
      : `mov dword [${stack}-24], ${hex(landing)}\nmov dword [${stack}-20], ${hex(selector)}`;
  // FF /5 and FF /3 with [rsp - 24].
  const indirect = (wide: boolean): string =>
    `db ${wide ? '0x48, ' : ''}0xff, ${pick(random, ['0x6c', '0x5c'])}, 0x24, 0xe8`;
  const page = (): string =>
    hex(FIRST_PAGE + 0x1000 * random(KINDS.length + 1) + pick(random, [0x800, 0, 0xffd, 0xfff]));
  const both: (() => string)[] = [
    () => `mov ax, ${hex(sel())}\nmov ${pick(random, ['ds', 'es', 'fs', 'gs'])}, ax`,
    () => `mov ax, ${hex(sel() | 8)}\nmov ss, ax\nnop`,
    () =>
      `mov cx, ${hex(sel())}\n${pick(random, ['lar eax, cx', 'lsl edx, cx', 'verr cx', 'verw cx', 'lar ax, cx', 'lsl dx, cx'])}`,
    () => `mov cx, ${hex(sel())}\n${pick(random, ['lar eax, cx', 'lsl edx, cx'])}`,
    () => `mov ax, ${hex(sel())}\nlldt ax`,
    () => `mov ax, ${hex(sel() | 8)}\nltr ax`,
    () => `${pointer(code(), false)}\n${indirect(false)}`,
    () => `${pointer(code(), false)}\n${indirect(false)}`,
    () => `${push(code(), landing)}\n${long ? 'db 0x48\ndb 0xcb' : 'db 0xcb'}`,
    () => `${push(sel(), LAYOUT.stacks[3] - 0x200, flags(), code(), landing)}\n${long ? 'iretq' : 'iretd'}`,
    () =>
      `${push(DATA3, LAYOUT.stacks[3] - 0x200, flags(), pick(random, [CODE64_3, CODE32_3]), landing)}\n${long ? 'iretq' : 'iretd'}`,
    () => `int ${hex(FIRST_GATE + random(GATES))}`,
    () => `int ${hex(FIRST_GATE + random(GATES))}`,
    () => `int ${hex(FIRST_GATE + random(GATES))}`,
    () =>
      pick(random, [
        'int3',
        'int1',
        'ud2',
        ...(ring > 0 ? ['hlt'] : []),
        'cli',
        'sti',
        'clts',
        'wbinvd',
        'in al, 0x80',
        'out 0x80, al',
      ]),
    () => pick(random, [...SYSCALLS, ...(amd ? [] : SYSENTERS)]),
    () => `mov eax, [${page()}]`,
    () => `mov [${page()}], eax`,
    () => `mov ecx, ${page()}\ncall ${long ? 'rcx' : 'ecx'}`,
    () => pick(random, ['smsw eax', 'sldt eax', 'str eax', `sgdt [${stack}-16]`, `sidt [${stack}-16]`, 'rdtsc']),
    () =>
      `${push(flags())}\npopf${long ? 'q' : 'd'}\n${pick(random, ['nop', 'cli', 'sti', `pushf${long ? 'q' : 'd'}`])}`,
  ];
  // What QEMU 7.2 permits and processors refuse is left out: CR0.PG, CR0.PE and CR4.PAE cleared, EFER.LME changed in long mode, reserved bits.
  const wide: (() => string)[] = [
    () => `${pointer(code(), !amd)}\n${indirect(!amd)}`,
    () => `${push(sel(), LAYOUT.stacks[3] - 0x200, code(), landing)}\nretfq`,
    () =>
      `mov rbx, ${pick(random, EDGES)}\n${pick(random, ['mov eax, [rbx]', 'mov [rbx], eax', 'jmp rbx', 'call [rbx]', 'mov rsp, rbx\npush rax', 'mov rbp, rbx\nmov eax, [rbp]', 'lgdt [rbx]', 'invlpg [rbx]'])}`,
    () =>
      `mov rcx, ${pick(random, EDGES)}\n${pick(random, ['db 0x48, 0x0f, 0x07', ...(amd ? [] : ['mov rdx, rcx\ndb 0x48, 0x0f, 0x35', ...SYSENTERS])])}`,
    () =>
      pick(random, [
        'swapgs',
        'swapgs\nswapgs',
        'mov rax, cr8',
        'mov rax, cr0',
        'mov rax, cr3',
        'mov rax, dr7',
        'mov rax, dr6',
      ]),
    () => `mov rax, cr0\n${pick(random, ['btc rax, 16', 'bts rax, 3'])}\nmov cr0, rax\nmov eax, [${page()}]`,
    () => `mov rax, cr4\n${pick(random, ['bts rax, 2', 'bts rax, 7'])}\nmov cr4, rax\nmov eax, [${page()}]`,
    () => `mov eax, ${hex(random(16))}\nmov cr8, rax\nmov rbx, cr8`,
    () => `mov rax, ${pick(random, ['0x400', '0x100000000', '0x600'])}\nmov dr7, rax`,
    () =>
      `mov ecx, ${pick(random, ['0xc0000100', '0xc0000101', '0xc0000102', '0xc0000082', '0x175', '0x176'])}\nmov eax, ${hex(random(2 ** 32))}\nmov edx, ${pick(random, ['0', '0x7fff', '0x8000', '0xffff8000', '0xffffffff'])}\nwrmsr`,
    () => `mov ecx, 0xc0000080\nrdmsr\nbtc eax, ${pick(random, [0, 11])}\nwrmsr`,
  ];
  const narrow: (() => string)[] = [
    () => `${push(sel(), LAYOUT.stacks[3] - 0x200, code(), landing)}\nretf`,
    () => `${pick(random, ['jmp', 'call'])} ${hex(code())}:${hex(landing)}`,
    () => `${push(sel())}\npop ${pick(random, ['ds', 'es', 'fs', 'gs', 'ss'])}\nnop`,
    () => pick(random, ['into', 'pusha', 'bound eax, [esp]', 'daa', 'arpl ax, bx', 'les eax, [esp]']),
  ];
  return pick(random, random(2) === 0 ? both : long ? wide : narrow)();
}

/** Into a level and a code size through IRETQ. */
function enter(random: Random, ring: number, long: boolean, label: string): string {
  if (ring === 0 && long) return '';
  const code = ring === 0 ? CODE32 : long ? CODE64_3 : CODE32_3;
  const data = ring === 0 ? DATA : DATA3;
  const frame = [data, LAYOUT.stacks[ring] - 0x100, 2 | (random(4) << 12), code].map(
    (value) => `push qword ${hex(value)}`,
  );
  const bits = long ? '' : `\nbits 32`;
  return `${frame.join('\n')}\npush qword LIN(${label}_in)\niretq${bits}\n${label}_in:\nmov ax, ${hex(data)}\nmov ds, ax\nmov es, ax`;
}

const wrmsr = (index: number, low: number, high = 0): string =>
  `mov ecx, ${hex(index)}\nmov eax, ${hex(low)}\nmov edx, ${hex(high)}\nwrmsr`;

/** At HANDLER there is room for a jump alone. */
const TOP = `
%define LIN(x) (${hex(ROM)} + (x))
org 0
bits 16
start:
  lgdt [cs:gdtr]
  mov eax, 0x20
  mov cr4, eax
  mov eax, ${hex(PML4)}
  mov cr3, eax
  mov ecx, 0xc0000080
  rdmsr
  or eax, 0x901
  wrmsr
  mov eax, 0x80000011
  mov cr0, eax
  jmp dword ${hex(CODE64)}:LIN(setup)
gdtr: dw ${GDT_ENTRIES * 8 - 1}
  dq ${hex(LAYOUT.gdt)}
idtr: dw 0xfff
  dq ${hex(LAYOUT.idt)}
bits 64
times ${LANDING} - ($ - $$) db 0x90
landing: int ${hex(EXIT_VECTOR)}
times ${HANDLER} - ($ - $$) db 0x90
handler:
  mov eax, ${hex(DATA)}
  mov ss, ax
  mov esp, ${hex(LAYOUT.stack)}
  mov ds, ax
  mov es, ax
  mov fs, ax
  mov gs, ax
  lgdt [abs LIN(gdtr)]
  lidt [abs LIN(idtr)]
  mov ax, ${hex(LDT)}
  lldt ax
  and byte [abs ${hex(LAYOUT.gdt + TSS_MAIN + 5)}], 0xfd
  mov ax, ${hex(TSS_MAIN)}
  ltr ax
  push qword 2
  popfq
  jmp [abs ${hex(LAYOUT.next)}]
times ${FIRST_CASE} - ($ - $$) db 0x90
`;
/** Behind the cases: what is set up once. */
const SETUP = `
bits 64
setup:
  ${wrmsr(0xc0000081, 0, (((CODE32_3 & ~3) | 3) << 16) | CODE64)}
  ${wrmsr(0xc0000082, ROM + LANDING)}
  ${wrmsr(0xc0000083, ROM + LANDING)}
  ${wrmsr(0xc0000084, 0x4700)}
  ${wrmsr(0x174, SYSENTER)}
  ${wrmsr(0x175, LAYOUT.stack - 0x100)}
  ${wrmsr(0x176, ROM + LANDING)}
  jmp handler
`;

/** A program for a seed. */
export function makeProgram64(seed: number, cases: number, amd: boolean): Program {
  const random = makeRandom(seed);
  const tables = makeTables(random);
  let source = TOP;
  for (let i = 0; i < cases; i++) {
    const label = `case${i}`;
    const ring = pick(random, [0, 0, 3, 3]);
    const long = random(3) > 0;
    source += `align 16\nbits 64\n${label}:\nmov dword [abs ${hex(LAYOUT.next)}], LIN(case${i + 1})\n`;
    // Whatever a case has done to them.
    source += 'mov eax, 0x80000011\nmov cr0, rax\nmov eax, 0x20\nmov cr4, rax\n';
    source += `mov ecx, LIN(landing)\nmov edx, LIN(landing)\nmov ebx, ${hex(random(0x10000))}\n`;
    source += `${enter(random, ring, long, label)}\n${instructionOf(random, tables, { long, ring, amd })}\nint ${hex(EXIT_VECTOR)}\n`;
  }
  source += `align 16\nbits 64\ncase${cases}:\nmov al, 1\nout 0xf4, al\nhlt\n${SETUP}`;
  source += 'times 0xfff0 - ($ - $$) db 0xff\nbits 16\njmp 0xf000:start\ntimes 0x10000 - ($ - $$) db 0\n';
  return { source, ram: tables.ram, once: [firstCase(), ...pageTables()] };
}
