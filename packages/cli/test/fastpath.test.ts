/** Exits that are handled right behind the entry: nobody can tell from the outside. */
import { createHash } from 'node:crypto';
import { type Backend, defineBackend, type KvmX86Ops } from '@tskvm/core';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { bootSector, createMachine } from 'tskvm';
import { describe, expect, test } from 'vitest';

/** xor eax, eax; cpuid; mov ecx, 1bh; rdmsr */
const READS = [0x66, 0x31, 0xc0, 0x0f, 0xa2, 0x66, 0xb9, 0x1b, 0x00, 0x00, 0x00, 0x0f, 0x32];
/** mov eax, cr0; xor eax, 50020h; mov cr0, eax; mov eax, cr4; xor eax, 8; mov cr4, eax: AM, WP, NE and DE, which nothing here follows */
const CONTROL = [
  ...[0x0f, 0x20, 0xc0, 0x66, 0x35, 0x20, 0x00, 0x05, 0x00, 0x0f, 0x22, 0xc0],
  ...[0x0f, 0x20, 0xe0, 0x66, 0x83, 0xf0, 0x08, 0x0f, 0x22, 0xe0],
];
/** mov eax, cr0; xor eax, 20000001h; mov cr0, eax, which #GP refuses: NW without CD. Its handler steps over it. */
const REFUSED = [0x0f, 0x20, 0xc0, 0x66, 0x35, 0x00, 0x00, 0x00, 0x20, 0x0f, 0x22, 0xc0];
/** mov eax, cr0; xor al, 1; mov cr0, eax; inc dword [7004h]; xor al, 1; mov cr0, eax: PE, with segments as they are */
const MODES = [
  ...[0x0f, 0x20, 0xc0, 0x34, 0x01, 0x0f, 0x22, 0xc0],
  ...[0x66, 0xff, 0x06, 0x04, 0x70, 0x34, 0x01, 0x0f, 0x22, 0xc0],
];
/** in al, 21h; xor al, 1; out 21h, al: the PIC in the kernel; out 80h, al: user space's */
const PORTS = [0xe4, 0x21, 0x34, 0x01, 0xe6, 0x21, 0xe6, 0x80];
/** add word [esp], 3; inc word [7000h]; iret */
const HANDLER = [0x67, 0x83, 0x04, 0x24, 0x03, 0xff, 0x06, 0x00, 0x70, 0xcf];
/** cli; mov word [4 * 13], handler; mov word [4 * 13 + 2], 0; mov edi, 300 */
const HANDLER_AT = 0x7d00;
const START = [
  ...[0xfa, 0xc7, 0x06, 0x34, 0x00, HANDLER_AT & 0xff, HANDLER_AT >> 8, 0xc7, 0x06, 0x36, 0x00, 0x00, 0x00],
  ...[0x66, 0xbf, 0x2c, 0x01, 0x00, 0x00],
];
const TURN = [...READS, ...CONTROL, ...MODES, ...REFUSED, ...PORTS, 0x66, 0x4f];
/** … dec edi; jnz again; mov al, 0; out 0f4h, al; hlt */
const CODE = [...START, ...TURN, 0x75, -(TURN.length + 2) & 0xff, 0xb0, 0x00, 0xe6, 0xf4, 0xf4];
const LOOPS = 300;

/** mov cr0, eax; inc dword [401000h]; mov cr0, ebx; dec ecx; jnz; inc dword [401000h]: a page for reading, and WP is clear but for the last. */
const INCREMENT = [0xff, 0x05, 0x00, 0x10, 0x40, 0x00];
const PROTECTED = [0x0f, 0x22, 0xc0, ...INCREMENT, 0x0f, 0x22, 0xc3, 0x49, 0x75, 0xf1, ...INCREMENT];
const PG_PE = 0x8000_0011n;
const WP = 0x1_0000n;
/** Paged 32-bit code at 7c00h, behind `jmp $`. */
async function runProtected(backend: Backend, slice: number, traced: boolean): Promise<unknown> {
  const sector = new Uint8Array(512);
  sector.set([0xeb, 0xfe, ...PROTECTED]);
  sector.set([0x55, 0xaa], 510);
  const machine = await createMachine({ backend, image: bootSector(sector, 'protected'), memory: 2 ** 23 });
  machine.runSlice(1000);
  const { vm } = machine;
  const [vcpu] = vm.vcpus;
  vm.writeGuest(0x8000, Uint8Array.of(0x03, 0x90, 0, 0, 0x03, 0xa0, 0, 0));
  for (let n = 0; n < 1024; n++) {
    vm.writeGuest(0x9000 + n * 4, Uint8Array.of(0x03, (n << 4) & 0xff, n >> 4, 0));
    vm.writeGuest(0xa000 + n * 4, Uint8Array.of(n === 1 ? 0x01 : 0x03, (n << 4) & 0xff, 0x40 | (n >> 4), 0));
  }
  const flat = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, db: 1, s: 1, l: 0, g: 1, avl: 0, unusable: 0 };
  const data = { ...flat, selector: 16, type: 3 };
  const sregs = { ...vcpu.getSregs(), cr0: PG_PE | WP, cr3: 0x8000n, cs: { ...flat, selector: 8, type: 11 } };
  vcpu.setSregs({ ...sregs, ds: data, es: data, ss: data });
  vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x7c02n, rax: PG_PE, rbx: PG_PE | WP, rcx: BigInt(LOOPS), rflags: 2n });
  let exits = 0;
  if (traced) machine.kvm.on('kvm_exit', () => exits++);
  let stop = machine.runSlice(slice);
  while (stop === null || stop.reason === 'budget') stop = machine.runSlice(slice);
  if (traced) expect(exits).toBeGreaterThan(0);
  return { stop, tick: machine.kvm.now(), count: vm.readGuestValue(0x401000, 4) };
}
function image(): ReturnType<typeof bootSector> {
  const sector = new Uint8Array(512);
  sector.set(CODE);
  sector.set(HANDLER, HANDLER_AT - 0x7c00);
  sector.set([0x55, 0xaa], 510);
  return bootSector(sector, 'fastpath');
}

async function run(backend: Backend, slice: number, traced: boolean): Promise<unknown> {
  const machine = await createMachine({ backend, image: image(), memory: 2 ** 21 });
  let exits = 0;
  if (traced) machine.kvm.on('kvm_exit', () => exits++);
  let stop = machine.runSlice(slice);
  while (stop === null || stop.reason === 'budget') stop = machine.runSlice(slice);
  if (traced) expect(exits).toBeGreaterThanOrEqual(7 * LOOPS);
  const [vcpu] = machine.vm.vcpus;
  const refused = machine.vm.readGuestValue(0x7000, 2);
  expect(machine.vm.readGuestValue(0x7004, 4)).toBe(BigInt(LOOPS));
  const { kvm } = machine;
  // When the run loop last looked at the clock is its own business.
  const { progress: _, ...saved } = vcpu.save();
  const memory = createHash('sha256').update(kvm.memory.readBytes(0, kvm.memory.size)).digest('hex');
  return { stop, tick: kvm.now(), refused, regs: vcpu.getRegs(), sregs: vcpu.getSregs(), saved, memory };
}

describe.each([
  ['svm', svm],
  ['svm without nested paging', () => svm({ npt: false })],
  ['vmx', vmx],
] as const)('%s', (_name, vendor) => {
  test('a traced run, a run in small slices and a plain one end alike', async () => {
    const plain = await run(vendor(), 1_000_000, false);
    expect(plain).toMatchObject({ refused: BigInt(LOOPS), regs: { rdi: 0n } });
    expect(await run(vendor(), 1_000_000, true)).toEqual(plain);
    expect(await run(vendor(), 7, false)).toEqual(plain);
  });
  test('CR0.WP protects pages from the supervisor whatever way a write of it takes', async () => {
    const plain = await runProtected(vendor(), 1_000_000, false);
    expect(plain).toMatchObject({ stop: { reason: 'shutdown' }, count: BigInt(LOOPS) });
    expect(await runProtected(vendor(), 1_000_000, true)).toEqual(plain);
    expect(await runProtected(vendor(), 3, false)).toEqual(plain);
  });
  test('a wrapper of setCr0 gets every write to see', async () => {
    let seen = 0;
    const ops = (base: KvmX86Ops): Partial<KvmX86Ops> => ({
      setCr0: (vcpu, cr0) => {
        seen++;
        base.setCr0(vcpu, cr0);
      },
    });
    await run(defineBackend({ name: 'wrapped', apiVersion: 1, extends: vendor(), ops }), 1_000_000, false);
    expect(seen).toBeGreaterThanOrEqual(LOOPS);
  });
  test('a listener to modes hears of each switch, with CR0 as it was', async () => {
    const machine = await createMachine({ backend: vendor(), image: image(), memory: 2 ** 21 });
    const switches: string[] = [];
    machine.kvm.processor.onModeChange = ({ from, to, cr0 }) => {
      if (from.guest) switches.push(`${from.name} ${to.name} ${(cr0.before ^ cr0.after).toString(16)}`);
    };
    let stop = machine.runSlice(1_000_000);
    while (stop === null || stop.reason === 'budget') stop = machine.runSlice(1_000_000);
    expect(switches).toHaveLength(2 * LOOPS);
    expect(new Set(switches)).toEqual(new Set(['real protected16 1', 'protected16 real 1']));
  });
  test('a wrapper of vcpuRun gets every entry to see, and the machine ends as it does without one, its control block included', async () => {
    let seen = 0;
    const ops = (base: KvmX86Ops): Partial<KvmX86Ops> => ({
      vcpuRun: (vcpu, flags) => {
        seen++;
        return base.vcpuRun(vcpu, flags);
      },
    });
    const plain = await run(vendor(), 1_000_000, false);
    expect(
      await run(defineBackend({ name: 'wrapped', apiVersion: 1, extends: vendor(), ops }), 1_000_000, false),
    ).toEqual(plain);
    expect(seen).toBeGreaterThanOrEqual(7 * LOOPS);
  });
  test('a wrapper of handleExit gets every exit to see', async () => {
    let seen = 0;
    const ops = (base: KvmX86Ops): Partial<KvmX86Ops> => ({
      handleExit: (vcpu, fastpath) => {
        seen++;
        return base.handleExit(vcpu, fastpath);
      },
    });
    await run(defineBackend({ name: 'wrapped', apiVersion: 1, extends: vendor(), ops }), 1_000_000, false);
    expect(seen).toBeGreaterThanOrEqual(7 * LOOPS);
  });
});
