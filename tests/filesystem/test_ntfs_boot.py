"""The boot sector: what it says, and that every field out of range is refused by name."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.ntfs.boot import is_ntfs, parse, validate
from sqlimage.filesystem.ntfs.volume import NtfsVolume
from sqlimage.media.memory import MemoryDevice
from tests.make.ntfs import make_volume

MIB = 1 << 20


@pytest.fixture(scope="module")
def sector(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    image = make_volume(tmp_path_factory.mktemp("boot") / "v.img", 4 * MIB)
    with image.open("rb") as file:
        return file.read(512)


def changed(sector: bytes, at: int, layout: str, value: int) -> bytes:
    out = bytearray(sector)
    struct.pack_into(layout, out, at, value)
    return bytes(out)


def test_a_boot_sector_is_known_by_its_name(sector: bytes) -> None:
    assert is_ntfs(sector)
    assert not is_ntfs(bytes(512))
    assert not is_ntfs(sector[:100])


def test_the_geometry_of_a_small_volume(sector: bytes) -> None:
    geometry = validate(sector, 4 * MIB)
    assert geometry.bytes_per_cluster == 4096
    assert geometry.bytes_per_record == 1024
    assert geometry.total_clusters == 4 * MIB // 4096 - 1
    assert geometry.size_bytes == 4 * MIB


def test_a_medium_without_room_for_the_backup_boot_sector_is_one_sector_shorter(sector: bytes) -> None:
    assert validate(sector, 4 * MIB - 512).size_bytes == 4 * MIB - 512


@pytest.mark.parametrize(("field", "sectors"), [(1, 1), (128, 128), (0xF8, 256), (0xF4, 4096)])
def test_large_clusters_are_stored_as_negative_powers(sector: bytes, field: int, sectors: int) -> None:
    large = changed(changed(changed(sector, 0x0D, "B", field), 0x30, "<Q", 1), 0x38, "<Q", 2)
    large = changed(changed(large, 0x28, "<Q", 10 * sectors), 0x40, "b", -10)
    assert validate(large, 1 << 32).bytes_per_cluster == sectors * 512


@pytest.mark.parametrize(
    ("at", "layout", "values"),
    [
        (0x0B, "<H", [0, 1, 128, 513, 8192, 32768]),
        (0x0D, "B", [0, 3, 129, 0xE1, 0xF3]),
        (0x28, "<Q", [0, 7, 8193, (1 << 63) - 1, (1 << 64) - 1]),
        (0x30, "<Q", [0, 1023, 1 << 40, (1 << 64) - 1]),
        (0x38, "<Q", [0, 1023, (1 << 64) - 1]),
        (0x40, "b", [0, 3, 127, -1, -8, -17, -127, -128]),
        (0x44, "b", [0, 3, 127]),
    ],
    ids=["sector", "cluster", "total", "mft", "mirror", "record", "index"],
)
def test_a_field_out_of_range_is_refused_by_name(sector: bytes, at: int, layout: str, values: list[int]) -> None:
    for value in values:
        with pytest.raises(InconsistentVolume, match=r"NTFS boot sector, [A-Z]"):
            validate(changed(sector, at, layout, value), 4 * MIB)


def test_fields_are_parsed_as_they_lie_whatever_they_hold() -> None:
    boot = parse(b"\xff" * 512)
    assert (boot.bytes_per_sector, boot.total_sectors, boot.clusters_per_file_record) == (0xFFFF, (1 << 64) - 1, -1)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 4096, 2 * MIB])
def test_a_volume_longer_than_its_medium_is_refused(sector: bytes, size: int) -> None:
    with pytest.raises(InconsistentVolume):
        NtfsVolume(MemoryDevice(sector.ljust(4 * MIB, b"\0")[:size]))


def test_opening_reads_the_boot_sector_only(sector: bytes, tmp_path: Path) -> None:
    assert NtfsVolume(MemoryDevice(sector.ljust(4 * MIB, b"\0"))) is not None
