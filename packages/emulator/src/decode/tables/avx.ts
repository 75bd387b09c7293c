/**
 * AVX, AVX2, FMA3, F16C and the VEX forms of AES, PCLMULQDQ and GFNI.
 * Manual: APM vol. 4, SDM vol. 2 appendix A. KVM's emulator knows none of them.
 */
import type { FeatureName } from '../../cpu/features.ts';
import { type RowFlag, type RowText, rows } from '../rows.ts';
import {
  EXTENSIONS,
  FLOAT_FORMS,
  FLOATING,
  IMMEDIATE_SHIFTS,
  PACKED_ABSOLUTE,
  PACKED_INTEGER,
  PACKED_SSE41,
  PACKED_SSSE3,
} from './packed.ts';

/** Both lengths of one instruction, each with its feature. `where`: pp.map.W opcode. */
const both = (
  where: string,
  mnemonic: string,
  operands: string,
  f128: FeatureName = 'avx',
  f256: FeatureName = 'avx',
  ...flags: RowFlag[]
): RowText[] => [
  [`VEX.128.${where} /r`, mnemonic, operands, `?${f128}`, ...flags],
  [`VEX.256.${where} /r`, mnemonic, operands, `?${f256}`, ...flags],
];
const vex = (
  l: 'LIG' | '128' | '256',
  where: string,
  mnemonic: string,
  operands: string,
  feature: FeatureName = 'avx',
  ...flags: RowFlag[]
): RowText => [`VEX.${l}.${where}`, mnemonic, operands, `?${feature}`, ...flags];
/** W is the size of a general register, which AMD's processors refuse outside 64-bit code. */
const bySize = (where: string, mnemonic: string, operands: string): RowText[] => [
  vex('128', `66.0F3A.W0 ${where} /r`, mnemonic, operands),
  vex('128', `66.0F3A.W1 ${where} /r`, mnemonic, operands, 'avx', 'only64'),
  vex('128', `66.0F3A.W1 ${where} /r`, mnemonic, operands, 'avx', 'no64', 'intel'),
];

const FLOAT: RowText[] = FLOATING.flatMap(({ opcode, name, forms, unary }) =>
  forms.flatMap((form): RowText[] => {
    const { prefix, scalar } = FLOAT_FORMS[form];
    const where = `${prefix}.0F.WIG ${opcode}`;
    if (scalar) return [vex('LIG', `${where} /r`, `v${name}${form}`, `Vdq Hdq W${form}`)];
    return both(where, `v${name}${form}`, unary === true ? 'Vx Wx' : 'Vx Hx Wx');
  }),
);

const SHIFT_IMMEDIATE: RowText[] = IMMEDIATE_SHIFTS.flatMap((s): RowText[] => [
  vex('128', `66.0F.WIG ${s.opcode} /${s.ext}`, `v${s.mnemonic}`, 'Hx Ux Ib'),
  vex('256', `66.0F.WIG ${s.opcode} /${s.ext}`, `v${s.mnemonic}`, 'Hx Ux Ib', 'avx2'),
]);
/** Shifts by a register take their count from a 16-byte operand whatever the length. */
const SHIFT_BY_XMM = new Set(['D1', 'D2', 'D3', 'E1', 'E2', 'F1', 'F2', 'F3']);

const INTEGER: RowText[] = [
  ...PACKED_INTEGER.flatMap((p) =>
    both(
      `66.0F.WIG ${p.opcode}`,
      `v${p.mnemonic}`,
      SHIFT_BY_XMM.has(p.opcode) ? 'Vx Hx Wdq' : 'Vx Hx Wx',
      'avx',
      'avx2',
    ),
  ),
  ...[...PACKED_SSSE3, ...PACKED_SSE41].flatMap((p) =>
    both(`66.0F38.WIG ${p.opcode}`, `v${p.mnemonic}`, 'Vx Hx Wx', 'avx', 'avx2'),
  ),
  ...PACKED_ABSOLUTE.flatMap((p) => both(`66.0F38.WIG ${p.opcode}`, `v${p.mnemonic}`, 'Vx Wx', 'avx', 'avx2')),
];

const EXTEND: RowText[] = EXTENSIONS.flatMap(({ low, name, half }): RowText[] => {
  const xmm = { 2: 'Wq', 4: 'Wd', 8: 'Ww' }[half];
  const ymm = { 2: 'Wdq', 4: 'Wq', 8: 'Wd' }[half];
  return ['2', '3'].flatMap((row): RowText[] => {
    const mnemonic = `vpmov${row === '2' ? 's' : 'z'}x${name}`;
    return [
      vex('128', `66.0F38.WIG ${row}${low} /r`, mnemonic, `Vdq ${xmm}`),
      vex('256', `66.0F38.WIG ${row}${low} /r`, mnemonic, `Vx ${ymm}`, 'avx2'),
    ];
  });
});

/** FMA3: low opcode digit, name; the high digit is the operand order. */
const FMA_NAMES: readonly (readonly [number, string])[] = [
  [0x6, 'fmaddsub'],
  [0x7, 'fmsubadd'],
  [0x8, 'fmadd'],
  [0xa, 'fmsub'],
  [0xc, 'fnmadd'],
  [0xe, 'fnmsub'],
];
const FMA: RowText[] = (
  [
    ['9', '132'],
    ['A', '213'],
    ['B', '231'],
  ] as const
).flatMap(([high, order]) =>
  FMA_NAMES.flatMap(([low, name]): RowText[] => {
    const packed = `${high}${low.toString(16)}`;
    const scalar = `${high}${(low + 1).toString(16)}`;
    const result = [
      ...both(`66.0F38.W0 ${packed}`, `v${name}${order}ps`, 'Vx Hx Wx', 'fma', 'fma'),
      ...both(`66.0F38.W1 ${packed}`, `v${name}${order}pd`, 'Vx Hx Wx', 'fma', 'fma'),
    ];
    if (low >= 8) {
      result.push(
        vex('LIG', `66.0F38.W0 ${scalar} /r`, `v${name}${order}ss`, 'Vdq Hdq Wss', 'fma'),
        vex('LIG', `66.0F38.W1 ${scalar} /r`, `v${name}${order}sd`, 'Vdq Hdq Wsd', 'fma'),
      );
    }
    return result;
  }),
);

const MAP_0F: RowText[] = [
  ...both('NP.0F.WIG 10', 'vmovups', 'Vx Wx'),
  ...both('66.0F.WIG 10', 'vmovupd', 'Vx Wx'),
  vex('LIG', 'F3.0F.WIG 10 /r', 'vmovss', 'Vdq Hdq Uss'),
  vex('LIG', 'F3.0F.WIG 10 /r', 'vmovss', 'Vdq Mss'),
  vex('LIG', 'F2.0F.WIG 10 /r', 'vmovsd', 'Vdq Hdq Usd'),
  vex('LIG', 'F2.0F.WIG 10 /r', 'vmovsd', 'Vdq Msd'),
  ...both('NP.0F.WIG 11', 'vmovups', 'Wx Vx'),
  ...both('66.0F.WIG 11', 'vmovupd', 'Wx Vx'),
  vex('LIG', 'F3.0F.WIG 11 /r', 'vmovss', 'Uss Hdq Vss'),
  vex('LIG', 'F3.0F.WIG 11 /r', 'vmovss', 'Mss Vss'),
  vex('LIG', 'F2.0F.WIG 11 /r', 'vmovsd', 'Usd Hdq Vsd'),
  vex('LIG', 'F2.0F.WIG 11 /r', 'vmovsd', 'Msd Vsd'),
  vex('128', 'NP.0F.WIG 12 /r', 'vmovlps', 'Vdq Hdq Mq'),
  vex('128', 'NP.0F.WIG 12 /r', 'vmovhlps', 'Vdq Hdq Uq'),
  vex('128', '66.0F.WIG 12 /r', 'vmovlpd', 'Vdq Hdq Mq'),
  ...both('F3.0F.WIG 12', 'vmovsldup', 'Vx Wx'),
  vex('128', 'F2.0F.WIG 12 /r', 'vmovddup', 'Vdq Wq'),
  vex('256', 'F2.0F.WIG 12 /r', 'vmovddup', 'Vx Wx'),
  vex('128', 'NP.0F.WIG 13 /r', 'vmovlps', 'Mq Vq'),
  vex('128', '66.0F.WIG 13 /r', 'vmovlpd', 'Mq Vq'),
  vex('128', 'NP.0F.WIG 16 /r', 'vmovhps', 'Vdq Hdq Mq'),
  vex('128', 'NP.0F.WIG 16 /r', 'vmovlhps', 'Vdq Hdq Uq'),
  vex('128', '66.0F.WIG 16 /r', 'vmovhpd', 'Vdq Hdq Mq'),
  ...both('F3.0F.WIG 16', 'vmovshdup', 'Vx Wx'),
  vex('128', 'NP.0F.WIG 17 /r', 'vmovhps', 'Mq Vq'),
  vex('128', '66.0F.WIG 17 /r', 'vmovhpd', 'Mq Vq'),
  ...both('NP.0F.WIG 28', 'vmovaps', 'Vx Wx'),
  ...both('66.0F.WIG 28', 'vmovapd', 'Vx Wx'),
  ...both('NP.0F.WIG 29', 'vmovaps', 'Wx Vx'),
  ...both('66.0F.WIG 29', 'vmovapd', 'Wx Vx'),
  vex('LIG', 'F3.0F.WIG 2A /r', 'vcvtsi2ss', 'Vdq Hdq Ey'),
  vex('LIG', 'F2.0F.WIG 2A /r', 'vcvtsi2sd', 'Vdq Hdq Ey'),
  ...both('NP.0F.WIG 2B', 'vmovntps', 'Mx Vx'),
  ...both('66.0F.WIG 2B', 'vmovntpd', 'Mx Vx'),
  vex('LIG', 'F3.0F.WIG 2C /r', 'vcvttss2si', 'Gy Wss'),
  vex('LIG', 'F2.0F.WIG 2C /r', 'vcvttsd2si', 'Gy Wsd'),
  vex('LIG', 'F3.0F.WIG 2D /r', 'vcvtss2si', 'Gy Wss'),
  vex('LIG', 'F2.0F.WIG 2D /r', 'vcvtsd2si', 'Gy Wsd'),
  vex('LIG', 'NP.0F.WIG 2E /r', 'vucomiss', 'Vss Wss'),
  vex('LIG', '66.0F.WIG 2E /r', 'vucomisd', 'Vsd Wsd'),
  vex('LIG', 'NP.0F.WIG 2F /r', 'vcomiss', 'Vss Wss'),
  vex('LIG', '66.0F.WIG 2F /r', 'vcomisd', 'Vsd Wsd'),
  ...both('NP.0F.WIG 50', 'vmovmskps', 'Gd Ux'),
  ...both('66.0F.WIG 50', 'vmovmskpd', 'Gd Ux'),
  vex('128', 'NP.0F.WIG 5A /r', 'vcvtps2pd', 'Vx Wq'),
  vex('256', 'NP.0F.WIG 5A /r', 'vcvtps2pd', 'Vx Wdq'),
  ...both('66.0F.WIG 5A', 'vcvtpd2ps', 'Vdq Wx'),
  vex('LIG', 'F3.0F.WIG 5A /r', 'vcvtss2sd', 'Vdq Hdq Wss'),
  vex('LIG', 'F2.0F.WIG 5A /r', 'vcvtsd2ss', 'Vdq Hdq Wsd'),
  ...both('NP.0F.WIG 5B', 'vcvtdq2ps', 'Vx Wx'),
  ...both('66.0F.WIG 5B', 'vcvtps2dq', 'Vx Wx'),
  ...both('F3.0F.WIG 5B', 'vcvttps2dq', 'Vx Wx'),
  vex('128', '66.0F.WIG 6E /r', 'vmovd', 'Vdq Ey'),
  ...both('66.0F.WIG 6F', 'vmovdqa', 'Vx Wx'),
  ...both('F3.0F.WIG 6F', 'vmovdqu', 'Vx Wx'),
  ...both('66.0F.WIG 70', 'vpshufd', 'Vx Wx Ib', 'avx', 'avx2'),
  ...both('F3.0F.WIG 70', 'vpshufhw', 'Vx Wx Ib', 'avx', 'avx2'),
  ...both('F2.0F.WIG 70', 'vpshuflw', 'Vx Wx Ib', 'avx', 'avx2'),
  vex('128', 'NP.0F.WIG 77', 'vzeroupper', ''),
  vex('256', 'NP.0F.WIG 77', 'vzeroall', ''),
  ...both('66.0F.WIG 7C', 'vhaddpd', 'Vx Hx Wx'),
  ...both('F2.0F.WIG 7C', 'vhaddps', 'Vx Hx Wx'),
  ...both('66.0F.WIG 7D', 'vhsubpd', 'Vx Hx Wx'),
  ...both('F2.0F.WIG 7D', 'vhsubps', 'Vx Hx Wx'),
  vex('128', '66.0F.WIG 7E /r', 'vmovd', 'Ey Vdq'),
  vex('128', 'F3.0F.WIG 7E /r', 'vmovq', 'Vdq Wq'),
  ...both('66.0F.WIG 7F', 'vmovdqa', 'Wx Vx'),
  ...both('F3.0F.WIG 7F', 'vmovdqu', 'Wx Vx'),
  vex('128', 'NP.0F.WIG AE /2', 'vldmxcsr', 'Md'),
  vex('128', 'NP.0F.WIG AE /3', 'vstmxcsr', 'Md'),
  ...both('NP.0F.WIG C2', 'vcmpps', 'Vx Hx Wx Ib'),
  ...both('66.0F.WIG C2', 'vcmppd', 'Vx Hx Wx Ib'),
  vex('LIG', 'F3.0F.WIG C2 /r', 'vcmpss', 'Vdq Hdq Wss Ib'),
  vex('LIG', 'F2.0F.WIG C2 /r', 'vcmpsd', 'Vdq Hdq Wsd Ib'),
  vex('128', '66.0F.WIG C4 /r', 'vpinsrw', 'Vdq Hdq Ry/Mw Ib'),
  vex('128', '66.0F.WIG C5 /r', 'vpextrw', 'Gd Udq Ib'),
  ...both('NP.0F.WIG C6', 'vshufps', 'Vx Hx Wx Ib'),
  ...both('66.0F.WIG C6', 'vshufpd', 'Vx Hx Wx Ib'),
  ...both('66.0F.WIG D0', 'vaddsubpd', 'Vx Hx Wx'),
  ...both('F2.0F.WIG D0', 'vaddsubps', 'Vx Hx Wx'),
  vex('128', '66.0F.WIG D6 /r', 'vmovq', 'Wq Vq'),
  ...both('66.0F.WIG D7', 'vpmovmskb', 'Gd Ux', 'avx', 'avx2'),
  ...both('66.0F.WIG E6', 'vcvttpd2dq', 'Vdq Wx'),
  vex('128', 'F3.0F.WIG E6 /r', 'vcvtdq2pd', 'Vx Wq'),
  vex('256', 'F3.0F.WIG E6 /r', 'vcvtdq2pd', 'Vx Wdq'),
  ...both('F2.0F.WIG E6', 'vcvtpd2dq', 'Vdq Wx'),
  ...both('66.0F.WIG E7', 'vmovntdq', 'Mx Vx'),
  ...both('F2.0F.WIG F0', 'vlddqu', 'Vx Mx'),
  vex('128', '66.0F.WIG F7 /r', 'vmaskmovdqu', 'Vdq Udq'),
];

const GATHERS: RowText[] = [
  ...both('66.0F38.W0 90', 'vpgatherdd', 'Vx Mx Hx', 'avx2', 'avx2', 'vsib'),
  ...both('66.0F38.W1 90', 'vpgatherdq', 'Vx Mx Hx', 'avx2', 'avx2', 'vsib'),
  ...both('66.0F38.W0 91', 'vpgatherqd', 'Vdq Mx Hdq', 'avx2', 'avx2', 'vsib'),
  ...both('66.0F38.W1 91', 'vpgatherqq', 'Vx Mx Hx', 'avx2', 'avx2', 'vsib'),
  ...both('66.0F38.W0 92', 'vgatherdps', 'Vx Mx Hx', 'avx2', 'avx2', 'vsib'),
  ...both('66.0F38.W1 92', 'vgatherdpd', 'Vx Mx Hx', 'avx2', 'avx2', 'vsib'),
  ...both('66.0F38.W0 93', 'vgatherqps', 'Vdq Mx Hdq', 'avx2', 'avx2', 'vsib'),
  ...both('66.0F38.W1 93', 'vgatherqpd', 'Vx Mx Hx', 'avx2', 'avx2', 'vsib'),
];

const MAP_0F38: RowText[] = [
  ...both('66.0F38.W0 0C', 'vpermilps', 'Vx Hx Wx'),
  ...both('66.0F38.W0 0D', 'vpermilpd', 'Vx Hx Wx'),
  ...both('66.0F38.W0 0E', 'vtestps', 'Vx Wx'),
  ...both('66.0F38.W0 0F', 'vtestpd', 'Vx Wx'),
  vex('128', '66.0F38.W0 13 /r', 'vcvtph2ps', 'Vx Wq', 'f16c'),
  vex('256', '66.0F38.W0 13 /r', 'vcvtph2ps', 'Vx Wdq', 'f16c'),
  vex('256', '66.0F38.W0 16 /r', 'vpermps', 'Vx Hx Wx', 'avx2'),
  ...both('66.0F38.WIG 17', 'vptest', 'Vx Wx'),
  ...both('66.0F38.W0 18', 'vbroadcastss', 'Vx Mss'),
  ...both('66.0F38.W0 18', 'vbroadcastss', 'Vx Uss', 'avx2', 'avx2'),
  vex('256', '66.0F38.W0 19 /r', 'vbroadcastsd', 'Vx Msd'),
  vex('256', '66.0F38.W0 19 /r', 'vbroadcastsd', 'Vx Usd', 'avx2'),
  vex('256', '66.0F38.W0 1A /r', 'vbroadcastf128', 'Vx Mdq'),
  ...both('66.0F38.WIG 2A', 'vmovntdqa', 'Vx Mx', 'avx', 'avx2'),
  ...both('66.0F38.W0 2C', 'vmaskmovps', 'Vx Hx Mx'),
  ...both('66.0F38.W0 2D', 'vmaskmovpd', 'Vx Hx Mx'),
  ...both('66.0F38.W0 2E', 'vmaskmovps', 'Mx Hx Vx'),
  ...both('66.0F38.W0 2F', 'vmaskmovpd', 'Mx Hx Vx'),
  vex('256', '66.0F38.W0 36 /r', 'vpermd', 'Vx Hx Wx', 'avx2'),
  ...both('66.0F38.WIG 37', 'vpcmpgtq', 'Vx Hx Wx', 'avx', 'avx2'),
  vex('128', '66.0F38.WIG 41 /r', 'vphminposuw', 'Vdq Wdq'),
  ...both('66.0F38.W0 45', 'vpsrlvd', 'Vx Hx Wx', 'avx2', 'avx2'),
  ...both('66.0F38.W1 45', 'vpsrlvq', 'Vx Hx Wx', 'avx2', 'avx2'),
  ...both('66.0F38.W0 46', 'vpsravd', 'Vx Hx Wx', 'avx2', 'avx2'),
  ...both('66.0F38.W0 47', 'vpsllvd', 'Vx Hx Wx', 'avx2', 'avx2'),
  ...both('66.0F38.W1 47', 'vpsllvq', 'Vx Hx Wx', 'avx2', 'avx2'),
  ...both('66.0F38.W0 58', 'vpbroadcastd', 'Vx Wd', 'avx2', 'avx2'),
  ...both('66.0F38.W0 59', 'vpbroadcastq', 'Vx Wq', 'avx2', 'avx2'),
  vex('256', '66.0F38.W0 5A /r', 'vbroadcasti128', 'Vx Mdq', 'avx2'),
  ...both('66.0F38.W0 78', 'vpbroadcastb', 'Vx Wb', 'avx2', 'avx2'),
  ...both('66.0F38.W0 79', 'vpbroadcastw', 'Vx Ww', 'avx2', 'avx2'),
  ...both('66.0F38.W0 8C', 'vpmaskmovd', 'Vx Hx Mx', 'avx2', 'avx2'),
  ...both('66.0F38.W1 8C', 'vpmaskmovq', 'Vx Hx Mx', 'avx2', 'avx2'),
  ...both('66.0F38.W0 8E', 'vpmaskmovd', 'Mx Hx Vx', 'avx2', 'avx2'),
  ...both('66.0F38.W1 8E', 'vpmaskmovq', 'Mx Hx Vx', 'avx2', 'avx2'),
  ...GATHERS,
  ...both('66.0F38.W0 CF', 'vgf2p8mulb', 'Vx Hx Wx', 'gfni', 'gfni'),
  vex('128', '66.0F38.WIG DB /r', 'vaesimc', 'Vdq Wdq', 'aes'),
  ...both('66.0F38.WIG DC', 'vaesenc', 'Vx Hx Wx', 'aes', 'vaes'),
  ...both('66.0F38.WIG DD', 'vaesenclast', 'Vx Hx Wx', 'aes', 'vaes'),
  ...both('66.0F38.WIG DE', 'vaesdec', 'Vx Hx Wx', 'aes', 'vaes'),
  ...both('66.0F38.WIG DF', 'vaesdeclast', 'Vx Hx Wx', 'aes', 'vaes'),
];

const MAP_0F3A: RowText[] = [
  vex('256', '66.0F3A.W1 00 /r', 'vpermq', 'Vx Wx Ib', 'avx2'),
  vex('256', '66.0F3A.W0 00 /r', 'vpermq', 'Vx Wx Ib', 'avx2', 'amd'),
  vex('256', '66.0F3A.W1 01 /r', 'vpermpd', 'Vx Wx Ib', 'avx2'),
  vex('256', '66.0F3A.W0 01 /r', 'vpermpd', 'Vx Wx Ib', 'avx2', 'amd'),
  ...both('66.0F3A.W0 02', 'vpblendd', 'Vx Hx Wx Ib', 'avx2', 'avx2'),
  ...both('66.0F3A.W0 04', 'vpermilps', 'Vx Wx Ib'),
  ...both('66.0F3A.W0 05', 'vpermilpd', 'Vx Wx Ib'),
  vex('256', '66.0F3A.W0 06 /r', 'vperm2f128', 'Vx Hx Wx Ib'),
  ...both('66.0F3A.WIG 08', 'vroundps', 'Vx Wx Ib'),
  ...both('66.0F3A.WIG 09', 'vroundpd', 'Vx Wx Ib'),
  vex('LIG', '66.0F3A.WIG 0A /r', 'vroundss', 'Vdq Hdq Wss Ib'),
  vex('LIG', '66.0F3A.WIG 0B /r', 'vroundsd', 'Vdq Hdq Wsd Ib'),
  ...both('66.0F3A.WIG 0C', 'vblendps', 'Vx Hx Wx Ib'),
  ...both('66.0F3A.WIG 0D', 'vblendpd', 'Vx Hx Wx Ib'),
  ...both('66.0F3A.WIG 0E', 'vpblendw', 'Vx Hx Wx Ib', 'avx', 'avx2'),
  ...both('66.0F3A.WIG 0F', 'vpalignr', 'Vx Hx Wx Ib', 'avx', 'avx2'),
  vex('128', '66.0F3A.WIG 14 /r', 'vpextrb', 'Ry/Mb Vdq Ib'),
  vex('128', '66.0F3A.WIG 15 /r', 'vpextrw', 'Ry/Mw Vdq Ib'),
  ...bySize('16', 'vpextrd', 'Ey Vdq Ib'),
  vex('128', '66.0F3A.WIG 17 /r', 'vextractps', 'Ry/Md Vdq Ib'),
  vex('256', '66.0F3A.W0 18 /r', 'vinsertf128', 'Vx Hx Wdq Ib'),
  vex('256', '66.0F3A.W0 19 /r', 'vextractf128', 'Wdq Vx Ib'),
  vex('128', '66.0F3A.W0 1D /r', 'vcvtps2ph', 'Wq Vx Ib', 'f16c'),
  vex('256', '66.0F3A.W0 1D /r', 'vcvtps2ph', 'Wdq Vx Ib', 'f16c'),
  vex('128', '66.0F3A.WIG 20 /r', 'vpinsrb', 'Vdq Hdq Ry/Mb Ib'),
  vex('128', '66.0F3A.WIG 21 /r', 'vinsertps', 'Vdq Hdq Wss Ib'),
  ...bySize('22', 'vpinsrd', 'Vdq Hdq Ey Ib'),
  vex('256', '66.0F3A.W0 38 /r', 'vinserti128', 'Vx Hx Wdq Ib', 'avx2'),
  vex('256', '66.0F3A.W0 39 /r', 'vextracti128', 'Wdq Vx Ib', 'avx2'),
  ...both('66.0F3A.WIG 40', 'vdpps', 'Vx Hx Wx Ib'),
  vex('128', '66.0F3A.WIG 41 /r', 'vdppd', 'Vdq Hdq Wdq Ib'),
  ...both('66.0F3A.WIG 42', 'vmpsadbw', 'Vx Hx Wx Ib', 'avx', 'avx2'),
  ...both('66.0F3A.WIG 44', 'vpclmulqdq', 'Vx Hx Wx Ib', 'pclmulqdq', 'vpclmulqdq'),
  vex('256', '66.0F3A.W0 46 /r', 'vperm2i128', 'Vx Hx Wx Ib', 'avx2'),
  ...both('66.0F3A.W0 4A', 'vblendvps', 'Vx Hx Wx Lx'),
  ...both('66.0F3A.W0 4B', 'vblendvpd', 'Vx Hx Wx Lx'),
  ...both('66.0F3A.W0 4C', 'vpblendvb', 'Vx Hx Wx Lx', 'avx', 'avx2'),
  vex('128', '66.0F3A.WIG 60 /r', 'vpcmpestrm', 'Vdq Wdq Ib'),
  vex('128', '66.0F3A.WIG 61 /r', 'vpcmpestri', 'Vdq Wdq Ib'),
  vex('128', '66.0F3A.WIG 62 /r', 'vpcmpistrm', 'Vdq Wdq Ib'),
  vex('128', '66.0F3A.WIG 63 /r', 'vpcmpistri', 'Vdq Wdq Ib'),
  ...both('66.0F3A.W1 CE', 'vgf2p8affineqb', 'Vx Hx Wx Ib', 'gfni', 'gfni'),
  ...both('66.0F3A.W1 CF', 'vgf2p8affineinvqb', 'Vx Hx Wx Ib', 'gfni', 'gfni'),
  vex('128', '66.0F3A.WIG DF /r', 'vaeskeygenassist', 'Vdq Wdq Ib', 'aes'),
];

export const AVX = rows({ unit: 'avx', kvm: false }, [
  ...FLOAT,
  ...INTEGER,
  ...SHIFT_IMMEDIATE,
  ...EXTEND,
  ...FMA,
  ...MAP_0F,
  ...MAP_0F38,
  ...MAP_0F3A,
]);
