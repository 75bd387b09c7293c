import { PAGE } from '@tskvm/emulator';
import { beforeEach, describe, expect, test } from 'vitest';
import { KvmError } from './diagnostics.ts';
import { Kvm } from './kvm.ts';
import { idleBackend } from './testing/idle-backend.ts';
import type { Vm } from './vm.ts';

const backend = idleBackend();
const errno = (work: () => void): number => {
  try {
    work();
  } catch (error) {
    if (error instanceof KvmError) return error.errno;
    throw error;
  }
  return 0;
};
const MIB = 1 << 20;

describe.each([undefined, 7])('memory slots, frames shuffled by %s', (shuffleFrames) => {
  let kvm: Kvm;
  let vm: Vm;
  beforeEach(async () => {
    kvm = await Kvm.create(backend, { memory: 8 * MIB, shuffleFrames });
    vm = kvm.createVm();
  });

  test('what is written is read back, across pages', () => {
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0x10000, memorySize: 3 * PAGE });
    const bytes = Uint8Array.from({ length: 2 * PAGE }, (_, i) => (i * 7) & 0xff);
    vm.writeGuest(0x10800, bytes);
    expect(vm.readGuest(0x10800, bytes.length)).toEqual(bytes);
    expect(vm.readGuestValue(0x10800, 4)).toBe(0x150e0700n);
  });
  test('an address without a slot is EFAULT', () => {
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: PAGE });
    expect(errno(() => vm.readGuest(PAGE - 1, 2))).toBe(14);
    expect(vm.hasMemory(PAGE - 1, 1)).toBe(true);
  });
  test('overlap is EEXIST', () => {
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 4 * PAGE });
    expect(errno(() => vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 3 * PAGE, memorySize: PAGE }))).toBe(17);
  });
  test.each([
    ['a misaligned address', { slot: 0, guestPhysAddr: 1, memorySize: PAGE }],
    ['a misaligned size', { slot: 0, guestPhysAddr: 0, memorySize: 100 }],
    ['an unknown flag', { slot: 0, guestPhysAddr: 0, memorySize: PAGE, flags: 8 }],
    ['address space 2', { slot: 0x20000, guestPhysAddr: 0, memorySize: PAGE }],
    ['a private slot id', { slot: 32764, guestPhysAddr: 0, memorySize: PAGE }],
    ['deleting what is not there', { slot: 5, guestPhysAddr: 0, memorySize: 0 }],
  ])('%s is EINVAL', (_, region) => {
    expect(errno(() => vm.setUserMemoryRegion(region))).toBe(22);
  });
  test('a slot can not change its size, but it can move and keeps its bytes', () => {
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: PAGE });
    vm.writeGuestValue(0x10, 0x1234n, 2);
    expect(errno(() => vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 2 * PAGE }))).toBe(22);
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0x100000, memorySize: PAGE });
    expect(vm.readGuestValue(0x100010, 2)).toBe(0x1234n);
    expect(vm.hasMemory(0, 1)).toBe(false);
  });
  test('aliases of one backing show the same bytes', () => {
    const backing = vm.allocBacking(2 * PAGE);
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 2 * PAGE, backing });
    vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0x80000, memorySize: PAGE, backing, offset: PAGE });
    vm.writeGuestValue(PAGE + 8, 0xabn, 1);
    expect(vm.readGuestValue(0x80008, 1)).toBe(0xabn);
  });
  test('the dirty log has one bit per written page and is cleared by reading it', () => {
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0x1000, memorySize: 40 * PAGE, flags: 1 });
    vm.writeGuestValue(0x1000 + 33 * PAGE, 1n, 1);
    expect([...vm.getDirtyLog(0)]).toEqual([0, 2]);
    expect([...vm.getDirtyLog(0)]).toEqual([0, 0]);
  });
  test("SMM's address space has slots of its own", () => {
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: PAGE });
    vm.setUserMemoryRegion({ slot: 0x10000, guestPhysAddr: 0, memorySize: PAGE });
    vm.writeGuestValue(0, 1n, 1, true);
    expect([vm.readGuestValue(0, 1, false), vm.readGuestValue(0, 1, true)]).toEqual([0n, 1n]);
  });
  test('more memory than the host has is ENOMEM', () => {
    expect(errno(() => vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 64 * MIB }))).toBe(12);
  });
  test('a destroyed VM gives nothing of its neighbour away', () => {
    const before = kvm.hostMemory.freePages;
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: MIB });
    vm.destroy();
    expect(kvm.vms).toEqual([]);
    expect(kvm.hostMemory.freePages).toBe(before);
  });
});

test('shuffled frames scatter guest memory', async () => {
  const kvm = await Kvm.create(backend, { memory: 8 * MIB, shuffleFrames: 3 });
  const { frames } = kvm.createVm().allocBacking(16 * PAGE);
  expect(new Set(frames).size).toBe(16);
  expect([...frames].some((frame, i) => i > 0 && frame !== frames[i - 1] + 1)).toBe(true);
});
