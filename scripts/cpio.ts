/** Writes cpio archives in format newc, as Linux takes them for an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst). */

/** One entry; `data` of a link is its target. */
export interface CpioEntry {
  path: string;
  /** Type and permission bits as in stat's st_mode, e.g. 0o100755. */
  mode: number;
  data?: Uint8Array | string;
  /** [major, minor] of a device. */
  device?: readonly [number, number];
}

export const DIRECTORY = 0o040755;
export const PROGRAM = 0o100755;
export const LINK = 0o120777;
export const CHARACTER_DEVICE = 0o020600;

const HEADER = 110;
const align = (value: number): number => (value + 3) & ~3;

function header(entry: CpioEntry, inode: number, nameSize: number, size: number): string {
  const [major, minor] = entry.device ?? [0, 0];
  const fields = [inode, entry.mode, 0, 0, 1, 0, size, 0, 0, major, minor, nameSize, 0];
  return `070701${fields.map((value) => value.toString(16).padStart(8, '0')).join('')}`;
}

/** The archive with its trailer. Owners are root, times zero: the same entries give the same bytes. */
export function cpio(entries: readonly CpioEntry[]): Uint8Array {
  const encoder = new TextEncoder();
  const all = [...entries, { path: 'TRAILER!!!', mode: 0 }].map((entry) => ({
    entry,
    name: encoder.encode(`${entry.path}\0`),
    data: typeof entry.data === 'string' ? encoder.encode(entry.data) : (entry.data ?? new Uint8Array()),
  }));
  const sizeOf = ({ name, data }: (typeof all)[number]): number => align(HEADER + name.length) + align(data.length);
  const out = new Uint8Array(all.reduce((sum, item) => sum + sizeOf(item), 0));
  let at = 0;
  all.forEach((item, i) => {
    out.set(encoder.encode(header(item.entry, i + 1, item.name.length, item.data.length)), at);
    out.set(item.name, at + HEADER);
    out.set(item.data, at + align(HEADER + item.name.length));
    at += sizeOf(item);
  });
  return out;
}

/** Mounts what a shell wants and starts it. */
const INIT = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin TERM=dumb PS1='# '
echo "tskvm: initramfs up"
exec setsid cttyhack sh
`;

/** An initramfs with a static busybox that ends in a shell on the console. */
export const busyboxInitramfs = (busybox: Uint8Array, init = INIT): Uint8Array =>
  cpio([
    ...['bin', 'dev', 'proc', 'sys'].map((path) => ({ path, mode: DIRECTORY })),
    { path: 'dev/console', mode: CHARACTER_DEVICE, device: [5, 1] },
    { path: 'bin/busybox', mode: PROGRAM, data: busybox },
    { path: 'init', mode: PROGRAM, data: init },
  ]);
