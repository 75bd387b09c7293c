/**
 * The interpreter's two modules as a build finds them: they depend on nothing but this source, and to generate them takes longer than all
 * the rest of a machine's start. The source has none and generates at first use; packages/emulator/tsup.config.ts puts them here.
 */

/** `module`: base64; `facts`: see packFacts. */
interface Module {
  readonly module: string;
  readonly facts: string;
}
interface Prebuilt extends Module {
  readonly usual: Module;
}
/** null: generate. */
export const PREBUILT: { readonly legacy: Prebuilt; readonly long: Prebuilt } | null = null;

const DIGITS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';

export function toBase64(bytes: Uint8Array): string {
  let text = '';
  for (let n = 0; n < bytes.length; n += 3) {
    const [first, second = 0, third = 0] = bytes.subarray(n, n + 3);
    const group = (first << 16) | (second << 8) | third;
    const digits = Math.min(4, bytes.length - n + 1);
    for (let digit = 0; digit < 4; digit++) text += digit < digits ? DIGITS[(group >> (18 - digit * 6)) & 63] : '=';
  }
  return text;
}

/** What Node has and a browser has not. */
interface HostGlobal {
  readonly Buffer?: { from(text: string, encoding: 'base64'): Uint8Array<ArrayBuffer> };
}

export function fromBase64(text: string, host: HostGlobal = globalThis as HostGlobal): Uint8Array<ArrayBuffer> {
  if (host.Buffer !== undefined) return host.Buffer.from(text, 'base64');
  const values = new Uint8Array(128);
  for (let n = 0; n < DIGITS.length; n++) values[DIGITS.charCodeAt(n)] = n;
  const padding = text.endsWith('==') ? 2 : text.endsWith('=') ? 1 : 0;
  const bytes = new Uint8Array((text.length / 4) * 3 - padding);
  for (let n = 0, to = 0; n < text.length; n += 4) {
    const group =
      (values[text.charCodeAt(n)] << 18) |
      (values[text.charCodeAt(n + 1)] << 12) |
      (values[text.charCodeAt(n + 2)] << 6) |
      values[text.charCodeAt(n + 3)];
    bytes[to++] = group >> 16;
    bytes[to++] = group >> 8;
    bytes[to++] = group;
  }
  return bytes;
}
