"""Makers of media that boot: a bare FAT volume with syslinux, and a whole disk with FAT and ext4. Both hold a Linux
that changes a few files, says so on the serial console and powers off.

Each medium is made once in a process; the paths returned are read-only originals, tests work on a copy.
"""

from __future__ import annotations

import atexit
import gzip
import lzma
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tests.conftest import run
from tests.make import fat

KERNEL = Path(os.environ.get("SQLIMAGE_TEST_KERNEL", "/var/cache/sqlimage-tests/kernel"))
"""Where tests/install-debian-packages.sh unpacks a kernel package."""
MBR_CODE = Path("/usr/lib/SYSLINUX/mbr.bin")
"""From Debian's package syslinux."""

BOOT_DONE = b"BOOT-DONE"
"""What the guest says on the serial console after it has unmounted what it changed."""
FAT_WRITTEN = "/WRITTEN.TXT"
EXT_WRITTEN = "/written.txt"
WRITTEN_TEXT = b"written by the guest\n"
"""How the new file begins; the version of the guest's kernel follows in a line of its own."""
DELETED = "/DELETED.TXT"
RENAMED_FROM, RENAMED_TO = "/BEFORE.TXT", "/AFTER.TXT"
KEPT = "/DATA/KEPT.BIN"
CONTENT = {
    DELETED: b"the guest deletes this\n" * 400,
    RENAMED_FROM: b"the guest renames this\n" * 400,
    KEPT: bytes(range(256)) * 1024,
}
"""What the changed file system holds before; the guest leaves KEPT alone."""

PARTITION_SECTOR = 2048
EXT_PARTITION_SECTOR = 2048 + 32 * 2048
DISK_SECTORS = EXT_PARTITION_SECTOR + 24 * 2048
"""The whole disk: 1 MiB, FAT16 of 32 MiB (active), ext4 of 24 MiB."""
FAT_SIZES = {12: 24 << 20, 16: 32 << 20, 32: 40 << 20}

_MODULES = ("virtio_pci", "virtio_blk", "ata_piix", "sd_mod", "vfat", "nls_cp437", "nls_ascii", "ext4")
_APPEND = "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable nokaslr mitigations=off random.trust_cpu=on"
_INIT = f"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs none /dev
$b mount -t proc none /proc
for m in $($b cat /modules/order); do $b insmod /modules/$m; done
tries=0
until [ -b /dev/vda1 ] || [ -b /dev/sda1 ] || [ $tries = 100 ]; do $b usleep 100000; tries=$((tries + 1)); done
disk=/dev/vda
[ -b /dev/vda1 ] || disk=/dev/sda
if [ -b ${{disk}}2 ]; then
    $b mount -t ext4 ${{disk}}2 /mnt && written={EXT_WRITTEN}
else
    $b mount -t vfat ${{disk}}1 /mnt && written={FAT_WRITTEN}
fi
if [ -n "$written" ]; then
    {{ $b echo "{WRITTEN_TEXT.decode().strip()}"; $b uname -r; }} > /mnt$written &&
    $b rm /mnt{DELETED} && $b mv /mnt{RENAMED_FROM} /mnt{RENAMED_TO} &&
    $b sync && $b umount /mnt && $b echo "{BOOT_DONE.decode()} $disk"
fi
$b poweroff -f
"""
_SYSLINUX_CFG = f"""SERIAL 0 115200
DEFAULT linux
PROMPT 0
LABEL linux
    KERNEL /vmlinuz
    INITRD /initrd
    APPEND {_APPEND}
"""


@cache
def fat_volume(bits: int = 16, hidden_sectors: int = 0) -> Path:
    """A bare FAT volume with syslinux in its boot sector, which counts ``hidden_sectors`` before it."""
    path = _work() / f"fat{bits}-{hidden_sectors}.raw"
    _format_fat(path, bits, hidden_sectors)
    return path


@cache
def whole_disk() -> Path:
    """A disk with syslinux' master boot record, a FAT16 partition that boots and an ext4 partition that is changed."""
    volume, ext, disk = _work() / "boot.raw", _work() / "ext.raw", _work() / "disk.raw"
    _format_fat(volume, 16, PARTITION_SECTOR)
    tree = _work() / "tree"
    for name, content in CONTENT.items():
        (tree / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tree / name[1:]).write_bytes(content)
    length = (DISK_SECTORS - EXT_PARTITION_SECTOR) // 2
    run("mke2fs", "-q", "-t", "ext4", "-d", tree, "-L", "changed", "-E", "root_owner=0:0", ext, str(length))
    with disk.open("wb") as file:
        file.truncate(DISK_SECTORS * 512)
    table = (
        f"label: dos\nlabel-id: 0x1234abcd\n"
        f"start={PARTITION_SECTOR}, size={EXT_PARTITION_SECTOR - PARTITION_SECTOR}, type=e, bootable\n"
        f"start={EXT_PARTITION_SECTOR}, type=83\n"
    )
    run("sfdisk", "--quiet", disk, input=table.encode())
    with disk.open("r+b") as file:
        file.write(MBR_CODE.read_bytes()[:440])
        for sector, part in ((PARTITION_SECTOR, volume), (EXT_PARTITION_SECTOR, ext)):
            file.seek(sector * 512)
            file.write(part.read_bytes())
    volume.unlink()
    ext.unlink()
    return disk


def kernel_release() -> str:
    """The version of the guest's kernel, as ``uname -r`` prints it there."""
    return _kernel().name.removeprefix("vmlinuz-")


def _kernel() -> Path:
    found = sorted((KERNEL / "boot").glob("vmlinuz-*")) if (KERNEL / "boot").is_dir() else []
    assert found, f"{KERNEL} holds no kernel: run tests/install-debian-packages.sh"
    return found[-1]


@cache
def _work() -> Path:
    path = Path(tempfile.mkdtemp(prefix="bootable-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _format_fat(path: Path, bits: int, hidden_sectors: int) -> None:
    cluster = {12: 16, 16: None, 32: 1}[bits]
    fat.make_volume(
        path, FAT_SIZES[bits], bits, sectors_per_cluster=cluster, options=("-h", str(hidden_sectors), "-n", "BOOT")
    )
    with tempfile.TemporaryDirectory(dir=_work()) as name:
        config = Path(name) / "syslinux.cfg"
        config.write_text(_SYSLINUX_CFG)
        kernel = Path(name) / "vmlinuz"
        kernel.symlink_to(_kernel())
        fat.copy_in(path, config, kernel)
        fat.copy_in(path, _initramfs(), to="/initrd")
        fat.fill(path, {place[1:]: content for place, content in CONTENT.items()}, Path(name) / "tree")
    run("syslinux", "--install", path)


@cache
def _initramfs() -> Path:
    """A root of busybox, the modules that reach the disk, and the script above."""
    root = _work() / "initramfs"
    for directory in ("bin", "dev", "proc", "mnt", "modules"):
        (root / directory).mkdir(parents=True)
    shutil.copy2("/bin/busybox", root / "bin" / "busybox")
    (root / "init").write_text(_INIT)
    (root / "init").chmod(0o755)
    order = _load_order()
    for module in order:
        (root / "modules" / module).write_bytes(_module(module))
    (root / "modules" / "order").write_text("\n".join(order) + "\n")
    names = "".join(f"{place.relative_to(root)}\n" for place in sorted(root.rglob("*")))
    archive = run("cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0", input=names.encode(), cwd=root).stdout
    path = _work() / "initrd"
    path.write_bytes(gzip.compress(archive, 6, mtime=0))
    return path


def _load_order() -> list[str]:
    """The modules and what they need, each after what it needs; those built into the kernel are left out."""
    order: list[str] = []

    def add(name: str) -> None:
        content = _module(name)
        if content and name not in order:
            needs = content.partition(b"\0depends=")[2].partition(b"\0")[0].decode()
            for other in filter(None, needs.split(",")):
                add(other.replace("-", "_"))
            order.append(name)

    for name in _MODULES:
        add(name)
    return order


@cache
def _module(name: str) -> bytes:
    """A kernel module by name; empty where the kernel has it built in."""
    for place in (KERNEL / "lib" / "modules" / kernel_release()).rglob("*.ko*"):
        if place.name.split(".")[0].replace("-", "_") == name:
            content = place.read_bytes()
            return lzma.decompress(content) if place.suffix == ".xz" else content
    return b""
