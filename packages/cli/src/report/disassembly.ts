/** Text of instructions, in NASM's syntax. */
import type { ModeName } from '@tskvm/emulator';
import { Decoder, DecoderOptions, Formatter, FormatterSyntax, type Instruction, OpKind } from 'iced-x86';

const BITNESS: Readonly<Record<ModeName, number>> = {
  real: 16,
  unreal: 16,
  protected16: 16,
  protected32: 32,
  virtual8086: 16,
  compatibility16: 16,
  compatibility32: 32,
  long: 64,
};

const LOW = 0xffff_ffffn;
/** Where iced writes small numbers in decimal it looks at the low half alone: 800000000001h would be 1. */
const looksSmall = (value: bigint): boolean => BigInt.asUintN(64, value) > LOW && (value & LOW) < 10n;

function showsAsSmall(instruction: Instruction): boolean {
  for (let n = 0; n < instruction.opCount; n++) {
    const kind = instruction.opKind(n);
    if (kind === OpKind.Immediate64 && looksSmall(instruction.immediate64)) return true;
    if (kind === OpKind.NearBranch64 && looksSmall(instruction.nearBranchTarget)) return true;
    if (kind === OpKind.Memory && looksSmall(instruction.memoryDisplacement)) return true;
  }
  return false;
}

/** A decoded instruction's text. */
export function textOf(instruction: Instruction): string {
  const formatter = new Formatter(FormatterSyntax.Nasm);
  formatter.smallHexNumbersInDecimal = !showsAsSmall(instruction);
  const text = formatter.format(instruction);
  formatter.free();
  return text;
}

/** One instruction's text in a mode. */
export function disassemble(bytes: Uint8Array, address: bigint, mode: ModeName): string {
  const decoder = new Decoder(BITNESS[mode], bytes, DecoderOptions.None);
  decoder.ip = address;
  const instruction = decoder.decode();
  const text = textOf(instruction);
  for (const each of [instruction, decoder]) each.free();
  return text;
}
