/**
 * Pieces of made-up programs that leave the guest, or that decide whether an interrupt comes: CPUID, ports of PIC and PIT, MSRs, control
 * registers, HLT, hypercalls, MMIO.
 */
import { codeBits, type FuzzMode, Place } from '../../../emulator/test/fuzz/layout.ts';
import { littleEndian, type Random } from '../../../emulator/test/fuzz/random.ts';

/** MSRs that are read, and those that are written with some value that they take, too. */
const READ = [
  0x10, 0x1b, 0x174, 0x175, 0x176, 0x1a0, 0x1d9, 0x277, 0x2ff, 0xc0000080, 0xc0000081, 0xc0000082, 0xc0000102,
];
const WRITTEN: readonly (readonly [number, number])[] = [
  [0x174, 8],
  [0x175, Place.kernelStack - 0x600],
  [0x1d9, 2],
  [0x1d9, 0],
  [0x277, 0x00070406],
  [0xc0000080, 0xd01],
  [0xc0000082, Place.code + 0x400],
  [0xc0000102, Place.data],
  [0xc0000103, 5],
  [0x6e0, 0],
  [0x3b, 0],
  [0x10, 0x1000],
];

const mov = (mode: FuzzMode, register: number, value: number): number[] => [
  ...(codeBits(mode) === 16 ? [0x66] : []),
  0xb8 | register,
  ...littleEndian(value, 4),
];
/** Page 4Ah of data: a device, or the local APIC, by the guest. */
const DEVICE = Place.data + 0xa000;

function msr(random: Random, mode: FuzzMode): number[] {
  if (random.chance(55)) return [...mov(mode, 1, random.pick(READ)), 0x0f, 0x32];
  const [index, value] = random.pick(WRITTEN);
  return [...mov(mode, 1, index), ...mov(mode, 0, value), 0x31, 0xd2, 0x0f, 0x30];
}

/** OUT to the PIC's masks and OCWs or to the PIT's channels, IN from them, or ports of nobody. */
function port(random: Random): number[] {
  const out = (to: number, value: number): number[] => [0xb0, value, 0xe6, to];
  switch (random.below(8)) {
    case 0:
      return out(0x21, random.pick([0, 0, 0xfe, 0xff, random.below(256)]));
    case 1:
      return out(0x20, random.pick([0x20, 0x20, 0x60, 0x0a, 0x0b, 0xc0]));
    case 2:
      return [
        ...out(0x43, random.pick([0x34, 0x30, 0x36, 0x00, 0xe2, 0xb6])),
        ...out(0x40, random.between(1, 9)),
        ...out(0x40, 0),
      ];
    case 3:
      return [0xe4, random.pick([0x20, 0x21, 0x40, 0x41, 0x42, 0x43, 0x61, 0xa1])];
    case 4:
      return [0xe6 | random.below(2), random.below(0x80)];
    default:
      return [0xe4 | random.below(2), random.below(0x80)];
  }
}

/** Control registers as they are, or with TS, or another bit that changes little. Level 0; elsewhere #GP. */
function controls(random: Random): number[] {
  switch (random.below(7)) {
    case 0:
      return [0x0f, 0x06];
    case 1:
      return [0x0f, 0x20, 0xc0, 0x0c, 0x08, 0x0f, 0x22, 0xc0];
    case 2:
      return [0x0f, 0x20, 0xc0, 0x0f, 0x22, 0xc0];
    case 3:
      return [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8];
    case 4:
      return [0x0f, 0x20, 0xe0, 0x34, random.pick([0x04, 0x08, 0x80]), 0x0f, 0x22, 0xe0];
    case 5:
      return [0x0f, 0x20, random.pick([0xc0, 0xd0, 0xd8, 0xe0]) | random.below(3)];
    default:
      return [0x0f, 0x01, random.pick([0xe0, 0xf0]) | random.below(3)];
  }
}

/** MOV, ADD, OR … with the device's page, read and written, in sizes from a byte to a quadword. */
function device(random: Random, mode: FuzzMode): number[] {
  const bits = codeBits(mode);
  const size = bits === 16 ? 2 : 4;
  const linear = DEVICE + random.pick([0x20, 0x80, 0x80, 0xb0, 0xf0, 0x300, 0x320, 0x380, 0x390, 0xff8, 0xffe]);
  const address = littleEndian(mode === 'prot16-user' || bits === 16 ? linear - Place.data : linear, size);
  const modrm = random.below(3) << 3;
  const memory =
    bits === 16 ? [modrm | 6, ...address] : bits === 64 ? [modrm | 4, 0x25, ...address] : [modrm | 5, ...address];
  const wide = bits === 64 && random.chance(30) ? [0x48] : random.chance(20) ? [0x66] : [];
  return [...wide, random.pick([0x88, 0x89, 0x89, 0x8a, 0x8b, 0x8b, 0x01, 0x03, 0x09, 0x31, 0x39, 0x87]), ...memory];
}

/** What needs the owner's help, or time. */
function other(random: Random): number[] {
  return random.pick([
    [0x0f, 0xa2],
    [0x0f, 0xa2],
    [0x0f, 0x31],
    [0x0f, 0x01, 0xf9],
    [0xf3, 0x90],
    [0x0f, 0x01, 0xc1],
    [0x0f, 0x01, 0xd9],
    [0x31, 0xc9, 0x0f, 0x01, 0xd0],
    [0x0f, 0x09],
    [0x0f, 0x01, 0x3b],
    [0xfb, 0xf4],
    [0xfb, 0xf4],
    [0xf4],
  ]);
}

/** Lets interrupts in, or keeps them out. */
const interrupts = (random: Random): number[] =>
  random.pick([[0xfb], [0xfb, 0x90], [0xfb, 0x90, 0xfa], [0xfa], [0x9c, 0x58]]);

/** MOV EAX, CR0; BTS, BTR or BTC of a bit; MOV CR0, EAX: or of CR4. */
const flip = (random: Random, mode: FuzzMode, cr: 0 | 4, bit: number): number[] => [
  ...[0x0f, 0x20, 0xc0 | (cr << 3)],
  ...(codeBits(mode) === 16 ? [0x66] : []),
  ...[0x0f, 0xba, random.pick([0xe8, 0xf0, 0xf8, 0xf8]), bit, 0x0f, 0x22, 0xc0 | (cr << 3)],
];
/** INC or MOV in a page that is read-only, into one from the page before, or out of one into a page that is absent. */
function writeReadOnly(random: Random, mode: FuzzMode): number[] {
  const bits = codeBits(mode);
  const linear = Place.data + random.pick([0x3000, 0x3010, 0x3ff8, 0x2ffe, 0x2fff, 0x3ffe, 0xf000, 0xefff]);
  const based = mode === 'prot16-user' || bits === 16;
  const address = littleEndian(based ? linear - Place.data : linear, bits === 16 ? 2 : 4);
  const form = bits === 16 ? [6] : bits === 64 ? [4, 0x25] : [5];
  return [random.pick([0xff, 0xff, 0x89]), ...form, ...address];
}
/** CR0.WP changes, and a page for reading is written; sometimes CR4.SMAP with RFLAGS.AC. */
function writeProtect(random: Random, mode: FuzzMode): number[] {
  const write = random.chance(80) ? writeReadOnly(random, mode) : [];
  const more = random.chance(40) ? flip(random, mode, 0, 16) : [];
  if (mode !== 'long' || random.chance(85)) return [...flip(random, mode, 0, 16), ...write, ...more];
  return [...flip(random, mode, 4, 21), 0x0f, 0x01, random.pick([0xca, 0xcb]), ...write];
}

/** A piece of at most 32 bytes. */
export function exitPiece(random: Random, mode: FuzzMode): number[] {
  const kind = random.below(100);
  if (kind < 22) return port(random);
  if (kind < 38) return msr(random, mode);
  if (kind < 46) return controls(random);
  if (kind < 58) return writeProtect(random, mode);
  if (kind < 70) return device(random, mode);
  return kind < 86 ? other(random) : interrupts(random);
}
