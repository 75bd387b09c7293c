/** The interpreter's modules as a build carries them. */
import { describe, expect, it } from 'vitest';
import { formKey } from './form.ts';
import { generateMain, HandlerSet } from './handlers.ts';
import { recordForms } from './operation.ts';
import { fromBase64, PREBUILT, toBase64 } from './prebuilt.ts';
import { usualForms, writeForm } from './usual.ts';
import { generateUsual, UsualHandlers } from './usual-handlers.ts';
import { LEGACY, LONG } from './usual-table.ts';

describe('prebuilt modules', () => {
  it('the source carries none: it can not be behind itself', () => {
    expect(PREBUILT).toBeNull();
  });
  it.each([0, 1, 2, 3, 4, 5, 256])('%i bytes as base64 and back', (length) => {
    const bytes = Uint8Array.from({ length }, (_, n) => (n * 151 + 255) & 0xff);
    expect(toBase64(bytes)).toBe(btoa(String.fromCharCode(...bytes)));
    for (const host of [globalThis, {}]) expect(Uint8Array.from(fromBase64(toBase64(bytes), host))).toEqual(bytes);
  });
  it.each([false, true])('the module comes back as it was (64-bit code: %s)', (long) => {
    const { module: bytes } = generateMain(long);
    expect(fromBase64(toBase64(bytes), {})).toEqual(bytes);
    expect(WebAssembly.validate(bytes)).toBe(true);
  });
  it.each([false, true])('usual forms have one function each, and what is known of them (64-bit code: %s)', (long) => {
    const { module, facts } = generateUsual(long);
    expect(WebAssembly.validate(module)).toBe(true);
    const usual = new UsualHandlers(long);
    expect(facts.length).toBe(2 * usual.places.size);
    for (const form of usualForms(long).filter((_, n) => n % 7 === 0)) {
      expect(usual.factsAt(usual.places.get(formKey(form))!)).toEqual(recordForms([form]).facts);
    }
  });
  it.each([false, true])('usual forms are written as they are read (64-bit code: %s)', (long) => {
    const table = long ? LONG : LEGACY;
    const forms = usualForms(long);
    expect(forms.length).toBeGreaterThan(300);
    expect(new Set(forms.map(formKey)).size).toBe(forms.length);
    const handlers = new HandlerSet(long);
    handlers.loadUsual();
    for (const form of forms) {
      const [name, variant] = writeForm(form);
      const line = table.split('\n').find((one) => one.startsWith(`${name} `));
      expect(line?.slice(name.length + 1).split(' ')).toContain(variant);
      expect([formKey(form), handlers.isUsual(form)]).toEqual([formKey(form), true]);
    }
  });
  it('a form that is written with the vendor of the other processors is the same where it does not ask', () => {
    const handlers = new HandlerSet(true);
    handlers.loadUsual();
    const [add] = usualForms(true).filter(({ mnemonic }) => mnemonic === 'adc');
    expect(handlers.isUsual({ ...add!, vendor: 'intel' })).toBe(true);
    expect(handlers.isUsual({ ...add!, condition: 3 })).toBe(false);
  });
});
