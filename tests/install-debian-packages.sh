#!/bin/sh
# Installs the Debian packages that the tests and benchmarks use: makers of file systems, their drivers and checkers,
# and the peers that are measured beside sqlimage. Says what is missing where it cannot install.
set -eu
PATH=$PATH:/usr/sbin:/sbin
# package:a program of it that must be there afterwards
WANTED='ntfs-3g:mkntfs dosfstools:mkfs.fat mtools:mcopy e2fsprogs:mke2fs fdisk:sfdisk gdisk:sgdisk
sleuthkit:fls sqlite3:sqlite3 zstd:zstd util-linux:losetup fuse3:fusermount3 python3-venv:python3
qemu-utils:qemu-img wimtools:wimlib-imagex partclone:partclone.ntfs openssl:openssl
fio:fio libnbd-bin:nbdcopy nbd-client:nbd-client fuse2fs:fuse2fs exfat-fuse:mount.exfat-fuse exfatprogs:mkfs.exfat
qemu-system-x86:qemu-system-x86_64 syslinux:syslinux busybox-static:busybox cpio:cpio'
missing=
for pair in $WANTED; do
    command -v "${pair#*:}" >/dev/null || missing="$missing ${pair%%:*}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "missing Debian packages:$missing" >&2
    echo "install them as root: apt-get update && apt-get install --no-install-recommends$missing" >&2
    exit 4
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086  # a list of words
apt-get install -y -qq --no-install-recommends $missing >/dev/null
