/**
 * FlatMachine: the vectors' environment as X86EmulateOps, without paging or privilege behind it.
 */
import { GuestException } from '../../src/exceptions.ts';
import type { InstructionInfo, X86EmulateOps } from '../../src/ops.ts';
import { X86Emul } from '../../src/ops.ts';
import {
  CR0,
  CR4,
  type DescriptorTable,
  Pfec,
  S,
  Seg,
  type Segment,
  type SegmentIndex,
  Vector,
} from '../../src/state-layout.ts';
import * as env from './environment.ts';
import type { Header } from './format.ts';

const EFER = 0xc000_0080;

interface Region {
  base: number;
  bytes: Uint8Array;
  view: DataView;
  writable: (address: number) => boolean;
  executable: boolean;
  user: boolean;
}

const region = (base: number, bytes: Uint8Array, rest: Omit<Region, 'base' | 'bytes' | 'view'>): Region => ({
  base,
  bytes,
  view: new DataView(bytes.buffer),
  ...rest,
});

export class FlatMachine implements X86EmulateOps {
  readonly gpr: bigint[] = new Array<bigint>(16).fill(0n);
  rip = 0n;
  rflags = 2n;
  readonly segments: Segment[] = [];
  readonly fpu = new DataView(new ArrayBuffer(S.mxcsr + 4 - S.ymm));
  readonly data: Region;
  readonly code: Region;
  private readonly system: Region;
  private readonly regions: Region[];
  private readonly fault = new GuestException();
  private readonly background = env.background();

  constructor(private readonly header: Header) {
    const never = () => false;
    this.data = region(env.DATA, new Uint8Array(env.DATA_SIZE), {
      writable: (address) => address < env.READ_ONLY,
      executable: false,
      user: true,
    });
    this.code = region(env.CODE, new Uint8Array(env.CODE_SIZE), { writable: never, executable: true, user: true });
    this.system = region(env.GDT, env.systemMemory(header).slice(), {
      writable: () => true,
      executable: false,
      user: false,
    });
    this.regions = [this.data, this.code, this.system];
  }

  /** Memory and segments as every case finds them. */
  reset(): void {
    this.data.bytes.set(this.background);
    this.code.bytes.fill(0xcc);
    this.system.bytes.set(env.systemMemory(this.header));
    for (let i = 0; i < 6; i++) this.segments[i] = env.segmentOf(this.header, i);
    this.segments[Seg.LDTR] = {
      selector: 0x50,
      attrib: 0x82,
      limit: this.header.ldt.length * 8 - 1,
      base: BigInt(env.LDT),
    };
    this.segments[Seg.TR] = { selector: 0x40, attrib: 0x8b, limit: 0x67, base: BigInt(env.TSS) };
  }

  /** Writes bytes wherever they belong, past all rights. */
  patch(address: number, bytes: Uint8Array): void {
    for (const r of this.regions) {
      const from = address - r.base;
      if (from > -bytes.length && from < r.bytes.length) {
        for (let i = 0; i < bytes.length; i++)
          if (from + i >= 0 && from + i < r.bytes.length) r.bytes[from + i] = bytes[i]!;
      }
    }
  }

  private pageFault(address: bigint, code: number): never {
    throw this.fault.set(Vector.PF, code, address);
  }

  private find(address: number): Region | undefined {
    for (const r of this.regions) if (address >= r.base && address < r.base + r.bytes.length) return r;
    return undefined;
  }

  /** The byte ranges of an access, page by page; faults as the pages' rights say. */
  private check(linear: bigint, size: number, write: boolean, system: boolean): void {
    const user = !system && this.cpl() === 3;
    const code = (write ? Pfec.W : 0) | (user ? Pfec.U : 0);
    const last = BigInt.asUintN(64, linear + BigInt(size - 1));
    for (const address of (linear ^ last) >> 12n === 0n ? [linear] : [linear, last & ~0xfffn]) {
      const r = this.find(Number(address));
      if (r === undefined) this.pageFault(address, code);
      else if ((user && !r.user) || (write && !r.writable(Number(address)))) this.pageFault(address, code | Pfec.P);
    }
  }

  private get(linear: bigint, size: number): bigint {
    let value = 0n;
    for (let i = size - 1; i >= 0; i--) {
      const address = Number(linear) + i;
      const r = this.find(address)!;
      value = (value << 8n) | BigInt(r.bytes[address - r.base]!);
    }
    return value;
  }

  private set(linear: bigint, value: bigint, size: number): void {
    for (let i = 0, rest = value; i < size; i++, rest >>= 8n) {
      const address = Number(linear) + i;
      const r = this.find(address)!;
      r.bytes[address - r.base] = Number(rest & 0xffn);
    }
  }

  readGpr(reg: number): bigint {
    return this.gpr[reg]!;
  }
  writeGpr(reg: number, value: bigint): void {
    this.gpr[reg] = value;
  }
  getRip(): bigint {
    return this.rip;
  }
  setRip(value: bigint): void {
    this.rip = value;
  }
  getRflags(): bigint {
    return this.rflags;
  }
  setRflags(value: bigint): void {
    this.rflags = value;
  }
  readStd(linear: bigint, size: number, system: boolean): bigint {
    this.check(linear, size, false, system);
    return this.get(linear, size);
  }
  writeStd(linear: bigint, value: bigint, size: number, system: boolean): void {
    this.check(linear, size, true, system);
    this.set(linear, value, size);
  }
  fetch(linear: bigint, into: Uint8Array, length: number): number {
    const r = this.find(Number(linear));
    if (r === undefined || !r.executable) {
      const present = r === undefined ? 0 : Pfec.P;
      this.pageFault(linear, Pfec.F | (this.cpl() === 3 ? Pfec.U : 0) | present);
    }
    const from = Number(linear) - r.base;
    const count = Math.min(length, r.bytes.length - from);
    into.set(r.bytes.subarray(from, from + count));
    return count;
  }
  readEmulated(linear: bigint, size: number): bigint {
    return this.readStd(linear, size, false);
  }
  writeEmulated(linear: bigint, value: bigint, size: number): void {
    this.writeStd(linear, value, size, false);
  }
  readForWrite(linear: bigint, size: number): bigint {
    this.check(linear, size, true, false);
    return this.get(linear, size);
  }
  probeWrite(linear: bigint, size: number): void {
    this.check(linear, size, true, false);
  }
  cmpxchgEmulated(linear: bigint, old: bigint, replacement: bigint, size: number): boolean {
    if (this.readForWrite(linear, size) !== old) return false;
    this.set(linear, replacement, size);
    return true;
  }
  invlpg(): void {}
  pioIn(): number {
    return 0;
  }
  pioOut(): void {}
  getSegment(seg: SegmentIndex): Segment {
    return this.segments[seg]!;
  }
  setSegment(seg: SegmentIndex, value: Segment): void {
    this.segments[seg] = { ...value };
  }
  getCachedSegmentBase(seg: SegmentIndex): bigint {
    return this.segments[seg]!.base;
  }
  getGdt(): DescriptorTable {
    return { base: BigInt(env.GDT), limit: env.GDT_LIMIT };
  }
  getIdt(): DescriptorTable {
    return { base: BigInt(env.IDT), limit: 0xfff };
  }
  setGdt(): void {}
  setIdt(): void {}
  getCr(cr: number): bigint {
    if (cr === 0) return CR0.PE | CR0.MP | CR0.ET | CR0.NE | CR0.WP | CR0.AM | CR0.PG;
    if (cr === 4) {
      return CR4.PAE | CR4.PGE | CR4.OSFXSR | CR4.OSXMMEXCPT | CR4.OSXSAVE | CR4.FSGSBASE | CR4.UMIP;
    }
    return 0n;
  }
  setCr(): number {
    return 0;
  }
  cpl(): number {
    return this.segments[Seg.CS]!.selector & 3;
  }
  getDr(): bigint {
    return 0n;
  }
  setDr(): number {
    return 0;
  }
  /** Only what segment loads and FS/GS base instructions use. */
  getMsr(index: number): bigint | undefined {
    switch (index) {
      case EFER:
        return 0xd01n;
      case 0xc000_0100:
        return this.segments[Seg.FS]!.base;
      case 0xc000_0101:
        return this.segments[Seg.GS]!.base;
      default:
        return 0n;
    }
  }
  setMsr(index: number, value: bigint): number {
    if (index === 0xc000_0100) this.segments[Seg.FS]!.base = value;
    else if (index === 0xc000_0101) this.segments[Seg.GS]!.base = value;
    return 0;
  }
  readPmc(): bigint | undefined {
    return undefined;
  }
  rdtsc(): bigint {
    return 0n;
  }
  halt(): void {}
  wbinvd(): void {}
  fixHypercall(): X86Emul {
    return X86Emul.CONTINUE;
  }
  intercept(_info: InstructionInfo): X86Emul {
    return X86Emul.CONTINUE;
  }
  getCpuid(): readonly [number, number, number, number] {
    return [0, 0, 0, 0];
  }
  guestHas(feature: string): boolean {
    return !ABSENT.has(feature);
  }
  isIntelCompatible(): boolean {
    return false;
  }
  setNmiMask(): void {}
  isSmm(): boolean {
    return false;
  }
  leaveSmm(): number {
    return 1;
  }
  tripleFault(): void {}
  getXcr(): bigint {
    return 7n;
  }
  setXcr(): number {
    return 0;
  }
  fpuArea(): DataView {
    return this.fpu;
  }
  setInterruptShadow(): void {}
}

/** What the processor of the vectors does not have. */
const ABSENT = new Set<string>([
  'vmx',
  'sgx',
  'smx',
  'mpx',
  'rtm',
  'hle',
  'tbm',
  'fma4',
  'xop',
  'lwp',
  '3dnow',
  'cet',
  'la57',
]);
