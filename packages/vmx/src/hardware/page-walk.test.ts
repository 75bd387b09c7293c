import type { GuestMode } from '@tskvm/emulator';
import { type NestedFormat, WalkTrials } from '@tskvm/emulator/testing';
import { expect, it } from 'vitest';
import { EptCap } from './bits.ts';
import { EptWalker, plainEpt, Walk } from './nested-paging.ts';

const CAP = EptCap.page2m | EptCap.page1g | EptCap.executeOnly;

const ept = (ad: boolean): NestedFormat => ({
  table: [[ad ? 0x107n : 7n, 100]],
  leaf: [
    [1n, 100],
    [2n, 85],
    [4n, 90],
    [0x30n, 97],
    [0x100n, 95],
    [0x200n, 85],
    [0x40n, 50],
  ],
  odd: [1n, 2n, 4n, 0x10n, 0x20n, 0x80n, 0x100n, 1n << 12n, 1n << 40n, 1n << 48n, 1n << 55n, 1n << 63n],
  owner: ({ memory }, root) => {
    const walker = new EptWalker(memory, CAP, 46);
    const translate: GuestMode['translate'] = (gpa, { write, pageWalk, fetch }) =>
      walker.walk(root, 4, ad, gpa, write || (pageWalk && ad), fetch) === Walk.ok ? walker.result : undefined;
    const nestedShape = plainEpt(ad, CAP);
    return { asid: 1, nestedRoot: root, nestedShape, deadline: Infinity, translate } as unknown as GuestMode;
  },
});

it.each([true, false])('the page walk of generated code fills what a walk through EPT would fill, flags: %s', (ad) => {
  const { filled, left } = new WalkTrials('intel', 11, ept(ad)).run(5000);
  expect(filled).toBeGreaterThan(500);
  expect(left).toBeGreaterThan(500);
});
