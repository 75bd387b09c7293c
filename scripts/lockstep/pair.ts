/** A machine of ours and a QEMU that start from the same firmware image and go on instruction by instruction. */
import { spawn } from 'node:child_process';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Vcpu } from '@tskvm/core';
import { Decoder, DecoderOptions, type Instruction, Mnemonic } from 'iced-x86';
import { findBackend } from '../../packages/cli/src/backends.ts';
import { firmware } from '../../packages/cli/src/machine/loaders/image.ts';
import { createMachine, type Machine, type MachineStop } from '../../packages/cli/src/machine/machine.ts';
import { textOf as instructionText } from '../../packages/cli/src/report/disassembly.ts';
import { GdbRemote } from './gdb-remote.ts';
import { differences, is64Bit, parseRegisters, type State, stateOf, undefinedFlagsOf } from './registers.ts';

/** Instructions whose results come from outside: the register values are ours on both sides from then on. */
const INPUTS = new Set([
  Mnemonic.Cpuid,
  Mnemonic.Rdtsc,
  Mnemonic.Rdtscp,
  Mnemonic.In,
  Mnemonic.Rdmsr,
  Mnemonic.Rdrand,
  Mnemonic.Rdseed,
]);
const GENERAL = ['ax', 'bx', 'cx', 'dx', 'si', 'di', 'bp', 'sp', '8', '9', '10', '11', '12', '13', '14', '15', 'ip'];
/** An SMI behind an instruction, or an instruction in the shadow of MOV SS, are steps of their own there and not here. */
const STEPS_MORE = 2;
const PAUSE_MS = 20;
/** Bytes that a packet of QEMU's stub holds. */
const CHUNK = 1024;

const hex = (value: bigint | undefined): string => (value === undefined ? '?' : `0x${value.toString(16)}`);

/** One instruction on both sides. */
export interface Step {
  number: number;
  instruction: Instruction;
  before: State;
  ours: State;
  theirs: State;
  /** Names in `ours` and `theirs` that differ, those left out that differed alike before. */
  differ: string[];
  /** Our machine has ended. */
  ended: boolean;
}

export function describe({ number, instruction, before, ours, theirs, differ }: Step): string {
  const place = `${hex(before.get('cs'))}:${hex(before.get('rip'))}`;
  const what = differ.map((name) => `${name} ${hex(ours.get(name))}, QEMU ${hex(theirs.get(name))}`).join('; ');
  return `${number} ${place} ${instructionText(instruction)}: ${what}`;
}
export const textOf = (step: Step): string => instructionText(step.instruction);

async function startQemu(image: string, vendor: string): Promise<{ remote: GdbRemote; stop: () => void }> {
  const path = join(mkdtempSync(join(tmpdir(), 'lockstep-')), 'gdb');
  const machine = `-accel tcg -M pc -cpu max,vendor=${vendor} -m 16 -nodefaults -display none -no-reboot -S`.split(' ');
  const child = spawn(
    'qemu-system-x86_64',
    machine
      .concat(['-device', 'isa-debug-exit,iobase=0xf4,iosize=0x4', '-bios', image])
      .concat(['-chardev', `socket,path=${path},server=on,wait=off,id=gdb`, '-gdb', 'chardev:gdb']),
    { stdio: 'ignore' },
  );
  for (let tries = 0; ; tries++) {
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    try {
      const remote = await GdbRemote.connect(path);
      // Steps keep interrupts and timers as they are.
      await remote.ask('Qqemu.sstep=1');
      // A write of port B2h raises an SMI (PIIX4: APMC_EN in register 58h of its power management function).
      await remote.monitor('o /4 0xcf8 0x80000b58');
      await remote.monitor('o /1 0xcff 0x02');
      return {
        remote,
        stop: () => {
          remote.close();
          child.kill();
        },
      };
    } catch (error) {
      if (tries > 500) throw error;
    }
  }
}

/** LAR's bits 19:16 are undefined (SDM vol. 2), and QEMU clears them. */
function forgetLimit(ours: State, theirs: State): void {
  for (const [name, value] of ours) {
    if (/^r[a-d]x$/.test(name) && (value ^ (theirs.get(name) ?? 0n)) === (value & 0xf0000n)) theirs.set(name, value);
  }
}

export class Pair {
  readonly machine: Machine;
  readonly #remote: GdbRemote;
  readonly #known = new Map<string, string>();
  readonly close: () => void;
  #steps = 0;
  #stop: MachineStop | undefined;

  private constructor(machine: Machine, remote: GdbRemote, stop: () => void) {
    this.machine = machine;
    this.#remote = remote;
    this.close = stop;
  }
  /** Both at the reset vector, with our general registers. */
  static async start(imagePath: string, image: Uint8Array, backendName: string): Promise<Pair> {
    const backend = await findBackend(backendName);
    const machine = await createMachine({ backend, image: firmware(image, imagePath), memory: 2 ** 24 });
    const vendor = backendName.startsWith('svm') ? 'AuthenticAMD' : 'GenuineIntel';
    const { remote, stop } = await startQemu(imagePath, vendor);
    const pair = new Pair(machine, remote, stop);
    // The first step of a processor that was just reset does nothing in QEMU.
    await remote.step();
    await pair.align();
    pair.#news(pair.ours(), await pair.theirs(), 0n);
    return pair;
  }

  get #vcpu(): Vcpu {
    return this.machine.vm.vcpus[0];
  }
  ours(): State {
    return stateOf(this.#vcpu);
  }
  async theirs(): Promise<State> {
    return parseRegisters(await this.#remote.monitor('info registers'));
  }
  /** Differences that were not there before: one that stays is told once. */
  #news(ours: State, theirs: State, undefinedFlags: bigint): string[] {
    const differ = differences(ours, theirs, undefinedFlags);
    for (const name of this.#known.keys()) if (!differ.includes(name)) this.#known.delete(name);
    return differ.filter((name) => {
      const values = `${ours.get(name)} ${theirs.get(name)}`;
      const isNew = this.#known.get(name) !== values;
      this.#known.set(name, values);
      return isNew;
    });
  }
  /** One tick; whether the machine goes on. */
  #stepOurs(): boolean {
    const stop = this.machine.runSlice(1);
    if (stop === null || stop.reason === 'budget') return true;
    this.#stop = stop;
    return false;
  }
  async #stepTheirs(ours: State, repeated: bigint | undefined): Promise<State> {
    let theirs: State;
    do {
      await this.#remote.step();
      theirs = await this.theirs();
    } while (theirs.get('rip') === repeated);
    const first = theirs;
    for (let more = 0; more < STEPS_MORE && theirs.get('rip') !== ours.get('rip'); more++) {
      await this.#remote.step();
      theirs = await this.theirs();
    }
    return theirs.get('rip') === ours.get('rip') ? theirs : first;
  }

  /** Why our machine ended. */
  get stop(): MachineStop | undefined {
    return this.#stop;
  }
  /** One instruction on both sides. */
  async step(): Promise<Step> {
    const before = this.ours();
    const rip = before.get('rip');
    const instruction = await this.#instruction(before);
    const repeats = instruction.isStringInstruction && (instruction.hasRepPrefix || instruction.hasRepnePrefix);
    let alive = true;
    do alive = this.#stepOurs();
    while (alive && repeats && this.#vcpu.getRegs().rip === rip);
    const number = ++this.#steps;
    const ours = this.ours();
    if (!alive) return { number, instruction, before, ours, theirs: ours, differ: [], ended: true };
    const theirs = await this.#stepTheirs(ours, repeats ? rip : undefined);
    const undefinedFlags = undefinedFlagsOf(instruction);
    if (instruction.mnemonic === Mnemonic.Lar) forgetLimit(ours, theirs);
    const isInput = INPUTS.has(instruction.mnemonic);
    const differ = isInput ? [] : this.#news(ours, theirs, undefinedFlags);
    if (isInput || undefinedFlags !== 0n || instruction.mnemonic === Mnemonic.Lar) await this.align();
    return { number, instruction, before, ours, theirs, differ, ended: false };
  }

  /** QEMU's general registers and flags become ours. */
  async align(): Promise<void> {
    const state = this.ours();
    const theirs = await this.theirs();
    for (const [number, name] of GENERAL.entries()) {
      // Outside 64-bit code QEMU clears the upper half of what is written.
      if (!is64Bit(state) && number < 16 && !differences(state, theirs, 0n).includes(`r${name}`)) continue;
      await this.#remote.writeRegister(number, state.get(`r${name}`) ?? 0n, 8);
    }
    await this.#remote.writeRegister(GENERAL.length, state.get('rfl') ?? 0n, 4);
  }
  async #instruction(state: State): Promise<Instruction> {
    const long = is64Bit(state);
    const big = ((state.get('cs.attributes') ?? 0n) & (1n << 22n)) !== 0n;
    const offset = state.get('rip') ?? 0n;
    const at = BigInt.asUintN(long ? 64 : 32, offset + (long ? 0n : (state.get('cs.base') ?? 0n)));
    const bytes = await this.#remote.ask(`m${at.toString(16)},f`);
    const decoder = new Decoder(long ? 64 : big ? 32 : 16, Buffer.from(bytes, 'hex'), DecoderOptions.None);
    decoder.ip = offset;
    return decoder.decode();
  }

  /** Steps both until they are at an address, whatever lies between. */
  async meetAt(rip: bigint, limit: number): Promise<boolean> {
    for (let i = 0; i < limit && this.#vcpu.getRegs().rip !== rip; i++) if (!this.#stepOurs()) return false;
    let theirs = await this.theirs();
    for (let i = 0; i < limit && theirs.get('rip') !== rip; i++) {
      await this.#remote.step();
      theirs = await this.theirs();
    }
    return this.#vcpu.getRegs().rip === rip && theirs.get('rip') === rip;
  }

  readOurs(gpa: number, length: number): Uint8Array {
    return this.machine.vm.readGuest(gpa, length);
  }
  async readTheirs(gpa: number, length: number): Promise<Uint8Array> {
    await this.#remote.ask('Qqemu.PhyMemMode:1');
    const parts: Buffer[] = [];
    for (let at = 0; at < length; at += CHUNK) {
      parts.push(await this.#remote.readMemory(gpa + at, Math.min(CHUNK, length - at)));
    }
    await this.#remote.ask('Qqemu.PhyMemMode:0');
    return Buffer.concat(parts);
  }
  /** Guest physical memory of both sides. */
  async write(gpa: number, bytes: Uint8Array): Promise<void> {
    this.machine.vm.writeGuest(gpa, bytes);
    await this.#remote.ask('Qqemu.PhyMemMode:1');
    for (let at = 0; at < bytes.length; at += CHUNK) {
      const part = bytes.subarray(at, at + CHUNK);
      await this.#remote.ask(
        `M${(gpa + at).toString(16)},${part.length.toString(16)}:${Buffer.from(part).toString('hex')}`,
      );
    }
    await this.#remote.ask('Qqemu.PhyMemMode:0');
  }
}
