import { svm } from '@tskvm/svm';
import { expect, test } from 'vitest';
import { DEFAULT_START } from './devices/rtc.ts';
import { bootSector } from './loaders/image.ts';
import { createMachine } from './machine.ts';

test("kvmclock's wall clock and the RTC say the same", async () => {
  // mov eax, 1000h; xor edx, edx; mov ecx, 11h (MSR_KVM_WALL_CLOCK); wrmsr; mov al, 9 (year); out 70h, al; in al, 71h; out F4h, al
  const code = [
    ...[0x66, 0xb8, 0, 0x10, 0, 0, 0x66, 0x31, 0xd2, 0x66, 0xb9, 0x11, 0, 0, 0, 0x0f, 0x30],
    ...[0xb0, 9, 0xe6, 0x70, 0xe4, 0x71, 0xe6, 0xf4],
  ];
  const bytes = new Uint8Array(512);
  bytes.set(code);
  bytes.set([0x55, 0xaa], 510);
  const machine = await createMachine({ backend: svm(), image: bootSector(bytes, 'test'), memory: 2 ** 20 });
  const year = new Date(DEFAULT_START * 1000).getUTCFullYear() % 100;
  const bcd = ((year / 10) << 4) | (year % 10);
  expect(await machine.run()).toEqual({ reason: 'debug-exit', status: (bcd << 1) | 1 });
  expect(new DataView(machine.vm.readGuest(0x1000, 12).buffer).getUint32(4, true)).toBe(DEFAULT_START);
});
