"""The B-trees that keep the free space of an allocation group (AG) of XFS: all records of one, every block checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s
from sqlimage.filesystem.recognised.xfs import layout
from sqlimage.filesystem.recognised.xfs.superblock import Geometry, checksum

_BLOCKS_MAX = 1 << 16
_RECORDS_MAX = 1 << 21
"""More than these are not read: it would take longer than what is saved by it."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Where a B-tree begins."""

    name: str
    """``bnobt``, in the order of places, or ``cntbt``, in that of sizes."""
    ag: int
    root: int
    levels: int

    def rank(self, records: Int64s) -> Int64s:
        """By which records ascend."""
        start, length = records[:, 0], records[:, 1]
        return start if self.name == "bnobt" else length << 32 | start


@dataclass(frozen=True, slots=True)
class _Block:
    records: Int64s
    """Or keys: first block and number of blocks."""
    pointers: Int64s


class TreeReader:
    """Reads trees, together not more than what is worth it."""

    def __init__(self, device: BlockDevice, geometry: Geometry) -> None:
        self._device, self._geometry = device, geometry
        self._blocks_left, self._records_left = _BLOCKS_MAX, _RECORDS_MAX

    def read(self, tree: Tree) -> tuple[Int64s, list[int]]:
        """The records (first block and number of blocks, one row each), and the blocks that the tree takes. It is
        walked a level at a time.

        Raises :class:`~sqlimage.errors.InconsistentVolume` where it contradicts itself, or is too large.
        """
        numbers, visited = [tree.root], list[int]()
        keys: Int64s | None = None
        for level in range(tree.levels - 1, -1, -1):
            visited += numbers
            blocks = self._level(tree, numbers, level)
            records = np.concatenate([block.records for block in blocks])
            rank = tree.rank(records)
            if (np.diff(rank) <= 0).any():
                raise _wrong(tree, "its records do not ascend")
            if keys is not None and not np.array_equal(keys, tree.rank(np.array([b.records[0] for b in blocks]))):
                raise _wrong(tree, "a key is not that of the block beneath")
            keys, numbers = rank, np.concatenate([block.pointers for block in blocks]).tolist()
        return records, visited

    def _level(self, tree: Tree, numbers: list[int], level: int) -> list[_Block]:
        siblings = [layout.NULL_BLOCK, *numbers, layout.NULL_BLOCK]
        blocks, pointers = [], 0
        for n, number in enumerate(numbers):
            block = self._block(tree, number, level, (siblings[n], siblings[n + 2]))
            blocks.append(block)
            pointers += len(block.pointers)
            if pointers > self._blocks_left:
                raise _wrong(tree, f"it has more than {_BLOCKS_MAX} blocks")
        return blocks

    def _block(self, tree: Tree, number: int, level: int, siblings: tuple[int, int]) -> _Block:
        geometry, version = self._geometry, self._geometry.version
        if not 0 < number < geometry.length_of(tree.ag):
            raise _wrong(tree, f"it names block {number}")
        self._blocks_left -= 1
        if self._blocks_left < 0:
            raise _wrong(tree, f"it and those before it have more than {_BLOCKS_MAX} blocks")
        at = geometry.place_of(tree.ag, number)
        raw = self._device.read(at, geometry.block_bytes)
        field = np.frombuffer(raw, dtype=layout.BTREE_BLOCK, count=1)[0]
        header, entry = layout.BTREE_HEADER_BYTES[version], layout.BTREE_RECORD_BYTES
        count, is_root = int(field["bb_numrecs"]), level == tree.levels - 1
        room = (len(raw) - header) // (entry + (layout.BTREE_POINTER_BYTES if level else 0))
        right = (
            field["bb_magic"] == layout.BTREE_MAGIC[tree.name, version]
            and int(field["bb_level"]) == level
            and (int(field["bb_leftsib"]), int(field["bb_rightsib"])) == siblings
            and (0 if is_root and level == 0 else 1) <= count <= room
        )
        if version == 5:
            right = (
                right
                and int(field["bb_blkno"]) * layout.LOG_BLOCK_BYTES == at
                and int(field["bb_owner"]) == tree.ag
                and field["bb_uuid"].tobytes() == geometry.meta_uuid
                and checksum(raw, layout.BTREE_CRC_AT) == int(field["bb_crc"])
            )
        if not right:
            raise InconsistentVolume(tree.name, f"of allocation group {tree.ag}: a block is wrong", offset_bytes=at)
        self._records_left -= 0 if level else count
        if self._records_left < 0:
            raise _wrong(tree, f"it and those before it have more than {_RECORDS_MAX} records")
        records = np.frombuffer(raw, dtype=">u4", count=2 * count, offset=header).astype(np.int64)
        pointers = np.frombuffer(raw, dtype=">u4", count=count if level else 0, offset=header + room * entry)
        return _Block(records.reshape(count, 2), pointers.astype(np.int64))


def _wrong(tree: Tree, problem: str) -> InconsistentVolume:
    return InconsistentVolume(tree.name, f"of allocation group {tree.ag}: {problem}")
