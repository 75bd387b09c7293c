import { type CpuModel, EPYC } from '@tskvm/emulator';
import { describe, expect, test } from 'vitest';
import { type Backend, checkModuleParams, defineBackend, resolveBackend } from './backend.ts';
import { KvmError } from './diagnostics.ts';
import { Kvm } from './kvm.ts';
import type { KvmX86Ops } from './ops-table.ts';
import { kvmOpsUpdate } from './static-calls.ts';
import { idleBackend as idle, idleOps } from './testing/idle-backend.ts';

const code = async (work: () => unknown): Promise<string> => {
  try {
    await work();
  } catch (error) {
    if (error instanceof KvmError) return `${error.code} ${error.errno}`;
    throw error;
  }
  return 'accepted';
};
const message = async (work: () => unknown): Promise<string> => {
  try {
    await work();
  } catch (error) {
    return (error as Error).message;
  }
  return '';
};
const create = (backend: Backend, model?: CpuModel): Promise<Kvm> => Kvm.create(backend, { memory: 1 << 20, model });

describe('defineBackend', () => {
  test('names the op that was most likely meant', async () => {
    const ops = { ...idleOps(), set_cr0: () => undefined } as unknown as KvmX86Ops;
    expect(await message(() => defineBackend({ name: 'x', apiVersion: 1, ops }))).toContain("did you mean 'setCr0'");
    const far = { zzzzzzzzzzzz: () => undefined } as unknown as KvmX86Ops;
    expect(await message(() => defineBackend({ name: 'x', apiVersion: 1, ops: far }))).toContain('KVM_X86_OPS');
  });
  test('refuses another api version', async () => {
    const wrong = { name: 'x', apiVersion: 2 as 1, ops: idleOps() };
    expect(await code(() => defineBackend(wrong))).toBe('BACKEND_API_VERSION 22');
  });
  test('refuses an op that is not a function', async () => {
    const ops = { ...idleOps(), setCr0: 1 } as unknown as KvmX86Ops;
    expect(await code(() => defineBackend({ name: 'x', apiVersion: 1, ops }))).toBe('BACKEND_OP_NOT_FUNCTION 22');
  });
  test('ops as a function need a base', async () => {
    expect(await code(() => defineBackend({ name: 'x', apiVersion: 1, ops: () => ({}) }))).toBe('BACKEND_OPS 22');
  });
  test('extends: own ops win, the rest comes from the base, hardware and model too', () => {
    const base = idle({ getCpl: () => 1 }, 'base');
    const wrapped = defineBackend({
      name: 'wrap',
      apiVersion: 1,
      extends: base,
      ops: (b) => ({ getCpl: (vcpu) => b.getCpl(vcpu) + 1 }),
    });
    const { ops, model } = resolveBackend(wrapped);
    expect(ops.getCpl?.(null as never)).toBe(2);
    expect(ops.setCr0).toBe(resolveBackend(base).ops.setCr0);
    expect(model).toBe(EPYC);
  });
});

describe('a wrapper in a traced run', () => {
  /** Wraps `setCr0` twice over an idle base; the outer one counts in the closure of its ops. */
  const wrapped = (seen: number[]): Backend => {
    const base = idle({ setCr0: function plainSetCr0() {} });
    const inner = defineBackend({
      name: 'inner',
      apiVersion: 1,
      extends: base,
      ops: (b) => ({
        setCr0: function innerSetCr0(vcpu, cr0) {
          b.setCr0(vcpu, cr0);
        },
      }),
    });
    const ops = (b: KvmX86Ops): Partial<KvmX86Ops> => {
      let calls = 0;
      return {
        setCr0: function outerSetCr0(vcpu, cr0) {
          seen.push(++calls);
          b.setCr0(vcpu, cr0);
        },
      };
    };
    return defineBackend({ name: 'outer', apiVersion: 1, extends: inner, ops });
  };
  test('the ops of its base have frames of their own, and the path to the setter ends at the last', async () => {
    const kvm = await create(wrapped([]));
    const tracer = kvm.enableTracing();
    kvm.calls.setCr0(kvm.createVm().createVcpu(0), 0x11n);
    const path = ['staticCall.setCr0', 'outerSetCr0', 'innerSetCr0', 'plainSetCr0'];
    expect(tracer.lastSetter?.path).toEqual(path);
    const edges = tracer.edges().map(({ caller, callee }) => `${caller}>${callee}`);
    for (const [i, callee] of path.slice(1).entries()) expect(edges).toContain(`${path[i]}>${callee}`);
  });
  test("keeps the state of its closure when a listener comes or goes, and calls the base's own function when none is", async () => {
    const seen: number[] = [];
    const kvm = await create(wrapped(seen));
    const vcpu = kvm.createVm().createVcpu(0);
    seen.length = 0;
    kvm.calls.setCr0(vcpu, 0x11n);
    const first = seen[0];
    const off = kvm.on('mode_switch', () => {});
    kvm.calls.setCr0(vcpu, 0x11n);
    off();
    kvm.calls.setCr0(vcpu, 0x11n);
    expect(seen).toEqual([first, first + 1, first + 2]);
    let handed: Partial<KvmX86Ops> = {};
    const base = idle();
    const other = await create(
      defineBackend({
        name: 'x',
        apiVersion: 1,
        extends: base,
        ops: (b) => {
          handed = b;
          return {};
        },
      }),
    );
    const plain = (base.ops as KvmX86Ops).getCpl;
    other.on('kvm_exit', () => {})();
    expect(handed.getCpl).toBe(plain);
  });
});

describe('module parameters', () => {
  const known = { npt: true, nested: false, pauseFilterCount: 3000 };
  const refusal = (given: object): KvmError => {
    try {
      checkModuleParams('svm', given, known);
    } catch (error) {
      return error as KvmError;
    }
    throw new Error('accepted');
  };
  test('a misspelt one: the nearest, and all', () => {
    const { code, errno, message, rule } = refusal({ ntp: true });
    expect([code, errno]).toEqual(['UNKNOWN_PARAM', 22]);
    expect(message).toBe("svm has no parameter 'ntp'; did you mean 'npt'? It has npt, nested, pauseFilterCount");
    expect(rule).toBeDefined();
    expect(refusal({ pause_filter_count: 1 }).message).toContain("'pauseFilterCount'?");
    expect(refusal({ pause: 1 }).message).toContain("'pauseFilterCount'?");
    expect(refusal({ foo: 1 }).message).toBe("svm has no parameter 'foo'. It has npt, nested, pauseFilterCount");
    expect(refusal({ toString: 1 }).code).toBe('UNKNOWN_PARAM');
  });
  test('one of a wrong type', () => {
    expect(refusal({ npt: 7 })).toMatchObject({
      code: 'BAD_PARAM',
      errno: 22,
      message: "svm: 'npt' is a boolean, not 7",
    });
    for (const pauseFilterCount of [-1, 1.5, 1e99, Number.NaN]) {
      const message = `svm: 'pauseFilterCount' is a whole number from 0 to 2^32 - 1, not ${pauseFilterCount}`;
      expect(refusal({ pauseFilterCount })).toMatchObject({ code: 'BAD_PARAM', message });
    }
  });
  test('undefined counts as not given', () => checkModuleParams('svm', { npt: undefined, ntp: undefined }, known));
});

describe('static calls', () => {
  test('a missing optional op does nothing, an optional-returns-0 op returns 0', () => {
    const calls = kvmOpsUpdate('idle', idleOps(), false);
    expect(calls.vmDestroy(null as never)).toBeUndefined();
    expect(calls.isVnmiPending(null as never)).toBe(0);
  });
  test('a missing required op is named with what it does', async () => {
    const { setCr0: _gone, ...rest } = idleOps();
    const text = await message(() => kvmOpsUpdate('half', rest, false));
    expect(text).toContain("'setCr0' (Install CR0 with no checks.)");
    expect(text).toContain("'extends'");
  });
  test('an op that throws while a vCPU runs is named', async () => {
    const getRflags = (): bigint => {
      throw new TypeError('boom');
    };
    const kvm = await create(idle({ getIfFlag: () => getRflags() !== 0n, isExceptionVmexit: () => false }, 'bad'));
    const vcpu = kvm.createVm().createVcpu(0);
    vcpu.runIo.immediateExit = true;
    expect(() => vcpu.run()).toThrow(/backend 'bad': op 'getIfFlag' threw TypeError: boom/);
  });
  test('an op that throws in an ioctl is named, too', async () => {
    const getRflags = (): bigint => {
      throw new TypeError('boom');
    };
    const kvm = await create(idle({ getRflags }, 'bad'));
    const vcpu = kvm.createVm().createVcpu(0);
    expect(() => vcpu.getRegs()).toThrow(/backend 'bad': op 'getRflags' threw TypeError: boom/);
  });
  test('what a trace listener throws is its own', async () => {
    const mine = new Error('mine');
    const kvm = await create(idle({ getIfFlag: () => true }, 'good'));
    const vcpu = kvm.createVm().createVcpu(0);
    vcpu.runIo.immediateExit = true;
    kvm.on('kvm_userspace_exit', () => {
      throw mine;
    });
    expect(() => vcpu.run()).toThrow(mine);
    expect(() => kvm.on('kvm_exi' as 'kvm_exit', () => {})).toThrow(/there is no event kvm_exi/);
  });
  test('a call costs no more than the function itself', () => {
    const ops = idleOps();
    expect(kvmOpsUpdate('idle', ops, false).getCpl).toBe(ops.getCpl);
  });
});

describe('loading a vendor', () => {
  test('a second vendor is refused with EEXIST, and may be loaded after unload', async () => {
    const kvm = await create(idle());
    expect(await code(() => kvm.load(idle({}, 'other')))).toBe('VENDOR_LOADED 17');
    kvm.unload();
    kvm.load(idle({}, 'other'));
    expect(kvm.backend?.name).toBe('other');
  });
  test('two kernels hold two vendors at once', async () => {
    const [a, b] = await Promise.all([create(idle({}, 'a')), create(idle({}, 'b'))]);
    expect([a.backend?.name, b.backend?.name]).toEqual(['a', 'b']);
  });
  test('an incompatible processor is EIO, and nothing stays loaded', async () => {
    let unset = 0;
    const kvm = await create(idle());
    kvm.unload();
    const bad = idle({
      checkProcessorCompatibility: () => -5,
      hardwareUnsetup: () => {
        unset++;
      },
    });
    expect(await code(() => kvm.load(bad))).toBe('VENDOR_INCOMPATIBLE_PROCESSOR 5');
    expect(kvm.backend).toBeNull();
    expect(unset).toBe(1);
    kvm.load(idle());
  });
  test('a failing hardwareSetup passes its errno on', async () => {
    const backend = defineBackend({ name: 'no', apiVersion: 1, ops: idleOps(), model: EPYC, hardwareSetup: () => -95 });
    expect(await code(() => create(backend))).toBe('VENDOR_SETUP_FAILED 95');
  });
  test('a throwing load-time op is named', async () => {
    const backend = idle({
      enableVirtualizationCpu: () => {
        throw new Error('dead');
      },
    });
    expect(await message(() => create(backend))).toContain("op 'enableVirtualizationCpu' threw Error: dead");
  });
  test('unloading while a VM exists is EBUSY', async () => {
    const kvm = await create(idle());
    const vm = kvm.createVm();
    expect(await code(() => kvm.unload())).toBe('VENDOR_BUSY 16');
    vm.destroy();
    kvm.unload();
    expect(await code(() => kvm.createVm())).toBe('NO_VENDOR 95');
  });
  test('a backend without a CPU model needs one', async () => {
    const backend = defineBackend({ name: 'bare', apiVersion: 1, ops: idleOps() });
    expect(await code(() => create(backend))).toBe('NO_CPU_MODEL 22');
    expect((await create(backend, EPYC)).model).toBe(EPYC);
  });
});
