/**
 * SVM's instructions as the bare processor sees them: legality, then the wing that hangs into the processor.
 * Manual: APM vol. 2 ch. 15.3-15.5, APM vol. 3 (VMRUN …). KVM: check_svme, check_svme_pa.
 */
import { NotImplementedError } from '../exceptions.ts';
import { X86Emul } from '../ops.ts';
import { EFER, RAX, RCX, Vector } from '../state-layout.ts';
import { efer, maskOf, requireCpl0 } from './common.ts';
import type { EmulateContext, SystemFunction } from './context.ts';

/** #UD unless EFER.SVME is set and the processor is in protected mode, then #GP(0) outside CPL 0 (APM vol. 3, VMRUN). */
export const checkSvme = (ctx: EmulateContext): void => {
  if (!(efer(ctx.ops) & EFER.SVME) || ctx.mode === 'real' || ctx.mode === 'vm86') ctx.raise(Vector.UD);
  requireCpl0(ctx);
};

/** Reached only where no wing took the instruction; KVM's emulator knows these for their intercepts alone. */
const svmInstruction =
  (name: string): SystemFunction =>
  (ctx) => {
    checkSvme(ctx);
    if (ctx.subset === 'kvm') return X86Emul.UNHANDLEABLE;
    throw new NotImplementedError(`${name} without the SVM wing`, 'APM vol. 2 ch. 15');
  };

/** rAX: linear address, ECX: ASID. The host's ASID is 0; others have no entries that INVLPG would miss on a wingless processor. */
const invlpga: SystemFunction = (ctx) => {
  checkSvme(ctx);
  if (ctx.subset === 'kvm') return X86Emul.UNHANDLEABLE;
  const linear = ctx.ops.readGpr(RAX) & maskOf(ctx.insn.addrSize);
  const asid = Number(ctx.ops.readGpr(RCX) & 0xffff_ffffn);
  if (asid === 0) ctx.ops.invlpg(linear);
  else throw new NotImplementedError('INVLPGA without the SVM wing', 'APM vol. 3, INVLPGA');
  return X86Emul.CONTINUE;
};

export const SVM_INSTRUCTIONS = {
  vmrun: svmInstruction('VMRUN'),
  vmload: svmInstruction('VMLOAD'),
  vmsave: svmInstruction('VMSAVE'),
  stgi: svmInstruction('STGI'),
  clgi: svmInstruction('CLGI'),
  skinit: svmInstruction('SKINIT'),
  vmgexit: (ctx) => ctx.raise(Vector.UD),
  invlpga,
} as const satisfies Record<string, SystemFunction>;

/** Checks that stand before the POST_EXCEPT intercept (KVM: check_svme). */
export const SVM_CHECKS = {
  vmrun: checkSvme,
  vmload: checkSvme,
  vmsave: checkSvme,
  stgi: checkSvme,
  clgi: checkSvme,
  skinit: checkSvme,
  invlpga: checkSvme,
} as const;
