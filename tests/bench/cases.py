"""Who is measured at what. Every peer is run the way its makers advise for speed on several cores."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.bench.measure import Case, Contender

_BESIDE = Path(sys.executable).with_name("sqlimage")
SQLIMAGE = str(_BESIDE) if _BESIDE.exists() else shutil.which("sqlimage") or str(_BESIDE)
_PARTCLONE = 'exec partclone."$3" -c -s "$1" -o - -L /dev/null | zstd -q -3 -T2 -o "$2"'
_SQUASHFS = (
    'at=$(mktemp -d) && mount -o loop,ro "$1" "$at" && trap \'umount "$at" && rmdir "$at"\' EXIT && '
    'mksquashfs "$at" "$2" -quiet -no-progress -comp zstd -Xcompression-level "$3"'
)
_APPLY = 'truncate -s "$3" "$2" && mkntfs -q -F -Q -s 512 "$2" && exec wimlib-imagex apply "$1" 1 "$2"'
_NTFS_BYTES = "2G"
_WHOLE, _HALF = "2350MiB", "1175MiB"
"""What the files of the NTFS volume fill by half, and nearly whole."""


def sqlimage_capture(name: str, source: str, *options: str) -> Contender:
    return Contender(name, (SQLIMAGE, "capture", "{source}", "{out}", *options), source, (SQLIMAGE,))


def qcow2(name: str, source: str, *options: str) -> Contender:
    command = ("qemu-img", "convert", "-f", "raw", "-c", "-O", "qcow2", *options, "-m", "8", "-W", "{source}", "{out}")
    return Contender(name, command, source, ("qemu-img",))


def wim(name: str, source: str, compression: str) -> Contender:
    command = ("wimlib-imagex", "capture", "{source}", "{out}", f"--compress={compression}")
    return Contender(name, command, source, ("wimlib-imagex",))


def partclone(name: str, source: str, file_system: str) -> Contender:
    command = ("bash", "-o", "pipefail", "-c", _PARTCLONE, "bash", "{source}", "{out}", file_system)
    return Contender(name, command, source, (f"partclone.{file_system}", "zstd"))


def squashfs(name: str, source: str, level: int) -> Contender:
    """The tree of a volume that the kernel mounts; as root."""
    command = ("bash", "-c", _SQUASHFS, "bash", "{source}", "{out}", str(level))
    return Contender(name, command, source, ("mksquashfs",))


ZSTD = ("-o", "compression_type=zstd")


def _sparse(file_system: str) -> Case:
    return Case(
        f"{file_system}-sparse",
        f"{file_system.upper()}: the same files on 1 TiB and on 2 GiB",
        "sqlimage 1 TiB",
        (
            sqlimage_capture("sqlimage 1 TiB", f"{file_system}_1t.img"),
            sqlimage_capture("sqlimage 2 GiB", f"{file_system}_2g.img"),
            qcow2("qcow2 zstd 1 TiB", f"{file_system}_1t.img", *ZSTD),
            qcow2("qcow2 zstd 2 GiB", f"{file_system}_2g.img", *ZSTD),
        ),
    )


def _defragment(file_system: str) -> Case:
    return Case(
        f"{file_system}-defragment",
        f"Capture of the {file_system.upper()} volume, every file in one piece",
        "defragmented",
        (
            sqlimage_capture("defragmented", f"{file_system}.img", "--defragment"),
            sqlimage_capture("as it is", f"{file_system}.img"),
        ),
    )


_KEY = str(Path(__file__).resolve())
"""Any file is a key."""
_ENCRYPT = ("--encrypt-all", "--key-file", _KEY)


def _read(name: str, source: str, *key: str) -> Contender:
    return Contender(name, (sys.executable, "-m", "tests.bench.read_through", "{source}", "{out}", *key), source, ())


_ENCRYPTED = (
    Case(
        "ntfs-encrypted",
        "Capture of the NTFS volume, encrypted as a whole",
        "encrypted",
        (sqlimage_capture("encrypted", "ntfs.img", *_ENCRYPT), sqlimage_capture("plain", "ntfs.img")),
    ),
    Case(
        "encrypted-read",
        "All of the NTFS volume read through the driver, 1 MiB at a time",
        "encrypted",
        (_read("encrypted", "encrypted.sqlimage", _KEY), _read("plain", "plain.sqlimage")),
        prepare=(
            sqlimage_capture("encrypted.sqlimage", "ntfs.img", *_ENCRYPT),
            sqlimage_capture("plain.sqlimage", "ntfs.img"),
        ),
    ),
)


def _restore(name: str, *options: str, source: str = "large.sqlimage") -> Contender:
    return Contender(name, (SQLIMAGE, "restore", "{source}", "{out}", *options), source, (SQLIMAGE,))


CASES = (
    Case(
        "ntfs-capture",
        "Capture of an NTFS volume",
        "sqlimage",
        (
            sqlimage_capture("sqlimage", "ntfs.img"),
            qcow2("qcow2 zstd", "ntfs.img", *ZSTD),
            sqlimage_capture("sqlimage fast", "ntfs.img", "--preset", "fast"),
            wim("wim xpress", "ntfs.img", "XPRESS"),
            partclone("partclone, zstd", "ntfs.img", "ntfs"),
            sqlimage_capture("sqlimage archive", "ntfs.img", "--preset", "archive"),
            wim("wim lzx", "ntfs.img", "LZX"),
        ),
    ),
    Case(
        "ntfs-restore",
        "Restore of an NTFS volume to a raw file",
        "sqlimage",
        (
            Contender("sqlimage", (SQLIMAGE, "restore", "{source}", "{out}"), "image.sqlimage", (SQLIMAGE,)),
            Contender(
                "qcow2 zstd",
                ("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-m", "8", "-W", "{source}", "{out}"),
                "image.qcow2",
                ("qemu-img",),
            ),
            Contender(
                "wim xpress",
                ("bash", "-c", _APPLY, "bash", "{source}", "{out}", _NTFS_BYTES),
                "image.wim",
                ("wimlib-imagex", "mkntfs"),
            ),
        ),
        prepare=(
            sqlimage_capture("image.sqlimage", "ntfs.img"),
            qcow2("image.qcow2", "ntfs.img", *ZSTD),
            wim("image.wim", "ntfs.img", "XPRESS"),
        ),
    ),
    Case(
        "fat32-capture",
        "Capture of a FAT32 volume",
        "sqlimage",
        (
            sqlimage_capture("sqlimage", "fat32.img"),
            qcow2("qcow2 zlib", "fat32.img"),
            qcow2("qcow2 zstd", "fat32.img", *ZSTD),
        ),
    ),
    Case(
        "ext4-capture",
        "Capture of an ext4 volume",
        "sqlimage",
        (
            sqlimage_capture("sqlimage", "ext4.img"),
            qcow2("qcow2 zstd", "ext4.img", *ZSTD),
            partclone("partclone, zstd", "ext4.img", "extfs"),
            squashfs("squashfs zstd 3", "ext4.img", 3),
            squashfs("squashfs zstd 15", "ext4.img", 15),
        ),
    ),
    _sparse("ntfs"),
    _sparse("fat32"),
    _defragment("ntfs"),
    _defragment("fat32"),
    *_ENCRYPTED,
    Case(
        "ntfs-half",
        "Restore of an NTFS volume that is half empty, to half its size",
        "half its size",
        (_restore("half its size", "--size", _HALF), _restore("its size")),
        prepare=(
            sqlimage_capture("small.sqlimage", "ntfs.img"),
            _restore("large.img", "--size", _WHOLE, source="small.sqlimage"),
            sqlimage_capture("large.sqlimage", "large.img"),
        ),
    ),
)
