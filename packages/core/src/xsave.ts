/**
 * KVM_GET_XSAVE, KVM_SET_XSAVE, KVM_GET_FPU, KVM_SET_FPU: the registers in KVM's bytes.
 * Manual: SDM vol. 1 section 13.4 (the standard format). KVM: fpu_copy_guest_fpstate_to_uabi, fpu_copy_uabi_to_guest_fpstate; kvm_xsave, kvm_fpu.
 */
import { FpuArea, initialiseX87, MXCSR_MASK, putMxcsr, putX87, putXmm, takeX87, takeXmm } from '@tskvm/emulator';
import { KvmError } from './diagnostics.ts';
import { fpuView, kvmReadPkru, kvmWritePkru } from './fpu.ts';
import { requireShape } from './shape.ts';
import { KVM_FPU, KVM_XSAVE } from './state-shapes.ts';
import { Errno } from './types.ts';
import type { Vcpu } from './vcpu.ts';
import { requireUnprotected } from './vcpu-state.ts';

const X87 = 1n;
const SSE = 2n;
const AVX = 4n;
const PKRU = 0x200n;
const XSAVE_SIZE = 4096;
const MXCSR_AT = 24;
const XSTATE_BV = 512;
const XCOMP_BV = 520;
const HEADER_END = 576;
const AVX_AT = 576;
const PKRU_AT = 832;
const INITIAL_CW = 0x37f;
const INITIAL_MXCSR = 0x1f80;
const VECTORS = 16;

const areaOf = (vcpu: Vcpu): FpuArea => new FpuArea(fpuView(vcpu));
const range = Array.from({ length: VECTORS }, (_, n) => n);

function x87IsInitial(fpu: FpuArea): boolean {
  const words = fpu.cw === INITIAL_CW && fpu.sw === 0 && fpu.tw === 0 && fpu.opcode === 0;
  return words && fpu.ip === 0n && fpu.dp === 0n && range.slice(0, 8).every((n) => fpu.register(n) === 0n);
}

/** XSTATE_BV: what is not in its initial state. */
function componentsInUse(vcpu: Vcpu, fpu: FpuArea): bigint {
  return (
    (x87IsInitial(fpu) ? 0n : X87) |
    (range.some((n) => fpu.xmm(n) !== 0n) ? SSE : 0n) |
    (range.some((n) => fpu.high(n) !== 0n) ? AVX : 0n) |
    (kvmReadPkru(vcpu) !== 0 ? PKRU : 0n)
  );
}

/**
 * KVM_GET_XSAVE: 4096 bytes, the XSAVE area in the standard format; XSTATE_BV lists what is not in its initial state.
 * Throws KvmError PROTECTED_STATE (EINVAL).
 */
export function getXsave(vcpu: Vcpu): Uint8Array {
  requireUnprotected(vcpu, 'KVM_GET_XSAVE');
  const bytes = new Uint8Array(XSAVE_SIZE);
  const view = new DataView(bytes.buffer);
  const fpu = areaOf(vcpu);
  putX87(view, fpu, true);
  putMxcsr(view, fpu);
  putXmm(view, fpu, VECTORS);
  view.setBigUint64(XSTATE_BV, componentsInUse(vcpu, fpu) & vcpu.kvm.caps.supportedXcr0, true);
  for (const n of range) {
    const high = fpu.high(n);
    view.setBigUint64(AVX_AT + n * 16, BigInt.asUintN(64, high), true);
    view.setBigUint64(AVX_AT + n * 16 + 8, high >> 64n, true);
  }
  view.setUint32(PKRU_AT, kvmReadPkru(vcpu), true);
  return bytes;
}

const refuse = (why: string): never => {
  throw new KvmError('XSAVE_AREA', Errno.EINVAL, `KVM_SET_XSAVE: ${why}`);
};

/** What XRSTOR in the standard format refuses, and components that the host lacks. */
function checkArea(vcpu: Vcpu, view: DataView): bigint {
  const listed = view.getBigUint64(XSTATE_BV, true);
  const foreign = listed & ~vcpu.kvm.caps.supportedXcr0;
  if (foreign !== 0n) refuse(`XSTATE_BV lists components 0x${foreign.toString(16)}, which the host does not have`);
  if (view.getBigUint64(XCOMP_BV, true) !== 0n) refuse('XCOMP_BV is not 0: give the standard format');
  for (let at = XCOMP_BV + 8; at < HEADER_END; at += 8) {
    if (view.getBigUint64(at, true) !== 0n)
      refuse(`byte ${at - XSTATE_BV} and those behind it in the header must be 0`);
  }
  const mxcsr = view.getUint32(MXCSR_AT, true);
  if ((listed & (X87 | SSE | AVX)) !== 0n && (mxcsr & ~MXCSR_MASK) !== 0)
    refuse(`MXCSR 0x${mxcsr.toString(16)} has reserved bits`);
  return listed;
}

/**
 * KVM_SET_XSAVE: components that XSTATE_BV does not list become initial; PKRU is left as it is then.
 * Throws KvmError XSAVE_AREA, PROTECTED_STATE (EINVAL), before anything has changed.
 */
export function setXsave(vcpu: Vcpu, area: Uint8Array): void {
  requireShape('XSAVE_AREA', Errno.EINVAL, 'KVM_SET_XSAVE: ', area, 'area', KVM_XSAVE);
  requireUnprotected(vcpu, 'KVM_SET_XSAVE');
  const view = new DataView(area.buffer, area.byteOffset, area.byteLength);
  const listed = checkArea(vcpu, view);
  const fpu = areaOf(vcpu);
  if ((listed & X87) !== 0n) takeX87(view, fpu, true);
  else {
    initialiseX87(fpu);
    for (let n = 0; n < 8; n++) fpu.setRegister(n, 0n);
  }
  fpu.mxcsr = (listed & (X87 | SSE | AVX)) !== 0n ? view.getUint32(MXCSR_AT, true) : INITIAL_MXCSR;
  if ((listed & SSE) !== 0n) takeXmm(view, fpu, VECTORS);
  else for (const n of range) fpu.setXmm(n, 0n);
  for (const n of range) {
    const word = (at: number): bigint => ((listed & AVX) !== 0n ? view.getBigUint64(AVX_AT + n * 16 + at, true) : 0n);
    fpu.setHigh(n, (word(8) << 64n) | word(0));
  }
  if ((listed & PKRU) !== 0n) kvmWritePkru(vcpu, view.getUint32(PKRU_AT, true));
}

/** struct kvm_fpu: where its parts lie, and where FXSAVE's image has them: [kvm_fpu, FXSAVE, bytes]. KVM leaves MXCSR out. */
const FPU_SIZE = 416;
const FPU_PARTS = [
  [0, 32, 128],
  [128, 0, 2],
  [130, 2, 2],
  [132, 4, 1],
  [134, 6, 2],
  [136, 8, 8],
  [144, 16, 8],
  [152, 160, 256],
] as const;

/** KVM_GET_FPU: struct kvm_fpu, 416 bytes; its `mxcsr` is 0, as KVM leaves it. Throws KvmError PROTECTED_STATE (EINVAL). */
export function getKvmFpu(vcpu: Vcpu): Uint8Array {
  requireUnprotected(vcpu, 'KVM_GET_FPU');
  const area = getXsave(vcpu);
  const bytes = new Uint8Array(FPU_SIZE);
  for (const [to, from, length] of FPU_PARTS) bytes.set(area.subarray(from, from + length), to);
  return bytes;
}

/** KVM_SET_FPU: struct kvm_fpu; MXCSR and what is above bit 127 stay. Throws KvmError FPU_IMAGE, PROTECTED_STATE (EINVAL). */
export function setKvmFpu(vcpu: Vcpu, image: Uint8Array): void {
  requireShape('FPU_IMAGE', Errno.EINVAL, 'KVM_SET_FPU: ', image, 'image', KVM_FPU);
  requireUnprotected(vcpu, 'KVM_SET_FPU');
  const area = new Uint8Array(XSTATE_BV);
  for (const [from, to, length] of FPU_PARTS) area.set(image.subarray(from, from + length), to);
  const view = new DataView(area.buffer);
  const fpu = areaOf(vcpu);
  takeX87(view, fpu, true);
  takeXmm(view, fpu, VECTORS);
}
