import { describe, expect, it } from 'vitest';
import { Layout, TlbEntry } from './layout.ts';
import { PhysicalMemory } from './physical.ts';
import { PageSize, Tag, Tlb } from './tlb.ts';

const memory = new PhysicalMemory(0x100000);
const page = {
  page: 0x5000,
  read: true,
  write: true,
  exec: false,
  fetch: false,
  code: false,
  global: false,
  size: PageSize.small,
};

const fresh = (): Tlb => {
  const tlb = new Tlb(memory);
  tlb.flushAll();
  return tlb;
};

describe('software TLB', () => {
  it('hits in its own context and right only', () => {
    const tlb = fresh();
    const a = tlb.context(0, 0, 0, 1);
    const b = tlb.context(0, 0, 0, 2);
    tlb.fill(0x7123, 1, a, page);
    expect(tlb.lookup(0x7abc, 1, a, Tag.read)).toBe(0x5abc);
    expect(tlb.lookup(0x7abc, 1, a, Tag.write)).toBe(0x5abc);
    expect(tlb.lookup(0x7abc, 1, a, Tag.exec)).toBe(-1);
    expect(tlb.lookup(0x7abc, 1, b, Tag.read)).toBe(-1);
    expect(tlb.lookup(0x7abc, 0, a, Tag.read)).toBe(-1);
  });
  it('interns equal contexts to one id and tells ASID, PCID, root and rights apart', () => {
    const tlb = fresh();
    const ids = [
      tlb.context(1, 0, 0, 1),
      tlb.context(0, 1, 0, 1),
      tlb.context(0, 0, 0x1000, 1),
      tlb.context(0, 0, 0, 1),
    ];
    expect(new Set(ids).size).toBe(4);
    expect(tlb.context(0, 1, 0, 1)).toBe(ids[1]);
  });
  it('has entries of their own for fetches', () => {
    const tlb = fresh();
    const id = tlb.context(0, 0, 0, 0);
    tlb.fill(0x1000, 0, id, { ...page, exec: true });
    expect(tlb.lookup(0x1000, 0, id, Tag.exec)).toBe(-1);
    // The same place for data, another page for fetches.
    tlb.fill(0x1001000, 0, id, { ...page, page: 0x9000, exec: true, fetch: true });
    expect(tlb.lookup(0x1001000, 0, id, Tag.exec)).toBe(0x9000);
    expect(tlb.lookup(0x1001000, 0, id, Tag.read)).toBe(-1);
    expect(tlb.lookup(0x1001000, 0, id, Tag.write)).toBe(-1);
    expect(tlb.lookup(0x1000, 0, id, Tag.write)).toBe(0x5000);
    tlb.fill(0x1000, 0, id, { ...page, page: 0xa000, exec: true, fetch: true });
    expect(tlb.lookup(0x1001000, 0, id, Tag.exec)).toBe(-1);
    tlb.flushPage(0, 0x1000n);
    expect(tlb.lookup(0x1000, 0, id, Tag.read)).toBe(-1);
    expect(tlb.lookup(0x1000, 0, id, Tag.exec)).toBe(-1);
  });
  it('flushes an ASID and keeps globals where asked', () => {
    const tlb = fresh();
    const mine = tlb.context(1, 0, 0, 1);
    const other = tlb.context(2, 0, 0, 1);
    tlb.fill(0x1000, 0, mine, page);
    tlb.fill(0x2000, 0, mine, { ...page, global: true });
    tlb.fill(0x3000, 0, other, page);
    tlb.flushAsid(1, true);
    expect(tlb.lookup(0x1000, 0, mine, Tag.read)).toBe(-1);
    expect(tlb.lookup(0x2000, 0, mine, Tag.read)).toBe(0x5000);
    tlb.flushAsid(1, false);
    expect(tlb.lookup(0x2000, 0, mine, Tag.read)).toBe(-1);
    expect(tlb.lookup(0x3000, 0, other, Tag.read)).toBe(0x5000);
  });
  it('flushes one PCID', () => {
    const tlb = fresh();
    const first = tlb.context(0, 1, 0, 1);
    const second = tlb.context(0, 2, 0, 1);
    tlb.fill(0x1000, 0, first, page);
    tlb.fill(0x2000, 0, second, page);
    tlb.flushAsid(0, true, 1);
    expect(tlb.lookup(0x1000, 0, first, Tag.read)).toBe(-1);
    expect(tlb.lookup(0x2000, 0, second, Tag.read)).toBe(0x5000);
  });
  it('INVLPG takes one page out of all contexts of the ASID, globals too', () => {
    const tlb = fresh();
    const user = tlb.context(0, 0, 0, 1);
    const kernel = tlb.context(0, 0, 0, 0);
    tlb.fill(0x1000, 0, user, page);
    tlb.fill(0x1000, 0, kernel, { ...page, global: true });
    tlb.fill(0x2000, 0, user, page);
    tlb.flushPage(0, 0x1fffn);
    expect(tlb.lookup(0x1000, 0, user, Tag.read)).toBe(-1);
    expect(tlb.lookup(0x1000, 0, kernel, Tag.read)).toBe(-1);
    expect(tlb.lookup(0x2000, 0, user, Tag.read)).toBe(0x5000);
  });
  it('INVLPG of one address drops all parts of its large page', () => {
    const tlb = fresh();
    const id = tlb.context(0, 0, 0, 0);
    tlb.fill(0x400000, 0, id, { ...page, size: PageSize.large });
    tlb.fill(0x5ff000, 0, id, { ...page, size: PageSize.large });
    tlb.fill(0x800000, 0, id, { ...page, size: PageSize.large });
    tlb.flushPage(0, 0x400123n);
    expect(tlb.lookup(0x5ff000, 0, id, Tag.read)).toBe(-1);
    expect(tlb.lookup(0x800000, 0, id, Tag.read)).toBe(0x5000);
  });
  it('flushes what came through one nested root', () => {
    const tlb = fresh();
    const first = tlb.context(1, 0, 0x10000, 0);
    const second = tlb.context(1, 0, 0x20000, 0);
    tlb.fill(0x1000, 0, first, page);
    tlb.fill(0x2000, 0, second, page);
    tlb.flushNested(0x10000);
    expect(tlb.lookup(0x1000, 0, first, Tag.read)).toBe(-1);
    expect(tlb.lookup(0x2000, 0, second, Tag.read)).toBe(0x5000);
  });
  it('takes the right to write from a page that becomes code', () => {
    const tlb = fresh();
    const id = tlb.context(0, 0, 0, 0);
    tlb.fill(0x1000, 0, id, page);
    const inline = () => memory.view.getUint32(Layout.tlb + (1 ^ (id * 37)) * TlbEntry.size + TlbEntry.tagWrite, true);
    expect(inline()).not.toBe(0);
    tlb.protectPage(5);
    expect(inline()).toBe(0);
    // The slow path still finds the translation, stale or not, as an engine without predecoded code would.
    expect(tlb.lookup(0x1000, 0, id, Tag.write)).toBe(0x5000);
    tlb.allowWrite(0x1000, id);
    expect(inline()).not.toBe(0);
    tlb.fill(0x1000, 0, id, { ...page, write: false });
    expect(tlb.lookup(0x1000, 0, id, Tag.write)).toBe(-1);
  });
  it('starts numbering again, empty, when ids run out', () => {
    const tlb = fresh();
    const id = tlb.context(0, 0, 0, 0);
    tlb.fill(0x1000, 0, id, page);
    for (let asid = 1; asid <= 4095; asid++) tlb.context(asid, 0, 0, 0);
    expect(tlb.lookup(0x1000, 0, tlb.context(0, 0, 0, 0), Tag.read)).toBe(-1);
  });
  it('save and load keep entries and ids', () => {
    const tlb = fresh();
    const id = tlb.context(3, 4, 0x5000, 6);
    tlb.fill(0x1000, 0, id, page);
    const saved = structuredClone(tlb.save());
    tlb.flushAll();
    tlb.load(saved);
    expect(tlb.context(3, 4, 0x5000, 6)).toBe(id);
    expect(tlb.lookup(0x1000, 0, id, Tag.read)).toBe(0x5000);
    tlb.flushAsid(3, false);
    expect(tlb.lookup(0x1000, 0, id, Tag.read)).toBe(-1);
  });
});
