"""The extended partitions of a disk as they are, with everything refused that a rewritten table would make worse."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count

from sqlimage.device import BlockDevice
from sqlimage.errors import RefusedError
from sqlimage.media import layout
from sqlimage.media.mbr import has_signature, link_of_ebr, parse_records, records_of_ebr, walk_chain
from sqlimage.media.table import Partition, PartitionTable

_REPAIR = "repair the table with a partitioning program first"


@dataclass(frozen=True, slots=True)
class Ebr:
    """An extended boot record, or a sector of zeros where one could be. ``link`` is the index of the record that leads
    to the next one."""

    lba: int
    sector: bytes
    """Its first 512 bytes."""
    link: int | None
    logicals: tuple[tuple[int, Partition], ...]
    """Index of the record, and the partition."""


@dataclass(frozen=True, slots=True)
class Container:
    """An extended partition, in sectors of the disk, and its chain, in which there is at least one place."""

    number: int
    start: int
    end: int
    chain: tuple[Ebr, ...]

    def logicals(self) -> Iterator[Partition]:
        for ebr in self.chain:
            for _, partition in ebr.logicals:
                yield partition


def read_containers(device: BlockDevice, table: PartitionTable) -> tuple[Container, ...]:
    """The extended partitions of a disk with that table.

    Raises :class:`~sqlimage.errors.RefusedError` where the table tells of a part of the disk that it cannot be told
    about safely: records over the table itself, a chain that may have been cut, records and partitions that do not
    lie where they should.
    """
    by_number = {partition.number: partition for partition in table.partitions}
    numbers = count(layout.MBR_PARTITION_RECORDS + 1)
    containers = []
    for number, record in enumerate(parse_records(device.read(0, layout.MBR_BYTES)), 1):
        if record.size_in_lba and record.starting_lba == 0:
            raise RefusedError(
                f"partition {number} would cover the partition table itself, as on hybrid ISO 9660 images",
                hint="restore it as it is",
            )
        if record.size_in_lba and record.is_extended:
            chain = tuple(_read_chain(device, number, record.starting_lba, by_number, numbers))
            end = record.starting_lba + record.size_in_lba
            containers.append(Container(number, record.starting_lba, end, chain))
    _refuse_odd_places(containers, table)
    return tuple(containers)


def lone_ebrs(containers: tuple[Container, ...], bytes_per_sector: int) -> Iterator[int]:
    """Of each extended partition the last EBR, if no logical lies behind it."""
    for container in containers:
        last = max(ebr.lba for ebr in container.chain)
        if all(partition.offset_bytes < last * bytes_per_sector for partition in container.logicals()):
            yield last


def _read_chain(
    device: BlockDevice, number: int, first_lba: int, by_number: Mapping[int, Partition], numbers: Iterator[int]
) -> Iterator[Ebr]:
    for lba, sector in walk_chain(device, number, first_lba):
        if not has_signature(sector):
            if any(sector):
                raise RefusedError(
                    f"the extended boot record in sector {lba} has no signature 55 AA: "
                    "partitions may lie behind it that the table does not tell of",
                    hint=_REPAIR,
                )
            yield Ebr(lba, sector, None, ())
            return
        logicals = tuple(
            (index, by_number[next(numbers)])
            for index, record in enumerate(records_of_ebr(sector))
            if record.size_in_lba and not record.is_extended
        )
        yield Ebr(lba, sector, link_of_ebr(sector), logicals)


def _refuse_odd_places(containers: list[Container], table: PartitionTable) -> None:
    unit, seen = table.bytes_per_sector, set()
    for container in containers:
        for ebr in container.chain:
            where = f"the extended boot record in sector {ebr.lba}"
            if not container.start <= ebr.lba < container.end:
                raise RefusedError(f"{where} lies outside extended partition {container.number}", hint=_REPAIR)
            if ebr.lba in seen:
                raise RefusedError(f"{where} belongs to two extended partitions", hint=_REPAIR)
            seen.add(ebr.lba)
            before = bisect_right(table.partitions, ebr.lba * unit, key=lambda partition: partition.offset_bytes)
            if before and ebr.lba * unit < table.partitions[before - 1].end_bytes:
                number = table.partitions[before - 1].number
                raise RefusedError(f"{where} lies inside partition {number}", hint=_REPAIR)
        for partition in container.logicals():
            if partition.end_bytes > container.end * unit:
                raise RefusedError(
                    f"partition {partition.number} reaches beyond extended partition {container.number}", hint=_REPAIR
                )
