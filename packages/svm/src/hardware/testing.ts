/** A bare processor with AMD-V and one real-mode guest under nested paging, for tests of the silicon. */
import { createProcessor, EPYC, PhysicalMemory, type Processor } from '@tskvm/emulator';
import type { OptionalFeature } from './features.ts';
import { MSR_EFER, MSR_VM_HSAVE_PA, SvmHardware } from './instructions.ts';
import { IntCtl, V, Vmcb } from './vmcb.ts';

const VMCB_PA = 0x1000;
const HSAVE_PA = 0x2000;
const IOPM_PA = 0x4000;
const MSRPM_PA = 0x8000;
const NPT_PA = 0x10000;
/** Guest physical 0 stands at this host address; 2 MiB of it are mapped. */
export const GUEST_RAM = 0x20_0000;
/** Where guest code is loaded. */
export const CODE = 0x1000;

export interface SiliconTest {
  memory: PhysicalMemory;
  processor: Processor;
  hw: SvmHardware;
  vmcb: Vmcb;
  gprs: BigUint64Array;
  /** Puts code at `CODE` and points CS:RIP to it. */
  load(...bytes: number[]): void;
  /** VMRUN; the exit code. */
  run(): number;
  guest(address: number): number;
}

/** A VMCB that passes all checks: real mode, VMRUN and HLT and SHUTDOWN intercepted, 2 MiB of memory. */
export async function silicon(without: readonly OptionalFeature[] = []): Promise<SiliconTest> {
  const memory = new PhysicalMemory(8 * 1024 * 1024);
  const processor = await createProcessor(memory, EPYC);
  const hw = new SvmHardware(processor, memory, EPYC, new Set(without));
  hw.wrmsr(MSR_EFER, 0x1d01n);
  hw.wrmsr(MSR_VM_HSAVE_PA, BigInt(HSAVE_PA));
  const vmcb = new Vmcb(memory, VMCB_PA);
  memory.write64(NPT_PA, BigInt(NPT_PA + 0x1007));
  memory.write64(NPT_PA + 0x1000, BigInt(NPT_PA + 0x2007));
  memory.write64(NPT_PA + 0x2000, BigInt(GUEST_RAM + 0x87));
  realMode(vmcb);
  vmcb.set32(V.asid, 1);
  vmcb.set64(V.iopmBasePa, BigInt(IOPM_PA));
  vmcb.set64(V.msrpmBasePa, BigInt(MSRPM_PA));
  vmcb.set64(V.miscCtl, 1n);
  vmcb.set64(V.nestedCr3, BigInt(NPT_PA));
  vmcb.set32(V.intCtl, IntCtl.V_INTR_MASKING);
  for (const bit of [0x80, 0x78, 0x7f, 0x60]) vmcb.setIntercept(bit, true);
  const gprs = new BigUint64Array(17);
  return {
    memory,
    processor,
    hw,
    vmcb,
    gprs,
    load: (...bytes) => {
      memory.writeBytes(GUEST_RAM + CODE, Uint8Array.from(bytes));
      vmcb.set64(V.rip, BigInt(CODE));
    },
    run: () => {
      processor.deadline = processor.tick + 10_000;
      hw.vmrun(VMCB_PA, gprs);
      return vmcb.get32(V.exitCode) | 0;
    },
    guest: (address) => memory.read16(GUEST_RAM + address),
  };
}

function realMode(vmcb: Vmcb): void {
  for (const at of [V.es, V.cs, V.ss, V.ds, V.fs, V.gs]) segment(vmcb, at, at === V.cs ? 0x9b : 0x93);
  segment(vmcb, V.gdtr, 0);
  segment(vmcb, V.idtr, 0);
  segment(vmcb, V.ldtr, 0x82);
  segment(vmcb, V.tr, 0x83);
  vmcb.set64(V.efer, 0x1000n);
  vmcb.set64(V.cr0, 0x10n);
  vmcb.set64(V.rflags, 2n);
  vmcb.set64(V.rsp, 0x8000n);
  vmcb.set64(V.dr6, 0xffff0ff0n);
  vmcb.set64(V.dr7, 0x400n);
  vmcb.set64(V.gPat, 0x0007_0406_0007_0406n);
}
function segment(vmcb: Vmcb, at: number, attrib: number): void {
  vmcb.set16(at, 0);
  vmcb.set16(at + 2, attrib);
  vmcb.set32(at + 4, 0xffff);
  vmcb.set64(at + 8, 0n);
}
