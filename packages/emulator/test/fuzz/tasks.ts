/**
 * Other tasks of a made-up program, outside long mode, and what stands behind an SMI: small pieces of code with a state of their own.
 * Manual: SDM vol. 3 ch. 8 (task management), ch. 31 (SMM).
 */
import { Flag } from '../../src/state-layout.ts';
import { CHUNK, CHUNKS, type FuzzMode, Place, Sel } from './layout.ts';
import { littleEndian, type Random } from './random.ts';

/** ADD [LOG], EAX; INC EDX; IRET, and again: a task that is called twice goes on behind its IRET. In the code size of its own segment. */
function taskCode(bits: 16 | 32): number[] {
  const width = bits === 16 ? [0x66, 0x67] : [];
  const round = [...width, 0x01, 0x05, ...littleEndian(Place.log, 4), ...(bits === 16 ? [0x66] : []), 0x42, 0xcf];
  const out = [...round, ...round];
  return [...out, 0xeb, 256 - (out.length + 2)];
}

const flags = (random: Random): number => 2 | (random.chance(50) ? Flag.IF : 0) | (random.chance(5) ? Flag.TF : 0);

/** A TSS of 104 bytes: half of the time the task above at CPL 0, else some chunk of the program at the program's own level. */
function place32(view: DataView, random: Random, user: boolean): void {
  const own = random.chance(50);
  const put = (offset: number, value: number): void => view.setUint32(Place.tss32 + offset, value, true);
  put(4, Place.kernelStack - 0x800);
  put(8, Sel.data);
  put(28, Place.pae);
  put(32, own ? Place.task32 : Place.code + CHUNK * random.below(CHUNKS));
  put(36, flags(random) | Flag.IOPL);
  for (let n = 0; n < 8; n++) put(40 + n * 4, Place.data + random.below(0x3000));
  put(56, own ? Place.kernelStack - 0x400 : Place.stack - 0x400);
  const level3 = user && !own;
  const data = level3 ? Sel.userData : Sel.data;
  const selectors = [data, level3 ? Sel.userCode32 : Sel.code32, data, data, data, data];
  selectors.forEach((selector, n) => {
    put(72 + n * 4, random.chance(3) ? random.pick([0, Sel.absent, Sel.tss]) : selector);
  });
  put(96, 0);
  put(100, random.chance(5) ? 0x680001 : 0x680000);
}

/** A TSS of 44 bytes, its code in a 16-bit segment that begins with the program. */
function place16(view: DataView, random: Random): void {
  const put = (offset: number, value: number): void => view.setUint16(Place.tss16 + offset, value, true);
  put(2, Place.kernelStack - 0xa00);
  put(4, Sel.data);
  put(14, random.chance(50) ? Place.task16 : CHUNK * random.below(CHUNKS));
  put(16, flags(random));
  for (let n = 0; n < 8; n++) put(18 + n * 2, random.below(0x2000));
  put(26, Place.kernelStack - 0xc00);
  [Sel.data, random.chance(50) ? Sel.low16 : Sel.code16, Sel.data, Sel.data].forEach((selector, n) => {
    put(34 + n * 2, selector);
  });
  put(42, 0);
}

/** Writes the tasks and their code into a memory image. */
export function placeTasks(image: Uint8Array, random: Random, mode: FuzzMode): void {
  const view = new DataView(image.buffer);
  place32(view, random, mode !== 'prot32');
  place16(view, random);
  image.set(taskCode(32), Place.task32);
  image.set(taskCode(16), Place.task16);
}

/**
 * The SMI handler, in big real mode: INC DWORD [LOG]; a loop; perhaps other RAX, RFLAGS or I/O and HALT restart bytes in the save map; perhaps
 * a fault, for which SMM has no handler of its own; RSM.
 */
export function placeSmiHandler(image: Uint8Array, random: Random): void {
  const code = [0x66, 0x67, 0xff, 0x05, ...littleEndian(Place.log, 4), 0xb9, ...littleEndian(random.between(1, 40), 2)];
  code.push(0x66, 0x67, 0x01, 0x0d, ...littleEndian(Place.log + 56, 4), 0xe2, 0xf6);
  const map = Place.smi + 0x7e00;
  const change = (offset: number, value: number): void => {
    code.push(0x66, 0x67, 0xc7, 0x05, ...littleEndian(map + offset, 4), ...littleEndian(value, 4));
  };
  if (random.chance(30)) change(0x1f8, random.below(256));
  if (random.chance(10)) change(0xc8, random.next() & 0x101);
  if (random.chance(5)) code.push(0x0f, 0x0b);
  image.set([...code, 0x0f, 0xaa], Place.smi);
}
