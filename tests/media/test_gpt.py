"""GUID partition tables: made by sgdisk, read as sfdisk reads them, damaged field by field."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.media.partition import PartitionTable, partition_window, read_partition_table
from sqlimage.units import MIB
from tests.media.disks import (
    change_entry,
    change_header,
    check_against_sfdisk,
    mbr_sector,
    overwrite,
    read,
    sgdisk,
)
from tests.media.kinds import loop_device
from tests.media.test_mbr import fat_boot_sector

SIZE = 8 * MIB
LAST_LBA = SIZE // 512 - 1
BACKUP_ENTRIES_LBA = LAST_LBA - 32
THREE = (
    "--new=1:2048:4095", "--typecode=1:EF00", "--change-name=1:EFI System",
    "--new=2:4096:8191", "--typecode=2:0700", "--change-name=2:Größe 数据 💾",
    "--new=5:8192:10239", "--typecode=5:8300", "--attributes=5:set:2",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One disk for all tests, which work on copies: sgdisk waits a second after each change."""
    return sgdisk(tmp_path_factory.mktemp("made") / "gpt.img", *THREE, size_bytes=SIZE)


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path))


@pytest.fixture
def disk(path: Path) -> bytearray:
    return bytearray(path.read_bytes())


def table_of(disk: bytes | bytearray, bytes_per_sector: int = 512) -> PartitionTable:
    table = read_partition_table(MemoryDevice(bytearray(disk), bytes_per_sector))
    assert table is not None
    return table


def refuse(disk: bytearray) -> InconsistentVolume:
    with pytest.raises(InconsistentVolume) as caught:
        read_partition_table(MemoryDevice(disk))
    return caught.value


def test_as_sfdisk_reads_it(path: Path) -> None:
    table = check_against_sfdisk(path)
    assert table.problems == ()
    assert [(p.number, p.name, p.bootable) for p in table.partitions] == [
        (1, "EFI System", False),
        (2, "Größe 数据 💾", False),
        (5, "", True),
    ]
    assert table.partitions[0].type == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
    assert table.disk_id is not None
    assert table.disk_id == table.disk_id.upper()


def test_the_last_lba_belongs_to_the_partition(path: Path) -> None:
    table = read(path)
    assert table is not None
    assert table.partitions[0].length_bytes == 2048 * 512
    with closing(FileDevice(path)) as device:
        assert partition_window(device, 2).size_bytes == 4096 * 512


def test_no_partitions(tmp_path: Path) -> None:
    assert check_against_sfdisk(sgdisk(tmp_path / "gpt.img", "--clear")).partitions == ()


def test_partitions_in_another_order_than_their_numbers(tmp_path: Path) -> None:
    path = sgdisk(
        tmp_path / "gpt.img", "--new=3:2048:4095", "--new=1:8192:9000", "--new=2:5000:6000", "--new=128:34:40"
    )
    assert [p.number for p in check_against_sfdisk(path).partitions] == [128, 3, 2, 1]


def test_more_than_128_entries(tmp_path: Path) -> None:
    path = sgdisk(tmp_path / "gpt.img", "--resize-table=256", "--new=200:2048:4095")
    assert [p.number for p in check_against_sfdisk(path).partitions] == [200]


@pytest.mark.parametrize("told", [512, 4096])
def test_sectors_of_4096_bytes(tmp_path: Path, told: int) -> None:
    """A file does not tell the sectors of the disk it was copied from, and another device may tell wrong ones."""
    path = sgdisk(tmp_path / "gpt.img", "--new=1:256:511", "--new=2:512:0", size_bytes=64 * MIB, sector_bytes=4096)
    expected = check_against_sfdisk(path, 4096)
    assert table_of(path.read_bytes(), told) == expected
    assert expected.partitions[0].offset_bytes == MIB
    with loop_device(path, "--sector-size", str(told)) as name, closing(FileDevice(name)) as device:
        assert read_partition_table(device) == expected
    overwrite(path, 4096, bytes(92))
    mended = read(path)
    assert mended is not None
    assert mended.partitions == expected.partitions


def test_sectors_of_512_bytes_on_a_device_that_tells_4096(disk: bytearray) -> None:
    assert table_of(disk, 4096) == table_of(disk)


@pytest.mark.parametrize(
    ("offset", "said"),
    [
        (512, "Signature"),
        (512 + 24, "HeaderCRC32"),
        (512 + 60, "HeaderCRC32"),
        (1024 + 300, "PartitionEntryArrayCRC32"),
    ],
)
def test_a_damaged_primary_is_replaced_by_its_backup(path: Path, offset: int, said: str) -> None:
    whole = check_against_sfdisk(path)
    overwrite(path, offset, b"\xff" * 8)
    table = check_against_sfdisk(path)
    assert table.partitions == whole.partitions
    assert table.disk_id == whole.disk_id
    assert len(table.problems) == 1
    assert "primary GPT is damaged" in table.problems[0]
    assert said in table.problems[0]
    assert f"LBA {LAST_LBA}" in table.problems[0]


@pytest.mark.parametrize("offset", [LAST_LBA * 512 + 50, BACKUP_ENTRIES_LBA * 512 + 1000])
def test_a_damaged_backup_is_told(path: Path, offset: int) -> None:
    overwrite(path, offset, b"\xff" * 8)
    table = check_against_sfdisk(path)
    assert len(table.problems) == 1
    assert "backup GPT is damaged" in table.problems[0]


@pytest.mark.parametrize("first", [512, 512 + 40, 1024 + 7])
@pytest.mark.parametrize("second", [LAST_LBA * 512, LAST_LBA * 512 + 40, BACKUP_ENTRIES_LBA * 512 + 7])
def test_both_damaged_is_refused(path: Path, first: int, second: int) -> None:
    overwrite(path, first, b"\xff" * 8)
    overwrite(path, second, b"\xff" * 8)
    with pytest.raises(InconsistentVolume) as caught:
        read(path)
    assert caught.value.structure.startswith("GPT")
    assert caught.value.offset_bytes is not None


def test_announced_but_not_there_is_refused() -> None:
    disk = bytearray(MIB)
    disk[:512] = mbr_sector((0, 0xEE, 1, 2047))
    assert refuse(disk).structure == "GPT header"


def test_a_gpt_that_no_mbr_announces_does_not_count(disk: bytearray) -> None:
    disk[:512] = bytes(512)
    assert read_partition_table(MemoryDevice(disk)) is None
    disk[:512] = mbr_sector((0, 0x83, 2048, 1000))
    assert table_of(disk).scheme == "mbr"


def test_an_enlarged_disk_has_its_backup_in_the_middle(disk: bytearray) -> None:
    whole = table_of(disk)
    disk += bytes(MIB)
    table = table_of(disk)
    assert table.partitions == whole.partitions
    assert f"lies in LBA {LAST_LBA}" in table.problems[0]
    for damaged in (512, 512 + 80, 1024):  # the MBR still tells where the backup is
        broken = bytearray(disk)
        broken[damaged] ^= 0xFF
        assert table_of(broken).partitions == whole.partitions


def test_the_backup_is_found_where_a_damaged_primary_says(disk: bytearray) -> None:
    whole = table_of(disk)
    disk += bytes(MIB)
    disk[:512] = mbr_sector((0, 0xEE, 1, 0xFFFFFFFF))
    disk[512 + 72] ^= 0xFF  # PartitionEntryLBA
    assert table_of(disk).partitions == whole.partitions


def test_a_cut_disk_is_refused(disk: bytearray) -> None:
    assert "LastUsableLBA" in str(refuse(disk[: 6 * MIB]))


def test_a_backup_that_differs_is_told(disk: bytearray) -> None:
    change_entry(disk, 0, 2048, 4000)
    table = table_of(disk)
    assert table.partitions[0].length_bytes == (4000 - 2048 + 1) * 512
    assert "lists other partitions" in table.problems[0]


def test_a_hybrid_mbr_gives_way_to_the_gpt(path: Path) -> None:
    before = check_against_sfdisk(path)
    sgdisk(path, "--hybrid=1:2")
    after = read(path)
    assert after is not None
    assert after.partitions == before.partitions
    assert "hybrid MBR" in after.problems[0]


def test_a_parameter_block_left_over_from_a_volume_does_not_hide_a_gpt(disk: bytearray) -> None:
    whole = table_of(disk)
    disk[3:62] = fat_boot_sector()[3:62]
    assert table_of(disk) == whole
    disk[1024] ^= 1  # a stale block and a damaged primary: still a disk
    assert table_of(disk).partitions == whole.partitions


def test_a_volume_made_over_a_disk_is_a_volume(disk: bytearray) -> None:
    disk[3:62] = fat_boot_sector()[3:62]
    disk[512:516] = b"\xf8\xff\xff\xff"  # its file allocation table is where the primary header was
    assert read_partition_table(MemoryDevice(disk)) is None


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("Revision", 0x00020000, "Revision is 0x20000"),
        ("HeaderSize", 91, "HeaderSize is 91, allowed are 92 to 512"),
        ("HeaderSize", 513, "HeaderSize is 513, allowed are 92 to 512"),
        ("HeaderSize", 0xFFFFFFFF, "HeaderSize"),
        ("HeaderCRC32", 1, "HeaderCRC32 is 0x00000001"),
        ("MyLBA", 2, "MyLBA is 2, the header lies in LBA 1"),
        ("FirstUsableLBA", LAST_LBA, "FirstUsableLBA"),
        ("LastUsableLBA", LAST_LBA + 1, f"last LBA is {LAST_LBA}"),
        ("LastUsableLBA", (1 << 64) - 1, "LastUsableLBA"),
        ("PartitionEntryLBA", 0, "PartitionEntryLBA"),
        ("PartitionEntryLBA", 1, "PartitionEntryLBA"),
        ("PartitionEntryLBA", LAST_LBA, "PartitionEntryLBA"),
        ("PartitionEntryLBA", (1 << 64) - 1, "PartitionEntryLBA"),
        ("NumberOfPartitionEntries", 0, "NumberOfPartitionEntries is 0, allowed are 1 to 1024"),
        ("NumberOfPartitionEntries", 1025, "NumberOfPartitionEntries is 1025"),
        ("NumberOfPartitionEntries", 0xFFFFFFFF, "NumberOfPartitionEntries"),
        ("SizeOfPartitionEntry", 0, "SizeOfPartitionEntry is 0"),
        ("SizeOfPartitionEntry", 64, "SizeOfPartitionEntry is 64"),
        ("SizeOfPartitionEntry", 192, "SizeOfPartitionEntry is 192"),
        ("SizeOfPartitionEntry", 0x80000000, "SizeOfPartitionEntry"),
        ("PartitionEntryArrayCRC32", 1, "PartitionEntryArrayCRC32 is 0x00000001"),
    ],
)
def test_a_header_field_out_of_range(disk: bytearray, field: str, value: int, said: str) -> None:
    """With right checksums: the value itself is what is refused, by its name."""
    whole = table_of(disk)
    change_header(disk, 1, **{field: value})
    table = table_of(disk)
    assert table.partitions == whole.partitions
    assert said in table.problems[0]
    overwritten = bytearray(disk)
    overwritten[LAST_LBA * 512 :] = bytes(512)
    assert said in str(refuse(overwritten))


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (4095, 4096, "StartingLBA|inside partition"),
        (2048, 4096, "inside partition 1"),
        (3000, 2999, "StartingLBA 3000 and EndingLBA 2999"),
        (2048, LAST_LBA + 1, "EndingLBA"),
        (2048, (1 << 64) - 1, "EndingLBA"),
        ((1 << 64) - 1, (1 << 64) - 1, "StartingLBA"),
    ],
)
def test_an_entry_that_contradicts_the_disk_is_refused(disk: bytearray, first: int, last: int, said: str) -> None:
    change_entry(disk, 0, first, last)
    problem = refuse(disk)
    assert any(part in str(problem) for part in said.split("|"))
    assert problem.offset_bytes is not None


def test_a_partition_of_one_sector(disk: bytearray) -> None:
    change_entry(disk, 0, 2048, 2048)
    assert table_of(disk).partitions[0].length_bytes == 512


def test_a_partition_outside_the_usable_lbas_is_told(disk: bytearray) -> None:
    change_entry(disk, 0, 20, 4095)
    assert "leaves the usable LBAs" in " ".join(table_of(disk).problems)


@pytest.mark.parametrize("entry_bytes", [256, 4096])
def test_entries_longer_than_what_is_known_of_them(disk: bytearray, entry_bytes: int) -> None:
    whole = table_of(disk)
    array = bytes(disk[1024 : 1024 + 8 * 128])
    for index in range(8):
        place = 10240 * 512 + index * entry_bytes
        disk[place : place + 128] = array[index * 128 : (index + 1) * 128]
    change_header(
        disk, 1, PartitionEntryLBA=10240, SizeOfPartitionEntry=entry_bytes, NumberOfPartitionEntries=8
    )  # fmt: skip
    assert table_of(disk).partitions == whole.partitions


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("x".encode("utf-16-le") * 36, "x" * 36),
        (b"a\0\0\0b\0", "a"),
        (b"\x00\xd8a\0", "\ufffda"),
        (b"a\0\x00\xdc", "a\ufffd"),
        (bytes(72), ""),
    ],
)
def test_names_of_any_bytes(disk: bytearray, raw: bytes, name: str) -> None:
    disk[1024 + 56 : 1024 + 128] = raw.ljust(72, b"\0")
    change_header(disk, 1)
    found = table_of(disk).partitions[0].name
    assert found == name
    found.encode()


@pytest.mark.parametrize("size", [512, 513, 1024, 4096, 4097, 8192])
@pytest.mark.parametrize("bytes_per_sector", [512, 4096])
def test_disks_too_small_for_a_gpt(size: int, bytes_per_sector: int) -> None:
    disk = mbr_sector((0, 0xEE, 1, 0xFFFFFFFF)) + b"EFI PART" + bytes(8192)
    device = MemoryDevice(disk[:size], bytes_per_sector)
    if size < bytes_per_sector:
        assert read_partition_table(device) is None
    else:
        with pytest.raises(InconsistentVolume):
            read_partition_table(device)
