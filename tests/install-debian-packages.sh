#!/bin/sh
# Installs the Debian packages that the tests and benchmarks use: makers of file systems, their drivers and checkers,
# and the peers that are measured beside sqlimage. Says what is missing where it cannot install.
# A Linux kernel that guests boot is downloaded and unpacked, not installed, to $SQLIMAGE_TEST_KERNEL.
set -eu
PATH=$PATH:/usr/sbin:/sbin
# package:a program of it that must be there afterwards
WANTED='ntfs-3g:mkntfs dosfstools:mkfs.fat mtools:mcopy e2fsprogs:mke2fs fdisk:sfdisk gdisk:sgdisk
sleuthkit:fls sqlite3:sqlite3 zstd:zstd util-linux:losetup fuse3:fusermount3 python3-venv:python3
qemu-utils:qemu-img wimtools:wimlib-imagex partclone:partclone.ntfs openssl:openssl openssh-client:ssh-keygen
fio:fio libnbd-bin:nbdcopy python3-libnbd:nbdsh xfsprogs:mkfs.xfs btrfs-progs:mkfs.btrfs nbd-client:nbd-client fuse2fs:fuse2fs exfat-fuse:mount.exfat-fuse exfatprogs:mkfs.exfat
qemu-system-x86:qemu-system-x86_64 syslinux:syslinux busybox-static:busybox cpio:cpio binutils:as
genisoimage:genisoimage xorriso:xorriso 7zip:7zz squashfs-tools:mksquashfs borgbackup:borg restic:restic casync:casync
libhivex-bin:hivexget libwin-hivex-perl:hivexregedit libregf-utils:regfexport chntpw:reged
udftools:mkudffs cryptsetup-bin:cryptsetup f2fs-tools:mkfs.f2fs erofs-utils:mkfs.erofs nilfs-tools:mkfs.nilfs2
jfsutils:mkfs.jfs reiserfsprogs:mkreiserfs hfsutils:hformat genromfs:genromfs
docker-registry:docker-registry lighttpd:lighttpd iproute2:ip nftables:nft socat:socat'
missing=
for pair in $WANTED; do
    command -v "${pair#*:}" >/dev/null || missing="$missing ${pair%%:*}"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "missing Debian packages:$missing" >&2
        echo "install them as root: apt-get update && apt-get install --no-install-recommends$missing" >&2
        exit 4
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    POLICY=/usr/sbin/policy-rc.d hushed=
    if ! [ -e "$POLICY" ]; then
        trap 'rm -f "$POLICY"' EXIT
        hushed=yes
        printf '#!/bin/sh\nexit 101\n' >"$POLICY"
        chmod 755 "$POLICY"
    fi
    # shellcheck disable=SC2086  # a list of words
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
    # the tests start the servers among them themselves: none of them is to run as a service, now or after a start
    if [ -n "$hushed" ]; then rm -f "$POLICY"; trap - EXIT; fi
    for service in docker-registry lighttpd; do
        case "$missing " in
            *" $service "*) systemctl disable --quiet "$service" 2>/dev/null || true ;;
        esac
    done
fi

KERNEL=${SQLIMAGE_TEST_KERNEL:-/var/cache/sqlimage-tests/kernel}
[ ! -d "$KERNEL/boot" ] || exit 0
if ! mkdir -p "$KERNEL" 2>/dev/null || ! [ -w "$KERNEL" ]; then
    echo "$KERNEL cannot be written: run this once as root, or name another directory in SQLIMAGE_TEST_KERNEL" >&2
    exit 4
fi
KERNEL=$(cd "$KERNEL" && pwd)
work=$(mktemp -d "$KERNEL/unpacking.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
meta=linux-image-cloud-amd64
real_name() { apt-cache depends --important "$meta" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1; }
# the lists of a fresh machine are empty, those of an old one name a kernel that is no longer offered
package=$(real_name)
if [ -z "$package" ] || ! apt-get download -qq "$package" 2>/dev/null; then
    [ "$(id -u)" -ne 0 ] || apt-get update -qq
    package=$(real_name)
    [ -n "$package" ] || { echo "apt-cache knows no package $meta: run apt-get update as root" >&2; exit 4; }
    apt-get download -qq "$package"
fi
dpkg -x ./*.deb unpacked
chmod -R a+rX unpacked
# boot/ comes last: where it is, all is there
rm -rf "${KERNEL:?}/lib"
mv unpacked/lib unpacked/boot "$KERNEL/"
