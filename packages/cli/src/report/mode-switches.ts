/** The table of mode switches: what `modes` and `tour` print, and their JSON. */
import type { ModeSwitch } from '@tskvm/core';
import type { ProcessorMode } from '@tskvm/emulator';
import pc from 'picocolors';
import { disassemble } from './disassembly.ts';
import { outputWidth, textTable } from './text-table.ts';

const CR0_LOW = ['PE', 'MP', 'EM', 'TS', 'ET', 'NE'] as const;
const CR0_NAMES = new Map<number, string>([
  ...CR0_LOW.map((name, i) => [i, name] as const),
  [16, 'WP'],
  [18, 'AM'],
  [29, 'NW'],
  [30, 'CD'],
  [31, 'PG'],
]);
const CR4_NAMES = new Map<number, string>([
  [0, 'VME'],
  [1, 'PVI'],
  [4, 'PSE'],
  [5, 'PAE'],
  [7, 'PGE'],
  [9, 'OSFXSR'],
  [10, 'OSXMMEXCPT'],
  [17, 'PCIDE'],
  [20, 'SMEP'],
  [21, 'SMAP'],
]);
const EFER_NAMES = new Map<number, string>([
  [0, 'SCE'],
  [8, 'LME'],
  [10, 'LMA'],
  [11, 'NXE'],
  [12, 'SVME'],
]);

function changedBits(register: string, before: bigint, after: bigint, names: ReadonlyMap<number, string>): string[] {
  const out: string[] = [];
  const changed = before ^ after;
  for (let bit = 0; bit < 64; bit++) {
    if (!((changed >> BigInt(bit)) & 1n)) continue;
    out.push(`${(after >> BigInt(bit)) & 1n ? '+' : '-'}${register}.${names.get(bit) ?? bit}`);
  }
  return out;
}

/** `+CR0.PE -EFER.LMA`. */
export function bitsChanged(event: ModeSwitch): string {
  return [
    ...changedBits('CR0', event.cr0.before, event.cr0.after, CR0_NAMES),
    ...changedBits('CR4', event.cr4.before, event.cr4.after, CR4_NAMES),
    ...changedBits('EFER', event.efer.before, event.efer.after, EFER_NAMES),
  ].join(' ');
}

/** `protected32 PAE SMM`. */
export function modeName(mode: ProcessorMode): string {
  return [mode.name, mode.paging === 'off' ? '' : mode.paging, mode.smm ? 'SMM' : '', mode.nested ? 'nested' : '']
    .filter(Boolean)
    .join(' ');
}

/** The instruction's text, or its cause where no instruction did it. */
export function instructionText(event: ModeSwitch): string {
  if (!event.bytes || event.bytes.length === 0 || event.rip === undefined) return event.cause;
  return disassemble(event.bytes, event.rip, event.from.name);
}

const hex = (value: bigint | undefined): string => (value === undefined ? '' : `0x${value.toString(16)}`);

/** Causes that are no instruction: KVM brings them to the guest before an entry, so the exit before explains only when. */
const EVENTS = new Set(['SMI', 'INIT', 'KVM_SET_SREGS']);

/** `CR_ACCESS 0x1c`; `after io 0x7b` for an event that KVM delivered behind an exit; `none` for a native switch. */
export function exitText(event: ModeSwitch, withNumber = true): string {
  if (!event.exit) return event.path.length === 0 ? 'none' : 'not running';
  const { name, reason } = event.exit;
  return `${EVENTS.has(event.cause) ? 'after ' : ''}${name}${withNumber ? ` 0x${reason.toString(16)}` : ''}`;
}

/** Frames at which a path begins to tell something: the vendor's exit handler, else the entry. */
const FIRST_FRAMES = [/^(?!staticCall\.).*[hH]andleExit$/, /^staticCall\.handleExit$/, /^vcpuEnterGuest$/];

/** `svmHandleExit → … → setter`, without the run loop's frames; for a native switch why there was no exit. */
export function pathText(event: ModeSwitch): string {
  const { path, why } = event;
  if (path.length === 0) return why ? `native: no exit, because ${why}` : 'native: no exit';
  const start = FIRST_FRAMES.map((frame) => path.findIndex((name) => frame.test(name))).find((at) => at >= 0) ?? 0;
  return path.slice(start).join(' → ') + (why ? ` (${why})` : '');
}

/** One switch as JSON-safe data. */
export function switchData(event: ModeSwitch): Record<string, unknown> {
  return {
    tick: event.tick,
    vcpu: event.vcpuId,
    from: event.from,
    to: event.to,
    cause: event.cause,
    instruction: instructionText(event),
    rip: hex(event.rip),
    bits: bitsChanged(event),
    exit: event.exit,
    path: event.path,
    why: event.why,
    cr0: { before: hex(event.cr0.before), after: hex(event.cr0.after) },
    cr4: { before: hex(event.cr4.before), after: hex(event.cr4.after) },
    efer: { before: hex(event.efer.before), after: hex(event.efer.after) },
  };
}

/** A table for a terminal: one row a switch, the bits that it changed and its call path below. */
export function switchTable(events: readonly ModeSwitch[], width = outputWidth()): string {
  const several = events.some((event) => event.vcpuId !== 0);
  const columns = ['instr.', ...(several ? ['cpu'] : []), 'from', 'to', 'by', 'at', 'exit'].map((head) => ({
    head,
    style: head === 'to' ? pc.bold : undefined,
  }));
  const rows = events.map((event) => ({
    cells: [
      String(event.tick),
      ...(several ? [String(event.vcpuId)] : []),
      modeName(event.from),
      modeName(event.to),
      instructionText(event),
      hex(event.rip),
      exitText(event),
    ],
    notes: [bitsChanged(event), pathText(event)].filter(Boolean),
  }));
  return textTable(columns, rows, width);
}
