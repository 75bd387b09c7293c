/**
 * The seeded sample of the processor's own results, on evaluate alone, and in the whole processor with evaluate, interpret and translate.
 */
import { readdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { vectorEngine } from './engines.ts';
import { readVectors } from './format.ts';
import { runCase } from './run-case.ts';

const SAMPLE = new URL('./sample/', import.meta.url).pathname;
const groups = readdirSync(SAMPLE)
  .filter((name) => name.endsWith('.jsonl.gz'))
  .map((name) => name.replace('.jsonl.gz', ''));

const INTEGER = /^[0-9]+_(alu|bit|branch|fault|misc|mov|muldiv|seg|shift|stack|string)$/;

it('the sample has all integer groups, and the x87, MMX, SSE and AVX groups of 64-bit code', () => {
  expect(groups.filter((group) => INTEGER.test(group))).toHaveLength(33);
  expect(groups.filter((group) => !INTEGER.test(group))).toHaveLength(23);
});

/** Rare conditions of some instructions. */
const EDGES = new URL('./edges/', import.meta.url).pathname;

describe.each(['evaluate', 'processor', 'interpret', 'translate'])(
  '%s does what a real processor did where',
  (name) => {
    it.each(readdirSync(EDGES))('%s looks', async (file) => {
      const { header, cases } = readVectors(`${EDGES}${file}`);
      const machine = await (await vectorEngine(name)).create(header);
      const differing = cases.filter((test) => runCase(machine, header, test).length > 0);
      expect(differing.map((test) => header.templates[test.t]!.name)).toEqual([]);
      expect(cases.length).toBeGreaterThan(3);
    });
  },
);

/** Translate makes a module for each case: it gets every third one. */
const STRIDE: Readonly<Record<string, number>> = { translate: 3 };

describe.each(['evaluate', 'processor', 'interpret', 'translate'])('%s does what a real processor did', (name) => {
  it.each(groups)('%s', async (group) => {
    const { header, cases } = readVectors(`${SAMPLE}${group}.jsonl.gz`);
    const machine = await (await vectorEngine(name)).create(header);
    const failures: string[] = [];
    for (let i = 0; i < cases.length; i += STRIDE[name] ?? 1) {
      const test = cases[i]!;
      const differences = runCase(machine, header, test);
      if (differences.length > 0)
        failures.push(`${header.templates[test.t]!.name} ${test.c}: ${differences.join('; ')}`);
    }
    expect(failures.slice(0, 10)).toEqual([]);
    if (name === 'translate' && /_alu$/.test(group)) expect(machine.coverage!.translated).toBeGreaterThan(1000);
    expect(cases.length).toBeGreaterThanOrEqual(header.templates.length * (INTEGER.test(group) ? 11 : 4));
  });
});
