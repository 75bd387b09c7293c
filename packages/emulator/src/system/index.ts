/**
 * System instructions by mnemonic: plain functions on the emulation context.
 */
import type { SystemFunction } from './context.ts';

export const SYSTEM: Readonly<Record<string, SystemFunction>> = {};
