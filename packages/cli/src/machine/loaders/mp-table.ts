/**
 * The MP floating pointer and configuration table that tell a kernel of its local APICs and the IOAPIC.
 * Source: Intel MultiProcessor Specification 1.4, chapter 4.
 */
const LOCAL_APIC = 0xfee00000;
const IO_APIC = 0xfec00000;
const SPEC_1_4 = 4;
const IO_APIC_VERSION = 0x11;
const LOCAL_APIC_VERSION = 0x14;
const PCI_BUS = 0;
const ISA_BUS = 1;
const ALL_APICS = 0xff;
const HEADER = 44;
const POINTER = 16;

/** Entry types of the base table. */
const PROCESSOR = 0;
const BUS = 1;
const IOAPIC = 2;
const IO_INTERRUPT = 3;
const LOCAL_INTERRUPT = 4;
/** Interrupt types. */
const INT = 0;
const NMI = 1;
const EXT_INT = 3;

export interface MpTableOptions {
  cpus: number;
  /** CPUID leaf 1 EAX and EDX, which a processor entry repeats. */
  signature?: number;
  features?: number;
}

const word = (value: number): number[] => [value & 0xff, (value >>> 8) & 0xff];
const dword = (value: number): number[] => [...word(value & 0xffff), ...word(value >>> 16)];
const text = (value: string, length: number): number[] =>
  Array.from({ length }, (_, i) => (i < value.length ? value.charCodeAt(i) : 0x20));

function processors({ cpus, signature = 0, features = 0x200 }: MpTableOptions): number[][] {
  return Array.from({ length: cpus }, (_, id) => [
    PROCESSOR,
    id,
    LOCAL_APIC_VERSION,
    // Enabled; the first one is the boot processor.
    id === 0 ? 3 : 1,
    ...dword(signature),
    ...dword(features),
    ...new Array<number>(8).fill(0),
  ]);
}

/** The ISA lines as they are wired: IRQ 0 on pin 2 (pin 0 is the PIC's), line 2 is the PICs' cascade. */
function isaInterrupts(ioapicId: number): number[][] {
  const entry = (type: number, irq: number, pin: number): number[] => [
    IO_INTERRUPT,
    type,
    ...word(0),
    ISA_BUS,
    irq,
    ioapicId,
    pin,
  ];
  const lines = [entry(INT, 0, 2)];
  for (let irq = 1; irq < 16; irq++) if (irq !== 2) lines.push(entry(INT, irq, irq));
  return lines;
}

const sum = (bytes: readonly number[]): number => (0x100 - (bytes.reduce((a, b) => a + b, 0) & 0xff)) & 0xff;

/**
 * Floating pointer and table in one piece for guest physical address `at` (a multiple of 16, where 4.1 lets software look).
 * Every interrupt of the ISA bus is listed with polarity and trigger as the bus has them.
 */
export function mpTable(at: number, options: MpTableOptions): Uint8Array {
  const ioapicId = options.cpus;
  const entries = [
    ...processors(options),
    [BUS, PCI_BUS, ...text('PCI', 6)],
    [BUS, ISA_BUS, ...text('ISA', 6)],
    [IOAPIC, ioapicId, IO_APIC_VERSION, 1, ...dword(IO_APIC)],
    ...isaInterrupts(ioapicId),
    [LOCAL_INTERRUPT, EXT_INT, ...word(0), ISA_BUS, 0, ALL_APICS, 0],
    [LOCAL_INTERRUPT, NMI, ...word(0), ISA_BUS, 0, ALL_APICS, 1],
  ];
  const body = entries.flat();
  const table = [
    ...text('PCMP', 4),
    ...word(HEADER + body.length),
    SPEC_1_4,
    0, // checksum
    ...text('TSKVM', 8),
    ...text('PC', 12),
    ...dword(0),
    ...word(0),
    ...word(entries.length),
    ...dword(LOCAL_APIC),
    ...dword(0),
    ...body,
  ];
  table[7] = sum(table);
  const pointer = [...text('_MP_', 4), ...dword(at + POINTER), 1, SPEC_1_4, 0, 0, 0, 0, 0, 0];
  pointer[10] = sum(pointer);
  return Uint8Array.from([...pointer, ...table]);
}
