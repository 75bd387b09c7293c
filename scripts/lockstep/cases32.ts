/**
 * Random cases for the lock-step comparison: a firmware image whose every case does one privileged thing (a descriptor load, a gate, a task switch,
 * an IRET …) on random descriptors at a random privilege level, and tables that the driver puts back behind each.
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

/** Where a far branch to a code segment must go: some have the image's base, and a limit of 64 KiB. */
const landingIn = (based: ReadonlySet<number>, selector: number): number =>
  based.has(selector & ~3) || (selector & ~7) === CODE16 ? LANDING : ROM + LANDING;

interface Tables {
  /** [physical address, bytes], together LAYOUT.idt to LAYOUT.end. */
  ram: Uint8Array;
  selectors: number[];
  codeSelectors: number[];
  /** Those whose base is the image's. */
  based: Set<number>;
}

/** Fixed selectors; random ones follow. */
const CODE32 = 0x08;
const DATA32 = 0x10;
const CODE16 = 0x18;
const TSS_MAIN = 0x20;
const TSS_DF = 0x28;
const LDT = 0x30;
const CODE3 = 0x3b;
const DATA3 = 0x43;
const DATA1 = 0x49;
const DATA2 = 0x52;
const CODE1 = 0x59;
const CODE2 = 0x62;
const FIRST_RANDOM = 0x68;
const GDT_ENTRIES = 80;
const LDT_ENTRIES = 16;
/** Vectors with random gates. */
const FIRST_GATE = 0x40;
const GATES = 64;

function randomSegment(random: Random): bigint {
  const isCode = random(2) === 1;
  const dpl = random(4);
  const type = 16 | (isCode ? 8 : 0) | random(8);
  const access = (random(12) === 0 ? 0 : 0x80) | (dpl << 5) | type;
  if (isCode && random(3) === 0) return descriptor(ROM, pick(random, [0xffff, 0xffff, 0x7fff]), access, 0);
  const limit = isCode ? 0xfffff : pick(random, [0xfffff, 0xfffff, 0xfffff, 0xfff, 0, 0xffff]);
  return descriptor(isCode ? 0 : pick(random, [0, 0, 0, 0x100]), limit, access, random(16));
}
const TSS_KINDS = [0x89, 0x81, 0x8b, 0x83];
function randomSystem(random: Random, code: number[], based: ReadonlySet<number>): bigint {
  const target = pick(random, code);
  const landing = landingIn(based, target);
  const dpl = random(4) << 5;
  const present = random(12) === 0 ? 0 : 0x80;
  switch (random(4)) {
    case 0: {
      const kind = pick(random, TSS_KINDS) & 0x0f;
      const limit = pick(random, kind & 8 ? [0x67, 0x67, 0x67, 0x66, 0xfff] : [0x2b, 0x2b, 0x67, 0x2a]);
      return descriptor(LAYOUT.tss + TSS_STRIDE * (2 + (kind & 8 ? 0 : 4) + random(4)), limit, present | dpl | kind, 0);
    }
    case 1:
    case 2:
      return gate(
        target | random(4),
        landing,
        present | dpl | pick(random, [0x0c, 0x0c, 0x04]),
        random(8) === 0 ? 31 : random(4),
      );
    default:
      return gate(target, landing, present | dpl | pick(random, [0, 2, 5, 6, 7, 8, 10, 13, 14, 15]), 0);
  }
}

function putTss32(view: DataView, at: number, random: Random, selectors: number[]): void {
  LAYOUT.stacks.slice(0, 3).forEach((top, ring) => {
    view.setUint32(at + 4 + 8 * ring, top, true);
    view.setUint32(at + 8 + 8 * ring, [DATA32, DATA1, DATA2][ring], true);
  });
  view.setUint32(at + 0x20, ROM + LANDING, true);
  view.setUint32(at + 0x24, 2 | (random(4) << 12) | (random(8) === 0 ? 0x4000 : 0), true);
  for (let i = 0; i < 8; i++) view.setUint32(at + 0x28 + 4 * i, random(0x10000), true);
  const ring = random(4);
  view.setUint32(at + 0x38, LAYOUT.stacks[ring], true);
  const own = [DATA32, DATA1, DATA2, DATA3][ring];
  for (const offset of [0x50, 0x54, 0x58, 0x5c, 0x48]) {
    view.setUint32(at + offset, offset !== 0x50 && random(8) === 0 ? pick(random, selectors) | random(4) : own, true);
  }
  view.setUint32(at + 0x4c, [CODE32, CODE1, CODE2, CODE3][ring], true);
  view.setUint32(at + 0x60, random(2) * LDT, true);
  view.setUint16(at + 0x64, random(16) === 0 ? 1 : 0, true);
  view.setUint16(at + 0x66, 0x68, true);
}
function putTss16(view: DataView, at: number, random: Random, selectors: number[]): void {
  for (let ring = 0; ring < 3; ring++) {
    view.setUint16(at + 2 + 4 * ring, LAYOUT.stacks[ring], true);
    view.setUint16(at + 4 + 4 * ring, [DATA32, DATA1, DATA2][ring], true);
  }
  view.setUint16(at + 0x0e, LANDING, true);
  view.setUint16(at + 0x10, 2 | (random(4) << 12), true);
  for (let i = 0; i < 8; i++) view.setUint16(at + 0x12 + 2 * i, random(0x10000), true);
  view.setUint16(at + 0x1a, LAYOUT.stacks[0], true);
  for (const offset of [0x22, 0x26, 0x28]) {
    view.setUint16(
      at + offset,
      offset !== 0x26 && random(8) === 0 ? pick(random, selectors) | random(4) : DATA32,
      true,
    );
  }
  view.setUint16(at + 0x24, CODE16, true);
  view.setUint16(at + 0x2a, random(2) * LDT, true);
}

/** Tables in RAM. */
function makeTables(random: Random): Tables {
  const ram = new Uint8Array(LAYOUT.end - LAYOUT.idt);
  const view = new DataView(ram.buffer);
  const at = (address: number): number => address - LAYOUT.idt;
  const set = (address: number, value: bigint): void => view.setBigUint64(at(address), value, true);
  const gdt = (selector: number, value: bigint): void => set(LAYOUT.gdt + (selector & ~7), value);
  for (const [selector, dpl] of [
    [CODE32, 0],
    [CODE1, 1],
    [CODE2, 2],
    [CODE3, 3],
  ] as const) {
    gdt(selector, descriptor(0, 0xfffff, 0x9b | (dpl << 5), 0xc));
  }
  for (const [selector, dpl] of [
    [DATA32, 0],
    [DATA1, 1],
    [DATA2, 2],
    [DATA3, 3],
  ] as const) {
    gdt(selector, descriptor(0, 0xfffff, 0x93 | (dpl << 5), 0xc));
  }
  gdt(CODE16, descriptor(ROM, 0xffff, 0x9b, 0));
  gdt(TSS_MAIN, descriptor(LAYOUT.tss, 0x67, 0x89, 0));
  gdt(TSS_DF, descriptor(LAYOUT.tss + TSS_STRIDE, 0x67, 0x89, 0));
  gdt(LDT, descriptor(LAYOUT.ldt, LDT_ENTRIES * 8 - 1, 0x82, 0));

  const selectors: number[] = [];
  const codeSelectors = [CODE32, CODE1, CODE2, CODE3];
  for (let index = FIRST_RANDOM / 8; index < GDT_ENTRIES; index++) selectors.push(index * 8);
  for (let index = 1; index < LDT_ENTRIES; index++) selectors.push(index * 8 + 4);
  const place = (selector: number): number => (selector & 4 ? LAYOUT.ldt : LAYOUT.gdt) + (selector & ~7);
  const systems: number[] = [];
  const based = new Set<number>();
  for (const selector of selectors) {
    if (random(2) === 0) {
      systems.push(selector);
      continue;
    }
    const value = randomSegment(random);
    if ((value >> 43n) & 1n) codeSelectors.push(selector);
    if ((value >> 32n) & 0xfn) based.add(selector);
    set(place(selector), value);
  }
  for (const selector of systems) set(place(selector), randomSystem(random, codeSelectors, based));
  selectors.push(
    CODE32,
    DATA32,
    CODE16,
    TSS_MAIN,
    TSS_DF,
    LDT,
    CODE3 & ~3,
    DATA3 & ~3,
    DATA1 & ~3,
    CODE1 & ~3,
    GDT_ENTRIES * 8,
    LDT_ENTRIES * 8 + 4,
  );

  for (let index = 0; index < 10; index++) {
    const tss = at(LAYOUT.tss + TSS_STRIDE * index);
    if (index < 6) putTss32(view, tss, random, selectors);
    else putTss16(view, tss, random, selectors);
  }
  // The main task's I/O bitmap lies behind its limit; the double fault's task starts from known good segments.
  const df = at(LAYOUT.tss + TSS_STRIDE);
  view.setUint32(df + 0x20, ROM + HANDLER, true);
  view.setUint32(df + 0x24, 2, true);
  view.setUint32(df + 0x38, LAYOUT.doubleFaultStack, true);
  for (const offset of [0x48, 0x50, 0x54, 0x58, 0x5c]) view.setUint32(df + offset, DATA32, true);
  view.setUint32(df + 0x4c, CODE32, true);
  view.setUint32(df + 0x60, 0, true);
  view.setUint16(df + 0x64, 0, true);

  for (let vector = 0; vector < 256; vector++) {
    let value = gate(CODE32, ROM + HANDLER, vector === EXIT_VECTOR ? 0xee : 0x8e);
    if (vector === 8) value = gate(TSS_DF, 0, 0x85);
    if (vector >= FIRST_GATE && vector < FIRST_GATE + GATES) {
      const dpl = random(4) << 5;
      const present = random(12) === 0 ? 0 : 0x80;
      const type = pick(random, [0x0e, 0x0e, 0x0f, 0x06, 0x07, 0x05, random(16)]);
      const selector = type === 5 ? pick(random, selectors) : pick(random, codeSelectors) | random(4);
      value = gate(selector, landingIn(based, selector), present | dpl | type);
    }
    set(LAYOUT.idt + 8 * vector, value);
  }
  return { ram, selectors, codeSelectors, based };
}

/** What a case does; text for nasm. `sel` gives a random selector, with a random RPL now and then. */
function instructionOf(random: Random, tables: Tables, ring: number): string {
  const sel = (): number => {
    if (random(16) === 0) return random(4);
    return pick(random, tables.selectors) | (random(2) === 0 ? 0 : random(4));
  };
  const code = (): number => (random(3) === 0 ? sel() : pick(random, tables.codeSelectors) | random(4));
  const flags = (): number => 2 | (random(0x1000) & 0xad5) | (random(4) << 12) | (random(6) === 0 ? 0x4000 : 0);
  const stack = (...values: (number | string)[]): string =>
    values.map((value) => `push dword ${typeof value === 'number' ? hex(value) : value}`).join('\n');
  const far = (selector: number): string => `${hex(selector)}:${hex(landingIn(tables.based, selector))}`;
  const target = (selector: number): [number, number] => [selector, landingIn(tables.based, selector)];
  const ops: (() => string)[] = [
    () => `mov ax, ${hex(sel())}\nmov ${pick(random, ['ds', 'es', 'fs', 'gs'])}, ax`,
    () => `mov ax, ${hex(sel())}\nmov ss, ax\nmov esp, ${hex(LAYOUT.stack - 64)}`,
    () => `${stack(sel())}\npop ${pick(random, ['ds', 'es', 'fs', 'gs', 'ss'])}`,
    () => `${stack(sel(), random(0x10000))}\n${pick(random, ['lds', 'les', 'lfs', 'lgs', 'lss'])} ebx, [esp]`,
    () =>
      `mov cx, ${hex(sel())}\n${pick(random, ['lar', 'lsl'])} ${pick(random, ['eax', 'ax'])}, ${pick(random, ['cx', 'cx'])}`,
    () => `mov cx, ${hex(sel())}\n${pick(random, ['verr', 'verw'])} cx`,
    () => `mov cx, ${hex(sel())}\n${pick(random, ['lar eax, cx', 'lsl edx, cx', 'verr cx', 'verw cx'])}`,
    () => `mov cx, ${hex(sel())}\nmov bx, ${hex(sel())}\narpl bx, cx`,
    () => `mov ax, ${hex(sel())}\nlldt ax`,
    // QEMU 7.2 loads a null selector into TR.
    () => `mov ax, ${hex(sel() | 8)}\nltr ax`,
    () => `jmp ${far(code())}`,
    () => `call ${far(code())}`,
    () => `jmp ${far(sel())}`,
    () => `call ${far(sel())}`,
    () => `${pick(random, ['jmp', 'call'])} word ${hex(code())}:landing`,
    () =>
      `${stack(random(2) ? sel() : DATA3, LAYOUT.stacks[3], ...target(code()))}\nretf${pick(random, ['', '', ' 8'])}`,
    () => `${stack(random(2) ? sel() : DATA3, LAYOUT.stacks[3], flags(), ...target(code()))}\niretd`,
    () =>
      `${stack(0, 0, 0, 0, DATA3, LAYOUT.stacks[3], (ring === 0 ? 0x20002 : 2) | flags(), 0xf000, hex(LANDING))}\niretd`,
    () => `push word ${hex(code())}\npush word landing\nretfw`,
    () => `push word ${hex(flags())}\npush word ${hex(code())}\npush word landing\niretw`,
    () => `int ${hex(FIRST_GATE + random(GATES))}`,
    () => `int ${hex(FIRST_GATE + random(GATES))}`,
    () =>
      pick(random, [
        'int3',
        'into',
        'int1',
        'ud2',
        ...(ring > 0 ? ['hlt'] : []),
        'cli',
        'sti',
        'clts',
        'invd',
        'wbinvd',
        'in al, 0x80',
        'out 0x80, al',
      ]),
    () => `${stack(flags())}\n${pick(random, ['popfd', 'popfd\npushfd', 'popfw', 'popfd\ncli', 'popfd\nsti'])}`,
    () =>
      pick(random, [
        'mov eax, cr0',
        'mov eax, dr7',
        'mov dr6, eax',
        'smsw eax',
        'sldt eax',
        'str eax',
        'sgdt [esp-16]',
        'sidt [esp-16]',
        'lmsw ax',
        'invlpg [0]',
        'rdtsc',
      ]),
    () => `mov byte [${hex(pick(random, [0x6000, 0x6001, 0x6abc]))}], al`,
    () => `enter ${hex(pick(random, [0, 8, 0x100]))}, ${random(4)}`,
    () => `bound eax, [esp]`,
    () => `sysexit`,
    () => `mov ax, ${hex(TSS_MAIN)}\nltr ax`,
    () => `${stack(flags() | 0x4000)}\npopfd\nmov word [${hex(LAYOUT.tss)}], ${hex(sel())}\niretd`,
  ];
  return pick(random, ops)();
}

/** Into a ring: through IRET, then its data segments. */
function enterRing(random: Random, ring: number, label: string): string {
  if (ring === 0) return random(2) ? `push dword ${hex(2 | (random(4) << 12))}\npopfd` : '';
  const data = [DATA32, DATA1, DATA2, DATA3][ring];
  return [
    `push dword ${hex(data)}`,
    `push dword ${hex(LAYOUT.stacks[ring] - 0x100)}`,
    `push dword ${hex(2 | (random(4) << 12))}`,
    `push dword ${hex([CODE32, CODE1, CODE2, CODE3][ring])}`,
    `push dword LIN(${label}_ring)`,
    'iretd',
    `${label}_ring:`,
    `mov ax, ${hex(data)}`,
    'mov ds, ax',
    'mov es, ax',
  ].join('\n');
}

const TOP = `
%define LIN(x) (${hex(ROM)} + (x))
org 0
bits 16
start:
  lgdt [cs:gdtr]
  lidt [cs:idtr]
  mov eax, cr0
  or al, 1
  mov cr0, eax
  jmp dword ${hex(CODE32)}:LIN(handler)
gdtr: dw ${GDT_ENTRIES * 8 - 1}
  dd ${hex(LAYOUT.gdt)}
idtr: dw 0x7ff
  dd ${hex(LAYOUT.idt)}
bits 32
times ${LANDING} - ($ - $$) db 0x90
; Two bytes that mean the same in every mode: back to the handler.
landing: int ${hex(EXIT_VECTOR)}
times ${HANDLER} - ($ - $$) db 0x90
handler:
  mov eax, ${hex(DATA32)}
  mov ss, ax
  mov esp, ${hex(LAYOUT.stack)}
  mov ds, ax
  mov es, ax
  mov fs, ax
  mov gs, ax
  lgdt [LIN(gdtr)]
  lidt [LIN(idtr)]
  mov ax, ${hex(LDT)}
  lldt ax
  and byte [${hex(LAYOUT.gdt + TSS_MAIN + 5)}], 0xfd
  mov ax, ${hex(TSS_MAIN)}
  ltr ax
  clts
  push dword 2
  popfd
  xor ecx, ecx
  xor edx, edx
  jmp [${hex(LAYOUT.next)}]
times ${FIRST_CASE} - ($ - $$) db 0x90
`;

export function makeProgram32(seed: number, cases: number): Program {
  const random = makeRandom(seed);
  const tables = makeTables(random);
  let source = TOP;
  for (let i = 0; i < cases; i++) {
    const label = `case${i}`;
    const ring = pick(random, [0, 0, 0, 1, 2, 3, 3]);
    source += `align 16\n${label}:\nmov dword [${hex(LAYOUT.next)}], LIN(case${i + 1})\n`;
    source += `mov eax, ${hex(random(0x10000))}\nmov ebx, ${hex(random(0x10000))}\n`;
    source += `${enterRing(random, ring, label)}\n${instructionOf(random, tables, ring)}\nint ${hex(EXIT_VECTOR)}\n`;
  }
  source += `align 16\ncase${cases}:\nmov al, 1\nout 0xf4, al\nhlt\n`;
  source += 'times 0xfff0 - ($ - $$) db 0xff\nbits 16\njmp 0xf000:start\ntimes 0x10000 - ($ - $$) db 0\n';
  const landing = Uint8Array.of(0xcd, EXIT_VECTOR);
  return { source, ram: tables.ram, once: [firstCase(), [LANDING, landing]] };
}
