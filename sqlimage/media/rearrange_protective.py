"""The MBR before a GPT: its protective record covers the disk, and the records of a hybrid MBR follow the partitions
that they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sqlimage.errors import RefusedError
from sqlimage.fixup import Fixup
from sqlimage.media import layout
from sqlimage.media.geometry import CHS_SATURATED, Geometry
from sqlimage.media.rearrange_records import RawRecord, Sectors, derive_geometry

_CHS_BEYOND = b"\xff\xff\xff"
"""EndingCHS of a protective record whose last sector has no CHS address (UEFI 2.10 section 5.2.3)."""
_CHS_MARKS = (_CHS_BEYOND, CHS_SATURATED.to_bytes())


class ProtectiveMbr:
    """An MBR with a record of type 0xEE, and where the partitions of the GPT were and will be."""

    def __init__(self, sector: bytes, places: Mapping[Sectors, Sectors], geometry: Geometry | None) -> None:
        self._sector, self._places = sector, places
        self._records = [RawRecord.of(sector, index) for index in range(layout.MBR_PARTITION_RECORDS)]
        self._is_moved = any(old != new for old, new in places.items())
        self._is_reshaped = geometry is not None
        told = (
            point
            for record in self._records
            for point in record.chs_of(Sectors(record.starting_lba, record.size_in_lba))
            if record.size_in_lba and record.os_type not in (0, layout.OS_TYPE_GPT_PROTECTIVE)
        )
        self._geometry = geometry or derive_geometry(told)

    def fixups(self, old_last: int, new_last: int, *, renewed: bool) -> Iterator[Fixup]:
        """For a disk that ended in the LBA ``old_last`` and will in ``new_last``. ``renewed``: the protective record is
        written for the new disk, else it stays as it is.

        Raises :class:`~sqlimage.errors.RefusedError` where partitions move and a record stands for none of them.
        """
        for index, record in enumerate(self._records):
            if not record.size_in_lba or not record.os_type:
                continue
            new, what = record, f"MBR record {index + 1} (hybrid MBR)"
            is_cut = new_last < min(record.starting_lba + record.size_in_lba - 1, old_last)
            if record.os_type == layout.OS_TYPE_GPT_PROTECTIVE:
                what = f"MBR record {index + 1} (protective)"
                if self._reaches(record, old_last):
                    new = self._over_all(record, new_last) if renewed else record
                elif not self._lies_before_partitions(record):
                    self._refuse_if_moved(record, index, is_cut=is_cut)
            elif place := self._places.get(Sectors(record.starting_lba, record.size_in_lba)):
                if self._is_reshaped or place != (record.starting_lba, record.size_in_lba):
                    new = record.at(0, place, self._geometry, what)
            else:
                self._refuse_if_moved(record, index, is_cut=is_cut)
            yield from new.fixup(self._sector, index, 0, what)

    def _reaches(self, record: RawRecord, old_last: int) -> bool:
        """Whether it covers the whole disk, or the whole of a smaller one that the disk once was."""
        used = [other for other in self._records if other.size_in_lba and other.os_type]
        covers = record.starting_lba + record.size_in_lba > old_last
        return len(used) == 1 or (covers and record.starting_lba <= layout.GPT_PRIMARY_LBA)

    def _lies_before_partitions(self, record: RawRecord) -> bool:
        first = min((old.start for old in self._places), default=0)
        return record.starting_lba + record.size_in_lba <= first

    def _over_all(self, record: RawRecord, last: int) -> RawRecord:
        size = record.size_in_lba
        if size != layout.MBR_LBA_MAXIMUM:  # which is written for disks of any size, too
            size = min(last - record.starting_lba + 1, layout.MBR_LBA_MAXIMUM)
        end = record.ending_chs
        if end not in _CHS_MARKS:
            chs = self._geometry.to_chs(last)
            end = _CHS_BEYOND if chs == CHS_SATURATED else chs.to_bytes()
        return record._replace(size_in_lba=max(size, 1), ending_chs=end)

    def _refuse_if_moved(self, record: RawRecord, index: int, *, is_cut: bool) -> None:
        if self._is_moved or is_cut:
            raise RefusedError(
                f"record {index + 1} of the hybrid MBR (type 0x{record.os_type:02x}, sector {record.starting_lba}, "
                f"{record.size_in_lba} sectors) stands for no partition of the GPT, so it cannot follow one",
                hint="remove the record with a partitioning program first",
            )
