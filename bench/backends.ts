/** The backends by the names that rows give them. */
import type { Backend } from '@tskvm/core';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';

export const BACKENDS = { svm: () => svm(), vmx: () => vmx() } as const satisfies Record<string, () => Backend>;
export type Vendor = keyof typeof BACKENDS;
