/**
 * The read log of one instruction: what it has read from memory that may be MMIO and from ports, so that it can start again after
 * user space completed an access without reading anything twice.
 * KVM: struct read_cache in x86_emulate_ctxt (mem_read, io_read).
 */

/** One completed read. `port` reads carry the port in `address`. */
export interface LoggedRead {
  kind: 'memory' | 'port';
  address: bigint;
  size: number;
  value: bigint;
}

/** Plain data of an interrupted instruction. */
export interface SavedSession {
  version: 1;
  /** RIP of the instruction that waits, or undefined if none does. */
  rip: bigint | undefined;
  bytes: Uint8Array;
  reads: LoggedRead[];
}

export class EmulateSession {
  /** RIP of an instruction that was interrupted and will be started again. */
  waitingAt: bigint | undefined = undefined;
  /** Its bytes: they are not fetched twice either. */
  bytes = new Uint8Array(0);
  private readonly reads: LoggedRead[] = [];
  private count = 0;
  private position = 0;

  /** A new instruction, or a new iteration: forgets what was read. */
  begin(): void {
    this.count = 0;
    this.position = 0;
    this.waitingAt = undefined;
  }

  /** The same instruction again: what was read is served from the log. */
  restart(): void {
    this.position = 0;
    this.waitingAt = undefined;
  }

  /** The logged value of the next read, or undefined if it has to be done. */
  replay(kind: LoggedRead['kind'], address: bigint, size: number): bigint | undefined {
    if (this.position === this.count) return undefined;
    const entry = this.reads[this.position]!;
    if (entry.kind === kind && entry.address === address && entry.size === size) {
      this.position++;
      return entry.value;
    }
    // Registers were changed from outside: what follows in the log belongs to another run.
    this.count = this.position;
    return undefined;
  }

  record(kind: LoggedRead['kind'], address: bigint, size: number, value: bigint): void {
    const entry = this.reads[this.count];
    if (entry === undefined) this.reads.push({ kind, address, size, value });
    else {
      entry.kind = kind;
      entry.address = address;
      entry.size = size;
      entry.value = value;
    }
    this.position = ++this.count;
  }

  save(): SavedSession {
    const reads = this.waitingAt === undefined ? [] : this.reads.slice(0, this.count).map((entry) => ({ ...entry }));
    return { version: 1, rip: this.waitingAt, bytes: this.bytes.slice(), reads };
  }

  load(state: SavedSession): void {
    this.begin();
    for (const entry of state.reads) this.record(entry.kind, entry.address, entry.size, entry.value);
    this.position = 0;
    this.bytes = state.bytes.slice();
    this.waitingAt = state.rip;
  }
}
