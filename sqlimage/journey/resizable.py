"""A volume whose file system can be brought to another size or another place on a disk, whichever way."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sqlimage.device import BlockDevice
from sqlimage.filesystem.contract import FileSystem, Scan
from sqlimage.filesystem.probe import look_at, pool_beside
from sqlimage.filesystem.relocation import Relocatable, Wish
from sqlimage.journey import ext_resize
from sqlimage.journey.relaid import RelaidVolume
from sqlimage.media.geometry import Geometry

Size = int | Literal["minimum", "maximum"]


@dataclass(frozen=True, slots=True)
class Target:
    """What the destination asks for. None: as it was captured."""

    size: Size | None = None
    hidden_sectors: int | None = None
    geometry: Geometry | None = None
    room_bytes: int | None = None
    """What the destination has; None for a file, which becomes as large as it has to."""
    begins_at: int | None = None
    """Before how many sectors of its disk the destination begins, where that is known: what boot code adds to all that
    it reads, so that a volume that was elsewhere would not boot there."""

    @property
    def is_as_captured(self) -> bool:
        return self.size is None and self.hidden_sectors is None and self.geometry is None


WITH_HIDDEN_SECTORS = ("fat12", "fat16", "fat32", "ntfs")
"""File systems whose boot sector says where on the disk the volume begins."""


class Resizable:
    """One volume. FAT and NTFS are laid out anew by their own readers, ext by e2fsprogs on a clone of its control
    information."""

    def __init__(self, device: BlockDevice, file_system: FileSystem) -> None:
        self._device = device
        self.file_system = file_system

    @classmethod
    def of(cls, device: BlockDevice, file_system: FileSystem | None) -> Resizable | None:
        """None where there is no way, as beside a pool: what the file system calls free may be the pool's."""
        if file_system is None or pool_beside(device) is not None:
            return None
        is_ext = file_system.facts.file_system in ("ext2", "ext3", "ext4")
        return cls(device, file_system) if is_ext or isinstance(file_system, Relocatable) else None

    @cached_property
    def scan(self) -> Scan:
        return self.file_system.scan()

    @cached_property
    def smallest_bytes(self) -> int:
        """The smallest size it can be brought to. Raises :class:`~sqlimage.errors.RefusedError` where that cannot be
        done safely at all."""
        if isinstance(self.file_system, Relocatable):
            return self.file_system.smallest_bytes(self.scan)
        return ext_resize.smallest_bytes(self._device, scan=self.scan)

    def on(self, place: RelaidVolume, target: Target, open_files: ExitStack) -> RelaidVolume:
        """The volume laid out for a place; ``open_files`` takes what has to be closed in the end.

        Raises :class:`~sqlimage.errors.RefusedError` where that cannot be done safely.
        """
        is_other_size = place.length_bytes != place.length_before
        if not isinstance(self.file_system, Relocatable):
            resized = open_files.enter_context(ext_resize.resized(self._device, place.length_bytes, scan=self.scan))
            return dataclasses.replace(place, resized=resized, notes=resized.notes)
        geometry = target.geometry
        wish = Wish(
            size_bytes=place.length_bytes if is_other_size else None,
            hidden_sectors=target.hidden_sectors,
            sectors_per_track=geometry.sectors_per_track if geometry else None,
            tracks_per_cylinder=geometry.tracks_per_cylinder if geometry else None,
        )
        relocation = self.file_system.relocate(self.scan, wish)
        known = self.file_system.facts.notes
        notes = tuple(note for note in relocation.facts.notes if note not in known)
        return dataclasses.replace(place, relocation=relocation, notes=notes)


def what_it_is(device: BlockDevice) -> str:
    """What lies on a volume, for a sentence."""
    file_system, recognised = look_at(device)
    if file_system is not None:
        pool, name = pool_beside(device), file_system.facts.file_system
        return name if pool is None else f"{name}, with {pool.facts.file_system} beside it,"
    return recognised.facts.file_system if recognised is not None else "what no reader knows"
