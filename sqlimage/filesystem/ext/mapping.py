"""Where a file's blocks lie: extent trees and block maps, as runs in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s
from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.ext import layout
from sqlimage.filesystem.ext.superblock import Geometry

Bools = NDArray[np.bool_]
_PIECES_BASE, _PIECES_PER_INODE = 4_000_000, 2
"""How many runs and holes are told: an extent takes 12 bytes of a volume, and a block's number 4; a piece takes more
than 80 in memory."""
_EMPTY_BASE = 1000
"""So many indirect blocks may be without a number, and half of them: a sparse medium has endless ones."""
_BYTES_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Mapped:
    """Runs of several files, in blocks: whose, from which block of the file, from which of the volume, how many, and
    whether they read as zeros whatever they hold."""

    owner: Int64s
    logical: Int64s
    start: Int64s
    count: Int64s
    unwritten: Bools

    @classmethod
    def empty(cls) -> Mapped:
        none = np.empty(0, dtype=np.int64)
        return cls(none, none, none, none, np.empty(0, dtype=np.bool_))

    def owner_of_holes(self) -> Int64s:
        """Of every place where a file's run does not begin where the one before it ends."""
        gap = (self.owner[1:] == self.owner[:-1]) & (self.logical[1:] > (self.logical + self.count)[:-1])
        owners: Int64s = self.owner[1:][gap]
        return owners

    @classmethod
    def joined(cls, parts: list[Mapped]) -> Mapped:
        """All of them, in the order of file and place."""
        if len(parts) < 2:
            return parts[0] if parts else cls.empty()
        owner = np.concatenate([part.owner for part in parts])
        logical = np.concatenate([part.logical for part in parts])
        order = np.lexsort((logical, owner))
        return cls(
            owner[order],
            logical[order],
            np.concatenate([part.start for part in parts])[order],
            np.concatenate([part.count for part in parts])[order],
            np.concatenate([part.unwritten for part in parts])[order],
        )


class Mapper:
    """Turns the block fields of inodes into runs; reads the trees below them from ``device``.

    A block of a tree belongs to one file and stands in it once, so that what is read in all has a bound.
    """

    def __init__(self, device: BlockDevice, geometry: Geometry) -> None:
        self._device = device
        self._geometry = geometry
        self._used: set[int] = set()
        self._pieces_left = _PIECES_BASE
        self._empty_left = _EMPTY_BASE

    def extents(self, number: Int64s, generation: Int64s, field: NDArray[np.uint8]) -> Mapped:
        """The runs of inodes with extent trees; ``field`` is their i_block, a row each; ``owner`` is the row."""
        head = np.ascontiguousarray(field[:, : layout.EXTENT_BYTES]).view(layout.EXTENT_HEADER)[:, 0]
        entries, depth = head["eh_entries"].astype(np.int64), head["eh_depth"]
        bad = (head["eh_magic"] != layout.EXTENT_MAGIC) | (entries > head["eh_max"])
        bad |= (head["eh_max"] > layout.EXTENTS_IN_INODE) | (depth > layout.EXTENT_DEPTH_MAX)
        if bad.any():
            raise _damaged(int(number[bad][0]), "the root of its extent tree is not one")
        table = np.ascontiguousarray(field[:, layout.EXTENT_BYTES :]).view(layout.EXTENT)
        there = np.arange(layout.EXTENTS_IN_INODE) < entries[:, None]
        flat = there & (depth == 0)[:, None]
        owner = np.nonzero(flat)[0]
        self._pieces_left += _PIECES_PER_INODE * len(number)
        parts = [self._leaves(number, owner, table[flat])]
        for row in np.flatnonzero(depth > 0).tolist():
            root = table[row][: int(entries[row])].view(layout.EXTENT_INDEX)
            leaves = self._below(int(number[row]), int(generation[row]), root, int(depth[row]))
            parts.append(self._leaves(number, np.full(len(leaves), row, dtype=np.int64), leaves))
        return Mapped.joined(parts)

    def _leaves(self, number: Int64s, owner: Int64s, table: NDArray[np.void]) -> Mapped:
        self._count(number, owner)
        count = table["ee_len"].astype(np.int64)
        unwritten = count > layout.LARGEST_WRITTEN
        count = np.where(unwritten, count - layout.LARGEST_WRITTEN, count)
        logical = table["ee_block"].astype(np.int64)
        start = table["ee_start_lo"].astype(np.int64) | table["ee_start_hi"].astype(np.int64) << 32
        bad = (count == 0) | (start < self._geometry.first_data_block) | (start + count > self._geometry.blocks_count)
        bad |= logical + count > layout.LOGICAL_BLOCKS_MAX
        bad[1:] |= (owner[1:] == owner[:-1]) & (logical[1:] < (logical + count)[:-1])
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise _damaged(
                int(number[owner[row]]),
                f"its extent of {count[row]} blocks at {start[row]} for block {logical[row]} cannot be",
            )
        runs = Mapped(owner, logical, start, count, unwritten)
        self._count(number, runs.owner_of_holes())
        return runs

    def _below(self, inode: int, generation: int, root: NDArray[np.void], depth: int) -> NDArray[np.void]:
        """All leaf extents below the index entries of a root, in order."""
        level, found = [root], 0
        for height in range(depth - 1, -1, -1):
            following = []
            for index in level:
                block = index["ei_leaf_lo"].astype(np.int64) | index["ei_leaf_hi"].astype(np.int64) << 32
                for place, logical in zip(block.tolist(), index["ei_block"].tolist(), strict=True):
                    following.append(self._node(inode, generation, place, logical, height))
                    found += len(following[-1])
                    if found > self._pieces_left:
                        raise _too_many(inode)
            level = following
        if not level:
            return np.empty(0, dtype=layout.EXTENT)
        return np.concatenate(level)

    def _node(self, inode: int, generation: int, block: int, logical: int, depth: int) -> NDArray[np.void]:
        raw = self._read(inode, block)
        head = np.frombuffer(raw, dtype=layout.EXTENT_HEADER, count=1)[0]
        room = len(raw) // layout.EXTENT_BYTES - 1
        count, largest = int(head["eh_entries"]), int(head["eh_max"])
        if (
            head["eh_magic"] != layout.EXTENT_MAGIC
            or head["eh_depth"] != depth
            or not min(depth, 1) <= count <= largest <= room
        ):
            raise _damaged(inode, f"block {block} is no node of depth {depth} of its extent tree")
        end = layout.EXTENT_BYTES * (1 + largest)
        if self._geometry.has_checksums:
            own = crc32c(inode_seed(self._geometry, inode, generation), raw[:end])
            if end + 4 > len(raw) or own != int.from_bytes(raw[end : end + 4], "little"):
                raise _damaged(inode, f"block {block} of its extent tree does not match its checksum")
        dtype = layout.EXTENT_INDEX if depth else layout.EXTENT
        node = np.frombuffer(raw, dtype=dtype, count=count, offset=layout.EXTENT_BYTES)
        first = node["ei_block" if depth else "ee_block"]
        if (count and int(first[0]) < logical) or (np.diff(first.astype(np.int64)) <= 0).any():
            raise _damaged(inode, f"the entries of block {block} of its extent tree are not in order")
        return node

    def block_maps(self, number: Int64s, field: NDArray[np.uint8]) -> Mapped:
        """The runs of inodes with block maps, likewise."""
        self._pieces_left += _PIECES_PER_INODE * len(number)
        table = np.ascontiguousarray(field).view("<u4").astype(np.int64)
        direct = table[:, : layout.DIRECT_BLOCKS]
        owner, logical = np.nonzero(direct)
        parts = [self._merged(number, owner, logical, direct[owner, logical])]
        per_block = self._geometry.bytes_per_block // 4
        step = max(1, _BYTES_AT_ONCE // self._geometry.bytes_per_block)
        pending: list[tuple[Int64s, Int64s, Int64s]] = []
        for height in (3, 2, 1):
            first = layout.DIRECT_BLOCKS + sum(per_block**lower for lower in range(1, height))
            block = table[:, layout.DIRECT_BLOCKS + height - 1]
            own = np.flatnonzero(block)
            pending.append((own, np.full(len(own), first, dtype=np.int64), block[own]))
            following, waiting = [], 0
            for owner, logical, block in pending:
                for at in range(0, len(owner), step):
                    some = slice(at, at + step)
                    below = self._indirect(number, owner[some], logical[some], block[some], per_block ** (height - 1))
                    if height == 1:
                        parts.append(self._merged(number, *below))
                        continue
                    following.append(below)
                    waiting += len(below[0])
                    if waiting > _EMPTY_BASE + 2 * self._pieces_left:
                        raise _too_many(int(number[below[0][-1]]))
            pending = following
        return _rejoined(Mapped.joined(parts))

    def _indirect(
        self, number: Int64s, owner: Int64s, logical: Int64s, block: Int64s, span: int
    ) -> tuple[Int64s, Int64s, Int64s]:
        """What some blocks of numbers hold: whose each number is, from which block of the file, and the number."""
        raw = [self._read(int(number[row]), place) for row, place in zip(owner.tolist(), block.tolist(), strict=True)]
        table = np.frombuffer(b"".join(raw), dtype="<u4").reshape(len(raw), -1)
        row, column = np.nonzero(table)
        self._empty_left += len(raw) - 2 * (len(raw) - len(np.unique(row)))
        if self._empty_left < 0:
            raise _damaged(int(number[owner[0]]), "most of the blocks of its block map are empty")
        return owner[row], logical[row] + column * span, table[row, column].astype(np.int64)

    def _merged(self, number: Int64s, owner: Int64s, logical: Int64s, block: Int64s) -> Mapped:
        """Runs out of single blocks that are in order."""
        bad = (block < self._geometry.first_data_block) | (block >= self._geometry.blocks_count)
        bad |= logical >= layout.LOGICAL_BLOCKS_MAX
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise _damaged(int(number[owner[row]]), f"its block {logical[row]} is block {block[row]} of the volume")
        one = np.ones(len(owner), dtype=np.int64)
        runs = _rejoined(Mapped(owner, logical, block, one, np.zeros(len(owner), dtype=np.bool_)))
        self._count(number, runs.owner)
        self._count(number, runs.owner_of_holes())
        return runs

    def _count(self, number: Int64s, owner: Int64s) -> None:
        self._pieces_left -= len(owner)
        if self._pieces_left < 0:
            raise _too_many(int(number[owner[-1]]))

    def _read(self, inode: int, block: int) -> bytes:
        if not self._geometry.first_data_block <= block < self._geometry.blocks_count:
            raise _damaged(inode, f"its tree leads to block {block} of {self._geometry.blocks_count}")
        if block in self._used:
            raise _damaged(inode, f"its tree leads to block {block} again")
        self._used.add(block)
        size = self._geometry.bytes_per_block
        return self._device.read(block * size, size)


def inode_seed(geometry: Geometry, inode: int, generation: int) -> int:
    """The register that the checksums of an inode and of what belongs to it begin with."""
    return crc32c(geometry.checksum_seed, inode.to_bytes(4, "little") + generation.to_bytes(4, "little"))


def _rejoined(runs: Mapped) -> Mapped:
    """Neighbours in file and on the volume made one."""
    if len(runs.owner) < 2:
        return runs
    end, place = runs.logical + runs.count, runs.start + runs.count
    breaks = (runs.owner[1:] != runs.owner[:-1]) | (runs.logical[1:] != end[:-1]) | (runs.start[1:] != place[:-1])
    first = np.flatnonzero(np.concatenate(([True], breaks)))
    count = np.add.reduceat(runs.count, first)
    return Mapped(runs.owner[first], runs.logical[first], runs.start[first], count, runs.unwritten[first])


def _too_many(inode: int) -> InconsistentVolume:
    return _damaged(inode, "this file and those before it are in too many pieces")


def _damaged(inode: int, problem: str) -> InconsistentVolume:
    return InconsistentVolume(f"inode {inode}", problem)
