/**
 * Floating point on random numbers: what generated code computes by itself is what the exact functions compute, flags included.
 * The numbers stay close to each other, to powers of two and to halves, where rounding is decided; some are special.
 */
import { beforeAll, describe, expect, it } from 'vitest';
import { S } from '../../src/state-layout.ts';
import { vectorEngine } from './engines.ts';
import * as env from './environment.ts';
import { readVectors } from './format.ts';
import type { VectorMachine } from './run-case.ts';

const SAMPLE = new URL('./sample/64_x87_arith.jsonl.gz', import.meta.url).pathname;
const ROUNDS = 100;

/** A 32-bit xorshift. */
let state = 0x2545f491;
function random(): number {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return state >>> 0;
}
const below = (limit: number): number => random() % limit;
const bits64 = (): bigint => (BigInt(random()) << 32n) | BigInt(random());
/** Few bits set, or few clear: ties and carries. */
function significand(): bigint {
  const kind = below(4);
  if (kind === 0) return bits64();
  if (kind === 1) return (1n << BigInt(below(64))) | (1n << BigInt(below(64)));
  if (kind === 2) return ~((1n << BigInt(below(64))) | (1n << BigInt(below(24)))) & ((1n << 64n) - 1n);
  return bits64() & ~((1n << BigInt(below(64))) - 1n);
}

function extended(): bigint {
  if (below(16) === 0)
    return [0n, 1n << 79n, 1n, (0x7fffn << 64n) | (1n << 63n), (0x7fffn << 64n) | (3n << 62n)][below(5)]!;
  const exponent = below(4) === 0 ? 1 + below(0x7ffe) : 0x3fff + below(140) - 70;
  return (BigInt(below(2)) << 79n) | (BigInt(exponent) << 64n) | significand() | (1n << 63n);
}
function double(): bigint {
  if (below(16) === 0) return [0n, 1n << 63n, 1n, 0x7ff0000000000000n, 0x7ff0000000000001n][below(5)]!;
  const exponent = below(4) === 0 ? 1 + below(2046) : 1023 + below(80) - 40;
  return (BigInt(below(2)) << 63n) | (BigInt(exponent) << 52n) | (significand() >> 12n);
}
function single(): bigint {
  if (below(16) === 0) return [0n, 1n << 31n, 1n, 0x7f800000n, 0x7f800001n][below(5)]!;
  const exponent = below(4) === 0 ? 1 + below(254) : 127 + below(60) - 30;
  return (BigInt(below(2)) << 31n) | (BigInt(exponent) << 23n) | (significand() >> 41n);
}
const vector = (): bigint =>
  below(2) === 0 ? (double() << 64n) | double() : [0, 1, 2, 3].reduce((v) => (v << 32n) | single(), 0n);

const at = (offset: number): number => offset - S.ymm;

/** Random registers in a machine; most are as compilers have them. */
function fill(
  view: DataView,
  image: { x87: bigint[]; vectors: bigint[]; cw: number; top: number; mxcsr: number },
): void {
  for (let n = 0; n < 8; n++) {
    view.setBigUint64(at(S.fpr) + n * 16, image.x87[n]! & ((1n << 64n) - 1n), true);
    view.setBigUint64(at(S.fpr) + n * 16 + 8, image.x87[n]! >> 64n, true);
  }
  for (let n = 0; n < 32; n++) {
    const value = image.vectors[n]!;
    view.setBigUint64(n * 16, value & ((1n << 64n) - 1n), true);
    view.setBigUint64(n * 16 + 8, value >> 64n, true);
  }
  view.setUint16(at(S.fcw), image.cw, true);
  view.setUint16(at(S.fsw), image.top << 11, true);
  view.setUint8(at(S.ftw), 0x7f);
  view.setUint32(at(S.mxcsr), image.mxcsr, true);
  for (const field of [S.fop, S.fop + 2, S.fip, S.fip + 4, S.fdp, S.fdp + 4]) view.setUint16(at(field), 0, true);
}

/** On [rbx], or registers 0, 1, 2. */
const X87: readonly (readonly [string, readonly number[]])[] = [
  ['fadd st0, st1', [0xd8, 0xc1]],
  ['fmul st0, st2', [0xd8, 0xca]],
  ['fsub st0, st1', [0xd8, 0xe1]],
  ['fsubrp st1, st0', [0xde, 0xe1]],
  ['fdiv st0, st1', [0xd8, 0xf1]],
  ['fdivrp st2, st0', [0xde, 0xf2]],
  ['fadd qword [rbx]', [0xdc, 0x03]],
  ['fidiv dword [rbx]', [0xda, 0x33]],
  ['fld dword [rbx]', [0xd9, 0x03]],
  ['fld qword [rbx]', [0xdd, 0x03]],
  ['fld tword [rbx]', [0xdb, 0x2b]],
  ['fild qword [rbx]', [0xdf, 0x2b]],
  ['fst dword [rbx]', [0xd9, 0x13]],
  ['fstp qword [rbx]', [0xdd, 0x1b]],
  ['fstp tword [rbx]', [0xdb, 0x3b]],
  ['fistp word [rbx]', [0xdf, 0x1b]],
  ['fistp qword [rbx]', [0xdf, 0x3b]],
  ['fisttp dword [rbx]', [0xdb, 0x0b]],
  ['fucomip st0, st1', [0xdf, 0xe9]],
  ['fcom st2', [0xd8, 0xd2]],
  ['fcmovbe st0, st1', [0xda, 0xd1]],
  ['fxch st3', [0xd9, 0xcb]],
  ['fchs', [0xd9, 0xe0]],
  ['fldcw [rbx]', [0xd9, 0x2b]],
];
const SSE: readonly (readonly [string, readonly number[]])[] = [
  ...(['addps', 'mulps', 'subps', 'minps', 'divps', 'maxps'] as const).flatMap((name, i) =>
    (
      [
        ['ps', []],
        ['pd', [0x66]],
        ['ss', [0xf3]],
        ['sd', [0xf2]],
      ] as const
    ).map(([form, prefix]): readonly [string, readonly number[]] => [
      `${name.slice(0, 3)}${form} xmm0, xmm1`,
      [...prefix, 0x0f, [0x58, 0x59, 0x5c, 0x5d, 0x5e, 0x5f][i]!, 0xc1],
    ]),
  ),
  ['sqrtsd xmm0, xmm1', [0xf2, 0x0f, 0x51, 0xc1]],
  ['sqrtps xmm0, xmm1', [0x0f, 0x51, 0xc1]],
  ['ucomisd xmm0, xmm1', [0x66, 0x0f, 0x2e, 0xc1]],
  ['comiss xmm0, xmm1', [0x0f, 0x2f, 0xc1]],
  ['cmplepd xmm0, xmm1', [0x66, 0x0f, 0xc2, 0xc1, 2]],
  ['cmpnltss xmm0, xmm1', [0xf3, 0x0f, 0xc2, 0xc1, 5]],
  ['cvtsi2sd xmm0, rbx', [0xf2, 0x48, 0x0f, 0x2a, 0xc3]],
  ['cvtsi2ss xmm0, ebx', [0xf3, 0x0f, 0x2a, 0xc3]],
  ['cvttsd2si eax, xmm1', [0xf2, 0x0f, 0x2c, 0xc1]],
  ['cvtsd2si rax, xmm1', [0xf2, 0x48, 0x0f, 0x2d, 0xc1]],
  ['cvttss2si rax, xmm1', [0xf3, 0x48, 0x0f, 0x2c, 0xc1]],
  ['cvtss2sd xmm0, xmm1', [0xf3, 0x0f, 0x5a, 0xc1]],
  ['cvtsd2ss xmm0, xmm1', [0xf2, 0x0f, 0x5a, 0xc1]],
  ['cvtps2pd xmm0, xmm1', [0x0f, 0x5a, 0xc1]],
  ['cvtpd2ps xmm0, xmm1', [0x66, 0x0f, 0x5a, 0xc1]],
  ['cvtdq2ps xmm0, xmm1', [0x0f, 0x5b, 0xc1]],
  ['cvttps2dq xmm0, xmm1', [0xf3, 0x0f, 0x5b, 0xc1]],
  ['cvttpd2dq xmm0, xmm1', [0x66, 0x0f, 0xe6, 0xc1]],
  ['vaddpd ymm0, ymm1, ymm2', [0xc5, 0xf5, 0x58, 0xc2]],
  ['vcvtpd2ps xmm0, ymm1', [0xc5, 0xfd, 0x5a, 0xc1]],
  ['vmulss xmm0, xmm1, [rbx]', [0xc5, 0xf2, 0x59, 0x03]],
];

let machines: VectorMachine[];
beforeAll(async () => {
  const { header } = readVectors(SAMPLE);
  machines = [];
  for (const name of ['evaluate', 'interpret']) machines.push(await (await vectorEngine(name)).create(header));
});

const AREA = S.mxcsr + 4 - S.ymm;

function compare(code: readonly number[]): void {
  const image = {
    x87: Array.from({ length: 8 }, extended),
    vectors: Array.from({ length: 32 }, vector),
    cw: below(4) === 0 ? 0x37f ^ (below(4) << 10) ^ (below(64) & below(64)) : 0x37f,
    top: below(7) === 0 ? 7 : 0,
    mxcsr: below(4) === 0 ? 0x1f80 | below(64) | (below(4) << 13) : 0x1fa0,
  };
  const operand = [double(), extended() & ((1n << 64n) - 1n), single(), BigInt(below(1 << 16))][below(4)]!;
  const bytes = new Uint8Array(16);
  new DataView(bytes.buffer).setBigUint64(0, operand, true);
  new DataView(bytes.buffer).setBigUint64(8, extended() >> 64n, true);
  const memory = code.at(-1)! < 0xc0 && (code.at(-1)! & 7) === 3;
  const rbx = memory
    ? BigInt(env.DATA + 0x100)
    : below(2) === 0
      ? bits64()
      : BigInt.asUintN(64, BigInt(below(200)) - 100n);
  const results = machines.map((machine) => {
    const gpr = new Array<bigint>(16).fill(0n);
    gpr[3] = rbx;
    gpr[4] = BigInt(env.DATA + 0x800);
    const patches = [
      [env.DATA + 0x100, bytes],
      [env.CODE + 0x100, Uint8Array.from(code)],
    ] as const;
    machine.load({ ip: BigInt(env.CODE + 0x100), rflags: 0x202n, gpr }, patches);
    fill(machine.fpu(), image);
    const raised = machine.run(false);
    const { ip, rflags, gpr: after } = machine.state();
    const view = machine.fpu();
    return {
      raised,
      ip,
      rflags: rflags & 0x8d5n,
      rax: after[0],
      fpu: Buffer.from(view.buffer, view.byteOffset, AREA).toString('hex'),
      data: Buffer.from(machine.data().subarray(0x100, 0x110)).toString('hex'),
    };
  });
  expect(results[1]).toEqual(results[0]);
}

describe('x87', () => {
  it.each(X87)('%s', (_, code) => {
    for (let round = 0; round < ROUNDS; round++) compare(code);
  });
});
describe('SSE and AVX', () => {
  it.each(SSE)('%s', (_, code) => {
    for (let round = 0; round < ROUNDS; round++) compare(code);
  });
});
