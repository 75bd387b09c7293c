#!/usr/bin/env bash
# Gets Debian's kernels and a static busybox, without installing them, and makes an initramfs for each:
#   scripts/fetch-linux.sh [DIR [ARCHITECTURE…]]      default: .cache/linux amd64 i386
# Needs apt-get and dpkg-deb (Debian, Ubuntu). Afterwards DIR/amd64 and DIR/i386 hold vmlinuz, busybox and, in an installed checkout, initramfs.cpio.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-.cache/linux}
shift || true
[ $# -gt 0 ] || set -- amd64 i386
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

# Lists of our own: no architecture has to be added to the system, and no privilege is needed.
apt=(-q -o Dir::State::lists="$dir/lists" -o Dir::Cache="$dir/cache" -o APT::Sandbox::User= -o APT::Architecture="$(dpkg --print-architecture)")
for arch in "$@"; do apt+=(-o "APT::Architectures::=$arch"); done
mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"

fetch() { # architecture, kernel's meta package
  local arch=$1 meta=$2 kernel work
  [ -e "$dir/$arch/busybox" ] && return 0
  kernel=$(apt-cache "${apt[@]}" depends "$meta:$arch" | awk '/Depends: linux-image/ { print $2; exit }')
  [ -n "$kernel" ] || { echo "fetch-linux: no $meta for $arch" >&2; return 1; }
  work=$(mktemp -d "$dir/work.XXXXXX")
  (cd "$work" && apt-get "${apt[@]}" download "${kernel%:*}:$arch" "busybox-static:$arch")
  for deb in "$work"/*.deb; do dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work" --wildcards './boot/vmlinuz*' 2>/dev/null || true; done
  for deb in "$work"/busybox*.deb; do dpkg-deb -x "$deb" "$work"; done
  mkdir -p "$dir/$arch"
  cp "$work"/boot/vmlinuz-* "$dir/$arch/vmlinuz"
  cp "$(find "$work/bin" "$work/usr/bin" -name busybox -type f 2>/dev/null | head -n 1)" "$dir/$arch/busybox"
  rm -rf "$work"
  echo "fetch-linux: $arch: ${kernel%:*}"
}

for arch in "$@"; do [ -e "$dir/$arch/busybox" ] || missing=1; done
[ -z "${missing:-}" ] || apt-get "${apt[@]}" update || true
status=0
for arch in "$@"; do
  case $arch in
    amd64) fetch amd64 linux-image-amd64 || status=1 ;;
    i386) fetch i386 linux-image-686 || status=1 ;;
    *) echo "fetch-linux: architecture $arch: choose amd64 or i386" >&2; status=2 ;;
  esac
done
if [ -x node_modules/.bin/tsx ]; then
  for arch in "$@"; do
    [ ! -e "$dir/$arch/busybox" ] || node_modules/.bin/tsx scripts/initramfs.ts "$dir/$arch/busybox" "$dir/$arch/initramfs.cpio"
  done
fi
exit "$status"
