/**
 * The decoder against iced-x86, an independent decoder: validity, length, operand registers and sizes, immediates, addresses.
 * Sweeps take every opcode with every modrm byte once per prefix set; random strings mix prefixes.
 */
import {
  Code,
  Decoder,
  DecoderOptions,
  Instruction as IcedInstruction,
  MemorySizeExt,
  OpKind,
  Register,
  RegisterExt,
} from 'iced-x86';
import { describe, expect, it } from 'vitest';
import { createInstruction, decode } from './decode.ts';
import type { DecodeMode } from './instruction.ts';

const insn = createInstruction();
const iced = new IcedInstruction();
const CODE_NAMES = new Map(Object.entries(Code).map(([name, value]) => [value as number, name]));

/**
 * Instructions that iced knows and these tables do not have, because no CPU model here announces them: 3DNow!, SSE4A, FMA4, AVX-512 masks,
 * AVX-VNNI, IFMA, NE-CONVERT, SHA-512, SM3/SM4, AMX, CET, Key Locker, TDX, SGX's PCONFIG, UINTR, FRED, RAO-INT, CMPccXADD, WAITPKG, MOVDIR,
 * ENQCMD, PTWRITE, TSX suspend, SEV-SNP, INVLPGB, MCOMMIT, SERIALIZE, MSR lists, HRESET, VIA's PadLock.
 */
const ABSENT = new RegExp(
  `^(${[
    'Femms|D3NOW|Movntss|Movntsd|Extrq|Insertq',
    'VEX_(K|Vpdp|Vf(n)?m(add|sub)\\w*_(xmm|ymm)_(xmm|ymm)_\\w+_(xmm|ymm)|Vpermil2|Vpmadd52|Vsha512|Vsm[34]|Vcvtne|Vbcstne|Cmp\\w+xadd|T|Ldtile|Sttile)',
    'EVEX_|XOP_|MVEX_',
    'Wrss|Wruss|Rstorssp|Setssbsy|Saveprevssp|Clrssbsy|Incssp',
    'Aes(en|de)c(wide)?(128|256)kl|Encodekey|Loadiwkey',
    'Seam|Tdcall|Pconfig|Pbndkb|Clui|Stui|Testui|Uiret|Senduipi|Eret|Lkgs',
    'Aadd|Aand|Aor|Axor|Umonitor|Umwait|Tpause|Movdir|Enqcmd|Ptwrite|Xresldtrk|Xsusldtrk',
    'Psmash|Pvalidate|Rmp|Invlpgb|Tlbsync|Mcommit|Serialize|Wrmsrns|Rdmsrlist|Wrmsrlist|Hreset',
    'Xstore|Xcrypt|Xsha|Montmul|Ccs_|Via_',
  ].join('|')})`,
);
/** AMD's PREFETCH needs memory (APM vol. 3 PREFETCH); iced has no option for it. */
const AMD_ABSENT = /^Reservednop_\w+_0F0D/;
/** LOCK VERW of memory, which the captured AMD processor executes against its manual. */
const isLockedVerw = (mode: DecodeMode): boolean => !mode.intel && insn.lock && insn.row.mnemonic === 'verw';

const GPR8 = Register.AL;
/** Number of a register among its kind as iced counts it: AH..BH are 4..7, as without REX. */
function registerNumber(register: number): number {
  if (RegisterExt.isGPR8(register)) {
    const index = register - GPR8;
    return index < 4 ? index : index < 8 ? index : index - 4;
  }
  return RegisterExt.number(register);
}

/** Size letter of our operand for the form at hand, or undefined where iced's operand is not comparable. */
function ourSize(spec: string): number | undefined {
  const form = insn.mod === 3 ? spec.split('/')[0] : (spec.split('/')[1] ?? spec);
  const letter = form.slice(1);
  const sizes: Record<string, number> = {
    b: 1,
    w: 2,
    d: 4,
    q: 8,
    dq: 16,
    v: insn.opSize,
    y: insn.opSize === 8 ? 8 : 4,
  };
  if (letter === 'z') return insn.opSize === 2 ? 2 : 4;
  if (letter === 'y' && insn.row.mnemonic === 'crc32') return (insn.rex & 8) !== 0 ? 8 : 4;
  return sizes[letter];
}

/** Mnemonics whose operands iced lists otherwise: hidden operands, hints, sizes that mean nothing. */
const UNCOMPARED = new Set([
  'nop',
  'bound',
  'ud0',
  'ud1',
  'invlpg',
  'clflush',
  'clflushopt',
  'clwb',
  'xbegin',
  'wait',
  'rdpid',
]);

function memoryDifference(n: number, spec: string): string {
  const size = ourSize(spec);
  const theirs = MemorySizeExt.size(iced.memorySize);
  if (size !== undefined && theirs !== size) return `memory operand ${n}: ${size} bytes, iced ${theirs}`;
  const base = iced.memoryBase;
  const index = iced.memoryIndex;
  if (iced.isIpRelMemoryOperand !== insn.ripRelative) return 'RIP-relative';
  if (!insn.ripRelative && (base === Register.None ? -1 : RegisterExt.number(base)) !== insn.base) return 'base';
  if ((index === Register.None ? -1 : RegisterExt.number(index)) !== insn.index) return 'index';
  if (insn.index >= 0 && iced.memoryIndexScale !== 1 << insn.scale) return 'scale';
  const bits = BigInt(insn.addrSize * 8);
  const target = insn.ripRelative ? insn.disp + BigInt(insn.length) : insn.disp;
  if (BigInt.asUintN(Number(bits), target) !== BigInt.asUintN(Number(bits), iced.memoryDisplacement))
    return 'displacement';
  // iced shows ES, CS, SS and DS overrides in 64-bit code, where they are ignored.
  const segment = RegisterExt.number(iced.memorySegment);
  if (insn.codeSize === 8 && segment < 4 && insn.seg < 4) return '';
  if (segment !== insn.seg) return `segment ${insn.seg}`;
  return '';
}

function registerDifference(n: number, spec: string): string {
  const register = iced.opRegister(n);
  // iced names 16-bit register sources by their 32-bit register, and control and debug registers have no size there.
  const size = /^([EG]w|[CD]y|Sw)$/.test(spec) ? undefined : ourSize(spec);
  if (size !== undefined && RegisterExt.size(register) !== size)
    return `register operand ${n}: ${size} bytes, iced ${RegisterExt.size(register)}`;
  const ours = {
    E: insn.rm,
    R: insn.rm,
    G: insn.reg,
    Z: insn.opReg,
    B: insn.vex.vvvv,
    S: insn.reg,
    C: insn.reg,
    D: insn.reg,
  }[spec[0]];
  return ours !== undefined && registerNumber(register) !== ours ? `register operand ${n}: ${ours}` : '';
}

function immediateDifference(n: number, spec: string): string {
  if (spec === '1') return '';
  const second = n > 0 && insn.row.operands[n - 1][0] === 'I';
  const ours = second ? BigInt(insn.imm2) : insn.imm;
  const width = Math.max(insn.opSize, 2) * 8;
  const theirs = iced.immediate(n);
  return BigInt.asUintN(width, ours) === BigInt.asUintN(width, theirs) || BigInt.asUintN(8, ours) === theirs
    ? ''
    : `immediate ${ours}, iced ${theirs}`;
}

function operandDifference(n: number, spec: string): string {
  switch (iced.opKind(n)) {
    case OpKind.Register:
      return /^[EGRZBSCD][a-z]/.test(spec) ? registerDifference(n, spec) : '';
    case OpKind.Memory:
      return /^[EM][a-z]/.test(spec) || spec.includes('/') ? memoryDifference(n, spec) : '';
    case OpKind.NearBranch16:
    case OpKind.NearBranch32:
    case OpKind.NearBranch64: {
      const bits = { 2: 16, 4: 32, 8: 64 }[insn.opSize as 2 | 4 | 8];
      const target = BigInt.asUintN(bits, insn.imm + BigInt(insn.length));
      return target === iced.nearBranchTarget ? '' : `target ${target}, iced ${iced.nearBranchTarget}`;
    }
    case OpKind.FarBranch16:
    case OpKind.FarBranch32:
      return insn.imm2 === iced.farBranchSelector ? '' : 'selector';
    default:
      return spec[0] === 'I' ? immediateDifference(n, spec) : '';
  }
}

/** Compares one byte string; the difference in words, or ''. */
function difference(bytes: Uint8Array, mode: DecodeMode, operands: boolean): string {
  const decoder = new Decoder(mode.codeSize * 8, bytes, mode.intel ? DecoderOptions.None : DecoderOptions.AMD);
  decoder.decodeOut(iced);
  decoder.free();
  const name = CODE_NAMES.get(iced.code) ?? '?';
  const valid = iced.code !== Code.INVALID;
  const result = decode(bytes, bytes.length, mode, insn);
  if (valid !== (result === 'ok')) {
    if (valid && result === 'undefined-opcode' && (ABSENT.test(name) || (!mode.intel && AMD_ABSENT.test(name))))
      return '';
    if (result === 'ok' && isLockedVerw(mode)) return '';
    return `${valid ? name : 'INVALID'} in iced, ${result} ${result === 'ok' ? insn.row.mnemonic : ''}`;
  }
  if (!valid) return '';
  if (iced.length !== insn.length) return `${name}: ${insn.length} bytes, iced ${iced.length}`;
  if (!operands || insn.row.unit !== 'integer' || UNCOMPARED.has(insn.row.mnemonic)) return '';
  for (const [n, spec] of insn.row.operands.entries()) {
    if (n >= iced.opCount) break;
    const found = operandDifference(n, spec);
    if (found !== '') return `${name} / ${insn.row.mnemonic}: ${found}`;
  }
  return '';
}

const TAIL = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa];
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const MODES: DecodeMode[] = ([2, 4, 8] as const).flatMap((codeSize) => [
  { codeSize, intel: true },
  { codeSize, intel: false },
]);
const modeName = (mode: DecodeMode): string => `${mode.codeSize * 8}-bit code, ${mode.intel ? 'Intel' : 'AMD'}`;

/** Collects up to 20 differences. */
function collect(mode: DecodeMode, strings: Iterable<Uint8Array>): string[] {
  const found: string[] = [];
  for (const bytes of strings) {
    const text = difference(bytes, mode, true);
    if (text !== '' && found.length < 20) found.push(`${hex(bytes)}: ${text}`);
  }
  return found;
}

function* legacySweep(codeSize: number): Generator<Uint8Array> {
  const prefixes = [[], [0x66], [0xf3], [0xf2], [0xf0], [0x67], [0x66, 0xf2]];
  if (codeSize === 8) prefixes.push([0x48], [0x66, 0x48], [0x45], [0xf0, 0x48], [0xf3, 0x4f]);
  for (const prefix of prefixes) {
    for (const map of [[], [0x0f], [0x0f, 0x38], [0x0f, 0x3a]]) {
      for (let opcode = 0; opcode < 256; opcode++) {
        // All register forms; of the memory forms every reg with two addressing modes.
        for (let modrm = 0; modrm < 256; modrm++) {
          if (modrm < 0xc0 && ![0x04, 0x05, 0x46, 0x81].includes(modrm & 0xc7)) continue;
          if (map.length === 2 && modrm > 0xcf) break;
          yield Uint8Array.from([...prefix, ...map, opcode, modrm, ...TAIL]);
        }
      }
    }
  }
}

function* vexSweep(): Generator<Uint8Array> {
  for (let map = 0; map < 5; map++) {
    for (let payload = 0; payload < 256; payload += payload % 8 === 7 ? 0x41 : 1) {
      for (let opcode = 0; opcode < 256; opcode++) {
        for (const modrm of [0x04, 0x0d, 0x99, 0xc1, 0xca, 0xd3, 0xdc, 0xe5, 0xf6, 0xff]) {
          yield Uint8Array.from([0xc4, 0xe0 | map, payload | (0x38 * (opcode & 1)), opcode, modrm, ...TAIL]);
        }
      }
    }
  }
  for (let payload = 0xc0; payload < 256; payload++) yield Uint8Array.from([0xc5, payload, 0x58, 0xc1, ...TAIL]);
}

/** Deterministic random bytes (xorshift). */
function* randomStrings(count: number, seed: number): Generator<Uint8Array> {
  let state = seed;
  const next = (): number => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 8) & 0xff;
  };
  const PREFIXES = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x64, 0x65, 0x26, 0x3e, 0x48, 0x4d, 0x41, 0x42];
  for (let i = 0; i < count; i++) {
    const bytes = Uint8Array.from({ length: 15 }, next);
    for (let p = 0; p < (next() & 3); p++) bytes[p] = PREFIXES[next() % PREFIXES.length];
    if ((next() & 3) === 0) bytes[3] = 0x0f;
    yield bytes;
  }
}

describe.each(MODES.map((mode) => [modeName(mode), mode] as const))('decode agrees with iced-x86 in %s', (_, mode) => {
  it('for every opcode of the legacy maps', () => {
    expect(collect(mode, legacySweep(mode.codeSize))).toEqual([]);
  });
  // VEX has no differences between vendors: one of them is swept.
  if (mode.intel) {
    it('for every opcode of the VEX maps', () => {
      expect(collect(mode, vexSweep())).toEqual([]);
    });
  }
  it('for random byte strings with random prefixes', () => {
    expect(collect(mode, randomStrings(60_000, 0x1234567 + mode.codeSize))).toEqual([]);
  });
});
