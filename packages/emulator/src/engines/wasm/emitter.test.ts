import { expect, it } from 'vitest';
import { Bytes, Code, encodeModule, I32, I64, OP } from './emitter.ts';

function instantiate(code: Code, params: (typeof I32 | typeof I64)[], result: typeof I32 | typeof I64) {
  const bytes = encodeModule({
    imports: [],
    functions: [{ type: { params, results: [result] }, locals: [I64, I32], code, export: 'f' }],
  });
  const memory = new WebAssembly.Memory({ initial: 1 });
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(bytes), { env: { memory } });
  return exports.f as (...args: unknown[]) => unknown;
}

it('signed LEB128 constants come back as they were, at every length', () => {
  for (const value of [0n, -1n, 63n, 64n, -64n, -65n, 1n << 31n, -(1n << 31n), (1n << 62n) - 1n, -(1n << 63n)]) {
    expect(instantiate(new Code().i64(value), [], I64)()).toBe(value);
  }
  for (const value of [0, -1, 63, 64, -65, 0x7fffffff, -0x80000000]) {
    expect(instantiate(new Code().i32(value), [], I32)()).toBe(value);
  }
});

it('unsigned LEB128 takes seven bits a byte', () => {
  expect([...new Bytes().u32(0x7f).u32(0x80).u32(0xffffffff).done()]).toEqual([
    0x7f, 0x80, 0x01, 0xff, 0xff, 0xff, 0xff, 0x0f,
  ]);
});

it('labels find their depth: a counted loop with an exit from inside', () => {
  const code = new Code();
  const sum = 1;
  const out = code.block();
  const loop = code.loop();
  code.get(0).op(OP.i32Eqz).brIf(out);
  code.get(sum).get(0).op(OP.i64ExtendI32U).op(OP.i64Add).set(sum);
  code.get(0).i32(1).op(OP.i32Sub).set(0).br(loop);
  code.end().end().get(sum);
  expect(instantiate(code, [I32], I64)(10)).toBe(55n);
});

it('br_table selects by index, the last label takes the rest', () => {
  const code = new Code();
  const rest = code.block();
  const one = code.block();
  const zero = code.block();
  code.get(0).brTable([zero, one], rest).end();
  code.i32(10).op(OP.return).end();
  code.i32(11).op(OP.return).end();
  code.i32(12);
  const f = instantiate(code, [I32], I32);
  expect([f(0), f(1), f(2), f(99)]).toEqual([10, 11, 12, 12]);
});
