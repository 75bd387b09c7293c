/**
 * MSRs that are more than storage: the TSC, its adjustment, EFER, the supervisor's protection keys.
 * Manual: APM vol. 2 sections 3.1.7 and 13.2.4, SDM vol. 3 section 17.17.
 */
import { Msr } from './msrs.ts';
import type { Processor } from './processor.ts';

export function installMsrHooks(cpu: Processor): void {
  const { hooks } = cpu.msrs;
  hooks.set(Msr.EFER, {
    read: () => cpu.state.efer,
    write: (value) => (cpu.control.setEfer(value) ? 1 : 0),
  });
  hooks.set(Msr.TSC, {
    read: () => cpu.ops.rdtsc(),
    write: (value) => {
      cpu.tscAdjust += value - cpu.tsc();
      return 0;
    },
  });
  if (cpu.has('pks')) {
    hooks.set(Msr.PKRS, {
      read: () => BigInt(cpu.state.pkrs),
      write: (value) => {
        if (value >> 32n !== 0n) return 1;
        cpu.state.pkrs = Number(value);
        return 0;
      },
    });
  }
  if (!cpu.has('tscAdjust')) return;
  hooks.set(Msr.TSC_ADJUST, {
    read: () => BigInt.asUintN(64, cpu.tscAdjust),
    write: (value) => {
      cpu.tscAdjust = BigInt.asIntN(64, value);
      return 0;
    },
  });
}
