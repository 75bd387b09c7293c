import { describe, expect, it } from 'vitest';
import { WalkTrials } from '../../testing/index.ts';

describe('the page walk of generated code', () => {
  it.each(['amd', 'intel'] as const)('fills what the walker would fill, %s', (vendor) => {
    const { filled, left } = new WalkTrials(vendor, 1).run(5000);
    expect(filled).toBeGreaterThan(500);
    expect(left).toBeGreaterThan(500);
  });
});
