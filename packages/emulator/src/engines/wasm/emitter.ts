/**
 * A small WebAssembly byte emitter: a code writer with structured labels, and the module container.
 * Spec: WebAssembly 2.0, chapter 5 (binary format).
 */

export const I32 = 0x7f;
export const I64 = 0x7e;
export const V128 = 0x7b;
export const FUNCREF = 0x70;
export type ValType = typeof I32 | typeof I64 | typeof V128;

/** One-byte opcodes without immediates. */
export const OP = {
  unreachable: 0x00,
  return: 0x0f,
  drop: 0x1a,
  select: 0x1b,
  i32Eqz: 0x45,
  i32Eq: 0x46,
  i32Ne: 0x47,
  i32LtS: 0x48,
  i32LtU: 0x49,
  i32GtS: 0x4a,
  i32GtU: 0x4b,
  i32LeS: 0x4c,
  i32LeU: 0x4d,
  i32GeS: 0x4e,
  i32GeU: 0x4f,
  i64Eqz: 0x50,
  i64Eq: 0x51,
  i64Ne: 0x52,
  i64LtS: 0x53,
  i64LtU: 0x54,
  i64GtS: 0x55,
  i64GtU: 0x56,
  i64LeS: 0x57,
  i64LeU: 0x58,
  i64GeS: 0x59,
  i64GeU: 0x5a,
  i32Clz: 0x67,
  i32Ctz: 0x68,
  i32Popcnt: 0x69,
  i32Add: 0x6a,
  i32Sub: 0x6b,
  i32Mul: 0x6c,
  i32And: 0x71,
  i32Or: 0x72,
  i32Xor: 0x73,
  i32Shl: 0x74,
  i32ShrS: 0x75,
  i32ShrU: 0x76,
  i32Rotl: 0x77,
  i32Rotr: 0x78,
  i64Clz: 0x79,
  i64Ctz: 0x7a,
  i64Popcnt: 0x7b,
  i64Add: 0x7c,
  i64Sub: 0x7d,
  i64Mul: 0x7e,
  i64DivS: 0x7f,
  i64DivU: 0x80,
  i64RemS: 0x81,
  i64RemU: 0x82,
  i64And: 0x83,
  i64Or: 0x84,
  i64Xor: 0x85,
  i64Shl: 0x86,
  i64ShrS: 0x87,
  i64ShrU: 0x88,
  i64Rotl: 0x89,
  i64Rotr: 0x8a,
  i32WrapI64: 0xa7,
  i64ExtendI32S: 0xac,
  i64ExtendI32U: 0xad,
  i32Extend8S: 0xc0,
  i32Extend16S: 0xc1,
  i64Extend8S: 0xc2,
  i64Extend16S: 0xc3,
  i64Extend32S: 0xc4,
} as const;

/** Memory opcodes (alignment is always given as 1: guests do not align). */
export const MEM = {
  i32Load: 0x28,
  i64Load: 0x29,
  i32Load8U: 0x2d,
  i32Load16U: 0x2f,
  i64Load8S: 0x30,
  i64Load8U: 0x31,
  i64Load16S: 0x32,
  i64Load16U: 0x33,
  i64Load32S: 0x34,
  i64Load32U: 0x35,
  i32Store: 0x36,
  i64Store: 0x37,
  i32Store8: 0x3a,
  i32Store16: 0x3b,
  i64Store8: 0x3c,
  i64Store16: 0x3d,
  i64Store32: 0x3e,
} as const;

/** A branch target: how many labels were open when it was opened. */
export interface Label {
  readonly depth: number;
}

/** A growing byte buffer with LEB128. */
export class Bytes {
  #data = new Uint8Array(256);
  length = 0;

  byte(value: number): this {
    if (this.length === this.#data.length) this.#grow(1);
    this.#data[this.length++] = value;
    return this;
  }
  #grow(extra: number): void {
    const larger = new Uint8Array(Math.max(this.#data.length * 2, this.length + extra));
    larger.set(this.#data);
    this.#data = larger;
  }
  bytes(value: ArrayLike<number>): this {
    if (this.length + value.length > this.#data.length) this.#grow(value.length);
    this.#data.set(value, this.length);
    this.length += value.length;
    return this;
  }
  /** Unsigned LEB128. */
  u32(value: number): this {
    let rest = value >>> 0;
    while (rest >= 0x80) {
      this.byte((rest & 0x7f) | 0x80);
      rest >>>= 7;
    }
    return this.byte(rest);
  }
  /** Signed LEB128, 32 bits. */
  s32(value: number): this {
    let rest = value | 0;
    for (;;) {
      const low = rest & 0x7f;
      rest >>= 7;
      if ((rest === 0 && (low & 0x40) === 0) || (rest === -1 && (low & 0x40) !== 0)) return this.byte(low);
      this.byte(low | 0x80);
    }
  }
  /** Signed LEB128, 64 bits. */
  s64(value: bigint): this {
    let rest = BigInt.asIntN(64, value);
    for (;;) {
      const low = Number(rest & 0x7fn);
      rest >>= 7n;
      if ((rest === 0n && (low & 0x40) === 0) || (rest === -1n && (low & 0x40) !== 0)) return this.byte(low);
      this.byte(low | 0x80);
    }
  }
  name(value: string): this {
    const utf8 = new TextEncoder().encode(value);
    return this.u32(utf8.length).bytes(utf8);
  }
  sized(inner: Bytes): this {
    return this.u32(inner.length).bytes(inner.done());
  }
  done(): Uint8Array {
    return this.#data.subarray(0, this.length);
  }
}

/** The body of one function. Labels are objects; their relative depth is computed where they are used. */
export class Code extends Bytes {
  #depth = 0;

  op(opcode: number): this {
    return this.byte(opcode);
  }
  i32(value: number): this {
    return this.byte(0x41).s32(value);
  }
  i64(value: bigint): this {
    return this.byte(0x42).s64(value);
  }
  get(local: number): this {
    return this.byte(0x20).u32(local);
  }
  set(local: number): this {
    return this.byte(0x21).u32(local);
  }
  tee(local: number): this {
    return this.byte(0x22).u32(local);
  }
  /** Load or store with a static offset. */
  mem(opcode: number, offset: number): this {
    return this.byte(opcode).u32(0).u32(offset);
  }
  call(func: number): this {
    return this.byte(0x10).u32(func);
  }
  callIndirect(type: number, table: number): this {
    return this.byte(0x11).u32(type).u32(table);
  }
  block(): Label {
    return this.#open(0x02, 0x40);
  }
  loop(): Label {
    return this.#open(0x03, 0x40);
  }
  /** `result`: the type that both arms leave on the stack. */
  if(result?: ValType): Label {
    return this.#open(0x04, result ?? 0x40);
  }
  else(): this {
    return this.byte(0x05);
  }
  #open(opcode: number, type: number): Label {
    this.byte(opcode).byte(type);
    this.#depth++;
    return { depth: this.#depth };
  }
  end(): this {
    this.#depth--;
    return this.byte(0x0b);
  }
  br(label: Label): this {
    return this.byte(0x0c).u32(this.#depth - label.depth);
  }
  brIf(label: Label): this {
    return this.byte(0x0d).u32(this.#depth - label.depth);
  }
  brTable(labels: readonly Label[], otherwise: Label): this {
    this.byte(0x0e).u32(labels.length);
    for (const label of labels) this.u32(this.#depth - label.depth);
    return this.u32(this.#depth - otherwise.depth);
  }
}

export interface FuncType {
  params: readonly ValType[];
  results: readonly ValType[];
}

export interface FuncBody {
  type: FuncType;
  /** Types of the locals behind the parameters. */
  locals: readonly ValType[];
  code: Code;
  export?: string;
}

export interface FuncImport {
  module: string;
  name: string;
  type: FuncType;
}

/** A module with one imported memory (`env.memory`), imported functions, functions, and optionally a table that it exports. */
export interface ModuleParts {
  imports: readonly FuncImport[];
  functions: readonly FuncBody[];
  /** Elements of an exported table named `table`. */
  table?: number;
  /** All functions are put into an imported table, `env.table`, from element `env.first` on (an imported i32). */
  fillsTable?: boolean;
  /** Types that `call_indirect` names; they come first, so that their indices are their places here. */
  types?: readonly FuncType[];
}

const typeKey = (t: FuncType): string => `${t.params.join()}:${t.results.join()}`;

class TypeSection {
  readonly list: FuncType[] = [];
  readonly #index = new Map<string, number>();

  of(type: FuncType): number {
    const key = typeKey(type);
    let at = this.#index.get(key);
    if (at === undefined) {
      at = this.list.length;
      this.list.push(type);
      this.#index.set(key, at);
    }
    return at;
  }
}

const vector = (items: readonly Bytes[]): Bytes => {
  const out = new Bytes().u32(items.length);
  for (const item of items) out.bytes(item.done());
  return out;
};

const encodeType = (t: FuncType): Bytes =>
  new Bytes().byte(0x60).u32(t.params.length).bytes(t.params).u32(t.results.length).bytes(t.results);

function encodeBody(body: FuncBody): Bytes {
  const groups: [number, ValType][] = [];
  for (const type of body.locals) {
    const last = groups[groups.length - 1];
    if (last && last[1] === type) last[0]++;
    else groups.push([1, type]);
  }
  const inner = new Bytes().u32(groups.length);
  for (const [count, type] of groups) inner.u32(count).byte(type);
  inner.bytes(body.code.done()).byte(0x0b);
  return new Bytes().sized(inner);
}

const tableImports = (): Bytes[] => [
  new Bytes().name('env').name('table').byte(1).byte(FUNCREF).byte(0).u32(1),
  new Bytes().name('env').name('first').byte(3).byte(I32).byte(0),
];

/** Serialises a module. */
export function encodeModule(parts: ModuleParts): Uint8Array<ArrayBuffer> {
  const types = new TypeSection();
  for (const t of parts.types ?? []) types.of(t);
  const imports = [
    new Bytes().name('env').name('memory').byte(2).byte(0).u32(1),
    ...parts.imports.map((i) => new Bytes().name(i.module).name(i.name).byte(0).u32(types.of(i.type))),
    ...(parts.fillsTable ? tableImports() : []),
  ];
  const functions = parts.functions.map((f) => new Bytes().u32(types.of(f.type)));
  const exports = parts.functions.flatMap((f, i) =>
    f.export === undefined
      ? []
      : [
          new Bytes()
            .name(f.export)
            .byte(0)
            .u32(parts.imports.length + i),
        ],
  );
  const out = new Bytes().bytes([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0]);
  const section = (id: number, body: Bytes): void => void out.byte(id).sized(body);
  section(1, vector(types.list.map(encodeType)));
  section(2, vector(imports));
  section(3, vector(functions));
  if (parts.table !== undefined) {
    section(4, vector([new Bytes().byte(FUNCREF).byte(0).u32(parts.table)]));
    exports.push(new Bytes().name('table').byte(1).u32(0));
  }
  section(7, vector(exports));
  if (parts.fillsTable) {
    const all = new Bytes().u32(parts.functions.length);
    for (let i = 0; i < parts.functions.length; i++) all.u32(parts.imports.length + i);
    // Active, table 0, at global.get 0.
    section(9, vector([new Bytes().bytes([0, 0x23, 0, 0x0b]).bytes(all.done())]));
  }
  section(10, vector(parts.functions.map(encodeBody)));
  return out.done().slice();
}
