/**
 * The VMCS: every field's encoding, and the region in host memory that holds them.
 * Manual: SDM vol. 3 ch. 24 and appendix B.
 *
 * The region's format is ours, as the manual leaves it to the processor. So does the manual allow to keep an active VMCS on the chip
 * (24.11.1): the guest-state fields of the current VMCS that have a place in the processor's state block live there and nowhere else,
 * and are written to the region when another VMCS becomes current. Entry and exit then copy next to nothing. Access rights are kept in
 * the block's packing and converted by VMREAD and VMWRITE.
 */
import type { PhysicalMemory } from '@tskvm/emulator';
import { AssertionError, RSP, S } from '@tskvm/emulator';

/** Field encodings by KVM's names (SDM appendix B). */
export const F = {
  // 16-bit control
  VIRTUAL_PROCESSOR_ID: 0x0000,
  POSTED_INTR_NV: 0x0002,
  EPTP_INDEX: 0x0004,
  HLAT_PREFIX_SIZE: 0x0006,
  LAST_PID_POINTER_INDEX: 0x0008,
  // 16-bit guest
  GUEST_ES_SELECTOR: 0x0800,
  GUEST_CS_SELECTOR: 0x0802,
  GUEST_SS_SELECTOR: 0x0804,
  GUEST_DS_SELECTOR: 0x0806,
  GUEST_FS_SELECTOR: 0x0808,
  GUEST_GS_SELECTOR: 0x080a,
  GUEST_LDTR_SELECTOR: 0x080c,
  GUEST_TR_SELECTOR: 0x080e,
  GUEST_INTR_STATUS: 0x0810,
  GUEST_PML_INDEX: 0x0812,
  // 16-bit host
  HOST_ES_SELECTOR: 0x0c00,
  HOST_CS_SELECTOR: 0x0c02,
  HOST_SS_SELECTOR: 0x0c04,
  HOST_DS_SELECTOR: 0x0c06,
  HOST_FS_SELECTOR: 0x0c08,
  HOST_GS_SELECTOR: 0x0c0a,
  HOST_TR_SELECTOR: 0x0c0c,
  // 64-bit control
  IO_BITMAP_A: 0x2000,
  IO_BITMAP_B: 0x2002,
  MSR_BITMAP: 0x2004,
  VM_EXIT_MSR_STORE_ADDR: 0x2006,
  VM_EXIT_MSR_LOAD_ADDR: 0x2008,
  VM_ENTRY_MSR_LOAD_ADDR: 0x200a,
  EXECUTIVE_VMCS_POINTER: 0x200c,
  PML_ADDRESS: 0x200e,
  TSC_OFFSET: 0x2010,
  VIRTUAL_APIC_PAGE_ADDR: 0x2012,
  APIC_ACCESS_ADDR: 0x2014,
  POSTED_INTR_DESC_ADDR: 0x2016,
  VM_FUNCTION_CONTROL: 0x2018,
  EPT_POINTER: 0x201a,
  EOI_EXIT_BITMAP0: 0x201c,
  EOI_EXIT_BITMAP1: 0x201e,
  EOI_EXIT_BITMAP2: 0x2020,
  EOI_EXIT_BITMAP3: 0x2022,
  EPTP_LIST_ADDRESS: 0x2024,
  VMREAD_BITMAP: 0x2026,
  VMWRITE_BITMAP: 0x2028,
  VE_INFORMATION_ADDRESS: 0x202a,
  XSS_EXIT_BITMAP: 0x202c,
  ENCLS_EXITING_BITMAP: 0x202e,
  SUB_PAGE_PERMISSION_POINTER: 0x2030,
  TSC_MULTIPLIER: 0x2032,
  TERTIARY_VM_EXEC_CONTROL: 0x2034,
  SHARED_EPT_POINTER: 0x203c,
  PID_POINTER_TABLE: 0x2042,
  SECONDARY_VM_EXIT_CONTROLS: 0x2044,
  INJECTED_EVENT_DATA: 0x2052,
  // 64-bit read-only
  GUEST_PHYSICAL_ADDRESS: 0x2400,
  ORIGINAL_EVENT_DATA: 0x2404,
  // 64-bit guest
  VMCS_LINK_POINTER: 0x2800,
  GUEST_IA32_DEBUGCTL: 0x2802,
  GUEST_IA32_PAT: 0x2804,
  GUEST_IA32_EFER: 0x2806,
  GUEST_IA32_PERF_GLOBAL_CTRL: 0x2808,
  GUEST_PDPTR0: 0x280a,
  GUEST_PDPTR1: 0x280c,
  GUEST_PDPTR2: 0x280e,
  GUEST_PDPTR3: 0x2810,
  GUEST_BNDCFGS: 0x2812,
  GUEST_IA32_RTIT_CTL: 0x2814,
  GUEST_IA32_FRED_CONFIG: 0x281a,
  GUEST_IA32_FRED_RSP1: 0x281c,
  GUEST_IA32_FRED_RSP2: 0x281e,
  GUEST_IA32_FRED_RSP3: 0x2820,
  GUEST_IA32_FRED_STKLVLS: 0x2822,
  GUEST_IA32_FRED_SSP1: 0x2824,
  GUEST_IA32_FRED_SSP2: 0x2826,
  GUEST_IA32_FRED_SSP3: 0x2828,
  // 64-bit host
  HOST_IA32_PAT: 0x2c00,
  HOST_IA32_EFER: 0x2c02,
  HOST_IA32_PERF_GLOBAL_CTRL: 0x2c04,
  HOST_IA32_FRED_CONFIG: 0x2c08,
  HOST_IA32_FRED_RSP1: 0x2c0a,
  HOST_IA32_FRED_RSP2: 0x2c0c,
  HOST_IA32_FRED_RSP3: 0x2c0e,
  HOST_IA32_FRED_STKLVLS: 0x2c10,
  HOST_IA32_FRED_SSP1: 0x2c12,
  HOST_IA32_FRED_SSP2: 0x2c14,
  HOST_IA32_FRED_SSP3: 0x2c16,
  // 32-bit control
  PIN_BASED_VM_EXEC_CONTROL: 0x4000,
  CPU_BASED_VM_EXEC_CONTROL: 0x4002,
  EXCEPTION_BITMAP: 0x4004,
  PAGE_FAULT_ERROR_CODE_MASK: 0x4006,
  PAGE_FAULT_ERROR_CODE_MATCH: 0x4008,
  CR3_TARGET_COUNT: 0x400a,
  VM_EXIT_CONTROLS: 0x400c,
  VM_EXIT_MSR_STORE_COUNT: 0x400e,
  VM_EXIT_MSR_LOAD_COUNT: 0x4010,
  VM_ENTRY_CONTROLS: 0x4012,
  VM_ENTRY_MSR_LOAD_COUNT: 0x4014,
  VM_ENTRY_INTR_INFO_FIELD: 0x4016,
  VM_ENTRY_EXCEPTION_ERROR_CODE: 0x4018,
  VM_ENTRY_INSTRUCTION_LEN: 0x401a,
  TPR_THRESHOLD: 0x401c,
  SECONDARY_VM_EXEC_CONTROL: 0x401e,
  PLE_GAP: 0x4020,
  PLE_WINDOW: 0x4022,
  NOTIFY_WINDOW: 0x4024,
  // 32-bit read-only
  VM_INSTRUCTION_ERROR: 0x4400,
  VM_EXIT_REASON: 0x4402,
  VM_EXIT_INTR_INFO: 0x4404,
  VM_EXIT_INTR_ERROR_CODE: 0x4406,
  IDT_VECTORING_INFO_FIELD: 0x4408,
  IDT_VECTORING_ERROR_CODE: 0x440a,
  VM_EXIT_INSTRUCTION_LEN: 0x440c,
  VMX_INSTRUCTION_INFO: 0x440e,
  // 32-bit guest
  GUEST_ES_LIMIT: 0x4800,
  GUEST_CS_LIMIT: 0x4802,
  GUEST_SS_LIMIT: 0x4804,
  GUEST_DS_LIMIT: 0x4806,
  GUEST_FS_LIMIT: 0x4808,
  GUEST_GS_LIMIT: 0x480a,
  GUEST_LDTR_LIMIT: 0x480c,
  GUEST_TR_LIMIT: 0x480e,
  GUEST_GDTR_LIMIT: 0x4810,
  GUEST_IDTR_LIMIT: 0x4812,
  GUEST_ES_AR_BYTES: 0x4814,
  GUEST_CS_AR_BYTES: 0x4816,
  GUEST_SS_AR_BYTES: 0x4818,
  GUEST_DS_AR_BYTES: 0x481a,
  GUEST_FS_AR_BYTES: 0x481c,
  GUEST_GS_AR_BYTES: 0x481e,
  GUEST_LDTR_AR_BYTES: 0x4820,
  GUEST_TR_AR_BYTES: 0x4822,
  GUEST_INTERRUPTIBILITY_INFO: 0x4824,
  GUEST_ACTIVITY_STATE: 0x4826,
  GUEST_SMBASE: 0x4828,
  GUEST_SYSENTER_CS: 0x482a,
  VMX_PREEMPTION_TIMER_VALUE: 0x482e,
  // 32-bit host
  HOST_IA32_SYSENTER_CS: 0x4c00,
  // natural-width control
  CR0_GUEST_HOST_MASK: 0x6000,
  CR4_GUEST_HOST_MASK: 0x6002,
  CR0_READ_SHADOW: 0x6004,
  CR4_READ_SHADOW: 0x6006,
  CR3_TARGET_VALUE0: 0x6008,
  CR3_TARGET_VALUE1: 0x600a,
  CR3_TARGET_VALUE2: 0x600c,
  CR3_TARGET_VALUE3: 0x600e,
  // natural-width read-only
  EXIT_QUALIFICATION: 0x6400,
  IO_RCX: 0x6402,
  IO_RSI: 0x6404,
  IO_RDI: 0x6406,
  IO_RIP: 0x6408,
  GUEST_LINEAR_ADDRESS: 0x640a,
  // natural-width guest
  GUEST_CR0: 0x6800,
  GUEST_CR3: 0x6802,
  GUEST_CR4: 0x6804,
  GUEST_ES_BASE: 0x6806,
  GUEST_CS_BASE: 0x6808,
  GUEST_SS_BASE: 0x680a,
  GUEST_DS_BASE: 0x680c,
  GUEST_FS_BASE: 0x680e,
  GUEST_GS_BASE: 0x6810,
  GUEST_LDTR_BASE: 0x6812,
  GUEST_TR_BASE: 0x6814,
  GUEST_GDTR_BASE: 0x6816,
  GUEST_IDTR_BASE: 0x6818,
  GUEST_DR7: 0x681a,
  GUEST_RSP: 0x681c,
  GUEST_RIP: 0x681e,
  GUEST_RFLAGS: 0x6820,
  GUEST_PENDING_DBG_EXCEPTIONS: 0x6822,
  GUEST_SYSENTER_ESP: 0x6824,
  GUEST_SYSENTER_EIP: 0x6826,
  GUEST_S_CET: 0x6828,
  GUEST_SSP: 0x682a,
  GUEST_INTR_SSP_TABLE: 0x682c,
  // natural-width host
  HOST_CR0: 0x6c00,
  HOST_CR3: 0x6c02,
  HOST_CR4: 0x6c04,
  HOST_FS_BASE: 0x6c06,
  HOST_GS_BASE: 0x6c08,
  HOST_TR_BASE: 0x6c0a,
  HOST_GDTR_BASE: 0x6c0c,
  HOST_IDTR_BASE: 0x6c0e,
  HOST_IA32_SYSENTER_ESP: 0x6c10,
  HOST_IA32_SYSENTER_EIP: 0x6c12,
  HOST_RSP: 0x6c14,
  HOST_RIP: 0x6c16,
  HOST_S_CET: 0x6c18,
  HOST_SSP: 0x6c1a,
  HOST_INTR_SSP_TABLE: 0x6c1c,
} as const;
export type FieldName = keyof typeof F;

/** Fields that were written since their rules were last found to hold. */
export const Dirty = {
  controls: 1,
  host: 2,
  /** CRs, EFER, DEBUGCTL and the other guest registers. */
  guestRegisters: 4,
  guestSegments: 8,
  guestRip: 16,
  /** Activity, interruptibility, pending debug exceptions, link pointer, event to inject. */
  guestNonRegister: 32,
  /** Masks and the like: nothing to check, but the running guest's copies are stale. */
  masks: 64,
  /** RFLAGS; a change of VM is one of the segments, too. */
  guestRflags: 128,
  /** CR0 in any bit, and in PE or PG, which rules about other fields read. */
  guestCr0: 256,
  guestMode: 512,
  /** Likewise, of the read shadows. */
  shadows: 1024,
  all: 2047,
} as const;

const CR0_PE_PG = 0x80000001 | 0;
const RFLAGS_VM = 1 << 17;

/** Offsets inside the region. */
const REVISION = 0x000;
const ABORT = 0x004;
const LAUNCH_STATE = 0x008;
const FIELDS = 0x010;
/** Reserved bits of access rights as they were written: kept so that the entry check can see them. */
const AR_RESERVED = 0x7c0;
/** From here on lie the fields that mirror the state block, at its distances. */
const MIRROR = 0x800;
/** Where `S.segments` would lie. */
const GUEST_AREA = 0x900;

/** VMCS order of the segment fields to the slots of the state block. */
const SLOT = [0, 1, 2, 3, 4, 5, 7, 9, 6, 8] as const;
const slotOffset = (vmcsIndex: number): number => GUEST_AREA + SLOT[vmcsIndex] * 16;

const inGuestArea = (stateOffset: number): number => GUEST_AREA + stateOffset - S.segments;
/** Guest fields that live in the state block; those that a control makes optional at entry or exit do not. */
const MIRRORED = new Map<number, number>([
  [F.GUEST_RSP, inGuestArea(S.gpr + 8 * RSP)],
  [F.GUEST_RIP, inGuestArea(S.rip)],
  [F.GUEST_RFLAGS, inGuestArea(S.rflags)],
  [F.GUEST_CR0, inGuestArea(S.cr0)],
  [F.GUEST_CR3, inGuestArea(S.cr3)],
  [F.GUEST_CR4, inGuestArea(S.cr4)],
  [F.GUEST_SYSENTER_CS, inGuestArea(S.sysenterCs)],
  [F.GUEST_SYSENTER_ESP, inGuestArea(S.sysenterEsp)],
  [F.GUEST_SYSENTER_EIP, inGuestArea(S.sysenterEip)],
  [F.GUEST_PDPTR0, inGuestArea(S.pdpte)],
  [F.GUEST_PDPTR1, inGuestArea(S.pdpte + 8)],
  [F.GUEST_PDPTR2, inGuestArea(S.pdpte + 16)],
  [F.GUEST_PDPTR3, inGuestArea(S.pdpte + 24)],
]);
for (let i = 0; i < 8; i++) {
  MIRRORED.set(F.GUEST_ES_SELECTOR + 2 * i, slotOffset(i));
  MIRRORED.set(F.GUEST_ES_AR_BYTES + 2 * i, slotOffset(i) + 2);
}
for (let i = 0; i < 10; i++) {
  MIRRORED.set(F.GUEST_ES_LIMIT + 2 * i, slotOffset(i) + 4);
  MIRRORED.set(F.GUEST_ES_BASE + 2 * i, slotOffset(i) + 8);
}

/** A field's place in the tables below: width, type and index of its encoding. */
const key = (encoding: number): number =>
  ((encoding >> 5) & 0x300) | ((encoding >> 4) & 0xc0) | ((encoding >> 1) & 0x3f);
const ABSENT = 0xffff;
/** Words of the state block (from its base) in which guest fields live. */
const LIVE: readonly number[] = [
  [S.gpr + 8 * RSP, 8],
  [S.rip, 16],
  [S.segments, 160],
  [S.cr0, 8],
  [S.cr3, 16],
  [S.sysenterCs, 24],
  [S.pdpte, 32],
].flatMap(([offset, bytes]) => Array.from({ length: bytes / 4 }, (_, i) => offset / 4 + i));
/** Byte offset in the region by `key`. */
const OFFSET = new Uint16Array(1024).fill(ABSENT);
/** Dirty group by `key`. */
const GROUP = new Uint16Array(1024);

const type = (encoding: number): number => (encoding >> 10) & 3;
/** 0: 16 bits, 1: 64, 2: 32, 3: natural. */
export const fieldWidth = (encoding: number): number => (encoding >> 13) & 3;
const isReadOnly = (encoding: number): boolean => type(encoding) === 1;
const isAccessRights = (encoding: number): boolean =>
  encoding >= F.GUEST_ES_AR_BYTES && encoding <= F.GUEST_TR_AR_BYTES;

const GROUP_OF = new Map<number, number>([
  [F.GUEST_RIP, Dirty.guestRip],
  [F.GUEST_RFLAGS, Dirty.guestRflags],
  [F.GUEST_RSP, 0],
  [F.GUEST_CR0, Dirty.guestCr0],
  [F.GUEST_INTERRUPTIBILITY_INFO, Dirty.guestNonRegister],
  [F.GUEST_ACTIVITY_STATE, Dirty.guestNonRegister],
  [F.GUEST_PENDING_DBG_EXCEPTIONS, Dirty.guestNonRegister],
  [F.VMCS_LINK_POINTER, Dirty.guestNonRegister],
  [F.VM_ENTRY_INTR_INFO_FIELD, Dirty.guestNonRegister],
  [F.VM_ENTRY_EXCEPTION_ERROR_CODE, Dirty.guestNonRegister],
  [F.VM_ENTRY_INSTRUCTION_LEN, Dirty.guestNonRegister],
  [F.VMX_PREEMPTION_TIMER_VALUE, 0],
  [F.TSC_OFFSET, Dirty.masks],
  [F.EXCEPTION_BITMAP, Dirty.masks],
  [F.CR0_GUEST_HOST_MASK, Dirty.masks],
  [F.CR4_GUEST_HOST_MASK, Dirty.masks],
  [F.CR0_READ_SHADOW, Dirty.shadows],
  [F.CR4_READ_SHADOW, Dirty.shadows],
]);

function groupOf(encoding: number): number {
  const own = GROUP_OF.get(encoding);
  if (own !== undefined) return own;
  if (type(encoding) === 0) return Dirty.controls | Dirty.masks;
  if (type(encoding) === 1) return 0;
  if (type(encoding) === 3) return Dirty.host;
  const slot = MIRRORED.get(encoding);
  return slot !== undefined && slot >= GUEST_AREA && slot < GUEST_AREA + 160
    ? Dirty.guestSegments
    : Dirty.guestRegisters;
}

const BYTES = [2, 8, 4, 8] as const;
/** Gives every field without a mirrored place the next free one, widest first so that all stay aligned. */
function layOut(): void {
  let next: number = FIELDS;
  for (const width of [1, 3, 2, 0]) {
    for (const encoding of Object.values(F)) {
      if (fieldWidth(encoding) !== width) continue;
      const mirrored = MIRRORED.get(encoding);
      OFFSET[key(encoding)] = mirrored ?? next;
      GROUP[key(encoding)] = groupOf(encoding);
      if (mirrored === undefined) next += BYTES[width];
    }
  }
  if (next > AR_RESERVED) throw new AssertionError('VMCS fields overlap the guest area');
}
layOut();

const wordAt = (encoding: number): number => OFFSET[key(encoding)] >>> 2;
/**
 * The fields that every entry and exit touches, as words from the region's start, found once: `v.u32[v.region + Word.exitReason]`.
 * A write there marks no group: these are the processor's own, or it knows that no rule depends on them.
 */
export const Word = {
  exitReason: wordAt(F.VM_EXIT_REASON),
  exitQualification: wordAt(F.EXIT_QUALIFICATION),
  exitIntrInfo: wordAt(F.VM_EXIT_INTR_INFO),
  exitInstructionLen: wordAt(F.VM_EXIT_INSTRUCTION_LEN),
  idtVectoringInfo: wordAt(F.IDT_VECTORING_INFO_FIELD),
  entryIntrInfo: wordAt(F.VM_ENTRY_INTR_INFO_FIELD),
  entryMsrLoadCount: wordAt(F.VM_ENTRY_MSR_LOAD_COUNT),
  exitMsrStoreCount: wordAt(F.VM_EXIT_MSR_STORE_COUNT),
  exitMsrLoadCount: wordAt(F.VM_EXIT_MSR_LOAD_COUNT),
  interruptibility: wordAt(F.GUEST_INTERRUPTIBILITY_INFO),
  activity: wordAt(F.GUEST_ACTIVITY_STATE),
  pendingDebug: wordAt(F.GUEST_PENDING_DBG_EXCEPTIONS),
  cr0Mask: wordAt(F.CR0_GUEST_HOST_MASK),
  cr0ReadShadow: wordAt(F.CR0_READ_SHADOW),
  dr7: wordAt(F.GUEST_DR7),
  debugctl: wordAt(F.GUEST_IA32_DEBUGCTL),
  pat: wordAt(F.GUEST_IA32_PAT),
  efer: wordAt(F.GUEST_IA32_EFER),
  hostPat: wordAt(F.HOST_IA32_PAT),
  hostEfer: wordAt(F.HOST_IA32_EFER),
} as const;

const NAMES = new Map<number, FieldName>(Object.entries(F).map(([name, encoding]) => [encoding, name as FieldName]));
/** KVM's name of a field, or its encoding in hexadecimal. */
export const fieldName = (encoding: number): string => NAMES.get(encoding) ?? `0x${encoding.toString(16)}`;

/** Access rights (SDM table 24-2) from the state block's attributes. */
export const toAccessRights = (attrib: number): number =>
  (attrib & 0xff) | ((attrib & 0xf00) << 4) | ((attrib & 0x8000) << 1);
/** The reverse; reserved bits are lost. */
export const fromAccessRights = (ar: number): number => (ar & 0xff) | ((ar >> 4) & 0xf00) | ((ar >> 1) & 0x8000);
const AR_DEFINED = 0x1f0ff;

/**
 * The current VMCS as the processor sees it. `bind` is what VMPTRLD does.
 * Widths: 16- and 32-bit fields are numbers (unsigned), 64-bit and natural-width ones `bigint`.
 */
export class Vmcs {
  /** Host physical address of the region; -1: no current VMCS. */
  pa = -1;
  /** Offset of the region in linear memory. */
  base = 0;
  /** The same as a word index: see `Word`. */
  region = 0;
  /** Groups of `Dirty` that were written since `bind` or since the last check. */
  dirty: number = Dirty.all;
  readonly u16: Uint16Array;
  readonly u32: Uint32Array;
  readonly u64: BigUint64Array;
  /** The current region alone: a field of {@link Word} stands at its number. */
  words: Int32Array;
  /** The processor's state block. */
  readonly block: Int32Array;
  readonly #blockQuads: BigUint64Array;
  readonly #windows = new Map<number, Int32Array>();
  readonly #memory: PhysicalMemory;
  /** Word index of the state block, and what to add to a mirrored field's offset to get there. */
  readonly #block: number;
  readonly #live: number;
  /** The host's values of the live words while a VMCS occupies them. */
  readonly #host = new Uint32Array(LIVE.length);

  /** @param stateBase offset of the processor's state block in linear memory */
  constructor(memory: PhysicalMemory, stateBase: number) {
    this.#memory = memory;
    this.#block = stateBase / 4;
    this.#live = stateBase + S.segments - GUEST_AREA;
    this.u16 = new Uint16Array(memory.memory.buffer);
    this.u32 = new Uint32Array(memory.memory.buffer);
    this.u64 = new BigUint64Array(memory.memory.buffer);
    this.block = new Int32Array(memory.memory.buffer, stateBase, S.size / 4);
    this.#blockQuads = new BigUint64Array(memory.memory.buffer, stateBase, S.size / 8);
    this.words = this.#window(0);
  }
  #window(base: number): Int32Array {
    let window = this.#windows.get(base);
    if (window === undefined) {
      this.#windows.set(base, (window = new Int32Array(this.#memory.memory.buffer, base, 1024)));
    }
    return window;
  }
  #place(pa: number): void {
    this.pa = pa;
    this.base = pa < 0 ? 0 : this.#memory.offset(pa, 4096);
    this.region = this.base >>> 2;
    this.words = this.#window(this.base);
    this.dirty = Dirty.all;
  }

  /** Makes the region at `pa` the current one; -1: none. What was current goes back to its region. */
  bind(pa: number): void {
    if (this.pa >= 0) this.#writeBack();
    else for (let i = 0; i < LIVE.length; i++) this.#host[i] = this.u32[this.#block + LIVE[i]];
    this.#place(pa);
    if (pa >= 0) this.#fetch();
    else for (let i = 0; i < LIVE.length; i++) this.u32[this.#block + LIVE[i]] = this.#host[i];
  }
  /** Beside the processor's and the memory's state: which region is current, and the host's values of the live words. */
  save(): { pa: number; host: number[] } {
    return { pa: this.pa, host: [...this.#host] };
  }
  load(saved: { pa: number; host: readonly number[] }): void {
    this.#place(saved.pa);
    this.#host.set(saved.host);
  }
  /** Where the state block's words would start in the region. */
  get #mirror(): number {
    return (this.base + GUEST_AREA - S.segments) / 4;
  }
  #writeBack(): void {
    const region = this.#mirror;
    for (const word of LIVE) this.u32[region + word] = this.u32[this.#block + word];
  }
  #fetch(): void {
    const region = this.#mirror;
    for (const word of LIVE) this.u32[this.#block + word] = this.u32[region + word];
  }

  #at(encoding: number): number {
    const offset = OFFSET[key(encoding)];
    if (offset < MIRROR) return this.base + offset;
    if (offset === ABSENT) throw new AssertionError(`no VMCS field 0x${encoding.toString(16)}`);
    return this.#live + offset;
  }

  /** Word index of a field in `u32`. */
  wordOf(encoding: number): number {
    return this.#at(encoding) >>> 2;
  }
  read16(encoding: number): number {
    return this.u16[this.#at(encoding) >>> 1];
  }
  read32(encoding: number): number {
    if (isAccessRights(encoding)) return this.#readAr(encoding);
    return this.u32[this.#at(encoding) >>> 2];
  }
  read64(encoding: number): bigint {
    return this.u64[this.#at(encoding) >>> 3];
  }
  /** A 64-bit field to an element of an array and back: from typed array to typed array no bigint is made on the way. */
  copyOut(encoding: number, to: BigUint64Array, index: number): void {
    to[index] = this.u64[this.#at(encoding) >>> 3];
  }
  copyIn(encoding: number, from: BigUint64Array, index: number): void {
    const at = this.#at(encoding) >>> 3;
    const before = this.u32[at * 2];
    this.u64[at] = from[index];
    this.dirty |= GROUP[key(encoding)];
    this.#markOthers(encoding, before ^ this.u32[at * 2]);
  }
  /** GUEST_RIP to an element of an array, and back. What the rule about RIP looks at is the upper half. */
  readRip(to: BigUint64Array, index: number): void {
    to[index] = this.#blockQuads[S.rip >> 3];
  }
  writeRip(from: BigUint64Array, index: number): void {
    const high = this.block[(S.rip >> 2) + 1];
    this.#blockQuads[S.rip >> 3] = from[index];
    if (this.block[(S.rip >> 2) + 1] !== high) this.dirty |= Dirty.guestRip;
  }
  /** The low 32 bits of a wide field, without a bigint. */
  readLow(encoding: number): number {
    return this.u32[this.#at(encoding) >>> 2];
  }
  readHigh(encoding: number): number {
    return this.u32[(this.#at(encoding) >>> 2) + 1];
  }
  /** A physical address in a 64-bit field. */
  readAddress(encoding: number): number {
    const at = this.#at(encoding) >>> 2;
    return (this.u32[at + 1] & 0xfffff) * 2 ** 32 + this.u32[at];
  }

  write16(encoding: number, value: number): void {
    this.u16[this.#at(encoding) >>> 1] = value;
    this.dirty |= GROUP[key(encoding)];
  }
  write32(encoding: number, value: number): void {
    this.dirty |= GROUP[key(encoding)];
    if (isAccessRights(encoding)) this.#writeAr(encoding, value);
    else this.u32[this.#at(encoding) >>> 2] = value;
  }
  write64(encoding: number, value: bigint): void {
    const at = this.#at(encoding) >>> 3;
    const before = this.u32[at * 2];
    this.u64[at] = value;
    this.dirty |= GROUP[key(encoding)];
    this.#markOthers(encoding, before ^ this.u32[at * 2]);
  }
  /** PE, PG and VM are what rules about other registers and about segments look at. */
  #markOthers(encoding: number, changed: number): void {
    if (encoding === F.GUEST_CR0) {
      if ((changed & CR0_PE_PG) !== 0) this.dirty |= Dirty.guestMode;
    } else if (encoding === F.GUEST_RFLAGS && (changed & RFLAGS_VM) !== 0) this.dirty |= Dirty.guestSegments;
  }
  /** A field below 2^53 without a bigint. */
  writeNumber(encoding: number, value: number): void {
    const at = this.#at(encoding) >>> 2;
    this.#markOthers(encoding, this.u32[at] ^ value);
    this.u32[at] = value;
    this.u32[at + 1] = value / 2 ** 32;
    this.dirty |= GROUP[key(encoding)];
  }

  /** GUEST_CR0 and CR0_READ_SHADOW, whose upper halves become zero. */
  writeCr0(real: number, shadow: number): void {
    const { block, words } = this;
    this.dirty |= Dirty.guestCr0 | Dirty.shadows;
    if (((block[S.cr0 >> 2] ^ real) & CR0_PE_PG) !== 0) this.dirty |= Dirty.guestMode;
    block[S.cr0 >> 2] = real;
    block[(S.cr0 >> 2) + 1] = 0;
    words[Word.cr0ReadShadow] = shadow;
    words[Word.cr0ReadShadow + 1] = 0;
  }

  /** What the processor saves: words, and no rule to check anew. */
  writeWords(encoding: number, low: number, high: number): void {
    const at = this.#at(encoding) >>> 2;
    this.u32[at] = low;
    this.u32[at + 1] = high;
  }
  saveWord(encoding: number, value: number): void {
    this.u32[this.#at(encoding) >>> 2] = value;
  }

  #readAr(encoding: number): number {
    const reserved = this.u32[(this.base + AR_RESERVED + 2 * (encoding - F.GUEST_ES_AR_BYTES)) >>> 2];
    return (toAccessRights(this.u16[this.#at(encoding) >>> 1]) | reserved) >>> 0;
  }
  #writeAr(encoding: number, value: number): void {
    this.u16[this.#at(encoding) >>> 1] = fromAccessRights(value);
    this.u32[(this.base + AR_RESERVED + 2 * (encoding - F.GUEST_ES_AR_BYTES)) >>> 2] = value & ~AR_DEFINED;
  }

  /** A field of any width, as the VMREAD instruction sees it; undefined: no such field (SDM: VMfailValid 12). */
  read(encoding: number): bigint | undefined {
    if (!fieldExists(encoding)) return undefined;
    const plain = encoding & ~1;
    switch (fieldWidth(plain)) {
      case 0:
        return BigInt(this.read16(plain));
      case 2:
        return BigInt(this.read32(plain));
      default:
        return encoding & 1 ? this.read64(plain) >> 32n : this.read64(plain);
    }
  }
  /** As VMWRITE; false: no such field. Read-only fields are the caller's business. */
  write(encoding: number, value: bigint): boolean {
    if (!fieldExists(encoding)) return false;
    const plain = encoding & ~1;
    switch (fieldWidth(plain)) {
      case 0:
        this.write16(plain, Number(value & 0xffffn));
        break;
      case 2:
        this.write32(plain, Number(value & 0xffffffffn));
        break;
      default:
        this.write64(
          plain,
          encoding & 1
            ? (this.read64(plain) & 0xffffffffn) | ((value & 0xffffffffn) << 32n)
            : value & 0xffffffffffffffffn,
        );
    }
    return true;
  }

  get launched(): boolean {
    return this.u32[(this.base + LAUNCH_STATE) >>> 2] !== 0;
  }
  set launched(value: boolean) {
    this.u32[(this.base + LAUNCH_STATE) >>> 2] = value ? 1 : 0;
  }
  /** Written on a VMX abort (SDM 27.7). */
  set abort(value: number) {
    this.u32[(this.base + ABORT) >>> 2] = value;
  }

  /** Every field with its value, by name: a dump for diagnosis. */
  dump(): Record<string, bigint> {
    const fields: Record<string, bigint> = {};
    for (const [name, encoding] of Object.entries(F)) fields[name] = this.read(encoding)!;
    return fields;
  }
}

/** Does an encoding name a field? The "high" form exists only for 64-bit fields (SDM 24.11.2). */
export function fieldExists(encoding: number): boolean {
  if (encoding < 0 || encoding > 0x7fff || (encoding & 0x1380) !== 0) return false;
  if (encoding & 1 && fieldWidth(encoding) !== 1) return false;
  return OFFSET[key(encoding)] !== ABSENT;
}
export const fieldReadOnly = (encoding: number): boolean => isReadOnly(encoding);

/** Revision id of a region that is not (yet) current, and the launch state that VMCLEAR writes there. */
export const regionRevision = (memory: PhysicalMemory, pa: number): number => memory.read32(pa + REVISION);
export const clearRegion = (memory: PhysicalMemory, pa: number): void => {
  memory.view.setUint32(memory.offset(pa + LAUNCH_STATE, 4), 0, true);
};
