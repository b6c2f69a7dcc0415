"""Master boot records (UEFI 2.10 section 5.2.1) and the chain of extended boot records that holds logical partitions.

An extended boot record (EBR) is laid out as an MBR. A logical partition's StartingLBA counts from the EBR it stands
in, the link to the next EBR from the start of the outermost extended partition::

    disk      |MBR|  primary 1  |        extended (number 2)                    |
                                |EBR|  logical 5  |EBR|  logical 6  |
    entry 0 of the 2nd EBR                        +---> counts from here
    entry 1 of the 1st EBR      +-----------------> counts from here
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.media import layout
from sqlimage.media.table import Partition, PartitionTable, check_disjoint


@dataclass(frozen=True, slots=True)
class Record:
    """One 16-byte partition record; both places in sectors."""

    boot_indicator: int
    os_type: int
    starting_lba: int
    size_in_lba: int

    @property
    def is_extended(self) -> bool:
        return self.os_type in layout.OS_TYPES_EXTENDED


def has_signature(sector: bytes) -> bool:
    """Whether 512 bytes end in 55 AA, as MBR, EBR and most boot sectors do."""
    return sector[layout.MBR_SIGNATURE_OFFSET :][:2] == layout.MBR_SIGNATURE


def parse_records(sector: bytes) -> tuple[Record, ...]:
    """The four records of an MBR or EBR, whatever they hold."""
    records = []
    for index in range(layout.MBR_PARTITION_RECORDS):
        at = layout.MBR_PARTITION_RECORD_OFFSET + index * layout.MBR_PARTITION_RECORD.size
        boot, _, os_type, _, start, size = layout.MBR_PARTITION_RECORD.unpack_from(sector, at)
        records.append(Record(boot, os_type, start, size))
    return tuple(records)


def read_mbr(device: BlockDevice, sector: bytes) -> PartitionTable | None:
    """The partitions of a disk that starts with ``sector`` (512 bytes), in units of the device's sectors.

    None where the records are no partition table: a BootIndicator other than 0x00 and 0x80, or nothing in use.
    Raises :class:`~sqlimage.errors.InconsistentVolume` where partitions overlap or leave the disk, or where the chain
    of extended boot records loops.
    """
    records = parse_records(sector)
    if any(record.boot_indicator not in layout.MBR_BOOT_INDICATORS for record in records):
        return None
    return _Reader(device, sector).table(records)


class _Reader:
    """One reading of one disk: what was gathered so far."""

    def __init__(self, device: BlockDevice, sector: bytes) -> None:
        self._device = device
        self._bytes_per_sector = device.bytes_per_sector
        self._total_sectors = device.size_bytes // self._bytes_per_sector
        self._serial = int.from_bytes(sector[layout.MBR_UNIQUE_DISK_SIGNATURE_OFFSET :][:4], "little")
        self._partitions: list[Partition] = []
        self._problems: list[str] = []
        self._logical_numbers = count(layout.MBR_PARTITION_RECORDS + 1)

    def table(self, records: tuple[Record, ...]) -> PartitionTable | None:
        containers = []
        for number, record in enumerate(records, 1):
            if record.size_in_lba == 0:
                continue
            if record.starting_lba == 0:
                # hybrid ISO images describe the whole medium this way, over the real partitions
                self._problems.append(f"partition {number} would cover the partition table itself and is left out")
                continue
            partition = self._partition(number, 0, record, table_lba=0)
            if record.is_extended:
                containers.append(partition)
            else:
                self._partitions.append(partition)
        check_disjoint("MBR PartitionRecord", [*self._partitions, *containers], 0)
        for container in containers:
            self._add_logicals(container)
        if not self._partitions and not containers:
            return None
        return PartitionTable(
            scheme="mbr",
            bytes_per_sector=self._bytes_per_sector,
            disk_id=f"{self._serial:08x}" if self._serial else None,
            partitions=check_disjoint("MBR PartitionRecord", self._partitions, 0),
            problems=tuple(self._problems),
        )

    def _partition(self, number: int, origin_lba: int, record: Record, table_lba: int) -> Partition:
        start = origin_lba + record.starting_lba
        if start + record.size_in_lba > self._total_sectors:
            raise InconsistentVolume(
                "MBR PartitionRecord",
                f"partition {number} reaches from sector {start} to {start + record.size_in_lba}, "
                f"the disk has {self._total_sectors} sectors of {self._bytes_per_sector} bytes",
                offset_bytes=table_lba * self._bytes_per_sector + layout.MBR_PARTITION_RECORD_OFFSET,
            )
        return Partition(
            number=number,
            offset_bytes=start * self._bytes_per_sector,
            length_bytes=record.size_in_lba * self._bytes_per_sector,
            type=f"0x{record.os_type:02x}",
            name="",
            uuid=f"{self._serial:08x}-{number:02x}" if self._serial else None,
            bootable=record.boot_indicator == 0x80,
        )

    def _add_logicals(self, container: Partition) -> None:
        first_lba = container.offset_bytes // self._bytes_per_sector
        for lba, sector in walk_chain(self._device, container.number, first_lba):
            if not has_signature(sector):
                # Linux ends the chain here too; an extended partition that never held a logical one looks like this
                if any(sector):
                    self._problems.append(
                        f"the extended boot record at byte {lba * self._bytes_per_sector} has no signature 55 AA"
                    )
                return
            for record in records_of_ebr(sector):
                if record.size_in_lba == 0 or record.is_extended:
                    continue
                number = next(self._logical_numbers)
                logical = self._partition(number, lba, record, table_lba=lba)
                if record.starting_lba == 0:
                    raise InconsistentVolume(
                        "extended boot record",
                        f"partition {number} would cover the record that describes it",
                        offset_bytes=lba * self._bytes_per_sector,
                    )
                if logical.offset_bytes < container.offset_bytes or logical.end_bytes > container.end_bytes:
                    self._problems.append(
                        f"partition {number} reaches beyond extended partition {container.number} that should hold it"
                    )
                self._partitions.append(logical)


def records_of_ebr(sector: bytes) -> tuple[Record, ...]:
    """The two records that have a meaning there; what lies in the others is left over from earlier."""
    return parse_records(sector)[:2]


def link_of_ebr(sector: bytes) -> int | None:
    """Which of the records leads to the next extended boot record; None in the last one."""
    records = enumerate(records_of_ebr(sector))
    return next((index for index, record in records if record.is_extended and record.size_in_lba), None)


def walk_chain(device: BlockDevice, number: int, first_lba: int) -> Iterator[tuple[int, bytes]]:
    """Every place that the chain of an extended partition leads to: its LBA and its first 512 bytes. The last may have
    no signature, and is no extended boot record then. ``number`` is the extended partition's.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where the chain loops, is too long or leaves the disk.
    """
    total_sectors = device.size_bytes // device.bytes_per_sector
    lba = first_lba
    seen: set[int] = set()
    while True:
        offset_bytes = lba * device.bytes_per_sector
        if lba in seen or len(seen) == layout.EBR_MAXIMUM:
            raise InconsistentVolume(
                "extended boot record",
                f"the chain of extended partition {number} comes back to itself"
                if lba in seen
                else f"the chain of extended partition {number} is longer than {layout.EBR_MAXIMUM}",
                offset_bytes=offset_bytes,
            )
        seen.add(lba)
        if lba >= total_sectors:
            raise InconsistentVolume(
                "extended boot record",
                f"a link leads to sector {lba}, the disk has {total_sectors}",
                offset_bytes=offset_bytes,
            )
        sector = device.read(offset_bytes, layout.MBR_BYTES)
        yield lba, sector
        link = link_of_ebr(sector) if has_signature(sector) else None
        if link is None:
            return
        lba = first_lba + records_of_ebr(sector)[link].starting_lba
