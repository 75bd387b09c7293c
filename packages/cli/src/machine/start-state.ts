/** Puts the boot processor into the state in which an image begins. */
import type { KvmSegment, Vcpu } from '@tskvm/core';
import type { StartState } from './loaders/image.ts';

const CR0_ET = 0x10n;
const CR0_PE = 1n;
const CR0_PG = 0x80000000n;
const CR4_PAE = 0x20n;
const EFER_LME = 0x100n;
const EFER_LMA = 0x400n;

const realSegment = (selector: number, code: boolean): KvmSegment => ({
  base: BigInt(selector) << 4n,
  limit: 0xffff,
  selector,
  type: code ? 11 : 3,
  present: 1,
  dpl: 0,
  db: 0,
  s: 1,
  l: 0,
  g: 0,
  avl: 0,
  unusable: 0,
});
const flatSegment = (selector: number, code: boolean): KvmSegment => ({
  ...realSegment(0, code),
  selector,
  limit: 0xffffffff,
  db: 1,
  g: 1,
});

export function applyStart(vcpu: Vcpu, start: StartState): void {
  if (start.kind === 'reset') return;
  const sregs = vcpu.getSregs();
  const regs = vcpu.getRegs();
  if (start.kind === 'real') {
    const data = realSegment(0, false);
    vcpu.setSregs({
      ...sregs,
      cr0: CR0_ET,
      cs: realSegment(start.cs, true),
      ds: data,
      es: data,
      fs: data,
      gs: data,
      ss: data,
    });
    vcpu.setRegs({ ...regs, rip: BigInt(start.ip), rdx: BigInt(start.dl), rsp: 0x7c00n, rflags: 2n });
    return;
  }
  const { gdt } = start;
  const long = start.kind === 'long64';
  const data = flatSegment(gdt?.data ?? 0x10, false);
  const code = flatSegment(gdt?.code ?? 8, true);
  const flat = {
    ...sregs,
    cr0: CR0_ET | CR0_PE,
    cs: long ? { ...code, l: 1, db: 0 } : code,
    ds: data,
    es: data,
    fs: data,
    gs: data,
    ss: data,
    gdt: gdt ? { base: BigInt(gdt.base), limit: gdt.limit } : sregs.gdt,
  };
  if (start.kind === 'long64') {
    const paging = { cr0: CR0_PG | CR0_ET | CR0_PE, cr3: BigInt(start.cr3), cr4: CR4_PAE, efer: EFER_LMA | EFER_LME };
    vcpu.setSregs({ ...flat, ...paging });
    vcpu.setRegs({ ...regs, rip: BigInt(start.rip), rsi: BigInt(start.rsi), rax: 0n, rdx: 0n, rflags: 2n });
    return;
  }
  vcpu.setSregs(flat);
  vcpu.setRegs({
    ...regs,
    rip: BigInt(start.eip),
    rax: BigInt(start.eax),
    rbx: BigInt(start.ebx),
    rsi: BigInt(start.esi ?? 0),
    rflags: 2n,
  });
}
