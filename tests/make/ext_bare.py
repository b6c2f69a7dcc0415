"""Bare ext volumes on sparse files, built field by field: nothing stops a test from contradicting itself."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.ext import ExtVolume
from sqlimage.media.file import FileDevice
from tests.conftest import CHECKOUT

BLOCK = 4096
EXTENTS_FLAG = 0x80000
DIRECTORY_MODE, FILE_MODE = 0o040755, 0o100644
ROOT, FILE = 2, 12


class Cost(NamedTuple):
    seconds: float
    memory_bytes: int
    problem: str
    """What the volume is refused for, or empty."""
    told: list[int]
    """Bytes allocated, names, runs."""


def cost_of(image: Path) -> Cost:
    """What a volume costs to read: its facts, what is allocated, a scan; and the most memory this process had."""
    seconds, problem = 0.0, ""
    told: list[int] = []
    device = FileDevice(image)
    for read in (
        lambda volume: [volume.facts.size_bytes],
        lambda volume: [volume.allocated().total],
        _counts,
    ):
        started = time.monotonic()
        try:
            told += read(ExtVolume(device))
        except InconsistentVolume as error:
            problem = str(error)
        seconds += time.monotonic() - started
    device.close()
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    return Cost(seconds, int(peak[1]) << 10, problem, told[1:])


def _counts(volume: ExtVolume) -> list[int]:
    scan = volume.scan()
    return [len(scan.entries), len(scan.contents.run_offset)]


def cost_apart(image: Path) -> Cost:
    """The same, in a process of its own, whose memory is its own."""
    code = "import sys, json; from tests.make.ext_bare import cost_of; print(json.dumps(cost_of(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(image)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120, cwd=CHECKOUT)
    assert done.returncode == 0, done.stderr[-2000:]
    return Cost(*json.loads(done.stdout))


def extents(*runs: tuple[int, int, int]) -> bytes:
    """An i_block of up to four extents, as (block of the file, count, block of the volume)."""
    return node([extent(*run) for run in runs], 0, room=4)


def extent(logical: int, count: int, start: int) -> bytes:
    return struct.pack("<IHHI", logical, count, start >> 32, start & 0xFFFFFFFF)


def index(logical: int, block: int) -> bytes:
    return struct.pack("<IIHH", logical, block & 0xFFFFFFFF, block >> 32, 0)


def node(entries: list[bytes], depth: int, *, room: int = (BLOCK - 12) // 12) -> bytes:
    return struct.pack("<HHHHI", 0xF30A, len(entries), room, depth, 0) + b"".join(entries)


def names(entries: list[tuple[int, bytes]], block: int = BLOCK) -> bytes:
    """A block of a directory."""
    parts = []
    left = block
    for n, (inode, name) in enumerate(entries):
        length = left if n == len(entries) - 1 else (8 + len(name) + 3) & ~3
        parts.append((struct.pack("<IHBB", inode, min(length, 0xFFFF), len(name), 0) + name).ljust(length, b"\0"))
        left -= length
    return b"".join(parts)


class Bare:
    """Blocks of 4 KiB, inodes of 128 bytes, no checksums; all bitmaps, then all inode tables, behind the descriptors.

    Inode 2 is the root directory, 12 an empty file in it; ``free`` is the first block that nothing lies in.
    """

    def __init__(
        self,
        path: Path,
        blocks: int,
        *,
        inodes_per_group: int = 32,
        blocks_per_group: int = 32768,
        incompat: int = 0x42,
        compat: int = 0,
        has_tables: bool = True,
    ) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        self.fd = os.open(path, os.O_CREAT | os.O_RDWR)
        os.ftruncate(self.fd, blocks * BLOCK)
        self.groups = -(-blocks // blocks_per_group)
        self.inodes_per_group = inodes_per_group
        self.table_blocks = inodes_per_group * 128 // BLOCK
        fields = {
            0x0: self.groups * inodes_per_group & 0xFFFFFFFF,
            0x4: blocks & 0xFFFFFFFF,
            0x18: 2,
            0x1C: 2,
            0x20: blocks_per_group,
            0x24: blocks_per_group,
            0x28: inodes_per_group,
            0x38: 0xEF53 | 1 << 16,
            0x4C: 1,
            0x54: 11,
            0x58: 128,
            0x5C: compat,
            0x60: incompat,
            0x64: 1,
            0xFC: 64 << 16,
            0xE0: 8 if compat & 4 else 0,
            0x150: blocks >> 32,
        }
        superblock = bytearray(1024)
        for at, value in fields.items():
            struct.pack_into("<I", superblock, at, value)
        self.put(1024, bytes(superblock))
        self.size = 64 if incompat & 0x80 else 32
        self.bitmaps = 1 + -(-self.groups * self.size // BLOCK)
        self.inode_bitmaps = self.bitmaps + self.groups
        self.tables = self.inode_bitmaps + self.groups
        self.free = self.tables + self.groups * self.table_blocks
        if not has_tables:
            return
        self.describe(range(self.groups))
        self.use(0, [ROOT, FILE])
        self.inode(ROOT, DIRECTORY_MODE, BLOCK, extents((0, 1, self.take(names([(FILE, b"file")])))), links=2)
        self.inode(FILE, FILE_MODE, 0, extents())

    def put(self, at: int, data: bytes) -> None:
        os.pwrite(self.fd, data, at)

    def take(self, data: bytes) -> int:
        """Write blocks where nothing lies; the first one."""
        block = self.free
        self.put(block * BLOCK, data)
        self.free += -(-len(data) // BLOCK)
        return block

    def describe(self, groups: range) -> None:
        """Write the descriptors of some groups as they should be, side by side."""
        made = bytearray(len(groups) * self.size)
        for n, group in enumerate(groups):
            places = (self.bitmaps + group, self.inode_bitmaps + group, self.tables + group * self.table_blocks)
            struct.pack_into("<III", made, n * self.size, *places)
        self.put(BLOCK + groups[0] * self.size, bytes(made))

    def use(self, group: int, numbers: list[int]) -> None:
        """Mark inodes of a group as in use, by their numbers in it."""
        bits = sum(1 << number - 1 for number in numbers)
        self.put((self.inode_bitmaps + group) * BLOCK, bits.to_bytes(BLOCK, "little"))

    def inode(
        self, number: int, mode: int, size: int, i_block: bytes, *, flags: int = EXTENTS_FLAG, links: int = 1
    ) -> None:
        self.put(self.tables * BLOCK + (number - 1) * 128, inode(mode, size, i_block, flags=flags, links=links))

    def close(self) -> Path:
        os.close(self.fd)
        return self.path


def inode(mode: int, size: int, i_block: bytes, *, flags: int = EXTENTS_FLAG, links: int = 1) -> bytes:
    raw = bytearray(128)
    struct.pack_into("<H2xI", raw, 0, mode, size & 0xFFFFFFFF)
    struct.pack_into("<H4xI", raw, 0x1A, links, flags)
    struct.pack_into("<I", raw, 0x6C, size >> 32)
    raw[0x28 : 0x28 + len(i_block)] = i_block
    return bytes(raw)
