/** What a linear address may be and who may use its page: LA57, LAM, protection keys of user and supervisor pages. On every engine. */
import { describe, expect, it } from 'vitest';
import { AccessKind } from '../memory/paging.ts';
import { CR3, CR4, Vector } from '../state-layout.ts';
import { TestLayout, TestMachine, type TestMachineOptions } from '../testing/index.ts';
import { testModel } from '../testing/model.ts';

const ENGINES = ['evaluate', 'interpret', 'translate'] as const;
type Features = Parameters<typeof testModel>[1];
const machineWith = (add: NonNullable<Features>['add'], options: TestMachineOptions = {}) =>
  new TestMachine({ ...options, model: testModel('intel', { add }) });

/** hlt as a handler; the frame on the stack tells the rest. */
const HANDLER = 0x20000;
/** Runs 64-bit code to HLT with a handler for one vector; the error code that it was entered with, or null. */
function errorCodeOf(
  machine: TestMachine,
  vector: number,
  code: readonly number[],
  prepare: () => void,
): bigint | null {
  machine.memory.write8(HANDLER, 0xf4);
  machine.load([...code, 0xf4], 'long');
  machine.setHandler(vector, HANDLER, 'long');
  prepare();
  machine.cpu.stateReplaced('test');
  expect(machine.go(1000)).toBe('halt');
  return machine.state.rip === BigInt(HANDLER + 1) ? machine.memory.read64(Number(machine.reg(4))) : null;
}
/** mov rax, [rbx]; mov [rbx], rax */
const READ = [0x48, 0x8b, 0x03];
const WRITE = [0x48, 0x89, 0x03];

/** The page at 200000h with this protection key, of the user or not. */
const keyed = (machine: TestMachine, key: number, user: boolean): void => {
  const entry = 0x200083n | (user ? 4n : 0n) | (BigInt(key) << 59n);
  machine.memory.write64(TestLayout.pageTables + 0x2000 + 8, entry);
  machine.state.gpr[3] = 0x200000n;
};
const P_PK = 0x21n;
const P_W_PK = 0x23n;

describe.each(ENGINES)('protection keys, %s', (engine) => {
  const run = (
    code: readonly number[],
    { pkru = 0, pkrs = 0, user = true, wp = true }: { pkru?: number; pkrs?: number; user?: boolean; wp?: boolean },
  ): bigint | null => {
    const machine = machineWith(['pku', 'pks'], { engine });
    return errorCodeOf(machine, Vector.PF, code, () => {
      keyed(machine, 3, user);
      machine.state.cr4 |= CR4.PKE | CR4.PKS;
      if (!wp) machine.state.cr0 &= ~0x10000n;
      machine.state.pkru = pkru;
      machine.state.pkrs = pkrs;
    });
  };
  it('AD forbids reads and writes of a user page, by the supervisor too', () => {
    expect(run(READ, { pkru: 1 << 6 })).toBe(P_PK);
    expect(run(WRITE, { pkru: 1 << 6 })).toBe(P_W_PK);
  });
  it('WD forbids writes, the supervisor only with CR0.WP', () => {
    expect(run(READ, { pkru: 2 << 6 })).toBeNull();
    expect(run(WRITE, { pkru: 2 << 6 })).toBe(P_W_PK);
    expect(run(WRITE, { pkru: 2 << 6, wp: false })).toBeNull();
  });
  it("another key's rights do not matter", () => {
    expect(run(WRITE, { pkru: 3 << 4 })).toBeNull();
  });
  it('PKRU is for user pages, IA32_PKRS for supervisor pages', () => {
    expect(run(READ, { pkru: 1 << 6, user: false })).toBeNull();
    expect(run(READ, { pkrs: 1 << 6, user: false })).toBe(P_PK);
    expect(run(READ, { pkrs: 1 << 6 })).toBeNull();
  });
  it('fetches are not subject to keys', () => {
    // jmp rbx
    const machine = machineWith(['pku'], { engine });
    const code = errorCodeOf(machine, Vector.PF, [0xff, 0xe3], () => {
      keyed(machine, 3, true);
      machine.memory.write8(0x200000, 0xf4);
      machine.state.cr4 |= CR4.PKE;
      machine.state.pkru = 1 << 6;
    });
    expect(code).toBeNull();
    expect(machine.state.rip).toBe(0x200001n);
  });
  it('wrpkru takes effect for the next access, and what was cached under other rights comes back', () => {
    const machine = machineWith(['pku'], { engine });
    // mov rax, [rbx]; xor ecx, ecx; xor edx, edx; mov eax, 40h; wrpkru; mov rax, [rbx]
    const code = [...READ, 0x31, 0xc9, 0x31, 0xd2, 0xb8, 0x40, 0, 0, 0, 0x0f, 0x01, 0xef, ...READ];
    const error = errorCodeOf(machine, Vector.PF, code, () => {
      keyed(machine, 3, true);
      machine.state.cr4 |= CR4.PKE;
    });
    expect(error).toBe(P_PK);
    expect(machine.state.pkru).toBe(0x40);
    machine.state.pkru = 0;
    expect(machine.cpu.access.read(0x200000, 0, 8, AccessKind.read)).toBe(0n);
  });
  it('rdpkru: PKRU in EAX, EDX 0', () => {
    const machine = machineWith(['pku'], { engine });
    // xor ecx, ecx; rdpkru
    machine.load([0x31, 0xc9, 0x0f, 0x01, 0xee, 0xf4], 'long');
    machine.state.cr4 |= CR4.PKE;
    machine.state.pkru = 0x55555554;
    machine.state.gpr[2] = -1n;
    machine.go(100);
    expect([machine.reg(0), machine.reg(2)]).toEqual([0x55555554n, 0n]);
  });
  it('xsave and xrstor carry PKRU as component 9, at the place that leaf 0Dh tells', () => {
    const machine = machineWith(['pku', 'xsave'], { engine });
    // mov eax, 200h; xor edx, edx; xsave [rbx]; xor ecx, ecx; xor eax, eax; wrpkru; mov eax, 200h; xrstor [rbx]
    const save = [0xb8, 0, 2, 0, 0, 0x31, 0xd2, 0x0f, 0xae, 0x23];
    const restore = [0x31, 0xc9, 0x31, 0xc0, 0x0f, 0x01, 0xef, 0xb8, 0, 2, 0, 0, 0x0f, 0xae, 0x2b];
    machine.load([...save, ...restore, 0xf4], 'long');
    machine.state.cr4 |= CR4.PKE | CR4.OSXSAVE;
    expect(machine.cpu.ops.setXcr(0, 0x203n)).toBe(0);
    machine.state.pkru = 0x55555554;
    machine.state.gpr[3] = 0x30000n;
    expect(machine.go(100)).toBe('halt');
    const [size, offset] = machine.cpu.cpuid(0xd, 9);
    expect(size).toBe(8);
    expect(machine.memory.read64(0x30000 + offset)).toBe(0x55555554n);
    expect(machine.state.pkru).toBe(0x55555554);
  });
  it('rdpkru without CR4.PKE is #UD, with ECX other than 0 #GP(0)', () => {
    const machine = machineWith(['pku'], { engine });
    machine.load([0x0f, 0x01, 0xee], 'long');
    machine.setHandler(Vector.UD, HANDLER, 'long');
    machine.memory.write8(HANDLER, 0xf4);
    machine.go(10);
    expect(machine.state.rip).toBe(BigInt(HANDLER + 1));
    const other = machineWith(['pku'], { engine });
    const error = errorCodeOf(other, Vector.GP, [0x0f, 0x01, 0xee], () => {
      other.state.cr4 |= CR4.PKE;
      other.state.gpr[1] = 1n;
    });
    expect(error).toBe(0n);
  });
});

describe.each(ENGINES)('LA57, %s', (engine) => {
  /** A fifth level over the machine's tables: the whole of them at 0, and again at 1 << 48. */
  const five = (machine: TestMachine): void => {
    const top = 0x8000;
    machine.memory.write64(top, BigInt(TestLayout.pageTables) | 7n);
    machine.memory.write64(top + 8, BigInt(TestLayout.pageTables) | 7n);
    machine.state.cr3 = BigInt(top);
    machine.state.cr4 |= CR4.LA57;
  };
  it('five levels translate an address of 57 bits', () => {
    const machine = machineWith(['la57'], { engine });
    const error = errorCodeOf(machine, Vector.GP, READ, () => {
      five(machine);
      machine.memory.write64(0x200000, 0x1234n);
      machine.state.gpr[3] = (1n << 48n) | 0x200000n;
    });
    expect(error).toBeNull();
    expect(machine.reg(0)).toBe(0x1234n);
    expect(machine.cpu.mode().paging).toBe('5-level');
  });
  it('bit 56 must reach up to bit 63', () => {
    const machine = machineWith(['la57'], { engine });
    const error = errorCodeOf(machine, Vector.GP, READ, () => {
      five(machine);
      machine.state.gpr[3] = 1n << 56n;
    });
    expect(error).toBe(0n);
  });
  it('with four levels the same address is #GP(0)', () => {
    const machine = machineWith(['la57'], { engine });
    const error = errorCodeOf(machine, Vector.GP, READ, () => {
      machine.state.gpr[3] = (1n << 48n) | 0x200000n;
    });
    expect(error).toBe(0n);
  });
  it('CR4.LA57 does not change in long mode', () => {
    const machine = machineWith(['la57'], { engine });
    // mov rax, cr4; bts rax, 12; mov cr4, rax
    const code = [0x0f, 0x20, 0xe0, 0x48, 0x0f, 0xba, 0xe8, 12, 0x0f, 0x22, 0xe0];
    expect(errorCodeOf(machine, Vector.GP, code, () => {})).toBe(0n);
  });
  it('bases and MSRs go by the width of the processor, not by the paging mode', () => {
    // wrmsr KERNEL_GS_BASE = 1 << 48
    const code = [0xb9, 0x02, 0x01, 0, 0xc0, 0x31, 0xc0, 0xba, 0, 0, 1, 0, 0x0f, 0x30];
    expect(errorCodeOf(machineWith(['la57'], { engine }), Vector.GP, code, () => {})).toBeNull();
    expect(errorCodeOf(machineWith([], { engine }), Vector.GP, code, () => {})).toBe(0n);
  });
});

describe.each(ENGINES)('LAM, %s', (engine) => {
  const base = testModel('intel', { add: ['la57'] });
  const [, ebx, ecx, edx] = base.cpuid['7.0'];
  // Leaf 7 sub-leaf 1 EAX bit 26.
  const lamModel = { ...base, cpuid: { ...base.cpuid, '7.0': [1, ebx, ecx, edx], '7.1': [1 << 26, 0, 0, 0] } } as const;
  const read = (address: bigint, prepare: (machine: TestMachine) => void, code = READ): bigint | null => {
    const machine = new TestMachine({ engine, model: lamModel });
    return errorCodeOf(machine, Vector.GP, code, () => {
      machine.memory.write64(TestLayout.pageTables + 0xff8, machine.memory.read64(TestLayout.pageTables));
      machine.state.gpr[3] = address;
      prepare(machine);
    });
  };
  const user48 = (machine: TestMachine): void => {
    machine.state.cr3 |= CR3.LAM_U48;
  };
  const user57 = (machine: TestMachine): void => {
    machine.state.cr3 |= CR3.LAM_U57;
  };
  const supervisor = (machine: TestMachine): void => {
    machine.state.cr4 |= CR4.LAM_SUP;
  };
  const TAGGED = 0x7a5b_0000_0020_0000n;
  it('without it a tagged address is #GP(0)', () => {
    expect(read(TAGGED, () => {})).toBe(0n);
  });
  it('LAM_U48 masks bits 62:48 of user addresses', () => {
    expect(read(TAGGED, user48)).toBeNull();
    expect(read(TAGGED | (1n << 47n), user48)).toBe(0n);
  });
  it('LAM_U57 masks bits 62:57 only', () => {
    expect(read(0x7a00_0000_0020_0000n, user57)).toBeNull();
    expect(read(TAGGED, user57)).toBe(0n);
  });
  it('LAM_SUP masks bits 62:48 of supervisor addresses', () => {
    const address = 0x8a5b_ff80_0020_0000n;
    expect(read(address, () => {})).toBe(0n);
    expect(read(address, user48)).toBe(0n);
    expect(read(address, supervisor)).toBeNull();
  });
  it('writes are data accesses, too', () => {
    expect(read(TAGGED, user48, WRITE)).toBeNull();
  });
  it('a jump target is no data address', () => {
    // jmp rbx
    expect(read(TAGGED, user48, [0xff, 0xe3])).toBe(0n);
  });
  it('CR3 takes the LAM bits only from a processor that has them', () => {
    // mov rax, cr3; bts rax, 62; mov cr3, rax
    const code = [0x0f, 0x20, 0xd8, 0x48, 0x0f, 0xba, 0xe8, 62, 0x0f, 0x22, 0xd8];
    expect(read(0n, () => {}, code)).toBeNull();
    expect(errorCodeOf(machineWith([], { engine }), Vector.GP, code, () => {})).toBe(0n);
  });
});
