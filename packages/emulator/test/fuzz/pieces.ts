/**
 * Pieces of made-up programs of a few instructions that belong together: what single instructions drawn at random seldom bring about. Strings
 * over borders of pages, code that writes over what is about to run, debug registers, far transfers through memory, tasks, virtual-8086
 * mode, system calls, exceptions of the floating-point units.
 */
import { Flag } from '../../src/state-layout.ts';
import type { InstructionMaker } from './instructions.ts';
import { codeBase, codeBits, dataBase, type FuzzMode, isReal, Place, Sel, TaskVector } from './layout.ts';
import { littleEndian, type Random } from './random.ts';

const EAX = 0;
const ECX = 1;
const ESI = 6;
const EDI = 7;

export class Pieces {
  readonly #random: Random;
  readonly #mode: FuzzMode;
  readonly #maker: InstructionMaker;
  readonly #bits: 16 | 32 | 64;
  /** Bytes of an address or a full immediate. */
  readonly #size: 2 | 4;
  readonly #kinds: readonly (readonly [number, (at: number) => number[]])[];

  constructor(random: Random, mode: FuzzMode, maker: InstructionMaker) {
    this.#random = random;
    this.#mode = mode;
    this.#maker = maker;
    this.#bits = codeBits(mode);
    this.#size = this.#bits === 16 ? 2 : 4;
    this.#kinds = [
      [28, () => this.#strings()],
      [22, (at) => this.#overwrite(at)],
      [12, () => this.#floats()],
      [10, (at) => this.#debugRegisters(at)],
      [10, (at) => this.#farThroughMemory(at)],
      [8, () => this.#task()],
      [6, (at) => this.#virtual8086(at)],
      [10, (at) => this.#systemCall(at)],
      [8, () => this.#shadows()],
    ];
  }

  /** One piece of at most 32 bytes that stands at an offset in the code segment. */
  any(at: number): number[] {
    const total = this.#kinds.reduce((sum, [weight]) => sum + weight, 0);
    let left = this.#random.below(total);
    return this.#kinds.find(([weight]) => (left -= weight) < 0)![1](at);
  }

  #move(register: number, value: number | bigint): number[] {
    return [0xb8 | register, ...littleEndian(value, this.#size)];
  }
  /** ModRM and displacement of [address] as DS sees it. */
  #absolute(reg: number, linear: number, base = dataBase(this.#mode)): number[] {
    const address = littleEndian(linear - base, this.#size);
    if (this.#bits === 16) return [(reg << 3) | 6, ...address];
    return this.#bits === 64 ? [(reg << 3) | 4, 0x25, ...address] : [(reg << 3) | 5, ...address];
  }
  /** MOV [address], imm of `bytes` bytes. */
  #store(linear: number, value: number, bytes: 2 | 4): number[] {
    const narrow = (this.#bits === 16) !== (bytes === 2) ? [0x66] : [];
    return [...narrow, 0xc7, ...this.#absolute(0, linear), ...littleEndian(value, bytes)];
  }

  /** A few bytes before or behind the border of a page of data, as DS and ES see it. */
  #border(): number {
    const random = this.#random;
    const page = random.pick([1, 2, 3, 4, 6, 7, 9, 9, 0xa, 0xa, 0xb, 0xb, 0xc, 0xe]);
    return Place.data - dataBase(this.#mode) + page * 0x1000 + random.between(-20, 12);
  }
  /** MOV ESI, border; MOV EDI, border; MOV ECX, count; STD or CLD; REP string; CLD. */
  #strings(): number[] {
    const random = this.#random;
    const op = random.pick([
      0xa4, 0xa5, 0xa4, 0xa5, 0xaa, 0xab, 0xa6, 0xa7, 0xac, 0xad, 0xae, 0xaf, 0x6c, 0x6d, 0x6e, 0x6f,
    ]);
    const port =
      (op & 0xfc) === 0x6c ? [0x66, 0xba, ...littleEndian(random.below(0x80), this.#bits === 16 ? 4 : 2)] : [];
    const wide = this.#bits === 64 && random.chance(40) ? [0x48] : random.chance(15) ? [0x66] : [];
    return [
      ...this.#move(ESI, this.#border()),
      ...this.#move(EDI, this.#border()),
      ...this.#move(ECX, random.between(0, 40)),
      ...port,
      ...(random.chance(20) ? [0xfd] : []),
      ...(random.chance(90) ? [random.pick([0xf3, 0xf2])] : []),
      ...wide,
      op,
      0xfc,
    ];
  }

  /** Changes a byte or more of what stands a little ahead or behind; in 64-bit code relative to RIP, else by CS where it can be written. */
  #overwrite(at: number): number[] {
    const random = this.#random;
    const length = random.between(1, 24);
    const value = random.pick([0x90, 0x40, 0xf8, 0xf9, 0xcc, random.below(256)]);
    if (this.#bits === 64) return [0xc6, 0x05, ...littleEndian(length - 4, 4), value];
    const linear = codeBase(this.#mode) + at + length;
    // 16-bit programs reach their code through the alias in data (page 4Ch).
    const target = this.#bits === 32 ? linear : Place.data + 0xc000 + ((linear - Place.code) & 0xfff);
    if (isReal(this.#mode) && this.#mode === 'real') return this.#throughFs(linear, value);
    const wide = random.chance(25);
    const immediate = littleEndian(wide ? random.next() : value, wide ? this.#size : 1);
    return [wide ? 0xc7 : 0xc6, ...this.#absolute(0, target), ...immediate];
  }
  /** MOV AX, code segment; MOV FS, AX; MOV BYTE FS:[target], value. */
  #throughFs(linear: number, value: number): number[] {
    const store = [0x64, 0xc6, ...this.#absolute(0, linear, Place.code), value];
    return [...this.#move(EAX, Place.code >> 4), 0x8e, 0xe0, ...store];
  }

  /** FLDCW, LDMXCSR with exceptions unmasked, or what sets the units' exceptions free. */
  #floats(): number[] {
    const random = this.#random;
    const word = Place.data + 0xf00 + random.below(8) * 8;
    const unmasked = 0x37f & ~(1 << random.below(6)) & ~(random.chance(30) ? 0x300 : 0);
    switch (random.below(5)) {
      case 0:
        return [...this.#store(word, unmasked | (random.below(4) << 10), 2), 0xd9, ...this.#absolute(5, word)];
      case 1: {
        const mxcsr = 0x1f80 & ~(0x80 << random.below(6));
        const value =
          mxcsr | (random.below(4) << 13) | (random.chance(20) ? 0x8000 : 0) | (random.chance(20) ? 0x40 : 0);
        return [...this.#store(word, value, 4), 0x0f, 0xae, ...this.#absolute(2, word)];
      }
      case 2:
        // FLDZ; FLD1; FDIVRP or FYL2X, FSQRT of a negative number; FWAIT.
        return [
          0xd9,
          0xee,
          0xd9,
          0xe8,
          ...random.pick([
            [0xde, 0xf1],
            [0xd9, 0xf1],
            [0xd9, 0xe0, 0xd9, 0xfa],
          ]),
          0x9b,
        ];
      case 3:
        // XORPS, then DIVPS or SQRTPS of what came of it.
        return [0x0f, 0x57, 0xc0, 0x0f, random.pick([0x5e, 0x51]), 0xc8 | random.below(8), 0x0f, 0x5e, 0xc1];
      default:
        return random.pick([[0xdb, 0xe2], [0xdb, 0xe3], [0x0f, 0x77], [0xc5, 0xf8, 0x77], [0xd9, 0xf7], [0x9b]]);
    }
  }

  /** MOV rAX, address; MOV DRn, rAX; MOV EAX, enables; MOV DR7, rAX: code, data or I/O, of any length. */
  #debugRegisters(at: number): number[] {
    const random = this.#random;
    const n = random.below(4);
    const code = random.chance(50);
    const linear = code
      ? codeBase(this.#mode) + this.#maker.target(at)
      : Place.data + random.below(16) * 0x1000 + random.pick([0, 8, 0xff8, 0xffc]);
    const kind = code ? 0 : random.pick([1, 3, 3, 2]);
    const length = code ? 0 : random.below(4);
    const enables = (random.pick([1, 2, 3]) << (n * 2)) | (((length << 2) | kind) << (16 + n * 4)) | 0x400;
    const wide = this.#bits === 16 ? [0x66] : [];
    const load = (value: number): number[] => [...wide, 0xb8, ...littleEndian(value, 4)];
    const guard = random.chance(5) ? 0x2000 : 0;
    return [...load(linear), 0x0f, 0x23, 0xc0 | (n << 3), ...load(enables | guard), 0x0f, 0x23, 0xf8];
  }

  #codeSelector(): number {
    const random = this.#random;
    if (isReal(this.#mode)) return Place.code >> 4;
    if (this.#mode === 'prot16-user') return random.pick([Sel.userCode16, Sel.userCode16, Sel.gate, Sel.userCode32]);
    const own =
      { long: Sel.code64, 'long-user': Sel.userCode64, prot32: Sel.code32 }[this.#mode as 'long'] ?? Sel.userCode32;
    return random.chance(60) ? own : random.pick([Sel.gate, Sel.gateWithParameters, Sel.conforming, Sel.code16]);
  }
  /** MOV [pointer], target; MOV [pointer+size], selector; JMP or CALL FAR [pointer]. */
  #farThroughMemory(at: number): number[] {
    const random = this.#random;
    const pointer = Place.data + 0xe80 + random.below(8) * 8;
    const target = this.#store(pointer, this.#maker.target(at), this.#size);
    const selector = this.#store(pointer + this.#size, this.#codeSelector(), 2);
    return [...target, ...selector, 0xff, ...this.#absolute(random.pick([3, 5]), pointer)];
  }

  /** A task by a far branch, by INT, or IRET with NT. */
  #task(): number[] {
    const random = this.#random;
    const gate = [0xcd, random.pick([TaskVector.tss32, TaskVector.tss16])];
    if (this.#bits === 64 || random.chance(40)) return gate;
    // PUSHF; POP; OR NT; PUSH; POPF; IRET.
    if (random.chance(20)) return [0x9c, 0x58, 0x0d, ...littleEndian(Flag.NT, this.#size), 0x50, 0x9d, 0xcf];
    const selector = random.pick([Sel.tss32, Sel.tss32, Sel.tss16, Sel.taskGate, Sel.tss]);
    return [random.pick([0x9a, 0xea]), ...littleEndian(0, this.#size), ...littleEndian(selector, 2)];
  }

  /** Pushes GS to EIP of a virtual-8086 frame, then IRET: from 32-bit code at CPL 0; elsewhere CLI, STI and POPF of IF by IOPL. */
  #virtual8086(at: number): number[] {
    const random = this.#random;
    if (this.#mode !== 'prot32')
      return random.pick([[0xfa], [0xfb], [0xfb, 0x90, 0xfa], [0x9c, 0x9d], [0xfa, 0xfb, 0x0f, 0xa2]]);
    const segment = (value: number): number[] => [0x68, ...littleEndian(value, 4)];
    const flags = 2 | Flag.VM | (random.chance(70) ? Flag.IOPL : 0) | (random.chance(70) ? Flag.IF : 0);
    const ds = segment(Place.data >> 4);
    const stack = [0x6a, 0, 0x6a, 0, ...ds, 0x6a, 0, ...segment(0x3000), ...segment(Place.stack - 0x30000)];
    return [
      ...stack,
      ...segment(flags),
      ...segment(Place.code >> 4),
      ...segment(this.#maker.target(at) - Place.code),
      0xcf,
    ];
  }

  /** SYSCALL, SYSENTER or INT n; from level 0 the way back: SYSRET, SYSEXIT with targets in RCX and RDX. */
  #systemCall(at: number): number[] {
    const random = this.#random;
    if (this.#bits === 16) return [0xcd, random.between(0x20, 0x2f)];
    const target = this.#maker.target(at);
    const wide = this.#bits === 64 && random.chance(50) ? [0x48] : [];
    if (this.#mode.endsWith('user') || this.#mode === 'compat' || random.chance(30))
      return random.pick([
        [0x0f, 0x05],
        [0x0f, 0x34],
        [0xcd, random.between(0x20, 0x2f)],
      ]);
    if (random.chance(50)) {
      const flags = this.#bits === 64 ? [0x41, 0xbb, ...littleEndian(0x202, 4)] : [];
      return [...this.#move(ECX, target), ...flags, ...wide, 0x0f, 0x07];
    }
    return [...this.#move(ECX, Place.stack), 0xba, ...littleEndian(target, 4), ...wide, 0x0f, 0x35];
  }

  /** STI or MOV SS and what stands in their shadow, CLI behind. */
  #shadows(): number[] {
    const random = this.#random;
    const ss = [0x8c, 0xd0, 0x8e, 0xd0];
    const first = random.pick([[0xfb], ss, [0xfa, 0xfb], [0xfb, ...ss], [...ss, ...ss]]);
    return [...first, ...random.pick([[0x90], [0xcc], [0xcd, 0x21], [0xf1], [0x9c, 0x58], [0xfa]])];
  }
}
