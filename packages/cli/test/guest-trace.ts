/** Machines whose whole trace is kept, one line per event with its tick: what the tests of determinism compare, in this process and in another. */
import type { TraceEvents, TraceName } from '@tskvm/core';
import { findBackend } from '../src/backends.ts';
import { expandImage } from '../src/guests/image.ts';
import { GUEST_IMAGES } from '../src/guests/images.ts';
import { bootSector, firmware } from '../src/machine/loaders/image.ts';
import { createMachine, type Machine } from '../src/machine/machine.ts';
import type { MachineOptions } from '../src/machine/machine-options.ts';
import { jsonSafe } from '../src/report/trace-text.ts';

export interface TracedOptions {
  /** As on the command line. */
  backend: string;
  guest: 'tour' | 'hello';
  engine?: 'translate' | 'interpret' | 'evaluate';
  shuffleFrames?: number;
}
export interface Traced {
  machine: Machine;
  lines: string[];
}

/** Events and fields that show where KVM put its own tables; a guest can't see them. */
const HOST_FIELDS = /"(spte|sptep)":"?[^,}]*/g;

export function listen(machine: Machine): string[] {
  const lines: string[] = [];
  machine.kvm.on('*', (event: TraceEvents[TraceName], name: TraceName) => {
    lines.push(`${machine.instructions} ${name} ${JSON.stringify(jsonSafe(event))}`.replace(HOST_FIELDS, '"$1":0'));
  });
  return lines;
}

/** A machine with an embedded guest, ready to run. */
export async function tracedGuest({ backend, guest, ...rest }: TracedOptions): Promise<Traced> {
  const bytes = expandImage(GUEST_IMAGES[guest]);
  const machine = await createMachine({
    backend: await findBackend(backend),
    image: guest === 'hello' ? bootSector(bytes, 'hello.bin') : firmware(bytes, 'tour.bin'),
    memory: 2 ** 24,
    cpus: 2,
    ...rest,
  });
  return { machine, lines: listen(machine) };
}
export async function tracedMachine(options: MachineOptions): Promise<Traced> {
  const machine = await createMachine(options);
  return { machine, lines: listen(machine) };
}

/**
 * Nested tables are a cache: a saved state does not carry them, and how large their pages can be depends on the host's frames. So exits that
 * fill them, the entries behind those and events that they interrupted and that are injected again are no part of what a guest sees.
 */
const CACHE_EVENTS =
  /^\d+ (kvm_entry|kvm_page_fault|kvm_mmu_\w+|mark_mmio_spte|handle_mmio_page_fault|kvm_userspace_exit) /;
const CACHE_EXITS = /"name":"(npf|EPT_VIOLATION|EPT_MISCONFIG)"|"reinjected":true/;
export const guestVisible = (lines: readonly string[]): string[] =>
  lines.filter((line) => !CACHE_EVENTS.test(line) && !CACHE_EXITS.test(line));
