/**
 * x87 control, environments and images: FNINIT to FRSTOR, EMMS, LDMXCSR.
 * Manual: APM vol. 5 (x87 and SSE instructions of these names), APM vol. 2 section 11.4.4 (images).
 */
import { CR0, RAX, Vector } from '../../state-layout.ts';
import type { FpuArea } from './area.ts';
import { checkPending, done, type FpContext, type FpFunction, fpuOf } from './context.ts';
import { FX_INSTRUCTIONS } from './fxsave.ts';
import { get80, Image, put80 } from './image.ts';
import { initialise, legalControlWord, MXCSR_MASK, setControlWord, updateSummary } from './words.ts';
import { XSAVE_INSTRUCTIONS } from './xsave.ts';

/** An instruction on the registers alone that waits for nothing. */
const immediate =
  (change: (fpu: FpuArea) => void): FpFunction =>
  (ctx) => {
    change(fpuOf(ctx));
    return done();
  };
/** As `immediate`, after pending exceptions. */
const waiting =
  (change: (fpu: FpuArea, ctx: FpContext) => void): FpFunction =>
  (ctx) => {
    const fpu = fpuOf(ctx);
    checkPending(ctx, fpu);
    change(fpu, ctx);
    return done();
  };

/** WAIT: its row is an integer one, so CR0 is looked at here. */
const wait: FpFunction = (ctx) => {
  const both = CR0.MP | CR0.TS;
  if ((ctx.ops.getCr(0) & both) === both) ctx.raise(Vector.NM);
  checkPending(ctx, fpuOf(ctx));
  return done();
};

const storeWord =
  (value: (fpu: FpuArea) => number): FpFunction =>
  (ctx) => {
    const word = BigInt(value(fpuOf(ctx)));
    if (ctx.insn.mod === 3) ctx.setReg(RAX, 2, word);
    else ctx.write(ctx.insn.seg, ctx.effectiveAddress(), word, 2);
    return done();
  };

const fldcw = waiting((fpu, ctx) => setControlWord(fpu, Number(ctx.read(ctx.insn.seg, ctx.effectiveAddress(), 2))));

// Images in memory

/** Two bits per physical register: 0 valid, 1 zero, 2 special, 3 empty (APM vol. 1 section 6.2.4). */
function fullTags(fpu: FpuArea): number {
  let word = 0;
  for (let n = 7; n >= 0; n--) word = (word << 2) | tagOf(fpu, n);
  return word;
}
function tagOf(fpu: FpuArea, n: number): number {
  if (((fpu.tw >> n) & 1) === 0) return 3;
  const value = fpu.register(n);
  const exponent = Number(value >> 64n) & 0x7fff;
  const significand = value & 0xffffffffffffffffn;
  if (exponent === 0 && significand === 0n) return 1;
  return exponent === 0 || exponent === 0x7fff || significand >> 63n === 0n ? 2 : 0;
}
function abridged(full: number): number {
  let tags = 0;
  for (let n = 0; n < 8; n++) if (((full >> (n * 2)) & 3) !== 3) tags |= 1 << n;
  return tags;
}

const isRealFormat = (ctx: FpContext): boolean => ctx.mode === 'real' || ctx.mode === 'vm86';
const environmentSize = (ctx: FpContext): number => (ctx.insn.opSize === 2 ? 14 : 28);

/** Selectors of the pointers are not kept: they read as zero, as on processors that deprecate them (CPUID 7.EBX[13]). */
function writeEnvironment(ctx: FpContext, fpu: FpuArea, view: DataView): void {
  const ip = Number(fpu.ip & 0xffffffffn);
  const dp = Number(fpu.dp & 0xffffffffn);
  const real = isRealFormat(ctx);
  const words = [fpu.cw, fpu.sw, fullTags(fpu)];
  if (ctx.insn.opSize === 2) {
    const high = (pointer: number): number => ((pointer >>> 16) & 15) << 12;
    words.push(ip & 0xffff, real ? high(ip) | fpu.opcode : 0, dp & 0xffff, real ? high(dp) : 0);
    words.forEach((word, i) => {
      view.setUint16(i * 2, word, true);
    });
    return;
  }
  words.forEach((word, i) => {
    view.setUint32(i * 4, 0xffff0000 + word, true);
  });
  const high = (pointer: number): number => (pointer >>> 16) << 12;
  view.setUint32(12, real ? 0xffff0000 + (ip & 0xffff) : ip, true);
  view.setUint32(16, real ? high(ip) | fpu.opcode : fpu.opcode << 16, true);
  view.setUint32(20, real ? 0xffff0000 + (dp & 0xffff) : dp, true);
  view.setUint32(24, real ? high(dp) : 0xffff0000, true);
}

function readEnvironment(ctx: FpContext, fpu: FpuArea, view: DataView): void {
  const wide = ctx.insn.opSize !== 2;
  const field = (i: number): number => (wide ? view.getUint32(i * 4, true) : view.getUint16(i * 2, true));
  fpu.cw = legalControlWord(field(0));
  fpu.sw = field(1) & 0xffff;
  fpu.tw = abridged(field(2));
  updateSummary(fpu);
  readPointers(ctx, fpu, field, wide);
}

function readPointers(ctx: FpContext, fpu: FpuArea, field: (i: number) => number, wide: boolean): void {
  if (isRealFormat(ctx)) {
    const highMask = wide ? 0xffff : 0xf;
    const pointer = (low: number, high: number): bigint =>
      BigInt((low & 0xffff) + ((high >>> 12) & highMask) * 0x10000);
    fpu.ip = pointer(field(3), field(4));
    fpu.dp = pointer(field(5), field(6));
    fpu.opcode = field(4) & 0x7ff;
  } else {
    fpu.ip = BigInt(field(3));
    fpu.dp = BigInt(field(5));
    if (wide) fpu.opcode = (field(4) >>> 16) & 0x7ff;
  }
}

const fnstenv: FpFunction = (ctx) => {
  const fpu = fpuOf(ctx);
  const image = new Image(environmentSize(ctx));
  writeEnvironment(ctx, fpu, image.view);
  image.store(ctx);
  fpu.cw |= 0x3f;
  updateSummary(fpu);
  return done();
};

const fldenv = waiting((fpu, ctx) => {
  const image = new Image(environmentSize(ctx));
  image.load(ctx);
  readEnvironment(ctx, fpu, image.view);
});

const fnsave: FpFunction = (ctx) => {
  const fpu = fpuOf(ctx);
  const size = environmentSize(ctx);
  const image = new Image(size + 80);
  writeEnvironment(ctx, fpu, image.view);
  for (let i = 0; i < 8; i++) put80(image.view, size + i * 10, fpu.st(i));
  image.store(ctx);
  initialise(fpu);
  return done();
};

const frstor = waiting((fpu, ctx) => {
  const size = environmentSize(ctx);
  const image = new Image(size + 80);
  image.load(ctx);
  readEnvironment(ctx, fpu, image.view);
  for (let i = 0; i < 8; i++) fpu.setRegister(fpu.physical(i), get80(image.view, size + i * 10));
});

// MXCSR

const ldmxcsr: FpFunction = (ctx) => {
  const value = Number(ctx.read(ctx.insn.seg, ctx.effectiveAddress(), 4));
  if ((value & ~MXCSR_MASK) !== 0) ctx.raise(Vector.GP, 0);
  fpuOf(ctx).mxcsr = value;
  return done();
};
const stmxcsr: FpFunction = (ctx) => {
  ctx.write(ctx.insn.seg, ctx.effectiveAddress(), BigInt(fpuOf(ctx).mxcsr), 4);
  return done();
};

const nothing = immediate(() => {});

export const CONTROL: Readonly<Record<string, FpFunction>> = {
  fninit: immediate(initialise),
  fnclex: immediate((fpu) => {
    fpu.sw &= 0x7f00;
  }),
  fneni: nothing,
  fndisi: nothing,
  fnsetpm: nothing,
  fnstcw: storeWord((fpu) => fpu.cw),
  fnstsw: storeWord((fpu) => fpu.sw),
  fldcw,
  fnstenv,
  fldenv,
  fnsave,
  frstor,
  ...FX_INSTRUCTIONS,
  ...XSAVE_INSTRUCTIONS,
  wait,
  ldmxcsr,
  stmxcsr,
  fnop: waiting(() => {}),
  fincstp: waiting((fpu) => {
    fpu.top = fpu.top + 1;
    fpu.sw &= ~0x200;
  }),
  fdecstp: waiting((fpu) => {
    fpu.top = fpu.top - 1;
    fpu.sw &= ~0x200;
  }),
  ffree: waiting((fpu, ctx) => {
    fpu.free(ctx.insn.rm & 7);
    fpu.sw &= ~0x200;
  }),
  ffreep: waiting((fpu, ctx) => {
    fpu.free(ctx.insn.rm & 7);
    fpu.sw &= ~0x200;
    fpu.pop();
  }),
  emms: waiting((fpu) => {
    fpu.tw = 0;
    fpu.top = 0;
  }),
};
