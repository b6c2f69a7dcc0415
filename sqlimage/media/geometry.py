"""Disk geometry: cylinders, tracks (heads) and sectors, as MBR records and FAT and NTFS boot sectors still state it.

Counting: cylinders and tracks from 0, sectors of a track from 1 (UEFI 2.10 section 5.2.1, INT 13h).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from sqlimage.errors import UsageError
from sqlimage.units import SECTOR_BYTES

_TEXT = re.compile(r"(\d{1,18})/(\d{1,18})/(\d{1,18})")
_MAXIMUM_CYLINDER, _MAXIMUM_TRACK, _MAXIMUM_SECTOR = 1023, 254, 63


class Chs(NamedTuple):
    """The place of a sector by geometry."""

    cylinder: int
    track: int
    sector: int
    """From 1."""

    def to_bytes(self) -> bytes:
        """The three bytes of a partition record."""
        return bytes((self.track, self.sector | self.cylinder >> 8 << 6, self.cylinder & 0xFF))

    @classmethod
    def from_bytes(cls, field: bytes) -> Chs:
        """From the three bytes of a partition record, whatever they hold."""
        return cls(field[2] | (field[1] & 0xC0) << 2, field[0], field[1] & 0x3F)


CHS_SATURATED = Chs(_MAXIMUM_CYLINDER, _MAXIMUM_TRACK, _MAXIMUM_SECTOR)
"""What stands in a partition record whose sector lies beyond what its three bytes can say."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """A disk's shape. Raises :class:`~sqlimage.errors.UsageError` for counts that no partition record can hold."""

    cylinders: int
    tracks_per_cylinder: int
    """Also called heads."""
    sectors_per_track: int
    bytes_per_sector: int = SECTOR_BYTES

    def __post_init__(self) -> None:
        for name, value, largest in (
            ("cylinders", self.cylinders, (1 << 63) - 1),
            ("tracks per cylinder", self.tracks_per_cylinder, _MAXIMUM_TRACK + 1),
            ("sectors per track", self.sectors_per_track, _MAXIMUM_SECTOR),
        ):
            if not 1 <= value <= largest:
                raise UsageError(f"{value} {name} are not possible, allowed are 1 to {largest}")
        if self.bytes_per_sector not in (512, 1024, 2048, 4096):
            raise UsageError(f"{self.bytes_per_sector} bytes per sector are not possible, allowed are 512 to 4096")

    @classmethod
    def for_size(
        cls,
        size_bytes: int,
        sectors_per_track: int = _MAXIMUM_SECTOR,
        tracks_per_cylinder: int = _MAXIMUM_TRACK + 1,
        bytes_per_sector: int = SECTOR_BYTES,
    ) -> Geometry:
        """The shape of a disk of ``size_bytes``. Cylinders are rounded up, so that every sector has a place; the
        last cylinder may be incomplete. An empty disk has one cylinder.

        Raises :class:`~sqlimage.errors.UsageError` as the constructor does, and for a negative size.
        """
        if size_bytes < 0:
            raise UsageError(f"a disk of {size_bytes} bytes is not possible")
        checked = cls(1, tracks_per_cylinder, sectors_per_track, bytes_per_sector)
        return cls(
            max(1, -(-size_bytes // checked.bytes_per_cylinder)),
            tracks_per_cylinder,
            sectors_per_track,
            bytes_per_sector,
        )

    @classmethod
    def parse(cls, text: str, bytes_per_sector: int = SECTOR_BYTES) -> Geometry:
        """From ``C/H/S``: cylinders, heads (tracks per cylinder), sectors per track, as ``1024/255/63``.

        Raises :class:`~sqlimage.errors.UsageError` for anything else.
        """
        match = _TEXT.fullmatch(text.strip())
        if not match:
            raise UsageError(f"{text!r} is not a geometry", hint="write cylinders/heads/sectors, as 1024/255/63")
        return cls(int(match[1]), int(match[2]), int(match[3]), bytes_per_sector)

    def __str__(self) -> str:
        return f"{self.cylinders}/{self.tracks_per_cylinder}/{self.sectors_per_track}"

    @property
    def bytes_per_cylinder(self) -> int:
        return self.tracks_per_cylinder * self.sectors_per_track * self.bytes_per_sector

    @property
    def size_bytes(self) -> int:
        """What all cylinders hold; at least the size the geometry was made for."""
        return self.cylinders * self.bytes_per_cylinder

    def to_chs(self, lba: int) -> Chs:
        """Where the sector with this number lies; ``CHS_SATURATED`` from cylinder 1,024 on, as partitioning
        programs write it.

        Raises :class:`~sqlimage.errors.UsageError` for a negative number.
        """
        if lba < 0:
            raise UsageError(f"sector {lba} is not possible")
        track, sector = divmod(lba, self.sectors_per_track)
        cylinder, track = divmod(track, self.tracks_per_cylinder)
        return CHS_SATURATED if cylinder > _MAXIMUM_CYLINDER else Chs(cylinder, track, sector + 1)

    def to_lba(self, chs: Chs) -> int:
        """The number of the sector at a place; the inverse of :meth:`to_chs` where that does not saturate.

        Raises :class:`~sqlimage.errors.UsageError` for a place that this geometry does not have.
        """
        if not (
            0 <= chs.cylinder < self.cylinders
            and 0 <= chs.track < self.tracks_per_cylinder
            and 1 <= chs.sector <= self.sectors_per_track
        ):
            raise UsageError(f"{chs.cylinder}/{chs.track}/{chs.sector} lies outside a disk of geometry {self}")
        return (chs.cylinder * self.tracks_per_cylinder + chs.track) * self.sectors_per_track + chs.sector - 1
