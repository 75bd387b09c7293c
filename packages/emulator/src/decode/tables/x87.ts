/**
 * The x87 instructions, D8..DF.
 * Manual: APM vol. 3 table A-13, SDM vol. 2 tables. KVM's emulator knows FNSTCW, FNINIT and FNSTSW to memory only.
 */
import { type RowText, rows } from '../rows.ts';

const ARITHMETIC = ['fadd', 'fmul', 'fcom', 'fcomp', 'fsub', 'fsubr', 'fdiv', 'fdivr'];
const INTEGER_ARITHMETIC = ['fiadd', 'fimul', 'ficom', 'ficomp', 'fisub', 'fisubr', 'fidiv', 'fidivr'];
const hex = (value: number): string => value.toString(16).toUpperCase();

const MEMORY_ARITHMETIC: RowText[] = [0, 1, 2, 3, 4, 5, 6, 7].flatMap((n): RowText[] => [
  [`D8 /${n}`, ARITHMETIC[n], 'Md'],
  [`DC /${n}`, ARITHMETIC[n], 'Mq'],
  [`DA /${n}`, INTEGER_ARITHMETIC[n], 'Md'],
  [`DE /${n}`, INTEGER_ARITHMETIC[n], 'Mw'],
  [`D8 ${hex(0xc0 + n * 8)}+i`, ARITHMETIC[n], 'ST0 STi'],
]);

/** D9 E0..FF, one each. */
const D9_CONSTANTS_AND_FUNCTIONS: RowText[] = (
  'E0 fchs E1 fabs E4 ftst E5 fxam E8 fld1 E9 fldl2t EA fldl2e EB fldpi EC fldlg2 ED fldln2 EE fldz F0 f2xm1 F1 fyl2x F2 fptan ' +
  'F3 fpatan F4 fxtract F5 fprem1 F6 fdecstp F7 fincstp F8 fprem F9 fyl2xp1 FA fsqrt FB fsincos FC frndint FD fscale FE fsin FF fcos'
)
  .match(/\S+ \S+/g)!
  .map((pair): RowText => [`D9 ${pair.slice(0, 2)}`, pair.slice(3), '']);

export const X87 = rows({ unit: 'x87', kvm: false, feature: 'fpu' }, [
  ...MEMORY_ARITHMETIC,
  ...D9_CONSTANTS_AND_FUNCTIONS,
  ['D9 /0', 'fld', 'Md'],
  ['D9 /2', 'fst', 'Md'],
  ['D9 /3', 'fstp', 'Md'],
  ['D9 /4', 'fldenv', 'M'],
  ['D9 /5', 'fldcw', 'Mw'],
  ['D9 /6', 'fnstenv', 'M'],
  ['D9 /7', 'fnstcw', 'Mw', 'kvm'],
  ['D9 C0+i', 'fld', 'STi'],
  ['D9 C8+i', 'fxch', 'STi'],
  ['D9 D0', 'fnop', ''],
  // Undocumented aliases that every processor has: D9 D8 (FSTP that raises nothing on an empty register), DC D0/D8, DD C8, DE D0, DF C8/D0/D8.
  ['D9 D8+i', 'fstpnce', 'STi'],
  ['DA C0+i', 'fcmovb', 'ST0 STi', '?cmov'],
  ['DA C8+i', 'fcmove', 'ST0 STi', '?cmov'],
  ['DA D0+i', 'fcmovbe', 'ST0 STi', '?cmov'],
  ['DA D8+i', 'fcmovu', 'ST0 STi', '?cmov'],
  ['DA E9', 'fucompp', ''],
  ['DB /0', 'fild', 'Md'],
  ['DB /1', 'fisttp', 'Md', '?sse3'],
  ['DB /2', 'fist', 'Md'],
  ['DB /3', 'fistp', 'Md'],
  ['DB /5', 'fld', 'Mt'],
  ['DB /7', 'fstp', 'Mt'],
  ['DB C0+i', 'fcmovnb', 'ST0 STi', '?cmov'],
  ['DB C8+i', 'fcmovne', 'ST0 STi', '?cmov'],
  ['DB D0+i', 'fcmovnbe', 'ST0 STi', '?cmov'],
  ['DB D8+i', 'fcmovnu', 'ST0 STi', '?cmov'],
  // FENI, FDISI (8087) and FSETPM (287) are no-operations now.
  ['DB E0', 'fneni', ''],
  ['DB E1', 'fndisi', ''],
  ['DB E2', 'fnclex', ''],
  ['DB E3', 'fninit', '', 'kvm'],
  ['DB E4', 'fnsetpm', ''],
  ['DB E8+i', 'fucomi', 'ST0 STi', '?cmov'],
  ['DB F0+i', 'fcomi', 'ST0 STi', '?cmov'],
  ['DC C0+i', 'fadd', 'STi ST0'],
  ['DC C8+i', 'fmul', 'STi ST0'],
  ['DC D0+i', 'fcom', 'ST0 STi'],
  ['DC D8+i', 'fcomp', 'ST0 STi'],
  ['DC E0+i', 'fsubr', 'STi ST0'],
  ['DC E8+i', 'fsub', 'STi ST0'],
  ['DC F0+i', 'fdivr', 'STi ST0'],
  ['DC F8+i', 'fdiv', 'STi ST0'],
  ['DD /0', 'fld', 'Mq'],
  ['DD /1', 'fisttp', 'Mq', '?sse3'],
  ['DD /2', 'fst', 'Mq'],
  ['DD /3', 'fstp', 'Mq'],
  ['DD /4', 'frstor', 'M'],
  ['DD /6', 'fnsave', 'M'],
  ['DD /7', 'fnstsw', 'Mw', 'kvm'],
  ['DD C0+i', 'ffree', 'STi'],
  ['DD C8+i', 'fxch', 'STi'],
  ['DD D0+i', 'fst', 'STi'],
  ['DD D8+i', 'fstp', 'STi'],
  ['DD E0+i', 'fucom', 'ST0 STi'],
  ['DD E8+i', 'fucomp', 'ST0 STi'],
  ['DE C0+i', 'faddp', 'STi ST0'],
  ['DE C8+i', 'fmulp', 'STi ST0'],
  ['DE D0+i', 'fcomp', 'ST0 STi'],
  ['DE D9', 'fcompp', ''],
  ['DE E0+i', 'fsubrp', 'STi ST0'],
  ['DE E8+i', 'fsubp', 'STi ST0'],
  ['DE F0+i', 'fdivrp', 'STi ST0'],
  ['DE F8+i', 'fdivp', 'STi ST0'],
  ['DF /0', 'fild', 'Mw'],
  ['DF /1', 'fisttp', 'Mw', '?sse3'],
  ['DF /2', 'fist', 'Mw'],
  ['DF /3', 'fistp', 'Mw'],
  ['DF /4', 'fbld', 'Mt'],
  ['DF /5', 'fild', 'Mq'],
  ['DF /6', 'fbstp', 'Mt'],
  ['DF /7', 'fistp', 'Mq'],
  ['DF C0+i', 'ffreep', 'STi'],
  ['DF C8+i', 'fxch', 'STi'],
  ['DF D0+i', 'fstp', 'STi'],
  ['DF D8+i', 'fstp', 'STi'],
  ['DF E0', 'fnstsw', 'AX'],
  ['DF E8+i', 'fucomip', 'ST0 STi', '?cmov'],
  ['DF F0+i', 'fcomip', 'ST0 STi', '?cmov'],
]);
