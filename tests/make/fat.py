"""Makers of FAT volumes: real ones by mkfs.fat and mtools, and bare ones built field by field for hostile cases."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

from tests.conftest import run

END = 0x0FFFFFFF


def make_volume(
    path: Path,
    size_bytes: int,
    bits: int,
    *,
    sectors_per_cluster: int | None = None,
    bytes_per_sector: int = 512,
    options: tuple[str, ...] = (),
) -> Path:
    """An empty volume by mkfs.fat, with serial 1234ABCD, on a sparse file."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size_bytes)
    cluster = () if sectors_per_cluster is None else ("-s", str(sectors_per_cluster))
    run("mkfs.fat", "-F", str(bits), *cluster, "-S", str(bytes_per_sector), "-i", "1234ABCD", *options, path)
    return path


def copy_in(volume: Path, *sources: Path, to: str = "/") -> None:
    """Files and whole directories into a directory of the volume."""
    run("mcopy", "-i", volume, "-s", "-Q", "-o", "-m", *sources, f"::{to}", env=mtools_environment())


def make_directory(volume: Path, *paths: str) -> None:
    run("mmd", "-i", volume, *(f"::{path}" for path in paths), env=mtools_environment())


def delete(volume: Path, *paths: str) -> None:
    run("mdel", "-i", volume, *(f"::{path}" for path in paths), env=mtools_environment())


def fill(volume: Path, tree: dict[str, bytes], work: Path) -> None:
    """Write files, given as ``{"a/b.txt": bytes}``, into the root of the volume, by way of a directory."""
    work.mkdir(parents=True)
    for name, content in tree.items():
        target = work / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    copy_in(volume, *sorted(work.iterdir()))


def cluster_runs(volume: Path, path: str) -> list[tuple[int, int]]:
    """(first cluster, length) of a file's chain, as mtools' mshowfat prints it."""
    text = run("mshowfat", "-i", volume, f"::{path}", env=mtools_environment()).stdout.decode()[len(path) + 3 :]
    parts = re.findall(r"<(\d+)(?:-(\d+))?>", text)
    return [(int(low), int(high or low) - int(low) + 1) for low, high in parts]


def mtools_environment() -> dict[str, str]:
    return {**os.environ, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def short_entry(
    name: bytes,
    cluster: int = 0,
    size: int = 0,
    attributes: int = 0x20,
    case: int = 0,
    written: tuple[int, int] = (0, 0),
) -> bytes:
    """A 32-byte directory entry; ``written`` is (DIR_WrtTime, DIR_WrtDate)."""
    head = struct.pack("<11sBBBHHHH", name.ljust(11), attributes, case, 0, 0, 0, 0, cluster >> 16)
    return head + struct.pack("<HHHI", *written, cluster & 0xFFFF, size)


def checksum(name: bytes) -> int:
    total = 0
    for byte in name:
        total = ((total & 1) * 0x80 + (total >> 1) + byte) & 0xFF
    return total


def long_entries(name: str, short: bytes, *, check: int | None = None) -> bytes:
    """The pieces of a long name, as they lie before its short entry."""
    units = name.encode("utf-16-le", "surrogatepass")
    if len(units) % 26:
        units += b"\0\0"
    units += b"\xff" * (-len(units) % 26)
    pieces = [units[at : at + 26] for at in range(0, len(units), 26)]
    check = checksum(short.ljust(11)) if check is None else check
    entries = []
    for order, piece in enumerate(pieces, start=1):
        last = 0x40 if order == len(pieces) else 0
        entries.append(
            struct.pack("<B10sBBB12sH4s", order | last, piece[:10], 0x0F, 0, check, piece[10:22], 0, piece[22:])
        )
    return b"".join(reversed(entries))


class BareVolume:
    """A volume in memory, built field by field: nothing stops a test from contradicting itself.

    One FAT, 1 sector a cluster unless told otherwise; the root directory of FAT32 is cluster 2. Without a heap the
    content ends where the clusters would begin.
    """

    def __init__(
        self, bits: int, clusters: int, *, sectors_per_cluster: int = 1, root_entries: int = 64, heap: bool = True
    ) -> None:
        self.bits = bits
        self.clusters = clusters
        self.bytes_per_cluster = 512 * sectors_per_cluster
        reserved = 32 if bits == 32 else 1
        root_entries = 0 if bits == 32 else root_entries
        fat_sectors = -(-((clusters + 2) * bits) // (512 * 8))
        self.fat_offset = reserved * 512
        self.root_offset = self.fat_offset + fat_sectors * 512
        self.heap_offset = self.root_offset + root_entries * 32
        sectors = self.heap_offset // 512 + clusters * sectors_per_cluster
        self.content = bytearray(sectors * 512 if heap else self.heap_offset)
        struct.pack_into(
            "<3s8sHBHBHHBHHHII",
            self.content,
            0,
            b"\xeb\x3c\x90",
            b"BARE    ",
            512,
            sectors_per_cluster,
            reserved,
            1,
            root_entries,
            sectors if sectors < 65536 else 0,
            0xF8,
            0 if bits == 32 else fat_sectors,
            63,
            16,
            0,
            0 if sectors < 65536 else sectors,
        )
        extended = 36
        if bits == 32:
            struct.pack_into("<IHHIHH", self.content, 36, fat_sectors, 0, 0, 2, 1, 0)
            extended = 64
        struct.pack_into("<BBBI11s8s", self.content, extended, 0x80, 0, 0x29, 0x1234ABCD, b"NO NAME    ", b"        ")
        self.content[510:512] = b"\x55\xaa"
        self.link(0, 0x0FFFFFF8)
        self.link(1, END)
        if bits == 32:
            self.link(2, END)

    def link(self, cluster: int, following: int) -> None:
        """Set an entry of the FAT, without its reserved bits."""
        at = self.fat_offset + cluster * self.bits // 8
        if self.bits == 12:
            (old,) = struct.unpack_from("<H", self.content, at)
            value = following & 0xFFF
            new = old & 0x000F | value << 4 if cluster % 2 else old & 0xF000 | value
            struct.pack_into("<H", self.content, at, new)
        elif self.bits == 16:
            struct.pack_into("<H", self.content, at, following & 0xFFFF)
        else:
            struct.pack_into("<I", self.content, at, following & END)

    def chain(self, *clusters: int) -> int:
        """Link the clusters in this order and end the chain; the first one."""
        for here, following in zip(clusters, (*clusters[1:], END), strict=True):
            self.link(here, following)
        return clusters[0]

    def offset_of(self, cluster: int) -> int:
        return self.heap_offset + (cluster - 2) * self.bytes_per_cluster

    def write(self, cluster: int, data: bytes) -> None:
        self.put(self.offset_of(cluster), data)

    def put(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data

    def write_root(self, *entries: bytes) -> None:
        self.put(self.root_offset if self.bits != 32 else self.offset_of(2), b"".join(entries))
