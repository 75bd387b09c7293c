/** Snapshots, debugging, events from outside and user-space interrupts. */
import { CR0, CR4, Flag } from '@tskvm/emulator';
import { describe, expect, test } from 'vitest';
import type { Backend } from '../backend.ts';
import type { TraceEvents } from '../trace.ts';
import type { KvmExit } from '../types.ts';
import { GuestDebug } from '../vcpu-state.ts';
import { bytes, DONE_PORT, finish, type Guest, type GuestOptions, makeGuest, movCr0, Place } from './guest.ts';

const portOf = (exit: KvmExit): number => (exit.reason === 'io' ? exit.port : -1);
/** Plain data: what a snapshot must survive. */
const throughStructuredClone = <T>(value: T): T => structuredClone(value);

export function stateSuite(make: () => Backend): void {
  snapshotSuite(make);
  ownedSuite(make);
  xsaveSuite(make);
  debugSuite(make);
  outsideSuite(make);
  traceSuite(make);
}

const AREA = 0x6000;
/** mov eax, 7; xor edx, edx; xor ecx, ecx; xsetbv; fld1; fldpi; pcmpeqd xmm3, xmm3; vinsertf128 ymm4, ymm4, xmm3, 1; xsave64 [AREA]. */
const XSAVE_CODE = [
  ...[0xb8, 7, 0, 0, 0, 0x31, 0xd2, 0x31, 0xc9, 0x0f, 0x01, 0xd1, 0xd9, 0xe8, 0xd9, 0xeb, 0x66, 0x0f, 0x76, 0xdb],
  ...[0xc4, 0xe3, 0x5d, 0x18, 0xe3, 1, 0x48, 0x0f, 0xae, 0x24, 0x25, 0, 0x60, 0, 0],
];

function xsaveSuite(make: () => Backend): void {
  const guestWith = (code: readonly number[]): Promise<Guest> =>
    makeGuest(make(), {
      mode: 'long',
      code,
      patch: (sregs) => {
        sregs.cr4 |= CR4.OSFXSR | CR4.OSXSAVE;
      },
    });
  const changed = (area: Uint8Array, at: number, value: number): Uint8Array => {
    const copy = area.slice();
    copy[at] = value;
    return copy;
  };

  describe('KVM_GET_XSAVE and KVM_SET_XSAVE, KVM_GET_FPU and KVM_SET_FPU', () => {
    test('give what XSAVE writes in the guest', async () => {
      const { vm, vcpu } = await guestWith(XSAVE_CODE);
      expect(portOf(vcpu.run({ budget: 1000 }))).toBe(DONE_PORT);
      const area = vcpu.getXsave();
      expect(area.length).toBe(4096);
      expect(area.subarray(0, 832)).toEqual(vm.readGuest(AREA, 832));
      expect(area[512]).toBe(7);
    });
    test('one vCPU takes what another gave, also on the processor', async () => {
      const first = await guestWith(XSAVE_CODE);
      first.vcpu.run({ budget: 1000 });
      const second = await guestWith([]);
      second.vcpu.run({ budget: 1000 });
      const area = first.vcpu.getXsave();
      second.vcpu.setXsave(area);
      expect(second.vcpu.getXsave()).toEqual(area);
      second.vcpu.setXsave(changed(area, 512, 1));
      const x87 = second.vcpu.getXsave();
      expect([x87[512], x87[160 + 3 * 16], x87[32 + 9]]).toEqual([1, 0, area[32 + 9]]);
      second.vcpu.setXsave(new Uint8Array(4096));
      expect(second.vcpu.getXsave()).toEqual((await guestWith([])).vcpu.getXsave());
    });
    test.each([
      ['an unknown component', 512, 8, /0x8/],
      ['the compacted format', 527, 0x80, /XCOMP_BV/],
      ['bytes of the header that must be 0', 540, 1, /must be 0/],
      ['reserved bits of MXCSR', 26, 1, /MXCSR/],
    ])('refuse %s', async (_what, at, value, message) => {
      const { vcpu } = await guestWith(XSAVE_CODE);
      vcpu.run({ budget: 1000 });
      const before = vcpu.getXsave();
      expect(() => vcpu.setXsave(changed(before, at, value))).toThrow(message);
      expect(() => vcpu.setXsave(before.subarray(0, 576))).toThrow(/4096/);
      expect(vcpu.getXsave()).toEqual(before);
    });
    test('struct kvm_fpu has 416 bytes and no MXCSR', async () => {
      const { vcpu } = await guestWith(XSAVE_CODE);
      vcpu.run({ budget: 1000 });
      const fpu = vcpu.getFpu();
      const view = new DataView(fpu.buffer);
      expect([fpu.length, view.getUint16(128, true), view.getUint16(130, true) >> 11, fpu[132]]).toEqual([
        416, 0x37f, 6, 0xc0,
      ]);
      expect([view.getUint16(8, true), view.getUint32(152 + 3 * 16, true), view.getUint32(408, true)]).toEqual([
        0x4000, 0xffffffff, 0,
      ]);
      const other = await guestWith([]);
      other.vcpu.setFpu(fpu);
      expect(other.vcpu.getFpu()).toEqual(fpu);
      expect(() => other.vcpu.setFpu(fpu.subarray(1))).toThrow(/416/);
    });
  });
}

function snapshotSuite(make: () => Backend): void {
  describe('save() and load()', () => {
    // in al, 81h; add [5000h], al; mov ebx, [fed00000h]; out F1h
    const code = [0xe4, 0x81, 0x00, 0x05, 0, 0x50, 0, 0, 0x8b, 0x1d, 0, 0, 0xd0, 0xfe];
    const twin = async (guest: Guest): Promise<Guest> => {
      const other = await makeGuest(make(), { mode: 'protected', code: [], kvm: { shuffleFrames: 9 } });
      other.vm.load(throughStructuredClone(guest.vm.save()));
      return other;
    };
    test('in the middle of an IN: the answer may come after the move', async () => {
      const guest = await makeGuest(make(), { mode: 'protected', code });
      expect(portOf(guest.vcpu.run({ budget: 1000 }))).toBe(0x81);
      const other = await twin(guest);
      const { exit } = other.vcpu;
      if (exit.reason === 'io') exit.data[0] = 0x21;
      expect(other.vcpu.run({ budget: 1000 }).reason).toBe('mmio');
      expect(other.vm.readGuestValue(0x5000, 1)).toBe(0x21n);
    });
    test('in the middle of an MMIO read', async () => {
      const guest = await makeGuest(make(), { mode: 'protected', code });
      guest.vcpu.run({ budget: 1000 });
      expect(guest.vcpu.run({ budget: 1000 }).reason).toBe('mmio');
      const other = await twin(guest);
      const { exit } = other.vcpu;
      if (exit.reason === 'mmio') exit.data.set([1, 2, 3, 4]);
      expect(portOf(other.vcpu.run({ budget: 1000 }))).toBe(DONE_PORT);
      expect(other.vcpu.getRegs().rbx).toBe(0x04030201n);
    });
    test('REP INS to MMIO: what was read ahead moves, too', async () => {
      // mov edi, fed00000h; mov ecx, 3; mov dx, 60h; rep insd
      const ins = [0xbf, 0, 0, 0xd0, 0xfe, 0xb9, 3, 0, 0, 0, 0x66, 0xba, 0x60, 0, 0xf3, 0x6d];
      let guest = await makeGuest(make(), { mode: 'protected', code: ins });
      const stored: number[] = [];
      for (let n = 0; n < 5; n++) {
        const next = guest.vcpu.run({ budget: 1000 });
        if (next.reason === 'io' && next.direction === 'in') next.data.set(next.data.map((_, at) => at));
        if (next.reason === 'mmio') stored.push(next.data[0]);
        if (n < 3) guest = await twin(guest);
      }
      expect(stored).toEqual([0, 4, 8]);
    });
    test('XCR0 is on the processor again: AVX exists as before', async () => {
      // xor ecx, ecx; mov eax, 7; xor edx, edx; xsetbv; out 80h, al; vpcmpeqd ymm0, ymm0, ymm0
      const avx = [0x31, 0xc9, 0xb8, 7, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x01, 0xd1, 0xe6, 0x80, 0xc5, 0xfd, 0x76, 0xc0];
      const patch: GuestOptions['patch'] = (sregs) => {
        sregs.cr4 |= CR4.OSFXSR | CR4.OSXSAVE;
      };
      const guest = await makeGuest(make(), { mode: 'long', code: avx, patch });
      expect(portOf(guest.vcpu.run({ budget: 1000 }))).toBe(0x80);
      const other = await twin(guest);
      expect(finish(other)).toBe('done');
      expect(other.vcpu.getXsave().slice(160, 168)).toEqual(new Uint8Array(8).fill(0xff));
    });
    test('an interrupt of KVM_INTERRUPT that no entry has taken moves, too', async () => {
      const guest = await makeGuest(make(), { mode: 'real', code: [0xe6, 0x80, 0xfb, 0x90] });
      guest.vm.writeGuest(0x700, Uint8Array.from([0xe6, 0x82, 0xf4]));
      guest.vm.writeGuestValue(0x40 * 4, 0x700n, 4);
      expect(portOf(guest.vcpu.run({ budget: 1000 }))).toBe(0x80);
      guest.vcpu.interrupt(0x40);
      const other = await twin(guest);
      const exits = [1, 2].map(() => other.vcpu.run({ budget: 1000 })).map(portOf);
      expect(exits).toContain(0x82);
    });
    test('a long-mode guest goes on as if nothing had happened', async () => {
      const loop = [0x48, 0xff, 0xc0, 0xe6, 0x80, 0xeb, 0xf9];
      const guest = await makeGuest(make(), { mode: 'long', code: loop });
      for (let i = 0; i < 3; i++) guest.vcpu.run({ budget: 1000 });
      const other = await twin(guest);
      for (const { vcpu } of [guest, other]) for (let i = 0; i < 2; i++) vcpu.run({ budget: 1000 });
      expect(other.vcpu.getRegs()).toEqual(guest.vcpu.getRegs());
      expect(other.vcpu.getSregs()).toEqual(guest.vcpu.getSregs());
      expect(other.vcpu.getRegs().rax).toBe(5n);
    });
  });
}

/** What a guest changes without an exit, and user space in between. */
function ownedSuite(make: () => Backend): void {
  describe('control registers that the guest brings back to what they were before user space changed them', () => {
    test('CLTS behind KVM_SET_SREGS with TS', async () => {
      // out 80h, al; clts; out 81h, al
      const { vcpu } = await makeGuest(make(), { mode: 'long', code: [0xe6, 0x80, 0x0f, 0x06, 0xe6, 0x81] });
      expect(portOf(vcpu.run({ budget: 1000 }))).toBe(0x80);
      const before = vcpu.getSregs();
      vcpu.setSregs({ ...before, cr0: before.cr0 | CR0.TS });
      expect(portOf(vcpu.run({ budget: 1000 }))).toBe(0x81);
      expect(vcpu.getSregs().cr0).toBe(before.cr0 & ~CR0.TS);
    });
    test('MOV to CR3 behind KVM_SET_SREGS with another one', async () => {
      // mov rax, cr3; out 80h, al; mov cr3, rax; out 81h, al
      const code = [0x0f, 0x20, 0xd8, 0xe6, 0x80, 0x0f, 0x22, 0xd8, 0xe6, 0x81];
      const { vm, vcpu } = await makeGuest(make(), { mode: 'long', code });
      expect(portOf(vcpu.run({ budget: 1000 }))).toBe(0x80);
      const before = vcpu.getSregs();
      vm.writeGuest(0x20000, vm.readGuest(Place.pml4, 4096));
      vcpu.setSregs({ ...before, cr3: 0x20000n });
      expect(portOf(vcpu.run({ budget: 1000 }))).toBe(0x81);
      expect(vcpu.getSregs().cr3).toBe(before.cr3);
    });
  });
}

function debugSuite(make: () => Backend): void {
  describe('KVM_SET_GUEST_DEBUG', () => {
    test('single steps, also over an instruction that KVM executes', async () => {
      // nop; cpuid; nop
      const { vcpu } = await makeGuest(make(), { mode: 'protected', code: [0x90, 0x0f, 0xa2, 0x90] });
      vcpu.setGuestDebug(GuestDebug.ENABLE | GuestDebug.SINGLESTEP);
      const places: number[] = [];
      for (let i = 0; i < 3; i++) {
        const exit = vcpu.run({ budget: 1000 });
        expect(exit).toMatchObject({ reason: 'debug', exception: 1 });
        if (exit.reason === 'debug') places.push(Number(exit.pc) - Place.code);
        vcpu.setGuestDebug(GuestDebug.ENABLE | GuestDebug.SINGLESTEP);
      }
      expect(places).toEqual([1, 3, 4]);
      expect(vcpu.getRegs().rflags & BigInt(Flag.TF)).toBe(0n);
    });
    test('int3 comes to user space while software breakpoints are on', async () => {
      const { vcpu } = await makeGuest(make(), { mode: 'protected', code: [0x90, 0xcc] });
      vcpu.setGuestDebug(GuestDebug.ENABLE | GuestDebug.USE_SW_BP);
      expect(vcpu.run({ budget: 1000 })).toMatchObject({ reason: 'debug', exception: 3, pc: BigInt(Place.code + 1) });
    });
    test('a hardware breakpoint of user space', async () => {
      const { vcpu } = await makeGuest(make(), { mode: 'protected', code: [0x90, 0x90, 0x90] });
      vcpu.setGuestDebug(GuestDebug.ENABLE | GuestDebug.USE_HW_BP, { db: [BigInt(Place.code + 2)], dr7: 0x401n });
      expect(vcpu.run({ budget: 1000 })).toMatchObject({ reason: 'debug', exception: 1, pc: BigInt(Place.code + 2) });
    });
  });
}

function outsideSuite(make: () => Backend): void {
  describe('user space as the interrupt controller', () => {
    const handler = 0x700;
    const options = (code: number[]) => ({
      mode: 'real' as const,
      code,
      prepare: (vm: Guest['vm']) => {
        vm.writeGuest(handler, Uint8Array.from([0xe6, 0x80, 0xcf]));
        vm.writeGuestValue(0x40 * 4, BigInt(handler), 4);
      },
    });
    test('KVM_INTERRUPT is delivered when IF is set', async () => {
      const { vcpu } = await makeGuest(make(), options([0xfb, 0x90, 0x90]));
      vcpu.interrupt(0x40);
      expect(portOf(vcpu.run({ budget: 1000 }))).toBe(0x80);
      expect(portOf(vcpu.run({ budget: 1000 }))).toBe(DONE_PORT);
    });
    test('request_interrupt_window: an exit as soon as an interrupt could be taken', async () => {
      const { vcpu } = await makeGuest(make(), options([0x90, 0xfb, 0x90, 0x90]));
      vcpu.runIo.requestInterruptWindow = true;
      expect(vcpu.run({ budget: 1000 })).toEqual({ reason: 'irq_window_open' });
      expect(vcpu.runIo.readyForInterruptInjection).toBe(true);
      expect(vcpu.runIo.ifFlag).toBe(true);
      expect(vcpu.getRegs().rip).toBe(BigInt(Place.code + 3));
    });
    test('an NMI that no entry has seen yet is among the events, and moves with them', async () => {
      const prepare = (vm: Guest['vm']): void => {
        vm.writeGuest(handler, Uint8Array.from([0xe6, 0x80, 0xcf]));
        vm.writeGuestValue(2 * 4, BigInt(handler), 4);
      };
      const code = [0x90, 0x90];
      const first = await makeGuest(make(), { mode: 'real', code, prepare });
      const second = await makeGuest(make(), { mode: 'real', code, prepare });
      first.vcpu.nmi();
      expect(first.vcpu.getVcpuEvents().nmi).toEqual({ injected: false, pending: 1, masked: false });
      second.vcpu.nmi();
      second.vm.load(throughStructuredClone(first.vm.save()));
      for (const { vcpu } of [first, second]) {
        expect(portOf(vcpu.run({ budget: 1000 }))).toBe(0x80);
        expect(portOf(vcpu.run({ budget: 1000 }))).toBe(DONE_PORT);
      }
    });
    test('immediate_exit finishes the pending access and runs nothing', async () => {
      const { vcpu } = await makeGuest(make(), { mode: 'protected', code: [0xe4, 0x81, 0x90] });
      const exit = vcpu.run({ budget: 1000 });
      if (exit.reason === 'io') exit.data[0] = 0x77;
      vcpu.runIo.immediateExit = true;
      expect(vcpu.run({ budget: 1000 })).toEqual({ reason: 'intr' });
      expect(vcpu.getRegs()).toMatchObject({ rax: 0x77n, rip: BigInt(Place.code + 2) });
    });
  });
}

function traceSuite(make: () => Backend): void {
  describe('tracing', () => {
    test('a CR0 write is a mode switch with its path, from KVM_RUN to the vendor', async () => {
      const guest = await makeGuest(make(), { mode: 'real', code: [0x66, ...movCr0(CR0.PE | CR0.ET)] });
      const switches: TraceEvents['mode_switch'][] = [];
      const crs: TraceEvents['kvm_cr'][] = [];
      guest.kvm.on('mode_switch', (event) => switches.push(event));
      guest.kvm.on('kvm_cr', (event) => crs.push(event));
      expect(finish(guest)).toBe('done');
      const last = switches.at(-1);
      expect([last?.from.name, last?.to.name]).toEqual(['real', 'protected16']);
      expect(last?.path[0]).toBe('kvmArchVcpuIoctlRun');
      expect(last?.path).toContain('kvmSetCr0');
      expect(last?.path).toContain('staticCall.setCr0');
      expect(last?.cr0.after).toBe(CR0.PE | CR0.ET);
    });
    test('callers of kvmSetCr0 are counted', async () => {
      const guest = await makeGuest(make(), {
        mode: 'protected',
        code: [...movCr0(CR0.PE | CR0.ET | CR0.MP), ...movCr0(CR0.PE | CR0.ET | CR0.WP), ...bytes(0x90n, 1)],
      });
      const tracer = guest.kvm.enableTracing();
      expect(finish(guest)).toBe('done');
      const edges = tracer.edges().filter((edge) => edge.callee === 'kvmSetCr0');
      expect(edges.reduce((n, edge) => n + edge.count, 0)).toBeGreaterThan(0);
    });
    test('without listeners nothing is kept', async () => {
      const guest = await makeGuest(make(), { mode: 'real', code: [0x90] });
      const off = guest.kvm.on('kvm_exit', () => undefined);
      expect(guest.kvm.tracer).not.toBeNull();
      off();
      expect(guest.kvm.tracer).toBeNull();
      expect(finish(guest)).toBe('done');
    });
  });
}
