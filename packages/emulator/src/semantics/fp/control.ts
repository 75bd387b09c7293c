/**
 * x87 control, environments and images: FNINIT to FXRSTOR, EMMS, LDMXCSR.
 * Manual: APM vol. 5 (x87 and SSE instructions of these names), APM vol. 2 section 11.4.4 (images).
 */
import { CR0, RAX, Vector } from '../../state-layout.ts';
import type { FpuArea } from './area.ts';
import { checkPending, done, type FpContext, type FpFunction, fpuOf } from './context.ts';

const INITIAL_CW = 0x37f;
/** Bits of FCW that exist; bit 6 always reads as one. */
const CW_MASK = 0x1f7f;
const CW_ONES = 0x40;
/** MXCSR_MASK: all but the reserved upper half. */
export const MXCSR_MASK = 0xffff;
const ES_B = 0x8080;

/** ES and B follow the pending unmasked exceptions. */
export function updateSummary(fpu: FpuArea): void {
  const pending = (fpu.sw & ~fpu.cw & 0x3f) !== 0;
  fpu.sw = pending ? fpu.sw | ES_B : fpu.sw & ~ES_B;
}

export function setControlWord(fpu: FpuArea, value: number): void {
  fpu.cw = (value & CW_MASK) | CW_ONES;
  updateSummary(fpu);
}

function initialise(fpu: FpuArea): void {
  fpu.cw = INITIAL_CW;
  fpu.sw = 0;
  fpu.tw = 0;
  fpu.opcode = 0;
  fpu.ip = 0n;
  fpu.dp = 0n;
}

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

/** An area of memory that is written only after all of it is known to be writable, in pieces of at most 8 bytes. */
class Image {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  constructor(size: number) {
    this.bytes = new Uint8Array(size);
    this.view = new DataView(this.bytes.buffer);
  }

  store(ctx: FpContext, keep: readonly (readonly [number, number])[] = []): void {
    const { seg } = ctx.insn;
    const offset = ctx.effectiveAddress();
    probe(ctx, this.bytes.length, (segment, at, size) => ctx.probeWrite(segment, at, size));
    for (let at = 0; at < this.bytes.length; ) {
      const size = pieceAt(at, this.bytes.length);
      if (!keep.some(([from, to]) => at >= from && at < to))
        ctx.write(seg, wrap(ctx, offset, at), this.#piece(at, size), size);
      at += size;
    }
  }
  #piece(at: number, size: number): bigint {
    if (size === 8) return this.view.getBigUint64(at, true);
    return BigInt(size === 4 ? this.view.getUint32(at, true) : this.view.getUint16(at, true));
  }

  load(ctx: FpContext): void {
    const { seg } = ctx.insn;
    const offset = ctx.effectiveAddress();
    probe(ctx, this.bytes.length, (segment, at, size) => ctx.read(segment, at, size));
    for (let at = 0; at < this.bytes.length; ) {
      const size = pieceAt(at, this.bytes.length);
      const value = ctx.read(seg, wrap(ctx, offset, at), size);
      if (size === 8) this.view.setBigUint64(at, value, true);
      else if (size === 4) this.view.setUint32(at, Number(value), true);
      else this.view.setUint16(at, Number(value), true);
      at += size;
    }
  }
}

const pieceAt = (at: number, length: number): number => (length - at >= 8 ? 8 : length - at >= 4 ? 4 : 2);
const wrap = (ctx: FpContext, offset: bigint, at: number): bigint =>
  BigInt.asUintN(ctx.insn.addrSize * 8, offset + BigInt(at));

/**
 * The first field and the last byte are probed before anything else, as processors do it (CR2 shows which); FXSAVE and FXRSTOR look at the
 * last byte first.
 */
function probe(ctx: FpContext, length: number, access: (seg: number, offset: bigint, size: number) => void): void {
  const { seg, opSize } = ctx.insn;
  const offset = ctx.effectiveAddress();
  const last = wrap(ctx, offset, length - 1);
  if (length === FX_SIZE) access(seg, last, 1);
  access(seg, offset, opSize === 2 ? 2 : 4);
  if (length !== FX_SIZE) access(seg, last, 1);
}

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
  fpu.cw = (field(0) & CW_MASK) | CW_ONES;
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

function put80(view: DataView, at: number, value: bigint): void {
  view.setBigUint64(at, BigInt.asUintN(64, value), true);
  view.setUint16(at + 8, Number(value >> 64n), true);
}
const get80 = (view: DataView, at: number): bigint =>
  (BigInt(view.getUint16(at + 8, true)) << 64n) | view.getBigUint64(at, true);

// FXSAVE and FXRSTOR

const FX_SIZE = 512;
/** Bytes that FXSAVE leaves to software. */
const FX_AVAILABLE = [464, 512] as const;

/** Their rows are integer ones: CR0.EM and TS give #NM; a misaligned image #GP(0). */
function checkImage(ctx: FpContext): void {
  if ((ctx.ops.getCr(0) & (CR0.EM | CR0.TS)) !== 0n) ctx.raise(Vector.NM);
  const linear = ctx.linearize(ctx.insn.seg, ctx.effectiveAddress(), FX_SIZE, false);
  if ((linear & 15n) !== 0n) ctx.raise(Vector.GP, 0);
}

const xmmCount = (ctx: FpContext): number => (ctx.mode === 'prot64' ? 16 : 8);

const fxsave: FpFunction = (ctx) => {
  checkImage(ctx);
  const fpu = fpuOf(ctx);
  const image = new Image(FX_SIZE);
  const { view } = image;
  view.setUint16(0, fpu.cw, true);
  view.setUint16(2, fpu.sw, true);
  view.setUint8(4, fpu.tw);
  view.setUint16(6, fpu.opcode, true);
  const wide = ctx.insn.opSize === 8;
  view.setBigUint64(8, wide ? fpu.ip : fpu.ip & 0xffffffffn, true);
  view.setBigUint64(16, wide ? fpu.dp : fpu.dp & 0xffffffffn, true);
  view.setUint32(24, fpu.mxcsr, true);
  view.setUint32(28, MXCSR_MASK, true);
  for (let i = 0; i < 8; i++) put80(view, 32 + i * 16, fpu.st(i));
  for (let n = 0; n < xmmCount(ctx); n++) {
    view.setBigUint64(160 + n * 16, BigInt.asUintN(64, fpu.xmm(n)), true);
    view.setBigUint64(168 + n * 16, fpu.xmm(n) >> 64n, true);
  }
  const unusedXmm = [160 + xmmCount(ctx) * 16, 416] as const;
  image.store(ctx, [FX_AVAILABLE, unusedXmm, [416, 464]]);
  return done();
};

const fxrstor: FpFunction = (ctx) => {
  checkImage(ctx);
  const fpu = fpuOf(ctx);
  const image = new Image(FX_SIZE);
  image.load(ctx);
  const { view } = image;
  const mxcsr = view.getUint32(24, true);
  if ((mxcsr & ~MXCSR_MASK) !== 0) ctx.raise(Vector.GP, 0);
  fpu.cw = (view.getUint16(0, true) & CW_MASK) | CW_ONES;
  fpu.sw = view.getUint16(2, true);
  fpu.tw = view.getUint8(4);
  updateSummary(fpu);
  fpu.opcode = view.getUint16(6, true) & 0x7ff;
  const wide = ctx.insn.opSize === 8;
  fpu.ip = wide ? view.getBigUint64(8, true) : BigInt(view.getUint32(8, true));
  fpu.dp = wide ? view.getBigUint64(16, true) : BigInt(view.getUint32(16, true));
  fpu.mxcsr = mxcsr;
  for (let i = 0; i < 8; i++) fpu.setRegister(fpu.physical(i), get80(view, 32 + i * 16));
  for (let n = 0; n < xmmCount(ctx); n++) {
    fpu.setXmm(n, (view.getBigUint64(168 + n * 16, true) << 64n) | view.getBigUint64(160 + n * 16, true));
  }
  return done();
};

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
  fxsave,
  fxrstor,
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
  ffree: waiting((fpu, ctx) => fpu.free(ctx.insn.rm & 7)),
  ffreep: waiting((fpu, ctx) => {
    fpu.free(ctx.insn.rm & 7);
    fpu.pop();
  }),
  emms: waiting((fpu) => {
    fpu.tw = 0;
    fpu.top = 0;
  }),
};
