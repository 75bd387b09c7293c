/**
 * Guests for made-up programs: a VM with PIC, PIT and local APIC that finds the same memory and registers as the bare processor does, on one
 * engine under one backend.
 */
import { type Backend, fromSegment, Kvm, type KvmSregs, setFpu, type Vcpu, type Vm } from '@tskvm/core';
import { CPU_MODELS, createProcessor, type EngineName, PhysicalMemory, Processor, S, Seg } from '@tskvm/emulator';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { installInterpreter, installTranslator } from '../../../emulator/src/cpu/create.ts';
import type { FormOptions } from '../../../emulator/src/engines/interpret/cold-forms.ts';
import { MEMORY_SIZE, Place } from '../../../emulator/test/fuzz/layout.ts';
import { littleEndian, type Random } from '../../../emulator/test/fuzz/random.ts';
import type { Program } from '../../../emulator/test/fuzz/setup.ts';

/** Backends with their module parameters. */
export const BACKENDS = {
  svm: () => svm(),
  vmx: () => vmx(),
  'vmx,unrestrictedGuest=0': () => vmx({ unrestrictedGuest: false }),
  'svm,npt=0': () => svm({ npt: false }),
  'vmx,ept=0': () => vmx({ ept: false }),
  'svm,nrips=0': () => svm({ nrips: false }),
} as const satisfies Record<string, () => Backend>;
export type BackendName = keyof typeof BACKENDS;
export const BACKEND_NAMES = Object.keys(BACKENDS) as BackendName[];

/** Choices of one guest that its program does not make. */
export interface GuestSetup {
  readonly irqchip: boolean;
  /** The page of the device in the program's data (4Ah) is the local APIC's. */
  readonly apicPage: boolean;
  /** Ticks between interrupts of the local APIC's timer, 0: none. */
  readonly apicTimer: number;
  /** Reload value of the PIT's first channel, 0: not started. */
  readonly pit: number;
  /** First mask of the PIC. */
  readonly mask: number;
}
export function makeSetup(random: Random): GuestSetup {
  return {
    irqchip: random.chance(80),
    apicPage: random.chance(25),
    apicTimer: random.chance(40) ? random.between(20, 400) : 0,
    pit: random.chance(50) ? random.between(1, 4) : 0,
    mask: random.pick([0, 0, 0xfe, 0xfc, 0xff]),
  };
}

/** Forms of instructions get handlers after a few runs. */
const SOON: FormOptions = { usual: false, runs: 2, gather: 3, ticksEach: 1, burst: 64 };

/** A kernel on one engine; its VMs come and go. Translate samples as densely as it can, with handlers for all that it meets. */
export function fuzzKvm(backend: BackendName, engine: EngineName): Promise<Kvm> {
  return Kvm.create(BACKENDS[backend](), {
    memory: 4 << 20,
    processor: async (memory, model, options) => {
      const cpu = await createProcessor(memory, model, { ...options, engine: 'evaluate' });
      if (engine === 'translate') installTranslator(cpu, { sample: 80, hot: 1 });
      if (engine === 'interpret') installInterpreter(cpu, SOON);
      return cpu;
    },
  });
}

const PROLOGUE = 0x8000;
const DONE_PORT = 0xf1;
/** Real-mode code: OUT to the PICs (vectors 20h and 28h, automatic EOI) and the PIT; OUT F1h. */
function prologue({ mask, pit }: GuestSetup): number[] {
  const out = (port: number, value: number): number[] => [0xb0, value, 0xe6, port];
  const pic = (port: number, vector: number, line: number): number[] =>
    [0x11, vector, line, 3].flatMap((word, n) => out(n === 0 ? port : port + 1, word));
  const start = pit === 0 ? [] : [...out(0x43, 0x34), ...out(0x40, pit), ...out(0x40, 0)];
  return [
    ...pic(0x20, 0x20, 4),
    ...pic(0xa0, 0x28, 2),
    ...out(0x21, mask),
    ...out(0xa1, 0),
    ...start,
    ...out(DONE_PORT, 0),
  ];
}

function runPrologue(vm: Vm, vcpu: Vcpu, setup: GuestSetup): void {
  vm.writeGuest(PROLOGUE, Uint8Array.from(prologue(setup)));
  const sregs = vcpu.getSregs();
  vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: 0n, selector: 0 } });
  vcpu.setRegs({ ...vcpu.getRegs(), rip: BigInt(PROLOGUE) });
  for (;;) {
    const exit = vcpu.run({ budget: 1000 });
    if (exit.reason === 'io' && exit.port === DONE_PORT) return;
    if (exit.reason !== 'io') throw new Error(`the prologue ends with ${exit.reason}`);
  }
}

const scratch = new Map<string, Processor>();
/** The processor on which a program's registers are made up before they go into a vCPU. */
function scratchProcessor(vendor: 'amd' | 'intel'): Processor {
  let cpu = scratch.get(vendor);
  if (cpu === undefined) {
    const model = vendor === 'amd' ? CPU_MODELS.epyc! : CPU_MODELS.xeon!;
    scratch.set(vendor, (cpu = new Processor({ memory: new PhysicalMemory(MEMORY_SIZE), model })));
  }
  return cpu;
}

const GPRS = ['rax', 'rcx', 'rdx', 'rbx', 'rsp', 'rbp', 'rsi', 'rdi'] as const;
const WIDE = ['r8', 'r9', 'r10', 'r11', 'r12', 'r13', 'r14', 'r15'] as const;
const MSRS = [
  [0xc0000081, S.star],
  [0xc0000082, S.lstar],
  [0xc0000083, S.cstar],
  [0xc0000084, S.sfmask],
  [0x174, S.sysenterCs],
  [0x175, S.sysenterEsp],
  [0x176, S.sysenterEip],
] as const;

function sregsOf({ state }: Processor, before: KvmSregs): KvmSregs {
  const segment = (seg: Parameters<typeof state.getSegment>[0]) => fromSegment(state.getSegment(seg));
  const { cr0, cr2, cr3, cr4, cr8, efer } = state;
  return {
    ...before,
    ...{ cr0, cr2, cr3, cr4, cr8, efer },
    ...{ cs: segment(Seg.CS), ss: segment(Seg.SS), ds: segment(Seg.DS), es: segment(Seg.ES) },
    ...{ fs: segment(Seg.FS), gs: segment(Seg.GS), tr: segment(Seg.TR), ldt: segment(Seg.LDTR) },
    gdt: state.getTable('gdtr'),
    idt: state.getTable('idtr'),
  };
}

/** Brings a program's registers into a vCPU by KVM's own interface. */
function setRegisters(vcpu: Vcpu, program: Program): void {
  const cpu = scratchProcessor(vcpu.kvm.model.vendor);
  program.enter(cpu);
  const { state } = cpu;
  const regs = vcpu.getRegs();
  [...GPRS, ...WIDE].forEach((name, n) => {
    regs[name] = state.gpr[n]!;
  });
  vcpu.setSregs(sregsOf(cpu, vcpu.getSregs()));
  vcpu.setRegs({ ...regs, rip: state.rip, rflags: state.rflags });
  for (const [index, at] of MSRS) vcpu.setMsr(index, state.get64(at));
  vcpu.setXcrs({ xcr0: state.get64(S.xcr0) });
  setFpu(vcpu, state.u8.slice(S.ymm, S.mxcsr + 4));
  const db = [0, 1, 2, 3].map((n) => state.get64(S.dr0 + n * 8)) as [bigint, bigint, bigint, bigint];
  vcpu.setDebugregs({ db, dr6: state.get64(S.dr6), dr7: state.get64(S.dr7) });
}

/** The timer in one-shot or periodic mode with vector 2Fh, the APIC enabled by its spurious-interrupt register. */
function startApicTimer(vcpu: Vcpu, ticks: number): void {
  const regs = vcpu.getLapic();
  regs[0x0f] = 0x1ff;
  regs[0x3e] = 0xb;
  regs[0x32] = 0x2002f;
  regs[0x38] = ticks;
  vcpu.setLapic(regs);
}

const processorOf = (kvm: Kvm): Processor => kvm.processor as Processor;
/** Contexts of the TLB are numbered in the order in which guests, those before this one too, come to use them. */
function emptyTlb(kvm: Kvm): void {
  const { tlb } = processorOf(kvm).access;
  const { contexts, entries } = tlb.save();
  tlb.load({ contexts: contexts.slice(0, 1), entries: entries.fill(0) });
}
/** Entries of the TLB as far as the guest has made them: their places, addresses, contexts, rights and sizes, not where the host has the page. */
export function tlbOf({ kvm }: Vcpu): string[] {
  const { contexts, entries } = processorOf(kvm).access.tlb.save();
  const words = new Uint32Array(entries.buffer);
  const found: string[] = [];
  for (let at = 0; at < words.length; at += 8) {
    if (words[at] === 0) continue;
    const { pcid, rights, pkru, pkrs } = contexts[words[at]! & 0xfff]!;
    const address = [words[at + 1]!, words[at]!, words[at + 7]! & 0xfff].map((word) => word.toString(16));
    found.push([at / 8, ...address, pcid, rights, pkru, pkrs].join(':'));
  }
  return found;
}

/** A VM as a program finds it, before anything of the program has run. */
export function openGuest(kvm: Kvm, setup: GuestSetup): Vcpu {
  emptyTlb(kvm);
  kvm.load({ version: 1, tick: 0, random: 0n, deliveredAt: -1, nsPerTick: kvm.nsPerTick });
  const vm = kvm.createVm();
  if (setup.irqchip) {
    vm.createIrqchip();
    vm.createPit2();
  }
  vm.setTssAddr(0xfffbd000);
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: MEMORY_SIZE });
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid(kvm.getSupportedCpuid());
  return vcpu;
}

/** Puts a program into it. */
export function startProgram(vcpu: Vcpu, setup: GuestSetup, program: Program): void {
  const { vm } = vcpu;
  runPrologue(vm, vcpu, setup);
  vm.writeGuest(0, program.image);
  if (setup.apicPage) vm.writeGuest(Place.pt + 0x4a * 8, Uint8Array.from(littleEndian(0xfee00007n, 8)));
  setRegisters(vcpu, program);
  if (setup.irqchip && setup.apicTimer !== 0) startApicTimer(vcpu, setup.apicTimer);
}
