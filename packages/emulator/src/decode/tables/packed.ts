/**
 * Families of packed instructions that MMX, SSE and AVX share: one line here makes the rows of all three.
 * Manual: APM vol. 4 and 5, SDM vol. 2 appendix A tables.
 */
import type { FeatureName } from '../../cpu/features.ts';

/** Opcode in 0F and mnemonic; `mmx` is the feature of the form on MMX registers ('' if there is none). Operands `Pq Qq` / `Vx Wx` / `Vx Hx Wx`. */
const family = (mmx: FeatureName | '', text: string): readonly PackedInstruction[] =>
  text
    .trim()
    .split(/\s+/)
    .map((entry) => {
      const [opcode, mnemonic] = entry.split(':');
      return { opcode, mnemonic, mmx };
    });

export interface PackedInstruction {
  opcode: string;
  mnemonic: string;
  mmx: FeatureName | '';
}

/** 0F map, packed integers with two sources. */
export const PACKED_INTEGER: readonly PackedInstruction[] = [
  ...family(
    'mmx',
    `60:punpcklbw 61:punpcklwd 62:punpckldq 63:packsswb 64:pcmpgtb 65:pcmpgtw 66:pcmpgtd 67:packuswb 68:punpckhbw 69:punpckhwd
     6A:punpckhdq 6B:packssdw 74:pcmpeqb 75:pcmpeqw 76:pcmpeqd D1:psrlw D2:psrld D3:psrlq D5:pmullw D8:psubusb D9:psubusw DB:pand
     DC:paddusb DD:paddusw DF:pandn E1:psraw E2:psrad E5:pmulhw E8:psubsb E9:psubsw EB:por EC:paddsb ED:paddsw EF:pxor F1:psllw
     F2:pslld F3:psllq F5:pmaddwd F8:psubb F9:psubw FA:psubd FC:paddb FD:paddw FE:paddd`,
  ),
  ...family('sse', 'DA:pminub DE:pmaxub E0:pavgb E3:pavgw E4:pmulhuw EA:pminsw EE:pmaxsw F6:psadbw'),
  ...family('sse2', 'D4:paddq F4:pmuludq FB:psubq'),
  ...family('', '6C:punpcklqdq 6D:punpckhqdq'),
];

/** 0F38 map, SSSE3: two sources. */
export const PACKED_SSSE3 = family(
  'ssse3',
  `00:pshufb 01:phaddw 02:phaddd 03:phaddsw 04:pmaddubsw 05:phsubw 06:phsubd 07:phsubsw 08:psignb 09:psignw 0A:psignd 0B:pmulhrsw`,
);
/** 0F38 map, SSSE3: one source. */
export const PACKED_ABSOLUTE = family('ssse3', '1C:pabsb 1D:pabsw 1E:pabsd');
/** 0F38 map, SSE4.1: two sources. */
export const PACKED_SSE41 = family(
  '',
  `28:pmuldq 29:pcmpeqq 2B:packusdw 38:pminsb 39:pminsd 3A:pminuw 3B:pminud 3C:pmaxsb 3D:pmaxsd 3E:pmaxuw 3F:pmaxud 40:pmulld`,
);
/** 0F38 map, sign and zero extensions at 20..25 and 30..35: name, share of the source that is read. */
export const EXTENSIONS: readonly { low: number; name: string; half: 2 | 4 | 8 }[] = [
  { low: 0, name: 'bw', half: 2 },
  { low: 1, name: 'bd', half: 4 },
  { low: 2, name: 'bq', half: 8 },
  { low: 3, name: 'wd', half: 2 },
  { low: 4, name: 'wq', half: 4 },
  { low: 5, name: 'dq', half: 2 },
];

/** 0F 71..73: shifts by an immediate. */
export const IMMEDIATE_SHIFTS: readonly { opcode: string; ext: number; mnemonic: string; mmx: boolean }[] = [
  { opcode: '71', ext: 2, mnemonic: 'psrlw', mmx: true },
  { opcode: '71', ext: 4, mnemonic: 'psraw', mmx: true },
  { opcode: '71', ext: 6, mnemonic: 'psllw', mmx: true },
  { opcode: '72', ext: 2, mnemonic: 'psrld', mmx: true },
  { opcode: '72', ext: 4, mnemonic: 'psrad', mmx: true },
  { opcode: '72', ext: 6, mnemonic: 'pslld', mmx: true },
  { opcode: '73', ext: 2, mnemonic: 'psrlq', mmx: true },
  { opcode: '73', ext: 3, mnemonic: 'psrldq', mmx: false },
  { opcode: '73', ext: 6, mnemonic: 'psllq', mmx: true },
  { opcode: '73', ext: 7, mnemonic: 'pslldq', mmx: false },
];

/** Floating-point operations of the 0F map. `forms`: which of ps, pd, ss, sd exist. `unary`: no first source in the packed VEX forms. */
export const FLOATING: readonly { opcode: string; name: string; forms: readonly FloatForm[]; unary?: boolean }[] = [
  { opcode: '51', name: 'sqrt', forms: ['ps', 'pd', 'ss', 'sd'], unary: true },
  { opcode: '52', name: 'rsqrt', forms: ['ps', 'ss'], unary: true },
  { opcode: '53', name: 'rcp', forms: ['ps', 'ss'], unary: true },
  { opcode: '54', name: 'and', forms: ['ps', 'pd'] },
  { opcode: '55', name: 'andn', forms: ['ps', 'pd'] },
  { opcode: '56', name: 'or', forms: ['ps', 'pd'] },
  { opcode: '57', name: 'xor', forms: ['ps', 'pd'] },
  { opcode: '58', name: 'add', forms: ['ps', 'pd', 'ss', 'sd'] },
  { opcode: '59', name: 'mul', forms: ['ps', 'pd', 'ss', 'sd'] },
  { opcode: '5C', name: 'sub', forms: ['ps', 'pd', 'ss', 'sd'] },
  { opcode: '5D', name: 'min', forms: ['ps', 'pd', 'ss', 'sd'] },
  { opcode: '5E', name: 'div', forms: ['ps', 'pd', 'ss', 'sd'] },
  { opcode: '5F', name: 'max', forms: ['ps', 'pd', 'ss', 'sd'] },
  { opcode: '14', name: 'unpckl', forms: ['ps', 'pd'] },
  { opcode: '15', name: 'unpckh', forms: ['ps', 'pd'] },
];
export type FloatForm = 'ps' | 'pd' | 'ss' | 'sd';
/** Mandatory prefix, feature, and legacy operands of each form. */
export const FLOAT_FORMS: Record<FloatForm, { prefix: string; feature: 'sse' | 'sse2'; scalar: boolean }> = {
  ps: { prefix: 'NP', feature: 'sse', scalar: false },
  pd: { prefix: '66', feature: 'sse2', scalar: false },
  ss: { prefix: 'F3', feature: 'sse', scalar: true },
  sd: { prefix: 'F2', feature: 'sse2', scalar: true },
};
