/** RESET, INIT and SIPI. KVM: kvm_vcpu_reset, kvm_vcpu_deliver_sipi_vector (x86.c); manual: APM vol. 2 table 14-1. */
import { CR0, RDX, Seg } from '@tskvm/emulator';
import { kvmFindCpuidEntry, kvmUpdateCpuidRuntime } from './cpuid.ts';
import { DR6_INIT, DR7_FIXED_1, kvmUpdateDr7, kvmUpdateDr0123 } from './debugregs.ts';
import { kvmClearExceptionQueue, kvmClearInterruptQueue } from './exceptions.ts';
import { FRESH_FPU, kvmWritePkrs, kvmWritePkru, kvmWriteXcr0, setFpu } from './fpu.ts';
import {
  isGuestMode,
  kvmReadCr0,
  kvmRegisterMarkAvailable,
  kvmRegisterMarkDirty,
  kvmRipWrite,
} from './kvm-cache-regs.ts';
import { kvmLapicReset } from './lapic.ts';
import { kvmMmuResetContext } from './mmu/mmu.ts';
import { kvmMakeRequest } from './requests.ts';
import { kvmSmmChanged } from './smm.ts';
import { frame } from './trace.ts';
import { MpState, Req } from './types.ts';
import type { Vcpu } from './vcpu.ts';

/** CPUID.1:EAX before CPUID was set. */
const DEFAULT_SIGNATURE = 0x600;

function clearEvents(vcpu: Vcpu): void {
  const { arch } = vcpu;
  arch.smiPending = false;
  arch.smiCount = 0;
  arch.nmiQueued = 0;
  arch.nmiPending = 0;
  arch.nmiInjected = false;
  kvmClearInterruptQueue(vcpu);
  kvmClearExceptionQueue(vcpu);
  arch.db.fill(0n);
  kvmUpdateDr0123(vcpu);
  arch.dr6 = DR6_INIT;
  arch.dr7 = DR7_FIXED_1;
  arch.cr2[0] = 0n;
  kvmMakeRequest(Req.EVENT, vcpu);
}

/** What RESET sets and INIT leaves alone. */
function powerOnState(vcpu: Vcpu): void {
  const { arch } = vcpu;
  arch.smbase = 0x30000n;
  arch.pat = 0x0007040600070406n;
  arch.miscEnable = 0x1800n;
  kvmWriteXcr0(vcpu, 1n);
  setFpu(vcpu, FRESH_FPU);
  arch.xss = 0n;
  arch.tscAux = 0n;
  kvmWritePkru(vcpu, 0);
  kvmWritePkrs(vcpu, 0);
  arch.msrs.clear();
  arch.completeUserspaceIo = null;
  arch.pio.count = 0;
}

/** RESET (false) or INIT (true). KVM: kvm_vcpu_reset. */
export const kvmVcpuReset = frame('kvmVcpuReset', (vcpu: Vcpu, initEvent: boolean): void => {
  const { arch, kvm } = vcpu;
  const oldCr0 = kvmReadCr0(vcpu);
  if (isGuestMode(vcpu)) kvm.calls.leaveNested(vcpu);
  kvmLapicReset(vcpu, initEvent);
  if ((arch.hflags & 2) !== 0) kvmSmmChanged(vcpu, false);
  arch.hflags = 0;
  clearEvents(vcpu);
  arch.haltRequest = false;
  if (!initEvent) powerOnState(vcpu);
  arch.regs.fill(0n);
  for (const reg of ['rip', 'rsp', 'rflags', 'cr0', 'cr3', 'cr4', 'pdptr', 'segments'] as const)
    kvmRegisterMarkAvailable(vcpu, reg);
  kvmRegisterMarkDirty(vcpu, 'rsp');
  arch.regs[RDX] = BigInt(kvmFindCpuidEntry(vcpu, 1)?.eax ?? DEFAULT_SIGNATURE);
  kvm.calls.vcpuReset(vcpu, initEvent);
  kvmUpdateDr7(vcpu);
  kvm.calls.setRflags(vcpu, 2n);
  kvmRipWrite(vcpu, 0xfff0n);
  arch.cr3 = 0n;
  kvmRegisterMarkDirty(vcpu, 'cr3');
  // INIT keeps CD and NW; the rest of CR0 is ET (SDM vol. 3 table 9-1).
  const cacheBits = CR0.CD | CR0.NW;
  kvm.calls.setCr0(vcpu, CR0.ET | (initEvent ? oldCr0 & cacheBits : cacheBits));
  kvm.calls.setCr4(vcpu, 0n);
  kvm.calls.setEfer(vcpu, 0n);
  kvm.calls.updateExceptionBitmap(vcpu);
  if ((oldCr0 & CR0.PG) !== 0n) {
    kvmMakeRequest(Req.TLB_FLUSH_GUEST, vcpu);
    kvmMmuResetContext(vcpu);
  }
  if (initEvent) kvmMakeRequest(Req.TLB_FLUSH_GUEST, vcpu);
  kvmUpdateCpuidRuntime(vcpu);
});

/** SIPI: CS:IP from the vector. KVM: kvm_vcpu_deliver_sipi_vector. */
export const kvmVcpuDeliverSipiVector = frame('kvmVcpuDeliverSipiVector', (vcpu: Vcpu, vector: number): void => {
  const { calls } = vcpu.kvm;
  const cs = calls.getSegment(vcpu, Seg.CS);
  calls.setSegment(vcpu, { ...cs, selector: vector << 8, base: BigInt(vector << 12) }, Seg.CS);
  kvmRipWrite(vcpu, 0n);
});

/** mp_state after RESET. */
export const initialMpState = (vcpu: Vcpu): MpState =>
  !vcpu.arch.apic || vcpu.vcpuId === vcpu.vm.bspVcpuId ? MpState.RUNNABLE : MpState.UNINITIALIZED;
