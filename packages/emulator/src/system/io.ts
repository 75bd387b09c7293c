/**
 * IN, OUT, INS, OUTS and the rights to ports.
 * Manual: APM vol. 2 ch. 12.2.4 (I/O permission bitmap), SDM vol. 1 ch. 19.5; KVM: emulator_io_permitted, check_perm_in/out.
 */
import { X86Emul } from '../ops.ts';
import { Attrib, Flag, RAX, RCX, RDI, RDX, RSI, Seg, Vector } from '../state-layout.ts';
import type { EventContext } from './common.ts';
import { cplOf, iopl, maskOf } from './common.ts';
import type { EmulateContext, SystemFunction } from './context.ts';
import { SystemType } from './descriptors.ts';

/** Offset of the I/O map base in a TSS, and the least limit that holds it. */
const IO_MAP_BASE = 102;

/** True if the TSS's bitmap grants `size` ports from `port` on. Two bytes are read, whatever the alignment. */
const bitmapGrants = (ctx: EventContext, port: number, size: number): boolean => {
  const { ops } = ctx;
  const tr = ops.getSegment(Seg.TR);
  // KVM does not ask for the TSS's size.
  const wide = ctx.subset === 'kvm' || (tr.attrib & Attrib.typeMask & ~2) === SystemType.availableTss32;
  if (!(tr.attrib & Attrib.P) || tr.attrib & Attrib.unusable || !wide || tr.limit < IO_MAP_BASE + 1) return false;
  const at = Number(ops.readStd(tr.base + BigInt(IO_MAP_BASE), 2, true)) + (port >> 3);
  if (at + (ctx.subset === 'kvm' ? 0 : 1) > tr.limit) return false;
  const bits = Number(ops.readStd(tr.base + BigInt(at), 2, true));
  return ((bits >> (port & 7)) & ((1 << size) - 1)) === 0;
};

/** #GP(0) if the program may not use the ports. */
export const checkIoPermission = (ctx: EventContext, port: number, size: number): void => {
  if (ctx.mode === 'real') return;
  const restricted = ctx.mode === 'vm86' || cplOf(ctx) > iopl(ctx.rflags);
  if (restricted && !bitmapGrants(ctx, port, size)) ctx.raise(Vector.GP, 0);
};

const sizeOf = (ctx: EmulateContext): 1 | 2 | 4 => (ctx.insn.opSize === 8 ? 4 : ctx.insn.opSize);

/** E4..E7 name the port in the instruction, all others in DX. */
const portOf = (ctx: EmulateContext): number =>
  (ctx.insn.opcode & ~3) === 0xe4 ? Number(ctx.insn.imm & 0xffn) : Number(ctx.ops.readGpr(RDX) & 0xffffn);

const checkIo = (ctx: EmulateContext): void => checkIoPermission(ctx, portOf(ctx), sizeOf(ctx));

const inPort: SystemFunction = (ctx) => {
  checkIo(ctx);
  const size = sizeOf(ctx);
  ctx.setReg(RAX, size, BigInt(ctx.pioIn(size, portOf(ctx)) >>> 0));
  return X86Emul.CONTINUE;
};

const outPort: SystemFunction = (ctx) => {
  checkIo(ctx);
  const size = sizeOf(ctx);
  ctx.ops.pioOut(size, portOf(ctx), Number(ctx.ops.readGpr(RAX) & maskOf(size)));
  return X86Emul.CONTINUE;
};

/** Register by address size. */
const addressRegister = (ctx: EmulateContext, reg: number): bigint => ctx.ops.readGpr(reg) & maskOf(ctx.insn.addrSize);

const advance = (ctx: EmulateContext, reg: number, size: number): void => {
  const step = ctx.rflags & BigInt(Flag.DF) ? -size : size;
  const { addrSize } = ctx.insn;
  ctx.setReg(reg, addrSize, (ctx.ops.readGpr(reg) + BigInt(step)) & maskOf(addrSize));
};

/** One iteration of a string instruction: nothing if the count is zero, otherwise counts down and says whether to go on. */
const iterate = (ctx: EmulateContext, body: () => void): X86Emul => {
  const { insn } = ctx;
  if (!insn.rep) {
    body();
    return X86Emul.CONTINUE;
  }
  const count = addressRegister(ctx, RCX);
  if (count === 0n) return X86Emul.CONTINUE;
  body();
  ctx.setReg(RCX, insn.addrSize, count - 1n);
  ctx.restart = count > 1n;
  return X86Emul.CONTINUE;
};

/** The destination is probed first: a port must not be read twice. */
const ins: SystemFunction = (ctx) => {
  checkIo(ctx);
  return iterate(ctx, () => {
    const size = sizeOf(ctx);
    const linear = ctx.linearize(Seg.ES, addressRegister(ctx, RDI), size, true);
    ctx.ops.probeWrite(linear, size);
    ctx.ops.writeEmulated(linear, BigInt(ctx.pioIn(size, portOf(ctx)) >>> 0), size);
    advance(ctx, RDI, size);
  });
};

const outs: SystemFunction = (ctx) => {
  checkIo(ctx);
  return iterate(ctx, () => {
    const size = sizeOf(ctx);
    const seg = ctx.insn.segOverride >= 0 ? ctx.insn.segOverride : Seg.DS;
    const value = ctx.read(seg, addressRegister(ctx, RSI), size);
    ctx.ops.pioOut(size, portOf(ctx), Number(value));
    advance(ctx, RSI, size);
  });
};

export const IO_INSTRUCTIONS = { in: inPort, out: outPort, ins, outs } as const satisfies Record<
  string,
  SystemFunction
>;

/** Checks that stand before the POST_EXCEPT intercept (KVM: check_perm_in, check_perm_out). */
export const IO_CHECKS = { in: checkIo, out: checkIo, ins: checkIo, outs: checkIo } as const;
