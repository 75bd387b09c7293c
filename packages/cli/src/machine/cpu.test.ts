/** `cpu: 'MODEL,+feature,-feature'`: what stands below KVM and what the guest's CPUID says. */
import { guestCpuidHas, type Vcpu } from '@tskvm/core';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { describe, expect, test } from 'vitest';
import { chooseProcessors, parseCpu } from './cpu.ts';
import { bootSector } from './loaders/image.ts';
import { createMachine, type Machine } from './machine.ts';

/** A boot sector with this code. */
const sector = (code: readonly number[]) => {
  const bytes = new Uint8Array(512);
  bytes.set(code);
  bytes.set([0x55, 0xaa], 510);
  return bootSector(bytes, 'test');
};
const make = (backend: ReturnType<typeof svm>, cpu?: string, code: readonly number[] = [0xf4], cpus = 1) =>
  createMachine({ backend, cpu, cpus, image: sector(code), memory: 2 ** 20 });
const first = (machine: Machine): Vcpu => machine.vm.vcpus[0];
const vendorOf = (vcpu: Vcpu): string => {
  const leaf = vcpu.cpuid.find((e) => e.function === 0)!;
  return String.fromCharCode(...new Uint8Array(new Uint32Array([leaf.ebx, leaf.edx, leaf.ecx]).buffer));
};

test('an option that a machine has not is refused, with the nearest', async () => {
  const options = { backend: svm(), image: sector([0xf4]), cpuz: 2 } as unknown as Parameters<typeof createMachine>[0];
  await expect(createMachine(options)).rejects.toMatchObject({
    code: 'BAD_OPTION',
    message: expect.stringMatching(/cpuz.*did you mean cpus?\?/),
  });
});

describe('host and guest', () => {
  test('an AMD guest on VT-x: the guest reads AuthenticAMD, the processor below is the Xeon', async () => {
    // xor eax, eax; cpuid; mov eax, ecx; shr eax, 24; out F4h, al ("cAMD": the last letter)
    const code = [0x66, 0x31, 0xc0, 0x0f, 0xa2, 0x66, 0x89, 0xc8, 0x66, 0xc1, 0xe8, 24, 0xe6, 0xf4];
    const machine = await make(vmx(), 'epyc', code);
    expect(vendorOf(first(machine))).toBe('AuthenticAMD');
    expect(machine.kvm.model.name).toBe('xeon');
    expect(await machine.run()).toEqual({ reason: 'debug-exit', status: ('D'.charCodeAt(0) << 1) | 1 });
  });
  test('an Intel guest on AMD-V', async () => {
    const machine = await make(svm(), 'xeon');
    expect(vendorOf(first(machine))).toBe('GenuineIntel');
    expect(machine.kvm.model.name).toBe('epyc');
  });
  test('qemu64 has no virtualisation, so the EPYC stays below', async () => {
    const machine = await make(svm(), 'qemu64');
    expect(machine.kvm.model.name).toBe('epyc');
    expect(guestCpuidHas(first(machine), 'sha')).toBe(false);
  });
  test("a feature taken from a model of the backend's vendor is gone from the silicon", async () => {
    const machine = await make(svm(), 'epyc,-sha');
    expect((machine.kvm.processor.cpuid(7, 0)[1] >>> 29) & 1).toBe(0);
    expect(guestCpuidHas(first(machine), 'sha')).toBe(false);
  });
  test('a feature asked for by name comes to the processor below', async () => {
    const machine = await make(svm(), 'qemu64,+umip,+smep');
    expect(guestCpuidHas(first(machine), 'umip')).toBe(true);
  });
  test('host is what KVM supports, and the default', async () => {
    const machine = await make(svm(), 'host');
    const other = await make(svm());
    expect(first(machine).cpuid).toEqual(first(other).cpuid);
  });
  test('the guest knows that it is one', async () => {
    expect(guestCpuidHas(first(await make(svm(), 'qemu64')), 'hypervisor')).toBe(true);
    expect(guestCpuidHas(first(await make(svm(), 'qemu64,-hypervisor')), 'hypervisor')).toBe(false);
  });
  test('physical address bits are those of the processor below', async () => {
    const { cpuid } = first(await make(vmx(), 'epyc'));
    expect(cpuid.find((e) => e.function === 0x80000008)!.eax & 0xff).toBe(46);
  });
});

describe('topology', () => {
  test('each processor has its APIC ID in leaves 1 and 0Bh, and one socket holds all', async () => {
    const machine = await make(vmx(), undefined, [0xf4], 3);
    const [, , third] = machine.vm.vcpus;
    const leaf = (fn: number, index = 0) => third.cpuid.find((e) => e.function === fn && e.index === index)!;
    expect(leaf(1).ebx >>> 24).toBe(2);
    expect((leaf(1).ebx >>> 16) & 0xff).toBe(3);
    expect([leaf(0xb, 1).eax, leaf(0xb, 1).ebx, leaf(0xb, 1).edx]).toEqual([2, 3, 2]);
  });
});

describe('refusals', () => {
  test.each([
    ['epyk', 'UNKNOWN_CPU', /did you mean epyc/],
    ['', 'UNKNOWN_CPU', /Known: epyc/],
    ['epyc,+shaa', 'UNKNOWN_FEATURE', /did you mean sha/],
    ['epyc,umip', 'BAD_CPU', /write \+feature or -feature/],
  ])('%s', (text, code, message) => {
    expect(() => parseCpu(text)).toThrow(expect.objectContaining({ code, message: expect.stringMatching(message) }));
  });
  test.each([
    ['epyc,+vmx', /Intel processors only/],
    ['qemu64,+sse42', /needs sse41: add \+sse41/],
    ['epyc,-npt', /sev, sevEs need npt: add -sev,-sevEs/],
    ['epyc,+sgx', /not implemented: enclaves/],
    ['epyc,+umip,-umip', /both added and taken away/],
  ])('%s', (text, message) => {
    expect(() => chooseProcessors(text, svm())).toThrow(message);
  });
  test("an AMD model's virtualisation can't be given on VT-x", () => {
    expect(() => chooseProcessors('epyc,+svm', vmx())).toThrow(/can't be given to a guest of backend vmx/);
  });
});
