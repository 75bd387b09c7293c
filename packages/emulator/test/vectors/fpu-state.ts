/**
 * The x87, MMX and vector part of a case: loaded into and compared with the bytes `S.ymm` .. `S.mxcsr` + 4 of a state block.
 */
import { S } from '../../src/state-layout.ts';
import { bytesOf, type Case, type Header, hex, type StateText, type Template } from './format.ts';

const at = (offset: number): number => offset - S.ymm;
const LENGTH = S.mxcsr + 4 - S.ymm;

function put(view: DataView, text: StateText): void {
  for (const [n, digits] of Object.entries(text.v ?? {})) {
    new Uint8Array(view.buffer, view.byteOffset).set(bytesOf(digits), Number(n) * 32);
  }
  if (text.mx !== undefined) view.setUint32(at(S.mxcsr), Number.parseInt(text.mx, 16), true);
  const { cw, sw, tw, st } = text.fp ?? {};
  if (cw !== undefined) view.setUint16(at(S.fcw), Number.parseInt(cw, 16), true);
  if (sw !== undefined) view.setUint16(at(S.fsw), Number.parseInt(sw, 16), true);
  if (tw !== undefined) view.setUint8(at(S.ftw), Number.parseInt(tw, 16));
  for (const [n, digits] of Object.entries(st ?? {})) {
    const value = hex(digits);
    view.setBigUint64(at(S.fpr) + Number(n) * 16, BigInt.asUintN(64, value), true);
    view.setUint16(at(S.fpr) + Number(n) * 16 + 8, Number(value >> 64n), true);
  }
}

/** Puts a case's input into the registers. */
export function loadFpu(view: DataView, header: Header, input: StateText): void {
  new Uint8Array(view.buffer, view.byteOffset, LENGTH).set(baseImage(header));
  put(view, input);
}

const baseImages = new WeakMap<Header, Uint8Array>();

function baseImage(header: Header): Uint8Array {
  let image = baseImages.get(header);
  if (image === undefined) {
    image = new Uint8Array(LENGTH);
    put(new DataView(image.buffer), header.base);
    baseImages.set(header, image);
  }
  return image;
}

const expected = new DataView(new ArrayBuffer(LENGTH));

/** Differences of the registers from the outcome, one line each. */
export function compareFpu(view: DataView, header: Header, test: Case, template: Template): string[] {
  loadFpu(expected, header, test.i ?? {});
  put(expected, test.o);
  return [...compareControl(view, template), ...compareStack(view, template), ...compareVectors(view, template)];
}

function compareControl(view: DataView, template: Template): string[] {
  const undefinedStatus = Number.parseInt(template.usw ?? '0', 16) | (template.approx === 'x87' ? 0x200 : 0);
  const rows: [string, number, number, number][] = [
    ['fcw', view.getUint16(at(S.fcw), true), expected.getUint16(at(S.fcw), true), 0xffff],
    ['fsw', view.getUint16(at(S.fsw), true), expected.getUint16(at(S.fsw), true), 0xffff & ~undefinedStatus],
    ['ftw', view.getUint8(at(S.ftw)), expected.getUint8(at(S.ftw)), 0xff],
    ['mxcsr', view.getUint32(at(S.mxcsr), true), expected.getUint32(at(S.mxcsr), true), 0xffffffff],
  ];
  return rows
    .filter(([, have, want, mask]) => ((have ^ want) & mask) !== 0)
    .map(([name, have, want, mask]) => {
      const show = (value: number): string => ((value & mask) >>> 0).toString(16);
      return `${name}: expected ${show(want)}, got ${show(have)}`;
    });
}

const register = (view: DataView, n: number): bigint =>
  view.getBigUint64(at(S.fpr) + n * 16, true) | (BigInt(view.getUint16(at(S.fpr) + n * 16 + 8, true)) << 64n);

/** Neighbouring numbers have neighbouring ordinals, across binades too: the integer bit is left out. */
const ordinal = (value: bigint): bigint =>
  value === 0n ? 0n : ((value >> 64n) << 63n) | BigInt.asUintN(63, value) | ((~value & (1n << 63n)) << 80n);

/** Transcendental results may be two units in the last place away. */
function compareStack(view: DataView, template: Template): string[] {
  const differences: string[] = [];
  for (let n = 0; n < 8; n++) {
    const have = register(view, n);
    const want = register(expected, n);
    const [x, y] = [ordinal(have), ordinal(want)];
    const distance = x > y ? x - y : y - x;
    if (distance > (template.approx === 'x87' ? 2n : 0n)) {
      differences.push(`fpr${n}: expected ${want.toString(16)}, got ${have.toString(16)}`);
    }
  }
  return differences;
}

function compareVectors(view: DataView, template: Template): string[] {
  const differences: string[] = [];
  for (let n = 0; n < 16; n++) {
    const have = new Uint8Array(view.buffer, view.byteOffset + n * 32, 32);
    const want = new Uint8Array(expected.buffer, n * 32, 32);
    if (Buffer.compare(have, want) === 0) continue;
    if (template.approx === 'rcp' && isNear(have, want)) continue;
    const show = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
    differences.push(`ymm${n}: expected ${show(want)}, got ${show(have)}`);
  }
  return differences;
}

/** RCPPS and RSQRTPS: both may be 1.5 * 2^-12 away from the exact value. */
function isNear(have: Uint8Array, want: Uint8Array): boolean {
  const a = new DataView(have.buffer, have.byteOffset, 32);
  const b = new DataView(want.buffer, want.byteOffset, 32);
  for (let i = 0; i < 32; i += 4) {
    if (a.getUint32(i, true) === b.getUint32(i, true)) continue;
    const [x, y] = [a.getFloat32(i, true), b.getFloat32(i, true)];
    if (!(Math.abs(x - y) <= Math.abs(y) * 3 * 2 ** -12)) return false;
  }
  return true;
}
