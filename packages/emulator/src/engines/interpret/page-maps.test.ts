import { describe, expect, it } from 'vitest';
import { ByteSet, PageRecords, RecordPool } from './page-maps.ts';

describe('records by page offset', () => {
  it('what was set, and 0 elsewhere', () => {
    const pool = new RecordPool();
    const [one, other] = [new PageRecords(pool), new PageRecords(pool)];
    for (let offset = 0; offset < 4096; offset += 7) one.set(offset, 1000 + offset);
    other.set(14, 5);
    for (let offset = 0; offset < 4096; offset++) {
      expect(one.at(offset)).toBe(offset % 7 === 0 ? 1000 + offset : 0);
      expect(other.at(offset)).toBe(offset === 14 ? 5 : 0);
    }
  });

  it('cleared: all zero, and its blocks are for others', () => {
    const pool = new RecordPool();
    const { left } = pool;
    const one = new PageRecords(pool);
    for (let offset = 0; offset < 4096; offset++) one.set(offset, 1);
    expect(pool.left).toBe(left - 64);
    one.clear();
    expect(pool.left).toBe(left);
    const other = new PageRecords(pool);
    other.set(100, 7);
    expect([one.at(100), other.at(100), other.at(101)]).toEqual([0, 7, 0]);
  });

  it('a page has as many blocks as it has parts with records', () => {
    const pool = new RecordPool();
    const { left } = pool;
    for (let page = 0; page < 1000; page++) new PageRecords(pool).set(page, 1);
    expect(pool.left).toBe(left - 1000);
  });
});

describe('sets of bytes', () => {
  it('from, to, exclusive; beyond the page nothing', () => {
    const set = new ByteSet();
    set.set(10, 20, true);
    set.set(4090, 4105, true);
    set.set(12, 13, false);
    expect([9, 10, 12, 19, 20, 4095].map((at) => set.has(at))).toEqual([false, true, false, true, false, true]);
    expect(set.hasAny(0, 10)).toBe(false);
    expect(set.hasAny(12, 13)).toBe(false);
    expect(set.hasAny(19, 25)).toBe(true);
    expect(set.hasAny(4096, 4110)).toBe(false);
  });
});
