"""A GUID partition table rewritten for another disk: both headers, both entry arrays (UEFI 2.10 section 5.3), and the
MBR before them. Whatever was missing or damaged is written anew from what was not::

    LBA  0     1                                               last - n      last
        |MBR|primary|primary entries|  usable, partitions  |backup entries|backup|
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume, RefusedError
from sqlimage.extent import Runs
from sqlimage.fixup import Fixup
from sqlimage.media import layout
from sqlimage.media.geometry import Geometry
from sqlimage.media.gpt import find_gpt, read_entries, read_header
from sqlimage.media.mbr import parse_records
from sqlimage.media.rearrange_outside import Arrangement, differences
from sqlimage.media.rearrange_protective import ProtectiveMbr
from sqlimage.media.rearrange_records import Sectors
from sqlimage.media.table import PartitionTable
from sqlimage.moves import Moves

_ENTRY_LBAS = struct.Struct("<QQ")
_ENTRY_LBAS_OFFSET = 32
"""StartingLBA and EndingLBA of an entry."""


class _Place(NamedTuple):
    """Where a header and its entry array lie, in LBAs."""

    header: int
    array: int


class GptScheme:
    """See :class:`~sqlimage.media.rearrange._Scheme`. Raises :class:`~sqlimage.errors.RefusedError` for a table whose
    parts do not lie as they should."""

    anchors: tuple[tuple[int, int], ...] = ()
    immovable: frozenset[int] = frozenset()

    def __init__(self, device: BlockDevice, table: PartitionTable) -> None:
        self._device, self._table = device, table
        self._mbr = device.read(0, layout.MBR_BYTES)
        found = find_gpt(device, parse_records(self._mbr))
        self._header, self._entries = found.header, found.entries
        self._unit = unit = table.bytes_per_sector
        self._array_sectors = -(-len(self._entries) // unit)
        self._last_lba = device.size_bytes // unit - 1
        self._primary = _Place(layout.GPT_PRIMARY_LBA, self._primary_array_lba())
        self._refuse_odd_places()
        self._backup = self._sound_backup()
        self.carried = Runs.of([(0, layout.MBR_BYTES), *self._extents(self._primary)])
        end = self.end_within(device.size_bytes)
        at_the_end = Runs.of([(end, device.size_bytes - end)])
        claimed = Runs.of(self._extents(self._backup) if self._backup else ()).widen(unit)
        self.own = claimed.union(at_the_end).subtract(self.carried)
        self.least_end = (self._header.first_usable_lba + 1) * unit

    def end_within(self, size_bytes: int) -> int:
        return max(size_bytes // self._unit - 1 - self._array_sectors, 0) * self._unit

    def disk_for(self, end: int) -> int:
        return end + (self._array_sectors + 1) * self._unit

    def _primary_array_lba(self) -> int:
        """Where the primary's entries lie, or belong if it is damaged."""
        usual = layout.GPT_PRIMARY_LBA + 1
        if self._header.my_lba == layout.GPT_PRIMARY_LBA:
            return self._header.partition_entry_lba
        fields = layout.GPT_HEADER.unpack(
            self._device.read(layout.GPT_PRIMARY_LBA * self._unit, layout.GPT_HEADER.size)
        )
        told = fields[10] if fields[0] == layout.GPT_SIGNATURE else usual
        likely = [lba for lba in dict.fromkeys((told, usual)) if usual <= lba <= self._latest_array_lba()]
        for lba in likely:
            if self._device.read(lba * self._unit, len(self._entries)) == self._entries:
                return lba
        if likely and likely[0] != usual:
            raise RefusedError(
                f"the primary GPT is damaged, and whether its entries belong in LBA {told} or {usual} cannot be told",
                hint="repair it with a partitioning program first",
            )
        return usual

    def _latest_array_lba(self) -> int:
        return self._header.first_usable_lba - self._array_sectors

    def _refuse_odd_places(self) -> None:
        first, last, array = self._header.first_usable_lba, self._header.last_usable_lba, self._primary.array
        if array > self._latest_array_lba():
            raise RefusedError(
                f"the entries of the primary GPT would take LBA {array} to {array + self._array_sectors - 1}, "
                f"which are not before FirstUsableLBA {first}",
                hint="repair it with a partitioning program first",
            )
        for partition in self._table.partitions:
            begin, end = partition.offset_bytes // self._unit, partition.end_bytes // self._unit - 1
            if begin < first or end > last:
                raise RefusedError(
                    f"partition {partition.number} (LBA {begin} to {end}) leaves the usable LBAs {first} to {last}",
                    hint="repair the table with a partitioning program first",
                )

    def _sound_backup(self) -> _Place | None:
        """Where the backup lies, if it is good for anything."""
        header = self._header
        try:
            if header.my_lba == layout.GPT_PRIMARY_LBA:
                header = read_header(self._device, self._unit, header.alternate_lba)
                read_entries(self._device, header)
        except InconsistentVolume:
            return None
        is_like = (header.number_of_partition_entries, header.size_of_partition_entry) == (
            self._header.number_of_partition_entries,
            self._header.size_of_partition_entry,
        )
        array = header.partition_entry_lba
        if not is_like or not self._header.last_usable_lba < array <= header.my_lba - self._array_sectors:
            return None
        return _Place(header.my_lba, array)

    def _extents(self, place: _Place) -> list[tuple[int, int]]:
        """A header's sector and its entries, in bytes."""
        return [(place.header * self._unit, self._unit), (place.array * self._unit, len(self._entries))]

    def rewrite(
        self, arrangement: Arrangement, size_bytes: int, geometry: Geometry | None
    ) -> tuple[Moves, list[Fixup]]:
        last_lba = size_bytes // self._unit - 1
        backup = _Place(last_lba, last_lba - self._array_sectors)
        last_usable = backup.array - 1
        is_at_its_end = self._backup is not None and self._backup.header == self._last_lba == last_lba
        if self._backup and is_at_its_end:
            backup, last_usable = self._backup, self._header.last_usable_lba
        entries = self._new_entries(arrangement)
        fixups = [*self._protective(arrangement, last_lba, geometry, renewed=not is_at_its_end)]
        for name, old, new, other in (
            ("primary", self._primary, self._primary, backup),
            ("backup", self._backup, backup, self._primary),
        ):
            header = self._new_header(new, other, last_usable, entries)
            fixups += self._copy_fixups(name, old, new, header, entries)
        rows = zip(self._extents(self._backup), self._extents(backup), strict=True) if self._backup else ()
        moved = (Moves.of_runs(Runs.of([old]), new - old[0]) for old, (new, _) in rows)
        return Moves.joined(moved), fixups

    def _new_entries(self, arrangement: Arrangement) -> bytes:
        entries = bytearray(self._entries)
        for partition in self._table.partitions:
            start, length = arrangement.place_of(partition.offset_bytes)
            at = (partition.number - 1) * self._header.size_of_partition_entry + _ENTRY_LBAS_OFFSET
            _ENTRY_LBAS.pack_into(entries, at, start // self._unit, (start + length) // self._unit - 1)
        return bytes(entries)

    def _new_header(self, own: _Place, other: _Place, last_usable: int, entries: bytes) -> bytes:
        """The sector of a header, with all that is not about places as the sound one has it."""
        sector = bytearray(self._device.read(self._header.my_lba * self._unit, self._unit))
        fields = list(layout.GPT_HEADER.unpack_from(sector))
        header_size = fields[2]
        fields[3] = 0
        fields[5], fields[6], fields[8], fields[10] = own.header, other.header, last_usable, own.array
        fields[13] = zlib.crc32(entries)
        layout.GPT_HEADER.pack_into(sector, 0, *fields)
        struct.pack_into("<I", sector, layout.GPT_HEADER_CRC32_OFFSET, zlib.crc32(sector[:header_size]))
        return bytes(sector)

    def _copy_fixups(
        self, name: str, old: _Place | None, new: _Place, header: bytes, entries: bytes
    ) -> Iterator[Fixup]:
        """What differs between a copy as it was (None: there was none) and as it must be."""
        before = [self._device.read(*extent) for extent in self._extents(old)] if old else [bytes(len(header))]
        yield from differences(before[0], header, new.header * self._unit, f"{name} GPT header")
        size, array = self._header.size_of_partition_entry, before[1] if old else bytes(len(entries))
        for at in range(0, len(entries), size):
            reason = f"{name} GPT: entry of partition {at // size + 1}"
            place = new.array * self._unit + at
            yield from differences(array[at : at + size], entries[at : at + size], place, reason)

    def _protective(
        self, arrangement: Arrangement, last_lba: int, geometry: Geometry | None, *, renewed: bool
    ) -> Iterator[Fixup]:
        places = {}
        for partition in self._table.partitions:
            start, length = arrangement.place_of(partition.offset_bytes)
            old = Sectors(partition.offset_bytes // self._unit, partition.length_bytes // self._unit)
            places[old] = Sectors(start // self._unit, length // self._unit)
        mbr = ProtectiveMbr(self._mbr, places, geometry)
        return mbr.fixups(self._last_lba, last_lba, renewed=renewed)
