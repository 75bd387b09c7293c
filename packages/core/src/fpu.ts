/** Guest registers that no control block holds: x87, SSE, AVX, XCR0, PKRU, IA32_PKRS, DR0-3. KVM: kvm_load_guest_fpu, kvm_load_guest_xsave_state. */
import { S } from '@tskvm/emulator';
import type { Vcpu } from './vcpu.ts';

const START = S.ymm;
const LENGTH = S.mxcsr + 4 - S.ymm;

/** State after RESET: FCW 37Fh, MXCSR 1F80h, all registers empty. */
export const FRESH_FPU: Uint8Array = (() => {
  const image = new Uint8Array(LENGTH);
  const view = new DataView(image.buffer);
  view.setUint16(S.fcw - START, 0x37f, true);
  view.setUint32(S.mxcsr - START, 0x1f80, true);
  return image;
})();

/** The state block's bytes on the processor. */
function block(vcpu: Vcpu): Uint8Array {
  const { state } = vcpu.kvm.processor;
  return state.u8.subarray(START, START + LENGTH);
}
const isLoaded = (vcpu: Vcpu): boolean => vcpu.kvm.runningVcpu === vcpu;

/** A vCPU came onto the processor. */
export function loadGuestFpu(vcpu: Vcpu): void {
  block(vcpu).set(vcpu.arch.guestFpu);
  const { state } = vcpu.kvm.processor;
  state.set64(S.xcr0, vcpu.arch.xcr0);
  state.pkru = vcpu.arch.pkru;
  state.pkrs = vcpu.arch.pkrs;
}
/** It leaves. */
export function putGuestFpu(vcpu: Vcpu): void {
  vcpu.arch.guestFpu.set(block(vcpu));
  vcpu.arch.pkru = kvmReadPkru(vcpu);
  vcpu.arch.pkrs = kvmReadPkrs(vcpu);
}

/** The guest's PKRU and IA32_PKRS, which it writes without an exit. KVM: kvm_read_pkru. */
export const kvmReadPkru = (vcpu: Vcpu): number => (isLoaded(vcpu) ? vcpu.kvm.processor.state.pkru : vcpu.arch.pkru);
export const kvmReadPkrs = (vcpu: Vcpu): number => (isLoaded(vcpu) ? vcpu.kvm.processor.state.pkrs : vcpu.arch.pkrs);
export function kvmWritePkru(vcpu: Vcpu, value: number): void {
  vcpu.arch.pkru = value;
  if (isLoaded(vcpu)) vcpu.kvm.processor.state.pkru = value;
}
export function kvmWritePkrs(vcpu: Vcpu, value: number): void {
  vcpu.arch.pkrs = value;
  if (isLoaded(vcpu)) vcpu.kvm.processor.state.pkrs = value;
}
/** XCR0, which XSETBV, RESET and user space write. */
export function kvmWriteXcr0(vcpu: Vcpu, value: bigint): void {
  vcpu.arch.xcr0 = value;
  if (isLoaded(vcpu)) vcpu.kvm.processor.state.set64(S.xcr0, value);
}
/** DR0-3 in effect for the guest. */
export function loadDebugRegisters(vcpu: Vcpu): void {
  for (let i = 0; i < 4; i++) vcpu.kvm.processor.state.set64(S.dr0 + 8 * i, vcpu.arch.effDb[i]);
}

export const getFpu = (vcpu: Vcpu): Uint8Array => (isLoaded(vcpu) ? block(vcpu) : vcpu.arch.guestFpu).slice();
export function setFpu(vcpu: Vcpu, image: Uint8Array): void {
  (isLoaded(vcpu) ? block(vcpu) : vcpu.arch.guestFpu).set(image.subarray(0, LENGTH));
}

const views = new WeakMap<ArrayBufferLike, DataView>();
/** The registers where they are now, for an emulated instruction. KVM: kvm_fpu_get and the emulator's accessors. */
export function fpuView(vcpu: Vcpu): DataView {
  const bytes = isLoaded(vcpu) ? block(vcpu) : vcpu.arch.guestFpu;
  let view = views.get(bytes.buffer);
  if (view === undefined || view.byteOffset !== bytes.byteOffset) {
    view = new DataView(bytes.buffer, bytes.byteOffset, LENGTH);
    views.set(bytes.buffer, view);
  }
  return view;
}
