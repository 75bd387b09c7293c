/** The PC's devices and where they sit. Map: PC/AT port assignments; facts of what firmware and public test suites touch. */
import type { Device, DeviceHost, IoBus } from './bus.ts';
import { FwCfg } from './devices/fw-cfg.ts';
import { HPET_BASE, HPET_LENGTH, Hpet } from './devices/hpet.ts';
import { I8042 } from './devices/i8042.ts';
import { AtaDisk, AtapiDrive, type BlockImage, IdeChannel } from './devices/ide.ts';
import { PciHost, pciFunction } from './devices/pci.ts';
import { Rtc } from './devices/rtc.ts';
import {
  ApmControl,
  debugcon,
  debugExit,
  irqTestDevice,
  Latch,
  SystemControlPortA,
  TestMemory,
} from './devices/simple.ts';
import { Uart16550 } from './devices/uart16550.ts';
import { VgaText } from './devices/vga-text.ts';

export interface PcOptions {
  memory: number;
  cpus: number;
  disks: BlockImage[];
  cdrom: BlockImage | undefined;
  serialConsole: boolean;
  onSerial: (byte: number) => void;
  onDebug: (byte: number) => void;
  exit: (status: number) => void;
}

export interface PcDevices {
  all: Device[];
  com1: Uart16550;
  rtc: Rtc;
  keyboard: I8042;
  vga: VgaText;
}

export function addPcDevices(bus: IoBus, host: DeviceHost, options: PcOptions): PcDevices {
  const com1 = new Uart16550('com1', host, 4);
  com1.onByte = options.onSerial;
  bus.registerPorts('com1', 0x3f8, 8, com1);

  const rtc = new Rtc(host);
  fillCmos(rtc.cmos, options);
  bus.registerPorts('rtc', 0x70, 2, rtc);

  const keyboard = new I8042(host);
  bus.registerPorts('i8042', 0x60, 1, keyboard.data);
  bus.registerPorts('i8042', 0x64, 1, keyboard.command);

  const vga = new VgaText(host);
  bus.registerPorts('vga', 0x3c0, 0x20, vga);

  const pci = new PciHost(host);
  pci.add(
    pciFunction({
      devfn: (1 << 3) | 1,
      vendor: 0x8086,
      device: 0x7010,
      classCode: 0x010180,
      writable: [
        [0x40, 4, 0xff],
        [0x20, 1, 0xf0],
        [0x21, 3, 0xff],
      ],
      initial: [
        [0x20, [1]],
        [0x40, [0, 0x80, 0, 0x80]],
      ],
    }),
  );
  bus.registerPorts('pci', 0xcf8, 4, pci.addressPort);
  bus.registerPorts('pci', 0xcfc, 4, pci.dataPort);

  const disk = options.disks[0];
  const primary = new IdeChannel('ide0', host, 14, disk ? new AtaDisk(disk) : null);
  const secondary = new IdeChannel('ide1', host, 15, options.cdrom ? new AtapiDrive(options.cdrom) : null);
  for (const [channel, base, control] of [
    [primary, 0x1f0, 0x3f6],
    [secondary, 0x170, 0x376],
  ] as const) {
    bus.registerPorts(channel.name, base, 8, channel.registers);
    bus.registerPorts(channel.name, control, 1, channel.controlPort);
  }

  const small = addSmallDevices(bus, host, options);
  return { all: [com1, rtc, keyboard, vga, pci, primary, secondary, ...small], com1, rtc, keyboard, vga };
}

function addSmallDevices(bus: IoBus, host: DeviceHost, options: PcOptions): Device[] {
  const fwCfg = new FwCfg({ ramSize: options.memory, cpus: options.cpus, files: firmwareFiles(options) });
  bus.registerPorts('fw_cfg', 0x510, 2, fwCfg);
  const console402 = debugcon('debugcon', options.onDebug);
  bus.registerPorts('debugcon', 0x402, 1, console402);
  bus.registerPorts('debugcon', 0xe9, 1, console402);
  bus.registerPorts('debug-exit', 0xf4, 4, debugExit(options.exit));
  const port92 = new SystemControlPortA(host);
  bus.registerPorts('port92', 0x92, 1, port92);
  const apm = new ApmControl(host);
  bus.registerPorts('apm', 0xb2, 2, apm);
  bus.registerPorts('testdev-irq', 0x2000, 24, irqTestDevice(host));
  const iomem = new TestMemory();
  bus.registerMmio('testdev-iomem', 0xff000000, 0x10000, iomem);
  const hpet = new Hpet(host);
  bus.registerMmio('hpet', HPET_BASE, HPET_LENGTH, hpet);
  const latches = [
    ['dma1', 0x00, 16],
    ['dma-page', 0x80, 16],
    ['dma2', 0xc0, 32],
    ['testdev-latch', 0xe0, 4],
    ['testdev-flush', 0xe4, 4],
    ['testdev-latch8', 0xe8, 1],
    ['fpu', 0xf0, 2],
    ['elcr-high', 0x4d2, 2],
    ['parallel', 0x378, 3],
  ] as const;
  const devices: Device[] = [fwCfg, port92, apm, iomem, hpet];
  for (const [name, first, count] of latches) {
    const latch = new Latch(name, count);
    bus.registerPorts(name, first, count, latch);
    devices.push(latch);
  }
  return devices;
}

/** Files that SeaBIOS looks for. */
function firmwareFiles(options: PcOptions): Map<string, Uint8Array> {
  const files = new Map<string, Uint8Array>();
  const u16 = (value: number): Uint8Array => Uint8Array.of(value & 0xff, value >> 8);
  const u64 = (value: number): Uint8Array => {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
    return bytes;
  };
  if (options.serialConsole) files.set('etc/sercon-port', u64(0x3f8));
  files.set('etc/max-cpus', u16(options.cpus));
  files.set('etc/show-boot-menu', u64(0));
  files.set('etc/e820', e820(options.memory));
  return files;
}

/** QEMU's e820 file: {address u64, length u64, type u32}, RAM above 1 MiB included. */
function e820(memory: number): Uint8Array {
  const bytes = new Uint8Array(20);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(8, BigInt(memory), true);
  view.setUint32(16, 1, true);
  return bytes;
}

/** The CMOS bytes in which firmware finds memory sizes and the boot order. */
function fillCmos(cmos: Uint8Array, options: PcOptions): void {
  const extended = Math.min(65535, Math.max(0, options.memory / 1024 - 1024));
  const above16 = Math.min(65535, Math.max(0, Math.floor((options.memory - 16 * 2 ** 20) / 65536)));
  cmos[0x14] = 0x06;
  cmos[0x15] = 640 & 0xff;
  cmos[0x16] = 640 >> 8;
  for (const at of [0x17, 0x30]) {
    cmos[at] = extended & 0xff;
    cmos[at + 1] = extended >> 8;
  }
  cmos[0x34] = above16 & 0xff;
  cmos[0x35] = above16 >> 8;
  // Boot order nibbles: 2 disk, 3 CD-ROM, 1 floppy.
  cmos[0x3d] = options.cdrom ? 0x23 : 0x32;
  cmos[0x38] = 0x10;
  cmos[0x5f] = options.cpus - 1;
}
