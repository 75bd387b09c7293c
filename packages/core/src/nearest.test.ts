import { describe, expect, test } from 'vitest';
import { nearest } from './nearest.ts';

describe('nearest', () => {
  const ops = ['setCr0', 'setCr3', 'setCr4', 'vcpuRun', 'vcpuReset', 'enableNmiWindow'];
  test('KVM spells in snake case, nobody in exactly one case', () => {
    expect(nearest('set_cr0', ops, 1)).toEqual(['setCr0']);
    expect(nearest('VCPURUN', ops, 1)).toEqual(['vcpuRun']);
  });
  test('a beginning, where few names have it', () => {
    expect(nearest('enable', ops)).toEqual(['enableNmiWindow']);
    expect(nearest('vcpu', ops)).toEqual(['vcpuRun', 'vcpuReset']);
    expect(nearest('en', ops)).toEqual([]);
  });
  test('the fewest edits first, letters that changed places count once', () => {
    expect(nearest('setCr8', ops)).toEqual(['setCr0', 'setCr3', 'setCr4']);
    expect(nearest('npt', ['nested', 'ntp', 'np'])).toEqual(['np', 'ntp']);
    expect(nearest('vcpuRest', ops, 1)).toEqual(['vcpuReset']);
  });
  test('none where none is like it', () => {
    expect(nearest('memory', ops)).toEqual([]);
    expect(nearest('amd', ['epyc', 'max'])).toEqual([]);
    expect(nearest('', ops)).toEqual([]);
  });
});
