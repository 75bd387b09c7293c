import { expect, test } from 'vitest';
import { Kvm } from './kvm.ts';
import { kvmWriteWallClock } from './pvclock.ts';
import { idleBackend } from './testing/idle-backend.ts';

test('the wall clock is the time of power-on, whenever it is asked for', async () => {
  const kvm = await Kvm.create(idleBackend(), { memory: 1 << 20, bootTime: 1_700_000_000 });
  const vm = kvm.createVm();
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0x2000 });
  const vcpu = vm.createVcpu(0);
  kvm.warpTo(5_000_000_000);
  kvmWriteWallClock(vcpu, { index: 0x11, data: 0x1000n, hostInitiated: false });
  const view = new DataView(vm.readGuest(0x1000, 12).buffer);
  expect([0, 4, 8].map((at) => view.getUint32(at, true))).toEqual([2, 1_700_000_000, 0]);
});
