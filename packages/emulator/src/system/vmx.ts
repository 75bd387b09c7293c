/**
 * VMX's instructions as the bare processor sees them: legality, then the wing that hangs into the processor.
 * Manual: SDM vol. 3 ch. 30.
 */
import { NotImplementedError } from '../exceptions.ts';
import { CR4, Vector } from '../state-layout.ts';
import { inLongMode, requireCpl0 } from './common.ts';
import type { EmulateContext, SystemFunction } from './context.ts';

/** #UD outside protected mode, in compatibility mode, or with CR4.VMXE clear; then #GP(0) outside CPL 0 (SDM vol. 3, VMXON). */
export const checkVmxe = (ctx: EmulateContext): void => {
  const legacy = ctx.mode === 'real' || ctx.mode === 'vm86' || (ctx.mode !== 'prot64' && inLongMode(ctx.ops));
  if (legacy || !(ctx.ops.getCr(4) & CR4.VMXE)) ctx.raise(Vector.UD);
  requireCpl0(ctx);
};

/** Reached only where no wing took the instruction. */
const vmxInstruction =
  (name: string): SystemFunction =>
  (ctx) => {
    checkVmxe(ctx);
    throw new NotImplementedError(`${name} without the VMX wing`, 'SDM vol. 3 ch. 30');
  };

const NAMES = [
  'vmxon',
  'vmxoff',
  'vmclear',
  'vmptrld',
  'vmptrst',
  'vmread',
  'vmwrite',
  'vmlaunch',
  'vmresume',
  'invept',
  'invvpid',
] as const;

/** VMFUNC outside VMX non-root operation is always undefined. */
export const VMX_INSTRUCTIONS: Readonly<Record<string, SystemFunction>> = {
  ...Object.fromEntries(NAMES.map((name) => [name, vmxInstruction(name.toUpperCase())])),
  vmfunc: (ctx) => ctx.raise(Vector.UD),
};
