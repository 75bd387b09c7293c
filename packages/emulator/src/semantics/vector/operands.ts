/**
 * Operands of recorded vector instructions: legacy and VEX forms, one or two halves.
 * Manual: APM vol. 4 section 1.2, APM vol. 3 appendix A (the letters).
 */
import type { Value } from '../../builder/builder.ts';
import type { V128, VectorBuilder, VectorField, VectorForm } from '../../builder/vector.ts';

const SIZES: Readonly<Record<string, 1 | 2 | 4 | 8 | 16>> = {
  b: 1,
  w: 2,
  d: 4,
  q: 8,
  dq: 16,
  x: 16,
  ss: 4,
  sd: 8,
  ps: 16,
  pd: 16,
};

/** Legacy instructions that do not demand alignment, and VEX ones that do. */
const UNALIGNED = new Set(['movups', 'movupd', 'movdqu', 'lddqu']);
const ALIGNED_VEX = new Set(['vmovaps', 'vmovapd', 'vmovdqa', 'vmovntps', 'vmovntpd', 'vmovntdq', 'vmovntdqa']);

export const letterOf = (spec: string): string => spec.charAt(0);
/** Bytes of an operand in memory (per half), by the letters behind the first; `y` goes by operand size. */
export function sizeOf(spec: string, opSize: number): number {
  const memory = spec.split('/')[1] ?? spec;
  return SIZES[memory.slice(1)] ?? (opSize === 8 ? 8 : 4);
}

/** Which operands a form has; the same question that semantics/simd/operands.ts answers at run time. */
export class Operands {
  readonly dst: string;
  readonly first: string;
  readonly src: string;
  readonly halves: 1 | 2;
  readonly #align: 0 | 16 | 32;

  constructor(
    readonly b: VectorBuilder,
    readonly form: VectorForm,
    mnemonic: string,
  ) {
    const { operands, vex, wide } = form;
    const named = operands.findIndex((spec) => spec.startsWith('H'));
    this.dst = operands[0]!;
    this.first = named > 0 ? operands[named]! : this.dst;
    this.src = operands[named === 1 ? 2 : 1] ?? this.dst;
    const byLength = operands.some((spec) => spec.endsWith('x') && letterOf(spec) !== 'L');
    this.halves = wide && byLength ? 2 : 1;
    // SHA instructions: only Intel's demand alignment (SDM vol. 2 table 2-21).
    const lax = mnemonic.startsWith('sha') && b.vendor === 'amd';
    const aligned = vex ? ALIGNED_VEX.has(mnemonic) : !UNALIGNED.has(mnemonic) && !lax;
    this.#align = aligned ? (this.halves === 2 ? 32 : 16) : 0;
  }

  isMemory(spec: string): boolean {
    return this.form.memory && 'WEMR'.includes(letterOf(spec));
  }
  field(spec: string): VectorField {
    const letter = letterOf(spec);
    return letter === 'V' ? 'reg' : letter === 'H' ? 'vvvv' : 'rm';
  }

  /** Both halves (or the one) of a whole-register operand. */
  read(spec: string): V128[] {
    const { b } = this;
    const wanted: readonly (0 | 1)[] = this.halves === 2 && spec.endsWith('x') ? [0, 1] : [0];
    if (!this.isMemory(spec)) return wanted.map((half) => b.getVector(this.field(spec), half));
    const size = sizeOf(spec, this.form.opSize);
    if (size === 16) {
      if (this.#align !== 0) b.checkAligned(this.#align);
      return wanted.map((half) => b.loadVector(half * 16, (wanted.length - half) * 16));
    }
    return [this.scalar(spec, size)];
  }
  /** Memory operand of less than 16 bytes, zero-extended. */
  scalar(spec: string, size: number): V128 {
    const { b } = this;
    if (!this.isMemory(spec)) return b.getVector(this.field(spec), 0);
    const value = b.load(b.ea(), { seg: 'operand', size: size as 1 | 2 | 4 | 8 });
    return b.replace('i64x2ReplaceLane', b.vconst(0n), 0, value);
  }
  /** General register or memory operand (`Ey`, `Ry/Mw`). */
  general(spec: string, size: number): Value {
    const { b } = this;
    const bytes = size as 1 | 2 | 4 | 8;
    if (this.isMemory(spec)) return b.load(b.ea(), { seg: 'operand', size: bytes });
    return b.getReg({ field: 'rm' }, bytes);
  }
  setGeneral(spec: string, size: number, value: Value): void {
    const { b } = this;
    const bytes = size as 1 | 2 | 4 | 8;
    if (this.isMemory(spec)) b.store(b.ea(), value, { seg: 'operand', size: bytes });
    else b.setReg({ field: 'rm' }, bytes === 8 ? 8 : 4, value);
  }

  /** Writes a register: with VEX what is above becomes zero. */
  write(spec: string, halves: readonly V128[]): void {
    const { b } = this;
    const field = this.field(spec);
    b.setVector(field, 0, halves[0]!);
    if (halves.length > 1) b.setVector(field, 1, halves[1]!);
    else if (this.form.vex) b.setVector(field, 1, b.vconst(0n));
  }
  /** Writes registers or memory. */
  store(spec: string, halves: readonly V128[]): void {
    const { b } = this;
    if (!this.isMemory(spec)) {
      this.write(spec, halves);
      return;
    }
    if (this.#align !== 0) b.checkAligned(this.#align);
    // The first half is not stored before the second is known to be writable.
    if (halves.length > 1) for (const at of [0, 16]) b.probeVector(at, 32 - at);
    halves.forEach((value, half) => {
      b.storeVector(half * 16, value);
    });
  }
}
