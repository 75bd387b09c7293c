import { Kvm, KvmError } from '@tskvm/core';
import { NotImplementedError, Seg } from '@tskvm/emulator';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type SvmOptions, svm, toSvm, V } from './index.ts';

const RAM = 1 << 18;
const CODE = 0x1000;

/** What a run may end in besides an exit: a refusal with a name. */
function tolerate(run: () => unknown): void {
  try {
    run();
  } catch (error) {
    if (!(error instanceof KvmError) && !(error instanceof NotImplementedError)) throw error;
  }
}

async function machine(options: SvmOptions, type: 'default' | 'sev-es' = 'default') {
  const kvm = await Kvm.create(svm(options), { memory: 8 << 20, shuffleFrames: 3 });
  const vm = kvm.createVm({ type });
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: RAM });
  vm.createIrqchip();
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid(kvm.getSupportedCpuid());
  const cs = kvm.calls.getSegment(vcpu, Seg.CS);
  kvm.calls.setSegment(vcpu, { ...cs, selector: 0, base: 0n }, Seg.CS);
  vcpu.arch.regs[16] = BigInt(CODE);
  vcpu.arch.regs[4] = 0x8000n;
  return { kvm, vm, vcpu };
}

describe('hostile guests under svm', () => {
  const code = fc.uint8Array({ minLength: 64, maxLength: 512 });
  const configurations: [string, SvmOptions, 'default' | 'sev-es'][] = [
    ['by default', {}, 'default'],
    ['without decode assists and next RIP', { decodeAssists: false, nrips: false }, 'default'],
    ['with shadow paging', { npt: false }, 'default'],
    ['with encrypted state', { sevEs: true }, 'sev-es'],
  ];
  for (const [name, options, type] of configurations) {
    it(`random bytes ${name}: every run comes back with an exit or a refusal`, async () => {
      await fc.assert(
        fc.asyncProperty(code, fc.boolean(), async (bytes, protectedMode) => {
          const { vm, vcpu, kvm } = await machine(options, type);
          // mov eax, 11h; mov cr0, eax: the rest runs with PE set
          const prefix = protectedMode ? [0x66, 0xb8, 0x11, 0, 0, 0, 0x0f, 0x22, 0xc0] : [];
          vm.writeGuest(CODE, Uint8Array.from([...prefix, ...bytes]));
          for (let run = 0; run < 6; run += 1) tolerate(() => vcpu.run({ budget: 2_000 }));
          expect(kvm.processor.guest).toBeNull();
        }),
        { numRuns: options.npt === false ? 3 : 8, seed: 20_251_122 },
      );
    });
  }
  it('page tables in MMIO: the fault that comes of them can not be delivered either', async () => {
    const { vcpu, kvm } = await machine({});
    vcpu.setSregs({ ...vcpu.getSregs(), cr0: 0x80000011n, cr3: 0xfee00000n });
    expect(vcpu.run({ budget: 500 })).toMatchObject({ reason: 'internal_error', suberror: 3 });
    expect(kvm.processor.guest).toBeNull();
  });
  it('an interrupt whose gate lies in MMIO comes again and again: the budget ends the run', async () => {
    const { vm, vcpu, kvm } = await machine({});
    vm.writeGuest(CODE, Uint8Array.of(0xeb, 0xfe));
    const idt = { base: 0xe0000000n, limit: 0x7ff };
    vcpu.setSregs({ ...vcpu.getSregs(), cr0: 0x11n, idt, interrupt: 0x20 });
    expect(vcpu.run({ budget: 500 }).reason).toBe('intr');
    expect(kvm.processor.guest).toBeNull();
  });
  it('random VMCBs: VMRUN refuses or the guest comes back', async () => {
    const fields = Object.values(V).filter(
      (offset) => offset % 8 === 0 && (offset < 0x40 || offset >= 0x400 || offset === 0x90),
    );
    const change = fc.tuple(fc.constantFrom(...fields), fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }));
    await fc.assert(
      fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 4 }), async (changes) => {
        const { vm, vcpu } = await machine({});
        vm.writeGuest(CODE, Uint8Array.of(0x0f, 0xa2, 0xe6, 0x80, 0xf4));
        const { vmcb } = toSvm(vcpu);
        tolerate(() => vcpu.run({ budget: 1_000 }));
        for (const [offset, value] of changes) vmcb.set64(offset, value);
        vmcb.set32(V.clean, 0);
        for (let run = 0; run < 5; run += 1) tolerate(() => vcpu.run({ budget: 1_000 }));
      }),
      { numRuns: 25, seed: 20_251_122 },
    );
  });
});
