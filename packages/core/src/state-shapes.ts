/** The structures that user space hands in, and the parts of saved states, as tables of shapes. KVM: uapi/asm/kvm.h. */

import { FRESH_FPU } from './fpu.ts';
import {
  address,
  anything,
  bit,
  bytes,
  flag,
  i32,
  integer,
  list,
  MAX_TICK,
  nullable,
  oneOf,
  optional,
  type Shape,
  struct,
  text,
  tick,
  time,
  timeOrNever,
  times,
  tuple,
  u8,
  u16,
  u32,
  u64,
  uint,
  union,
  words,
} from './shape.ts';
import { type KvmSegment, MpState, Req } from './types.ts';

const fieldsOf = (names: string, shape: Shape): Record<string, Shape> =>
  Object.fromEntries(names.split(' ').map((name) => [name, shape]));
const version1 = { version: oneOf(1) };

/** struct kvm_regs. */
export const REGS = struct(fieldsOf('rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags', u64));
/** struct kvm_segment; each field as wide as its place in a descriptor. */
export const SEGMENT = struct({
  base: u64,
  limit: u32,
  selector: u16,
  type: uint(4),
  present: bit,
  dpl: uint(2),
  db: bit,
  s: bit,
  l: bit,
  g: bit,
  avl: bit,
  unusable: bit,
} satisfies Record<keyof KvmSegment, Shape>);
/** struct kvm_dtable. */
const DTABLE = struct({ base: u64, limit: u16 });
const SREGS_COMMON = {
  ...fieldsOf('cs ds es fs gs ss tr ldt', SEGMENT),
  ...fieldsOf('gdt idt', DTABLE),
  ...fieldsOf('cr0 cr2 cr3 cr4 cr8 efer apicBase', u64),
};
/** struct kvm_sregs; `interrupt`: a vector, or -1. */
export const SREGS = struct({ ...SREGS_COMMON, interrupt: integer(-1, 255) });
/** struct kvm_sregs2. */
export const SREGS2 = struct({ ...SREGS_COMMON, pdptrs: optional(times(4, u64)) });
/** struct kvm_vcpu_events. */
export const VCPU_EVENTS = struct({
  exception: struct({
    ...fieldsOf('injected pending hasErrorCode', flag),
    nr: u8,
    errorCode: u32,
    payload: optional(u64),
  }),
  interrupt: struct({ ...fieldsOf('injected soft', flag), nr: u8, shadow: uint(2) }),
  nmi: struct({ ...fieldsOf('injected masked', flag), pending: u8 }),
  sipiVector: u8,
  smi: struct(fieldsOf('smm pending smmInsideNmi latchedInit', flag)),
  tripleFaultPending: flag,
});
/** struct kvm_debugregs. */
export const DEBUGREGS = struct({ db: times(4, u64), dr6: u64, dr7: u64 });
/** DR0-3 and DR7 of struct kvm_guest_debug. */
export const GUEST_DEBUG_REGS = optional(struct({ db: list(u64, 4), dr7: u64 }));
/** struct kvm_cpuid2; that there are too many entries is a refusal of its own. */
export const CPUID = list(struct(fieldsOf('function index flags eax ebx ecx edx', u32)));
export const XCRS = struct({ xcr0: u64 });

const ROUTES = {
  irqchip: struct({ gsi: u32, irqchip: oneOf('pic-master', 'pic-slave', 'ioapic'), pin: integer(0, 23) }),
  msi: struct({ gsi: u32, address: u64, data: u32 }),
};
/** struct kvm_irq_routing; KVM_MAX_IRQ_ROUTES entries. */
export const ROUTING = list(union('type', ROUTES), 4096);

const PIO_SIZE = oneOf(1, 2, 4);
/** What REP INS reads ahead, at most. */
const PIO_BYTES = 1024;
const MSR_EXIT = struct({ index: u32, data: u64, error: u8, msrReason: u32 });
/** struct kvm_run's exit, by its reason. */
const EXIT = union('reason', {
  unknown: struct({ hardwareExitReason: u32 }),
  io: struct({
    direction: oneOf('in', 'out'),
    size: PIO_SIZE,
    port: u16,
    count: integer(1, PIO_BYTES),
    data: bytes(1, PIO_BYTES),
  }),
  mmio: struct({ physAddr: address, len: integer(1, 8), isWrite: flag, data: bytes(8, 8) }),
  exception: struct({ exception: u8, errorCode: u32 }),
  idle: struct({ idleUntil: timeOrNever }),
  shutdown: struct({ at: optional(struct({ cs: u16, rip: u64, cr0: u64 })) }),
  fail_entry: struct({ hardwareEntryFailureReason: u64, cpu: i32, failures: list(anything) }),
  internal_error: struct({
    suberror: u32,
    data: list(u64, 16),
    insnBytes: optional(bytes(0, 15)),
    detail: optional(text),
  }),
  debug: struct({ exception: u8, pc: u64, dr6: u64, dr7: u64 }),
  rdmsr: MSR_EXIT,
  wrmsr: MSR_EXIT,
  hypercall: struct({ nr: u64, args: list(u64, 6), ret: u64, longmode: flag }),
  system_event: struct({ type: u32, data: list(u64, 16) }),
  ioapic_eoi: struct({ vector: u8 }),
  ...Object.fromEntries(
    ['hlt', 'irq_window_open', 'set_tpr', 'ap_reset_hold', 'intr'].map((reason) => [reason, anything]),
  ),
});
const FAST_PIO = struct({ linearRip: u64, decode: optional(flag) });
/** Core's own kinds of pending work; a vendor's kinds check their data themselves. */
const COMPLETION_DATA: Readonly<Record<string, Shape>> = {
  fastPioIn: FAST_PIO,
  fastPioOut: FAST_PIO,
  emulatedMmio: struct({
    isWrite: flag,
    linear: u64,
    size: integer(1, 64),
    at: integer(0, 64),
    fragments: list(struct({ gpa: address, len: integer(1, 8), value: u64, done: optional(flag) }), 65),
  }),
};
const COMPLETION: Shape = (value, at) =>
  struct({ kind: text })(value, at) ??
  COMPLETION_DATA[(value as { kind: string }).kind]?.((value as { data: unknown }).data, `${at}.data`);

const LAPIC = struct({
  ...version1,
  regs: words(64, 64),
  timer: struct({ ...version1, tscDeadline: u64, deadline: timeOrNever }),
});
const SESSION = struct({
  ...version1,
  rip: optional(u64),
  bytes: bytes(0, 15),
  reads: list(struct({ kind: oneOf('memory', 'port'), address: u64, size: integer(0, 64), value: uintOfSize() }), 4096),
});
/** A value that the emulator has read, of up to 64 bytes. */
function uintOfSize(): Shape {
  return (value, at) =>
    typeof value === 'bigint' && value >= 0n && value >> 512n === 0n
      ? undefined
      : `${at} is not a value of at most 64 bytes`;
}

/** struct kvm_fpu and struct kvm_xsave. */
export const KVM_FPU = bytes(416, 416);
export const KVM_XSAVE = bytes(4096, 4096);
/** x87, SSE and AVX state in a saved vCPU: the state block from `S.ymm` to MXCSR. */
export const FPU_IMAGE = bytes(FRESH_FPU.length, FRESH_FPU.length);

/** A tick in the past, -1: there was none. */
const tickOrNone = integer(-1, MAX_TICK);

/** What Vcpu.save gives. */
export const VCPU_STATE = struct({
  ...version1,
  processor: struct({ model: text, vendor: oneOf('amd', 'intel'), cpuid: u32 }),
  vcpuId: u8,
  cpuid: CPUID,
  regs: REGS,
  sregs: SREGS2,
  events: VCPU_EVENTS,
  debugregs: DEBUGREGS,
  mpState: oneOf(...Object.values(MpState)),
  xcr0: u64,
  pkru: u32,
  fpu: FPU_IMAGE,
  msrs: list(tuple(u32, u64), 4096),
  stored: list(tuple(u32, u64), 4096),
  lapic: nullable(LAPIC),
  pendingApicEvents: uint(2),
  requests: list(oneOf(...Object.values(Req)), 64),
  exit: EXIT,
  completion: nullable(COMPLETION),
  pio: struct({ port: u16, in: flag, size: oneOf(0, 1, 2, 4), count: integer(0, PIO_BYTES) }),
  session: SESSION,
  tscOffset: u64,
  input: nullable(
    struct({ port: u16, size: PIO_SIZE, rip: u64, data: bytes(1, PIO_BYTES), at: integer(0, PIO_BYTES) }),
  ),
  externalVector: integer(-1, 255),
  progress: struct({ tick: tickOrNone, fruitless: u32 }),
});

const PIC_CHIP = struct({
  ...fieldsOf('lastIrr irr imr isr irqBase elcr elcrMask', u8),
  priorityAdd: uint(3),
  ...fieldsOf('readRegSelect poll specialMask autoEoi rotateOnAutoEoi specialFullyNested init4', flag),
  initState: uint(2),
});
const PIT_CHANNEL = struct({
  count: integer(1, 0x10000),
  latchedCount: u32,
  ...fieldsOf('status writeLatch', u8),
  ...fieldsOf('countLatched readState writeState rwMode', uint(3)),
  mode: integer(0, 5),
  ...fieldsOf('statusLatched bcd gate', flag),
  loadTime: time,
});
/** What Irqchip.save gives. */
const IRQCHIP_STATE = struct({
  ...version1,
  pic: struct({ ...version1, chips: times(2, PIC_CHIP), output: flag }),
  ioapic: struct({ ...version1, select: u8, id: u32, irr: i32, levels: i32, table: times(24, u64) }),
  pit: nullable(
    struct({
      ...version1,
      channels: times(3, PIT_CHANNEL),
      ...fieldsOf('speakerOn acknowledged', flag),
      nextEdge: timeOrNever,
      pending: u32,
    }),
  ),
  levels: list(tuple(u32, u32)),
  routing: ROUTING,
});
/** What Vm.save gives. */
export const VM_STATE = struct({
  ...version1,
  vcpus: list(VCPU_STATE, 255),
  irqchip: nullable(IRQCHIP_STATE),
  memory: list(struct({ id: u16, addressSpace: bit, bytes: bytes() })),
  nextVcpu: u8,
  disabledQuirks: u32,
});
/** What Kvm.save gives: ticks and what they last belong together. */
export const kvmState = (nsPerTick: number) =>
  struct({ ...version1, tick, random: u64, deliveredAt: tickOrNone, nsPerTick: oneOf(nsPerTick) });
