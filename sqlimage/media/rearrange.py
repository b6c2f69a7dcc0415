"""A disk on a smaller or larger one: where its partitions come to lie, what else moves, and which bytes of the
partition table have to change. As data; nothing here writes.

The first partition, and everything before it, stays where it is; another moves only where it must. What lies in a gap
moves with the partition that follows it, what lies behind them all as the end of the last one does::

    old       |MBR boot code| 1     |   free   |EBR| 5         |free|
    smaller   |MBR boot code| 1     |EBR| 5         |                free space first, then length
    larger    |MBR boot code| 1     |   free   |EBR| 5                        |free|
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from sqlimage.device import BlockDevice
from sqlimage.errors import RefusedError, UsageError
from sqlimage.extent import Int64s, Runs
from sqlimage.fixup import Fixup
from sqlimage.media import layout
from sqlimage.media.geometry import Geometry
from sqlimage.media.partition import PartitionTable, read_partition_table
from sqlimage.media.rearrange_gpt import GptScheme
from sqlimage.media.rearrange_mbr import MbrScheme
from sqlimage.media.rearrange_outside import Arrangement, leads, outside_moves
from sqlimage.media.rearrange_places import Block, fit, grow, least_end
from sqlimage.moves import Moves
from sqlimage.units import format_size

_LARGEST_BYTES = (1 << 63) - 1
_TYPES_OF_DYNAMIC_DISKS = (
    "0x42",
    "5808C8AA-7E8F-42E0-85D2-E1E90434CFB3",
    "AF9B60A0-1431-4F62-BC68-3311714A69AD",
    "E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D",
)
"""Windows' Logical Disk Manager (metadata and data) and Storage Spaces keep a database of places of their own."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a partition may become."""

    smallest_bytes: int
    """It cannot be shorter than this. What exceeds its length means the same as its length: not to be shortened."""
    can_grow: bool
    can_move: bool = True
    """False where something names it by its place."""


@dataclass(frozen=True, slots=True, eq=False)
class Rearranged:
    """The whole of it. Fix-ups are disjoint, by place; those over places that ``moved_to`` does not name have an
    original of zeros."""

    size_bytes: int
    places: tuple[tuple[int, int], ...]
    """New offset and length of each partition, in the order of the old table."""
    moved_from: Int64s
    moved_to: Int64s
    moved_length: Int64s
    """Everything outside the partitions that is kept, moved or not: old place, new place, length. Sorted by new place,
    disjoint in both. What of the new disk is neither named here, nor a fix-up, nor a partition, is zeros."""
    fixups: tuple[Fixup, ...]
    end: int
    """Where the room for partitions ends, in bytes: what lies behind it is the table's own."""
    dropped: Runs
    """What was to be kept behind the last partition and has no room any more, in old places."""


def smallest_disk_bytes(device: BlockDevice, table: PartitionTable, rooms: Sequence[Room], *, kept: Runs) -> int:
    """The smallest size that :func:`rearrange` accepts; raises as that does."""
    disk = _Disk(device, table, rooms, kept)
    disk.refuse_other_sizes()
    return disk.smallest_bytes


def largest_disk_bytes(table: PartitionTable) -> int:
    """The largest disk that a table of this scheme can tell of: 2**32 - 1 sectors with a master boot record."""
    sectors = layout.MBR_LBA_MAXIMUM if table.scheme == "mbr" else _LARGEST_BYTES // table.bytes_per_sector
    return sectors * table.bytes_per_sector


def rearrange(
    device: BlockDevice,
    table: PartitionTable,
    rooms: Sequence[Room],
    size_bytes: int,
    *,
    kept: Runs,
    geometry: Geometry | None = None,
) -> Rearranged:
    """The disk ``device``, whose partitions are ``table``, on one of ``size_bytes``. ``rooms`` are in the order of
    ``table.partitions``; ``kept`` are the bytes of the disk that count, of which those in partitions, and those that
    the device knows to be zeros, do not matter here.

    On a smaller disk free space goes first (what lies furthest behind before the rest), then length, from the
    partitions that can spare most. On a larger one the largest partition that can grow gets what is added. New places
    and lengths are multiples of what the old place was one of, at most of 1 MiB. What is missing or damaged of a GPT
    is written anew. CHS fields count in ``geometry``; without one they are changed only where the partition is, and
    count in what they counted in.

    Raises :class:`~sqlimage.errors.RefusedError` where it cannot be done, or not safely: too small, larger than the
    table can tell, a table that contradicts itself or describes only a part of what is there;
    :class:`~sqlimage.errors.UsageError` where ``table`` or ``rooms`` are not this disk's.
    """
    disk = _Disk(device, table, rooms, kept)
    if size_bytes != device.size_bytes:
        disk.refuse_other_sizes()
    if size_bytes < disk.smallest_bytes:
        raise RefusedError(
            f"the partitions of this disk need {_told(disk.smallest_bytes)}, there are {_told(size_bytes)}",
            hint="choose a larger disk" + disk.what_fills_gaps(),
        )
    largest = largest_disk_bytes(table)
    if size_bytes > max(largest, device.size_bytes):
        limit = f"a partition table of scheme {table.scheme} can tell of {_told(largest)}"
        hint = f"choose a size of at most {largest} bytes"
        if table.scheme == "mbr":
            hint += "; a GPT would hold it"
        raise RefusedError(f"{limit}, the disk would have {_told(size_bytes)}", hint=hint)
    return disk.on(size_bytes, geometry)


def _told(length_bytes: int) -> str:
    return f"{format_size(length_bytes)} ({length_bytes} bytes)"


def _data(device: BlockDevice, within: Runs) -> Runs:
    """What is not known to be zeros."""
    extents = (extent for start, length in within for extent in device.extents(start, length))
    return Runs.of((extent.offset_bytes, extent.length_bytes) for extent in extents if extent.is_data)


class _Scheme(Protocol):
    """A partition table that knows how to be rewritten."""

    @property
    def carried(self) -> Runs:
        """The control sectors that lie outside partitions and go where what is around them goes."""
        ...

    @property
    def own(self) -> Runs:
        """What the table claims and places by itself."""
        ...

    @property
    def anchors(self) -> Sequence[tuple[int, int]]:
        """Control sectors (place, length) that no partition follows to go with: blocks of their own."""
        ...

    @property
    def immovable(self) -> frozenset[int]:
        """The numbers of partitions that only work where they are."""
        ...

    @property
    def least_end(self) -> int:
        """Where the room for partitions ends at least."""
        ...

    def end_within(self, size_bytes: int) -> int:
        """Where the room for partitions ends on a disk of such a size."""
        ...

    def disk_for(self, end: int) -> int:
        """The inverse: the size of the smallest disk with such room."""
        ...

    def rewrite(
        self, arrangement: Arrangement, size_bytes: int, geometry: Geometry | None
    ) -> tuple[Moves, Sequence[Fixup]]:
        """What of ``own`` moves where, and what changes; fix-ups in any order."""
        ...


class _Disk:
    """The old disk as a row of blocks, and what lies between them."""

    def __init__(self, device: BlockDevice, table: PartitionTable, rooms: Sequence[Room], kept: Runs) -> None:
        if len(rooms) != len(table.partitions):
            raise UsageError(f"{len(rooms)} rooms for {len(table.partitions)} partitions")
        if read_partition_table(device) != table:
            raise UsageError("the partition table is not this disk's own")
        self._device, self._table = device, table
        self._scheme: _Scheme = (GptScheme if table.scheme == "gpt" else MbrScheme)(device, table)
        self._anchors = Runs.of(self._scheme.anchors)
        partitions = Runs.of((partition.offset_bytes, partition.length_bytes) for partition in table.partitions)
        gaps = partitions.complement(device.size_bytes)
        outside = kept.intersect(_data(device, gaps)).union(self._scheme.carried)
        self._outside = outside.subtract(self._scheme.own).subtract(self._anchors)
        self._blocks = self._with_leads(self._blocks_of(rooms))
        least = max(least_end(self._blocks), self._scheme.least_end)
        self.smallest_bytes = self._scheme.disk_for(least)

    def _blocks_of(self, rooms: Sequence[Room]) -> list[Block]:
        unit, scheme = self._table.bytes_per_sector, self._scheme
        blocks = [Block(at, length, length, can_grow=False, can_move=True, lead=0) for at, length in self._anchors]
        for partition, room in zip(self._table.partitions, rooms, strict=True):
            length = partition.length_bytes
            smallest = min(max(room.smallest_bytes, unit), length)
            can_move = room.can_move and partition.number not in scheme.immovable
            blocks.append(Block(partition.offset_bytes, length, smallest, room.can_grow, can_move, 0))
        return sorted(blocks, key=lambda block: block.start)

    def _with_leads(self, blocks: list[Block]) -> list[Block]:
        """What lies in the gaps goes with the block behind; nothing moves up to the first partition."""
        starts, ends = [block.start for block in blocks], [block.end for block in blocks]
        found = leads(starts, ends, self._outside, self._table.bytes_per_sector)
        first = min((partition.offset_bytes for partition in self._table.partitions), default=self._device.size_bytes)
        return [
            replace(block, can_move=block.can_move and block.start > first, lead=lead if index else 0)
            for index, (block, lead) in enumerate(zip(blocks, found, strict=True))
        ]

    def refuse_other_sizes(self) -> None:
        """Raises :class:`~sqlimage.errors.RefusedError` where the disk can only be had as it is."""
        for partition in self._table.partitions:
            if partition.type in _TYPES_OF_DYNAMIC_DISKS:
                raise RefusedError(
                    f"partition {partition.number} (type {partition.type}) belongs to a dynamic disk or storage pool, "
                    "which keeps places in a database of its own",
                    hint=f"restore the disk as it is, {self._device.size_bytes} bytes",
                )

    def what_fills_gaps(self) -> str:
        """For a hint: what besides partitions cannot be given up."""
        filled = sum(block.lead for block in self._blocks)
        return f"; gaps that hold data between partitions take {_told(filled)} of it" if filled else ""

    def on(self, size_bytes: int, geometry: Geometry | None) -> Rearranged:
        """The disk on one of a size that is large enough."""
        scheme, blocks, old_size = self._scheme, self._blocks, self._device.size_bytes
        end = scheme.end_within(size_bytes)
        extra = end - max(scheme.end_within(old_size), blocks[-1].end if blocks else 0)
        is_larger = size_bytes > old_size and extra > 0
        places = grow(blocks, extra) if is_larger else fit(blocks, end)
        arrangement = Arrangement(blocks, places, end)
        outside, dropped = outside_moves(self._outside, arrangement)
        anchors = (Moves.of_runs(Runs.of([run]), arrangement.new_place(run[0]) - run[0]) for run in self._anchors)
        own, fixups = scheme.rewrite(arrangement, size_bytes, geometry)
        moves = Moves.joined([outside, *anchors, own])
        return Rearranged(
            size_bytes=size_bytes,
            places=tuple(arrangement.place_of(partition.offset_bytes) for partition in self._table.partitions),
            moved_from=moves.old,
            moved_to=moves.new,
            moved_length=moves.length,
            fixups=tuple(sorted(fixups, key=lambda fixup: fixup.offset_bytes)),
            end=end,
            dropped=dropped,
        )
