"""The free space of XFS, by the B-tree of each allocation group (AG) that keeps it in the order of places."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s, Runs
from sqlimage.filesystem.recognised.xfs import layout
from sqlimage.filesystem.recognised.xfs.superblock import Geometry, checksum

_GROUPS_MAX = 1 << 14
_BLOCKS_MAX = 1 << 16
_PIECES_MAX = 1 << 22
"""More than these are not read: it would take longer than what is saved by it."""


@dataclass(frozen=True, slots=True)
class _Group:
    """What the AGF says."""

    number: int
    length: int
    root: int
    levels: int
    free: int
    not_in_tree: int
    """Free as the superblock counts them, but held by the free list and by B-trees."""


def free_space(device: BlockDevice, geometry: Geometry) -> Runs:
    """The bytes of the volume that the B-trees call free.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where a B-tree contradicts itself or the superblock, and where
    there is too much of it.
    """
    return _Reader(device, geometry).read()


class _Reader:
    def __init__(self, device: BlockDevice, geometry: Geometry) -> None:
        self._device, self._geometry = device, geometry
        self._blocks_left, self._pieces_left = _BLOCKS_MAX, _PIECES_MAX

    def read(self) -> Runs:
        geometry = self._geometry
        if geometry.ag_count > _GROUPS_MAX:
            raise InconsistentVolume("superblock, sb_agcount", f"is {geometry.ag_count}, up to {_GROUPS_MAX} are read")
        headers = -(-layout.AG_HEADER_SECTORS * geometry.sector_bytes // geometry.block_bytes)
        taken = [(geometry.log_ag * geometry.ag_blocks + geometry.log_start, geometry.log_blocks)]
        starts, lengths, counted = [], [], 0
        for ag in range(geometry.ag_count):
            group, first = self._group(ag), ag * geometry.ag_blocks
            start, length, visited = self._tree(group)
            starts.append(start + first)
            lengths.append(length)
            taken += [(first, headers), *((first + block, 1) for block in visited.tolist())]
            counted += group.free + group.not_in_tree
        if geometry.free_blocks not in (None, counted):
            raise InconsistentVolume(
                "superblock, sb_fdblocks", f"is {geometry.free_blocks}, the allocation groups have {counted}"
            )
        free = Runs.from_arrays(np.concatenate(starts), np.concatenate(lengths))
        if len(Runs.of(taken).intersect(free)):
            raise InconsistentVolume("bnobt", "a piece lies on the log, a header or a tree")
        return Runs(free.start * geometry.block_bytes, free.length * geometry.block_bytes)

    def _group(self, ag: int) -> _Group:
        geometry = self._geometry
        at = geometry.place_of(ag) + layout.AGF_SECTOR * geometry.sector_bytes
        raw = self._device.read(at, geometry.sector_bytes)
        field = np.frombuffer(raw, dtype=layout.AGF, count=1)[0]
        length, free, levels = (int(field[name]) for name in ("agf_length", "agf_freeblks", "agf_bno_level"))
        root, listed, in_trees = (int(field[name]) for name in ("agf_bno_root", "agf_flcount", "agf_btreeblks"))
        right = (
            field["agf_magicnum"] == layout.AGF_MAGIC
            and int(field["agf_versionnum"]) == 1
            and int(field["agf_seqno"]) == ag
            and length == geometry.length_of(ag)
            and free <= length
            and listed <= geometry.sector_bytes // 4
            and in_trees < length
            and 1 <= levels <= layout.BTREE_LEVELS_MAX
        )
        if geometry.version == 5:
            right = right and field["agf_uuid"].tobytes() == geometry.meta_uuid
            right = right and checksum(raw, layout.AGF_CRC_AT) == int(field["agf_crc"])
        if not right:
            raise InconsistentVolume("AGF", f"that of allocation group {ag} is wrong", offset_bytes=at)
        return _Group(ag, length, root, levels, free, listed + in_trees)

    def _tree(self, group: _Group) -> tuple[Int64s, Int64s, Int64s]:
        """The free pieces of a group in order (first block, blocks), and the blocks of the tree, which is walked a
        level at a time."""
        blocks = np.array([group.root], dtype=np.int64)
        first: Int64s | None = None
        visited = []
        for level in range(group.levels - 1, -1, -1):
            visited.append(blocks)
            records, pointers, in_block = self._level(group, blocks, level)
            begins = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(in_block)[:-1]))
            if first is not None and not np.array_equal(records[begins, 0], first):
                raise self._wrong(group, blocks, "a key is not that of the block beneath")
            if (np.diff(records[:, 0]) <= 0).any():
                raise self._wrong(group, blocks, "its records do not ascend")
            first, blocks = records[:, 0], pointers
        start, length = records[:, 0], records[:, 1]
        end = start + length
        if (length == 0).any() or (end > group.length).any() or (start[1:] < end[:-1]).any():
            raise self._wrong(group, visited[0], "pieces overlap or leave the group")
        if int(length.sum()) != group.free:
            problem = f"its pieces have {int(length.sum())} blocks, agf_freeblks is {group.free}"
            raise self._wrong(group, visited[0], problem)
        return start, length, np.concatenate(visited)

    def _level(self, group: _Group, blocks: Int64s, level: int) -> tuple[Int64s, Int64s, Int64s]:
        """The records or keys of all blocks of a level, the pointers beside keys, and how many each block has."""
        records, pointers, counts = [], [], []
        numbers = blocks.tolist()
        siblings = [layout.NULL_BLOCK, *numbers, layout.NULL_BLOCK]
        for n, block in enumerate(numbers):
            found = self._block(group, block, level, (siblings[n], siblings[n + 2]), is_root=len(numbers) == 1)
            records.append(found[0])
            pointers.append(found[1])
            counts.append(len(found[0]))
        return (
            np.concatenate(records).astype(np.int64),
            np.concatenate(pointers).astype(np.int64),
            np.array(counts, dtype=np.int64),
        )

    def _block(
        self, group: _Group, block: int, level: int, siblings: tuple[int, int], *, is_root: bool
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        geometry, version = self._geometry, self._geometry.version
        if not 0 < block < group.length:
            raise InconsistentVolume("bnobt", f"names block {block} of allocation group {group.number}")
        at = geometry.place_of(group.number, block)
        self._blocks_left -= 1
        if self._blocks_left < 0:
            raise InconsistentVolume("bnobt", f"free space takes more than {_BLOCKS_MAX} blocks to tell")
        raw = self._device.read(at, geometry.block_bytes)
        field = np.frombuffer(raw, dtype=layout.BTREE_BLOCK, count=1)[0]
        header, entry = layout.BTREE_HEADER_BYTES[version], layout.BTREE_RECORD_BYTES
        count = int(field["bb_numrecs"])
        room = (len(raw) - header) // (entry + (layout.BTREE_POINTER_BYTES if level else 0))
        right = (
            field["bb_magic"] == layout.BNOBT_MAGIC[version]
            and int(field["bb_level"]) == level
            and (int(field["bb_leftsib"]), int(field["bb_rightsib"])) == siblings
            and (0 if is_root and level == 0 else 1) <= count <= room
        )
        if version == 5:
            right = (
                right
                and int(field["bb_blkno"]) * layout.LOG_BLOCK_BYTES == at
                and int(field["bb_owner"]) == group.number
                and field["bb_uuid"].tobytes() == geometry.meta_uuid
                and checksum(raw, layout.BTREE_CRC_AT) == int(field["bb_crc"])
            )
        if not right:
            raise InconsistentVolume("bnobt", "a block of it is wrong", offset_bytes=at)
        self._pieces_left -= 0 if level else count
        if self._pieces_left < 0:
            raise InconsistentVolume("bnobt", f"free space lies in more than {_PIECES_MAX} pieces")
        records = np.frombuffer(raw, dtype=">u4", count=2 * count, offset=header).reshape(count, 2)
        pointers = np.frombuffer(raw, dtype=">u4", count=count if level else 0, offset=header + room * entry)
        return records, pointers

    def _wrong(self, group: _Group, blocks: Int64s, problem: str) -> InconsistentVolume:
        at = self._geometry.place_of(group.number, int(blocks[0]))
        return InconsistentVolume("bnobt", f"of allocation group {group.number}: {problem}", offset_bytes=at)
