import { describe, expect, it } from 'vitest';
import type { HandlerSet } from '../interpret/handlers.ts';
import type { KeyState } from '../interpret/predecode.ts';
import { Backlog, type Found } from './backlog.ts';
import type { RegionInstruction } from './explore.ts';
import type { Region } from './region.ts';

const handlers = (): HandlerSet => ({}) as HandlerSet;
const [LONG, LEGACY] = [handlers(), handlers()];

/** A region of so many instructions that is entered at a record. */
function found(instructionCount: number, record = 0, set = LONG): Found {
  const block = { index: 0, at: 0, instructions: [{ lead: record } as RegionInstruction], successors: [] };
  const region: Region = {
    pages: new Map(),
    blocks: [block],
    blockAt: new Map([[0, block]]),
    entries: [0],
    instructionCount,
  };
  return { region, key: { handlers: set } as KeyState };
}

function backlog(...waiting: Found[]): Backlog {
  const made = new Backlog(10, 33);
  for (const one of waiting) made.add(one);
  return made;
}

describe('regions that wait for their translation', () => {
  it('the first one has not to wait', () => {
    const one = found(20);
    expect(backlog(one).take()).toEqual([one]);
  });

  it('after so many instructions no other comes for so many ticks; then all that was found meanwhile', () => {
    const waiting = backlog(found(20));
    waiting.take();
    const [second, third] = [found(5, 1), found(7, 2)];
    waiting.elapsed(1);
    waiting.add(second);
    expect(waiting.take()).toEqual([]);
    waiting.add(third);
    waiting.elapsed(198);
    expect(waiting.take()).toEqual([]);
    waiting.elapsed(1);
    expect(waiting.take()).toEqual([second, third]);
    expect(waiting.take()).toEqual([]);
  });

  it('a module takes no more than its share, one too large included, and nothing of other handlers', () => {
    const [large, small, other, last] = [found(300), found(150), found(10, 0, LEGACY), found(101)];
    const waiting = backlog(large, small, other, last);
    expect(waiting.take()).toEqual([large]);
    waiting.elapsed(3000);
    expect(waiting.take()).toEqual([small]);
    waiting.elapsed(1500);
    expect(waiting.take()).toEqual([other]);
    waiting.elapsed(100);
    expect(waiting.take()).toEqual([last]);
    const tiny = Array.from({ length: 70 }, () => found(1));
    expect(backlog(...tiny).take()).toHaveLength(33);
    const entered = (n: number): Found => ({ ...tiny[0]!, region: { ...tiny[0]!.region, entries: Array(n).fill(0) } });
    expect(
      backlog(entered(20), entered(14), entered(13))
        .take()
        .map(({ region }) => region.entries.length),
    ).toEqual([20, 13]);
  });

  it('the more modules there were, the longer it takes to the next one', () => {
    const waiting = backlog();
    for (let n = 0; n < 100; n++) {
      waiting.add(found(2));
      waiting.elapsed(1000);
      expect(waiting.take()).toHaveLength(1);
    }
    for (const record of [1, 2, 3]) waiting.add(found(2, record));
    waiting.elapsed(494);
    expect(waiting.take()).toEqual([]);
    waiting.elapsed(1);
    expect(waiting.take()).toHaveLength(3);
  });

  it('when as many wait as a module takes, nobody looks for more', () => {
    const waiting = backlog();
    for (let n = 0; n < 64; n++) {
      expect(waiting.mayLook).toBe(true);
      waiting.add(found(1, n));
    }
    expect(waiting.mayLook).toBe(false);
  });

  it('what is only looked at takes its share, too', () => {
    const waiting = backlog();
    for (let n = 0; n < 15; n++) waiting.looked(125);
    waiting.elapsed(0);
    expect(waiting.mayLook).toBe(true);
    waiting.looked(125);
    waiting.elapsed(0);
    expect(waiting.mayLook).toBe(false);
    waiting.elapsed(1000);
    expect(waiting.mayLook).toBe(true);
  });

  it('knows its records, and forgets what has changed', () => {
    const waiting = backlog(found(1, 0x100), found(2, 0x200));
    expect([waiting.holds(0x100), waiting.holds(0x200), waiting.holds(0x300)]).toEqual([true, true, false]);
    expect(waiting.drop(({ instructionCount }) => instructionCount === 1)).toBe(true);
    expect(waiting.drop(({ instructionCount }) => instructionCount === 1)).toBe(false);
    expect([waiting.holds(0x100), waiting.holds(0x200)]).toEqual([false, true]);
    waiting.clear();
    expect(waiting.take()).toEqual([]);
  });
});
