"""A whole disk on a smaller or larger one: its partitions moved and resized, its partition table rewritten. A plan,
made before anything is written."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume, RefusedError, UsageError
from sqlimage.extent import Runs
from sqlimage.filesystem.probe import open_file_system
from sqlimage.fixup import Fixup
from sqlimage.journey.relaid import Layout, RelaidVolume
from sqlimage.journey.resizable import WITH_HIDDEN_SECTORS, Resizable, Target, what_it_is
from sqlimage.journey.resize import wanted_size
from sqlimage.media.partition import Partition, PartitionTable, read_partition_table
from sqlimage.media.rearrange import Rearranged, Room, largest_disk_bytes, rearrange, smallest_disk_bytes
from sqlimage.media.window import Window
from sqlimage.moves import Moves
from sqlimage.units import format_size


@dataclass(slots=True)
class _Volume:
    """One partition, and what can be done with it."""

    number: int
    partition: Partition
    device: BlockDevice
    resizable: Resizable | None = None
    why_not: str | None = None
    """It keeps its length for this reason."""
    relaid: RelaidVolume | None = None

    @property
    def room(self) -> Room:
        if self.resizable is None:
            return Room(self.partition.length_bytes, can_grow=False)
        return Room(self.resizable.smallest_bytes, can_grow=True)

    @property
    def room_to_grow(self) -> Room:
        """Where nothing gets shorter; how short it could be can take long to find out."""
        return Room(self.partition.length_bytes, can_grow=self.resizable is not None)


def plan_disk(device: BlockDevice, allocated: Runs, target: Target, open_files: ExitStack) -> Layout:
    """The layout of a disk. ``device`` is the disk as it was captured, ``allocated`` what counts of it; ``open_files``
    takes what has to be closed in the end.

    Raises :class:`~sqlimage.errors.RefusedError` where it cannot be done, with what is needed and what there is.
    """
    if target.hidden_sectors is not None:
        raise UsageError(
            "on a disk the partition table says how many sectors lie before a volume",
            hint="restore one volume with --volume, or leave --hidden-sectors out",
        )
    table = read_partition_table(device)
    if table is None:
        raise RefusedError("the image holds several volumes but no partition table that is known")
    if target.size == "maximum" and target.room_bytes is not None:
        target = dataclasses.replace(target, room_bytes=min(target.room_bytes, largest_disk_bytes(table)))
    wanted = target.room_bytes if target.size == "maximum" else target.size
    shrinks = wanted == "minimum" or (isinstance(wanted, int) and wanted < device.size_bytes)
    volumes = [
        _looked_at(_Volume(number, part, Window(device, part.offset_bytes, part.length_bytes)), shrinks)
        for number, part in enumerate(table.partitions)
    ]
    while True:  # each turn fixes the length of one volume that cannot be laid out anew
        rooms = [volume.room if shrinks else volume.room_to_grow for volume in volumes]
        smallest = partial(smallest_disk_bytes, device, table, rooms, kept=allocated)
        size = wanted_size(target, device.size_bytes, smallest, table.bytes_per_sector)
        arranged = rearrange(device, table, rooms, size, kept=allocated, geometry=target.geometry)
        if _lay_out(volumes, table, arranged, allocated, target, open_files):
            return _joined(allocated, volumes, arranged)


def _looked_at(volume: _Volume, shrinks: bool) -> _Volume:
    """Find out whether its length can change, and how small it can become."""
    try:
        file_system = open_file_system(volume.device)
        volume.resizable = Resizable.of(volume.device, file_system)
        if volume.resizable is None:
            volume.why_not = f"{what_it_is(volume.device)} cannot be laid out anew"
        elif shrinks:
            _ = volume.resizable.smallest_bytes
    except (InconsistentVolume, RefusedError) as problem:
        volume.resizable, volume.why_not = None, problem.message
    return volume


def _lay_out(
    volumes: list[_Volume],
    table: PartitionTable,
    arranged: Rearranged,
    allocated: Runs,
    target: Target,
    open_files: ExitStack,
) -> bool:
    """Plan every volume for the place it gets; False where one turned out to keep its length."""
    for volume, (offset, length) in zip(volumes, arranged.places, strict=True):
        old, resizable, volume.relaid = volume.partition, volume.resizable, None
        if resizable is None:
            continue
        mine = _for_volume(target, resizable, old, offset, table.bytes_per_sector)
        if length == old.length_bytes and mine.is_as_captured:
            continue
        place = volume.number, old.offset_bytes, old.length_bytes, offset, length
        kept = allocated.clip(old.offset_bytes, old.end_bytes).shift(-old.offset_bytes)
        try:
            volume.relaid = resizable.on(RelaidVolume(*place, resizable.scan, kept), mine, open_files)
        except (InconsistentVolume, RefusedError) as refused:
            volume.resizable, volume.why_not = None, refused.message
            return False
    return True


def _for_volume(target: Target, resizable: Resizable, old: Partition, offset: int, bytes_per_sector: int) -> Target:
    """What the boot sector of a volume is to say in its new place."""
    facts = resizable.file_system.facts
    if facts.file_system not in WITH_HIDDEN_SECTORS:
        return Target()
    was_right = facts.hidden_sectors == old.offset_bytes // bytes_per_sector
    hidden = offset // bytes_per_sector if offset != old.offset_bytes and was_right else None
    return Target(hidden_sectors=hidden, geometry=target.geometry)


def _zeros_that_count(arranged: Rearranged) -> Runs:
    """What lies between partitions, and what is new of the table: zeros where nothing of the old disk comes to lie, as
    where the disk is restored as it was. What is free behind the last partition is left alone."""
    last = max((offset + length for offset, length in arranged.places), default=0)
    between = Runs.of(arranged.places).complement(last)
    return between.union(Runs.of([(arranged.end, arranged.size_bytes - arranged.end)]))


def _joined(allocated: Runs, volumes: list[_Volume], arranged: Rearranged) -> Layout:
    outside = Moves.of(arranged.moved_from, arranged.moved_to, arranged.moved_length)
    parts, counted, relaid = [outside], outside.carry(allocated), []
    fixups: list[Fixup] = list(arranged.fixups)
    notes: list[str] = []
    for volume, (offset, _) in zip(volumes, arranged.places, strict=True):
        old = volume.partition
        if volume.relaid is None:
            moves = Moves.of_runs(Runs.of([(old.offset_bytes, old.length_bytes)]), offset - old.offset_bytes)
            counted = counted.union(moves.carry(allocated))
            if offset != old.offset_bytes and volume.why_not is not None:
                notes.append(f"volume {volume.number} is moved as it is: {volume.why_not}")
        else:
            moves = volume.relaid.moves.shift(old.offset_bytes, offset)
            counted = counted.union(volume.relaid.allocated.shift(offset))
            fixups += (fixup._replace(offset_bytes=fixup.offset_bytes + offset) for fixup in volume.relaid.fixups)
            notes += (f"volume {volume.number}: {note}" for note in volume.relaid.notes)
            relaid.append(volume.relaid)
        parts.append(moves)
    counted = counted.union(_zeros_that_count(arranged))
    fixups.sort()
    if arranged.dropped.total:
        lost = format_size(arranged.dropped.total)
        notes.append(
            f"{lost} that are not zeros lie behind the last partition, in no volume, and have no room any more"
        )
    moves = Moves.joined(parts)
    return Layout(
        arranged.size_bytes, moves, counted, tuple(fixups), tuple(relaid), tuple(notes), partitions=arranged.places
    )
