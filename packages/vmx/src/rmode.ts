/**
 * Real mode without unrestricted guest: virtual-8086 mode, a TSS and an identity map in the guest's memory, emulation of the rest.
 * KVM: enter_rmode, enter_pmode, fix_rmode_seg, handle_rmode_exception, handle_invalid_guest_state, init_rmode_* in vmx.c.
 */
import {
  frame,
  type KvmSegment,
  kvmEmulateHaltNoskip,
  kvmEmulateInstruction,
  kvmIsExceptionPending,
  kvmPrepareEmulationFailureExit,
  kvmQueueException,
  kvmSetMemoryRegion,
  kvmTestRequest,
  noteEmulatedSwitch,
  Req,
  USER_MEM_SLOTS,
  type Vcpu,
  type Vm,
} from '@tskvm/core';
import { CR4, Flag, Seg, type SegmentIndex, Vector } from '@tskvm/emulator';
import { handleInterruptWindow, vmxInterruptBlocked, vmxUpdateExceptionBitmap } from './events.ts';
import { Primary } from './hardware/bits.ts';
import { F } from './hardware/vmcs.ts';
import { setSegmentRaw, vmxGetSegment, writeSegment } from './segments.ts';
import { controlsGet, type KvmVmx, toKvmVmx, toVmx, vmcsOf, vmxModule } from './vcpu-vmx.ts';

/** Segments that virtual-8086 mode constrains. */
export const RMODE_SEGMENTS = [Seg.CS, Seg.SS, Seg.DS, Seg.ES, Seg.FS, Seg.GS] as const;
/** RFLAGS bits that stay KVM's while the guest's real mode runs as virtual-8086. KVM: ~RMODE_GUEST_OWNED_EFLAGS_BITS. */
export const RMODE_HOST_RFLAGS = BigInt(Flag.IOPL | Flag.VM);

const PAGE = 4096;
const TSS_SLOT = USER_MEM_SLOTS;
const IDENTITY_SLOT = USER_MEM_SLOTS + 2;
/** 68H bytes TSS, 20H interrupt redirection map, 2000H I/O bitmap, one closing byte. */
const RMODE_TSS_SIZE = 0x68 + 0x20 + 0x2000 + 1;
/** Where QEMU puts the TSS: behind the identity map's page. */
const DEFAULT_TSS_ADDR = 0xfffbd000;

/**
 * Writes the virtual-8086 form of a real-mode segment into the VMCS. KVM: fix_rmode_seg.
 * With emulation of invalid state the odd ones keep base and limit, and the guest is emulated until they fit.
 */
export function fixRmodeSeg(vcpu: Vcpu, seg: SegmentIndex, save: KvmSegment): void {
  const fixed: KvmSegment = { ...save, dpl: 3 };
  if (seg === Seg.CS) fixed.type = 3;
  if (!toVmx(vcpu).module.params.emulateInvalidGuestState) {
    fixed.selector = Number(save.base >> 4n) & 0xffff;
    fixed.base = save.base & 0xffff0n;
    Object.assign(fixed, { limit: 0xffff, g: 0, db: 0, present: 1, s: 1, l: 0, unusable: 0, type: 3, avl: 0 });
  }
  writeSegment(vcpu, fixed, seg);
}

/** The guest clears PE: its real mode becomes virtual-8086 mode. KVM: enter_rmode. */
export const enterRmode = frame('enterRmode', (vcpu: Vcpu): void => {
  const { rmode } = toVmx(vcpu);
  const v = vmcsOf(vcpu);
  for (const seg of [Seg.TR, Seg.ES, Seg.DS, Seg.FS, Seg.GS, Seg.SS, Seg.CS] as const) {
    rmode.segs[seg] = vmxGetSegment(vcpu, seg);
  }
  rmode.vm86Active = true;
  v.write64(F.GUEST_TR_BASE, BigInt(toKvmVmx(vcpu.vm).tssAddr ?? 0));
  v.write32(F.GUEST_TR_LIMIT, RMODE_TSS_SIZE - 1);
  v.write32(F.GUEST_TR_AR_BYTES, 0x8b);
  const rflags = v.read64(F.GUEST_RFLAGS);
  rmode.saveRflags = rflags;
  v.write64(F.GUEST_RFLAGS, rflags | RMODE_HOST_RFLAGS);
  v.write64(F.GUEST_CR4, v.read64(F.GUEST_CR4) | CR4.VME);
  vmxUpdateExceptionBitmap(vcpu);
  for (const seg of [Seg.SS, Seg.CS, Seg.ES, Seg.DS, Seg.GS, Seg.FS] as const) fixRmodeSeg(vcpu, seg, rmode.segs[seg]);
});

/** The guest sets PE. KVM: enter_pmode. */
export const enterPmode = frame('enterPmode', (vcpu: Vcpu): void => {
  const { rmode } = toVmx(vcpu);
  const v = vmcsOf(vcpu);
  for (const seg of [Seg.ES, Seg.DS, Seg.FS, Seg.GS, Seg.SS, Seg.CS] as const) {
    rmode.segs[seg] = vmxGetSegment(vcpu, seg);
  }
  rmode.vm86Active = false;
  setSegmentRaw(vcpu, rmode.segs[Seg.TR], Seg.TR);
  const owned = v.read64(F.GUEST_RFLAGS) & ~RMODE_HOST_RFLAGS;
  v.write64(F.GUEST_RFLAGS, owned | (rmode.saveRflags & RMODE_HOST_RFLAGS));
  const vme = v.read64(F.CR4_READ_SHADOW) & CR4.VME;
  v.write64(F.GUEST_CR4, (v.read64(F.GUEST_CR4) & ~CR4.VME) | vme);
  vmxUpdateExceptionBitmap(vcpu);
  for (const seg of [Seg.CS, Seg.SS, Seg.ES, Seg.DS, Seg.FS, Seg.GS] as const) fixPmodeSeg(vcpu, seg, rmode.segs[seg]);
});

/** KVM: fix_pmode_seg. */
function fixPmodeSeg(vcpu: Vcpu, seg: SegmentIndex, save: KvmSegment): void {
  if (!toVmx(vcpu).module.params.emulateInvalidGuestState) {
    // CS and SS must agree in RPL and DPL from the first instruction on.
    if (seg === Seg.CS || seg === Seg.SS) save.selector &= ~3;
    save.dpl = save.selector & 3;
    save.s = 1;
  }
  setSegmentRaw(vcpu, save, seg);
}

// Pages in the guest's physical memory

/** KVM: __x86_set_memory_region. @returns 0 or -errno */
function setPrivateSlot(vm: Vm, slot: number, address: number, pages: number): void {
  kvmSetMemoryRegion(vm, { slot, guestPhysAddr: address, memorySize: pages * PAGE });
}

/** KVM: vmx_set_tss_addr. */
export function vmxSetTssAddr(vm: Vm, address: number): number {
  if (vmxModule(vm.kvm).params.unrestrictedGuest) return 0;
  const kvmVmx = toKvmVmx(vm);
  if (kvmVmx.tssAddr !== undefined) setPrivateSlot(vm, TSS_SLOT, kvmVmx.tssAddr, 0);
  setPrivateSlot(vm, TSS_SLOT, address, 3);
  kvmVmx.tssAddr = address;
  initRmodeTss(vm, address);
  return 0;
}
/** All zero but the I/O map's base (behind the redirection map) and the closing byte. KVM: init_rmode_tss. */
function initRmodeTss(vm: Vm, address: number): void {
  vm.writeGuest(address, new Uint8Array(3 * PAGE));
  vm.writeGuest(address + 0x66, Uint8Array.of(0x88, 0x00));
  vm.writeGuest(address + RMODE_TSS_SIZE - 1, Uint8Array.of(0xff));
}
/** KVM: vmx_set_identity_map_addr. */
export function vmxSetIdentityMapAddr(vm: Vm, address: number): number {
  toKvmVmx(vm).identityMapAddr = address;
  return 0;
}

/** What a VM without unrestricted guest needs before its first vCPU. KVM: init_rmode_identity_map. */
export function initRmodeIdentityMap(vm: Vm): void {
  const kvmVmx = toKvmVmx(vm);
  if (kvmVmx.identityMapDone) return;
  if (vmxModule(vm.kvm).params.ept) writeIdentityMap(vm, kvmVmx);
  kvmVmx.identityMapDone = true;
  // KVM only warns if user space never gave a TSS; without one the guest's port accesses would meet a random I/O map.
  if (kvmVmx.tssAddr === undefined) vmxSetTssAddr(vm, DEFAULT_TSS_ADDR);
}
function writeIdentityMap(vm: Vm, kvmVmx: KvmVmx): void {
  setPrivateSlot(vm, IDENTITY_SLOT, kvmVmx.identityMapAddr, 1);
  const table = new DataView(new ArrayBuffer(PAGE));
  // 4 MiB pages: present, writable, user, accessed, dirty, PS.
  for (let i = 0; i < 1024; i++) table.setUint32(4 * i, (i * 0x400000 + 0xe7) >>> 0, true);
  vm.writeGuest(kvmVmx.identityMapAddr, new Uint8Array(table.buffer));
}

// Exceptions and emulation

const GUESTDBG_ENABLE_STEP_OR_HW = 0x2 | 0x20000;
const GUESTDBG_USE_SW_BP = 0x10000;
const REFLECTED: ReadonlySet<number> = new Set([
  Vector.DE,
  Vector.OF,
  Vector.BR,
  Vector.UD,
  Vector.DF,
  Vector.SS,
  Vector.GP,
  Vector.MF,
]);

/** Is this exception real mode's own business. KVM: rmode_exception. */
export function rmodeException(vcpu: Vcpu, vector: number): boolean {
  if (vector === Vector.BP) {
    toVmx(vcpu).eventExitInstLen = vmcsOf(vcpu).read32(F.VM_EXIT_INSTRUCTION_LEN);
    if (vcpu.guestDebug & GUESTDBG_USE_SW_BP) return false;
  }
  if (vector === Vector.BP || vector === Vector.DB) return (vcpu.guestDebug & GUESTDBG_ENABLE_STEP_OR_HW) === 0;
  return REFLECTED.has(vector);
}

/** #GP and #SS of virtual-8086 mode: the instruction may be legal in real mode. KVM: handle_rmode_exception. */
export const handleRmodeException = frame(
  'handleRmodeException',
  (vcpu: Vcpu, vector: number, errorCode: number): number => {
    if ((vector === Vector.GP || vector === Vector.SS) && errorCode === 0) {
      if (!kvmEmulateInstruction(vcpu, 0)) return 0;
      return haltIfRequested(vcpu);
    }
    kvmQueueException(vcpu, vector);
    return 1;
  },
);
function haltIfRequested(vcpu: Vcpu): number {
  if (!vcpu.arch.haltRequest) return 1;
  vcpu.arch.haltRequest = false;
  return kvmEmulateHaltNoskip(vcpu);
}

/** Invalid state together with an exception: neither entry nor emulation can deliver it. KVM: vmx_unhandleable_emulation_required. */
export function vmxUnhandleableEmulationRequired(vcpu: Vcpu): number {
  if (!vcpu.arch.emulationRequired || toVmx(vcpu).rmode.vm86Active) return 0;
  return kvmIsExceptionPending(vcpu) || vcpu.arch.exception.injected ? 1 : 0;
}

const EMULATION_BATCH = 130;

/** Emulates until the guest's state is one that VM entry takes. KVM: handle_invalid_guest_state. */
export const handleInvalidGuestState = frame('handleInvalidGuestState', (vcpu: Vcpu): number => {
  const { arch } = vcpu;
  const window = (controlsGet(vcpu, F.CPU_BASED_VM_EXEC_CONTROL) & Primary.interruptWindow) !== 0;
  noteEmulatedSwitch(vcpu);
  for (let count = EMULATION_BATCH; arch.emulationRequired && count > 0; count--) {
    if (window && !vmxInterruptBlocked(vcpu)) return handleInterruptWindow(vcpu);
    if (kvmTestRequest(Req.EVENT, vcpu)) return 1;
    const goOn = kvmEmulateInstruction(vcpu, 0);
    noteEmulatedSwitch(vcpu);
    if (!goOn) return 0;
    if (vmxUnhandleableEmulationRequired(vcpu)) {
      kvmPrepareEmulationFailureExit(vcpu);
      return 0;
    }
    if (arch.haltRequest) return haltIfRequested(vcpu);
    if (workPending(vcpu)) return 1;
  }
  return 1;
});
/** The budget is used up or the host's timer is due: back to the run loop. KVM: xfer_to_guest_mode_work_pending. */
function workPending(vcpu: Vcpu): boolean {
  const { processor } = vcpu.kvm;
  return processor.interruptPending || processor.tick >= processor.deadline;
}
