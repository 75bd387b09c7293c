import { describe, expect, it } from 'vitest';
import { X86Emul } from '../ops.ts';
import { Attrib, CR0, CR4, EFER, Seg, type Segment } from '../state-layout.ts';
import { MSR } from './common.ts';
import {
  buildSmmSaveMap32,
  buildSmmSaveMap64,
  emulatorLeaveSmm,
  enterSmmState,
  type LeaveSmmHost,
  rsmEnterProtectedMode,
  rsmLoadState32,
  rsmLoadState64,
  type SmmSource,
  type SmmTarget,
} from './smm.ts';
import { Sel, TestMachine } from './testing.ts';

/** The functions of an object: its data stays where it is. */
const methodsOf = <T extends object>(o: T): T =>
  Object.fromEntries(Object.entries(o).filter(([, value]) => typeof value === 'function')) as T;

/** A machine with SMBASE and shadow, and a log of its control register writes. */
const machine = (mode: 'prot32' | 'prot64' | 'real') => {
  const m = new TestMachine(mode);
  const writes: string[] = [];
  const setCr = m.setCr.bind(m);
  const extra = {
    smbase: 0x3_0000,
    shadow: 0,
    getSmbase: () => extra.smbase,
    setSmbase: (value: number) => {
      extra.smbase = value;
    },
    getInterruptShadow: () => extra.shadow,
    setInterruptShadow: (value: 0 | 1 | 2) => {
      extra.shadow = value;
    },
    setCr: (cr: number, value: bigint) => {
      writes.push(`cr${cr}=${value.toString(16)}`);
      return setCr(cr, value);
    },
  };
  const target: SmmSource & SmmTarget = Object.assign(m, methodsOf(extra));
  return { m, extra, target, writes };
};

const fill = (m: TestMachine): void => {
  for (let i = 0; i < 16; i++) m.gpr[i] = BigInt(0x1111 * (i + 1));
  m.rip = 0x1_2345n;
  m.rflags = 0x246n;
  m.dr[6] = 0xffff_0ff1n;
  m.dr[7] = 0x401n;
  m.cr[3] = 0x5000n;
  m.gdt = { base: 0x1000n, limit: 0xff };
  m.idt = { base: 0x2000n, limit: 0x7ff };
};
/** Reads at an offset as the layout tables give it: from SMBASE. */
const at = (map: Uint8Array, offset: number, size: 1 | 2 | 4 | 8): bigint => {
  const view = new DataView(map.buffer);
  const o = offset - 0xfe00;
  if (size === 8) return view.getBigUint64(o, true);
  return BigInt(size === 4 ? view.getUint32(o, true) : size === 2 ? view.getUint16(o, true) : view.getUint8(o));
};

describe('buildSmmSaveMap64', () => {
  it('puts every field where the layout has it', () => {
    const { m, extra, target } = machine('prot64');
    fill(m);
    extra.shadow = 1;
    const map = buildSmmSaveMap64(target);
    expect(map.length).toBe(512);
    expect(at(map, 0xfff8, 8)).toBe(0x1111n);
    expect(at(map, 0xff80, 8)).toBe(0x11110n);
    expect(at(map, 0xff78, 8)).toBe(0x1_2345n);
    expect(at(map, 0xff70, 8)).toBe(0x246n);
    expect(at(map, 0xff68, 8)).toBe(0xffff_0ff1n);
    expect(at(map, 0xff60, 8)).toBe(0x401n);
    expect([0xff58, 0xff50, 0xff48].map((o) => at(map, o, 8))).toEqual([m.cr[0], m.cr[3], m.cr[4]]);
    expect(at(map, 0xff00, 4)).toBe(0x3_0000n);
    expect(at(map, 0xfefc, 4)).toBe(0x2_0064n);
    expect(at(map, 0xfed0, 8)).toBe(EFER.LME | EFER.LMA | EFER.SCE);
    expect([at(map, 0xfe10, 2), at(map, 0xfe12, 2), at(map, 0xfe14, 4)]).toEqual([
      BigInt(Sel.long0),
      0xa09bn,
      0xffff_ffffn,
    ]);
    expect([at(map, 0xfe64, 4), at(map, 0xfe68, 8)]).toEqual([0xffn, 0x1000n]);
    expect(at(map, 0xfe90, 2)).toBe(BigInt(Sel.tss));
    expect(at(map, 0xfecb, 1)).toBe(2n);
  });
});

describe('buildSmmSaveMap32', () => {
  it('puts every field where the layout has it', () => {
    const { m, target } = machine('prot32');
    fill(m);
    const map = buildSmmSaveMap32(target);
    expect([0xfffc, 0xfff8, 0xfff4, 0xfff0].map((o) => at(map, o, 4))).toEqual([m.cr[0], 0x5000n, 0x246n, 0x1_2345n]);
    expect([0xffd0, 0xffd4, 0xffec].map((o) => at(map, o, 4))).toEqual([0x1111n, 0x2222n, 0x8888n]);
    expect(at(map, 0xffcc, 4)).toBe(0xffff_0ff1n);
    expect(at(map, 0xffac, 4)).toBe(BigInt(Sel.code0));
    expect([at(map, 0xff90, 4), at(map, 0xff94, 4)]).toEqual([0x00c0_9b00n, 0xffff_ffffn]);
    expect([at(map, 0xff54, 4), at(map, 0xff58, 4)]).toEqual([0x7ffn, 0x2000n]);
    expect(at(map, 0xfefc, 4)).toBe(0x2_0000n);
    expect(at(map, 0xfef8, 4)).toBe(0x3_0000n);
  });
});

describe('round trips', () => {
  it.each([
    ['64-bit', 'prot64', buildSmmSaveMap64, rsmLoadState64],
    ['32-bit', 'prot32', buildSmmSaveMap32, rsmLoadState32],
  ] as const)('%s: RSM gives back what the SMI saved', (_, mode, build, load) => {
    const before = machine(mode);
    fill(before.m);
    before.m.segments[Seg.GS] = { selector: 0, attrib: Attrib.unusable, limit: 0, base: 0n };
    before.extra.shadow = 2;
    const map = build(before.target);
    const after = machine('real');
    expect(load(after.target, map)).toBe(X86Emul.CONTINUE);
    const registers = mode === 'prot64' ? 16 : 8;
    expect(after.m.gpr.slice(0, registers)).toEqual(before.m.gpr.slice(0, registers));
    expect([after.m.rip, after.m.rflags, after.m.dr[6], after.m.dr[7]]).toEqual([
      before.m.rip,
      before.m.rflags,
      before.m.dr[6],
      before.m.dr[7],
    ]);
    expect(after.m.cr).toEqual(before.m.cr);
    expect([after.m.gdt, after.m.idt]).toEqual([before.m.gdt, before.m.idt]);
    expect(after.m.segments.map((s: Segment) => [s.selector, s.limit, s.base])).toEqual(
      before.m.segments.map((s: Segment) => [s.selector, s.limit, s.base]),
    );
    expect(after.m.segments[Seg.GS]?.attrib).toBe(Attrib.unusable);
    expect(after.m.msrs.get(MSR.EFER)).toBe(before.m.msrs.get(MSR.EFER));
    expect(after.extra.shadow).toBe(2);
  });
});

describe('rsmEnterProtectedMode', () => {
  it('sets PCIDE after CR0, and the PCID last', () => {
    const { target, writes } = machine('real');
    rsmEnterProtectedMode(target, CR0.PE | CR0.PG, 0x5007n, CR4.PAE | CR4.PCIDE);
    expect(writes).toEqual(['cr3=5000', 'cr4=20', 'cr0=80000001', 'cr4=20020', 'cr3=5007']);
  });
  it('without PCIDE writes each register once', () => {
    const { target, writes } = machine('real');
    rsmEnterProtectedMode(target, CR0.PE, 0x5007n, 0n);
    expect(writes).toEqual(['cr3=5007', 'cr4=0', 'cr0=1']);
  });
  it.each([0, 3, 4])('a refused CR%i makes it unhandleable', (cr) => {
    const { m, target } = machine('real');
    m.refusedCrs.add(cr);
    expect(rsmEnterProtectedMode(target, CR0.PE, 0n, 0n)).toBe(X86Emul.UNHANDLEABLE);
  });
});

it('enterSmmState gives the state of the SMI handler', () => {
  const { m } = machine('prot64');
  const cr0 = CR0.PE | CR0.PG | CR0.ET | CR0.CD | CR0.TS;
  const registers: Record<string, bigint> = {};
  enterSmmState(
    {
      setRip: (v) => m.setRip(v),
      setRflags: (v) => m.setRflags(v),
      setSegment: (seg, s) => m.setSegment(seg, s),
      setIdt: (v) => m.setIdt(v),
      setCr0: (v) => {
        registers['cr0'] = v;
      },
      setCr4: (v) => {
        registers['cr4'] = v;
      },
      setDr7: (v) => {
        registers['dr7'] = v;
      },
      setEfer: (v) => {
        registers['efer'] = v;
      },
    },
    0x3_0000,
    cr0,
  );
  expect(registers).toEqual({ cr0: CR0.ET | CR0.CD, cr4: 0n, dr7: 0x400n, efer: 0n });
  expect([m.rip, m.rflags, m.idt]).toEqual([0x8000n, 2n, { base: 0n, limit: 0 }]);
  expect(m.segments[Seg.CS]).toEqual({ selector: 0x3000, base: 0x3_0000n, limit: 0xffff_ffff, attrib: 0x893 });
  expect(m.segments[Seg.SS]).toEqual({ selector: 0, base: 0n, limit: 0xffff_ffff, attrib: 0x893 });
});

describe('emulatorLeaveSmm', () => {
  const host = (m: ReturnType<typeof machine>, map: Uint8Array | undefined, vendor = 0): LeaveSmmHost =>
    Object.assign(m.target, {
      longMode: true,
      readSaveMap: () => map,
      smmEnded: () => {
        m.m.smm = false;
      },
      vendorLeaveSmm: () => vendor,
    });
  it('leaves the handler for the saved state, from long mode too', () => {
    const saved = machine('prot64');
    fill(saved.m);
    const map = buildSmmSaveMap64(saved.target);
    const handler = machine('prot64');
    handler.m.smm = true;
    expect(emulatorLeaveSmm(host(handler, map))).toBe(X86Emul.CONTINUE);
    expect(handler.m.smm).toBe(false);
    expect(handler.m.rip).toBe(0x1_2345n);
    expect(handler.writes.slice(0, 2)).toEqual(['cr0=10', 'cr4=0']);
  });
  it('is unhandleable if the map is not there or the vendor refuses', () => {
    expect(emulatorLeaveSmm(host(machine('real'), undefined))).toBe(X86Emul.UNHANDLEABLE);
    const map = buildSmmSaveMap64(machine('prot64').target);
    expect(emulatorLeaveSmm(host(machine('real'), map, 1))).toBe(X86Emul.UNHANDLEABLE);
  });
  it('is unhandleable if the map is corrupt', () => {
    const map = buildSmmSaveMap64(machine('prot64').target);
    const handler = machine('real');
    handler.m.refusedCrs.add(4);
    expect(emulatorLeaveSmm(host(handler, map))).toBe(X86Emul.UNHANDLEABLE);
  });
});
