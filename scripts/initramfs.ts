// Makes an initramfs from a static busybox: tsx scripts/initramfs.ts BUSYBOX OUT. See docs/linux.md.
import { readFileSync, writeFileSync } from 'node:fs';
import { busyboxInitramfs } from './cpio.ts';

const [busybox, out] = process.argv.slice(2);
if (!busybox || !out) {
  process.stderr.write('usage: tsx scripts/initramfs.ts BUSYBOX OUT (Debian package busybox-static: /bin/busybox)\n');
  process.exit(2);
}
writeFileSync(out, busyboxInitramfs(readFileSync(busybox)));
