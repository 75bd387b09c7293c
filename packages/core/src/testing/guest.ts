/** Tiny guests for tests of backends: a VM in a given mode with one piece of code, and what came of it. */
import { CR0, CR4, EFER } from '@tskvm/emulator';
import type { Backend } from '../backend.ts';
import { Kvm, type KvmOptions } from '../kvm.ts';
import type { KvmExit, KvmSegment } from '../types.ts';
import type { Vcpu } from '../vcpu.ts';
import type { KvmSregs } from '../vcpu-state.ts';
import type { Vm } from '../vm.ts';

export type GuestModeName = 'real' | 'protected' | 'paging32' | 'pae' | 'long' | 'compatibility';

/** Where things lie in the guest's memory. */
export const Place = {
  ivtGp: 13 * 4,
  handler: 0x600,
  gdt: 0x1000,
  idt32: 0x2000,
  idt64: 0x3000,
  code: 0x8000,
  stack: 0x7000,
  pml4: 0x10000,
  pdpt: 0x11000,
  pd: 0x12000,
  paePdpt: 0x13000,
  pd32: 0x14000,
} as const;
/** Port to which the #GP handler writes, and the one that ends good code. */
export const FAULT_PORT = 0xf0;
export const DONE_PORT = 0xf1;
export const MEMORY = 2 * 1024 * 1024;

/** out F1h, al; hlt. */
const EPILOGUE = [0xe6, DONE_PORT, 0xf4];
/** out F0h, al; hlt: the same bytes in 16-, 32- and 64-bit code. */
const HANDLER = [0xe6, FAULT_PORT, 0xf4];

const DESCRIPTORS = [
  0n,
  0x00cf9b000000ffffn, // 08 code, 32-bit
  0x00cf93000000ffffn, // 10 data
  0x00af9b000000ffffn, // 18 code, 64-bit
  0x00cf9b000000ffffn, // 20 code for compatibility mode
];

const segment = (selector: number, over: Partial<KvmSegment>): KvmSegment => ({
  base: 0n,
  limit: 0xffffffff,
  selector,
  type: 3,
  present: 1,
  dpl: 0,
  db: 1,
  s: 1,
  l: 0,
  g: 1,
  avl: 0,
  unusable: 0,
  ...over,
});
const realSegment = (type: number): KvmSegment => segment(0, { limit: 0xffff, db: 0, g: 0, type });

/** Lets a test change the registers before they are set. */
export interface GuestOptions {
  mode: GuestModeName;
  code: readonly number[];
  patch?: (sregs: KvmSregs) => void;
  /** After memory is laid out. */
  prepare?: (vm: Vm, vcpu: Vcpu) => void;
  irqchip?: boolean;
  kvm?: KvmOptions;
}

const gate = (handler: number, selector: number): bigint =>
  (BigInt(handler) & 0xffffn) | (BigInt(selector) << 16n) | (0x8en << 40n) | ((BigInt(handler) >> 16n) << 48n);

function layOut(vm: Vm, code: readonly number[]): void {
  const put64 = (at: number, value: bigint) => vm.writeGuestValue(at, value, 8);
  vm.writeGuest(Place.handler, Uint8Array.from(HANDLER));
  vm.writeGuest(Place.code, Uint8Array.from([...code, ...EPILOGUE]));
  vm.writeGuestValue(Place.ivtGp, BigInt(Place.handler), 4);
  DESCRIPTORS.forEach((value, i) => {
    put64(Place.gdt + 8 * i, value);
  });
  put64(Place.idt32 + 13 * 8, gate(Place.handler, 8));
  put64(Place.idt64 + 13 * 16, gate(Place.handler, 0x18));
  put64(Place.pml4, BigInt(Place.pdpt) | 3n);
  put64(Place.pdpt, BigInt(Place.pd) | 3n);
  put64(Place.pd, 0x83n);
  put64(Place.paePdpt, BigInt(Place.pd) | 1n);
  vm.writeGuestValue(Place.pd32, 0x83n, 4);
}

const { PE, ET, PG } = CR0;
const LONG = { cr0: PE | ET | PG, cr3: BigInt(Place.pml4), cr4: CR4.PAE, efer: EFER.LME | EFER.LMA };
const CONTROLS: Readonly<Record<GuestModeName, { cr0: bigint; cr3: bigint; cr4: bigint; efer: bigint }>> = {
  real: { cr0: ET, cr3: 0n, cr4: 0n, efer: 0n },
  protected: { cr0: PE | ET, cr3: 0n, cr4: 0n, efer: 0n },
  paging32: { cr0: PE | ET | PG, cr3: BigInt(Place.pd32), cr4: CR4.PSE, efer: 0n },
  pae: { cr0: PE | ET | PG, cr3: BigInt(Place.paePdpt), cr4: CR4.PAE, efer: 0n },
  long: LONG,
  compatibility: LONG,
};

function sregsFor(mode: GuestModeName, base: KvmSregs): KvmSregs {
  const out: KvmSregs = { ...base, ...CONTROLS[mode] };
  if (mode === 'real') {
    out.idt = { base: 0n, limit: 0x3ff };
    out.cs = realSegment(11);
    out.ss = out.ds = out.es = out.fs = out.gs = realSegment(3);
    return out;
  }
  out.cs =
    mode === 'long'
      ? segment(0x18, { type: 11, l: 1, db: 0 })
      : segment(mode === 'compatibility' ? 0x20 : 8, { type: 11 });
  out.ss = out.ds = out.es = out.fs = out.gs = segment(0x10, {});
  out.tr = segment(0, { type: 11, s: 0, db: 0, g: 0, limit: 0x67 });
  out.gdt = { base: BigInt(Place.gdt), limit: DESCRIPTORS.length * 8 - 1 };
  const wide = mode === 'long' || mode === 'compatibility';
  out.idt = { base: BigInt(wide ? Place.idt64 : Place.idt32), limit: wide ? 0xfff : 0x7ff };
  return out;
}

/** A guest that is ready to run. */
export interface Guest {
  kvm: Kvm;
  vm: Vm;
  vcpu: Vcpu;
}

/** Makes a Kvm with one VM, one vCPU and 2 MiB of memory in which `code` stands in the given mode. */
export async function makeGuest(backend: Backend, options: GuestOptions): Promise<Guest> {
  const kvm = await Kvm.create(backend, { memory: 16 * 1024 * 1024, ...options.kvm });
  const vm = kvm.createVm();
  if (options.irqchip) vm.createIrqchip();
  vm.setTssAddr(0xfffbd000);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: MEMORY });
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid(kvm.getSupportedCpuid());
  layOut(vm, options.code);
  const sregs = sregsFor(options.mode, vcpu.getSregs());
  options.patch?.(sregs);
  options.prepare?.(vm, vcpu);
  vcpu.setSregs(sregs);
  vcpu.setRegs({ ...vcpu.getRegs(), rip: BigInt(Place.code), rsp: BigInt(Place.stack), rflags: 2n });
  return { kvm, vm, vcpu };
}

export type Outcome = 'done' | 'fault' | KvmExit['reason'];

/** Runs until the guest says so, or something else happens. */
export function finish({ vcpu }: Guest, answer?: (exit: KvmExit) => void): Outcome {
  for (let i = 0; i < 1000; i++) {
    const exit = vcpu.run({ budget: 100000 });
    if (exit.reason === 'io' && exit.direction === 'out' && exit.port === DONE_PORT) return 'done';
    if (exit.reason === 'io' && exit.direction === 'out' && exit.port === FAULT_PORT) return 'fault';
    if (exit.reason !== 'io' && exit.reason !== 'mmio') return exit.reason;
    answer?.(exit);
  }
  return 'intr';
}

/** Little-endian bytes. */
export const bytes = (value: bigint, size: number): number[] =>
  Array.from({ length: size }, (_, i) => Number((value >> BigInt(8 * i)) & 0xffn));
/** mov eax, imm32; mov cr0, eax (32-bit code). */
export const movCr0 = (value: bigint): number[] => [0xb8, ...bytes(value, 4), 0x0f, 0x22, 0xc0];
/** mov rax, imm64; mov cr0, rax. */
export const movCr0Long = (value: bigint): number[] => [0x48, 0xb8, ...bytes(value, 8), 0x0f, 0x22, 0xc0];
