"""The boot sector: what is FAT, what is not, and what it says."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.fat import FatVolume, is_fat
from sqlimage.filesystem.fat.boot import geometry_of, parse
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import KIB, MIB
from tests.conftest import run
from tests.make.fat import BareVolume, make_volume


def changed(offset: int, layout: str, value: int, bits: int = 16) -> bytes:
    """A good boot sector with one field changed."""
    volume = BareVolume(bits, {12: 100, 16: 5000, 32: 70000}[bits])
    struct.pack_into(layout, volume.content, offset, value)
    return bytes(volume.content[:512])


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_a_volume_of_each_kind_is_fat(bits: int) -> None:
    assert is_fat(changed(3, "<B", 0x41, bits))


@pytest.mark.parametrize(
    ("field", "offset", "layout", "value"),
    [
        ("BPB_BytsPerSec", 11, "<H", 0),
        ("BPB_BytsPerSec", 11, "<H", 513),
        ("BPB_BytsPerSec", 11, "<H", 8192),
        ("BPB_SecPerClus", 13, "<B", 0),
        ("BPB_SecPerClus", 13, "<B", 3),
        ("BPB_RsvdSecCnt", 14, "<H", 0),
        ("BPB_NumFATs", 16, "<B", 0),
        ("BPB_RootEntCnt", 17, "<H", 0),
        ("BPB_TotSec16/32", 19, "<H", 0),
        ("BPB_TotSec16/32", 19, "<H", 20),
        ("BPB_Media", 21, "<B", 0xF7),
        ("BPB_FATSz16/32", 22, "<H", 19),
    ],
)
def test_an_impossible_field_is_named_with_its_value(field: str, offset: int, layout: str, value: int) -> None:
    sector = changed(offset, layout, value)
    with pytest.raises(InconsistentVolume) as caught:
        geometry_of(parse(sector))
    assert caught.value.structure == field
    assert not is_fat(sector)


@pytest.mark.parametrize(
    ("field", "offset", "layout", "value"),
    [
        ("BPB_FATSz16/32", 36, "<I", 500),
        ("BPB_FATSz16/32", 36, "<I", 0),
        ("BPB_TotSec16/32", 36, "<I", 0xFFFFFFFF),
        ("BPB_ExtFlags", 40, "<H", 0x81),
        ("BPB_FSVer", 42, "<H", 0x0100),
        ("BPB_RootClus", 44, "<I", 1),
        ("BPB_RootClus", 44, "<I", 70002),
    ],
)
def test_an_impossible_field_of_fat32_is_named(field: str, offset: int, layout: str, value: int) -> None:
    with pytest.raises(InconsistentVolume) as caught:
        geometry_of(parse(changed(offset, layout, value, bits=32)))
    assert caught.value.structure == field


@pytest.mark.parametrize(("clusters", "bits"), [(1, 12), (4084, 12), (4085, 16), (65524, 16)])
def test_the_number_of_clusters_alone_decides_between_fat12_and_fat16(clusters: int, bits: int) -> None:
    volume = BareVolume(bits, clusters)
    geometry = geometry_of(parse(bytes(volume.content[:512])))
    assert (geometry.fat_bits, geometry.total_clusters) == (bits, clusters)


def test_a_volume_without_one_whole_cluster_is_refused() -> None:
    volume = BareVolume(12, 1, sectors_per_cluster=8)
    sectors = len(volume.content) // 512
    struct.pack_into("<H", volume.content, 19, sectors - 1)
    with pytest.raises(InconsistentVolume, match="gives 0 clusters"):
        geometry_of(parse(bytes(volume.content[:512])))


def test_more_clusters_than_fat16_has_are_refused() -> None:
    assert not is_fat(bytes(BareVolume(16, 65525).content[:512]))


@pytest.mark.parametrize("clusters", [1, 94, 4085, 65524, 65525])
def test_without_a_16_bit_fat_size_it_is_fat32_however_small(clusters: int) -> None:
    geometry = geometry_of(parse(bytes(BareVolume(32, clusters).content[:512])))
    assert (geometry.fat_bits, geometry.total_clusters) == (32, clusters)


def test_the_kept_fat_is_the_one_that_the_flags_name() -> None:
    volume = BareVolume(32, 70000)
    volume.content[16] = 2
    struct.pack_into("<H", volume.content, 40, 0x81)
    fat_bytes = struct.unpack_from("<I", volume.content, 36)[0] * 512
    assert geometry_of(parse(bytes(volume.content[:512]))).fat_offset == 32 * 512 + fat_bytes


def test_a_floppy_without_signature_or_names_is_fat() -> None:
    volume = BareVolume(12, 100)
    volume.content[510:512] = b"\0\0"
    volume.content[36:62] = bytes(26)
    facts = FatVolume(MemoryDevice(volume.content)).facts
    assert is_fat(bytes(volume.content[:512]))
    assert (facts.serial, facts.label) == (None, None)


def test_a_boot_record_of_partitions_is_not_fat(tmp_path: Path) -> None:
    for label in ("dos", "gpt"):
        disk = tmp_path / label
        disk.write_bytes(bytes(8 * MIB))
        run("sfdisk", disk, input=f"label: {label}\n,,\n".encode())
        assert not is_fat(disk.read_bytes()[:512])


def test_other_file_systems_are_not_fat(tmp_path: Path) -> None:
    for name, command in (
        ("ntfs", ("mkntfs", "-F", "-Q", "-q")),
        ("exfat", ("mkfs.exfat",)),
        ("ext4", ("mke2fs", "-q", "-t", "ext4")),
    ):
        image = tmp_path / name
        with image.open("wb") as file:
            file.truncate(16 * MIB)
        run(*command, image)
        assert not is_fat(image.read_bytes()[:512]), name
    hpfs = bytearray(changed(3, "<B", 0x41))
    hpfs[54:62] = b"HPFS    "
    assert not is_fat(bytes(hpfs))
    assert not is_fat(bytes(32 * KIB))  # what ISO 9660 begins with
    assert not is_fat(b"\xff" * 512)


@pytest.mark.parametrize("length", [0, 1, 511])
def test_a_medium_too_short_for_a_boot_sector_is_refused(length: int) -> None:
    with pytest.raises(InconsistentVolume, match="boot sector"):
        FatVolume(MemoryDevice(b"\xeb" * length))


def test_a_volume_longer_than_its_medium_is_refused() -> None:
    content = BareVolume(12, 100).content
    with pytest.raises(InconsistentVolume, match="BPB_TotSec"):
        FatVolume(MemoryDevice(content[:-1]))
    assert FatVolume(MemoryDevice(content + bytes(512))).facts.size_bytes == len(content)


def test_the_facts_are_those_that_were_formatted(tmp_path: Path) -> None:
    path = make_volume(
        tmp_path / "v", 64 * MIB, 32, sectors_per_cluster=1, options=("-h", "2048", "-n", "My Label", "-g", "16/63")
    )
    facts = FatVolume(FileDevice(path)).facts
    assert facts.file_system == "fat32"
    assert facts.size_bytes == 64 * MIB // (63 * 512) * (63 * 512)  # whole tracks
    assert (facts.bytes_per_sector, facts.bytes_per_cluster) == (512, 512)
    assert facts.alignment_bytes == 512
    assert (facts.hidden_sectors, facts.sectors_per_track, facts.tracks_per_cylinder) == (2048, 63, 16)
    assert (facts.label, facts.serial, facts.dirty) == ("My Label", "1234ABCD", False)


def test_the_root_directorys_label_wins(tmp_path: Path) -> None:
    path = make_volume(tmp_path / "v", 4 * MIB, 12, options=("-n", "IN ROOT"))
    content = bytearray(path.read_bytes())
    content[43:54] = b"IN BOOT    "
    assert FatVolume(MemoryDevice(content)).facts.label == "IN ROOT"
    run("mlabel", "-i", path, "-c", "::")
    content = bytearray(path.read_bytes())
    assert FatVolume(MemoryDevice(content)).facts.label is None
    content[43:54] = b"IN BOOT    "
    assert FatVolume(MemoryDevice(content)).facts.label == "IN BOOT"


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_a_volume_that_was_not_unmounted_is_dirty(bits: int) -> None:
    volume = BareVolume(bits, {12: 100, 16: 5000, 32: 70000}[bits])
    assert not FatVolume(MemoryDevice(volume.content)).facts.dirty
    marked = bytearray(volume.content)
    marked[65 if bits == 32 else 37] = 1
    assert FatVolume(MemoryDevice(marked)).facts.dirty
    for lost in (0x8, 0x4):
        volume.link(1, 0x0FFFFFFF & ~(lost << (bits - 4 if bits == 16 else 24)))
        assert FatVolume(MemoryDevice(volume.content)).facts.dirty == (bits != 12)
