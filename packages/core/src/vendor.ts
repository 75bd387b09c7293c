/** Loading and unloading a vendor. KVM: kvm_x86_vendor_init and kvm_x86_vendor_exit (x86.c). */
import { EFER } from '@tskvm/emulator';
import { type Backend, frameBases, type ResolvedBackend, resolveBackend } from './backend.ts';
import { initialCpuCaps } from './cpuid.ts';
import { KvmError } from './diagnostics.ts';
import type { Kvm } from './kvm.ts';
import { attributeError, kvmOpsUpdate, unloadedCalls } from './static-calls.ts';
import { Errno } from './types.ts';

const MSR_PAT = 0x277;

const errnoName = (errno: number): string =>
  Object.entries(Errno).find(([, value]) => value === errno)?.[0] ?? `errno ${errno}`;

/** What every vendor needs of the processor. */
function checkHost(kvm: Kvm): void {
  const [, , , edx] = kvm.processor.cpuid(1, 0);
  if ((edx & 1) === 0 || (edx & (1 << 24)) === 0) {
    throw new KvmError('HOST_NO_FXSR', Errno.EOPNOTSUPP, 'the CPU model lacks FPU or FXSR; choose one with both');
  }
  const pat = kvm.processor.rdmsr(MSR_PAT) ?? 0x0007040600070406n;
  if ((pat & 7n) !== 6n) {
    throw new KvmError('HOST_PAT', Errno.EIO, `the host's PAT entry 0 is ${pat & 7n}, it must be 6 (write-back)`);
  }
}

/** EFER bits that KVM can give to guests on this processor; a vendor adds SVME by kvmEnableEferBits. */
function hostEferCaps(kvm: Kvm): bigint {
  const has = (name: string) => kvm.cpuCaps.has(name);
  let efer = EFER.SCE;
  if (has('lm')) efer |= EFER.LME | EFER.LMA;
  if (has('nx')) efer |= EFER.NXE;
  if (has('ffxsr')) efer |= EFER.FFXSR;
  return efer;
}

function resetCaps(kvm: Kvm): void {
  kvm.cpuCaps = initialCpuCaps(kvm);
  Object.assign(kvm.caps, {
    supportedXcr0: hostXcr0(kvm),
    supportedXss: 0n,
    // MCG_CTL_P, MCG_SER_P, 32 banks.
    supportedMceCap: 0x01000100n | 32n,
    hasTscControl: false,
    tdpEnabled: false,
    efer: hostEferCaps(kvm),
  });
}
/** XCR0 components that the processor has and KVM knows: x87, SSE, AVX, PKRU. */
function hostXcr0(kvm: Kvm): bigint {
  if (!kvm.cpuCaps.has('xsave')) return 0n;
  const [eax] = kvm.processor.cpuid(0xd, 0);
  return BigInt(eax >>> 0) & (kvm.cpuCaps.has('pku') ? 0x207n : 7n);
}

/** Runs one step of loading; a negative errno or an escaped error becomes a KvmError that names the step. */
function step(kvm: Kvm, backend: string, name: string, run: () => number): void {
  let err: number;
  try {
    err = run();
  } catch (error) {
    throw attributeError(backend, name, error);
  }
  if (err < 0) {
    throw new KvmError(
      name === 'checkProcessorCompatibility' ? 'VENDOR_INCOMPATIBLE_PROCESSOR' : 'VENDOR_SETUP_FAILED',
      -err,
      `backend '${backend}': ${name} answered -${errnoName(-err)} on CPU model '${kvm.model.name}'; choose a CPU model of this vendor with virtualisation`,
    );
  }
}

function enableVendor(kvm: Kvm, vendor: ResolvedBackend): void {
  if (vendor.hardware) kvm.hardware = vendor.hardware(kvm.processor, kvm.memory, kvm.model);
  step(kvm, vendor.name, 'hardwareSetup', () => vendor.hardwareSetup?.(kvm) ?? 0);
  try {
    step(kvm, vendor.name, 'checkProcessorCompatibility', () => kvm.calls.checkProcessorCompatibility(kvm));
    step(kvm, vendor.name, 'enableVirtualizationCpu', () => kvm.calls.enableVirtualizationCpu(kvm));
  } catch (error) {
    kvm.calls.hardwareUnsetup(kvm);
    throw error;
  }
}

/**
 * Loads a vendor. Throws KvmError: VENDOR_LOADED (EEXIST), HOST_NO_FXSR, HOST_PAT, OP_MISSING (EINVAL), OP_THREW (EIO),
 * VENDOR_INCOMPATIBLE_PROCESSOR (EIO), VENDOR_SETUP_FAILED; nothing stays loaded then.
 */
export function kvmX86VendorInit(kvm: Kvm, backend: Backend): void {
  if (kvm.backend) {
    throw new KvmError(
      'VENDOR_LOADED',
      Errno.EEXIST,
      `backend '${kvm.backend.name}' is loaded already; unload it first, or load '${backend.name}' into another Kvm`,
    );
  }
  const vendor = resolveBackend(backend);
  checkHost(kvm);
  resetCaps(kvm);
  const calls = kvmOpsUpdate(vendor.name, vendor.ops, kvm.tracer !== null);
  frameBases(vendor, kvm.tracer);
  RESOLVED.set(kvm, vendor);
  kvm.backend = backend;
  kvm.calls = calls;
  try {
    enableVendor(kvm, vendor);
  } catch (error) {
    forget(kvm);
    throw error;
  }
}

/** The loaded backend with its base's ops merged in. A wrapper's `ops` is called once a load, so it may keep state in its closure. */
const RESOLVED = new WeakMap<Kvm, ResolvedBackend>();
export const resolvedVendor = (kvm: Kvm): ResolvedBackend | undefined => RESOLVED.get(kvm);

function forget(kvm: Kvm): void {
  RESOLVED.delete(kvm);
  kvm.backend = null;
  kvm.vendor = null;
  kvm.hardware = null;
  kvm.calls = unloadedCalls();
}

/** Unloads the vendor. Throws KvmError VENDOR_BUSY (EBUSY) while a VM exists. */
export function kvmX86VendorExit(kvm: Kvm): void {
  if (!kvm.backend) return;
  if (kvm.vms.length > 0) {
    throw new KvmError('VENDOR_BUSY', Errno.EBUSY, `${kvm.vms.length} VM(s) exist; destroy them before unloading`);
  }
  kvm.calls.disableVirtualizationCpu(kvm);
  kvm.calls.hardwareUnsetup(kvm);
  forget(kvm);
}

/** Rebuilds the calls with or without frames, when the first listener comes or the last goes. */
export function retargetCalls(kvm: Kvm): void {
  const vendor = resolvedVendor(kvm);
  if (!vendor) return;
  frameBases(vendor, kvm.tracer);
  kvm.calls = kvmOpsUpdate(vendor.name, vendor.ops, kvm.tracer !== null);
}
