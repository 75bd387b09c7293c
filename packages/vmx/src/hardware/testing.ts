/**
 * A minimal hypervisor for tests of the silicon: VMXON, one VMCS with a legal real-mode guest under EPT with an identity map.
 * It uses nothing but the VMX instructions, as any driver could.
 */
import { createProcessor, PhysicalMemory, type Processor, S, XEON } from '@tskvm/emulator';
import { EntryCtl, ExitCtl, Pin, Primary, Reason, Secondary } from './bits.ts';
import { VmxSilicon } from './instructions.ts';
import { F, type FieldName } from './vmcs.ts';

const REASON_NAMES = new Map<number, string>(Object.entries(Reason).map(([name, value]) => [value, name]));
/** Host pages of the harness, above the guest's first megabyte. */
const VMXON_REGION = 0x200000;
const VMCS_REGION = 0x201000;
const EPT = 0x202000;
export const MSR_BITMAP = 0x206000;
export const IO_BITMAP = 0x207000;
/** Where guest code is put, and its CS:IP. */
export const CODE = 0x7000;

export interface SilVm {
  cpu: Processor;
  memory: PhysicalMemory;
  vt: VmxSilicon;
  /** Puts code at CODE and makes it the next to run. */
  load(code: ArrayLike<number>): SilVm;
  /** VMLAUNCH or VMRESUME. The exit's name, or `VMfail n`. */
  enter(): string;
  get(field: FieldName): bigint;
  set(field: FieldName, value: bigint | number): SilVm;
  /** RIP past the exiting instruction. */
  skip(): SilVm;
}

function hostState(cpu: Processor): void {
  cpu.state.set64(S.efer, 0xd01n);
  cpu.state.set64(S.cr3, 0x1000n);
  cpu.state.set64(S.cr4, 0x26e0n);
  cpu.state.set64(S.cr0, 0x80050033n);
}

/** EPT: the first 2 MiB one to one, in 4 KiB pages. */
function identityMap(memory: PhysicalMemory): void {
  memory.write64(EPT, BigInt(EPT + 0x1000) | 7n);
  memory.write64(EPT + 0x1000, BigInt(EPT + 0x2000) | 7n);
  memory.write64(EPT + 0x2000, BigInt(EPT + 0x3000) | 7n);
  for (let i = 0; i < 512; i++) memory.write64(EPT + 0x3000 + 8 * i, BigInt(i * 4096) | 0x37n);
}
/** The EPT entry of a guest page. */
export const eptEntry = (gpa: number): number => EPT + 0x3000 + 8 * (gpa >>> 12);

const DEFAULT1 = { pin: 0x16, primary: 0x04006172, exit: 0x36dfb, entry: 0x11fb };

function writeControls(vm: SilVm): void {
  vm.set('PIN_BASED_VM_EXEC_CONTROL', DEFAULT1.pin | Pin.externalInterrupt | Pin.nmi);
  vm.set(
    'CPU_BASED_VM_EXEC_CONTROL',
    (DEFAULT1.primary | Primary.hlt | Primary.unconditionalIo | Primary.secondary) >>> 0,
  );
  vm.set('SECONDARY_VM_EXEC_CONTROL', Secondary.ept | Secondary.unrestrictedGuest | Secondary.vpid);
  vm.set('VM_EXIT_CONTROLS', DEFAULT1.exit | ExitCtl.host64 | ExitCtl.loadEfer);
  vm.set('VM_ENTRY_CONTROLS', DEFAULT1.entry | EntryCtl.loadEfer);
  vm.set('EPT_POINTER', EPT | 0x1e);
  vm.set('VIRTUAL_PROCESSOR_ID', 1);
  vm.set('VMCS_LINK_POINTER', 0xffffffffffffffffn);
  vm.set('MSR_BITMAP', MSR_BITMAP)
    .set('IO_BITMAP_A', IO_BITMAP)
    .set('IO_BITMAP_B', IO_BITMAP + 0x1000);
}
function writeHost(vm: SilVm): void {
  vm.set('HOST_CR0', 0x80050033n).set('HOST_CR3', 0x1000n).set('HOST_CR4', 0x26e0n).set('HOST_IA32_EFER', 0xd01n);
  vm.set('HOST_CS_SELECTOR', 0x10).set('HOST_SS_SELECTOR', 0x18).set('HOST_TR_SELECTOR', 0x40);
}
function writeGuest(vm: SilVm): void {
  for (const name of ['ES', 'CS', 'SS', 'DS', 'FS', 'GS'] as const) {
    vm.set(`GUEST_${name}_LIMIT`, 0xffff).set(`GUEST_${name}_AR_BYTES`, name === 'CS' ? 0x9b : 0x93);
  }
  vm.set('GUEST_CS_SELECTOR', CODE >> 4).set('GUEST_CS_BASE', CODE);
  vm.set('GUEST_TR_LIMIT', 0xffff).set('GUEST_TR_AR_BYTES', 0x8b);
  vm.set('GUEST_LDTR_LIMIT', 0xffff).set('GUEST_LDTR_AR_BYTES', 0x82);
  vm.set('GUEST_GDTR_LIMIT', 0xffff).set('GUEST_IDTR_LIMIT', 0x3ff);
  vm.set('GUEST_CR0', 0x30n).set('GUEST_CR4', 0x2000n).set('GUEST_RFLAGS', 2n).set('GUEST_DR7', 0x400n);
  vm.set('GUEST_RSP', 0x6000n);
}

/** A VMCS that passes every check: a guest in real mode at CODE. */
export async function realModeGuest(): Promise<SilVm> {
  const memory = new PhysicalMemory(0x400000);
  const cpu = await createProcessor(memory, XEON, { engine: 'evaluate' });
  const vt = new VmxSilicon(cpu, memory, XEON);
  hostState(cpu);
  memory.write32(VMXON_REGION, vt.caps.revision);
  memory.write32(VMCS_REGION, vt.caps.revision);
  identityMap(memory);
  const vm: SilVm = {
    cpu,
    memory,
    vt,
    load(code) {
      memory.writeBytes(CODE, Uint8Array.from(code));
      return vm.set('GUEST_RIP', 0n);
    },
    enter() {
      cpu.deadline = cpu.tick + 100_000;
      const error = vt.vmcs.launched ? vt.vmresume() : vt.vmlaunch();
      if (error !== 0) return `VMfail ${error}`;
      const reason = vt.vmcs.read32(F.VM_EXIT_REASON);
      const name = REASON_NAMES.get(reason & 0xffff) ?? String(reason);
      return reason >= 0x80000000 ? `${name} failed` : name;
    },
    get: (field) => vt.vmread(F[field]).value,
    set(field, value) {
      vt.vmwrite(F[field], BigInt.asUintN(64, BigInt(value)));
      return vm;
    },
    skip: () => vm.set('GUEST_RIP', vm.get('GUEST_RIP') + vm.get('VM_EXIT_INSTRUCTION_LEN')),
  };
  vt.vmxon(VMXON_REGION);
  vt.vmclear(VMCS_REGION);
  vt.vmptrld(VMCS_REGION);
  writeControls(vm);
  writeHost(vm);
  writeGuest(vm);
  return vm;
}
