import type { GuestMode } from '@tskvm/emulator';
import { type NestedFormat, WalkTrials } from '@tskvm/emulator/testing';
import { expect, it } from 'vitest';
import { type HostPaging, NestedWalker, PLAIN_NPT, reservedHighMask } from './nested-paging.ts';

const HOST: HostPaging = { levels: 4, nxe: true, reservedHigh: reservedHighMask(46), gigabytePages: true };

const NPT: NestedFormat = {
  table: [[0x27n, 100]],
  leaf: [
    [0x25n, 96],
    [2n, 85],
    [0x40n, 85],
    [1n << 63n, 10],
    [0x118n, 10],
  ],
  odd: [1n, 2n, 4n, 0x20n, 0x80n, 0x100n, 1n << 13n, 1n << 40n, 1n << 48n, 1n << 55n, 1n << 63n],
  owner: ({ memory }, root) => {
    const walker = new NestedWalker(memory);
    const translate: GuestMode['translate'] = (gpa, access) =>
      walker.walk(root, gpa, access, HOST) === 0 ? walker.translation : undefined;
    return { asid: 1, nestedRoot: root, nestedShape: PLAIN_NPT, deadline: Infinity, translate } as unknown as GuestMode;
  },
};

it('the page walk of generated code fills what a walk through nested tables would fill', () => {
  const { filled, left } = new WalkTrials('amd', 7, NPT).run(5000);
  expect(filled).toBeGreaterThan(500);
  expect(left).toBeGreaterThan(500);
});
