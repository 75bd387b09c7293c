/**
 * Makes up programs: 256 chunks of 32 bytes with a few instructions each, some of which begin with a piece of several that belong together or end in a counted jump back, a call, a far branch or an IRET.
 */
import { InstructionMaker } from './instructions.ts';
import { CHUNK, CHUNKS, COUNTERS, codeBase, codeBits, dataBase, type FuzzMode, isReal, Place, Sel } from './layout.ts';
import { Pieces } from './pieces.ts';
import { littleEndian, type Random } from './random.ts';

/** Pieces that end a chunk. */
class Endings {
  readonly #random: Random;
  readonly #mode: FuzzMode;
  readonly #maker: InstructionMaker;
  readonly #bits: 16 | 32 | 64;

  constructor(random: Random, mode: FuzzMode, maker: InstructionMaker) {
    this.#random = random;
    this.#mode = mode;
    this.#maker = maker;
    this.#bits = codeBits(mode);
  }

  /** DEC dword [counter]; JG to a chunk before: each loop has a counter, which ends it for good. */
  loop(at: number): number[] {
    const random = this.#random;
    const counter = COUNTERS - dataBase(this.#mode) + Math.floor((at % (CHUNKS * CHUNK)) / CHUNK) * 4;
    const size = this.#bits === 16 ? 2 : 4;
    const address = this.#bits === 64 ? [0x0c, 0x25] : this.#bits === 32 ? [0x0d] : [0x0e];
    const out = [0xff, ...address, ...littleEndian(counter, size), 0x0f, 0x8f];
    const start = Place.code - codeBase(this.#mode);
    const to = Math.max(start, (at & ~(CHUNK - 1)) - CHUNK * random.below(4));
    return [...out, ...littleEndian(to - (at + out.length + size), size)];
  }

  /** MOV rAX, target; JMP or CALL rAX. */
  indirect(at: number): number[] {
    const size = this.#bits === 16 ? 2 : 4;
    return [0xb8, ...littleEndian(this.#maker.target(at), size), 0xff, this.#random.pick([0xe0, 0xd0])];
  }
  /** PUSH target; RET. */
  near(at: number): number[] {
    return [0x68, ...littleEndian(this.#maker.target(at), this.#bits === 16 ? 2 : 4), 0xc3];
  }
  #codeSelector(): number {
    const random = this.#random;
    if (isReal(this.#mode)) return Place.code >> 4;
    if (this.#mode === 'prot16-user') return Sel.userCode16;
    if (random.chance(12))
      return random.pick([Sel.conforming, Sel.absent, Sel.data, Sel.userCode16, 0, Sel.gate, Sel.tss]);
    if (this.#mode === 'long') return random.chance(80) ? Sel.code64 : Sel.code32;
    if (this.#mode === 'long-user') return random.chance(80) ? Sel.userCode64 : Sel.userCode32;
    if (this.#mode === 'compat') return random.chance(80) ? Sel.userCode32 : Sel.userCode64;
    return this.#mode === 'prot32' ? Sel.code32 : Sel.userCode32;
  }
  #push(value: number): number[] {
    return [0x68, ...littleEndian(value, this.#bits === 16 ? 2 : 4)];
  }
  /** PUSH CS; PUSH target; RETF. */
  far(at: number): number[] {
    const wide = this.#bits === 64 ? [0x48] : [];
    return [...this.#push(this.#codeSelector()), ...this.#push(this.#maker.target(at)), ...wide, 0xcb];
  }
  /** PUSHF; PUSH CS; PUSH target; IRET. In 64-bit code with SS:RSP in front (MOV RAX, RSP; PUSH SS; PUSH RAX). */
  iret(at: number): number[] {
    const random = this.#random;
    if (this.#bits !== 64) {
      return [0x9c, ...this.#push(this.#codeSelector()), ...this.#push(this.#maker.target(at)), 0xcf];
    }
    const ss = this.#mode === 'long' ? random.pick([0, Sel.data]) : Sel.userData;
    const stack = [0x48, 0x89, 0xe0, 0x6a, ss, 0x50];
    return [...stack, 0x9c, 0x6a, this.#codeSelector(), ...this.#push(this.#maker.target(at)), 0x48, 0xcf];
  }
  /** One of the above, or nothing. */
  any(at: number): number[] {
    const kind = this.#random.below(100);
    if (kind < 16) return this.loop(at);
    if (kind < 20) return this.indirect(at);
    if (kind < 24) return this.near(at);
    if (kind < 27) return this.far(at);
    return kind < 29 ? this.iret(at) : [];
  }
}

/** Makes one piece of at most 32 bytes that begins a chunk. */
export type PieceMaker = (random: Random, mode: FuzzMode) => number[];

/** Code of a program, from Place.code on. `more`: pieces that a third of the chunks begin with. */
export function makeCode(random: Random, mode: FuzzMode, more?: PieceMaker): Uint8Array {
  const maker = new InstructionMaker(random, mode);
  const endings = new Endings(random, mode, maker);
  const pieces = new Pieces(random, mode, maker);
  const code = new Uint8Array(CHUNKS * CHUNK).fill(0x90);
  const start = Place.code - codeBase(mode);
  for (let chunk = 0; chunk < CHUNKS; chunk++) {
    const bytes: number[] = [];
    const at = (): number => start + chunk * CHUNK + bytes.length;
    if (more !== undefined && random.chance(33)) bytes.push(...more(random, mode).slice(0, CHUNK));
    else if (random.chance(15)) bytes.push(...pieces.any(at()).slice(0, CHUNK));
    for (let left = random.between(bytes.length > 0 ? 0 : 1, 5); left > 0; left--) {
      const next = maker.make(at());
      if (bytes.length + next.length > CHUNK) break;
      bytes.push(...next);
    }
    const ending = endings.any(at());
    if (bytes.length + ending.length <= CHUNK) bytes.push(...ending);
    code.set(bytes, chunk * CHUNK);
  }
  return code;
}

/** What the data pages hold at first: counters, numbers, pointers into data. */
export function makeData(random: Random, mode: FuzzMode): Uint8Array {
  const data = new Uint8Array(0x10000);
  const view = new DataView(data.buffer);
  for (let at = 0; at < data.length; at += 8) {
    const kind = random.below(6);
    const pointer = BigInt(Place.data - dataBase(mode) + random.below(0x10000));
    const number = BigInt.asUintN(64, BigInt(random.between(1000, 1046)) << 52n) | (random.bits64() >> 12n);
    view.setBigUint64(
      at,
      kind < 2 ? random.bits64() : kind < 4 ? number : kind === 4 ? pointer : BigInt(random.below(4)),
      true,
    );
  }
  for (let n = 0; n < CHUNKS; n++) view.setUint32(COUNTERS - Place.data + n * 4, random.between(1, 20), true);
  return data;
}
