"""A whole disk on a smaller or larger one: its partitions moved and resized, its partition table rewritten. A plan,
made before anything is written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume, RefusedError, UsageError
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import FileSystem, Scan
from sqlimage.filesystem.probe import open_file_system
from sqlimage.filesystem.relocation import Relocatable, Relocation, Wish
from sqlimage.fixup import Fixup
from sqlimage.image.relayout import moves_of
from sqlimage.journey.relaid import Layout, RelaidVolume
from sqlimage.journey.resize import Target, wanted_size
from sqlimage.media.partition import Partition, PartitionTable, read_partition_table
from sqlimage.media.rearrange import Rearranged, Room, largest_disk_bytes, rearrange, smallest_disk_bytes
from sqlimage.media.window import Window
from sqlimage.moves import Moves

_WITH_HIDDEN_SECTORS = ("fat12", "fat16", "fat32", "ntfs")


@dataclass(slots=True)
class _Volume:
    """One partition, and what can be done with it."""

    number: int
    partition: Partition
    device: BlockDevice
    file_system: FileSystem | None = None
    scan: Scan | None = None
    smallest_bytes: int | None = None
    """None: it keeps its length."""
    why_not: str | None = None
    relocation: Relocation | None = None

    @property
    def room(self) -> Room:
        if self.smallest_bytes is None:
            return Room(self.partition.length_bytes, can_grow=False)
        return Room(self.smallest_bytes, can_grow=True)


def plan_disk(device: BlockDevice, allocated: Runs, target: Target) -> Layout:
    """The layout of a disk. ``device`` is the disk as it was captured, ``allocated`` what counts of it.

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
    volumes = [
        _looked_at(_Volume(number, part, Window(device, part.offset_bytes, part.length_bytes)))
        for number, part in enumerate(table.partitions)
    ]
    while True:  # each turn fixes the length of one volume that cannot be laid out anew
        rooms = [volume.room for volume in volumes]
        smallest = smallest_disk_bytes(device, table, rooms, kept=allocated)
        room = target.room_bytes
        if target.size == "maximum" and room is not None:
            target = dataclasses.replace(target, room_bytes=min(room, largest_disk_bytes(table)))
        size = wanted_size(target, device.size_bytes, smallest)
        size = size // table.bytes_per_sector * table.bytes_per_sector if size != device.size_bytes else size
        arranged = rearrange(device, table, rooms, size, kept=allocated, geometry=target.geometry)
        if _lay_out(volumes, table, arranged, target):
            return _joined(device, allocated, volumes, arranged)


def _looked_at(volume: _Volume) -> _Volume:
    """Find out how small it can become."""
    try:
        volume.file_system = open_file_system(volume.device)
        if isinstance(volume.file_system, Relocatable):
            volume.scan = volume.file_system.scan()
            volume.smallest_bytes = volume.file_system.smallest_bytes(volume.scan)
        elif volume.file_system is not None:
            volume.why_not = f"{volume.file_system.facts.file_system} cannot be resized"
    except (InconsistentVolume, RefusedError) as problem:
        volume.smallest_bytes, volume.why_not = None, problem.message
    return volume


def _lay_out(volumes: list[_Volume], table: PartitionTable, arranged: Rearranged, target: Target) -> bool:
    """Plan every volume for the place it gets; False where one turned out to keep its length."""
    for volume, (offset, length) in zip(volumes, arranged.places, strict=True):
        volume.relocation = None
        wish = _wish(volume, offset, length, table.bytes_per_sector, target)
        if wish == Wish() or volume.scan is None or not isinstance(volume.file_system, Relocatable):
            continue
        try:
            volume.relocation = volume.file_system.relocate(volume.scan, wish)
        except (InconsistentVolume, RefusedError) as refused:
            volume.why_not = refused.message
            if volume.smallest_bytes is not None:
                volume.smallest_bytes = None
                return False
    return True


def _wish(volume: _Volume, offset: int, length: int, bytes_per_sector: int, target: Target) -> Wish:
    """What is asked of a volume's file system."""
    if volume.file_system is None or volume.file_system.facts.file_system not in _WITH_HIDDEN_SECTORS:
        return Wish()
    old, facts, geometry = volume.partition, volume.file_system.facts, target.geometry
    was_right = facts.hidden_sectors == old.offset_bytes // bytes_per_sector
    return Wish(
        size_bytes=length if length != old.length_bytes else None,
        hidden_sectors=offset // bytes_per_sector if offset != old.offset_bytes and was_right else None,
        sectors_per_track=geometry.sectors_per_track if geometry else None,
        tracks_per_cylinder=geometry.tracks_per_cylinder if geometry else None,
    )


def _joined(device: BlockDevice, allocated: Runs, volumes: list[_Volume], arranged: Rearranged) -> Layout:
    outside = Moves.of(arranged.moved_from, arranged.moved_to, arranged.moved_length)
    parts, counted, relaid = [outside], [outside.carry(allocated)], []
    fixups: list[Fixup] = list(arranged.fixups)
    notes = []
    for volume, (offset, length) in zip(volumes, arranged.places, strict=True):
        old, relocation = volume.partition, volume.relocation
        if relocation is None:
            moves = Moves.of_runs(Runs.of([(old.offset_bytes, old.length_bytes)]), offset - old.offset_bytes)
            counted.append(moves.carry(allocated))
            if offset != old.offset_bytes and volume.why_not is not None:
                notes.append(f"volume {volume.number} is moved as it is: {volume.why_not}")
        else:
            assert volume.scan is not None
            moves = moves_of(relocation).shift(old.offset_bytes, offset)
            counted.append(relocation.allocated.shift(offset))
            fixups += (fixup._replace(offset_bytes=fixup.offset_bytes + offset) for fixup in relocation.fixups)
            place = volume.number, old.offset_bytes, old.length_bytes, offset, length
            relaid.append(RelaidVolume(*place, relocation, volume.scan))
        parts.append(moves)
    every = Runs.empty()
    for runs in counted:
        every = every.union(runs)
    fixups.sort()
    return Layout(arranged.size_bytes, Moves.joined(parts), every, tuple(fixups), tuple(relaid), tuple(notes))
