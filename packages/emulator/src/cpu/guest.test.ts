import { beforeEach, describe, expect, it, vi } from 'vitest';
import type { GuestMode, PendingEvent } from '../guest-mode.ts';
import { AccessKind } from '../memory/paging.ts';
import type { InstructionInfo } from '../ops.ts';
import { TestMachine, TestSelector } from '../testing/index.ts';

/** The smallest owner of a guest: identity nested tables with holes, and a list of what it recorded. */
class Owner implements GuestMode {
  asid = 1;
  nestedRoot = 0x1000;
  tscOffset = 1000n;
  interruptsExit = true;
  boundaryWork = false;
  boundaryNeedsNmis = false;
  deadline = Number.POSITIVE_INFINITY;
  readonly exits: string[] = [];
  readonly walks: string[] = [];
  /** Guest physical pages that are not there. */
  holes = new Set<number>();
  readOnly = new Set<number>();
  exceptions = new Set<number>();
  instructions = new Set<string>();
  shadows = new Map<number, bigint>();
  traps = false;
  wish: 'exit' | 'none' | number = 'none';
  private readonly event: () => PendingEvent | undefined;

  constructor(event: () => PendingEvent | undefined) {
    this.event = event;
  }
  #leave(what: string): true {
    const during = this.event();
    this.exits.push(during === undefined ? what : `${what} during ${during.kind} ${during.vector}`);
    return true;
  }
  intercept(info: InstructionInfo): boolean {
    return this.instructions.has(info.intercept) && this.#leave(info.intercept);
  }
  interceptException(vector: number, errorCode: number | undefined): boolean {
    return this.exceptions.has(vector) && this.#leave(`exception ${vector} ${errorCode ?? '-'}`);
  }
  interceptTaskSwitch(): boolean {
    return this.#leave('task switch');
  }
  interceptIo(io: { port: number; in: boolean; size: number }): boolean {
    return this.#leave(`${io.in ? 'in' : 'out'} ${io.port.toString(16)} ${io.size}`);
  }
  interceptMsr(index: number, write: boolean): boolean {
    return this.instructions.has('msr') && this.#leave(`${write ? 'wrmsr' : 'rdmsr'} ${index.toString(16)}`);
  }
  interceptShutdown(): boolean {
    return this.#leave('shutdown');
  }
  interceptInterrupt(): boolean {
    return this.#leave('interrupt');
  }
  interceptNmi(): boolean {
    return this.#leave('nmi');
  }
  interceptSmi(): boolean {
    return this.#leave('smi');
  }
  interceptInit(): boolean {
    return this.#leave('init');
  }
  interceptSipi(): boolean {
    return false;
  }
  boundary(): 'exit' | 'none' | number {
    if (this.wish === 'exit') this.#leave('window');
    const wish = this.wish;
    this.boundaryWork = false;
    return wish;
  }
  translate(gpa: number, access: { write: boolean; fetch: boolean; pageWalk: boolean }) {
    const page = gpa - (gpa % 4096);
    const kind = `${access.pageWalk ? 'walk ' : ''}${access.fetch ? 'fetch' : access.write ? 'write' : 'read'}`;
    this.walks.push(`${kind} ${gpa.toString(16)}`);
    const writable = !this.readOnly.has(page);
    if (this.holes.has(page) || (access.write && !writable)) {
      this.#leave(`nested ${kind} ${gpa.toString(16)}`);
      return undefined;
    }
    return { hpa: page, writable, executable: true, shift: 12 };
  }
  readCr(cr: number): bigint | undefined {
    return this.shadows.get(cr);
  }
  writeCr(): bigint | undefined {
    return undefined;
  }
  crWritten(cr: number, value: bigint): boolean {
    return this.traps && this.#leave(`cr${cr} = ${value.toString(16)}`);
  }
  crIllegal(): boolean {
    return false;
  }
}

const ENGINES = ['evaluate', 'interpret', 'translate'] as const;
let engine: (typeof ENGINES)[number] = 'evaluate';

function guest(code: number[], mode: 'real' | 'prot32' | 'long' = 'prot32') {
  const machine = new TestMachine({ engine });
  machine.load(code, mode);
  const owner = new Owner(() => machine.cpu.eventInDelivery);
  machine.cpu.guest = owner;
  machine.cpu.stateReplaced('vmentry');
  return { machine, owner };
}

describe.each(ENGINES)('in guest mode, by %s', (name) => {
  beforeEach(() => {
    engine = name;
  });

  it('an intercepted instruction leaves with RIP at it', () => {
    const { machine, owner } = guest([0x90, 0x0f, 0xa2, 0xf4]);
    owner.instructions.add('cpuid');
    expect(machine.go()).toBe('guest-exit');
    expect(owner.exits).toEqual(['cpuid']);
    expect(machine.state.rip).toBe(0x10001n);
    expect(machine.cpu.tick).toBe(1);
  });
  it('out dx, al and in eax, 60h ask for their port', () => {
    const { machine, owner } = guest([0xee]);
    machine.state.gpr[2] = 0x3f8n;
    machine.go();
    const input = guest([0xe5, 0x60]);
    input.machine.go();
    expect([...owner.exits, ...input.owner.exits]).toEqual(['out 3f8 1', 'in 60 4']);
  });
  it('a nested fault of a data access leaves before anything is changed', () => {
    // push eax to a hole
    const { machine, owner } = guest([0x50]);
    owner.holes.add(0x8000);
    expect(machine.go()).toBe('guest-exit');
    expect(owner.exits).toEqual(['nested write 8ffc']);
    expect(machine.reg(4)).toBe(0x9000n);
    expect(machine.state.rip).toBe(0x10000n);
  });
  it('pages of page tables are translated once, until guest-physical mappings are flushed', () => {
    const { machine, owner } = guest([0xf4], 'long');
    const { access } = machine.cpu;
    const walked = (low: number): number => {
      owner.walks.length = 0;
      access.translate(low, 0, AccessKind.read);
      return owner.walks.filter((walk) => walk.startsWith('walk')).length;
    };
    access.translate(0x20000, 0, AccessKind.read);
    expect(walked(0x21000)).toBe(0);
    machine.cpu.flushTlb({ kind: 'asid', asid: 1, keepGlobal: true });
    expect(walked(0x21000)).toBe(0);
    for (const what of [
      { kind: 'asid', asid: 1, keepGlobal: false },
      { kind: 'nested', root: 0x1000 },
      { kind: 'all' },
    ] as const) {
      machine.cpu.flushTlb(what);
      expect(walked(0x21000)).toBeGreaterThan(0);
    }
    owner.asid = 2;
    machine.cpu.stateReplaced('vmentry');
    expect(walked(0x21000)).toBeGreaterThan(0);
  });
  it("a nested fault of the guest's own table walk says so", () => {
    const { machine, owner } = guest([0x90], 'long');
    owner.holes.add(0x4000);
    machine.go();
    expect(owner.exits).toEqual(['nested walk read 4000']);
  });
  it('setting an A bit in a read-only table leaves as a write of the walk', () => {
    const { machine, owner } = guest([0x90], 'long');
    owner.readOnly.add(0x5000);
    machine.go();
    expect(owner.exits).toEqual(['nested walk write 5000']);
  });
  it('a write after a read of the same page asks the nested tables again only if it was read-only', () => {
    const { machine, owner } = guest([0xa0, 0, 0, 2, 0, 0xa2, 0, 0, 2, 0, 0x0f, 0xa2]);
    owner.instructions.add('cpuid');
    machine.go();
    expect(owner.walks.filter((walk) => walk.includes('20000'))).toEqual(['read 20000']);
    const again = guest([0xa0, 0, 0, 2, 0, 0xa2, 0, 0, 2, 0]);
    again.owner.readOnly.add(0x20000);
    again.machine.go();
    expect(again.owner.exits).toEqual(['nested write 20000']);
    expect(again.machine.state.rip).toBe(0x10005n);
  });
  it('an intercepted exception leaves without CR2 or a frame', () => {
    const { machine, owner } = guest([0x48, 0xa1, 0, 0, 0, 0x80, 0, 0, 0, 0], 'long');
    owner.exceptions.add(14);
    machine.go();
    expect(owner.exits).toEqual(['exception 14 0']);
    expect(machine.state.cr2).toBe(0n);
    expect(machine.reg(4)).toBe(0x9000n);
  });
  it('a nested fault while INT n is delivered reports the event', () => {
    const { machine, owner } = guest([0xcd, 0x80]);
    machine.setHandler(0x80, 0x20000, 'prot32');
    owner.holes.add(0x8000);
    machine.go();
    expect(owner.exits).toEqual(['nested write 8ffc during softint 128']);
    expect(machine.state.rip).toBe(0x10000n);
    expect(machine.state.rflags & 0x10000n).toBe(0n);
  });
  it('a nested fault while #UD is delivered leaves RF as the image would have had it', () => {
    const { machine, owner } = guest([0x0f, 0x0b]);
    machine.setHandler(6, 0x20000, 'prot32');
    owner.holes.add(0x8000);
    machine.go();
    expect(owner.exits).toEqual(['nested write 8ffc during exception 6']);
    expect([machine.state.rip, machine.state.rflags & 0x10000n]).toEqual([0x10000n, 0x10000n]);
  });
  it('#GP while #PF is delivered is asked for first, then becomes #DF', () => {
    const { machine, owner } = guest([0x48, 0xa1, 0, 0, 0, 0x80, 0, 0, 0, 0], 'long');
    owner.exceptions.add(8);
    machine.go();
    expect(owner.exits).toEqual(['exception 8 0 during exception 14']);
    const first = guest([0x48, 0xa1, 0, 0, 0, 0x80, 0, 0, 0, 0], 'long');
    first.owner.exceptions.add(13);
    first.machine.go();
    expect(first.owner.exits).toEqual([`exception 13 ${14 * 8 + 3} during exception 14`]);
  });
  it('a triple fault is an intercepted shutdown', () => {
    const { machine, owner } = guest([0x0f, 0x0b]);
    expect(machine.go()).toBe('guest-exit');
    expect(owner.exits).toEqual(['shutdown']);
    expect(machine.state.activity).toBe(0);
  });
  it('the deadline is a physical interrupt', () => {
    const { machine, owner } = guest([0xeb, 0xfe]);
    expect(machine.go(10)).toBe('guest-exit');
    expect(owner.exits).toEqual(['interrupt']);
    expect(machine.cpu.tick).toBe(10);
  });
  it('a halted guest jumps in time to the deadline', () => {
    const { machine, owner } = guest([0xf4]);
    expect(machine.go(500)).toBe('guest-exit');
    expect(owner.exits).toEqual(['interrupt']);
    expect(machine.cpu.tick).toBe(500);
    expect(machine.state.activity).toBe(1);
    expect(machine.state.rip).toBe(0x10001n);
  });
  it('a kick leaves at the next boundary, behind an interrupt shadow', () => {
    const { machine, owner } = guest([0xfb, 0x90, 0x90]);
    machine.go(1);
    owner.exits.length = 0;
    machine.cpu.deadline = Number.POSITIVE_INFINITY;
    machine.cpu.interruptPending = true;
    machine.cpu.run();
    expect(owner.exits).toEqual(['interrupt']);
    expect(machine.state.rip).toBe(0x10002n);
  });
  it('a window that the owner armed is asked at the boundary', () => {
    const { machine, owner } = guest([0x90, 0x90]);
    owner.boundaryWork = true;
    owner.wish = 'exit';
    machine.go();
    expect(owner.exits).toEqual(['window']);
    expect(machine.cpu.tick).toBe(0);
  });
  it('a window for NMIs opens behind IRET, and nothing is stepped up to there', () => {
    // A loop of 100 turns, then iretd to the code behind it.
    const code = [0xb9, 100, 0, 0, 0, 0x49, 0x75, 0xfd, 0xcf, 0x90, 0x90];
    const { machine, owner } = guest(code);
    const { cpu, state, memory } = machine;
    const step = vi.spyOn(cpu, 'step');
    [0x10009, TestSelector.code32, 2].forEach((value, n) => {
      memory.write32(0x9000 + n * 4, value);
    });
    state.gpr[4] = 0x9000n;
    state.nmiBlocked = true;
    owner.boundaryWork = true;
    owner.boundaryNeedsNmis = true;
    owner.boundary = () => {
      if (state.nmiBlocked) return 'none';
      owner.exits.push('window');
      return 'exit';
    };
    machine.go(10_000);
    expect(owner.exits).toEqual(['window']);
    expect([cpu.tick, state.rip, state.gpr[1]]).toEqual([202, 0x10009n, 0n]);
    if (cpu.engine !== null) expect(step).not.toHaveBeenCalled();
  });
  it('a virtual interrupt is delivered through the IDT', () => {
    const { machine, owner } = guest([0x90]);
    machine.setHandler(0x40, 0x20000, 'prot32');
    machine.memory.writeBytes(0x20000, Uint8Array.from([0x0f, 0xa2]));
    owner.instructions.add('cpuid');
    owner.boundaryWork = true;
    owner.wish = 0x40;
    machine.go();
    expect(owner.exits).toEqual(['cpuid']);
    expect(machine.state.rip).toBe(0x20000n);
  });
  it('MOV from CR0 and SMSW see the read shadow, the processor does not', () => {
    // mov eax, cr0; smsw bx; cpuid
    const { machine, owner } = guest([0x0f, 0x20, 0xc0, 0x0f, 0x01, 0xe3, 0x0f, 0xa2]);
    owner.instructions.add('cpuid');
    owner.shadows.set(0, 0x8n);
    machine.go();
    expect(machine.reg(0)).toBe(8n);
    expect(machine.reg(3)).toBe(8n);
    expect(machine.cpu.ops.getCr(0)).not.toBe(8n);
  });
  it('a write trap comes behind the instruction with the new value', () => {
    // mov cr0, eax
    const { machine, owner } = guest([0x0f, 0x22, 0xc0]);
    machine.state.gpr[0] = 0x31n;
    owner.traps = true;
    machine.go();
    expect(owner.exits).toEqual(['cr0 = 31']);
    expect(machine.state.rip).toBe(0x10003n);
    expect(machine.state.cr0).toBe(0x31n);
  });
  it('RDTSC adds the offset', () => {
    const { machine, owner } = guest([0x90, 0x0f, 0x31, 0x0f, 0xa2]);
    owner.instructions.add('cpuid');
    machine.go();
    expect(machine.reg(0)).toBe(1001n);
  });
  it('injected events go through the IDT; a fault on the way becomes an exception', () => {
    const { machine, owner } = guest([0x90]);
    machine.setHandler(0x21, 0x20000, 'prot32');
    const event = { kind: 'external', vector: 0x21, errorCode: undefined, instructionLength: 0 } as const;
    expect(machine.cpu.injectEvent(event)).toBe(true);
    expect(machine.state.rip).toBe(0x20000n);
    owner.exceptions.add(13);
    expect(machine.cpu.injectEvent({ ...event, vector: 0x22 })).toBe(false);
    expect(owner.exits).toEqual([`exception 13 ${0x22 * 8 + 3} during external 34`]);
  });
  it('a guest page and the same host page are cached apart', () => {
    const { machine, owner } = guest([0x90, 0x0f, 0xa2]);
    owner.instructions.add('cpuid');
    machine.go();
    machine.cpu.guest = null;
    expect(machine.cpu.access.tlb.lookup(0x10000, 0, machine.cpu.access.context(), 4)).toBe(-1);
  });
});
