"""Disks of any size for tests of their rearrangement, which is carried out here and held to its contract."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from sqlimage.device import BlockDevice, Buffer, DeviceExtent, check_range
from sqlimage.extent import Runs, first_overlap
from sqlimage.media.file import FileDevice
from sqlimage.media.geometry import Geometry
from sqlimage.media.partition import PartitionTable, read_partition_table
from sqlimage.media.rearrange import Rearranged, Room, rearrange, smallest_disk_bytes
from sqlimage.units import MIB, power_of_two_in
from tests.conftest import run

_CELL = 512
_ZEROS = bytes(_CELL)


class SparseDisk:
    """A disk in memory of which only cells that are not zeros take room."""

    def __init__(self, size_bytes: int, bytes_per_sector: int = 512) -> None:
        self.size_bytes, self.bytes_per_sector = size_bytes, bytes_per_sector
        self.cells: dict[int, bytes] = {}

    @classmethod
    def of(cls, path: Path, bytes_per_sector: int = 512) -> SparseDisk:
        """A file, of which only data is read."""
        device = FileDevice(path)
        disk = cls(device.size_bytes, bytes_per_sector)
        for extent in device.extents(0, device.size_bytes):
            if extent.is_data:
                disk.write(extent.offset_bytes, device.read(extent.offset_bytes, extent.length_bytes))
        device.close()
        return disk

    def save(self, path: Path) -> Path:
        with path.open("wb") as file:
            file.truncate(self.size_bytes)
            for at, cell in self.cells.items():
                file.seek(at * _CELL)
                file.write(cell[: self.size_bytes - at * _CELL])
        return path

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        check_range(offset_bytes, length_bytes, self.size_bytes, "sparse disk")
        first = offset_bytes // _CELL
        last = (offset_bytes + length_bytes - 1) // _CELL
        whole = b"".join(self.cells.get(at, _ZEROS) for at in range(first, last + 1))
        return whole[offset_bytes - first * _CELL :][:length_bytes]

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        buffer[:] = self.read(offset_bytes, len(buffer))

    def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
        yield DeviceExtent(offset_bytes, length_bytes, is_data=True)

    def write(self, offset_bytes: int, data: bytes | bytearray) -> None:
        check_range(offset_bytes, len(data), self.size_bytes, "sparse disk")
        done = 0
        while done < len(data):
            at, into = divmod(offset_bytes + done, _CELL)
            piece = bytes(data[done : done + _CELL - into])
            old = self.cells.get(at, _ZEROS)
            new = old[:into] + piece + old[into + len(piece) :]
            if new != _ZEROS:
                self.cells[at] = new
            else:
                self.cells.pop(at, None)
            done += len(piece)

    def close(self) -> None: ...

    def data(self) -> Runs:
        """Where something is: the argument ``kept``, as those who know no better give it."""
        return Runs.of((at * _CELL, _CELL) for at in self.cells)


def rooms_for(table: PartitionTable, spare: Callable[[int], int] = lambda length: 0, grow: bool = True) -> list[Room]:
    """The same room for all partitions: each can be shortened by ``spare(length)``."""
    return [Room(p.length_bytes - spare(p.length_bytes), grow) for p in table.partitions]


def table_of(device: BlockDevice) -> PartitionTable:
    table = read_partition_table(device)
    assert table is not None
    return table


def smallest(disk: SparseDisk, rooms: Sequence[Room], kept: Runs | None = None) -> int:
    return smallest_disk_bytes(disk, table_of(disk), rooms, kept=disk.data() if kept is None else kept)


def rearranged(
    disk: SparseDisk,
    rooms: Sequence[Room],
    size_bytes: int,
    *,
    kept: Runs | None = None,
    geometry: Geometry | None = None,
    problems: Iterable[str] = (),
) -> tuple[Rearranged, SparseDisk]:
    """The plan and the new disk, after all that the contract promises was checked. ``problems`` are words of those that
    the new table may have."""
    table = table_of(disk)
    kept = disk.data() if kept is None else kept
    plan = rearrange(disk, table, rooms, size_bytes, kept=kept, geometry=geometry)
    _check_places(table, rooms, plan)
    _check_moves(disk, table, plan, kept)
    new = _apply(disk, table, plan)
    after = table_of(new)
    assert after == replace(
        table,
        partitions=tuple(
            replace(partition, offset_bytes=offset, length_bytes=length)
            for partition, (offset, length) in zip(table.partitions, plan.places, strict=True)
        ),
        problems=after.problems,
    )
    for problem in after.problems:
        assert any(word in problem for word in problems), problem
    return plan, new


def _check_places(table: PartitionTable, rooms: Sequence[Room], plan: Rearranged) -> None:
    unit = table.bytes_per_sector
    assert len(plan.places) == len(table.partitions)
    assert all(start + length <= after for (start, length), (after, _) in pairwise(plan.places))
    for index, (partition, room, (start, length)) in enumerate(zip(table.partitions, rooms, plan.places, strict=True)):
        alignment = min(power_of_two_in(partition.offset_bytes), MIB)
        assert start + length <= plan.size_bytes
        assert length >= min(room.smallest_bytes, partition.length_bytes)
        assert length > 0
        assert start % alignment == 0
        if length != partition.length_bytes:
            assert length % alignment == 0
        assert length % unit == 0
        assert room.can_grow or length <= partition.length_bytes
        if not index or not room.can_move:
            assert start == partition.offset_bytes


def _check_moves(disk: SparseDisk, table: PartitionTable, plan: Rearranged, kept: Runs) -> None:
    assert (plan.moved_length > 0).all()
    assert (np.diff(plan.moved_to) > 0).all()
    old = Runs.of((partition.offset_bytes, partition.length_bytes) for partition in table.partitions)
    for places, size, partitions in (
        (plan.moved_from, disk.size_bytes, old),
        (plan.moved_to, plan.size_bytes, Runs.of(plan.places)),
    ):
        assert first_overlap(places, plan.moved_length) is None
        outside = partitions.complement(size)
        assert outside.covers(Runs.from_arrays(places, plan.moved_length))
    reached = 0
    for fixup in plan.fixups:
        assert fixup.offset_bytes >= reached
        reached = fixup.offset_bytes + len(fixup.original)
        assert len(fixup.original) == len(fixup.replacement) > 0
        assert fixup.original != fixup.replacement
        assert fixup.reason
    fixed = Runs.of((fixup.offset_bytes, len(fixup.original)) for fixup in plan.fixups)
    assert len(fixed.intersect(Runs.of(plan.places))) == 0
    assert reached <= plan.size_bytes
    # nothing that is to be kept gets lost, but for what is told and what a GPT places anew
    moved = Runs.from_arrays(plan.moved_from, plan.moved_length)
    lost = kept.subtract(old).subtract(moved).subtract(plan.dropped)
    if table.scheme == "mbr":
        whole = disk.size_bytes // table.bytes_per_sector * table.bytes_per_sector
        assert len(lost.clip(0, whole)) == 0
    behind = max((partition.end_bytes for partition in table.partitions), default=0)
    assert len(plan.dropped.clip(0, behind)) == 0


def _apply(disk: SparseDisk, table: PartitionTable, plan: Rearranged) -> SparseDisk:
    new = SparseDisk(plan.size_bytes, disk.bytes_per_sector)
    moves = list(zip(plan.moved_from.tolist(), plan.moved_to.tolist(), plan.moved_length.tolist(), strict=True))
    for partition, (start, length) in zip(table.partitions, plan.places, strict=True):
        moves.append((partition.offset_bytes, start, min(length, partition.length_bytes)))
    for old, to, length in moves:
        cells = range(old // _CELL, -(-(old + length) // _CELL))
        # the fewer of cells that are there and cells that are asked for
        for at in [at for at in disk.cells if at in cells] if len(disk.cells) < len(cells) else cells:
            low, high = max(at * _CELL, old), min((at + 1) * _CELL, old + length)
            new.write(to + low - old, disk.read(low, high - low))
    for fixup in plan.fixups:
        assert new.read(fixup.offset_bytes, len(fixup.original)) == fixup.original, fixup.reason
        new.write(fixup.offset_bytes, fixup.replacement)
    return new


def check_with_tools(path: Path) -> None:
    """What partitioning programs that are at hand say of a disk: nothing."""
    done = run("sfdisk", "--verify", path)
    assert b"No errors detected" in done.stdout, (done.stdout, done.stderr)
    if table_of(FileDevice(path)).scheme == "gpt":
        told = run("sgdisk", "--verify", path).stdout
        assert b"No problems found" in told, told
    if shutil.which("parted"):
        argv = ["parted", "--script", str(path), "unit", "s", "print"]
        said = subprocess.run(argv, capture_output=True, text=True, check=True)
        lines = [line for line in (said.stdout + said.stderr).splitlines() if "translate partition name" not in line]
        assert not any(line.startswith(("Warning", "Error")) for line in lines), lines
