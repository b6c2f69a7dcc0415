"""A bare volume shown as a disk: what a guest sees, what it can change, and what stays as it was captured."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.device import DeviceExtent
from sqlimage.errors import DeviceError, RefusedError
from sqlimage.media.compose import ComposedDisk, WritableComposedDisk, compose_disk
from sqlimage.media.file import FileDevice
from sqlimage.media.geometry import Geometry
from sqlimage.media.memory import MemoryDevice
from sqlimage.media.moved import WritableMovedVolume
from sqlimage.media.partition import read_partition_table
from sqlimage.media.window import Window
from sqlimage.units import MIB
from tests.make.fat import BareVolume
from tests.media.test_contract import check_extents

BACKUP = 6 * 512
FIELDS = (28, BACKUP + 28)


def fat32(hidden_sectors: int = 0) -> MemoryDevice:
    """A small FAT32 volume with the backup of its boot sector in sector 6."""
    content = BareVolume(32, 40).content
    content[28:32] = hidden_sectors.to_bytes(4, "little")
    content[50:52] = b"\x06\0"
    content[BACKUP : BACKUP + 512] = content[:512]
    return MemoryDevice(content)


def ntfs(hidden_sectors: int) -> MemoryDevice:
    """The boot sector of an NTFS volume of 31 sectors, and its backup behind the last."""
    content = bytearray(32 * 512)
    content[3:11] = b"NTFS    "
    content[11:13], content[24:28] = b"\0\2", b"\x3f\0\xff\0"
    content[28:32], content[40:48] = hidden_sectors.to_bytes(4, "little"), (31).to_bytes(8, "little")
    content[510:512] = b"\x55\xaa"
    content[31 * 512 :] = content[:512]
    return MemoryDevice(content)


def writable(volume: MemoryDevice, file_system: str = "fat32", **options: int) -> WritableComposedDisk:
    disk = compose_disk(volume, file_system=file_system, **options)  # type: ignore[arg-type]
    assert isinstance(disk, WritableComposedDisk)
    return disk


def hidden(disk: ComposedDisk, field: int) -> int:
    return int.from_bytes(disk.read(disk.partition_offset_bytes + field, 4), "little")


@pytest.mark.parametrize(
    ("file_system", "os_type"),
    [("fat12", 1), ("fat16", 6), ("fat32", 12), ("ntfs", 7), ("exfat", 7), ("ext4", 0x83), (None, 0x83)],
)
def test_a_volume_becomes_the_one_active_partition(file_system: str | None, os_type: int) -> None:
    volume = MemoryDevice(random.Random(1).randbytes(300 * 512))
    disk = compose_disk(volume, file_system=file_system, hidden_sectors=63)
    table = read_partition_table(disk)
    assert table and table.scheme == "mbr" and not table.problems
    (partition,) = table.partitions
    assert (partition.offset_bytes, partition.length_bytes) == (63 * 512, 300 * 512)
    assert (partition.type, partition.bootable) == (f"0x{os_type:02x}", True)
    assert (disk.partition_offset_bytes, disk.partition_length_bytes, disk.os_type) == (63 * 512, 300 * 512, os_type)


@pytest.mark.parametrize(
    ("hidden_sectors", "start"),
    [(None, 2048), (0, 2048), (1, 1), (63, 63), (2048, 2048), (2049, 2048), (1_026_048, 2048), (1 << 32, 2048)],
)
def test_the_partition_starts_where_the_volume_did_unless_that_is_far_away(
    hidden_sectors: int | None, start: int
) -> None:
    disk = compose_disk(fat32(), file_system="fat32", hidden_sectors=hidden_sectors)
    assert disk.partition_offset_bytes == start * 512
    assert hidden(disk, 28) == start


def test_sectors_of_4096_bytes_count_as_such() -> None:
    disk = compose_disk(MemoryDevice(bytes(40 * 4096), 4096), file_system="ext4", hidden_sectors=2048)
    table = read_partition_table(disk)
    assert disk.bytes_per_sector == 4096
    assert table and table.partitions[0].offset_bytes == MIB


@pytest.mark.parametrize("size_bytes", [512, 513, 65_536, 3 * MIB, 3 * MIB + 1])
def test_the_disk_is_whole_mebibytes_and_the_padding_reads_as_zeros(size_bytes: int) -> None:
    disk = compose_disk(MemoryDevice(b"\xaa" * size_bytes), file_system="ext4", hidden_sectors=63)
    assert disk.size_bytes % MIB == 0
    assert disk.size_bytes - disk.partition_offset_bytes - size_bytes < MIB
    end = disk.partition_offset_bytes + size_bytes
    assert not any(disk.read(end, disk.size_bytes - end))
    assert disk.partition_length_bytes % 512 == 0


def test_fat32_and_ntfs_show_the_place_in_both_boot_sectors_and_store_it_in_none() -> None:
    for volume, file_system, fields in ((fat32(7), "fat32", FIELDS), (ntfs(7), "ntfs", (28, 31 * 512 + 28))):
        disk = compose_disk(volume, file_system=file_system)
        for field in fields:
            assert hidden(disk, field) == 2048
            assert volume.read(field, 4) == b"\x07\0\0\0"


def test_other_volumes_are_shown_as_they_are() -> None:
    content = random.Random(2).randbytes(510) + b"\x55\xaa" + bytes(512)
    for file_system in ("exfat", "ext4", None):
        disk = compose_disk(MemoryDevice(content), file_system=file_system)
        assert disk.read(MIB, len(content)) == content


def test_a_file_where_the_backup_should_be_is_left_alone() -> None:
    for change in (slice(BACKUP + 510, BACKUP + 511), slice(BACKUP + 3, BACKUP + 4), slice(BACKUP + 28, BACKUP + 29)):
        volume = fat32(7)
        volume.content[change] = b"\x99"
        disk = compose_disk(volume, file_system="fat32")
        assert hidden(disk, 28) == 2048
        assert disk.read(MIB + BACKUP, 512) == volume.read(BACKUP, 512)


@pytest.mark.parametrize("sector", [0, 1, 32, 60, 0xFFFF])
def test_a_backup_outside_the_reserved_sectors_is_not_followed(sector: int) -> None:
    volume = fat32(7)
    volume.content[50:52] = sector.to_bytes(2, "little")
    disk = compose_disk(volume, file_system="fat32")
    assert hidden(disk, 28) == 2048
    assert disk.read(MIB + 512, volume.size_bytes - 512) == volume.content[512:]


@pytest.mark.parametrize("sectors", [0, 1, 32, 1 << 20, (1 << 64) - 1])
def test_an_ntfs_size_beyond_the_volume_is_not_followed(sectors: int) -> None:
    volume = ntfs(7)
    volume.content[40:48] = sectors.to_bytes(8, "little")
    disk = compose_disk(volume, file_system="ntfs")
    assert disk.read(MIB + 512, volume.size_bytes - 512) == volume.content[512:]


def test_a_guest_that_writes_back_what_it_read_changes_nothing() -> None:
    volume = fat32(7)
    before = bytes(volume.content)
    disk = writable(volume)
    disk.write(0, disk.read(0, disk.size_bytes))
    assert volume.content == before
    assert hidden(disk, 28) == hidden(disk, FIELDS[1]) == 2048


def test_a_guest_that_relabels_the_boot_sector_keeps_the_images_own_number() -> None:
    volume = fat32(7)
    disk = writable(volume)
    sector = bytearray(disk.read(MIB, 512))
    sector[71:82] = b"NEW LABEL  "
    disk.write(MIB, sector)
    assert volume.read(71, 11) == b"NEW LABEL  "
    assert volume.read(28, 4) == b"\x07\0\0\0"


def test_a_guest_that_writes_another_number_finds_it_there_and_in_the_image() -> None:
    volume = fat32(7)
    disk = writable(volume)
    disk.write(MIB + 28, b"\x2a\0\0\0")
    assert hidden(disk, 28) == 42 and volume.read(28, 4) == b"\x2a\0\0\0"
    assert hidden(disk, FIELDS[1]) == 2048, "the backup was not written"
    disk.write(MIB + 29, b"\x08")
    assert hidden(disk, 28) == 0x82A and volume.read(28, 4) == b"\x2a\x08\0\0"
    disk.write(MIB + 28, b"\0")
    assert hidden(disk, 28) == 2048 and volume.read(28, 4) == b"\x07\0\0\0"


def test_a_volume_that_already_says_its_place_is_written_as_it_is() -> None:
    volume = fat32(63)
    disk = writable(volume, hidden_sectors=63)
    disk.write(63 * 512 + 28, b"\x01")
    assert volume.read(28, 4) == b"\x01\0\0\0"


class Holes(MemoryDevice):
    """Calls every sector of zeros a hole."""

    def extents(self, offset_bytes: int, length_bytes: int):  # type: ignore[no-untyped-def]
        at, end = offset_bytes, offset_bytes + length_bytes
        while at < end:
            high = min(end, at // 512 * 512 + 512)
            yield DeviceExtent(at, high - at, is_data=any(self.content[at:high]))
            at = high


def test_a_number_that_is_shown_in_a_hole_is_data() -> None:
    volume = Holes(fat32(0).content)
    disk = writable(volume)
    disk.zero(MIB, 28)
    disk.zero(MIB + 32, 480)
    assert not any(volume.content[:512]) and hidden(disk, 28) == 2048
    assert [extent.is_data for extent in disk.extents(MIB, 512)] == [True]
    check_extents(disk, disk.read(0, disk.size_bytes), MIB + 5, 900)


def test_what_is_written_around_the_volume_is_seen_and_then_gone() -> None:
    volume = fat32()
    before = bytes(volume.content)
    disk = writable(volume)
    fresh = disk.read(0, disk.size_bytes)
    disk.write(440, b"\x01\x02\x03\x04")
    disk.write(MIB - 5, b"gap!!")
    disk.write(disk.size_bytes - 3, b"end")
    assert (disk.read(440, 4), disk.read(MIB - 5, 5), disk.read(disk.size_bytes - 3, 3)) == (
        b"\x01\x02\x03\x04", b"gap!!", b"end",
    )  # fmt: skip
    assert volume.content == before
    again = writable(volume)
    assert again.read(0, again.size_bytes) == fresh


def test_gap_and_padding_are_holes_until_something_is_written_there() -> None:
    disk = writable(fat32())
    first, second = list(disk.extents(0, MIB))
    assert (first.length_bytes, first.is_data, second.is_data) == (4096, True, False)
    disk.write(8192, b"x")
    assert [extent.is_data for extent in disk.extents(0, MIB)] == [True, False, True, False]


def test_a_disk_over_a_read_only_volume_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "volume.raw"
    path.write_bytes(fat32().content)
    with_file = FileDevice(path)
    disk = compose_disk(with_file, file_system="fat32")
    assert not isinstance(disk, WritableComposedDisk)
    assert hidden(disk, 28) == 2048
    disk.close()
    assert with_file.read(0, 3)
    with_file.close()


def test_a_volume_that_no_master_boot_record_can_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.raw"
    with path.open("wb") as file:
        file.truncate(512 << 32)
    large = FileDevice(path)
    with pytest.raises(RefusedError, match="4294967296 sectors"):
        compose_disk(large, file_system="ext4")
    disk = compose_disk(Window(large, 0, large.size_bytes - 512), file_system="fat16")
    assert disk.os_type == 0x0E
    large.close()
    with pytest.raises(RefusedError, match="0 sectors"):
        compose_disk(MemoryDevice(b""), file_system=None)


def test_places_are_counted_in_the_geometry_of_the_boot_sector() -> None:
    volume = ntfs(63)
    assert compose_disk(volume, file_system="ntfs").geometry.sectors_per_track == 63
    volume.content[24:28] = b"\x12\0\x02\0"
    disk = compose_disk(volume, file_system="ntfs", hidden_sectors=36)
    assert str(disk.geometry) == "2/2/18"
    assert disk.read(446, 16) == bytes((0x80, 0, 1, 1, 7, 1, 14, 1)) + b"\x24\0\0\0\x20\0\0\0"
    given_one = compose_disk(volume, file_system="ntfs", geometry=Geometry(1024, 255, 63))
    assert given_one.read(447, 3) == bytes((32, 33, 0))
    volume.content[24:28] = b"\xff\xff\0\0"
    assert compose_disk(volume, file_system="ntfs").geometry.tracks_per_cylinder == 255


def test_a_disk_is_known_again_by_the_serial_of_its_volume() -> None:
    volume = fat32()
    signature = compose_disk(volume, file_system="fat32").read(440, 4)
    assert any(signature)
    volume.content[66] ^= 1
    assert compose_disk(volume, file_system="fat32").read(440, 4) == signature
    volume.content[67] ^= 1
    assert compose_disk(volume, file_system="fat32").read(440, 4) != signature


PLACES = [0, 63 * 512 - 1, *(63 * 512 + field + by for field in FIELDS for by in (-28, -4, -1, 0, 1, 3, 4, 480))]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "zero", "shown"]),
        st.one_of(st.sampled_from(PLACES), st.integers(0, 1 << 16)),
        st.one_of(st.integers(0, 8), st.sampled_from([512, 4096, 1 << 16])),
        st.binary(min_size=1, max_size=4),
    ),
    max_size=15,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from([0, 7, 0x3F00]))
def test_a_guest_sees_a_plain_disk_whatever_it_writes(steps: list[tuple[str, int, int, bytes]], own: int) -> None:
    volume = Holes(fat32(own).content)
    disk = writable(volume, hidden_sectors=63, alignment_bytes=4096)
    original = disk.read(0, disk.size_bytes)
    model = bytearray(original)
    for name, at, length, pattern in steps:
        at = min(at, len(model))
        end = min(at + length, len(model))
        if name == "zero":
            model[at:end] = bytes(end - at)
            disk.zero(at, end - at)
        else:
            data = (pattern * length)[: end - at] if name == "write" else original[at:end]
            model[at:end] = data
            disk.write(at, data)
        assert disk.read(at, end - at) == model[at:end]
    assert disk.read(0, disk.size_bytes) == model
    check_extents(disk, model, 0, len(model))
    expected = model[63 * 512 : 63 * 512 + volume.size_bytes]
    for field in FIELDS:
        if expected[field : field + 4] == b"\x3f\0\0\0":
            expected[field : field + 4] = own.to_bytes(4, "little")
    assert volume.content == expected


class Slow(MemoryDevice):
    def __init__(self, content: bytearray) -> None:
        super().__init__(content)
        self.fetched: list[tuple[int, int]] = []

    def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        self.fetched.append((offset_bytes, length_bytes))

    def is_ready(self, offset_bytes: int, length_bytes: int) -> bool:
        return offset_bytes + length_bytes <= 4096


def test_what_is_announced_and_asked_reaches_the_volume_in_its_own_places() -> None:
    volume = Slow(fat32().content)
    disk = writable(volume)
    disk.prefetch(MIB - 512, 1024)
    disk.prefetch(0, 512)
    assert volume.fetched == [(0, 512)]
    assert disk.is_ready(MIB, 4096) and disk.is_ready(0, MIB)
    assert not disk.is_ready(MIB - 1, 4098)
    assert writable(fat32()).is_ready(MIB, 8192)


class Failing(MemoryDevice):
    fails = False

    def write(self, offset_bytes: int, data: object) -> None:
        if self.fails:
            raise DeviceError("full")
        super().write(offset_bytes, data)  # type: ignore[arg-type]


def test_a_write_that_fails_leaves_the_shown_number_as_it_was() -> None:
    volume = Failing(fat32(7).content)
    moved = WritableMovedVolume(volume, "fat32", 63)
    volume.fails = True
    with pytest.raises(DeviceError):
        moved.write(0, bytes(512))
    assert moved.read(28, 4) == b"\x3f\0\0\0"
    assert moved.fields_offset_bytes == FIELDS
