import { PAGE } from '@tskvm/emulator';
import { beforeEach, describe, expect, test } from 'vitest';
import { Kvm } from '../kvm.ts';
import { idleBackend } from '../testing/idle-backend.ts';
import type { Vcpu } from '../vcpu.ts';
import type { Vm } from '../vm.ts';
import {
  kvmInitShadowEptMmu,
  kvmInitShadowNptMmu,
  kvmMmuPageFault,
  kvmNestedTranslate,
  kvmUninitNestedMmu,
} from './mmu.ts';
import { type NestedFault, nestedMmuOf } from './nested.ts';

const READ = 0;
const WRITE = 2;
const FETCH = 16;
const P = 1n;
const RW = 2n;
const US = 4n;

let kvm: Kvm;
let vm: Vm;
let vcpu: Vcpu;
let faults: NestedFault[];
const inject = (_vcpu: Vcpu, fault: NestedFault): void => {
  faults.push(fault);
};
const put = (gpa: number, entry: bigint): void => vm.writeGuestValue(gpa, entry, 8);

beforeEach(async () => {
  kvm = await Kvm.create(idleBackend(), { memory: 8 << 20, shuffleFrames: 3 });
  kvm.mmu.tdpEnabled = true;
  kvm.caps.tdpEnabled = true;
  vm = kvm.createVm();
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 1 << 20 });
  vcpu = vm.createVcpu(0);
  faults = [];
});

describe("L1's NPT", () => {
  /** L2 page 5 → L1 page 0x30, with the given bits in the last entry. */
  const tables = (leaf: bigint): void => {
    put(0x10000, 0x11000n | P | RW | US);
    put(0x11000, 0x12000n | P | RW | US);
    put(0x12000, 0x13000n | P | RW | US);
    put(0x13000 + 8 * 5, leaf);
    kvmInitShadowNptMmu(vcpu, 0x10000, '4-level', true, inject);
  };
  test('translates and sets A and D', () => {
    tables(0x30000n | P | RW | US);
    expect(kvmNestedTranslate(vcpu, 5 * PAGE + 0x123, WRITE)).toEqual({
      ok: true,
      mapping: { gpa: 0x30123, writable: true, executable: true },
    });
    expect(vm.readGuestValue(0x13028, 8) & 0x60n).toBe(0x60n);
  });
  test('a supervisor entry faults: nested walks are user accesses', () => {
    tables(0x30000n | P | RW);
    expect(kvmNestedTranslate(vcpu, 5 * PAGE, READ)).toMatchObject({ ok: false, fault: { errorCode: 5 } });
  });
  test('what is not dirty is mapped read-only until it is written', () => {
    tables(0x30000n | P | RW | US);
    expect(kvmNestedTranslate(vcpu, 5 * PAGE, READ)).toMatchObject({ mapping: { writable: false } });
  });
  test("a fault in the shadow is L1's exit if L1's tables say so, else a mapping with L1's rights", () => {
    tables(0x30000n | P | US);
    expect(kvmMmuPageFault(vcpu, 5 * PAGE, 0x4n, null, 0)).toBe(1);
    expect(faults).toEqual([]);
    expect(kvmMmuPageFault(vcpu, 5 * PAGE, 0x6n, null, 0)).toBe(1);
    expect(faults).toMatchObject([{ gpa: 5 * PAGE, errorCode: 7 }]);
    kvmMmuPageFault(vcpu, 6 * PAGE, 0x4n, null, 0);
    expect(faults[1]).toMatchObject({ gpa: 6 * PAGE, errorCode: 4 });
  });
  test('leaving L2 ends it', () => {
    tables(0x30000n | P | RW | US);
    kvmUninitNestedMmu(vcpu);
    expect(nestedMmuOf(vcpu)).toBeUndefined();
    expect(kvmNestedTranslate(vcpu, 0x777, READ)).toMatchObject({ mapping: { gpa: 0x777 } });
  });
});

describe("L1's EPT", () => {
  const tables = (leaf: bigint, eptp = 0x10000n | 0x1en): void => {
    put(0x10000, 0x11000n | 7n);
    put(0x11000, 0x12000n | 7n);
    put(0x12000, 0x13000n | 7n);
    put(0x13000 + 8 * 5, leaf);
    kvmInitShadowEptMmu(vcpu, eptp, inject);
  };
  test.each([
    ['read', READ, 0x30000n | 0x31n, true],
    ['write to read-only', WRITE, 0x30000n | 0x31n, false],
    ['write', WRITE, 0x30000n | 0x33n, true],
    ['fetch without execute', FETCH, 0x30000n | 0x33n, false],
    ['fetch', FETCH, 0x30000n | 0x35n, true],
  ])('%s', (_name, access, leaf, ok) => {
    tables(leaf);
    expect(kvmNestedTranslate(vcpu, 5 * PAGE + 8, access).ok).toBe(ok);
  });
  test.each([
    ['write without read', 0x30000n | 0x32n],
    ['memory type 2', 0x30000n | 0x13n],
    ['an address beyond the physical width', (1n << 50n) | 0x37n],
  ])('misconfigured: %s', (_name, leaf) => {
    tables(leaf);
    expect(kvmNestedTranslate(vcpu, 5 * PAGE, READ)).toMatchObject({ ok: false, fault: { misconfig: true } });
  });
  test('accessed and dirty only if EPTP bit 6 is set', () => {
    tables(0x30000n | 0x37n);
    kvmNestedTranslate(vcpu, 5 * PAGE, WRITE);
    expect(vm.readGuestValue(0x13028, 8) & 0x300n).toBe(0n);
    tables(0x30000n | 0x37n, 0x10000n | 0x5en);
    kvmNestedTranslate(vcpu, 5 * PAGE, WRITE);
    expect(vm.readGuestValue(0x13028, 8) & 0x300n).toBe(0x300n);
  });
});
