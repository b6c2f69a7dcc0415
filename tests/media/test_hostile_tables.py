"""Partition tables made to mislead: whatever lies on the disk, only errors of ours come out, and soon."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sqlimage.errors import InconsistentVolume, SqlimageError
from sqlimage.media import layout
from sqlimage.media.memory import MemoryDevice
from sqlimage.media.partition import PartitionTable, partition_window, read_partition_table
from sqlimage.units import MIB
from tests.media.disks import change_entry, change_header, make_disk, mbr_sector, sgdisk
from tests.media.test_mbr import EXTENDED_SCRIPT

SECTORS = 4096
QUICK = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))


class CountingDevice(MemoryDevice):
    """Says how much was read of it."""

    reads = 0
    bytes_read = 0

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        self.reads += 1
        self.bytes_read += length_bytes
        return super().read(offset_bytes, length_bytes)


def check_survives(disk: bytes | bytearray, bytes_per_sector: int = 512) -> None:
    """Reads the table: what comes out is sound, or is an error that names structure and place, and little was read
    for it: four chains of extended boot records, or a dozen places for a GPT with 4 MiB of entries each."""
    device = CountingDevice(disk, bytes_per_sector)
    try:
        table = read_partition_table(device)
    except InconsistentVolume as problem:
        assert problem.structure
        assert problem.offset_bytes is not None
    else:
        if table is not None:
            check_sound(table, device)
    assert device.reads <= 4 * 129 + 2
    assert device.bytes_read < 48 * MIB


def check_sound(table: PartitionTable, device: MemoryDevice) -> None:
    end = 0
    for partition in table.partitions:
        assert partition.offset_bytes >= end
        assert partition.length_bytes > 0
        end = partition.end_bytes
    assert end <= device.size_bytes
    assert len({partition.number for partition in table.partitions}) == len(table.partitions)
    for partition in table.partitions[:3]:
        window = partition_window(MemoryDevice(device.content, device.bytes_per_sector), partition.number)
        assert window.size_bytes == partition.length_bytes


lbas = st.one_of(
    st.integers(0, SECTORS + 2), st.sampled_from([0, 1, 63, 2048, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF])
)
types = st.sampled_from([0x00, 0x05, 0x0F, 0x85, 0x07, 0x83, 0xEE, 0xEF, 0xFF])
boots = st.sampled_from([0x00, 0x00, 0x00, 0x80, 0x01])
records = st.lists(st.tuples(boots, types, lbas, lbas), max_size=4)


@QUICK
@given(first=records, others=st.dictionaries(st.integers(1, SECTORS - 1), records, max_size=12))
@example(first=[(0, 5, 1, 4095)], others={1: [(0, 5, 0, 1)]})
@example(first=[(0, 5, 1, 10), (0, 15, 20, 10)], others={1: [(0, 5, 19, 1)], 20: [(0, 5, 0, 1)]})
def test_any_chain_of_records(
    first: list[tuple[int, int, int, int]], others: dict[int, list[tuple[int, int, int, int]]]
) -> None:
    disk = bytearray(SECTORS * 512)
    disk[:512] = mbr_sector(*first)
    for lba, held in others.items():
        disk[lba * 512 : (lba + 1) * 512] = mbr_sector(*held)
    check_survives(disk)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Sound disks to damage."""
    place: Path = tmp_path_factory.mktemp("seeds")
    gpt = sgdisk(place / "gpt", "--new=1:2048:4095", "--new=2:4096:8191", "--new=7:9000:9100", size_bytes=8 * MIB)
    made = [
        make_disk(place / "mbr", EXTENDED_SCRIPT, size_bytes=64 * MIB).read_bytes()[: 16 * MIB].ljust(64 * MIB, b"\0"),
        gpt.read_bytes(),
        sgdisk(place / "hybrid", "--new=1:2048:4095", "--hybrid=1", size_bytes=2 * MIB + 512 * 99).read_bytes(),
    ]
    for disk in made:
        assert read_partition_table(MemoryDevice(disk)) is not None
    return made


def control_bytes(disk: bytes) -> list[int]:
    """Where a disk is not zero: its tables."""
    return [at + i for at in range(0, len(disk), 512) if any(disk[at : at + 512]) for i in range(512)]


def test_damaged_bytes(seeds: list[bytes]) -> None:
    chance = random.Random(20240607)
    for disk in seeds:
        places = control_bytes(disk)
        work = bytearray(disk)
        for _ in range(1500):
            changed = chance.sample(places, chance.choice([1, 1, 2, 5, 40]))
            for at in changed:
                work[at] = chance.choice([0, 1, 5, 0x7F, 0x80, 0xEE, 0xFF, chance.randrange(256)])
            check_survives(work)
            for at in changed:
                work[at] = disk[at]


def test_cut_disks(seeds: list[bytes]) -> None:
    for disk in seeds:
        for size in (0, 1, 511, 512, 513, 1023, 1024, 1535, 1536, 17408, MIB, MIB + 1, len(disk) - 512, len(disk) - 1):
            check_survives(disk[:size])
            check_survives(disk[:size], 4096)


@QUICK
@given(
    fields=st.dictionaries(
        st.sampled_from(["AlternateLBA", "FirstUsableLBA", "LastUsableLBA", "PartitionEntryLBA", "MyLBA"]),
        st.one_of(st.integers(0, 20_000), st.sampled_from([(1 << 63) - 1, 1 << 63, (1 << 64) - 1])),
    ),
    counts=st.dictionaries(
        st.sampled_from(["NumberOfPartitionEntries", "SizeOfPartitionEntry", "HeaderSize", "Reserved"]),
        st.one_of(st.integers(0, 5_000), st.sampled_from([1 << 31, (1 << 32) - 1])),
    ),
    keep_backup=st.booleans(),
)
def test_any_header_with_right_checksums(
    seeds: list[bytes], fields: dict[str, int], counts: dict[str, int], keep_backup: bool
) -> None:
    disk = bytearray(seeds[1])
    if not keep_backup:
        disk[-512:] = bytes(512)
    change_header(disk, layout.GPT_PRIMARY_LBA, **fields, **counts)
    check_survives(disk)


places = st.one_of(st.integers(0, 16_400), st.sampled_from([(1 << 63) - 1, 1 << 63, (1 << 64) - 1]))


@QUICK
@given(entries=st.dictionaries(st.sampled_from([0, 1, 6]), st.tuples(places, places)))
def test_any_entries_with_right_checksums(seeds: list[bytes], entries: dict[int, tuple[int, int]]) -> None:
    disk = bytearray(seeds[1])
    for index, (first, last) in entries.items():
        change_entry(disk, index, first, last)
    check_survives(disk)


def test_every_error_is_one_of_ours() -> None:
    """A device that fails is told as such, wherever the reader is."""

    class Failing(MemoryDevice):
        left = 0

        def read(self, offset_bytes: int, length_bytes: int) -> bytes:
            if self.left == 0:
                raise SqlimageError("no more")
            self.left -= 1
            return super().read(offset_bytes, length_bytes)

    disk = bytearray(SECTORS * 512)
    disk[:512] = mbr_sector((0, 5, 1, 1000))
    for lba in range(1, 10):
        disk[lba * 512 : (lba + 1) * 512] = mbr_sector((0, 7, 100 * lba, 10), (0, 5, lba, 1))
    for left in range(10):
        device = Failing(disk)
        device.left = left
        with pytest.raises(SqlimageError, match="no more"):
            read_partition_table(device)
