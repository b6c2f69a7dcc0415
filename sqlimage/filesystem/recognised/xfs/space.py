"""The free space of XFS, by the B-tree of each allocation group (AG) that keeps it in the order of places."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s, Runs
from sqlimage.filesystem.recognised.xfs import layout
from sqlimage.filesystem.recognised.xfs.superblock import Geometry, checksum
from sqlimage.filesystem.recognised.xfs.tree import Tree, TreeReader

_GROUPS_MAX = 1 << 14


@dataclass(frozen=True, slots=True)
class _Group:
    """What the AGF says."""

    number: int
    length: int
    by_place: Tree
    by_size: Tree
    free: int
    not_in_tree: int
    """Free as the superblock counts them, but held by the free list and by B-trees."""


def free_space(device: BlockDevice, geometry: Geometry) -> Runs:
    """The bytes of the volume that the B-trees call free.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where a B-tree contradicts itself, the other one or the
    superblock, and where there is too much of them.
    """
    if geometry.ag_count > _GROUPS_MAX:
        raise InconsistentVolume("superblock, sb_agcount", f"is {geometry.ag_count}, up to {_GROUPS_MAX} are read")
    reader = TreeReader(device, geometry)
    headers = -(-layout.AG_HEADER_SECTORS * geometry.sector_bytes // geometry.block_bytes)
    taken = [(geometry.log_ag * geometry.ag_blocks + geometry.log_start, geometry.log_blocks)]
    starts, lengths, counted = [], [], 0
    for ag in range(geometry.ag_count):
        group, first = _group(device, geometry, ag), ag * geometry.ag_blocks
        pieces, visited = reader.read(group.by_place)
        _check(group, pieces)
        if geometry.version == 4:  # no checksum tells what a flipped bit has done
            _compare(group, pieces, reader.read(group.by_size)[0])
        starts.append(pieces[:, 0] + first)
        lengths.append(pieces[:, 1])
        taken += [(first, headers), *((first + block, 1) for block in visited)]
        counted += group.free + group.not_in_tree
    if geometry.free_blocks not in (None, counted):
        problem = f"is {geometry.free_blocks}, the allocation groups have {counted}"
        raise InconsistentVolume("superblock, sb_fdblocks", problem)
    free = Runs.from_arrays(np.concatenate(starts), np.concatenate(lengths))
    if len(Runs.of(taken).intersect(free)):
        raise InconsistentVolume("bnobt", "a piece lies on the log, a header or a tree")
    return Runs(free.start * geometry.block_bytes, free.length * geometry.block_bytes)


def _group(device: BlockDevice, geometry: Geometry, ag: int) -> _Group:
    at = geometry.place_of(ag) + layout.AGF_SECTOR * geometry.sector_bytes
    raw = device.read(at, geometry.sector_bytes)
    field = np.frombuffer(raw, dtype=layout.AGF, count=1)[0]

    def number(name: str) -> int:
        return int(field[name])

    length, free, listed, in_trees = (number(f"agf_{name}") for name in ("length", "freeblks", "flcount", "btreeblks"))
    by_place = Tree("bnobt", ag, number("agf_bno_root"), number("agf_bno_level"))
    by_size = Tree("cntbt", ag, number("agf_cnt_root"), number("agf_cnt_level"))
    right = (
        field["agf_magicnum"] == layout.AGF_MAGIC
        and number("agf_versionnum") == 1
        and number("agf_seqno") == ag
        and length == geometry.length_of(ag)
        and free <= length
        and listed <= geometry.sector_bytes // 4
        and in_trees < length
        and all(1 <= tree.levels <= layout.BTREE_LEVELS_MAX for tree in (by_place, by_size))
    )
    if geometry.version == 5:
        right = right and field["agf_uuid"].tobytes() == geometry.meta_uuid
        right = right and checksum(raw, layout.AGF_CRC_AT) == number("agf_crc")
    if not right:
        raise InconsistentVolume("AGF", f"that of allocation group {ag} is wrong", offset_bytes=at)
    return _Group(ag, length, by_place, by_size, free, listed + in_trees)


def _check(group: _Group, pieces: Int64s) -> None:
    """The pieces, which ascend, lie inside the group and apart, and they add up."""
    start, length = pieces[:, 0], pieces[:, 1]
    end = start + length
    if (length == 0).any() or (end > group.length).any() or (start[1:] < end[:-1]).any():
        raise InconsistentVolume("bnobt", f"of allocation group {group.number}: pieces overlap or leave the group")
    if int(length.sum()) != group.free:
        problem = f"its pieces have {int(length.sum())} blocks, agf_freeblks is {group.free}"
        raise InconsistentVolume("bnobt", f"of allocation group {group.number}: {problem}")


def _compare(group: _Group, by_place: Int64s, by_size: Int64s) -> None:
    if not np.array_equal(by_place, by_size[np.argsort(by_size[:, 0], kind="stable")]):
        raise InconsistentVolume("cntbt", f"of allocation group {group.number}: has other pieces than bnobt")
