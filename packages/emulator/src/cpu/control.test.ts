import { describe, expect, it } from 'vitest';
import { Tag } from '../memory/tlb.ts';
import { CR0, CR4, EFER, S } from '../state-layout.ts';
import { TestMachine, testModel } from '../testing/index.ts';

const machineIn = (mode: 'real' | 'prot32' | 'long', vendor: 'amd' | 'intel' = 'amd'): TestMachine => {
  const machine = new TestMachine({ vendor });
  machine.load([0xf4], mode);
  return machine;
};

describe('CR0', () => {
  const rows: [string, 'real' | 'prot32' | 'long', (machine: TestMachine) => bigint, boolean][] = [
    ['PG without PE', 'real', () => CR0.PG, true],
    ['NW without CD', 'real', () => CR0.NW, true],
    ['bit 32', 'long', (m) => m.state.cr0 | (1n << 32n), true],
    ['PE', 'real', () => CR0.PE, false],
    ['PG=0 in 64-bit code', 'long', (m) => m.state.cr0 & ~CR0.PG, true],
    ['an undefined bit is dropped', 'prot32', (m) => m.state.cr0 | (1n << 10n), false],
  ];
  it.each(rows)('%s', (_name, mode, value, refused) => {
    const machine = machineIn(mode);
    const before = machine.state.cr0;
    expect(machine.cpu.control.setCr0(value(machine))).toBe(refused);
    if (refused) expect(machine.state.cr0).toBe(before);
  });
  it('PG with LME needs PAE', () => {
    const machine = machineIn('prot32');
    machine.state.efer = EFER.LME;
    expect(machine.cpu.control.setCr0(machine.state.cr0 | CR0.PG)).toBe(true);
    machine.state.cr4 = CR4.PAE;
    expect(machine.cpu.control.setCr0(machine.state.cr0 | CR0.PG)).toBe(false);
    expect(machine.state.efer).toBe(EFER.LME | EFER.LMA);
  });
  it('PG with PAE loads the PDPTEs and refuses reserved bits in present ones', () => {
    const machine = machineIn('prot32');
    machine.state.cr4 = CR4.PAE;
    machine.state.cr3 = 0x8000n;
    machine.memory.write64(0x8000, 0x9001n);
    machine.memory.write64(0x8008, 0x9002n);
    expect(machine.cpu.control.setCr0(machine.state.cr0 | CR0.PG)).toBe(false);
    expect(machine.state.get64(S.pdpte)).toBe(0x9001n);
    machine.memory.write64(0x8008, 0x9003n);
    expect(machine.cpu.control.setCr3(0x8000n)).toBe(true);
    machine.memory.write64(0x8008, 1n << 50n);
    expect(machine.cpu.control.setCr3(0x8000n)).toBe(false);
    machine.memory.write64(0x8008, (1n << 50n) | 1n);
    expect(machine.cpu.control.setCr3(0x8000n)).toBe(true);
  });
});

describe('CR3 and CR4', () => {
  it('bits above MAXPHYADDR are refused in long mode and dropped elsewhere', () => {
    expect(machineIn('long').cpu.control.setCr3(1n << 46n)).toBe(true);
    expect(machineIn('prot32').cpu.control.setCr3(1n << 46n)).toBe(false);
  });
  it('PCIDE needs long mode and CR3[11:0] = 0', () => {
    expect(machineIn('prot32').cpu.control.setCr4(CR4.PCIDE)).toBe(true);
    const machine = machineIn('long');
    machine.state.cr3 |= 8n;
    expect(machine.cpu.control.setCr4(CR4.PAE | CR4.PCIDE)).toBe(true);
    machine.state.cr3 &= ~8n;
    expect(machine.cpu.control.setCr4(CR4.PAE | CR4.PCIDE)).toBe(false);
    expect(machine.cpu.control.setCr0(machine.state.cr0 & ~CR0.PG)).toBe(true);
  });
  it('PAE stays in long mode', () => {
    expect(machineIn('long').cpu.control.setCr4(0n)).toBe(true);
  });
  it('a bit whose feature the model lacks is refused', () => {
    const machine = new TestMachine({ model: testModel('amd', { drop: ['smap'] }) });
    machine.load([0xf4], 'long');
    expect(machine.cpu.control.setCr4(CR4.PAE | CR4.SMAP)).toBe(true);
    expect(machineIn('long').cpu.control.setCr4(CR4.PAE | CR4.SMAP)).toBe(false);
    expect(machineIn('long', 'amd').cpu.control.setCr4(CR4.PAE | CR4.VMXE)).toBe(true);
    expect(machineIn('long', 'intel').cpu.control.setCr4(CR4.PAE | CR4.VMXE)).toBe(false);
  });
});

describe('EFER', () => {
  it('LME cannot change while paging is on, LMA not at all', () => {
    const long = machineIn('long');
    expect(long.cpu.wrmsr(0xc0000080, EFER.LMA)).not.toBe(0);
    expect(long.cpu.wrmsr(0xc0000080, EFER.LME)).toBe(0);
    expect(long.state.efer).toBe(EFER.LME | EFER.LMA);
  });
  it('SVME exists on AMD only', () => {
    expect(machineIn('real', 'amd').cpu.wrmsr(0xc0000080, EFER.SVME)).toBe(0);
    expect(machineIn('real', 'intel').cpu.wrmsr(0xc0000080, EFER.SVME)).not.toBe(0);
  });
});

describe('what control registers flush', () => {
  /** A long-mode machine whose first page and a global one are cached. */
  const cached = (): { machine: TestMachine; hit: (linear: number) => boolean } => {
    const machine = machineIn('long');
    machine.memory.write64(0x5000 + 8, 0x200000n | 0x187n);
    machine.cpu.control.setCr4(CR4.PAE | CR4.PGE);
    const { access } = machine.cpu;
    access.read(0x1000, 0, 1, 0);
    access.read(0x200000, 0, 1, 0);
    return { machine, hit: (linear) => access.tlb.lookup(linear, 0, access.context(), Tag.read) >= 0 };
  };
  it('MOV CR3 keeps globals', () => {
    const { machine, hit } = cached();
    expect([hit(0x1000), hit(0x200000)]).toEqual([true, true]);
    machine.cpu.control.setCr3(machine.state.cr3);
    expect([hit(0x1000), hit(0x200000)]).toEqual([false, true]);
  });
  it('a stale entry lives until it is flushed', () => {
    const { machine } = cached();
    machine.memory.write64(0x5000, 0n);
    expect(machine.cpu.access.read(0x1000, 0, 1, 0)).toBe(0n);
    machine.cpu.ops.invlpg(0x1000n);
    expect(() => machine.cpu.access.read(0x1000, 0, 1, 0)).toThrow();
    expect(machine.cpu.exception).toMatchObject({ vector: 14, errorCode: 0, payload: 0x1000n });
  });
  it('toggling PGE flushes globals', () => {
    const { machine, hit } = cached();
    machine.cpu.control.setCr4(CR4.PAE);
    expect(hit(0x200000)).toBe(false);
  });
  it('with PCIDE, CR3 bit 63 keeps the new PCID and another PCID is never hit', () => {
    const { machine, hit } = cached();
    machine.cpu.control.setCr4(CR4.PAE | CR4.PCIDE);
    const root = machine.state.cr3;
    machine.cpu.control.setCr3(root | 1n);
    machine.cpu.access.read(0x1000, 0, 1, 0);
    machine.cpu.control.setCr3(root | 2n);
    expect(hit(0x1000)).toBe(false);
    machine.cpu.control.setCr3(root | 1n | (1n << 63n));
    expect(hit(0x1000)).toBe(true);
    machine.cpu.control.setCr3(root | 1n);
    expect(hit(0x1000)).toBe(false);
  });
});

describe('SMEP and SMAP on the processor', () => {
  it('SMAP stops a supervisor read of a user page unless AC is set; implicit reads in any case', () => {
    const machine = machineIn('long');
    machine.cpu.control.setCr4(CR4.PAE | CR4.SMAP);
    const read = (system: boolean) => () => machine.cpu.ops.readStd(0x1000n, 4, system);
    expect(read(false)).toThrow();
    expect(machine.cpu.exception).toMatchObject({ vector: 14, errorCode: 1 });
    machine.state.rflags |= 0x40000n;
    expect(read(false)()).toBe(0xffffn & 0n);
    expect(read(true)).toThrow();
  });
  it('SMEP stops a supervisor fetch of a user page', () => {
    const machine = machineIn('long');
    machine.cpu.control.setCr4(CR4.PAE | CR4.SMEP);
    // The second 2 MiB are the supervisor's.
    machine.memory.write64(0x5000 + 8, 0x200083n);
    machine.memory.write8(0x200000, 0xf4);
    machine.setHandler(14, 0x200000, 'long');
    expect(machine.go()).toBe('halt');
    expect(machine.state.cr2).toBe(0x10000n);
    expect(machine.memory.read64(Number(machine.reg(4)))).toBe(17n);
  });
});
