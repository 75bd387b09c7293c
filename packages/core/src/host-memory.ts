/** The host's page allocator: who owns which frame of the one physical memory. No KVM counterpart: Linux's job. */
import { PAGE, type PhysicalMemory } from '@tskvm/emulator';
import { KvmError } from './diagnostics.ts';
import { Errno } from './types.ts';

/** Frames below this one are never handed out, so that 0 never is a table or a page of anyone. */
const FIRST_FRAME = 16;
/** 0: never used, so still zero. */
const TAKEN = 1;
const DIRTY = 2;

export class HostMemory {
  readonly #state: Uint8Array;
  /** Single pages come from the top, contiguous runs from the bottom. */
  #top: number;
  #bottom = FIRST_FRAME;
  #free: number;
  #seed: number | null;

  constructor(
    readonly memory: PhysicalMemory,
    shuffle: number | undefined,
  ) {
    const frames = Math.floor(memory.size / PAGE);
    this.#state = new Uint8Array(frames);
    this.#state.fill(TAKEN, 0, FIRST_FRAME);
    this.#top = frames - 1;
    this.#free = frames - FIRST_FRAME;
    this.#seed = shuffle === undefined ? null : (shuffle * 2654435761 + 1) >>> 0;
  }

  get freePages(): number {
    return this.#free;
  }
  get shuffled(): boolean {
    return this.#seed !== null;
  }

  #take(frame: number): number {
    if (this.#state[frame] === DIRTY) this.memory.fill(frame * PAGE, PAGE, 0);
    this.#state[frame] = TAKEN;
    this.#free--;
    return frame;
  }
  #exhausted(pages: number): never {
    throw new KvmError(
      'HOST_MEMORY',
      Errno.ENOMEM,
      `the host has ${this.#free} free pages, ${pages} are needed in one piece; create the Kvm with a larger 'memory'`,
    );
  }
  /** xorshift32: any full-period generator will do. */
  #random(below: number): number {
    let x = this.#seed as number;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#seed = x >>> 0;
    return this.#seed % below;
  }

  /** A zeroed page; returns its frame number. */
  allocFrame(): number {
    const frames = this.#state.length;
    if (this.#free === 0) this.#exhausted(1);
    if (this.#seed !== null) {
      let frame = this.#random(frames);
      while (this.#state[frame] === TAKEN) frame = frame + 1 === frames ? 0 : frame + 1;
      return this.#take(frame);
    }
    while (this.#state[this.#top] === TAKEN) this.#top = this.#top === 0 ? frames - 1 : this.#top - 1;
    return this.#take(this.#top);
  }

  /** `count` contiguous zeroed frames, the first a multiple of `align`; undefined if there is no such run. */
  tryAllocRun(count: number, align: number): number | undefined {
    const frames = this.#state.length;
    let start = Math.ceil(this.#bottom / align) * align;
    while (start + count <= frames) {
      const run = this.#state.subarray(start, start + count);
      // What stands last in the way.
      const taken = run.lastIndexOf(TAKEN);
      if (taken < 0) return this.#takeRun(run, start);
      start = Math.ceil((start + taken + 1) / align) * align;
    }
    return undefined;
  }
  #takeRun(run: Uint8Array, start: number): number {
    for (let i = run.indexOf(DIRTY); i >= 0; i = run.indexOf(DIRTY, i + 1)) {
      this.memory.fill((start + i) * PAGE, PAGE, 0);
    }
    run.fill(TAKEN);
    this.#free -= run.length;
    return start;
  }

  /** `count` contiguous frames; throws HOST_MEMORY (ENOMEM). */
  allocRun(count: number, align = 1): number {
    return this.tryAllocRun(count, align) ?? this.#exhausted(count);
  }

  /** Frames that back guest memory: contiguous and 2 MiB-aligned if possible, scattered if the kernel was created so. */
  allocGuestFrames(count: number): Uint32Array {
    if (count > this.#free) this.#exhausted(count);
    const out = new Uint32Array(count);
    const first = this.#seed === null ? this.tryAllocRun(count, count >= 512 ? 512 : 1) : undefined;
    for (let i = 0; i < count; i++) out[i] = first === undefined ? this.allocFrame() : first + i;
    return out;
  }

  freeFrame(frame: number): void {
    if (frame < FIRST_FRAME || this.#state[frame] !== TAKEN) {
      throw new KvmError('HOST_FREE', Errno.EINVAL, `host frame 0x${frame.toString(16)} is not allocated`);
    }
    this.#state[frame] = DIRTY;
    this.#free++;
  }

  /** State for a snapshot: one byte per frame, and the generator. */
  save(): { version: 1; state: Uint8Array; seed: number | null } {
    return { version: 1, state: this.#state.slice(), seed: this.#seed };
  }
  load(saved: { version: 1; state: Uint8Array; seed: number | null }): void {
    this.#state.set(saved.state);
    this.#seed = saved.seed;
    this.#free = this.#state.reduce((n, state) => n + (state === TAKEN ? 0 : 1), 0);
  }
}
