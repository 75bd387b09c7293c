import { PhysicalMemory } from '@tskvm/emulator';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  ENTRY_CHECKS,
  type EntryLimits,
  type EntryView,
  entryAllowed,
  failedEntryChecks,
  fuseLimits,
} from './entry-checks.ts';
import { SAVE_AREA, V, Vmcb } from './vmcb.ts';

const limits: EntryLimits = {
  maxphyaddr: 40,
  cr4Reserved: ~0x3ff7ffn & 0xffff_ffff_ffff_ffffn,
  eferReserved: ~0x1d01n & 0xffff_ffff_ffff_ffffn,
  longMode: true,
  nestedPaging: true,
  sevEs: false,
};

function legal(): { vmcb: Vmcb; view: EntryView } {
  const memory = new PhysicalMemory(1 << 16);
  const vmcb = new Vmcb(memory, 0x1000);
  vmcb.set32(V.intercept4, 1);
  vmcb.set32(V.asid, 1);
  vmcb.set64(V.iopmBasePa, 0x4000n);
  vmcb.set64(V.msrpmBasePa, 0x8000n);
  vmcb.set64(V.efer, 0x1000n);
  vmcb.set64(V.cr0, 0x10n);
  vmcb.set64(V.gPat, 0x0007_0406_0007_0406n);
  const at = memory.offset(0x1000, 4096);
  return { vmcb, view: { control: memory.view, at, save: memory.view, saveAt: at + SAVE_AREA, limits } };
}
const codes = (view: EntryView): string[] => failedEntryChecks(view).map((failure) => failure.code);

/** What breaks each row, and only it. */
const BREAK: Record<string, (vmcb: Vmcb) => void> = {
  'svm.efer.svme-clear': (v) => v.set64(V.efer, 0n),
  'svm.cr0.nw-without-cd': (v) => v.set64(V.cr0, 0x2000_0010n),
  'svm.cr0.upper': (v) => v.set64(V.cr0, 0x1_0000_0010n),
  'svm.cr3.reserved': (v) => longMode(v, () => v.set64(V.cr3, 1n << 41n)),
  'svm.cr4.reserved': (v) => v.set64(V.cr4, 1n << 23n),
  'svm.dr6.upper': (v) => v.set64(V.dr6, 1n << 32n),
  'svm.dr7.upper': (v) => v.set64(V.dr7, 1n << 40n),
  'svm.efer.reserved': (v) => v.set64(V.efer, 0x1002n),
  'svm.cr4.long-mode-without-pae': (v) => longMode(v, () => v.set64(V.cr4, 0n)),
  'svm.cr0.long-mode-without-pe': (v) => longMode(v, () => v.set64(V.cr0, 0x8000_0010n)),
  'svm.cs.l-and-d': (v) => longMode(v, () => v.set16(V.cs + 2, 0x69b)),
  'svm.intercept.vmrun-clear': (v) => v.set32(V.intercept4, 0),
  'svm.iopm.beyond-memory': (v) => v.set64(V.iopmBasePa, (1n << 40n) - 0x2000n),
  'svm.msrpm.beyond-memory': (v) => v.set64(V.msrpmBasePa, 1n << 40n),
  'svm.eventinj.illegal': (v) => v.set32(V.eventInj, 0x8000_0302),
  'svm.asid.zero': (v) => v.set32(V.asid, 0),
  'svm.ncr3.reserved': (v) => {
    v.set64(V.miscCtl, 1n);
    v.set64(V.nestedCr3, 1n << 40n);
  },
  'svm.gpat.type': (v) => {
    v.set64(V.miscCtl, 1n);
    v.set64(V.gPat, 2n);
  },
  'svm.sev-es.unsupported': (v) => v.set64(V.miscCtl, 4n),
};
function longMode(vmcb: Vmcb, then: () => void): void {
  vmcb.set64(V.efer, 0x1500n);
  vmcb.set64(V.cr0, 0x8000_0011n);
  vmcb.set64(V.cr4, 0x20n);
  then();
}

describe('VMRUN consistency checks', () => {
  it('let a legal VMCB pass', () => {
    const { view } = legal();
    expect(codes(view)).toEqual([]);
    expect(entryAllowed(view, fuseLimits(limits))).toBe(true);
  });
  for (const [code, broke] of Object.entries(BREAK)) {
    it(`refuse ${code}, by rows and by the predicate`, () => {
      const { vmcb, view } = legal();
      broke(vmcb);
      expect(codes(view)).toEqual([code]);
      expect(entryAllowed(view, fuseLimits(limits))).toBe(false);
    });
  }
  it('refuse long mode and nested paging on a processor without them', () => {
    const { vmcb, view } = legal();
    const small = { ...limits, longMode: false, nestedPaging: false };
    longMode(vmcb, () => vmcb.set64(V.miscCtl, 1n));
    expect(codes({ ...view, limits: small })).toEqual(['svm.efer.long-mode-unsupported', 'svm.np.unsupported']);
  });
  it('have a code, rule and section each, and no code twice', () => {
    expect(new Set(ENTRY_CHECKS.map((row) => row.code)).size).toBe(ENTRY_CHECKS.length);
    for (const row of ENTRY_CHECKS) expect(row.section).toMatch(/^APM vol\. 2 15\./);
  });
  it('are the same fused as walked, on random VMCBs', () => {
    const word = (bits: bigint[]) => fc.subarray(bits).map((set) => set.reduce((a, b) => a | b, 0n));
    const bits = (...n: number[]) => n.map((bit) => 1n << BigInt(bit));
    const shape = fc.record({
      efer: word(bits(0, 8, 10, 12, 12, 40, 3)),
      cr0: word(bits(0, 4, 29, 30, 31, 33)),
      cr4: word(bits(5, 7, 23, 35)),
      cr3: word(bits(12, 39, 40, 60)),
      misc: word(bits(0, 1, 2)),
      ncr3: word(bits(12, 39, 45)),
      gPat: word(bits(0, 1, 2, 9, 10, 33, 34, 35, 59)),
      dr7: word(bits(10, 32)),
      cs: fc.constantFrom(0x69b, 0x29b, 0x49b),
      eventInj: fc.constantFrom(0, 0x8000_030d, 0x8000_0302, 0x8000_0120, 0x8000_0030, 0x8000_0720),
      asid: fc.constantFrom(0, 1, 5),
      map: fc.constantFrom(0x4000n, 1n << 40n),
      vmrun: fc.constantFrom(0, 1, 1, 1),
    });
    fc.assert(
      fc.property(shape, (s) => {
        const { vmcb, view } = legal();
        for (const name of ['efer', 'cr0', 'cr4', 'cr3', 'gPat', 'dr7'] as const) vmcb.set64(V[name], s[name]);
        vmcb.set64(V.miscCtl, s.misc);
        vmcb.set64(V.nestedCr3, s.ncr3);
        vmcb.set16(V.cs + 2, s.cs);
        vmcb.set32(V.eventInj, s.eventInj);
        vmcb.set32(V.asid, s.asid);
        vmcb.set64(V.msrpmBasePa, s.map);
        vmcb.set32(V.intercept4, s.vmrun);
        expect(entryAllowed(view, fuseLimits(limits))).toBe(codes(view).length === 0);
      }),
      { numRuns: 2000 },
    );
  });
});
