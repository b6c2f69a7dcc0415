"""The 16-byte partition records of an MBR or extended boot record with other places, and the CHS fields in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sqlimage.errors import RefusedError
from sqlimage.fixup import Fixup
from sqlimage.media import layout
from sqlimage.media.geometry import CHS_SATURATED, Chs, Geometry
from sqlimage.media.rearrange_outside import differences

_USUAL_SHAPE = Geometry(1, 255, 63)


class Sectors(NamedTuple):
    """A stretch of the disk, in sectors from its start."""

    start: int
    size: int

    @property
    def last(self) -> int:
        return self.start + self.size - 1


class RawRecord(NamedTuple):
    """The fields of a record as they lie there."""

    boot_indicator: int
    starting_chs: bytes
    os_type: int
    ending_chs: bytes
    starting_lba: int
    size_in_lba: int

    @classmethod
    def of(cls, sector: bytes, index: int) -> RawRecord:
        return cls(*layout.MBR_PARTITION_RECORD.unpack_from(sector, record_offset(index)))

    def chs_of(self, place: Sectors) -> Iterator[tuple[int, Chs]]:
        """What the CHS fields say of a place that they describe."""
        yield place.start, Chs.from_bytes(self.starting_chs)
        yield place.last, Chs.from_bytes(self.ending_chs)

    def at(self, origin: int, place: Sectors, geometry: Geometry | None, what: str) -> RawRecord:
        """The record of another place, told from the sector ``origin`` on; without geometry CHS fields stay.

        Raises :class:`~sqlimage.errors.RefusedError` where its fields cannot hold that.
        """
        start = place.start - origin
        if max(start, place.size) > layout.MBR_LBA_MAXIMUM:
            raise RefusedError(
                f"{what} would start at sector {start} and have {place.size} sectors, "
                f"a partition record can tell of {layout.MBR_LBA_MAXIMUM}",
                hint="choose a smaller size",
            )
        moved = self._replace(starting_lba=start, size_in_lba=place.size)
        if geometry is None:
            return moved
        first, last = geometry.to_chs(place.start).to_bytes(), geometry.to_chs(place.last).to_bytes()
        return moved._replace(starting_chs=first, ending_chs=last)

    def fixup(self, sector: bytes, index: int, place: int, reason: str) -> Iterator[Fixup]:
        """What makes this the record with that index of a sector that lies at the byte ``place``."""
        at = record_offset(index)
        new = layout.MBR_PARTITION_RECORD.pack(*self)
        yield from differences(sector[at : at + len(new)], new, place + at, reason)


def record_offset(index: int) -> int:
    """Of one of the four records, in its sector."""
    return layout.MBR_PARTITION_RECORD_OFFSET + index * layout.MBR_PARTITION_RECORD.size


def derive_geometry(told: Iterable[tuple[int, Chs]]) -> Geometry:
    """The shape that sector numbers and the CHS fields beside them agree on; 255 heads of 63 sectors where they agree
    on that, on several or on none."""
    points = [(lba, chs) for lba, chs in told if chs.sector and chs.cylinder < CHS_SATURATED.cylinder]
    for sectors in range(_USUAL_SHAPE.sectors_per_track, 0, -1):
        if any(s > sectors or (lba - s + 1) % sectors for lba, (_, _, s) in points):
            continue
        whole = [((lba - s + 1) // sectors, c, h) for lba, (c, h, s) in points]
        for tracks in range(_USUAL_SHAPE.tracks_per_cylinder, 0, -1):
            if all(h < tracks and c * tracks + h == track for track, c, h in whole):
                return Geometry(1, tracks, sectors)
    return _USUAL_SHAPE
