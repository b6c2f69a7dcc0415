"""GUID partition tables (UEFI 2.10 section 5.3): header and entry array, and their backups at the end of the disk."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.media import layout
from sqlimage.media.mbr import Record
from sqlimage.media.table import Partition, PartitionTable, check_disjoint
from sqlimage.units import power_of_two_in

_NO_GUID = bytes(16)


class _NoHeader(InconsistentVolume):
    """There is nothing that looks like a header, not even a damaged one."""


@dataclass(frozen=True, slots=True)
class GptHeader:
    """A GPT header that agrees with its checksum, its place and its disk; all LBAs in sectors."""

    bytes_per_sector: int
    my_lba: int
    alternate_lba: int
    first_usable_lba: int
    last_usable_lba: int
    disk_guid: bytes
    partition_entry_lba: int
    number_of_partition_entries: int
    size_of_partition_entry: int
    partition_entry_array_crc32: int


@dataclass(frozen=True, slots=True)
class FoundGpt:
    """The header that counts on a disk, primary or backup, its entry array, and what else was noticed."""

    header: GptHeader
    entries: bytes
    problems: list[str]


def read_gpt(device: BlockDevice, records: tuple[Record, ...], *, primary_only: bool = False) -> PartitionTable:
    """The partitions of a disk whose MBR records (all four, with one of type 0xEE) announce a GPT.

    The sector size is found by trying the device's own, 512 and 4,096: a disk of 4,096-byte sectors copied to a file
    is read in those. Where the primary header or its entries are damaged the backup is used and ``problems`` says so.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where neither can be used, or where the entries overlap or
    leave the disk. With ``primary_only`` the backup is not tried.
    """
    found = find_gpt(device, records, primary_only=primary_only)
    return _table(device, found.header, found.entries, found.problems)


def find_gpt(device: BlockDevice, records: tuple[Record, ...], *, primary_only: bool = False) -> FoundGpt:
    """As :func:`read_gpt`, without a look into the entries."""
    damage: list[InconsistentVolume] = []
    for bytes_per_sector, lba in _places(device, records, primary_only=primary_only):
        try:
            header = read_header(device, bytes_per_sector, lba)
            entries = read_entries(device, header)
        except InconsistentVolume as problem:
            damage.append(problem)
            continue
        problems = _hybrid(records)
        if lba == layout.GPT_PRIMARY_LBA:
            problems += _backup_problems(device, header)
        else:
            problems.append(f"the primary GPT is damaged ({_telling(damage)}), its backup in LBA {lba} was used")
        return FoundGpt(header, entries, problems)
    raise _telling(damage)


def _places(device: BlockDevice, records: tuple[Record, ...], *, primary_only: bool) -> Iterator[tuple[int, int]]:
    """Where a header may lie, as (bytes per sector, LBA), best first, each once."""
    sizes = list(dict.fromkeys((device.bytes_per_sector, 512, 4096)))
    yield from ((size, layout.GPT_PRIMARY_LBA) for size in sizes)
    if primary_only:
        return
    # a disk that was enlarged has its backup where it used to end, which the protective record tells
    protective = [r.starting_lba + r.size_in_lba - 1 for r in records if r.os_type == layout.OS_TYPE_GPT_PROTECTIVE]
    for size in sizes:
        last_lba = device.size_bytes // size - 1
        for lba in dict.fromkeys((last_lba, *protective, *_alternate(device, size))):
            if layout.GPT_PRIMARY_LBA < lba <= last_lba:
                yield size, lba


def _alternate(device: BlockDevice, bytes_per_sector: int) -> list[int]:
    """AlternateLBA as a damaged primary header has it: a hint, checked like any other place."""
    offset_bytes = layout.GPT_PRIMARY_LBA * bytes_per_sector
    if offset_bytes + layout.GPT_HEADER.size > device.size_bytes:
        return []
    fields = layout.GPT_HEADER.unpack(device.read(offset_bytes, layout.GPT_HEADER.size))
    return [fields[6]] if fields[0] == layout.GPT_SIGNATURE else []


def _telling(damage: list[InconsistentVolume]) -> InconsistentVolume:
    """Of the reasons why no header could be used, the first that is more than "nothing is there"."""
    return next((problem for problem in damage if not isinstance(problem, _NoHeader)), damage[0])


def read_header(device: BlockDevice, bytes_per_sector: int, lba: int) -> GptHeader:
    """The header in a sector. Raises :class:`~sqlimage.errors.InconsistentVolume` where there is none, or not a sound
    one."""
    offset_bytes = lba * bytes_per_sector
    last_lba = device.size_bytes // bytes_per_sector - 1

    def refuse(problem: str) -> InconsistentVolume:
        return InconsistentVolume("GPT header", problem, offset_bytes=offset_bytes)

    if lba > last_lba:
        raise _NoHeader("GPT header", f"the disk has {device.size_bytes} bytes", offset_bytes=offset_bytes)
    sector = device.read(offset_bytes, bytes_per_sector)
    (
        signature, revision, header_size, header_crc32, _, my_lba, alternate_lba, first_usable, last_usable,
        disk_guid, entry_lba, entries, entry_size, array_crc32,
    ) = layout.GPT_HEADER.unpack_from(sector)  # fmt: skip
    if signature != layout.GPT_SIGNATURE:
        problem = f"Signature is {signature!r}, not {layout.GPT_SIGNATURE!r}"
        raise _NoHeader("GPT header", problem, offset_bytes=offset_bytes)
    if not layout.GPT_HEADER.size <= header_size <= bytes_per_sector:
        raise refuse(f"HeaderSize is {header_size}, allowed are {layout.GPT_HEADER.size} to {bytes_per_sector}")
    at = layout.GPT_HEADER_CRC32_OFFSET
    computed = zlib.crc32(sector[:at] + bytes(4) + sector[at + 4 : header_size])
    if computed != header_crc32:
        raise refuse(f"HeaderCRC32 is {header_crc32:#010x}, its bytes give {computed:#010x}")
    if revision != layout.GPT_REVISION:
        raise refuse(f"Revision is {revision:#x}, known is {layout.GPT_REVISION:#x}")
    if my_lba != lba:
        raise refuse(f"MyLBA is {my_lba}, the header lies in LBA {lba}")
    if not first_usable <= last_usable <= last_lba:
        raise refuse(
            f"FirstUsableLBA is {first_usable} and LastUsableLBA {last_usable}, the disk's last LBA is {last_lba}"
        )
    if (
        power_of_two_in(entry_size) != entry_size
        or not layout.GPT_ENTRY_BYTES_MINIMUM <= entry_size <= layout.GPT_ENTRY_BYTES_MAXIMUM
    ):
        raise refuse(
            f"SizeOfPartitionEntry is {entry_size}, allowed are powers of two from {layout.GPT_ENTRY_BYTES_MINIMUM} "
            f"to {layout.GPT_ENTRY_BYTES_MAXIMUM}"
        )
    if not 1 <= entries <= layout.GPT_ENTRIES_MAXIMUM:
        raise refuse(f"NumberOfPartitionEntries is {entries}, allowed are 1 to {layout.GPT_ENTRIES_MAXIMUM}")
    if entry_lba < 2 or entry_lba * bytes_per_sector + entries * entry_size > device.size_bytes:
        raise refuse(
            f"PartitionEntryLBA is {entry_lba}, allowed are LBAs from 2 that leave room for {entries * entry_size} "
            f"bytes on a disk of {device.size_bytes}"
        )
    return GptHeader(
        bytes_per_sector, my_lba, alternate_lba, first_usable, last_usable,
        disk_guid, entry_lba, entries, entry_size, array_crc32,
    )  # fmt: skip


def read_entries(device: BlockDevice, header: GptHeader) -> bytes:
    """The entry array of a header. Raises :class:`~sqlimage.errors.InconsistentVolume` where its checksum is wrong."""
    offset_bytes = header.partition_entry_lba * header.bytes_per_sector
    array = device.read(offset_bytes, header.number_of_partition_entries * header.size_of_partition_entry)
    computed = zlib.crc32(array)
    if computed != header.partition_entry_array_crc32:
        raise InconsistentVolume(
            "GPT partition entry array",
            f"PartitionEntryArrayCRC32 is {header.partition_entry_array_crc32:#010x}, its bytes give {computed:#010x}",
            offset_bytes=offset_bytes,
        )
    return array


def _hybrid(records: tuple[Record, ...]) -> list[str]:
    others = [
        str(number)
        for number, record in enumerate(records, 1)
        if record.size_in_lba and record.os_type not in (0, layout.OS_TYPE_GPT_PROTECTIVE)
    ]
    return [f"the MBR also has records {', '.join(others)} (hybrid MBR), the GPT was used"] if others else []


def _backup_problems(device: BlockDevice, primary: GptHeader) -> list[str]:
    """What is wrong with the backup while the primary is sound."""
    try:
        backup = read_header(device, primary.bytes_per_sector, primary.alternate_lba)
        read_entries(device, backup)
    except InconsistentVolume as problem:
        return [f"the backup GPT is damaged ({problem})"]
    if backup.partition_entry_array_crc32 != primary.partition_entry_array_crc32:
        return [f"the backup GPT in LBA {backup.my_lba} lists other partitions than the primary, which was used"]
    last_lba = device.size_bytes // primary.bytes_per_sector - 1
    if backup.my_lba != last_lba:
        return [f"the backup GPT lies in LBA {backup.my_lba}, not in the disk's last LBA {last_lba}"]
    return []


def _table(device: BlockDevice, header: GptHeader, entries: bytes, problems: list[str]) -> PartitionTable:
    offset_bytes = header.partition_entry_lba * header.bytes_per_sector
    last_lba = device.size_bytes // header.bytes_per_sector - 1
    partitions = []
    for index in range(header.number_of_partition_entries):
        type_guid, unique_guid, first, last, attributes, name = layout.GPT_ENTRY.unpack_from(
            entries, index * header.size_of_partition_entry
        )
        if type_guid == _NO_GUID:
            continue
        if not first <= last <= last_lba:
            raise InconsistentVolume(
                "GPT partition entry",
                f"partition {index + 1} has StartingLBA {first} and EndingLBA {last}, "
                f"the disk's last LBA is {last_lba}",
                offset_bytes=offset_bytes + index * header.size_of_partition_entry,
            )
        if first < header.first_usable_lba or last > header.last_usable_lba:
            problems.append(
                f"partition {index + 1} (LBA {first} to {last}) leaves the usable LBAs "
                f"{header.first_usable_lba} to {header.last_usable_lba}"
            )
        partitions.append(
            Partition(
                number=index + 1,
                offset_bytes=first * header.bytes_per_sector,
                length_bytes=(last - first + 1) * header.bytes_per_sector,
                type=_guid(type_guid),
                name=name.decode("utf-16-le", "replace").split("\0", 1)[0],
                uuid=_guid(unique_guid),
                bootable=bool(attributes & layout.GPT_ATTRIBUTE_LEGACY_BIOS_BOOTABLE),
            )
        )
    return PartitionTable(
        scheme="gpt",
        bytes_per_sector=header.bytes_per_sector,
        disk_id=_guid(header.disk_guid),
        partitions=check_disjoint("GPT partition entry array", partitions, offset_bytes),
        problems=tuple(problems),
    )


def _guid(field: bytes) -> str:
    return str(uuid.UUID(bytes_le=field)).upper()
