"""What a defragmenting capture or a restore to another place would do, told without doing it."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass, replace

from sqlimage.device import BlockDevice
from sqlimage.fixup import Fixup
from sqlimage.image.image import Version
from sqlimage.image.medium import inspect
from sqlimage.image.relayout import defragmented, fixups_of, moves_of
from sqlimage.journey.capture import opened_source
from sqlimage.journey.destination import begins_at, is_block_device
from sqlimage.journey.relaid import Layout
from sqlimage.journey.resizable import Size, Target
from sqlimage.journey.resized import planned
from sqlimage.journey.unpack import Part
from sqlimage.media.file import FileDevice
from sqlimage.media.geometry import Geometry
from sqlimage.media.partition import find_partition


@dataclass(frozen=True, slots=True)
class ExplainedVolume:
    """One volume before and after; bytes."""

    number: int
    file_system: str | None
    offset_before: int
    length_before: int
    offset_bytes: int
    length_bytes: int
    moved_bytes: int
    """How much of it comes to lie elsewhere in the volume."""
    fixups: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """A layout that was planned and not carried out; bytes."""

    size_before: int
    size_bytes: int
    volumes: tuple[ExplainedVolume, ...]
    fixups: tuple[Fixup, ...]
    """Places are those of the new medium."""
    notes: tuple[str, ...]


def explain_capture(
    source: str | os.PathLike[str] | BlockDevice, *, source_format: str | None = None, partition: int | None = None
) -> Explanation:
    """What :func:`~sqlimage.journey.capture.capture` with ``defragment`` would change of a source. Raises as that."""
    with opened_source(source, source_format, partition) as found:
        medium = inspect(found.device, partition=found.partition, arrange=defragmented)
        volumes, notes = [], []
        for volume in medium.volumes:
            place = volume.offset_bytes, volume.length_bytes
            name = volume.facts.file_system if volume.facts else None
            moved, count = 0, 0
            if volume.relocation is not None:
                moved, count = moves_of(volume.relocation).moved_bytes, len(volume.relocation.fixups)
            elif volume.scan is None:
                notes.append(f"volume {volume.number} is not defragmented: {volume.raw_reason}")
            notes += (f"volume {volume.number} {note}" for note in (volume.facts.notes if volume.facts else ()))
            volumes.append(ExplainedVolume(volume.number, name, *place, *place, moved, count))
        size = medium.size_bytes
        return Explanation(size, size, tuple(volumes), tuple(fixups_of(medium)), tuple(notes))


def explain_restore(
    version: Version,
    destination: str | os.PathLike[str],
    *,
    volume: int | None = None,
    partition: int | None = None,
    size: Size | None = None,
    hidden_sectors: int | None = None,
    geometry: Geometry | None = None,
) -> Explanation:
    """What :func:`~sqlimage.journey.restore.restore` would change of a version. Raises as that does."""
    part = Part.of(version, volume)
    target = _with_room(Target(size, hidden_sectors, geometry), os.path.realpath(destination), partition)
    with planned(version, volume, part, target) as plan:
        return _of_layout(plan.layout, part.length_bytes)


def _with_room(target: Target, path: str, partition: int | None) -> Target:
    """The target with what the destination has, where that is not a file to be made."""
    if partition is None and not is_block_device(path):
        return target
    with closing(FileDevice(path)) as device:
        room = device.size_bytes if partition is None else find_partition(device, partition).length_bytes
        return replace(target, room_bytes=room, begins_at=begins_at(device, partition))


def _of_layout(layout: Layout, captured_bytes: int) -> Explanation:
    volumes = tuple(
        ExplainedVolume(
            volume.number,
            volume.facts.file_system,
            volume.offset_before,
            volume.length_before,
            volume.offset_bytes,
            volume.length_bytes,
            volume.moves.moved_bytes,
            len(volume.fixups),
        )
        for volume in layout.volumes
    )
    return Explanation(captured_bytes, layout.size_bytes, volumes, tuple(layout.fixups), layout.notes)
