import { expect, test } from 'vitest';
import { Kvm } from './index.ts';

const load = async (v: string) =>
  v === 'svm'
    ? (await import('../../svm/src/index.ts' as string)).svm
    : (await import('../../vmx/src/index.ts' as string)).vmx;
test.each(['svm', 'vmx'])('smoke %s', async (v) => {
  const make = await load(v);
  const kvm = await Kvm.create(make(), { memory: 16 << 20 });
  const vm = kvm.createVm();
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 1 << 20 });
  const code = [
    0xb0, 0x41, 0xe6, 0x80, /* mov al,41; out 80,al */ 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0,
    /* mov eax,cr0; or al,1; mov cr0,eax */ 0xe4, 0x81, 0xe6, 0x82, 0xf4,
  ];
  vm.writeGuest(0x7c00, Uint8Array.from(code));
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid(kvm.getSupportedCpuid());
  const s = vcpu.getSregs();
  for (const n of ['cs', 'ds', 'es', 'ss', 'fs', 'gs'] as const) s[n] = { ...s[n], selector: 0, base: 0n };
  s.cr0 = 0x10n;
  vcpu.setSregs(s);
  vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x7c00n, rsp: 0x7c00n });
  const events: string[] = [];
  kvm.on('*', (e, n) =>
    events.push(n + ' ' + JSON.stringify(e, (_k, x) => (typeof x === 'bigint' ? '0x' + x.toString(16) : x))),
  );
  let exit = vcpu.run({ budget: 1000 });
  console.log(exit, vcpu.getRegs().rip);
  exit = vcpu.run({ budget: 1000 });
  console.log(exit, vcpu.getRegs().rip);
  if (exit.reason === 'io') exit.data[0] = 0x5a;
  exit = vcpu.run({ budget: 1000 });
  console.log(exit);
  exit = vcpu.run({ budget: 1000 });
  console.log(exit, vcpu.getSregs().cr0);
  console.log(events.join('\n').slice(0, 12000));
  expect(exit.reason).toBe('hlt');
});
