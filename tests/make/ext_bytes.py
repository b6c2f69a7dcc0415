"""A small ext volume in memory, to be changed at will, its checksums made right again where that is wanted."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import google_crc32c
import numpy as np

from sqlimage.filesystem.contract import ContentFlag
from sqlimage.filesystem.ext import ExtVolume
from sqlimage.media.memory import MemoryDevice

ALL = 0xFFFFFFFF
EXTENT_MAGIC, ATTRIBUTES_MAGIC = b"\x0a\xf3", b"\x00\x00\x02\xea"


def crc(register: int, data: bytes | bytearray) -> int:
    return int(google_crc32c.extend(register ^ ALL, bytes(data))) ^ ALL


class ExtBytes:
    """Fields are named by their offsets in the kernel's documentation; one flex group, its tables side by side."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.block: int = 1024 << self.get(1024 + 0x18, "<I")
        self.inode_bytes: int = self.get(1024 + 0x58, "<H")
        self.inodes_per_group: int = self.get(1024 + 0x28, "<I")
        self.inodes_count: int = self.get(1024, "<I")
        incompat = self.get(1024 + 0x60, "<I")
        self.descriptor_bytes: int = self.get(1024 + 0xFE, "<H") if incompat & 0x80 else 32
        self.groups = self.inodes_count // self.inodes_per_group
        self.has_checksums = bool(self.get(1024 + 0x64, "<I") & 0x400)
        self.seed = crc(ALL, self.content[1024 + 0x68 : 1024 + 0x78])

    def get(self, at: int, form: str) -> int:
        (value,) = struct.unpack_from(form, self.content, at)
        return int(value)

    def put(self, at: int, form: str, value: int) -> None:
        struct.pack_into(form, self.content, at, value)

    def descriptor_at(self, group: int) -> int:
        return (2 if self.block == 1024 else 1) * self.block + group * self.descriptor_bytes

    def inode_at(self, number: int) -> int:
        group, index = divmod(number - 1, self.inodes_per_group)
        return self.get(self.descriptor_at(group) + 8, "<I") * self.block + index * self.inode_bytes

    def inode_seed(self, number: int) -> int:
        generation = self.content[self.inode_at(number) + 0x64 : self.inode_at(number) + 0x68]
        return crc(self.seed, number.to_bytes(4, "little") + generation)

    def fix_superblock(self) -> None:
        self.put(1024 + 0x3FC, "<I", crc(ALL, self.content[1024 : 1024 + 0x3FC]))

    def fix_descriptor(self, group: int) -> None:
        at, end = self.descriptor_at(group), self.descriptor_at(group + 1)
        for place, sum_at, bits in ((0, 0x18, self.block * 8), (4, 0x1A, self.inodes_per_group)):
            start = self.get(at + place, "<I") * self.block
            value = crc(self.seed, self.content[start : start + bits // 8])
            self.put(at + sum_at, "<H", value & 0xFFFF)
            if self.descriptor_bytes > 32:
                self.put(at + sum_at + 0x20, "<H", value >> 16)
        self.put(at + 0x1E, "<H", 0)
        self.put(at + 0x1E, "<H", crc(crc(self.seed, group.to_bytes(4, "little")), self.content[at:end]) & 0xFFFF)

    def fix_inode(self, number: int) -> None:
        at = self.inode_at(number)
        self.put(at + 0x7C, "<H", 0)
        has_high = self.inode_bytes > 128 and self.get(at + 0x80, "<H") >= 4
        if has_high:
            self.put(at + 0x82, "<H", 0)
        value = crc(self.inode_seed(number), self.content[at : at + self.inode_bytes])
        self.put(at + 0x7C, "<H", value & 0xFFFF)
        if has_high:
            self.put(at + 0x82, "<H", value >> 16)

    def fix_leaf(self, number: int, block: int) -> None:
        """A block of a directory that is no node of its hash tree."""
        at, end = block * self.block, (block + 1) * self.block
        self.put(end - 4, "<I", crc(self.inode_seed(number), self.content[at : end - 12]))

    def fix_node(self, number: int, block: int, counts_at: int) -> None:
        """A node of a directory's hash tree."""
        at = block * self.block
        limit, count = struct.unpack_from("<HH", self.content, at + counts_at)
        end = min(at + counts_at + limit * 8, at + self.block - 8)
        value = crc(self.inode_seed(number), self.content[at : at + counts_at + count * 8])
        self.put(end + 4, "<I", crc(value, bytes(self.content[end : end + 4]) + bytes(4)))

    def fix_extents(self, number: int, block: int) -> None:
        at = block * self.block
        end = min(at + 12 + 12 * self.get(at + 4, "<H"), at + self.block - 4)
        self.put(end, "<I", crc(self.inode_seed(number), self.content[at:end]))

    def fix_attributes(self, block: int) -> None:
        at = block * self.block
        self.put(at + 0x10, "<I", 0)
        value = crc(crc(self.seed, block.to_bytes(8, "little")), self.content[at : at + self.block])
        self.put(at + 0x10, "<I", value)


Place = tuple[int, int, Callable[[ExtBytes], None]]
"""Where a structure begins, how many bytes it has, and what makes its checksum right again."""


def structures(pristine: bytes) -> dict[str, list[Place]]:
    """Where the structures of each kind lie on a volume."""
    made = ExtBytes(pristine)
    volume = ExtVolume(MemoryDevice(pristine))
    contents = volume.scan().contents
    block = made.block
    found: dict[str, list[Place]] = {
        "superblock": [(1024, 0x2A0, ExtBytes.fix_superblock)],
        "descriptor": [],
        "bitmap": [],
        "inode": [],
        "directory": [],
        "extents": [],
        "attributes": [],
        "indirect": [],
    }
    for group in range(made.groups):
        at = made.descriptor_at(group)
        fix = _fixing(ExtBytes.fix_descriptor, group)
        found["descriptor"].append((at, made.descriptor_bytes, fix))
        found["bitmap"] += [(made.get(at + place, "<I") * block, 64, fix) for place in (0, 4)]
    numbers = contents.record.tolist()
    for row, number in enumerate(numbers):
        found["inode"].append((made.inode_at(number), made.inode_bytes, _fixing(ExtBytes.fix_inode, number)))
        if contents.flags[row] & ContentFlag.INDEX:
            for run in range(int(contents.first_run[row]), int(contents.first_run[row + 1])):
                for at in range(0, int(contents.run_length[run]), block):
                    place = int(contents.run_offset[run]) + at
                    found["directory"].append((place, block, _fixing_directory(made, number, place // block)))
    used = volume.allocated()
    backed = contents.run_offset >= 0
    data = np.zeros(len(pristine) // block, dtype=np.bool_)
    for start, length in zip(contents.run_offset[backed].tolist(), contents.run_length[backed].tolist(), strict=True):
        data[start // block : (start + length) // block] = True
    for start, length in used:
        for place in range(start, start + length, block):
            raw = pristine[place : place + block]
            if data[place // block]:
                continue
            if raw[:2] == EXTENT_MAGIC:
                owner = _owner(made, numbers, raw)
                found["extents"].append((place, block, _fixing(ExtBytes.fix_extents, owner, place // block)))
            elif raw[:4] == ATTRIBUTES_MAGIC:
                found["attributes"].append((place, block, _fixing(ExtBytes.fix_attributes, place // block)))
    for at in _indirect_blocks(made, numbers):
        found["indirect"].append((at * block, block, lambda _: None))
    return {kind: places for kind, places in found.items() if places}


def _fixing(fix: Callable[..., None], *arguments: int) -> Callable[[ExtBytes], None]:
    return lambda made: fix(made, *arguments)


def _fixing_directory(made: ExtBytes, number: int, block: int) -> Callable[[ExtBytes], None]:
    at = block * made.block
    if made.get(at + 4, "<H") == 12 and made.get(at + 16, "<H") == made.block - 12:  # "..", which hides an index
        return _fixing(ExtBytes.fix_node, number, block, 0x20)
    if made.get(at, "<I") == 0 and made.get(at + 4, "<H") == made.block:
        return _fixing(ExtBytes.fix_node, number, block, 8)
    return _fixing(ExtBytes.fix_leaf, number, block)


def _owner(made: ExtBytes, numbers: list[int], raw: bytes) -> int:
    """The inode whose checksum a block of an extent tree has."""
    (largest,) = struct.unpack_from("<H", raw, 4)
    end = 12 + 12 * largest
    for number in numbers:
        if made.has_checksums and crc(made.inode_seed(number), raw[:end]) == int.from_bytes(
            raw[end : end + 4], "little"
        ):
            return number
    return numbers[0]


def _indirect_blocks(made: ExtBytes, numbers: list[int]) -> Iterator[int]:
    for number in numbers:
        at = made.inode_at(number)
        if made.get(at, "<H") >> 12 in (4, 8) and not made.get(at + 0x20, "<I") & 0x10080000:
            for height in range(3):
                block = made.get(at + 0x28 + 4 * (12 + height), "<I")
                if block:
                    yield block
                    if height:
                        yield from (b for b in struct.unpack_from("<4I", made.content, block * made.block) if b)
