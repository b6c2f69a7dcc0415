"""Disks with partition tables for tests: made by sfdisk and sgdisk, or field by field; and sfdisk as oracle."""

from __future__ import annotations

import json
import struct
import subprocess
import zlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from sqlimage.media import layout
from sqlimage.media.file import FileDevice
from sqlimage.media.partition import PartitionTable, read_partition_table
from sqlimage.units import MIB
from tests.conftest import run
from tests.media.kinds import loop_device

Oracle = list[tuple[int, int, int, str, str | None, bool]]
EXTENDED = ("0x05", "0x0f", "0x85")


def make_disk(path: Path, script: str, size_bytes: int = 64 * MIB, sector_bytes: int = 512) -> Path:
    """A sparse file that sfdisk partitions by a script."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
    with _with_sectors(path, sector_bytes) as name:
        run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", name, input=script.encode())
    return path


def sgdisk(path: Path, *options: str, size_bytes: int = 64 * MIB, sector_bytes: int = 512) -> Path:
    """A sparse file, made where it does not exist, that sgdisk works on."""
    if not path.exists():
        with path.open("wb") as file:
            file.truncate(size_bytes)
    with _with_sectors(path, sector_bytes) as name:
        run("sgdisk", *options, name)
    return path


def _with_sectors(path: Path, sector_bytes: int) -> AbstractContextManager[str]:
    """The name under which programs see the file as a disk of such sectors: files have 512 bytes for all of them."""
    if sector_bytes == 512:
        return nullcontext(str(path))
    return loop_device(path, "--sector-size", str(sector_bytes))


def ask_sfdisk(path: Path, sector_bytes: int = 512) -> tuple[str, Oracle] | None:
    """Scheme and partitions as (number, offset, length, type, uuid, bootable) sorted by offset, extended ones left
    out; None where sfdisk sees no table."""
    with _with_sectors(path, sector_bytes) as name:
        done = subprocess.run(["sfdisk", "--json", name], capture_output=True, check=False)
    if done.returncode != 0:
        return None
    table = json.loads(done.stdout)["partitiontable"]
    scheme = {"dos": "mbr"}.get(table["label"], table["label"])
    partitions = []
    for entry in table.get("partitions", []):
        kind = f"0x{int(entry['type'], 16):02x}" if scheme == "mbr" else entry["type"]
        if scheme == "mbr" and kind in EXTENDED:
            continue
        bootable = entry.get("bootable", False) or "LegacyBIOSBootable" in entry.get("attrs", "")
        number = int(entry["node"][len(name) :].removeprefix("p"))
        start, size = entry["start"] * sector_bytes, entry["size"] * sector_bytes
        partitions.append((number, start, size, kind, entry.get("uuid"), bootable))
    return scheme, sorted(partitions, key=lambda row: row[1])


def rows(table: PartitionTable) -> Oracle:
    """The table in the oracle's form."""
    return [(p.number, p.offset_bytes, p.length_bytes, p.type, p.uuid, p.bootable) for p in table.partitions]


def read(path: Path) -> PartitionTable | None:
    device = FileDevice(path)
    try:
        return read_partition_table(device)
    finally:
        device.close()


def check_against_sfdisk(path: Path, sector_bytes: int = 512) -> PartitionTable:
    """The table of a disk, which must be as sfdisk reads it."""
    table, oracle = read(path), ask_sfdisk(path, sector_bytes)
    assert table is not None
    assert oracle is not None
    scheme, partitions = oracle
    assert table.scheme == scheme
    assert table.bytes_per_sector == sector_bytes
    if scheme == "mbr":  # without PARTUUIDs, which sfdisk only tells of devices
        assert [row[:4] + row[5:] for row in rows(table)] == [row[:4] + row[5:] for row in partitions]
    else:
        assert rows(table) == partitions
    return table


def overwrite(path: Path, offset_bytes: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        file.write(data)


def mbr_sector(*records: tuple[int, int, int, int], serial: int = 0x1234ABCD) -> bytearray:
    """An MBR or EBR from (BootIndicator, OSType, StartingLBA, SizeInLBA)."""
    sector = bytearray(layout.MBR_BYTES)
    sector[layout.MBR_SIGNATURE_OFFSET :] = layout.MBR_SIGNATURE
    struct.pack_into("<I", sector, layout.MBR_UNIQUE_DISK_SIGNATURE_OFFSET, serial)
    for index, (boot, os_type, start, size) in enumerate(records):
        at = layout.MBR_PARTITION_RECORD_OFFSET + index * layout.MBR_PARTITION_RECORD.size
        layout.MBR_PARTITION_RECORD.pack_into(sector, at, boot, bytes(3), os_type, bytes(3), start, size)
    return sector


HEADER_FIELDS = [
    "Signature",
    "Revision",
    "HeaderSize",
    "HeaderCRC32",
    "Reserved",
    "MyLBA",
    "AlternateLBA",
    "FirstUsableLBA",
    "LastUsableLBA",
    "DiskGUID",
    "PartitionEntryLBA",
    "NumberOfPartitionEntries",
    "SizeOfPartitionEntry",
    "PartitionEntryArrayCRC32",
]


def change_header(disk: bytearray, lba: int, sector_bytes: int = 512, **changes: int | bytes) -> None:
    """Set fields of a GPT header by name and make its checksums right again: of the entries, unless one is given or
    they do not lie on the disk, and of the header."""
    at = lba * sector_bytes
    fields = dict(zip(HEADER_FIELDS, layout.GPT_HEADER.unpack_from(disk, at), strict=True))
    assert set(changes) <= set(fields)
    fields.update(changes)
    if "PartitionEntryArrayCRC32" not in changes:
        start = fields["PartitionEntryLBA"] * sector_bytes
        length = fields["NumberOfPartitionEntries"] * fields["SizeOfPartitionEntry"]
        if start + length <= len(disk):
            fields["PartitionEntryArrayCRC32"] = zlib.crc32(disk[start : start + length])
    fields["HeaderCRC32"] = 0
    layout.GPT_HEADER.pack_into(disk, at, *fields.values())
    if "HeaderCRC32" in changes:
        crc = int(changes["HeaderCRC32"])
    else:
        crc = zlib.crc32(disk[at : at + min(fields["HeaderSize"], sector_bytes)])
    struct.pack_into("<I", disk, at + layout.GPT_HEADER_CRC32_OFFSET, crc)


def change_entry(disk: bytearray, index: int, first: int, last: int, lba: int = 1) -> None:
    """Give a GPT entry of the primary array (``lba`` 1) another place, and set the checksums right."""
    fields = layout.GPT_HEADER.unpack_from(disk, lba * 512)
    at = fields[10] * 512 + index * fields[12]
    kind, unique, _, _, attributes, name = layout.GPT_ENTRY.unpack_from(disk, at)
    layout.GPT_ENTRY.pack_into(disk, at, kind, unique, first, last, attributes, name)
    change_header(disk, lba)
