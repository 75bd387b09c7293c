/** The interpreter's modules as a build carries them. */
import { describe, expect, it } from 'vitest';
import { generateMain } from './handlers.ts';
import { fromBase64, PREBUILT, toBase64 } from './prebuilt.ts';

describe('prebuilt modules', () => {
  it('the source carries none: it can not be behind itself', () => {
    expect(PREBUILT).toBeNull();
  });
  it.each([0, 1, 2, 3, 4, 5, 256])('%i bytes as base64 and back', (length) => {
    const bytes = Uint8Array.from({ length }, (_, n) => (n * 151 + 255) & 0xff);
    expect(toBase64(bytes)).toBe(btoa(String.fromCharCode(...bytes)));
    expect(fromBase64(toBase64(bytes))).toEqual(bytes);
  });
  it.each([false, true])('the module comes back as it was (64-bit code: %s)', (long) => {
    const { module: bytes } = generateMain(long);
    expect(fromBase64(toBase64(bytes))).toEqual(bytes);
    expect(WebAssembly.validate(bytes)).toBe(true);
  });
});
