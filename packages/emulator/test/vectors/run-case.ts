/**
 * Runs one vector case on an engine and says what differs from what the real processor did.
 */

import * as env from './environment.ts';
import { bytesOf, type Case, type Header, hex, SEGMENT_NAMES, type Template } from './format.ts';
import { compareFpu, loadFpu } from './fpu-state.ts';

export const REGISTER_NAMES = [
  'rax',
  'rcx',
  'rdx',
  'rbx',
  'rsp',
  'rbp',
  'rsi',
  'rdi',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
] as const;

/** Integer state before or after a case. */
export interface IntegerState {
  ip: bigint;
  rflags: bigint;
  /** Sixteen. */
  gpr: bigint[];
}

export interface RaisedException {
  vector: number;
  errorCode: number;
  /** #PF only. */
  address: bigint;
}

/** A machine in the vectors' environment under one engine; reused for all cases of a file. */
export interface VectorMachine {
  /** Puts the environment, memory patches and integer registers in place. */
  load(input: IntegerState, patches: readonly (readonly [number, Uint8Array])[]): void;
  /**
   * Executes one instruction, REP to its end, and fetches the first byte of the next.
   * @param raisesBp the instruction raises #BP itself; otherwise a #BP is the INT3 behind it
   */
  run(raisesBp: boolean): RaisedException | undefined;
  /** State after `run`: with an exception, the state that it would save. */
  state(): IntegerState;
  /** Selectors ES..GS and the bases of FS and GS. */
  selectors(): number[];
  bases(): [fs: bigint, gs: bigint];
  /** x87 and SSE registers, live (X86EmulateOps.fpuArea). */
  fpu(): DataView;
  /** The data pages (environment.DATA, DATA_SIZE bytes). */
  data(): Uint8Array;
  /** Engine translate: cases so far that ran as regions, and those that regions can't contain. */
  readonly coverage?: { readonly translated: number; readonly interpreted: number };
}

export interface VectorEngine {
  readonly name: string;
  create(header: Header): VectorMachine | Promise<VectorMachine>;
}

const BACKGROUND = env.background();
const RF = 0x10000n;

function inputState(header: Header, test: Case): IntegerState {
  const text = (name: string): string => test.i?.r?.[name] ?? header.base.r?.[name] ?? '0';
  return {
    ip: hex(test.ip),
    rflags: hex(test.i?.fl ?? header.base.fl ?? '202'),
    gpr: REGISTER_NAMES.map((name) => hex(text(name))),
  };
}

/** Instruction bytes that fall off the mapped code do not exist. */
function patchesOf(header: Header, test: Case): (readonly [number, Uint8Array])[] {
  const patches = (test.i?.m ?? []).map(([address, bytes]) => [Number.parseInt(address, 16), bytesOf(bytes)] as const);
  return [...patches, [Number(hex(header.seg.cs.base) + hex(test.ip)), bytesOf(test.c)] as const];
}

/**
 * Runs a case.
 * @returns differences, one line each; empty if everything agrees outside what is undefined
 */
export function runCase(machine: VectorMachine, header: Header, test: Case): string[] {
  const input = inputState(header, test);
  const patches = patchesOf(header, test);
  machine.load(input, patches);
  loadFpu(machine.fpu(), header, test.i ?? {});
  const template = header.templates[test.t]!;
  const raised = machine.run(template.selfbp === 1);
  return [
    ...compareException(test, raised),
    ...compareRegisters(header, test, template, input, machine.state()),
    ...compareSegments(header, test, machine),
    ...compareFpu(machine.fpu(), header, test, template),
    ...compareMemory(test, patches, machine.data()),
  ];
}

const show = (value: bigint | number): string => value.toString(16);
const describe = (e: RaisedException | undefined): string =>
  e === undefined ? 'none' : `#${e.vector}(${show(e.errorCode)})${e.vector === 14 ? ` at ${show(e.address)}` : ''}`;

function compareException(test: Case, raised: RaisedException | undefined): string[] {
  const expected =
    test.e === undefined
      ? undefined
      : { vector: test.e[0], errorCode: Number.parseInt(test.e[1], 16), address: hex(test.e[2] ?? '0') };
  // Above 4 GiB stood the kernel of the captured machine: whether a page is present there is its own affair.
  if (expected?.vector === 14 && expected.address >= 1n << 32n && raised !== undefined) {
    expected.errorCode = (expected.errorCode & ~1) | (raised.errorCode & 1);
  }
  const want = describe(expected);
  const have = describe(raised);
  return want === have ? [] : [`exception: expected ${want}, got ${have}`];
}

function compareRegisters(
  header: Header,
  test: Case,
  template: Template,
  input: IntegerState,
  state: IntegerState,
): string[] {
  const differences: string[] = [];
  const check = (name: string, want: bigint, have: bigint, mask: bigint): void => {
    if (((want ^ have) & mask) !== 0n)
      differences.push(`${name}: expected ${show(want & mask)}, got ${show(have & mask)}`);
  };
  const wide = header.mode === 64 && isLongCs(header, test);
  const width = wide ? (1n << 64n) - 1n : 0xffffffffn;
  // INT1's #DB was captured below a hypervisor, which put it back onto the instruction; on the processor it is a trap (APM vol. 2 section 8.2.2).
  if (template.mnem !== 'INT1') check('ip', hex(test.o.ip), state.ip, width);
  const undefinedFlags = hex(test.u?.fl ?? template.uf ?? '0');
  const flags = test.o.fl === undefined ? input.rflags : hex(test.o.fl);
  check('flags', flags, state.rflags, ~(undefinedFlags | RF) & 0xffffffffn);
  REGISTER_NAMES.forEach((name, i) => {
    if (i >= 8 && header.mode !== 64) return;
    const expected = test.o.r?.[name];
    check(
      name,
      expected === undefined ? input.gpr[i]! : hex(expected),
      state.gpr[i]!,
      width & ~hex(test.u?.r?.[name] ?? '0'),
    );
  });
  return differences;
}

/** False if the outcome left 64-bit mode: then only the low halves are defined. */
function isLongCs(header: Header, test: Case): boolean {
  const selector = Number.parseInt(test.o.s?.['cs'] ?? header.seg.cs.sel, 16);
  return (env.attributes(header, selector) & 0x200) !== 0;
}

/** The capture came back through IRET, which turns null selectors with an RPL into 0. */
const visible = (selector: number): number => (selector < 4 ? 0 : selector);

function compareSegments(header: Header, test: Case, machine: VectorMachine): string[] {
  const differences: string[] = [];
  const selectors = machine.selectors();
  SEGMENT_NAMES.forEach((name, i) => {
    const want = Number.parseInt(test.o.s?.[name] ?? header.seg[name].sel, 16);
    if (visible(want) !== visible(selectors[i]!))
      differences.push(`${name}: expected ${show(want)}, got ${show(selectors[i]!)}`);
  });
  if (header.mode === 64) {
    machine.bases().forEach((have, i) => {
      const name = i === 0 ? 'fs' : 'gs';
      const want = hex(test.o.s?.[`${name}base`] ?? header.seg[name].base);
      if (want !== have) differences.push(`${name}base: expected ${show(want)}, got ${show(have)}`);
    });
  }
  return differences;
}

const expectedData = new Uint8Array(env.DATA_SIZE);

function compareMemory(test: Case, patches: readonly (readonly [number, Uint8Array])[], data: Uint8Array): string[] {
  expectedData.set(BACKGROUND);
  for (const [address, bytes] of patches) apply(address, bytes);
  for (const [address, bytes] of test.o.m ?? []) apply(Number.parseInt(address, 16), bytesOf(bytes));
  for (const [address, length] of test.u?.m ?? []) {
    const start = Number.parseInt(address, 16) - env.DATA;
    const from = Math.min(Math.max(start, 0), env.DATA_SIZE);
    expectedData.set(data.subarray(from, Math.max(start + length, from)), from);
  }
  const at = firstDifference(expectedData, data);
  if (at < 0) return [];
  const shown = (bytes: Uint8Array): string => Buffer.from(bytes.subarray(at, at + 8)).toString('hex');
  return [`memory ${show(env.DATA + at)}: expected ${shown(expectedData)}, got ${shown(data)}`];
}

function apply(address: number, bytes: Uint8Array): void {
  const from = address - env.DATA;
  for (let i = 0; i < bytes.length; i++)
    if (from + i >= 0 && from + i < env.DATA_SIZE) expectedData[from + i] = bytes[i]!;
}

function firstDifference(a: Uint8Array, b: Uint8Array): number {
  if (Buffer.compare(a, b) === 0) return -1;
  return a.findIndex((byte, i) => byte !== b[i]);
}
