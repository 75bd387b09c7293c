import { describe, expect, it } from 'vitest';
import { LARGE, regionSize, SMALL } from './region-size.ts';

describe('how large a region may be', () => {
  it("the thread that draws a browser's page: small, it must not stand still; a worker beside it: large", () => {
    expect(regionSize({ document: {} })).toBe(SMALL);
    expect(regionSize({})).toBe(LARGE);
  });

  it('a Node whose V8 has no poorer allocator: large', () => {
    expect(regionSize({ process: {} })).toBe(LARGE);
    const newer = { versions: { v8: '12.4.254.21-node.57' }, getBuiltinModule: () => expect.unreachable() };
    expect(regionSize({ process: newer })).toBe(LARGE);
  });

  it('Node 20 is told not to fall back', () => {
    const told: string[] = [];
    const v8 = { setFlagsFromString: (flags: string) => void told.push(flags) };
    expect(regionSize({ process: { versions: { v8: '11.3.244.8-node.33' }, getBuiltinModule: () => v8 } })).toBe(LARGE);
    expect(told).toEqual(['--no-turbo-use-mid-tier-regalloc-for-huge-functions']);
  });

  it('an older one that can not be told: small', () => {
    expect(regionSize({ process: { versions: { v8: '11.3.244.8-node.16' } } })).toBe(SMALL);
    expect(regionSize({ process: { versions: { v8: '11.3.244.8' }, getBuiltinModule: () => undefined } })).toBe(SMALL);
  });
});
