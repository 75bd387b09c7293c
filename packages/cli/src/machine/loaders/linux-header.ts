/**
 * The setup header of a Linux kernel: what a file must have before it is loaded, and what the files are that are none.
 * Source: Linux, Documentation/arch/x86/boot.rst ("The Real-Mode Kernel Header", "The CRC-32 at the end").
 */
import { UsageError } from '../errors.ts';

const SECTOR = 512;
const SETUP_HEADER = 0x1f1;
/** The oldest protocol that has everything asked for here (2.06: the command line's size), and newer fields by version. */
const MINIMUM = 0x206;
const LOADED_HIGH = 1;
const XLF_KERNEL_64 = 1;
const DEFAULT_INITRD_MAX = 0x37ffffff;
const HIGH_MEMORY = 0x100000;

export interface SetupHeader {
  /** The header as it stands in the file, for the zero page. */
  bytes: Uint8Array;
  /** The protected-mode part. */
  payload: Uint8Array;
  has64: boolean;
  /** Where the kernel runs unless it is loaded above. */
  preferred: number;
  /** Bytes that the kernel needs from there on. */
  initSize: number;
  /** Highest address that an initramfs may occupy. */
  initrdMax: number;
  commandLineSize: number;
}

const hex = (value: number): string => `0x${value.toString(16)}`;

/** Reads and checks the header. Throws {@link UsageError} BAD_KERNEL for what is not a sound bzImage. */
export function checkLinux(file: Uint8Array, name: string): SetupHeader {
  const bad = (why: string): UsageError => new UsageError('BAD_KERNEL', `${name} can't be loaded: ${why}`);
  const foreign = describeForeign(file);
  if (foreign) throw bad(foreign);
  if (file.length < 2 * SECTOR) throw bad(`it ends behind ${file.length} bytes: the file is truncated`);
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (view.getUint16(0x1fe, true) !== 0xaa55) throw bad('its boot sector has no signature 55 AA: the file is corrupt');
  const version = view.getUint16(0x206, true);
  if (version < MINIMUM) {
    throw bad(
      `its boot protocol ${version >> 8}.${version & 255} is too old; 2.06 (Linux 2.6.22) and later are served`,
    );
  }
  if (!(file[0x211] & LOADED_HIGH)) throw bad('it is a zImage, which loads low; give a bzImage');
  const start = ((file[SETUP_HEADER] || 4) + 1) * SECTOR;
  const end = start + view.getUint32(0x1f4, true) * 16;
  if (end > file.length) {
    throw bad(`it has ${file.length} bytes and its header speaks of ${end}: the file is truncated`);
  }
  if (version >= 0x208 && !holdsPacked(file, view, start, end)) {
    throw bad('no packed kernel stands where its header says: the file is corrupt');
  }
  if (version >= 0x208 && !checksumHolds(file, end)) throw bad('its checksum does not hold: the file is corrupt');
  const header = readHeader(file, view, version, file.subarray(start, end));
  if (header.preferred < HIGH_MEMORY) {
    throw bad(`its header wants it at ${hex(header.preferred)}, where the firmware's tables are: the file is corrupt`);
  }
  return header;
}

/** How packed kernels begin: gzip, bzip2, LZMA, XZ, LZO, LZ4, zstd, or an ELF file that is not packed. */
const PACKED: readonly (readonly number[])[] = [
  [0x1f, 0x8b],
  [0x42, 0x5a, 0x68],
  [0x5d, 0x00, 0x00],
  [0xfd, 0x37, 0x7a, 0x58, 0x5a],
  [0x89, 0x4c, 0x5a, 0x4f],
  [0x02, 0x21, 0x4c, 0x18],
  [0x28, 0xb5, 0x2f, 0xfd],
  [0x7f, 0x45, 0x4c, 0x46],
];
/** payload_offset and payload_length lie inside, and begin as they should; a kernel may leave them 0. @param start where the protected-mode part is */
function holdsPacked(file: Uint8Array, view: DataView, start: number, end: number): boolean {
  const at = start + view.getUint32(0x248, true);
  const length = view.getUint32(0x24c, true);
  if (length === 0) return end > start;
  return at + length <= end && PACKED.some((magic) => magic.every((byte, i) => file[at + i] === byte));
}

function readHeader(file: Uint8Array, view: DataView, version: number, payload: Uint8Array): SetupHeader {
  const since = (first: number, value: () => number, otherwise: number): number =>
    version >= first ? value() : otherwise;
  // The jump at 0x200 goes just behind the header; its displacement tells the length.
  const headerEnd = Math.min(0x202 + file[0x201], 0x290);
  return {
    bytes: file.subarray(SETUP_HEADER, headerEnd),
    payload,
    has64: version >= 0x20c && (view.getUint16(0x236, true) & XLF_KERNEL_64) !== 0,
    preferred: since(0x20a, () => Number(view.getBigUint64(0x258, true)), HIGH_MEMORY),
    // Older kernels don't say: what they unpack to is several times the file.
    initSize: Math.max(
      since(0x20a, () => view.getUint32(0x260, true), payload.length * 6),
      payload.length,
    ),
    initrdMax: view.getUint32(0x22c, true) || DEFAULT_INITRD_MAX,
    commandLineSize: view.getUint32(0x238, true) || 255,
  };
}

const CRC_TABLE = /* @__PURE__ */ Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let bit = 0; bit < 8; bit++) c = c & 1 ? (c >>> 1) ^ 0xedb88320 : c >>> 1;
  return c;
});

function crc32(bytes: Uint8Array, start: number): number {
  let crc = start;
  for (let at = 0; at < bytes.length; at++) crc = CRC_TABLE[(crc ^ bytes[at]) & 0xff] ^ (crc >>> 8);
  return crc;
}

/**
 * The file's last four bytes hold a CRC-32 of what is before them. A signature for Secure Boot adds a checksum and a directory entry to
 * the PE header afterwards, so these are taken as the zeros that they were.
 */
function checksumHolds(file: Uint8Array, end: number): boolean {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const stored = view.getUint32(end - 4, true);
  // Kernels built without the build tool's last step carry none.
  if (stored === 0) return true;
  const boot = file.slice(0, SECTOR);
  for (const [from, to] of signatureFields(view)) boot.fill(0, from, to);
  const crc = crc32(file.subarray(SECTOR, end - 4), crc32(boot, 0xffffffff));
  return crc >>> 0 === stored;
}

/** [from, to) of the PE header's checksum and of its certificate table's entry, if there is a PE header. */
function signatureFields(view: DataView): [number, number][] {
  const pe = view.getUint32(0x3c, true);
  if (view.getUint16(0, true) !== 0x5a4d || pe + 200 > SECTOR || view.getUint32(pe, true) !== 0x4550) return [];
  const optional = pe + 24;
  const directories = optional + (view.getUint16(optional, true) === 0x20b ? 112 : 96);
  return [
    [optional + 64, optional + 68],
    [directories + 32, directories + 40],
  ];
}

/** Magic numbers of kernels that are not for here: [offset, bytes, what it is]. */
const FOREIGN: readonly (readonly [number, readonly number[], string])[] = [
  [0x38, [0x41, 0x52, 0x4d, 0x64], 'it is a kernel for 64-bit ARM'],
  [0x24, [0x18, 0x28, 0x6f, 0x01], 'it is a kernel for 32-bit ARM'],
  [0x38, [0x52, 0x53, 0x43, 0x05], 'it is a kernel for RISC-V'],
  [0x04, [0x7a, 0x69, 0x6d, 0x67], 'it is an EFI zboot image, which only UEFI can start'],
  [0x00, [0x1f, 0x8b], 'it is a gzip file; kernels for x86 unpack themselves and come as bzImage'],
  [0x00, [0xfd, 0x37, 0x7a, 0x58, 0x5a], 'it is an xz file; kernels for x86 unpack themselves and come as bzImage'],
  [0x00, [0x28, 0xb5, 0x2f, 0xfd], 'it is a zstd file; kernels for x86 unpack themselves and come as bzImage'],
  [0x00, [0x02, 0x21, 0x4c, 0x18], 'it is an lz4 file; kernels for x86 unpack themselves and come as bzImage'],
  [0x00, [0x42, 0x5a, 0x68], 'it is a bzip2 file; kernels for x86 unpack themselves and come as bzImage'],
  [0x00, [0x21, 0x3c, 0x61, 0x72, 0x63, 0x68, 0x3e], 'it is an archive, as Debian packages are; the kernel is in it'],
  [0x00, [0x30, 0x37, 0x30, 0x37, 0x30], 'it is a cpio archive, which --initrd takes'],
  [0x00, [0x27, 0x05, 0x19, 0x56], 'it is a U-Boot image'],
];
/** ELF e_machine values by name. */
const MACHINES: Readonly<Record<number, string>> = {
  8: 'MIPS',
  20: 'PowerPC',
  21: '64-bit PowerPC',
  22: 'S/390',
  40: '32-bit ARM',
  183: '64-bit ARM',
  243: 'RISC-V',
  258: 'LoongArch',
};

/** What a file is that is a kernel, but none for this loader; undefined: it may be one. */
export function describeForeign(file: Uint8Array): string | undefined {
  for (const [at, magic, what] of FOREIGN) {
    if (magic.every((byte, i) => file[at + i] === byte)) return `${what}; give a bzImage for x86`;
  }
  if (file.length < 20 || file[0] !== 0x7f || file[1] !== 0x45 || file[2] !== 0x4c || file[3] !== 0x46)
    return undefined;
  const machine = file[5] === 2 ? (file[18] << 8) | file[19] : file[18] | (file[19] << 8);
  if (machine === 62) return 'it is a 64-bit ELF file, as an uncompressed vmlinux is; give the bzImage (vmlinuz)';
  if (machine === 3) return undefined;
  return `it is an ELF file for ${MACHINES[machine] ?? `machine ${hex(machine)}`}; give a bzImage for x86`;
}
