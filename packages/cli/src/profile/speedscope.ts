/**
 * A profile as speedscope's file (https://www.speedscope.app/file-format-schema.json), which speedscope opens as flame graph and in the
 * order of time. Weights are ticks.
 */
import type { Profile } from './collect.ts';

export interface SpeedscopeFile {
  $schema: string;
  exporter: string;
  name: string;
  activeProfileIndex: number;
  shared: { frames: { name: string }[] };
  profiles: {
    type: 'sampled';
    name: string;
    unit: 'none';
    startValue: number;
    endValue: number;
    /** Frame numbers, outermost first. */
    samples: number[][];
    weights: number[];
  }[];
}

export function speedscope({ stacks, stretches }: Pick<Profile, 'stacks' | 'stretches'>, name: string): SpeedscopeFile {
  const frames = new Map<string, number>();
  const frameOf = (text: string): number => {
    const known = frames.get(text);
    if (known !== undefined) return known;
    frames.set(text, frames.size);
    return frames.size - 1;
  };
  const numbered = stacks.map((stack) => stack.map(frameOf));
  return {
    $schema: 'https://www.speedscope.app/file-format-schema.json',
    exporter: 'tskvm',
    name,
    activeProfileIndex: 0,
    shared: { frames: [...frames.keys()].map((text) => ({ name: text })) },
    profiles: [...stretches].map(([vcpu, list]) => ({
      type: 'sampled',
      name: `vCPU ${vcpu}, ticks`,
      unit: 'none',
      startValue: 0,
      endValue: list.reduce((sum, { ticks }) => sum + ticks, 0),
      samples: list.map(({ stack }) => numbered[stack]),
      weights: list.map(({ ticks }) => ticks),
    })),
  };
}
