/** The two cascaded 8259A interrupt controllers. KVM: arch/x86/kvm/i8259.c; manual: Intel 8259A data sheet. */
import { kvmPicWakeup } from './lapic.ts';
import { trace } from './trace.ts';
import type { Vm } from './vm.ts';

/** State of one chip. */
interface Chip {
  /** Levels of the lines, as last driven. */
  lastIrr: number;
  irr: number;
  imr: number;
  isr: number;
  /** Line with the highest priority (rotation). */
  priorityAdd: number;
  irqBase: number;
  readRegSelect: boolean;
  poll: boolean;
  specialMask: boolean;
  initState: 0 | 1 | 2 | 3;
  autoEoi: boolean;
  rotateOnAutoEoi: boolean;
  specialFullyNested: boolean;
  init4: boolean;
  /** Edge (0) or level (1) per line, and which bits may be set. */
  elcr: number;
  elcrMask: number;
}

const newChip = (elcrMask: number): Chip => ({
  lastIrr: 0,
  irr: 0,
  imr: 0,
  isr: 0,
  priorityAdd: 0,
  irqBase: 0,
  readRegSelect: false,
  poll: false,
  specialMask: false,
  initState: 0,
  autoEoi: false,
  rotateOnAutoEoi: false,
  specialFullyNested: false,
  init4: false,
  elcr: 0,
  elcrMask,
});

/** Rotated number of the first line set in `mask`, 8 for none. */
function priority(chip: Chip, mask: number): number {
  if (mask === 0) return 8;
  let at = 0;
  while ((mask & (1 << ((at + chip.priorityAdd) & 7))) === 0) at++;
  return at;
}

/** Line that the chip asks for, -1 for none. */
function pendingLine(chip: Chip, isMaster: boolean): number {
  const wanted = priority(chip, chip.irr & ~chip.imr);
  if (wanted === 8) return -1;
  let serving = chip.isr;
  if (chip.specialMask) serving &= ~chip.imr;
  // Special fully nested mode: a cascaded request may interrupt the slave's earlier one.
  if (chip.specialFullyNested && isMaster) serving &= ~4;
  return wanted < priority(chip, serving) ? (wanted + chip.priorityAdd) & 7 : -1;
}

export class Pic {
  readonly chips: [Chip, Chip] = [newChip(0xf8), newChip(0xde)];
  /** INTR output. */
  output = false;

  constructor(readonly vm: Vm) {}

  /** Drives line 0..15. KVM: kvm_pic_set_irq. */
  setIrq(line: number, level: boolean): void {
    const chip = this.chips[line >> 3];
    const mask = 1 << (line & 7);
    if ((chip.elcr & mask) !== 0) {
      chip.irr = level ? chip.irr | mask : chip.irr & ~mask;
    } else if (level) {
      if ((chip.lastIrr & mask) === 0) chip.irr |= mask;
    }
    chip.lastIrr = level ? chip.lastIrr | mask : chip.lastIrr & ~mask;
    trace(this.vm, 'kvm_pic_set_irq', () => ({
      chip: line >> 3,
      pin: line & 7,
      elcr: chip.elcr,
      imr: chip.imr,
      coalesced: false,
    }));
    this.#update();
  }

  #update(): void {
    const [master, slave] = this.chips;
    if (pendingLine(slave, false) >= 0) {
      // The cascade line is an edge on the master's line 2.
      master.irr |= 4;
    } else if ((master.lastIrr & 4) === 0) master.irr &= ~4;
    const output = pendingLine(master, true) >= 0;
    if (output && !this.output) {
      this.output = true;
      kvmPicWakeup(this.vm);
    } else this.output = output;
  }

  #acknowledge(chip: Chip, line: number): void {
    chip.isr |= 1 << line;
    if ((chip.elcr & (1 << line)) === 0) chip.irr &= ~(1 << line);
    if (!chip.autoEoi) return;
    if (chip.rotateOnAutoEoi) chip.priorityAdd = (line + 1) & 7;
    // Whoever waits for the end of the interrupt (the PIT with its missed edges) hears of this one, too.
    this.#endOfInterrupt(chip, line);
  }

  /** INTA: vector of the pending interrupt; a spurious one is line 7. KVM: kvm_pic_read_irq. */
  readIrq(): number {
    const [master, slave] = this.chips;
    const line = pendingLine(master, true);
    let vector = master.irqBase + (line < 0 ? 7 : line);
    if (line >= 0) {
      if (line === 2) {
        const second = pendingLine(slave, false);
        if (second >= 0) this.#acknowledge(slave, second);
        vector = slave.irqBase + (second < 0 ? 7 : second);
      }
      this.#acknowledge(master, line);
    }
    this.#update();
    return vector;
  }

  #init(chip: Chip, value: number): void {
    const { elcr, elcrMask, lastIrr } = chip;
    // Level-triggered requests survive ICW1 (8259A: edge sense is reset).
    const levels = lastIrr & elcr;
    Object.assign(chip, newChip(elcrMask), { elcr, lastIrr, irr: levels, initState: 1, init4: (value & 1) !== 0 });
  }

  #command(chip: Chip, value: number): void {
    if ((value & 0x10) !== 0) this.#init(chip, value);
    else if ((value & 0x08) !== 0) {
      if ((value & 4) !== 0) chip.poll = true;
      if ((value & 2) !== 0) chip.readRegSelect = (value & 1) !== 0;
      if ((value & 0x40) !== 0) chip.specialMask = ((value >> 5) & 1) !== 0;
    } else this.#ocw2(chip, value);
  }

  /** OCW2: end of interrupt and rotation. */
  #ocw2(chip: Chip, value: number): void {
    const command = value >> 5;
    const specific = value & 7;
    const inService = priority(chip, chip.isr);
    switch (command) {
      case 0:
      case 4:
        chip.rotateOnAutoEoi = command === 4;
        break;
      case 1:
      case 5:
        if (inService === 8) break;
        this.#endOfInterrupt(chip, (inService + chip.priorityAdd) & 7);
        if (command === 5) chip.priorityAdd = (((inService + chip.priorityAdd) & 7) + 1) & 7;
        break;
      case 3:
        this.#endOfInterrupt(chip, specific);
        break;
      case 6:
        chip.priorityAdd = (specific + 1) & 7;
        break;
      case 7:
        this.#endOfInterrupt(chip, specific);
        chip.priorityAdd = (specific + 1) & 7;
        break;
      default:
        break;
    }
  }
  #endOfInterrupt(chip: Chip, line: number): void {
    chip.isr &= ~(1 << line);
    trace(this.vm, 'kvm_ack_irq', () => ({ irqchip: chip === this.chips[0] ? 0 : 1, pin: line }));
    this.vm.irqAcknowledged(chip === this.chips[0] ? line : line + 8);
  }

  #data(chip: Chip, value: number): void {
    switch (chip.initState) {
      case 0:
        chip.imr = value;
        break;
      case 1:
        chip.irqBase = value & 0xf8;
        chip.initState = 2;
        break;
      case 2:
        chip.initState = chip.init4 ? 3 : 0;
        break;
      default:
        chip.specialFullyNested = ((value >> 4) & 1) !== 0;
        chip.autoEoi = ((value >> 1) & 1) !== 0;
        chip.initState = 0;
    }
  }

  #poll(chip: Chip): number {
    const line = pendingLine(chip, chip === this.chips[0]);
    chip.poll = false;
    if (line < 0) return 0x07;
    this.#acknowledge(chip, line);
    return line | 0x80;
  }

  /** Port read, undefined: not ours. */
  read(port: number): number | undefined {
    if (port === 0x4d0 || port === 0x4d1) return this.chips[port & 1].elcr;
    const chip = this.#chipAt(port);
    if (!chip) return undefined;
    let value: number;
    if (chip.poll) value = this.#poll(chip);
    else if ((port & 1) !== 0) value = chip.imr;
    else value = chip.readRegSelect ? chip.isr : chip.irr;
    this.#update();
    return value;
  }
  /** Port write, false: not ours. */
  write(port: number, value: number): boolean {
    if (port === 0x4d0 || port === 0x4d1) {
      const chip = this.chips[port & 1];
      chip.elcr = value & chip.elcrMask;
      return true;
    }
    const chip = this.#chipAt(port);
    if (!chip) return false;
    if ((port & 1) !== 0) this.#data(chip, value & 0xff);
    else this.#command(chip, value & 0xff);
    this.#update();
    return true;
  }
  #chipAt(port: number): Chip | undefined {
    if (port === 0x20 || port === 0x21) return this.chips[0];
    return port === 0xa0 || port === 0xa1 ? this.chips[1] : undefined;
  }

  save(): unknown {
    return { version: 1, chips: this.chips.map((chip) => ({ ...chip })), output: this.output };
  }
  load(state: unknown): void {
    const s = state as { chips: [Chip, Chip]; output: boolean };
    Object.assign(this.chips[0], s.chips[0]);
    Object.assign(this.chips[1], s.chips[1]);
    this.output = s.output;
  }
}
