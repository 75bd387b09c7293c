/** Text of instructions, in NASM's syntax. */
import type { ModeName } from '@tskvm/emulator';
import { Decoder, DecoderOptions, Formatter, FormatterSyntax } from 'iced-x86';

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

/** One instruction's text in a mode. */
export function disassemble(bytes: Uint8Array, address: bigint, mode: ModeName): string {
  const decoder = new Decoder(BITNESS[mode], bytes, DecoderOptions.None);
  decoder.ip = address;
  const instruction = decoder.decode();
  const formatter = new Formatter(FormatterSyntax.Nasm);
  const text = formatter.format(instruction);
  for (const each of [instruction, formatter, decoder]) each.free();
  return text;
}
