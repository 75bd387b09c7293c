/**
 * Test vectors captured on a real processor: their types and how a file is read. README.md describes the format.
 * Numbers are lower-case hexadecimal strings, memory and vector registers bytes in memory order.
 */
import { readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';

export const SEGMENT_NAMES = ['es', 'cs', 'ss', 'ds', 'fs', 'gs'] as const;
export type SegmentName = (typeof SEGMENT_NAMES)[number];

export interface SegmentText {
  sel: string;
  base: string;
  limit: string;
  big: number;
}

/** x87 state: physical registers, abridged tag byte. */
export interface X87Text {
  cw?: string;
  sw?: string;
  tw?: string;
  st?: Record<string, string>;
}

export interface Template {
  t: number;
  name: string;
  mnem: string;
  form: string;
  enc: string;
  opsize?: number;
  n: number;
  uf?: string;
  usw?: string;
  approx?: 'x87' | 'rcp';
  faulty?: number;
  nochange?: number;
  selfbp?: number;
}

export interface Header {
  format: 'hwvec';
  version: string;
  group: string;
  mode: 16 | 32 | 64;
  cpu: string;
  seg: Record<SegmentName, SegmentText>;
  gdt: string[];
  ldt: string[];
  base: StateText;
  templates: Template[];
}

/** A state, or what differs from one. */
export interface StateText {
  fl?: string;
  r?: Record<string, string>;
  v?: Record<string, string>;
  mx?: string;
  fp?: X87Text;
  /** [linear address, bytes]. */
  m?: [string, string][];
}

export interface Outcome extends StateText {
  ip: string;
  /** Selectors, and fsbase, gsbase in 64-bit mode. */
  s?: Record<string, string>;
}

export interface Case {
  t: number;
  ip: string;
  c: string;
  i?: StateText;
  u?: { fl?: string; r?: Record<string, string>; m?: [string, number][] };
  o: Outcome;
  /** Vector, error code, CR2 for #PF. */
  e?: [number, string, string?];
}

export interface VectorFile {
  header: Header;
  cases: Case[];
}

/** Reads `<mode>_<group>.jsonl.gz`. */
export function readVectors(path: string): VectorFile {
  const lines = gunzipSync(readFileSync(path)).toString('utf8').split('\n');
  const header = JSON.parse(lines[0]!) as Header;
  if (header.format !== 'hwvec') throw new Error(`${path}: not a vector file`);
  const cases = lines.slice(1).filter((line) => line !== '');
  return { header, cases: cases.map((line) => JSON.parse(line) as Case) };
}

export const hex = (text: string): bigint => BigInt(`0x${text}`);
export const bytesOf = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text, 'hex'));
