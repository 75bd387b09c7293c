/**
 * KVM's tracepoints as trace-cmd prints them: `task-pid [cpu] secs.usecs: event: text`.
 * Source: the print formats of the kvm tracepoints.
 */
import type { TraceEvents, TraceName } from '@tskvm/core';
import { instructionText } from './mode-switches.ts';

type Text<N extends TraceName> = (event: TraceEvents[N]) => string;

const h = (value: number | bigint): string => value.toString(16);
const pad = (value: number | bigint, digits: number): string => `0x${value.toString(16).padStart(digits, '0')}`;
const VECTORS = [
  'DE',
  'DB',
  'NMI',
  'BP',
  'OF',
  'BR',
  'UD',
  'NM',
  'DF',
  '9',
  'TS',
  'NP',
  'SS',
  'GP',
  'PF',
  '15',
  'MF',
  'AC',
  'MC',
  'XM',
  'VE',
  'CP',
];
const DELIVERY = ['Fixed', 'LowPrio', 'SMI', 'Res3', 'NMI', 'INIT', 'SIPI', 'ExtINT'];
const SHORTHAND = ['dst', 'self', 'all', 'all-but-self'];

/** Texts of the events whose format differs from `field value, …`. */
const TEXTS: { [N in TraceName]?: Text<N> } = {
  kvm_entry: (e) =>
    `vcpu ${e.vcpuId}, rip 0x${h(e.rip)} intr_info ${pad(e.intrInfo, 8)} error_code ${pad(e.errorCode, 8)}${e.immediateExit ? '[immediate exit]' : ''}`,
  kvm_exit: (e) =>
    `vcpu ${e.vcpuId} reason ${e.name} rip 0x${h(e.rip)} info1 ${pad(e.info1, 16)} info2 ${pad(e.info2, 16)} intr_info ${pad(e.intrInfo, 8)} error_code ${pad(e.errorCode, 8)} requests ${pad(e.requests, 16)}`,
  kvm_hypercall: (e) => `nr 0x${h(e.nr)} a0 0x${h(e.a0)} a1 0x${h(e.a1)} a2 0x${h(e.a2)} a3 0x${h(e.a3)}`,
  kvm_pio: (e) =>
    `pio_${e.rw} at 0x${h(e.port)} size ${e.size} count ${e.count} val 0x${h(e.val)} ${e.count > 1 ? '(...)' : ''}`.trimEnd(),
  kvm_mmio: (e) => `mmio ${e.type} len ${e.len} gpa 0x${h(e.gpa)} val 0x${h(e.val)}`,
  kvm_cpuid: (e) =>
    `func ${h(e.function)} idx ${h(e.index)} rax ${h(e.rax >>> 0)} rbx ${h(e.rbx >>> 0)} rcx ${h(e.rcx >>> 0)} rdx ${h(e.rdx >>> 0)}, cpuid entry ${e.found ? 'found' : 'not found'}`,
  kvm_apic: (e) => `apic_${e.rw} 0x${h(e.reg)} = 0x${h(e.val >>> 0)}`,
  kvm_inj_virq: (e) => `${e.soft ? 'Soft/INTn' : 'IRQ'} 0x${h(e.vector)}${e.reinjected ? ' [reinjected]' : ''}`,
  kvm_inj_exception: (e) =>
    `#${VECTORS[e.exception] ?? e.exception}${e.hasError ? ` (0x${h(e.errorCode)})` : ''}${e.reinjected ? ' [reinjected]' : ''}`,
  kvm_page_fault: (e) =>
    `vcpu ${e.vcpuId} rip 0x${h(e.rip)} address ${pad(e.address, 16)} error_code 0x${h(e.errorCode)}`,
  kvm_msr: (e) => `msr_${e.write ? 'write' : 'read'} ${h(e.ecx)} = 0x${h(e.data)}${e.exception ? ' (#GP)' : ''}`,
  kvm_cr: (e) => `cr_${e.rw} ${e.cr} = 0x${h(e.val)}`,
  kvm_pic_set_irq: (e) =>
    `chip ${e.chip} pin ${e.pin} (${e.elcr & (1 << e.pin) ? 'level' : 'edge'}${e.imr & (1 << e.pin) ? '|masked' : ''})${e.coalesced ? ' (coalesced)' : ''}`,
  kvm_apic_ipi: (e) =>
    `dst ${h(e.dest)} vec ${e.icrLow & 0xff} (${DELIVERY[(e.icrLow >> 8) & 7]}|${e.icrLow & 0x800 ? 'logical' : 'physical'}|${e.icrLow & 0x4000 ? 'assert' : 'de-assert'}|${e.icrLow & 0x8000 ? 'level' : 'edge'}|${SHORTHAND[(e.icrLow >> 18) & 3]})`,
  kvm_apic_accept_irq: (e) =>
    `apicid ${h(e.apicid)} vec ${e.vec} (${DELIVERY[(e.dm >> 8) & 7]}|${e.tm ? 'level' : 'edge'})`,
  kvm_eoi: (e) => `apicid ${h(e.apicid)} vector ${e.vector}`,
  kvm_emulate_insn: (e) =>
    `${h(e.csBase)}:${h(e.rip)}:${[...e.insn].map((byte) => byte.toString(16).padStart(2, '0')).join(' ')} (${e.mode})${e.failed ? ' failed' : ''}`,
  kvm_smm_transition: (e) => `vcpu ${e.vcpuId}: ${e.entering ? 'entering' : 'leaving'} SMM, smbase 0x${h(e.smbase)}`,
  kvm_userspace_exit: (e) => `reason KVM_EXIT_${e.reason.toUpperCase()}`,
  kvm_set_irq: (e) => `gsi ${e.gsi} level ${e.level} source ${e.source}`,
  mode_switch: (e) =>
    `vcpu ${e.vcpuId} ${e.from.name} -> ${e.to.name} by ${instructionText(e)}${e.exit ? ` exit ${e.exit.name}` : ''} path ${e.path.join('>') || `native (${e.why ?? ''})`}`,
};

function plain(value: unknown): string {
  if (typeof value === 'bigint') return `0x${h(value)}`;
  if (typeof value === 'object' && value !== null) return JSON.stringify(jsonSafe(value));
  return String(value);
}

/** The text behind `event: `. */
export function eventText<N extends TraceName>(name: N, event: TraceEvents[N]): string {
  const text = TEXTS[name];
  if (text) return text(event);
  return Object.entries(event)
    .map(([key, value]) => `${key} ${plain(value)}`)
    .join(' ');
}

/** A whole line; time is guest time. */
export function traceLine<N extends TraceName>(
  name: N,
  event: TraceEvents[N],
  nanoseconds: number,
  vcpu: number,
  unit: 'usec' | 'nsec' = 'usec',
): string {
  const seconds = Math.floor(nanoseconds / 1e9);
  const rest = Math.floor(nanoseconds % 1e9);
  const fraction = unit === 'nsec' ? String(rest).padStart(9, '0') : String(Math.floor(rest / 1000)).padStart(6, '0');
  return `tskvm-1 [${String(vcpu).padStart(3, '0')}] ${seconds}.${fraction}: ${name}: ${eventText(name, event)}`;
}

/** BigInts as hexadecimal strings, bytes as arrays. */
export function jsonSafe(value: unknown): unknown {
  if (typeof value === 'bigint') return `0x${h(value)}`;
  if (value instanceof Uint8Array) return [...value];
  if (Array.isArray(value)) return value.map(jsonSafe);
  if (typeof value === 'object' && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([key, member]) => [key, jsonSafe(member)]));
  }
  return value;
}
