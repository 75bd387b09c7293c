import { S } from '@tskvm/emulator';
import { describe, expect, it } from 'vitest';
import { Primary, VmError } from './bits.ts';
import { eptEntry, IO_BITMAP, MSR_BITMAP, realModeGuest, type SilVm } from './testing.ts';

const addPrimary = (vm: SilVm, bits: number): SilVm =>
  vm.set('CPU_BASED_VM_EXEC_CONTROL', (Number(vm.get('CPU_BASED_VM_EXEC_CONTROL')) | bits) >>> 0);
const addSecondary = (vm: SilVm, bits: number): SilVm =>
  vm.set('SECONDARY_VM_EXEC_CONTROL', (Number(vm.get('SECONDARY_VM_EXEC_CONTROL')) | bits) >>> 0);
const ALL = 0xffffffffffffffffn;

describe('VM entry and exit', () => {
  it('runs a real-mode guest to HLT and leaves RIP at it', async () => {
    const vm = (await realModeGuest()).load([0xb8, 0x34, 0x12, 0xf4]); // mov ax,1234h; hlt
    expect(vm.enter()).toBe('HLT');
    expect(vm.get('GUEST_RIP')).toBe(3n);
    expect(vm.get('VM_EXIT_INSTRUCTION_LEN')).toBe(1n);
    expect(vm.cpu.state.gpr[0] & 0xffffn).toBe(0x1234n);
  });

  it('loads the host state at the exit', async () => {
    const vm = (await realModeGuest()).load([0xf4]);
    vm.enter();
    vm.vt.vmclear(0x201000);
    expect(vm.cpu.state.cr0).toBe(0x80050033n);
    expect(vm.cpu.state.efer).toBe(0xd01n);
    expect(vm.cpu.state.getSegment(1).selector).toBe(0x10);
    expect(vm.cpu.guest).toBeNull();
  });

  it('cpuid: exits unconditionally and goes on behind it', async () => {
    const vm = (await realModeGuest()).load([0x0f, 0xa2, 0xf4]);
    expect(vm.enter()).toBe('CPUID');
    expect(vm.get('VM_EXIT_INSTRUCTION_LEN')).toBe(2n);
    expect(vm.skip().enter()).toBe('HLT');
  });

  it('VMLAUNCH of a launched VMCS fails with 4, VMRESUME of a clear one with 5', async () => {
    const vm = (await realModeGuest()).load([0xf4]);
    expect(vm.vt.vmresume()).toBe(VmError.VMRESUME_NOT_LAUNCHED);
    vm.enter();
    expect(vm.vt.vmlaunch()).toBe(VmError.VMLAUNCH_NOT_CLEAR);
    expect(vm.get('VM_INSTRUCTION_ERROR')).toBe(4n);
  });

  it('VMREAD and VMWRITE of a field that does not exist fail with 12', async () => {
    const vm = await realModeGuest();
    expect(vm.vt.vmread(0x6830).error).toBe(VmError.UNSUPPORTED_COMPONENT);
    expect(vm.vt.vmwrite(0x2801 + 0x100, 0n)).toBe(VmError.UNSUPPORTED_COMPONENT);
  });

  it('the high half of a 64-bit field has an encoding of its own', async () => {
    const vm = await realModeGuest();
    vm.vt.vmwrite(0x2010, 0x1122334455667788n);
    vm.vt.vmwrite(0x2011, 0xaabbccddn);
    expect(vm.vt.vmread(0x2010).value).toBe(0xaabbccdd55667788n);
    expect(vm.vt.vmread(0x2011).value).toBe(0xaabbccddn);
  });

  it('without a current VMCS every instruction is VMfailInvalid', async () => {
    const vm = await realModeGuest();
    vm.vt.vmclear(0x201000);
    expect([vm.vt.vmlaunch(), vm.vt.vmread(0x6800).error, vm.vt.vmptrst()]).toEqual([-1, -1, -1]);
  });
});

describe('snapshots', () => {
  it('another silicon goes on where this one stood', async () => {
    const vm = (await realModeGuest()).load([0x0f, 0xa2, 0xf4]);
    vm.enter();
    const other = await realModeGuest();
    other.memory.u8.set(vm.memory.u8);
    other.cpu.load(structuredClone(vm.cpu.save()));
    other.vt.load(structuredClone(vm.vt.save()));
    expect(other.skip().enter()).toBe('HLT');
    expect(other.get('GUEST_RIP')).toBe(2n);
  });
});

describe('CR0 guest/host mask', () => {
  const MOV_CR0 = [0x0f, 0x22, 0xc0, 0xf4]; // mov cr0,eax; hlt

  it('mov cr0: exits if a masked bit differs from the shadow', async () => {
    const vm = (await realModeGuest()).load(MOV_CR0).set('CR0_GUEST_HOST_MASK', 1n);
    vm.cpu.state.gpr[0] = 0x31n;
    expect(vm.enter()).toBe('CR_ACCESS');
    expect(vm.get('EXIT_QUALIFICATION')).toBe(0n);
  });

  it('mov cr0: a masked bit that equals the shadow keeps its real value', async () => {
    const vm = (await realModeGuest()).load(MOV_CR0).set('CR0_GUEST_HOST_MASK', 0x20n);
    vm.cpu.state.gpr[0] = 0x18n; // NE clear as in the shadow, TS set
    expect(vm.enter()).toBe('HLT');
    expect(vm.get('GUEST_CR0')).toBe(0x38n);
  });

  it('mov cr0: a bit that VMX fixes to 1 and the guest owns is #GP', async () => {
    const vm = (await realModeGuest()).load(MOV_CR0).set('EXCEPTION_BITMAP', 1 << 13);
    vm.cpu.state.gpr[0] = 0x10n; // NE clear
    expect(vm.enter()).toBe('EXCEPTION_NMI');
    expect(vm.get('VM_EXIT_INTR_INFO') & 0xffn).toBe(13n);
  });

  it('mov eax,cr0: masked bits read from the shadow', async () => {
    const vm = (await realModeGuest()).load([0x0f, 0x20, 0xc0, 0xf4]);
    vm.set('CR0_GUEST_HOST_MASK', ~0xan & ALL).set('CR0_READ_SHADOW', 0x60000010n);
    expect(vm.enter()).toBe('HLT');
    expect(vm.cpu.state.gpr[0]).toBe(0x60000010n);
  });

  it('clts: exits if TS is masked and set in the shadow, does nothing if masked and clear', async () => {
    const vm = (await realModeGuest()).load([0x0f, 0x06, 0xf4]).set('GUEST_CR0', 0x38n);
    vm.set('CR0_GUEST_HOST_MASK', 8n).set('CR0_READ_SHADOW', 8n);
    expect(vm.enter()).toBe('CR_ACCESS');
    expect(vm.get('EXIT_QUALIFICATION')).toBe(0x20n);
    expect(vm.set('CR0_READ_SHADOW', 0n).enter()).toBe('HLT');
    expect(vm.get('GUEST_CR0')).toBe(0x38n);
  });

  it('lmsw ax: exits when PE is masked and set; the source is in the qualification', async () => {
    const vm = (await realModeGuest()).load([0x0f, 0x01, 0xf0, 0xf4]).set('CR0_GUEST_HOST_MASK', 1n);
    vm.cpu.state.gpr[0] = 0x1235n;
    expect(vm.enter()).toBe('CR_ACCESS');
    expect(vm.get('EXIT_QUALIFICATION')).toBe(0x12350030n);
  });

  it('mov cr3: exits with CR3-load exiting unless the value is a target', async () => {
    const vm = (await realModeGuest()).load([0x0f, 0x22, 0xd8, 0xf4]);
    addPrimary(vm, Primary.cr3Load);
    vm.cpu.state.gpr[0] = 0x5000n;
    expect(vm.enter()).toBe('CR_ACCESS');
    expect(vm.get('EXIT_QUALIFICATION')).toBe(3n);
    expect(vm.set('CR3_TARGET_COUNT', 1).set('CR3_TARGET_VALUE0', 0x5000n).enter()).toBe('HLT');
  });
});

describe('bitmaps', () => {
  it('in al,60h: exits with port, size and direction', async () => {
    const vm = (await realModeGuest()).load([0xe4, 0x60, 0xf4]);
    expect(vm.enter()).toBe('IO_INSTRUCTION');
    expect(vm.get('EXIT_QUALIFICATION')).toBe(0x600048n);
  });

  it('out dx,al: the I/O bitmap decides', async () => {
    const vm = (await realModeGuest()).load([0xba, 0x00, 0x80, 0xee, 0x42, 0xee, 0xf4]); // ports 8000h, 8001h
    addPrimary(vm, Primary.ioBitmaps);
    vm.memory.write8(IO_BITMAP + 0x1000, 2);
    expect(vm.enter()).toBe('IO_INSTRUCTION');
    expect(vm.get('EXIT_QUALIFICATION')).toBe(0x80010000n);
  });

  it('rdmsr: the MSR bitmap decides; outside its ranges it always exits', async () => {
    const vm = (await realModeGuest()).load([0x0f, 0x32, 0x66, 0xb9, 0, 0, 1, 0x40, 0x0f, 0x32]);
    addPrimary(vm, Primary.msrBitmaps);
    vm.cpu.state.gpr[1] = 0xc0000100n;
    expect(vm.enter()).toBe('MSR_READ');
    expect(vm.get('GUEST_RIP')).toBe(8n);
    vm.memory.write8(MSR_BITMAP + 0x400 + 0x20, 1);
    vm.cpu.state.gpr[1] = 0xc0000100n;
    expect(vm.load([0x0f, 0x32]).enter()).toBe('MSR_READ');
    expect(vm.get('GUEST_RIP')).toBe(0n);
  });
});

describe('exceptions and injection', () => {
  it('int3: a software exception with its length', async () => {
    const vm = (await realModeGuest()).load([0xcc]).set('EXCEPTION_BITMAP', 8);
    expect(vm.enter()).toBe('EXCEPTION_NMI');
    expect(vm.get('VM_EXIT_INTR_INFO')).toBe(0x80000603n);
    expect(vm.get('VM_EXIT_INSTRUCTION_LEN')).toBe(1n);
    expect(vm.get('IDT_VECTORING_INFO_FIELD')).toBe(0n);
  });

  it('an injected interrupt goes through the IVT and clears the entry field', async () => {
    const vm = (await realModeGuest()).load([0xf4]);
    vm.memory.writeBytes(0x21 * 4, Uint8Array.of(0x10, 0, 0, 0x07)); // 0700:0010
    vm.memory.write8(0x7010, 0xf4);
    vm.set('GUEST_RFLAGS', 0x202n).set('VM_ENTRY_INTR_INFO_FIELD', 0x80000021n);
    expect(vm.enter()).toBe('HLT');
    expect(vm.get('GUEST_RIP')).toBe(0x10n);
    expect(vm.get('VM_ENTRY_INTR_INFO_FIELD') >> 31n).toBe(0n);
  });

  it('a fault while an event is injected reports the event as IDT vectoring', async () => {
    const vm = (await realModeGuest()).load([0xf4]);
    vm.memory.write64(eptEntry(0x5000), 0n);
    vm.set('GUEST_RSP', 0x5ffen).set('GUEST_RFLAGS', 0x202n).set('VM_ENTRY_INTR_INFO_FIELD', 0x80000021n);
    expect(vm.enter()).toBe('EPT_VIOLATION');
    expect(vm.get('IDT_VECTORING_INFO_FIELD')).toBe(0x80000021n);
  });

  it('interrupt-window exiting waits for the end of the STI shadow', async () => {
    const vm = (await realModeGuest()).load([0xfa, 0xfb, 0x90, 0x90, 0xf4]); // cli; sti; nop; nop
    addPrimary(vm, Primary.interruptWindow);
    expect(vm.enter()).toBe('INTERRUPT_WINDOW');
    expect(vm.get('GUEST_RIP')).toBe(3n);
  });

  it('the monitor trap flag exits after one instruction', async () => {
    const vm = (await realModeGuest()).load([0x90, 0x90, 0xf4]);
    addPrimary(vm, Primary.monitorTrap);
    expect(vm.enter()).toBe('MONITOR_TRAP_FLAG');
    expect(vm.get('GUEST_RIP')).toBe(1n);
  });

  it('the preemption timer exits before the first instruction when it is 0', async () => {
    const vm = (await realModeGuest()).load([0x90, 0xf4]);
    vm.set('PIN_BASED_VM_EXEC_CONTROL', vm.get('PIN_BASED_VM_EXEC_CONTROL') | 0x40n);
    expect(vm.enter()).toBe('PREEMPTION_TIMER');
    expect(vm.get('GUEST_RIP')).toBe(0n);
  });

  it('a triple fault exits with reason 2', async () => {
    const vm = (await realModeGuest()).load([0xcd, 0x80]).set('GUEST_IDTR_LIMIT', 0);
    expect(vm.enter()).toBe('TRIPLE_FAULT');
  });

  it('a physical interrupt exits with reason 1', async () => {
    const vm = (await realModeGuest()).load([0xeb, 0xfe]); // jmp $
    expect(vm.enter()).toBe('EXTERNAL_INTERRUPT');
  });
});

describe('EPT', () => {
  it('a write without right is a violation with access, rights and addresses', async () => {
    const vm = (await realModeGuest()).load([0xa2, 0x00, 0x30, 0xf4]); // mov [3000h],al
    vm.memory.write64(eptEntry(0x3000), 0x3035n);
    expect(vm.enter()).toBe('EPT_VIOLATION');
    expect(vm.get('EXIT_QUALIFICATION')).toBe(0x1aan);
    expect(vm.get('GUEST_PHYSICAL_ADDRESS')).toBe(0x3000n);
    expect(vm.get('GUEST_LINEAR_ADDRESS')).toBe(0x3000n);
  });

  it('writable but not readable is a misconfiguration', async () => {
    const vm = (await realModeGuest()).load([0xa0, 0x00, 0x30, 0xf4]);
    vm.memory.write64(eptEntry(0x3000), 0x3036n);
    expect(vm.enter()).toBe('EPT_MISCONFIG');
  });

  it('with bit 6 of EPTP an access sets A and a write sets D', async () => {
    const vm = (await realModeGuest()).load([0xa0, 0x00, 0x30, 0xa2, 0x00, 0x40, 0xf4]);
    vm.set('EPT_POINTER', 0x20205e);
    expect(vm.enter()).toBe('HLT');
    expect(vm.memory.read32(eptEntry(0x3000)) & 0x300).toBe(0x100);
    expect(vm.memory.read32(eptEntry(0x4000)) & 0x300).toBe(0x300);
  });
});

describe('features that are off', () => {
  it('rdtscp without its control is #UD', async () => {
    const vm = (await realModeGuest()).load([0x0f, 0x01, 0xf9]).set('EXCEPTION_BITMAP', 1 << 6);
    expect(vm.enter()).toBe('EXCEPTION_NMI');
    addSecondary(vm, 8);
    addPrimary(vm, Primary.rdtsc);
    expect(vm.enter()).toBe('RDTSCP');
  });

  it('DR7 and the shadow of an exit stand in the VMCS', async () => {
    const vm = (await realModeGuest()).load([0x8e, 0xd0, 0xf4]); // mov ss,ax; hlt
    expect(vm.enter()).toBe('HLT');
    expect(vm.get('GUEST_INTERRUPTIBILITY_INFO')).toBe(2n);
    expect(vm.cpu.state.get64(S.dr7)).toBe(0x400n);
  });
});
