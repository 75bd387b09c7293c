/** Segments between KVM's form (kvm_segment) and the emulator's (VMCB attributes). */
import { Attrib, type Segment } from '@tskvm/emulator';
import type { KvmSegment } from './types.ts';

/** kvm_segment to selector, attributes, limit, base. */
export function toSegment(s: KvmSegment): Segment {
  const attrib =
    s.type |
    (s.s ? Attrib.S : 0) |
    (s.dpl << Attrib.dplShift) |
    (s.present ? Attrib.P : 0) |
    (s.avl ? Attrib.AVL : 0) |
    (s.l ? Attrib.L : 0) |
    (s.db ? Attrib.DB : 0) |
    (s.g ? Attrib.G : 0) |
    (s.unusable ? Attrib.unusable : 0);
  return { selector: s.selector, attrib, limit: s.limit >>> 0, base: s.base };
}

const flag = (attrib: number, bit: number): number => ((attrib & bit) !== 0 ? 1 : 0);

/** The way back. A segment that is not present counts as unusable, as KVM_SET_SREGS has it for SVM. */
export function fromSegment(s: Segment): KvmSegment {
  return {
    base: s.base,
    limit: s.limit >>> 0,
    selector: s.selector,
    type: s.attrib & Attrib.typeMask,
    present: flag(s.attrib, Attrib.P),
    dpl: (s.attrib >> Attrib.dplShift) & 3,
    db: flag(s.attrib, Attrib.DB),
    s: flag(s.attrib, Attrib.S),
    l: flag(s.attrib, Attrib.L),
    g: flag(s.attrib, Attrib.G),
    avl: flag(s.attrib, Attrib.AVL),
    unusable: flag(s.attrib, Attrib.unusable) | (flag(s.attrib, Attrib.P) ^ 1),
  };
}
