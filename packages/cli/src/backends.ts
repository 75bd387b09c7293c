/**
 * Finds backends: the two built-in vendors, a path, an npm package name, or the keyword `tskvm-backend` among the dependencies
 * of the nearest package.json. `NAME[,param=value…]` gives module parameters under KVM's names in camel case.
 */
import { existsSync, readFileSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { type Backend, KvmError, nearest } from '@tskvm/core';
import { svm } from '@tskvm/svm';
import { vmx } from '@tskvm/vmx';
import { UsageError } from './machine/errors.ts';

/** A backend's factory takes module parameters. */
export type BackendFactory = (params?: Record<string, unknown>) => Backend;

const BUILT_IN: Readonly<Record<string, BackendFactory>> = {
  svm: (params) => svm(params),
  vmx: (params) => vmx(params),
};

/** One backend as `tskvm backends` lists it. */
export interface BackendInfo {
  name: string;
  /** `built-in`, or the package it comes from. */
  from: string;
  factory: BackendFactory | null;
  /** Why it can't be used, if so. */
  problem?: string;
}

/** The nearest package.json at or above a folder. */
function nearestPackage(from: string): string | null {
  for (let dir = resolve(from); ; dir = dirname(dir)) {
    const file = join(dir, 'package.json');
    if (existsSync(file)) return file;
    if (dirname(dir) === dir) return null;
  }
}

interface PackageJson {
  name?: string;
  keywords?: string[];
  dependencies?: Record<string, string>;
  devDependencies?: Record<string, string>;
}
const readPackage = (file: string): PackageJson => JSON.parse(readFileSync(file, 'utf8')) as PackageJson;

/** Where a dependency's package.json stands, or null. */
function dependencyPackage(name: string, from: string): string | null {
  for (let dir = dirname(from); ; dir = dirname(dir)) {
    const file = join(dir, 'node_modules', name, 'package.json');
    if (existsSync(file)) return file;
    if (dirname(dir) === dir) return null;
  }
}

/** Names of the dependencies of the nearest package.json that carry the keyword `tskvm-backend`. */
export function installedBackendPackages(cwd: string): string[] {
  const file = nearestPackage(cwd);
  if (!file) return [];
  const { dependencies = {}, devDependencies = {} } = readPackage(file);
  return Object.keys({ ...dependencies, ...devDependencies }).filter((name) => {
    const at = dependencyPackage(name, file);
    return at !== null && readPackage(at).keywords?.includes('tskvm-backend') === true;
  });
}

/** Takes a module's default export, or its only function, as the factory. */
async function importFactory(specifier: string, cwd: string): Promise<BackendFactory> {
  const isPath = specifier.startsWith('.') || specifier.startsWith('/') || /\.[mc]?[jt]s$/.test(specifier);
  let url: string;
  try {
    url = pathToFileURL(isPath ? resolve(cwd, specifier) : resolvePackage(specifier, cwd)).href;
  } catch {
    throw unknownBackend(specifier, cwd);
  }
  if (isPath && !existsSync(resolve(cwd, specifier))) {
    throw new UsageError('BACKEND_NOT_FOUND', `backend ${specifier}: there is no such file`);
  }
  if (isPath && statSync(resolve(cwd, specifier)).isDirectory()) {
    throw new UsageError('BACKEND_NOT_FOUND', `backend ${specifier}: it is a folder; give the module in it`);
  }
  let exports: Record<string, unknown>;
  try {
    exports = (await import(url)) as Record<string, unknown>;
  } catch (error) {
    if (error instanceof KvmError) throw error;
    throw new UsageError('BACKEND_BROKEN', `backend ${specifier} can't be imported: ${(error as Error).message}`);
  }
  const candidate = exports['default'] ?? Object.values(exports).find((value) => typeof value === 'function');
  if (typeof candidate === 'function') return candidate as BackendFactory;
  if (isBackend(candidate)) return () => candidate;
  throw new UsageError(
    'NOT_A_BACKEND',
    `backend ${specifier}: its default export is neither a backend nor a function that returns one; export default (params) => defineBackend({…})`,
  );
}
function resolvePackage(name: string, cwd: string): string {
  const require = createRequire(join(resolve(cwd), 'package.json'));
  try {
    return require.resolve(name);
  } catch (error) {
    // A package that has an `import` condition only can't be resolved by require: read its exports.
    const file = dependencyPackage(name, join(resolve(cwd), 'package.json'));
    if (!file) throw error;
    const exports = (JSON.parse(readFileSync(file, 'utf8')) as { exports?: unknown; main?: string }).exports;
    const entry = pickExport(exports) ?? 'index.js';
    return join(dirname(file), entry);
  }
}
function pickExport(exports: unknown): string | undefined {
  if (typeof exports === 'string') return exports;
  if (typeof exports !== 'object' || exports === null) return undefined;
  const map = exports as Record<string, unknown>;
  return pickExport(map['.'] ?? map['import'] ?? map['default']);
}
const isBackend = (value: unknown): value is Backend =>
  typeof value === 'object' && value !== null && (value as { kind?: unknown }).kind === 'tskvm-backend';

function unknownBackend(name: string, cwd: string): UsageError {
  const known = [...Object.keys(BUILT_IN), ...installedBackendPackages(cwd)];
  const near = nearest(name, known);
  return new UsageError(
    'BACKEND_NOT_FOUND',
    `unknown backend ${name === '' ? '(no name)' : name}${near.length > 0 ? `; did you mean ${near.join(' or ')}?` : '.'} Known: ${known.join(', ')}; or give a path or an installed package`,
  );
}

const BOOLEANS: Readonly<Record<string, boolean>> = {
  '1': true,
  y: true,
  yes: true,
  true: true,
  on: true,
  '0': false,
  n: false,
  no: false,
  false: false,
  off: false,
};

/** `unrestrictedGuest=0` → { unrestrictedGuest: false }; KVM's snake case is accepted too. */
function parseParams(texts: string[], backend: string): Record<string, unknown> {
  const params: Record<string, unknown> = {};
  for (const text of texts) {
    const [key, value, ...rest] = text.split('=');
    if (!key || value === undefined || rest.length > 0) {
      throw new UsageError(
        'BAD_PARAMETER',
        `backend ${backend}: "${text}" is not a parameter; write name=value, for example unrestrictedGuest=0`,
      );
    }
    const name = key.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
    const number = Number(value);
    params[name] = value in BOOLEANS ? BOOLEANS[value] : Number.isNaN(number) ? value : number;
  }
  return params;
}

/** Refusals of module parameters: on the command line they are misuse. */
const PARAM_CODES = new Set(['UNKNOWN_PARAM', 'BAD_PARAM']);

/** Makes the backend that a command line names. Throws {@link UsageError} or KvmError. */
export async function findBackend(spec: string, cwd = process.cwd()): Promise<Backend> {
  const [name, ...rest] = spec.split(',');
  const params = parseParams(rest, name);
  const factory = BUILT_IN[name] ?? (await importFactory(name, cwd));
  let backend: Backend;
  try {
    backend = factory(params);
  } catch (error) {
    if (!(error instanceof KvmError && PARAM_CODES.has(error.code))) throw error;
    throw new UsageError(error.code, `--backend ${spec}: ${error.message}`);
  }
  if (!isBackend(backend))
    throw new UsageError('NOT_A_BACKEND', `backend ${name}: its factory did not return a backend; use defineBackend`);
  return backend;
}

/** All backends that can be found from a folder. */
export async function listBackends(cwd = process.cwd()): Promise<BackendInfo[]> {
  const list: BackendInfo[] = Object.entries(BUILT_IN).map(([name, factory]) => ({ name, from: 'built-in', factory }));
  for (const name of installedBackendPackages(cwd)) {
    try {
      list.push({ name, from: `package ${name}`, factory: await importFactory(name, cwd) });
    } catch (error) {
      list.push({ name, from: `package ${name}`, factory: null, problem: (error as Error).message });
    }
  }
  return list;
}
