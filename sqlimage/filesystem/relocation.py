"""A volume laid out anew: defragmented, smaller, larger, elsewhere on a disk. As data: what moves, and which bytes of
the control information have to change for the file system to be right afterwards. Nothing here writes.

Places are bytes from the start of the volume, as everywhere in this room; "old" is the volume as it is, "new" as it
will be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sqlimage.extent import Int64s, Runs
from sqlimage.filesystem.contract import FileSystem, Scan, VolumeFacts
from sqlimage.fixup import Fixup


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of the new layout. None: as it is."""

    defragment: bool = False
    """Every file in one run (one for each stretch of data, where it has holes), from the front, in directory order."""
    size_bytes: int | None = None
    """Of the volume: what its partition or device has room for. A file system may span a little less."""
    hidden_sectors: int | None = None
    sectors_per_track: int | None = None
    tracks_per_cylinder: int | None = None


@dataclass(frozen=True, slots=True)
class Relocation:
    """The whole of it. Fix-ups are disjoint, by place; bytes that are new (a grown bitmap or FAT) are fix-ups whose
    original is zeros, over places that ``moved_to`` does not name."""

    facts: VolumeFacts
    """Of the new volume."""
    moved_from: Int64s
    moved_to: Int64s
    moved_length: Int64s
    """Every allocated byte of the old volume that is kept, moved or not: old place, new place, length. Sorted by new
    place, disjoint in both. What of the new volume is neither named here nor a fix-up is free, and zeros."""
    fixups: tuple[Fixup, ...]
    allocated: Runs
    """Of the new volume, as :meth:`~sqlimage.filesystem.contract.FileSystem.allocated` would tell."""
    scan: Scan
    """Of the new volume: the same names and contents in the same rows, the records (FAT and exFAT: places of entries)
    and the runs as they will be."""


@runtime_checkable
class Relocatable(FileSystem, Protocol):
    """A file system that can be laid out anew."""

    def smallest_bytes(self, scan: Scan) -> int:
        """The smallest ``Wish.size_bytes`` that what is allocated can be brought into."""
        ...

    def relocate(self, scan: Scan, wish: Wish) -> Relocation:
        """The plan. ``scan`` is this volume's own.

        Raises :class:`~sqlimage.errors.RefusedError` where it cannot be done or would not be safe: too small (with what
        is needed and what there is), dirty, hibernated, a log that is not clean;
        :class:`~sqlimage.errors.InconsistentVolume` where the volume contradicts itself.
        """
        ...
