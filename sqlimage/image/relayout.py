"""A medium whose volumes are laid out anew before anything of it is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from sqlimage.errors import InconsistentVolume, RefusedError
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import FileSystem
from sqlimage.filesystem.relocation import Relocatable, Relocation, Wish
from sqlimage.fixup import Fixup
from sqlimage.image.medium import Medium, SourceVolume
from sqlimage.image.relocated import RelocatedDevice
from sqlimage.moves import Moves


def defragmented(file_system: FileSystem, found: SourceVolume) -> SourceVolume:
    """The volume with every file in one piece; as it is, and a note why, where that cannot be done safely."""
    assert found.facts is not None and found.scan is not None
    if not isinstance(file_system, Relocatable):
        return _noted(found, f"is not defragmented: {found.facts.file_system} cannot be, NTFS and FAT can")
    try:
        relocation = file_system.relocate(found.scan, Wish(defragment=True))
    except (RefusedError, InconsistentVolume) as refused:
        return _noted(found, f"is not defragmented: {refused.message}")
    tail = Runs.of([(found.facts.size_bytes, found.length_bytes - found.facts.size_bytes)])
    return dataclasses.replace(
        found,
        facts=relocation.facts,
        scan=relocation.scan,
        allocated=relocation.allocated.union(tail),
        left_out=moves_of(relocation).carry(found.left_out),
        relocation=relocation,
        scan_before=found.scan,
    )


def _noted(found: SourceVolume, note: str) -> SourceVolume:
    assert found.facts is not None
    return dataclasses.replace(found, facts=dataclasses.replace(found.facts, notes=(*found.facts.notes, note)))


def moves_of(relocation: Relocation) -> Moves:
    """What of the old volume comes to lie where."""
    return Moves.of(relocation.moved_from, relocation.moved_to, relocation.moved_length)


def laid_out(medium: Medium) -> Medium:
    """The medium as its volumes' relocations make it: its device reads what will be, and each volume without one, and
    what lies between them, as it is."""
    if all(volume.relocation is None for volume in medium.volumes):
        return medium
    parts = [Moves.of_runs(medium.gaps())]
    for volume in medium.volumes:
        kept = Runs.of([(0, volume.length_bytes)])
        if volume.relocation is not None:
            assert volume.facts is not None
            kept = kept.clip(volume.facts.size_bytes, volume.length_bytes)
            parts.append(moves_of(volume.relocation).shift(volume.offset_bytes, volume.offset_bytes))
        parts.append(Moves.of_runs(kept.shift(volume.offset_bytes)))
    device = RelocatedDevice(medium.device, medium.size_bytes, Moves.joined(parts), tuple(fixups_of(medium)))
    return dataclasses.replace(medium, device=device)


def fixups_of(medium: Medium) -> Iterator[Fixup]:
    """Those of all volumes, by their place on the medium."""
    for volume in medium.volumes:
        if volume.relocation is not None:
            for fixup in volume.relocation.fixups:
                yield fixup._replace(offset_bytes=fixup.offset_bytes + volume.offset_bytes)
