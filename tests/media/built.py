"""Disks with partition tables written field by field, of any size and as odd as wanted."""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlimage.media import layout
from sqlimage.media.geometry import Geometry
from tests.media.disks import mbr_sector
from tests.media.rearranged import SparseDisk

DATA = uuid.UUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4").bytes_le
FIRST_LBA = 2048


def put_mbr_records(disk: SparseDisk, *records: tuple[int, int, int, int], geometry: Geometry | None = None) -> None:
    """(BootIndicator, OSType, StartingLBA, SizeInLBA); with CHS fields where a geometry is given."""
    sector = mbr_sector(*records)
    if geometry:
        for index, (_, _, start, size) in enumerate(records):
            at = layout.MBR_PARTITION_RECORD_OFFSET + index * layout.MBR_PARTITION_RECORD.size
            sector[at + 1 : at + 4] = geometry.to_chs(start).to_bytes()
            sector[at + 5 : at + 8] = geometry.to_chs(max(start + size - 1, 0)).to_bytes()
    disk.write(0, sector)


def gpt_disk(
    size_bytes: int,
    parts: Sequence[tuple[int, int, int]],
    *,
    unit: int = 512,
    entries: int = 128,
    entry_bytes: int = 128,
    array_lba: int = 2,
    first_usable: int | None = None,
) -> SparseDisk:
    """``parts``: number, first LBA, sectors."""
    disk = SparseDisk(size_bytes, unit)
    last = size_bytes // unit - 1
    sectors = -(-entries * entry_bytes // unit)
    array = bytearray(entries * entry_bytes)
    for number, first, length in parts:
        name = f"part {number}".encode("utf-16-le").ljust(72, b"\0")
        layout.GPT_ENTRY.pack_into(
            array, (number - 1) * entry_bytes, DATA, number.to_bytes(16, "big"), first, first + length - 1, 4, name
        )
    for own, other, at in ((1, last, array_lba), (last, 1, last - sectors)):
        header = bytearray(
            layout.GPT_HEADER.pack(
                layout.GPT_SIGNATURE, layout.GPT_REVISION, layout.GPT_HEADER.size, 0, 0, own, other,
                first_usable or array_lba + sectors, last - sectors - 1, bytes(range(16)), at, entries, entry_bytes,
                zlib.crc32(array),
            )
        )  # fmt: skip
        struct.pack_into("<I", header, layout.GPT_HEADER_CRC32_OFFSET, zlib.crc32(header))
        disk.write(own * unit, header)
        disk.write(at * unit, array)
    put_mbr_records(disk, (0, 0xEE, 1, min(last, 0xFFFFFFFF)))
    return disk


@dataclass
class Logical:
    """``before`` sectors before it lies the EBR that describes it; ``size`` 0: an EBR without a partition."""

    before: int
    size: int


@dataclass
class Extended:
    start: int
    logicals: list[Logical]
    gaps: list[int]
    """Sectors before each EBR; the first is 0."""
    slack: int = 0
    """Sectors behind the last."""
    order: list[int] = field(default_factory=list)
    """Of the chain, beginning with 0."""

    def places(self) -> list[tuple[int, int]]:
        """EBR and first sector of each."""
        at, found = self.start, []
        for gap, logical in zip(self.gaps, self.logicals, strict=True):
            at += gap
            found.append((at, at + logical.before))
            at += logical.before + logical.size
        return found

    @property
    def end(self) -> int:
        ebr, start = self.places()[-1]
        return max(ebr + 1, start + self.logicals[-1].size) + self.slack

    def write(self, disk: SparseDisk, geometry: Geometry) -> None:
        places, order = self.places(), self.order or list(range(len(self.logicals)))

        def record(index: int, start: int, size: int, kind: int, origin: int) -> None:
            if size:
                first, last = geometry.to_chs(start).to_bytes(), geometry.to_chs(start + size - 1).to_bytes()
                at = layout.MBR_PARTITION_RECORD_OFFSET + index * layout.MBR_PARTITION_RECORD.size
                layout.MBR_PARTITION_RECORD.pack_into(sector, at, 0, first, kind, last, start - origin, size)

        for turn, number in enumerate(order):
            (ebr, start), size = places[number], self.logicals[number].size
            sector = mbr_sector(serial=0)
            record(0, start, size, 0x83, ebr)
            if turn + 1 < len(order):
                following, behind = places[order[turn + 1]]
                reach = max(behind + self.logicals[order[turn + 1]].size, following + 1)
                record(1, following, reach - following, 5, self.start)
            disk.write(ebr * disk.bytes_per_sector, sector)


def mbr_disk(
    size_bytes: int,
    records: Sequence[tuple[int, int] | Extended],
    *,
    unit: int = 512,
    geometry: Geometry | None = None,
    kind: int = 0x83,
) -> SparseDisk:
    """Up to four: (first sector, sectors) of a primary, or an extended partition."""
    disk = SparseDisk(size_bytes, unit)
    shape = geometry or Geometry(1, 255, 63)
    rows = []
    for index, record in enumerate(records):
        if isinstance(record, Extended):
            rows.append((0, 5, record.start, record.end - record.start))
            record.write(disk, shape)
        else:
            rows.append((0x80 if index == 0 else 0, kind, *record))
    put_mbr_records(disk, *rows, geometry=shape)
    return disk
