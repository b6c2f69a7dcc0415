"""Master boot records and extended partitions, against sfdisk and by hand."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume, NotFoundError
from sqlimage.media.file import FileDevice, WritableFileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.media.partition import partition_window, read_partition_table
from sqlimage.media.window import Window, WritableWindow
from sqlimage.units import MIB
from tests.media.disks import (
    ask_sfdisk,
    check_against_sfdisk,
    make_disk,
    mbr_sector,
    overwrite,
    read,
)

EXTENDED_SCRIPT = """label: dos
label-id: 0x8f8378c0
start=2048, size=4096, type=7, bootable
start=8192, size=4096, type=83
start=16384, size=100000, type=5
start=18432, size=2048, type=82
start=22528, size=2048, type=83
start=26624, size=2048, type=b
start=30720, size=2048, type=83
"""


def disk(*records: tuple[int, int, int, int], sectors: int = 1000) -> bytearray:
    content = bytearray(sectors * 512)
    content[:512] = mbr_sector(*records)
    return content


def refuse(content: bytearray) -> InconsistentVolume:
    with pytest.raises(InconsistentVolume) as caught:
        read_partition_table(MemoryDevice(content))
    assert caught.value.offset_bytes is not None
    return caught.value


def test_four_primaries(tmp_path: Path) -> None:
    script = "label: dos\nsize=4M,type=7\nsize=8M,type=83,bootable\nsize=1M,type=ef\nsize=2M,type=c\n"
    table = check_against_sfdisk(make_disk(tmp_path / "d", script))
    assert [p.number for p in table.partitions] == [1, 2, 3, 4]
    assert table.problems == ()


def test_logical_partitions(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "d", EXTENDED_SCRIPT)
    table = check_against_sfdisk(path)
    assert table.disk_id == "8f8378c0"
    assert [(p.number, p.uuid) for p in table.partitions] == [
        (1, "8f8378c0-01"), (2, "8f8378c0-02"), (5, "8f8378c0-05"), (6, "8f8378c0-06"),
        (7, "8f8378c0-07"), (8, "8f8378c0-08"),
    ]  # fmt: skip
    assert [p.number for p in table.partitions if p.bootable] == [1]
    assert table.problems == ()


def test_logical_partitions_whose_chain_is_not_in_order_of_the_disk(tmp_path: Path) -> None:
    script = "label: dos\nstart=2048,size=60000,type=f\nstart=30000,size=2000,type=83\nstart=5000,size=2000,type=83\n"
    table = check_against_sfdisk(make_disk(tmp_path / "d", script))
    assert [p.offset_bytes for p in table.partitions] == [5000 * 512, 30000 * 512]


def test_partuuids_count_in_hexadecimal(tmp_path: Path) -> None:
    lines = [f"start={4096 * (n + 1)}, size=1024, type=83" for n in range(13)]
    script = "\n".join(["label: dos", "label-id: 0x00000001", "start=2048, size=100000, type=5", *lines])
    table = check_against_sfdisk(make_disk(tmp_path / "d", script))
    assert [p.uuid for p in table.partitions][-2:] == ["00000001-10", "00000001-11"]


def test_an_empty_extended_partition_is_a_table_without_volumes(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "d", "label: dos\nstart=2048,size=60000,type=5\n")
    table = read(path)
    assert table is not None
    assert table.partitions == ()
    assert table.problems == ()


def test_units_are_the_sectors_of_the_device(tmp_path: Path) -> None:
    script = "label: dos\nstart=256,size=512,type=83\nstart=1024,size=2048,type=5\nstart=1100,size=64,type=83\n"
    path = make_disk(tmp_path / "d", script, sector_bytes=4096)
    table = read_partition_table(MemoryDevice(path.read_bytes(), bytes_per_sector=4096))
    oracle = ask_sfdisk(path, 4096)
    assert table is not None
    assert oracle is not None
    assert table.bytes_per_sector == 4096
    assert [(p.number, p.offset_bytes, p.length_bytes) for p in table.partitions] == [r[:3] for r in oracle[1]]


def test_a_disk_without_signature_has_no_ids() -> None:
    content = disk((0, 0x83, 10, 10))
    content[440:444] = bytes(4)
    table = read_partition_table(MemoryDevice(content))
    assert table is not None
    assert table.disk_id is None
    assert table.partitions[0].uuid is None


@pytest.mark.parametrize("size", [0, 1, 511])
def test_too_small_for_a_table(size: int) -> None:
    assert read_partition_table(MemoryDevice(bytes(size))) is None


def test_nothing_there() -> None:
    assert read_partition_table(MemoryDevice(bytes(MIB))) is None
    assert read_partition_table(MemoryDevice(disk())) is None, "a table without a partition is none"
    assert read_partition_table(MemoryDevice(random.Random(1).randbytes(MIB))) is None
    without_signature = disk((0, 0x83, 10, 10))
    without_signature[511] = 0
    assert read_partition_table(MemoryDevice(without_signature)) is None


def test_a_boot_indicator_that_is_none_makes_it_code() -> None:
    assert read_partition_table(MemoryDevice(disk((0, 0x83, 10, 10), (0x41, 0, 0, 0)))) is None


def test_partitions_may_touch_and_reach_the_end() -> None:
    table = read_partition_table(MemoryDevice(disk((0, 0x83, 500, 500), (0, 7, 1, 499))))
    assert table is not None
    assert [(p.number, p.offset_bytes, p.length_bytes) for p in table.partitions] == [
        (2, 512, 499 * 512),
        (1, 500 * 512, 500 * 512),
    ]


def test_beyond_the_end_is_refused() -> None:
    problem = refuse(disk((0, 0x83, 500, 501)))
    assert "sector 500 to 1001" in str(problem)
    assert "1000 sectors" in str(problem)
    refuse(disk((0, 0x83, 0xFFFFFFFF, 0xFFFFFFFF)))
    refuse(disk((0, 0x05, 500, 501)))


def test_overlap_is_refused() -> None:
    problem = refuse(disk((0, 0x83, 10, 11), (0, 7, 20, 10)))
    assert "partition 2 starts at byte 10240, inside partition 1, which reaches to byte 10752" in str(problem)
    refuse(disk((0, 0x83, 10, 100), (0, 5, 20, 10)))


def test_hybrid_iso_images_have_a_record_over_everything() -> None:
    only = disk((0x80, 0x17, 0, 1000))
    assert read_partition_table(MemoryDevice(only)) is None
    table = read_partition_table(MemoryDevice(disk((0x80, 0x00, 0, 1000), (0, 0xEF, 164, 100))))
    assert table is not None
    assert [p.number for p in table.partitions] == [2]
    assert "partition 1 would cover the partition table" in table.problems[0]


def chain(*links: tuple[int, tuple[int, int, int, int], tuple[int, int, int, int]]) -> bytearray:
    """A disk with an extended partition at sector 100 and EBRs at the places given."""
    content = disk((0, 5, 100, 800))
    for lba, logical, link in links:
        content[lba * 512 : (lba + 1) * 512] = mbr_sector(logical, link)
    return content


def test_links_count_from_the_extended_partition_and_logicals_from_their_record() -> None:
    table = read_partition_table(
        MemoryDevice(chain((100, (0, 7, 1, 9), (0, 5, 50, 100)), (150, (0, 7, 2, 9), (0, 0, 0, 0))))
    )
    assert table is not None
    assert [p.offset_bytes // 512 for p in table.partitions] == [101, 152]


@pytest.mark.parametrize("back_to", [0, 50])
def test_a_chain_that_loops_is_refused(back_to: int) -> None:
    problem = refuse(chain((100, (0, 7, 1, 9), (0, 5, 50, 100)), (150, (0, 7, 2, 9), (0, 5, back_to, 9))))
    assert problem.structure == "extended boot record"
    assert "comes back to itself" in str(problem)


def test_a_chain_without_end_is_cut() -> None:
    content = disk((0, 5, 1, 999))
    for lba in range(1, 999):
        content[lba * 512 : (lba + 1) * 512] = mbr_sector((0, 0, 0, 0), (0, 5, lba, 1))
    assert "longer than 128" in str(refuse(content))


def test_the_longest_chain_that_is_followed() -> None:
    content = disk((0, 5, 10, 990))
    for index in range(128):
        lba = 10 + index * 4
        link = (0, 5, (index + 1) * 4, 4) if index < 127 else (0, 0, 0, 0)
        content[lba * 512 : (lba + 1) * 512] = mbr_sector((0, 7, 1, 3), link)
    table = read_partition_table(MemoryDevice(content))
    assert table is not None
    assert [p.number for p in table.partitions] == list(range(5, 133))


def test_a_link_beyond_the_disk_is_refused() -> None:
    assert "sector 1000100" in str(refuse(chain((100, (0, 7, 1, 9), (0, 5, 1_000_000, 9)))))


def test_a_logical_partition_beyond_the_disk_is_refused() -> None:
    assert refuse(chain((100, (0, 7, 1, 901), (0, 0, 0, 0)))).offset_bytes == 100 * 512 + 446


def test_a_logical_partition_over_a_primary_is_refused() -> None:
    content = disk((0, 5, 100, 800), (0, 7, 950, 50))
    content[100 * 512 : 101 * 512] = mbr_sector((0, 7, 1, 855))
    refuse(content)


def test_a_logical_partition_over_its_own_record_is_refused() -> None:
    assert "partition 5" in str(refuse(chain((100, (0, 7, 0, 10), (0, 0, 0, 0)))))


def test_a_logical_partition_beyond_its_container_is_told() -> None:
    table = read_partition_table(MemoryDevice(chain((100, (0, 7, 1, 850), (0, 0, 0, 0)))))
    assert table is not None
    assert table.problems == ("partition 5 reaches beyond extended partition 1 that should hold it",)


def test_a_chain_that_ends_in_rubbish_is_told(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "d", EXTENDED_SCRIPT)
    before = read(path)
    assert before is not None
    overwrite(path, 22528 * 512 - 2048 * 512 + 510, b"\0\0")  # the second EBR
    table = read(path)
    assert table is not None
    assert set(table.partitions) <= set(before.partitions)
    assert len(table.problems) == 1


def fat_boot_sector() -> bytearray:
    """A FAT16 boot sector's parameter block, with a file allocation table's first entry behind it."""
    content = bytearray(MIB)
    content[:62] = bytes.fromhex(
        "eb3c90 6d6b66732e666174 0002 04 0100 02 0002 0008 f8 0200 2000 0200 00000000 00000000 80 00 29 78563412"
        "4e4f204e414d4520202020 4641543136202020"
    )
    content[510:516] = b"\x55\xaa\xf8\xff\xff\xff"
    return content


def test_a_fat_volume_is_no_disk_even_with_a_table_in_it() -> None:
    content = fat_boot_sector()
    assert read_partition_table(MemoryDevice(content)) is None
    content[446:510] = mbr_sector((0, 6, 100, 100))[446:510]
    assert read_partition_table(MemoryDevice(content)) is None


def test_a_parameter_block_left_over_from_a_volume_does_not_hide_a_table() -> None:
    content = fat_boot_sector()
    content[446:510] = mbr_sector((0, 6, 100, 100))[446:510]
    content[512:516] = b"core"  # a boot loader lies where the file allocation table was
    table = read_partition_table(MemoryDevice(content))
    assert table is not None
    assert [p.offset_bytes for p in table.partitions] == [51200]


def test_with_a_parameter_block_left_over_only_a_perfect_table_counts() -> None:
    content = fat_boot_sector()
    content[512:516] = b"core"
    content[446:510] = mbr_sector((0, 6, 100, 100_000))[446:510]
    assert read_partition_table(MemoryDevice(content)) is None
    content[446:510] = mbr_sector((0, 6, 0, 100), (0, 6, 200, 100))[446:510]
    assert read_partition_table(MemoryDevice(content)) is None


@pytest.mark.parametrize("name", [b"NTFS    ", b"EXFAT   ", b"-FVE-FS-"])
def test_volumes_known_by_their_name(name: bytes) -> None:
    content = disk((0, 7, 100, 100))
    content[3:11] = name
    assert read_partition_table(MemoryDevice(content)) is None


def test_partition_window(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "d", EXTENDED_SCRIPT)
    overwrite(path, 22528 * 512, b"in partition 6")
    with closing(FileDevice(path)) as device:
        window = partition_window(device, 6)
        assert type(window) is Window
        assert window.size_bytes == 2048 * 512
        assert window.read(0, 14) == b"in partition 6"
        with pytest.raises(NotFoundError, match=r"partition 3 does not exist; there are: 1, 2, 5, 6, 7, 8"):
            partition_window(device, 3)
    with closing(WritableFileDevice(path)) as target:
        writable = partition_window(target, 5)
        assert isinstance(writable, WritableWindow)
        writable.write(0, b"written")
        assert target.read(18432 * 512, 7) == b"written"


def test_partition_window_without_a_table() -> None:
    with pytest.raises(NotFoundError, match="no partition table"):
        partition_window(MemoryDevice(bytes(MIB)), 1)
