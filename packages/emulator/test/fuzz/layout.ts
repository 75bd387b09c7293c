/**
 * Where things stand in the machines of made-up programs: tables and handlers below 64 KiB, two pages of code, a stack, sixteen pages of data
 * whose mappings differ.
 */
export const MEMORY_SIZE = 0x80000;
export const Place = {
  idt: 0x0000,
  gdt: 0x1000,
  tss: 0x2000,
  /** Tasks to switch to: a 32-bit TSS and a 16-bit one. */
  tss32: 0x2400,
  tss16: 0x2500,
  /** What the tasks execute. */
  task32: 0x2600,
  task16: 0x2700,
  pml4: 0x3000,
  pdpt: 0x4000,
  pd: 0x5000,
  pt: 0x6000,
  /** PDPT of 32-bit PAE paging. */
  pae: 0x7000,
  /** Sixteen bytes for each vector. */
  stubs: 0x8000,
  handler: 0x9000,
  /** What the handler has seen; behind it what it puts right after a fault: RBX, RBP, RSI, RDI, RSP, MXCSR. */
  log: 0x9f00,
  kernelStack: 0xc000,
  code: 0x10000,
  stack: 0x37000,
  /** SMBASE after RESET, and where the SMI handler stands. */
  smi: 0x38000,
  data: 0x40000,
} as const;
export const CODE_SIZE = 0x2000;
export const CHUNK = 32;
export const CHUNKS = CODE_SIZE / CHUNK;
/** Loop counters, 4 bytes each, in a page that is always writable. */
export const COUNTERS = Place.data + 0xd000;

/** Selectors of the GDT. */
export const Sel = {
  code64: 0x08,
  data: 0x10,
  userCode32: 0x1b,
  userData: 0x23,
  userCode64: 0x2b,
  code32: 0x30,
  userCode16: 0x3b,
  tss: 0x40,
  code16: 0x50,
  smallData: 0x5b,
  conforming: 0x60,
  absent: 0x68,
  gate: 0x73,
  /** A 32-bit TSS, a 16-bit one, a task gate to the former, a call gate that takes three parameters along. */
  tss32: 0x78,
  tss16: 0x80,
  taskGate: 0x8b,
  gateWithParameters: 0x93,
  /** 16-bit code that begins at 0. */
  low16: 0x98,
} as const;

/** Interrupt vectors whose gates lead to tasks (outside long mode). */
export const TaskVector = { tss32: 0x30, tss16: 0x31 } as const;

/** Modes in which programs run. User modes are at CPL 3. */
export const MODES = ['long', 'long-user', 'compat', 'prot32', 'prot32-user', 'prot16-user', 'vm86', 'real'] as const;
export type FuzzMode = (typeof MODES)[number];

export const codeBits = (mode: FuzzMode): 16 | 32 | 64 =>
  mode === 'long' || mode === 'long-user'
    ? 64
    : mode === 'compat' || mode === 'prot32' || mode === 'prot32-user'
      ? 32
      : 16;
/** Modes whose segments have bases as in real mode. */
export const isReal = (mode: FuzzMode): boolean => mode === 'real' || mode === 'vm86';
/** What is to be subtracted from linear addresses of data and of code. */
export const dataBase = (mode: FuzzMode): number => (isReal(mode) || mode === 'prot16-user' ? Place.data : 0);
export const codeBase = (mode: FuzzMode): number => (isReal(mode) || mode === 'prot16-user' ? Place.code : 0);
