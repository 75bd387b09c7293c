/**
 * The memory unit: linear accesses through TLB and page walk, nested translation, RAM or the platform's bus.
 * Manual: APM vol. 2 ch. 5 and 7, SDM vol. 3 ch. 4 and section 17.2 (data breakpoints).
 *
 * Addresses come as two 32-bit halves. A fault throws the processor's one GuestException, a guest exit throws VMEXIT.
 */
import { type GuestException, VMEXIT } from '../exceptions.ts';
import type { GuestMode, GuestPhysicalAccess, NestedTranslation } from '../guest-mode.ts';
import { Layout } from '../memory/layout.ts';
import { AccessKind, PageWalker, type WalkMemory } from '../memory/paging.ts';
import { PAGE, type PhysicalMemory, PRIVATE } from '../memory/physical.ts';
import { TablePages } from '../memory/table-pages.ts';
import { Tag, Tlb } from '../memory/tlb.ts';
import { WalkState } from '../memory/walk.ts';
import type { PlatformBus } from '../processor-api.ts';
import { CR0, Flag, S, Vector } from '../state-layout.ts';
import { type AddressOwner, AddressSpace, AddressSpaces } from './address-space.ts';
import {
  activePkrs,
  activePkru,
  contextRights,
  currentPcid,
  isAlignmentChecked,
  isSmapActive,
  pagingConfig,
} from './mode.ts';
import type { StateBlock } from './state.ts';

export const LOW32 = 0xffffffffn;
export const lowOf = (linear: bigint): number => Number(linear & LOW32) | 0;
export const highOf = (linear: bigint): number => (linear <= LOW32 ? 0 : Number((linear >> 32n) & LOW32));
export const linearOf = (low: number, high: number): bigint => (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);

/** What the memory unit needs of the processor around it. */
export interface AccessHost {
  readonly memory: PhysicalMemory;
  readonly state: StateBlock;
  readonly bus: PlatformBus | null;
  readonly exception: GuestException;
  readonly guest: GuestMode | null;
  readonly pagingModel: { maxphyaddr: number; gbPages: boolean; amd: boolean };
  /** Bytes of one host page that holds predecoded code were written. */
  codeWritten(pa: number, length: number): void;
  /** A data access of the running instruction hit an armed breakpoint's range (DR6 bits). */
  noteDataBreakpoint(low: number, high: number, size: number, write: boolean): void;
}

const ALL_ONES = 0xffffffff;
/** Alignment checks alone follow it: no context, no walk. */
const AM = Number(CR0.AM);

/** CPL, RFLAGS.AC and CR0.AM. */
const rightsOf = (words: Int32Array): number =>
  (words[S.cpl >> 2] & 0xff) | (words[S.rflags >> 2] & Flag.AC) | ((words[S.cr0 >> 2] & AM) << 1);

/** The access of a nested translation, reused; its linear address becomes a bigint only where a fault is reported. */
class Walked implements GuestPhysicalAccess {
  write = false;
  fetch = false;
  user = false;
  pageWalk = false;
  low = 0;
  high = 0;
  hasLinear = true;
  get linear(): bigint | undefined {
    return this.hasLinear ? linearOf(this.low, this.high) : undefined;
  }
}

export class MemoryAccess implements WalkMemory {
  readonly tlb: Tlb;
  readonly walker: PageWalker;
  /** Host pages that hold predecoded code; generated code reads it, too. */
  readonly codePages: Uint8Array;
  /** Data breakpoints are armed: each explicit access is compared. */
  watching = false;
  /** TLB context of explicit accesses and fetches. */
  dataContext = 1;
  readonly #spaces = new AddressSpaces();
  /** What is in force. */
  #space = new AddressSpace();
  readonly #owner: AddressOwner = { inGuest: false, asid: 0, nestedRoot: 0, nestedShape: undefined, generation: -1 };
  #user = false;
  #smap = false;
  #alignment = false;
  /** The access that a walk belongs to, for the nested translation. */
  readonly #nested = new Walked();
  readonly #tables: TablePages;
  readonly #walk: WalkState;
  /** What rights were last derived from: CPL, RFLAGS.AC and CR0.AM. */
  #seenRights = -1;
  /** The place of the context among the space's. */
  #place = 0;
  /** False while PDPTEs are loaded: no linear address belongs to that. */
  #walking = true;
  #walkLow = 0;
  #walkHigh = 0;
  readonly #host: AccessHost;
  readonly #memory: PhysicalMemory;
  readonly #view: DataView;
  readonly #state: StateBlock;
  readonly #pdpte: Uint32Array;

  constructor(host: AccessHost) {
    this.#host = host;
    this.#memory = host.memory;
    this.#view = host.memory.view;
    this.#state = host.state;
    this.#pdpte = new Uint32Array(host.memory.memory.buffer, host.state.base + S.pdpte, 8);
    this.tlb = new Tlb(host.memory);
    this.walker = new PageWalker(this);
    this.#tables = new TablePages(host.memory);
    this.#walk = new WalkState(host.memory);
    this.codePages = new Uint8Array(host.memory.memory.buffer, Layout.codePages, Math.ceil(host.memory.size / PAGE));
    host.memory.onWrite((pa, length) => this.#noticeWrite(pa, length));
  }

  #noticeWrite(pa: number, length: number): void {
    const last = Math.floor((pa + length - 1) / PAGE);
    for (let page = Math.floor(pa / PAGE); page <= last; page++) {
      if (this.codePages[page] === 0) continue;
      const from = Math.max(pa, page * PAGE);
      this.#host.codeWritten(from, Math.min(pa + length, (page + 1) * PAGE) - from);
    }
  }

  /**
   * True: legacy PAE paging takes its PDPTEs from the registers. Not so in an AMD guest: with nested paging they are read at each walk
   * (APM 15.25.10), without it VMRUN loads them from memory, which reading them there stands for.
   */
  usesPdpteRegisters(): boolean {
    return !(this.#host.pagingModel.amd && this.#host.guest !== null);
  }

  /** Derives contexts, rights and walk configuration from the state block. */
  refresh(): void {
    const state = this.#state;
    const guest = this.#host.guest;
    state.derivedStale = false;
    state.rightsStale = true;
    state.touched = true;
    if (!state.spaceStale && !state.keysStale && this.#enterTwin()) return;
    if (state.keysStale) this.#spaces.forget();
    state.keysStale = false;
    const toggled = state.spaceStale ? undefined : this.#toggle();
    state.spaceStale = false;
    const changed = toggled ?? this.#follow(guest);
    const { words } = state;
    const rights = rightsOf(words);
    if (!changed && rights === this.#seenRights) return;
    this.#seenRights = rights;
    const space = this.#space;
    this.#user = state.cpl === 3 && space.paging;
    this.#smap = isSmapActive(state);
    this.#alignment = isAlignmentChecked(state);
    const place = (state.cpl === 3 ? 1 : 0) | ((words[S.rflags >> 2] & Flag.AC) !== 0 ? 2 : 0);
    this.#place = place;
    if (space.contexts[place] === 0) this.#internAt(space, place);
    this.dataContext = space.contexts[place];
    this.#walk.enter(space.walk, this.#user, this.#smap, this.dataContext);
  }
  /** Context of explicit accesses with CR0.WP the other way, if it is known and nothing else differs for a page walk but WP; else 0. */
  otherContext(): number {
    const space = this.#space;
    const { twin } = space;
    const known = twin !== null && twin.twin === space && twin.generation === this.tlb.generation;
    return known && twin.walk.kind === space.walk.kind ? twin.contexts[this.#place] : 0;
  }
  /** All of `refresh` where CR0.WP alone has changed, and both spaces have been in force with these rights. */
  #enterTwin(): boolean {
    const space = this.#space;
    const { twin } = space;
    const { words } = this.#state;
    if (twin === null || twin.twin !== space || !twin.holds(words[S.cr0 >> 2], this.tlb.generation)) return false;
    const context = twin.contexts[this.#place];
    if (context === 0 || rightsOf(words) !== this.#seenRights) return false;
    this.#space = twin;
    this.dataContext = context;
    this.#walk.enter(twin.walk, this.#user, this.#smap, context);
    return true;
  }
  #internAt(space: AddressSpace, place: number): void {
    const { generation } = this.tlb;
    const id = this.#intern(contextRights(this.#state, false));
    if (generation !== this.tlb.generation) {
      // Ids ran out: those that were interned before have lost their meaning.
      space.forgetContexts();
      space.generation = this.tlb.generation;
    }
    space.contexts[place] = id;
  }

  /** The space that the registers and the owner make. True if it is another, or was derived anew. */
  #follow(guest: GuestMode | null): boolean {
    const owner = this.#owner;
    const { words } = this.#state;
    owner.inGuest = guest !== null;
    owner.asid = guest === null ? 0 : guest.asid;
    owner.nestedRoot = guest === null ? 0 : guest.nestedRoot;
    owner.nestedShape = owner.nestedRoot === 0 ? undefined : (guest?.nestedShape ?? null);
    owner.generation = this.tlb.generation;
    if (this.#space.matches(words, owner)) return false;
    let space = this.#spaces.find(words, owner, this.#space);
    if (space === undefined) {
      space = this.#spaces.replace(this.#space);
      const pdptes = this.usesPdpteRegisters() ? this.#pdpte : undefined;
      space.derive(this.#state, owner, pagingConfig(this.#state, this.#host.pagingModel, pdptes));
    }
    space.pair(this.#space);
    this.#enter(space);
    return true;
  }
  #enter(space: AddressSpace): void {
    this.#space = space;
    this.#tables.belongTo(space.asid, space.nestedRoot, this.tlb.nestedEpoch);
  }
  /** As `#follow` where of all that a space follows from only CR0 may have changed; undefined: the space is not at hand. */
  #toggle(): boolean | undefined {
    const { generation } = this.tlb;
    const cr0 = this.#state.words[S.cr0 >> 2];
    if (this.#space.holds(cr0, generation)) return false;
    const { twin } = this.#space;
    if (twin === null || twin.twin !== this.#space || !twin.holds(cr0, generation)) return undefined;
    this.#enter(twin);
    return true;
  }

  /** The context for generated code. */
  context(): number {
    if (this.#state.derivedStale) this.refresh();
    return this.dataContext;
  }

  #implicitContext(): number {
    if (this.#space.systemContext !== 0) return this.#space.systemContext;
    const { generation } = this.tlb;
    let id = this.#internImplicit();
    if (this.tlb.generation !== generation) {
      // Ids ran out: the explicit context's has lost its meaning, too.
      this.refresh();
      id = this.#internImplicit();
    }
    this.#space.systemContext = id;
    return id;
  }
  #internImplicit(): number {
    return this.#intern(contextRights(this.#state, true));
  }
  #intern(rights: number): number {
    const state = this.#state;
    return this.tlb.context(
      this.#space.asid,
      currentPcid(state),
      this.#space.nestedRoot,
      rights,
      activePkru(state),
      activePkrs(state),
    );
  }

  /** Linear to host physical, filling the TLB. Throws #PF, #GP(0) for a non-canonical address, or VMEXIT. */
  translate(low: number, high: number, kind: number): number {
    if (this.#state.derivedStale) this.refresh();
    const context = (kind & AccessKind.system) !== 0 ? this.#implicitContext() : this.dataContext;
    const tag = (kind & AccessKind.write) !== 0 ? Tag.write : (kind & AccessKind.fetch) !== 0 ? Tag.exec : Tag.read;
    const hit = this.tlb.lookup(low, high, context, tag);
    if (hit < 0) return this.#miss(low, high, kind, context);
    if (tag === Tag.write && this.codePages[hit >>> 12] === 0) this.tlb.allowWrite(low, context);
    return hit;
  }

  /** Host physical address of a read that the TLB can answer, or -1: nothing is walked, nothing can fault. `system`: implicit access. */
  peek(low: number, high: number, system: boolean): number {
    if (this.#state.derivedStale) this.refresh();
    return this.tlb.lookup(low, high, system ? this.#implicitContext() : this.dataContext, Tag.read);
  }

  /** Likewise of a write, to a page without predecoded code. */
  peekWrite(low: number, high: number, system: boolean): number {
    if (this.#state.derivedStale) this.refresh();
    const hpa = this.tlb.lookup(low, high, system ? this.#implicitContext() : this.dataContext, Tag.write);
    return hpa >= 0 && this.codePages[hpa >>> 12] === 0 ? hpa : -1;
  }

  #miss(low: number, high: number, kind: number, context: number): number {
    if (!this.#space.long) high = 0;
    else if (high >> this.#space.canonicalShift !== 0 && high >> this.#space.canonicalShift !== -1)
      throw this.#host.exception.set(Vector.GP, 0);
    const implicit = (kind & AccessKind.system) !== 0;
    const user = this.#user && !implicit;
    const smap = implicit ? this.#space.smapImplicit : this.#smap;
    this.#walkLow = low;
    this.#walkHigh = high;
    this.#nested.user = user;
    this.walker.configure(this.#space.config);
    if (!this.walker.walk(low, high, kind, user, smap)) {
      throw this.#host.exception.set(Vector.PF, this.walker.errorCode, linearOf(low, high));
    }
    const nested = this.#space.nestedRoot !== 0 ? this.#translateNested(this.walker.gpa, kind, false) : undefined;
    const hpa = nested === undefined ? this.walker.gpa : pageOf(nested.hpa) + (this.walker.gpa % PAGE);
    this.#fill(low, high, context, hpa, (kind & AccessKind.fetch) !== 0, user, smap, nested);
    return hpa;
  }

  #translateNested(gpa: number, kind: number, pageWalk: boolean): NestedTranslation {
    const access = this.#nested;
    access.write = (kind & AccessKind.write) !== 0;
    access.fetch = !pageWalk && (kind & AccessKind.fetch) !== 0;
    access.pageWalk = pageWalk;
    access.low = this.#walkLow;
    access.high = this.#walkHigh;
    access.hasLinear = this.#walking;
    const result = this.#host.guest?.translate(gpa, access);
    if (result === undefined) throw VMEXIT;
    return result;
  }

  #fill(
    low: number,
    high: number,
    context: number,
    hpa: number,
    fetch: boolean,
    user: boolean,
    smap: boolean,
    nested: NestedTranslation | undefined,
  ): void {
    const page = pageOf(hpa);
    if (!this.#memory.contains(page, PAGE)) return;
    const { walker } = this;
    const mayWrite = walker.dirty && (nested === undefined || nested.writable);
    this.tlb.fill(low, high, context, {
      page,
      read: walker.permits(AccessKind.read, user, smap),
      write: mayWrite && walker.permits(AccessKind.write, user, smap),
      fetch,
      exec: (nested === undefined || nested.executable) && walker.permits(AccessKind.fetch, user, smap),
      code: this.codePages[page / PAGE] !== 0,
      global: walker.global,
      size: walker.size,
    });
  }

  // WalkMemory: guest physical addresses of table entries.
  entryAddress(gpa: number, write: boolean): number {
    if (this.#space.nestedRoot === 0) return gpa;
    const inside = gpa & (PAGE - 1);
    if (write) return pageOf(this.#translateNested(gpa, AccessKind.write, true).hpa) + inside;
    const known = this.#tables.find(gpa, this.tlb.nestedEpoch);
    if (known >= 0) return known + inside;
    const page = pageOf(this.#translateNested(gpa, AccessKind.read, true).hpa);
    this.#tables.belongTo(this.#space.asid, this.#space.nestedRoot, this.tlb.nestedEpoch);
    if (this.#memory.contains(page, PAGE)) this.#tables.remember(gpa, page);
    return page + inside;
  }
  read32(hpa: number): number {
    if (this.#memory.contains(hpa, 4)) return this.#view.getInt32(PRIVATE + hpa, true);
    return this.#host.bus === null ? ALL_ONES | 0 : Number(this.#host.bus.read(hpa, 4)) | 0;
  }
  write32(hpa: number, value: number): void {
    this.storeNumber(hpa, 4, value);
  }

  /**
   * Loads the PDPTE registers as MOV CR3 does in legacy PAE mode. False: a present entry has reserved bits set, nothing was changed.
   * @param cr3 low 32 bits
   */
  loadPdptes(cr3: number): boolean {
    if (this.#state.derivedStale) this.refresh();
    this.#walking = false;
    try {
      return this.#readPdptes((cr3 & 0xffffffe0) >>> 0);
    } finally {
      this.#walking = true;
    }
  }

  #readPdptes(table: number): boolean {
    const { maxphyaddr } = this.#host.pagingModel;
    const highReserved = maxphyaddr >= 64 ? 0 : ~(2 ** (maxphyaddr - 32) - 1);
    const entries = new Uint32Array(8);
    for (let n = 0; n < 8; n += 2) {
      const at = this.entryAddress(table + n * 4, false);
      entries[n] = this.read32(at);
      entries[n + 1] = this.read32(at + 4);
      if ((entries[n] & 1) !== 0 && ((entries[n] & 0x1e6) !== 0 || (entries[n + 1] & highReserved) !== 0)) return false;
    }
    this.#pdpte.set(entries);
    return true;
  }

  /** Data access of 1..32 bytes, zero-extended. */
  read(low: number, high: number, size: number, kind: number): bigint {
    const first = this.translate(low, high, kind);
    const room = PAGE - (low & 0xfff);
    if (size > room) return this.#readAcross(low, high, size, kind, first, room);
    this.#checkAlignment(low, size, kind);
    if (this.watching && (kind & AccessKind.system) === 0) this.#host.noteDataBreakpoint(low, high, size, false);
    return this.load(first, size);
  }

  #readAcross(low: number, high: number, size: number, kind: number, first: number, room: number): bigint {
    const second = this.translate(...this.#nextPage(low, high), kind);
    this.#checkAlignment(low, size, kind);
    if (this.watching && (kind & AccessKind.system) === 0) this.#host.noteDataBreakpoint(low, high, size, false);
    return this.load(first, room) | (this.load(second, size - room) << BigInt(room * 8));
  }

  /** Would a read go to something else than RAM? Faults as the read would. */
  reachesBus(low: number, high: number, size: number, kind: number): boolean {
    const first = this.translate(low, high, kind);
    const room = PAGE - (low & 0xfff);
    if (size <= room) return !this.#memory.contains(first, size);
    const second = this.translate(...this.#nextPage(low, high), kind);
    return !this.#memory.contains(first, room) || !this.#memory.contains(second, size - room);
  }

  /** Start of the page behind; wraps at 4 GiB outside long mode. */
  #nextPage(low: number, high: number): [number, number] {
    const next = ((low & 0xfffff000) + 0x1000) | 0;
    return [next, next === 0 && this.#space.long ? (high + 1) >>> 0 : high];
  }

  write(low: number, high: number, value: bigint, size: number, kind: number): void {
    const access = kind | AccessKind.write;
    const first = this.translate(low, high, access);
    const room = PAGE - (low & 0xfff);
    const second = size > room ? this.translate(...this.#nextPage(low, high), access) : -1;
    this.#checkAlignment(low, size, kind);
    if (this.watching && (kind & AccessKind.system) === 0) this.#host.noteDataBreakpoint(low, high, size, true);
    if (second < 0) this.store(first, value, size);
    else {
      this.store(first, BigInt.asUintN(room * 8, value), room);
      this.store(second, value >> BigInt(room * 8), size - room);
    }
  }

  /** Faults as a write of `size` bytes would. */
  probe(low: number, high: number, size: number, kind: number): void {
    this.translate(low, high, kind | AccessKind.write);
    if (size > PAGE - (low & 0xfff)) this.translate(...this.#nextPage(low, high), kind | AccessKind.write);
    this.#checkAlignment(low, size, kind);
  }

  /** #AC comes after the page faults of the same access (SDM vol. 3 table 6-2). */
  #checkAlignment(low: number, size: number, kind: number): void {
    if (!this.#alignment || (kind & AccessKind.system) !== 0) return;
    if ((size === 2 || size === 4 || size === 8) && (low & (size - 1)) !== 0) {
      throw this.#host.exception.set(Vector.AC, 0);
    }
  }

  /** Physical read within a page: RAM, else the platform's bus, else all ones. */
  load(hpa: number, size: number): bigint {
    if (!this.#memory.contains(hpa, size)) return this.#loadBus(hpa, size);
    const at = PRIVATE + hpa;
    if (size === 8) return this.#view.getBigUint64(at, true);
    if (size === 4) return BigInt(this.#view.getUint32(at, true));
    if (size === 2) return BigInt(this.#view.getUint16(at, true));
    if (size === 1) return BigInt(this.#view.getUint8(at));
    if (size === 16) return (this.#view.getBigUint64(at + 8, true) << 64n) | this.#view.getBigUint64(at, true);
    let value = 0n;
    for (let n = size - 1; n >= 0; n--) value = (value << 8n) | BigInt(this.#view.getUint8(at + n));
    return value;
  }

  #loadBus(hpa: number, size: number): bigint {
    let value = 0n;
    for (let done = 0; done < size; ) {
      const part = busSize(hpa + done, size - done);
      const got = this.#host.bus === null ? -1n : this.#host.bus.read(hpa + done, part);
      value |= BigInt.asUintN(part * 8, got) << BigInt(done * 8);
      done += part;
    }
    return value;
  }

  /** Physical write within a page. */
  store(hpa: number, value: bigint, size: number): void {
    if (!this.#memory.contains(hpa, size)) {
      this.#storeBus(hpa, value, size);
      return;
    }
    const code = this.codePages[Math.floor(hpa / PAGE)] !== 0;
    // Code written over with itself stays as it is.
    if (code && this.load(hpa, size) === BigInt.asUintN(size * 8, value)) return;
    const at = PRIVATE + hpa;
    if (size === 8) this.#view.setBigUint64(at, value, true);
    else if (size <= 4 && size !== 3) this.#storeSmall(at, size, Number(value & LOW32));
    else if (size === 16) {
      this.#view.setBigUint64(at, BigInt.asUintN(64, value), true);
      this.#view.setBigUint64(at + 8, value >> 64n, true);
    } else for (let n = 0; n < size; n++) this.#view.setUint8(at + n, Number((value >> BigInt(n * 8)) & 0xffn));
    if (code) this.#host.codeWritten(hpa, size);
  }

  #storeSmall(at: number, size: number, value: number): void {
    if (size === 4) this.#view.setUint32(at, value, true);
    else if (size === 2) this.#view.setUint16(at, value, true);
    else this.#view.setUint8(at, value);
  }

  /** As `store` for at most 4 bytes in a number. */
  storeNumber(hpa: number, size: number, value: number): void {
    if (!this.#memory.contains(hpa, size)) {
      this.#storeBus(hpa, BigInt(value >>> 0), size);
      return;
    }
    this.#storeSmall(PRIVATE + hpa, size, value);
    if (this.codePages[Math.floor(hpa / PAGE)] !== 0) this.#host.codeWritten(hpa, size);
  }

  #storeBus(hpa: number, value: bigint, size: number): void {
    for (let done = 0; done < size; ) {
      const part = busSize(hpa + done, size - done);
      this.#host.bus?.write(hpa + done, part, BigInt.asUintN(part * 8, value >> BigInt(done * 8)));
      done += part;
    }
  }

  /** Copies up to `length` code bytes; the count before a fault would occur. Throws if there is none. */
  fetch(low: number, high: number, into: Uint8Array, length: number): number {
    const first = this.translate(low, high, AccessKind.fetch);
    const room = PAGE - (low & 0xfff);
    this.#copyCode(first, into, 0, Math.min(length, room));
    if (length <= room) return length;
    const second = this.#tryFetch(...this.#nextPage(low, high));
    if (second < 0) return room;
    this.#copyCode(second, into, room, length - room);
    return length;
  }

  /**
   * The page behind, only if it translates without any effect on the guest. Asking a nested table could exit, so a miss there ends the
   * prefetch; the decoder asks again if it needs the bytes.
   */
  #tryFetch(low: number, high: number): number {
    return this.tlb.lookup(low, high, this.dataContext, Tag.exec);
  }

  #copyCode(hpa: number, into: Uint8Array, at: number, length: number): void {
    if (this.#memory.contains(hpa, length)) {
      const { u8 } = this.#memory;
      for (let n = 0; n < length; n++) into[at + n] = u8[PRIVATE + hpa + n];
      return;
    }
    for (let n = 0; n < length; n++) into[at + n] = Number(this.load(hpa + n, 1));
  }

  /** Marks a host page as code: its entries lose the inline right to write. */
  protectCodePage(hostPage: number): void {
    if (this.codePages[hostPage] !== 0) return;
    this.codePages[hostPage] = 1;
    this.tlb.protectPage(hostPage);
  }
}

const pageOf = (hpa: number): number => hpa - (hpa % PAGE);
/** Largest naturally aligned piece of 1, 2, 4 or 8 bytes at an address. */
function busSize(hpa: number, left: number): number {
  for (const size of [8, 4, 2]) if (size <= left && hpa % size === 0) return size;
  return 1;
}
