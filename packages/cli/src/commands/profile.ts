/** `tskvm run --profile`: the options, and what becomes of a profile when the run is over. */
import { closeSync, openSync, writeFileSync } from 'node:fs';
import type { Command } from 'commander';
import { UsageError } from '../machine/errors.ts';
import type { Machine } from '../machine/machine.ts';
import { Profile, type ProfileData } from '../profile/collect.ts';
import { speedscope } from '../profile/speedscope.ts';
import { Symbols } from '../profile/symbols.ts';
import { profileText } from '../report/profile-table.ts';
import { type RunFlags, readImage, writing } from './options.ts';

export interface ProfileFlags {
  profile?: boolean;
  profileFile?: string;
  symbols?: string;
}

const LEAST_WIDTH = 60;
const PIPED_WIDTH = 100;

export function addProfileOptions(command: Command): Command {
  return command
    .option('--profile', 'say on standard error where guest time went: engines, regions, exits (docs/profile.md)')
    .option('--profile-file <file>', 'write the profile for speedscope, a flame-graph viewer')
    .option('--symbols <file>', "names for a profile's addresses: System.map or what nm prints");
}

/** Can the file be written? What stands in it is left alone. */
const tryFile = (file: string): void => writing(file, '--profile-file', () => closeSync(openSync(file, 'a')));
function readSymbols(file: string): Symbols {
  return new Symbols(new TextDecoder().decode(readImage(file, '--symbols')), file);
}

/** A profile from the command line. Its files are tried before the guest runs. */
export class Profiling {
  readonly #flags: RunFlags & ProfileFlags;
  readonly #spec: string;
  readonly #symbols: Symbols | undefined;
  #profile: Profile | null = null;
  #data: ProfileData | undefined;

  constructor(flags: RunFlags & ProfileFlags, spec: string) {
    this.#flags = flags;
    this.#spec = spec;
    this.#symbols = flags.symbols === undefined ? undefined : readSymbols(flags.symbols);
    if (flags.profileFile !== undefined) tryFile(flags.profileFile);
  }

  attach(machine: Machine): void {
    this.#profile = new Profile(machine, this.#symbols);
  }

  /** Ends it and writes the file; undefined if it never began. */
  finish(): ProfileData | undefined {
    if (this.#profile === null || this.#data !== undefined) return this.#data;
    const { engine, profileFile, kernel, bios } = this.#flags;
    this.#data = this.#profile.finish(this.#spec, engine ?? 'translate');
    const name = `tskvm ${this.#spec} ${kernel ?? bios ?? ''}`.trim();
    if (profileFile !== undefined) {
      const text = JSON.stringify(speedscope(this.#profile, name));
      writing(profileFile, '--profile-file', () => writeFileSync(profileFile, text));
    }
    return this.#data;
  }

  /** The table, if it was asked for, and where the file is. */
  print(): void {
    const data = this.finish();
    if (data === undefined) return;
    const { profile, profileFile } = this.#flags;
    const width = Math.max(LEAST_WIDTH, process.stderr.columns ?? PIPED_WIDTH);
    if (profile) process.stderr.write(`\n${profileText(data, width)}\n`);
    if (profileFile !== undefined)
      process.stderr.write(`tskvm: wrote ${profileFile}; open it at https://www.speedscope.app\n`);
  }
}

/** null: nobody asked for a profile. */
export function startProfiling(flags: RunFlags & ProfileFlags, spec: string): Profiling | null {
  if (flags.profile || flags.profileFile !== undefined) return new Profiling(flags, spec);
  if (flags.symbols === undefined) return null;
  throw new UsageError(
    'NO_PROFILE',
    '--symbols names the addresses of a profile: add --profile or --profile-file FILE',
  );
}
