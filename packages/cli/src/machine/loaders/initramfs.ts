/**
 * What an initramfs file must look like before a kernel gets it: a corrupt one shows only as a panic much later.
 * Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst; RFC 1952 for gzip.
 */
import { UsageError } from '../errors.ts';

/** Formats that kernels unpack or mount: [offset, magic]. */
const COMPRESSED: readonly (readonly [number, readonly number[]])[] = [
  [0, [0x1f, 0x8b]], // gzip
  [0, [0x42, 0x5a, 0x68]], // bzip2
  [0, [0x5d, 0x00, 0x00]], // lzma
  [0, [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]], // xz
  [0, [0x89, 0x4c, 0x5a, 0x4f]], // lzo
  [0, [0x02, 0x21, 0x4c, 0x18]], // lz4
  [0, [0x28, 0xb5, 0x2f, 0xfd]], // zstd
];
const FILE_SYSTEMS: typeof COMPRESSED = [
  [0x438, [0x53, 0xef]], // ext2
  [0, [0x45, 0x3d, 0xcd, 0x28]], // cramfs
  [0, [0x68, 0x73, 0x71, 0x73]], // squashfs
  [0, [0x2d, 0x72, 0x6f, 0x6d, 0x31, 0x66, 0x73]], // romfs
];
const HEADER = 110;
/** Linux's PATH_MAX: its unpacker takes no longer name. */
const MAX_NAME = 4096;
const FILE_SIZE = 54;
const NAME_SIZE = 94;
const TRAILER = 'TRAILER!!!';
const NO_TRAILER = 'its cpio archive has no trailer: the file is truncated';

export interface InitramfsOptions {
  bytes: Uint8Array;
  name: string;
  /** What came out of a compressed file: Linux unpacks no second time. */
  isInner?: boolean;
  /** Unpacks gzip and throws for what is damaged (with the code ERR_BUFFER_TOO_LARGE for what is too large); without it the compressed part is believed. */
  gunzip?: (bytes: Uint8Array) => Uint8Array;
}

const startsWith = (bytes: Uint8Array, at: number, magics: typeof COMPRESSED): boolean =>
  magics.some(([offset, magic]) => magic.every((byte, i) => bytes[at + offset + i] === byte));
const text = (bytes: Uint8Array, from: number, length: number): string =>
  String.fromCharCode(...bytes.subarray(from, from + length));

/**
 * Checks the archives of a file, one behind the other.
 * @returns the bytes that it unpacks to as far as that is known
 * Throws {@link UsageError} BAD_INITRD.
 */
export function checkInitramfs({ bytes, name, isInner = false, gunzip }: InitramfsOptions): number {
  const bad = (why: string): UsageError => new UsageError('BAD_INITRD', `${name} is no sound initramfs: ${why}`);
  if (startsWith(bytes, 0, FILE_SYSTEMS)) return bytes.length;
  let unpacked = 0;
  for (let at = 0; at < bytes.length; ) {
    if (bytes[at] === 0) at++;
    else if (startsWith(bytes, at, COMPRESSED)) {
      if (isInner) throw bad('it is compressed twice, and Linux unpacks once');
      if (bytes[at] !== 0x1f || !gunzip) return unpacked;
      return unpacked + unzip(bytes.subarray(at), name, gunzip, bad);
    } else {
      const archive = walkCpio(bytes, at, bad);
      unpacked += archive.unpacked;
      at = archive.end;
    }
  }
  if (unpacked === 0) throw bad('it is empty');
  return unpacked;
}

function unzip(
  bytes: Uint8Array,
  name: string,
  gunzip: (bytes: Uint8Array) => Uint8Array,
  bad: (why: string) => UsageError,
): number {
  let plain: Uint8Array;
  try {
    plain = gunzip(bytes);
  } catch (error) {
    // The files of one byte over and over that fill any memory.
    if ((error as { code?: string }).code === 'ERR_BUFFER_TOO_LARGE') {
      throw bad('it unpacks to more than the machine has: give a larger --memory');
    }
    throw bad(`its gzip part is truncated or corrupt (${(error as Error).message})`);
  }
  return checkInitramfs({ bytes: plain, name: `what ${name} unpacks to`, isInner: true });
}

/** One archive in format newc, to its trailer. */
function walkCpio(
  bytes: Uint8Array,
  start: number,
  bad: (why: string) => UsageError,
): { end: number; unpacked: number } {
  let unpacked = 0;
  for (let at = start; ; ) {
    if (at >= bytes.length) throw bad(NO_TRAILER);
    const magic = text(bytes, at, 6);
    if (magic !== '070701' && magic !== '070702') {
      throw bad(
        at === 0
          ? 'it begins neither with a cpio archive (format newc) nor with a compression that Linux knows'
          : `at byte ${at} stands no cpio header: the file is corrupt`,
      );
    }
    if (at + HEADER > bytes.length) throw bad(NO_TRAILER);
    if (!/^[\da-f]+$/i.test(text(bytes, at + 6, HEADER - 6))) throw bad(`the cpio header at byte ${at} is corrupt`);
    const size = Number.parseInt(text(bytes, at + FILE_SIZE, 8), 16);
    const nameSize = Number.parseInt(text(bytes, at + NAME_SIZE, 8), 16);
    if (!(nameSize >= 1 && nameSize <= MAX_NAME && size >= 0)) throw bad(`the cpio header at byte ${at} is corrupt`);
    const data = Math.ceil((at + HEADER + nameSize) / 4) * 4;
    if (data + size > bytes.length) throw bad(`its cpio archive ends inside a file: the file is truncated`);
    unpacked += size + HEADER;
    if (text(bytes, at + HEADER, nameSize - 1) === TRAILER) return { end: data, unpacked };
    at = data + Math.ceil(size / 4) * 4;
  }
}
