/**
 * The numbers of VT-x: control bits, exit reasons, interruption types, error codes, capability MSRs.
 * Manual: SDM vol. 3 ch. 24 (controls), appendix A (capability MSRs), appendix C (exit reasons).
 */

/** Pin-based controls (SDM 24.6.1). */
export const Pin = {
  externalInterrupt: 1 << 0,
  nmi: 1 << 3,
  virtualNmis: 1 << 5,
  preemptionTimer: 1 << 6,
  postedInterrupts: 1 << 7,
} as const;

/** Primary processor-based controls (SDM 25.6.2). */
export const Primary = {
  interruptWindow: 1 << 2,
  tscOffset: 1 << 3,
  hlt: 1 << 7,
  invlpg: 1 << 9,
  mwait: 1 << 10,
  rdpmc: 1 << 11,
  rdtsc: 1 << 12,
  cr3Load: 1 << 15,
  cr3Store: 1 << 16,
  tertiary: 1 << 17,
  cr8Load: 1 << 19,
  cr8Store: 1 << 20,
  tprShadow: 1 << 21,
  nmiWindow: 1 << 22,
  movDr: 1 << 23,
  unconditionalIo: 1 << 24,
  ioBitmaps: 1 << 25,
  monitorTrap: 1 << 27,
  msrBitmaps: 1 << 28,
  monitor: 1 << 29,
  pause: 1 << 30,
  secondary: 1 << 31,
} as const;

/** Secondary processor-based controls. */
export const Secondary = {
  apicAccess: 1 << 0,
  ept: 1 << 1,
  descriptorTable: 1 << 2,
  rdtscp: 1 << 3,
  x2apic: 1 << 4,
  vpid: 1 << 5,
  wbinvd: 1 << 6,
  unrestrictedGuest: 1 << 7,
  apicRegister: 1 << 8,
  virtualInterrupt: 1 << 9,
  pauseLoop: 1 << 10,
  rdrand: 1 << 11,
  invpcid: 1 << 12,
  vmfunc: 1 << 13,
  shadowing: 1 << 14,
  encls: 1 << 15,
  rdseed: 1 << 16,
  pml: 1 << 17,
  eptViolationVe: 1 << 18,
  ptConceal: 1 << 19,
  xsaves: 1 << 20,
  modeBasedExecute: 1 << 22,
  subPageWrite: 1 << 23,
  ptGpa: 1 << 24,
  tscScaling: 1 << 25,
  userWaitPause: 1 << 26,
} as const;

/** VM-exit controls (SDM 24.7.1). */
export const ExitCtl = {
  saveDebug: 1 << 2,
  host64: 1 << 9,
  loadPerfGlobal: 1 << 12,
  ackInterrupt: 1 << 15,
  savePat: 1 << 18,
  loadPat: 1 << 19,
  saveEfer: 1 << 20,
  loadEfer: 1 << 21,
  savePreemptionTimer: 1 << 22,
  clearBndcfgs: 1 << 23,
} as const;

/** VM-entry controls (SDM 24.8.1). */
export const EntryCtl = {
  loadDebug: 1 << 2,
  ia32e: 1 << 9,
  smm: 1 << 10,
  deactivateDualMonitor: 1 << 11,
  loadPerfGlobal: 1 << 13,
  loadPat: 1 << 14,
  loadEfer: 1 << 15,
  loadBndcfgs: 1 << 16,
} as const;

/** Basic exit reasons (SDM appendix C), by KVM's names. */
export const Reason = {
  EXCEPTION_NMI: 0,
  EXTERNAL_INTERRUPT: 1,
  TRIPLE_FAULT: 2,
  INIT_SIGNAL: 3,
  SIPI_SIGNAL: 4,
  OTHER_SMI: 6,
  INTERRUPT_WINDOW: 7,
  NMI_WINDOW: 8,
  TASK_SWITCH: 9,
  CPUID: 10,
  GETSEC: 11,
  HLT: 12,
  INVD: 13,
  INVLPG: 14,
  RDPMC: 15,
  RDTSC: 16,
  RSM: 17,
  VMCALL: 18,
  VMCLEAR: 19,
  VMLAUNCH: 20,
  VMPTRLD: 21,
  VMPTRST: 22,
  VMREAD: 23,
  VMRESUME: 24,
  VMWRITE: 25,
  VMOFF: 26,
  VMON: 27,
  CR_ACCESS: 28,
  DR_ACCESS: 29,
  IO_INSTRUCTION: 30,
  MSR_READ: 31,
  MSR_WRITE: 32,
  INVALID_STATE: 33,
  MSR_LOAD_FAIL: 34,
  MWAIT_INSTRUCTION: 36,
  MONITOR_TRAP_FLAG: 37,
  MONITOR_INSTRUCTION: 39,
  PAUSE_INSTRUCTION: 40,
  MCE_DURING_VMENTRY: 41,
  TPR_BELOW_THRESHOLD: 43,
  APIC_ACCESS: 44,
  EOI_INDUCED: 45,
  GDTR_IDTR: 46,
  LDTR_TR: 47,
  EPT_VIOLATION: 48,
  EPT_MISCONFIG: 49,
  INVEPT: 50,
  RDTSCP: 51,
  PREEMPTION_TIMER: 52,
  INVVPID: 53,
  WBINVD: 54,
  XSETBV: 55,
  APIC_WRITE: 56,
  RDRAND: 57,
  INVPCID: 58,
  VMFUNC: 59,
  ENCLS: 60,
  RDSEED: 61,
  PML_FULL: 62,
  XSAVES: 63,
  XRSTORS: 64,
  UMWAIT: 67,
  TPAUSE: 68,
  BUS_LOCK: 74,
  NOTIFY: 75,
} as const;
/** Bit 31 of the exit reason: the entry failed. */
export const FAILED_VMENTRY = 0x80000000;

/** Interruption types, bits 10:8 of interruption information (SDM 24.9.2). */
export const IntrType = {
  external: 0,
  nmi: 2,
  hardException: 3,
  softInterrupt: 4,
  privilegedSoftException: 5,
  softException: 6,
  other: 7,
} as const;
export const INTR_VALID = 0x80000000;
export const INTR_ERROR_CODE = 0x800;
/** Exit information only: NMI unblocking due to IRET. */
export const INTR_UNBLOCK_NMI = 0x1000;

/** Interruptibility state (SDM table 24-3). */
export const Interruptibility = { sti: 1, movSs: 2, smi: 4, nmi: 8, enclave: 16 } as const;
export const Activity = { active: 0, hlt: 1, shutdown: 2, waitSipi: 3 } as const;
/** Pending debug exceptions (SDM table 24-4). */
export const PendingDebug = { enabledBreakpoint: 1n << 12n, bs: 1n << 14n, rtm: 1n << 16n } as const;

/** VM-instruction error numbers (SDM table 30-1). */
export const VmError = {
  VMCALL_IN_ROOT: 1,
  VMCLEAR_ADDRESS: 2,
  VMCLEAR_VMXON_POINTER: 3,
  VMLAUNCH_NOT_CLEAR: 4,
  VMRESUME_NOT_LAUNCHED: 5,
  VMRESUME_AFTER_VMXOFF: 6,
  ENTRY_CONTROL: 7,
  ENTRY_HOST: 8,
  VMPTRLD_ADDRESS: 9,
  VMPTRLD_VMXON_POINTER: 10,
  VMPTRLD_REVISION: 11,
  UNSUPPORTED_COMPONENT: 12,
  READ_ONLY_COMPONENT: 13,
  VMXON_IN_ROOT: 15,
  ENTRY_MOV_SS: 26,
  INVALIDATION_OPERAND: 28,
} as const;
/** VMfailInvalid: no current VMCS, so no error number. */
export const VMFAIL_INVALID = -1;

/** Capability and feature MSRs (SDM appendix A). */
export const VmxMsr = {
  FEATURE_CONTROL: 0x3a,
  BASIC: 0x480,
  PIN: 0x481,
  PROC: 0x482,
  EXIT: 0x483,
  ENTRY: 0x484,
  MISC: 0x485,
  CR0_FIXED0: 0x486,
  CR0_FIXED1: 0x487,
  CR4_FIXED0: 0x488,
  CR4_FIXED1: 0x489,
  VMCS_ENUM: 0x48a,
  PROC2: 0x48b,
  EPT_VPID: 0x48c,
  TRUE_PIN: 0x48d,
  TRUE_PROC: 0x48e,
  TRUE_EXIT: 0x48f,
  TRUE_ENTRY: 0x490,
  VMFUNC: 0x491,
} as const;
/** IA32_FEATURE_CONTROL bits. */
export const FeatureControl = { lock: 1n, vmxInSmx: 2n, vmxOutsideSmx: 4n } as const;

/** IA32_VMX_EPT_VPID_CAP, low and high word (SDM A.10). */
export const EptCap = {
  executeOnly: 1 << 0,
  walk4: 1 << 6,
  walk5: 1 << 7,
  uncacheable: 1 << 8,
  writeBack: 1 << 14,
  page2m: 1 << 16,
  page1g: 1 << 17,
  invept: 1 << 20,
  accessedDirty: 1 << 21,
  inveptSingle: 1 << 25,
  inveptGlobal: 1 << 26,
} as const;
export const VpidCap = {
  invvpid: 1 << 0,
  individual: 1 << 8,
  single: 1 << 9,
  all: 1 << 10,
  singleNonGlobal: 1 << 11,
} as const;
