/**
 * Why a guest shut down: where it stood, which exception it could not deliver and, if that was the #GP of a refused write to a control
 * register or EFER, which rule refused it. For reports; changes nothing. No KVM counterpart (the rules: kvm_set_cr0, kvm_set_cr4, set_efer).
 */
import { CR0, CR3, CR4, createInstruction, decode, EFER, RAX, RCX, RDX, Seg, Vector } from '@tskvm/emulator';
import type { FailedCheck } from './diagnostics.ts';
import {
  isLongMode,
  isPae,
  isPaging,
  kvmReadCr0,
  kvmReadCr3,
  kvmReadCr4,
  kvmRegisterReadRaw,
  kvmRipRead,
} from './kvm-cache-regs.ts';
import { peekInstruction } from './mode-switch.ts';
import { kvmValidEfer } from './msrs.ts';
import { CR0_PDPTR_BITS, CR4_PDPTR_BITS, kvmVcpuIsLegalCr3 } from './regs.ts';
import type { ShutdownPlace } from './types.ts';
import type { Vcpu } from './vcpu.ts';

const MSR_EFER = 0xc0000080n;
const MOV_TO_CR = 0x0f22;
const GROUP_7 = 0x0f01;
const WRMSR = 0x0f30;

/** What a rule looks at: the registers before the write, and the value. */
interface Write {
  vcpu: Vcpu;
  value: bigint;
  cr0: bigint;
  cr4: bigint;
  efer: bigint;
  csL: boolean;
}
type Rule = readonly [code: string, broken: (write: Write) => boolean, rule: string, section: string];

const has = (value: bigint, bits: bigint): boolean => (value & bits) !== 0n;

/** PAE paging outside long mode: are the four PDPTEs at CR3 bad (load_pdptrs, without loading them). */
function badPdptes({ vcpu }: Write, cr3: bigint): boolean {
  const at = Number(cr3 & 0xffffffe0n);
  if (!vcpu.vm.hasMemory(at, 32)) return true;
  const bytes = vcpu.vm.readGuest(at, 32);
  const view = new DataView(bytes.buffer, bytes.byteOffset, 32);
  const reserved = 0x1e6n | vcpu.arch.reservedGpaBits;
  return [0, 8, 16, 24].some((i) => has(view.getBigUint64(i, true), 1n) && has(view.getBigUint64(i, true), reserved));
}
const PDPTE_RULE =
  'PAE paging outside long mode loads four PDPTEs: bits 1, 2, 5 to 8 (so also writable and user) must be 0; set EFER.LME first for long mode';

const NO_NESTED = 'the guest has no virtualisation of its own (nested virtualisation is not there yet)';

const entersPaging = (w: Write): boolean => has(w.value, CR0.PG) && !has(w.cr0, CR0.PG);
const leavesPaging = (w: Write): boolean => !has(w.value, CR0.PG) && has(w.cr0, CR0.PG);

const CR0_RULES: readonly Rule[] = [
  ['cr0.high', (w) => w.value >> 32n !== 0n, 'bits 63:32 must be 0', 'APM vol. 2 3.1.1'],
  ['cr0.nw-without-cd', (w) => has(w.value, CR0.NW) && !has(w.value, CR0.CD), 'NW needs CD', 'APM vol. 2 3.1.1'],
  ['cr0.pg-without-pe', (w) => has(w.value, CR0.PG) && !has(w.value, CR0.PE), 'PG needs PE', 'APM vol. 2 3.1.1'],
  [
    'cr0.long-without-pae',
    (w) => entersPaging(w) && has(w.efer, EFER.LME) && !has(w.cr4, CR4.PAE),
    'PG with EFER.LME needs CR4.PAE',
    'APM vol. 2 14.6.1',
  ],
  [
    'cr0.long-from-cs-l',
    (w) => entersPaging(w) && has(w.efer, EFER.LME) && w.csL,
    'PG with EFER.LME needs a code segment with L clear',
    'APM vol. 2 14.6.1',
  ],
  [
    'cr0.paging-off-in-64-bit',
    (w) => leavesPaging(w) && has(w.efer, EFER.LMA) && w.csL,
    'PG can be cleared in compatibility mode only, not in 64-bit code',
    'APM vol. 2 14.7',
  ],
  [
    'cr0.pg-with-pcide',
    (w) => leavesPaging(w) && has(w.cr4, CR4.PCIDE),
    'PG must stay set while CR4.PCIDE is',
    'SDM vol. 3 4.10.1',
  ],
  [
    'cr0.wp-with-cet',
    (w) => !has(w.value, CR0.WP) && has(w.cr4, CR4.CET),
    'WP must stay set while CR4.CET is',
    'SDM vol. 3 2.5',
  ],
  [
    'cr0.pdptes',
    (w) =>
      has(w.value, CR0.PG) &&
      has(w.value ^ w.cr0, CR0_PDPTR_BITS) &&
      has(w.cr4, CR4.PAE) &&
      !has(w.efer, EFER.LME) &&
      badPdptes(w, kvmReadCr3(w.vcpu)),
    PDPTE_RULE,
    'SDM vol. 3 4.4.1',
  ],
];

const CR3_RULES: readonly Rule[] = [
  [
    'cr3.reserved',
    (w) => !kvmVcpuIsLegalCr3(w.vcpu, has(w.cr4, CR4.PCIDE) ? w.value & ~CR3.NOFLUSH : w.value),
    "bits above the processor's physical address width must be 0",
    'APM vol. 2 3.1.2',
  ],
  [
    'cr3.pdptes',
    (w) => isPaging(w.vcpu) && isPae(w.vcpu) && !isLongMode(w.vcpu) && badPdptes(w, w.value),
    PDPTE_RULE,
    'SDM vol. 3 4.4.1',
  ],
];

const CR4_RULES: readonly Rule[] = [
  ['cr4.vmxe', (w) => has(w.value & w.vcpu.arch.cr4GuestRsvdBits, CR4.VMXE), `VMXE: ${NO_NESTED}`, 'SDM vol. 3 23.7'],
  [
    'cr4.reserved',
    (w) => has(w.value, w.vcpu.arch.cr4GuestRsvdBits),
    "bits that are reserved or whose feature the guest's CPUID lacks must be 0",
    'APM vol. 2 3.1.3',
  ],
  [
    'cr4.pae-in-long',
    (w) => has(w.efer, EFER.LMA) && !has(w.value, CR4.PAE),
    'PAE must stay set in long mode',
    'APM vol. 2 3.1.3',
  ],
  [
    'cr4.la57-in-long',
    (w) => has(w.efer, EFER.LMA) && has(w.value ^ w.cr4, CR4.LA57),
    'LA57 can not change in long mode',
    'SDM vol. 3 4.1.2',
  ],
  [
    'cr4.pcide',
    (w) => has(w.value & ~w.cr4, CR4.PCIDE) && (!has(w.efer, EFER.LMA) || has(kvmReadCr3(w.vcpu), 0xfffn)),
    'PCIDE needs long mode and CR3 bits 11:0 clear',
    'SDM vol. 3 4.10.1',
  ],
  [
    'cr4.pdptes',
    (w) =>
      has(w.cr0, CR0.PG) &&
      has(w.value, CR4.PAE) &&
      has(w.value ^ w.cr4, CR4_PDPTR_BITS) &&
      !has(w.efer, EFER.LMA) &&
      badPdptes(w, kvmReadCr3(w.vcpu)),
    PDPTE_RULE,
    'SDM vol. 3 4.4.1',
  ],
  ['cr4.cet-without-wp', (w) => has(w.value, CR4.CET) && !has(w.cr0, CR0.WP), 'CET needs CR0.WP', 'SDM vol. 3 2.5'],
];

const EFER_RULES: readonly Rule[] = [
  [
    'efer.svme',
    (w) => has(w.value, EFER.SVME) && !kvmValidEfer(w.vcpu, EFER.SVME),
    `SVME: ${NO_NESTED}`,
    'APM vol. 2 15.4',
  ],
  [
    'efer.reserved',
    (w) => !kvmValidEfer(w.vcpu, w.value & ~EFER.LMA),
    "bits that are reserved or whose feature the guest's CPUID lacks must be 0",
    'APM vol. 2 3.1.7',
  ],
  [
    'efer.lme-with-paging',
    (w) => has(w.cr0, CR0.PG) && has(w.value ^ w.efer, EFER.LME),
    'LME can not change while CR0.PG is set',
    'APM vol. 2 14.6.1',
  ],
];

const RULES: Readonly<Record<string, readonly Rule[]>> = {
  CR0: CR0_RULES,
  CR3: CR3_RULES,
  CR4: CR4_RULES,
  EFER: EFER_RULES,
};

const low32 = (value: bigint): bigint => value & 0xffff_ffffn;

/** The register that the instruction at CS:RIP writes, and the value; undefined for any other instruction. */
function writeAtHand(vcpu: Vcpu): { field: string; value: bigint } | undefined {
  const { bytes } = peekInstruction(vcpu);
  const { db, l } = vcpu.kvm.calls.getCsDbLBits(vcpu);
  const codeSize = l !== 0 && isLongMode(vcpu) ? 8 : db !== 0 ? 4 : 2;
  const insn = createInstruction();
  if (decode(bytes, bytes.length, { codeSize, intel: false }, insn) !== 'ok') return undefined;
  const gpr = (reg: number): bigint => kvmRegisterReadRaw(vcpu, reg);
  if (insn.opcode === MOV_TO_CR)
    return { field: `CR${insn.reg}`, value: codeSize === 8 ? gpr(insn.rm) : low32(gpr(insn.rm)) };
  if (insn.opcode === GROUP_7 && insn.mod === 3 && (insn.reg & 7) === 6) {
    return { field: 'CR0', value: (kvmReadCr0(vcpu) & ~0xen) | (gpr(insn.rm) & 0xfn) };
  }
  if (insn.opcode === WRMSR && low32(gpr(RCX)) === MSR_EFER) {
    return { field: 'EFER', value: (low32(gpr(RDX)) << 32n) | low32(gpr(RAX)) };
  }
  return undefined;
}

/** The rules that the write at CS:RIP breaks. */
export function brokenRules(vcpu: Vcpu): FailedCheck[] {
  const write = writeAtHand(vcpu);
  if (write === undefined) return [];
  const { field, value } = write;
  if (vcpu.kvm.calls.getCpl(vcpu) !== 0) {
    return [{ code: 'cpl', field, value, rule: 'only CPL 0 may write it', section: 'APM vol. 2 4.9' }];
  }
  const state: Write = {
    vcpu,
    value,
    cr0: kvmReadCr0(vcpu),
    cr4: kvmReadCr4(vcpu),
    efer: vcpu.arch.efer,
    csL: vcpu.kvm.calls.getCsDbLBits(vcpu).l !== 0,
  };
  return (RULES[field] ?? [])
    .filter(([, broken]) => broken(state))
    .map(([code, , rule, section]) => ({ code, field, value, rule, section }));
}

/** Where the guest stands, the exception that it could not deliver, and the rules behind its #GP. The guest's registers must be readable. */
export function shutdownPlace(vcpu: Vcpu): ShutdownPlace {
  const { calls, processor } = vcpu.kvm;
  const place: ShutdownPlace = {
    cs: calls.getSegment(vcpu, Seg.CS).selector,
    rip: kvmRipRead(vcpu),
    cr0: kvmReadCr0(vcpu),
    failures: [],
  };
  const cause = processor.shutdownCause;
  // KVM itself gives up, without the processor, where it emulates real mode's interrupts.
  if (cause === undefined || cause.tick !== processor.tick) return { ...place, failures: brokenRules(vcpu) };
  if (cause.event.kind !== 'exception') return place;
  const { vector, errorCode } = cause.event;
  return { ...place, exception: { vector, errorCode }, failures: vector === Vector.GP ? brokenRules(vcpu) : [] };
}
