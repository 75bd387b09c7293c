/** Puts the boot processor into the state in which an image begins. */
import type { KvmSegment, Vcpu } from '@tskvm/core';
import type { StartState } from './loaders/image.ts';

const CR0_ET = 0x10n;
const CR0_PE = 1n;

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
  const data = flatSegment(0x10, false);
  vcpu.setSregs({
    ...sregs,
    cr0: CR0_ET | CR0_PE,
    cs: flatSegment(8, true),
    ds: data,
    es: data,
    fs: data,
    gs: data,
    ss: data,
  });
  vcpu.setRegs({ ...regs, rip: BigInt(start.eip), rax: BigInt(start.eax), rbx: BigInt(start.ebx), rflags: 2n });
}
