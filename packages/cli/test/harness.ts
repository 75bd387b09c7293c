/** What the tests of whole guests share: the three configurations, and tiny guests whose exits and call edges are written down. */
import type { Backend, CallerEdge, Kvm } from '@tskvm/core';
import { finish, type Guest, type GuestOptions, makeGuest, type Outcome } from '@tskvm/core/testing';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';

/** The configurations of the tour: AMD-V, VT-x, and VT-x whose real mode is a virtual-8086 task. */
export const CONFIGURATIONS = {
  svm: () => svm(),
  vmx: () => vmx(),
  'vmx without unrestricted guest': () => vmx({ unrestrictedGuest: false }),
} as const satisfies Record<string, () => Backend>;
export type ConfigurationName = keyof typeof CONFIGURATIONS;
export const CONFIGURATION_NAMES = Object.keys(CONFIGURATIONS) as ConfigurationName[];

/** Exits that only fill nested tables: when they come depends on the tables' state, not on the instruction under test. */
const TABLE_FILLS = new Set(['npf', 'EPT_VIOLATION', 'EPT_MISCONFIG']);

export interface Recording {
  /** KVM's symbols of the hardware exits, those that fill nested tables left out. */
  exits: string[];
  edges: () => CallerEdge[];
}
/** Listens to a kernel from now on. */
export function record(kvm: Kvm): Recording {
  const exits: string[] = [];
  kvm.on('kvm_exit', (event) => {
    if (!TABLE_FILLS.has(event.name)) exits.push(event.name);
  });
  return { exits, edges: () => kvm.tracer?.edges() ?? [] };
}

export interface Run extends Recording {
  guest: Guest;
  outcome: Outcome;
}
/** Makes a guest, listens, runs it to its end. */
export async function runGuest(backend: Backend, options: GuestOptions): Promise<Run> {
  const guest = await makeGuest(backend, { ...options, kvm: { shuffleFrames: 11, ...options.kvm } });
  const recording = record(guest.kvm);
  return { guest, ...recording, outcome: finish(guest) };
}
