/**
 * The names of registers that are cached or dirty, as bits: a Set of a closed list of names that costs no hashing and no allocation.
 * KVM: regs_avail and regs_dirty (enum kvm_reg).
 */
export const RegBit = {
  rip: 1 << 0,
  rsp: 1 << 1,
  rflags: 1 << 2,
  cr0: 1 << 3,
  cr3: 1 << 4,
  cr4: 1 << 5,
  pdptr: 1 << 6,
  segments: 1 << 7,
  exitInfo1: 1 << 8,
  exitInfo2: 1 << 9,
} as const;
/** enum kvm_reg, the lazily cached part. */
export type RegName = keyof typeof RegBit;
const NAMES = Object.keys(RegBit) as RegName[];

export class RegSet {
  #bits = 0;
  has(reg: RegName): boolean {
    return (this.#bits & RegBit[reg]) !== 0;
  }
  add(reg: RegName): this {
    this.#bits |= RegBit[reg];
    return this;
  }
  delete(reg: RegName): boolean {
    const had = this.has(reg);
    this.#bits &= ~RegBit[reg];
    return had;
  }
  /** As `has`, `add` and `delete` by a bit of `RegBit`: for what runs at every exit, where a look-up by name would cost more than the set. */
  hasBit(bit: number): boolean {
    return (this.#bits & bit) !== 0;
  }
  addBit(bit: number): void {
    this.#bits |= bit;
  }
  deleteBit(bit: number): void {
    this.#bits &= ~bit;
  }
  clear(): void {
    this.#bits = 0;
  }
  /** No name is in it. */
  get isEmpty(): boolean {
    return this.#bits === 0;
  }
  /** For snapshots. */
  save(): RegName[] {
    return NAMES.filter((name) => this.has(name));
  }
  load(names: readonly RegName[]): void {
    this.clear();
    for (const name of names) this.add(name);
  }
}
