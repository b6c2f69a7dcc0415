"""A master boot record, and the chain of extended boot records (EBRs), rewritten for another disk.

Each EBR stays as far before the partition that follows it as it was. An extended partition reaches from its first EBR
over its last logical, and as far behind that as it did if there is room. The last EBR of one that ends without a
logical is a block of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlimage.device import BlockDevice
from sqlimage.extent import Runs
from sqlimage.fixup import Fixup
from sqlimage.media import layout
from sqlimage.media.geometry import Chs, Geometry
from sqlimage.media.mbr import parse_records
from sqlimage.media.rearrange_chain import Container, Ebr, lone_ebrs, read_containers
from sqlimage.media.rearrange_outside import Arrangement
from sqlimage.media.rearrange_records import RawRecord, Sectors, derive_geometry
from sqlimage.media.table import Partition, PartitionTable
from sqlimage.moves import Moves

_TYPES_WITH_PLACES = ("0x63", "0x81", "0xa5", "0xa6", "0xa9")
"""UnixWare, Minix, FreeBSD, OpenBSD, NetBSD: the label inside may count sectors from the start of the disk."""


class MbrScheme:
    """See :class:`~sqlimage.media.rearrange._Scheme`. Raises :class:`~sqlimage.errors.RefusedError` as
    :func:`~sqlimage.media.rearrange_chain.read_containers` does."""

    own = Runs.empty()

    def __init__(self, device: BlockDevice, table: PartitionTable) -> None:
        self._unit = unit = table.bytes_per_sector
        self._table, self._size_bytes = table, device.size_bytes
        self._sector = device.read(0, layout.MBR_BYTES)
        self._containers = read_containers(device, table)
        ebrs = [ebr.lba * unit for container in self._containers for ebr in container.chain]
        self.carried = Runs.of([(0, layout.MBR_BYTES), *((place, unit) for place in ebrs)])
        self.anchors = tuple((lba * unit, unit) for lba in lone_ebrs(self._containers, unit))
        placed = (partition for partition in table.partitions if partition.type in _TYPES_WITH_PLACES)
        self.immovable = frozenset(partition.number for partition in placed)
        self.least_end = unit

    def end_within(self, size_bytes: int) -> int:
        return size_bytes // self._unit * self._unit

    def disk_for(self, end: int) -> int:
        return end

    def rewrite(
        self, arrangement: Arrangement, size_bytes: int, geometry: Geometry | None
    ) -> tuple[Moves, list[Fixup]]:
        fixups: list[Fixup] = []
        if geometry is not None or size_bytes != self._size_bytes:
            changes = [*self._changes(_Lbas(arrangement, self._unit))]
            shape = geometry or derive_geometry(point for change in changes for point in change.chs())
            for change in changes:
                fixups += change.fixups(shape if geometry or change.old != change.new else None, self._unit)
        return Moves.of_runs(Runs.empty()), fixups

    def _changes(self, lbas: _Lbas) -> Iterator[_Change]:
        """Every record in use, on the old disk and on the new one."""
        numbered = {partition.number: partition for partition in self._table.partitions}
        for number, record in enumerate(parse_records(self._sector), 1):
            if record.size_in_lba and not record.is_extended:
                place = lbas.of_partition(numbered[number])
                yield _Change(self._sector, number - 1, 0, 0, *place, f"MBR: record of partition {number}")
        for container in self._containers:
            others = [other.start for other in self._containers if other.start > container.start]
            old, new = lbas.of_container(container, others)
            what = f"MBR: record of extended partition {container.number}"
            yield _Change(self._sector, container.number - 1, 0, 0, old, new, what)
            for ebr, following in zip(container.chain, (*container.chain[1:], None), strict=True):
                lba = lbas.of(ebr.lba)
                for index, partition in ebr.logicals:
                    what = f"extended boot record of partition {partition.number}"
                    yield _Change(ebr.sector, index, lba, lba, *lbas.of_partition(partition), what)
                if ebr.link is not None and following is not None:
                    size = RawRecord.of(ebr.sector, ebr.link).size_in_lba
                    place = lbas.of_link(following, size, new.last + 1)
                    what = f"extended boot record: link to the one in sector {place[1].start}"
                    yield _Change(ebr.sector, ebr.link, lba, new.start, *place, what)


@dataclass(frozen=True, slots=True)
class _Change:
    """One record of one sector. ``lba`` and ``origin``, which its StartingLBA counts from, are of the new disk."""

    sector: bytes
    index: int
    lba: int
    origin: int
    old: Sectors
    new: Sectors
    what: str

    def chs(self) -> Iterator[tuple[int, Chs]]:
        """The sectors of the old disk that its CHS fields tell of, and what they tell."""
        return RawRecord.of(self.sector, self.index).chs_of(self.old)

    def fixups(self, geometry: Geometry | None, bytes_per_sector: int) -> Iterator[Fixup]:
        record = RawRecord.of(self.sector, self.index).at(self.origin, self.new, geometry, self.what)
        return record.fixup(self.sector, self.index, self.lba * bytes_per_sector, self.what)


@dataclass(frozen=True, slots=True)
class _Lbas:
    """Old and new places in sectors."""

    arrangement: Arrangement
    unit: int

    def of(self, lba: int) -> int:
        """The new place of a sector outside the partitions."""
        return self.arrangement.new_place(lba * self.unit) // self.unit

    def of_partition(self, partition: Partition) -> tuple[Sectors, Sectors]:
        start, length = self.arrangement.place_of(partition.offset_bytes)
        old = Sectors(partition.offset_bytes // self.unit, partition.length_bytes // self.unit)
        return old, Sectors(start // self.unit, length // self.unit)

    def of_container(self, container: Container, others: list[int]) -> tuple[Sectors, Sectors]:
        """``others``: where the extended partitions behind it started."""
        blocks, places = self.arrangement.blocks, self.arrangement.places
        behind = next(
            (index for index, block in enumerate(blocks) if block.start >= container.end * self.unit), len(blocks)
        )
        old_reach, new_reach = blocks[behind - 1].end // self.unit, sum(places[behind - 1]) // self.unit
        limits = [self.arrangement.end, *(start for start, _ in places[behind : behind + 1])]
        limit = min([*(limit // self.unit for limit in limits), *map(self.of, others)])
        start, end = self.of(container.start), min(new_reach + container.end - old_reach, limit)
        return Sectors(container.start, container.end - container.start), Sectors(start, end - start)

    def of_link(self, ebr: Ebr, size: int, limit: int) -> tuple[Sectors, Sectors]:
        """A link covers the EBR that it leads to, what that describes, and as much behind it as it did."""
        start, old_reach, new_reach = self.of(ebr.lba), ebr.lba + 1, self.of(ebr.lba) + 1
        for _, partition in ebr.logicals:
            old, new = self.of_partition(partition)
            old_reach, new_reach = max(old_reach, old.last + 1), max(new_reach, new.last + 1)
        more = max(ebr.lba + size - old_reach, 0)
        return Sectors(ebr.lba, size), Sectors(start, max(min(new_reach + more, limit), new_reach) - start)
