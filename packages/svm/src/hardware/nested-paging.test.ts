import { PhysicalMemory } from '@tskvm/emulator';
import { beforeEach, describe, expect, it } from 'vitest';
import { NpfError } from './exit-codes.ts';
import { type HostPaging, NestedWalker, reservedHighMask } from './nested-paging.ts';

const host: HostPaging = { levels: 4, nxe: true, reservedHigh: reservedHighMask(40), gigabytePages: true };
const READ = { write: false, fetch: false, pageWalk: false };
const WRITE = { write: true, fetch: false, pageWalk: false };
const FETCH = { write: false, fetch: true, pageWalk: false };
const ROOT = 0x1000;

let memory: PhysicalMemory;
let walker: NestedWalker;
beforeEach(() => {
  memory = new PhysicalMemory(1 << 20);
  walker = new NestedWalker(memory);
  memory.write64(ROOT, 0x2007n);
  memory.write64(0x2000, 0x3007n);
  memory.write64(0x3000, 0x4007n);
  memory.write64(0x4000 + 5 * 8, 0x8000_0000_0000_7007n);
  memory.write64(0x4000 + 6 * 8, 0x9005n);
  memory.write64(0x3000 + 8, 0x8000_0087n);
});

describe('nested page walk', () => {
  it('translates a 4 KiB page and sets the accessed bits on the way', () => {
    expect(walker.walk(ROOT, 0x5123, READ, host)).toBe(0);
    expect(walker.translation).toEqual({ hpa: 0x7000, writable: false, executable: false, shift: 12 });
    expect(memory.read64(ROOT) & 0x20n).toBe(0x20n);
    expect(memory.read64(0x4000 + 40) & 0x60n).toBe(0x20n);
  });
  it('sets the dirty bit on a write and reports the page writable from then on', () => {
    expect(walker.walk(ROOT, 0x5000, WRITE, host)).toBe(0);
    expect(walker.translation.writable).toBe(true);
    expect(memory.read64(0x4000 + 40) & 0x60n).toBe(0x60n);
  });
  it('translates inside a 2 MiB page', () => {
    expect(walker.walk(ROOT, 0x21_2345, FETCH, host)).toBe(0);
    expect(walker.translation).toMatchObject({ hpa: 0x8001_2000, executable: true, shift: 21 });
  });
  it('reports a missing entry as a user fault without P', () => {
    expect(walker.walk(ROOT, 0xb000, WRITE, host)).toBe(NpfError.U | NpfError.W);
  });
  it('refuses a write to a read-only page, and a guest table walk, which is a write', () => {
    expect(walker.walk(ROOT, 0x6000, WRITE, host)).toBe(NpfError.P | NpfError.U | NpfError.W);
    expect(walker.walk(ROOT, 0x6000, { ...READ, pageWalk: true }, host)).toBe(NpfError.P | NpfError.U | NpfError.W);
    expect(walker.walk(ROOT, 0x6000, READ, host)).toBe(0);
  });
  it('refuses a fetch from a no-execute page', () => {
    expect(walker.walk(ROOT, 0x5000, FETCH, host)).toBe(NpfError.P | NpfError.U | NpfError.FETCH);
  });
  it('reports reserved bits: address above MAXPHYADDR, NX without EFER.NXE, low bits of a large page', () => {
    memory.write64(0x4000 + 7 * 8, (1n << 45n) | 0x7007n);
    const reserved = NpfError.P | NpfError.U | NpfError.RSVD;
    expect(walker.walk(ROOT, 0x7000, READ, host)).toBe(reserved);
    expect(walker.walk(ROOT, 0x5000, READ, { ...host, nxe: false })).toBe(reserved);
    memory.write64(0x3000 + 16, 0x8000_2087n);
    expect(walker.walk(ROOT, 0x40_0000, READ, host)).toBe(reserved);
  });
  it('treats tables outside memory as reserved, and never throws', () => {
    memory.write64(0x4000 - 0x1000 + 3 * 8, 0x7fff_f007n);
    expect(walker.walk(ROOT, 0x60_0000, READ, host)).toBe(NpfError.P | NpfError.U | NpfError.RSVD);
    expect(walker.walk(0x10_0000_0000, 0, READ, host)).toBe(NpfError.P | NpfError.U | NpfError.RSVD);
  });
});
