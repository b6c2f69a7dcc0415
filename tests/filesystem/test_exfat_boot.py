"""Boot regions: what they must hold, and which of the two is believed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.exfat import ExfatVolume, is_exfat
from sqlimage.filesystem.fat import is_fat
from sqlimage.filesystem.ntfs.volume import is_ntfs
from sqlimage.media.file import FileDevice
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import KIB, MIB
from tests.conftest import run
from tests.make import exfat as make
from tests.make.exfat import BareVolume


def opened(volume: BareVolume) -> ExfatVolume:
    return ExfatVolume(MemoryDevice(volume.content))


def test_the_fields_of_a_boot_sector_become_facts() -> None:
    volume = BareVolume(300, sector_shift=10, cluster_shift=2)
    volume.fields |= {"PartitionOffset": 1 << 40, "FileSystemRevision": 0x0105, "VolumeFlags": 2}
    facts = opened(volume.seal()).facts
    assert (facts.file_system, facts.format_version, facts.serial) == ("exfat", "1.5", "1234ABCD")
    assert (facts.bytes_per_sector, facts.bytes_per_cluster, facts.total_clusters) == (1024, 4096, 300)
    assert facts.size_bytes == volume.size_bytes == len(volume.content)
    assert (facts.hidden_sectors, facts.label, facts.dirty, facts.notes) == (1 << 40, None, True, ())
    assert (facts.sectors_per_track, facts.tracks_per_cylinder) == (None, None)


@pytest.mark.parametrize(
    ("heap_sector", "cluster_shift", "more_sectors", "alignment"),
    [(32, 3, 0, 4096), (33, 3, 0, 512), (40, 3, 5, 512), (40, 3, 4, 2048), (64, 6, 0, 32768), (48, 0, 0, 512)],
)
def test_the_alignment_divides_every_border(
    heap_sector: int, cluster_shift: int, more_sectors: int, alignment: int
) -> None:
    volume = BareVolume(64, cluster_shift=cluster_shift)
    sectors = heap_sector + (64 << cluster_shift) + more_sectors
    volume.fields |= {"ClusterHeapOffset": heap_sector, "VolumeLength": sectors}
    moved = volume.content[volume.heap_offset :]
    volume.content = bytearray(sectors * 512)
    volume.put(heap_sector * 512, bytes(moved))
    volume.heap_offset = heap_sector * 512
    for first, last in ((2, volume.up_case_at), (volume.up_case_at, volume.root), (volume.root, volume.free)):
        volume.chain(*range(first, last))
    found = opened(volume.seal())
    assert found.facts.alignment_bytes == alignment
    allocated = found.allocated()
    assert not ((allocated.start | allocated.length) % alignment).any()
    assert allocated.total == sectors * 512 - (64 - 3) * (512 << cluster_shift)  # all but the clusters that are free


def test_the_media_failure_flag_is_told() -> None:
    volume = BareVolume(100)
    volume.fields["VolumeFlags"] = 4
    facts = opened(volume.seal()).facts
    assert not facts.dirty
    assert "MediaFailure" in facts.notes[0]


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("VolumeLength", 1 << 63, "VolumeLength: says"),
        ("VolumeLength", 10_000, "the medium has"),
        ("VolumeLength", 0, "ClusterHeapOffset: is 25, but the volume has 0 sectors"),
        ("VolumeLength", 124, "ClusterCount: is 100, allowed are 1 to 99"),
        ("FatOffset", 23, "FatOffset: is 23, allowed are 24 and more"),
        ("FatOffset", 27, "ClusterHeapOffset: is 25, but the FATs end at sector 28"),
        ("FatLength", 0, "FatLength: is 0 sectors"),
        ("FatLength", 0xFFFFFFFF, "ClusterHeapOffset"),
        ("ClusterHeapOffset", 0, "ClusterHeapOffset"),
        ("ClusterHeapOffset", 0xFFFFFFFF, "ClusterHeapOffset"),
        ("ClusterCount", 0, "ClusterCount"),
        ("ClusterCount", 101, "ClusterCount: is 101, allowed are 1 to 100"),
        ("ClusterCount", 0xFFFFFFFF, "ClusterCount"),
        ("VolumeLength", 25, "ClusterHeapOffset"),
        ("VolumeLength", 26, "ClusterCount: is 100, allowed are 1 to 1"),
        ("FirstClusterOfRootDirectory", 1, "FirstClusterOfRootDirectory: is 1, allowed are 2 to 101"),
        ("FirstClusterOfRootDirectory", 102, "FirstClusterOfRootDirectory"),
        ("FileSystemRevision", 0x0200, "FileSystemRevision: is 0x0200"),
        ("FileSystemRevision", 0x0099, "FileSystemRevision"),
        ("VolumeFlags", 1, "ActiveFat"),
        ("SectorsPerClusterShift", 17, "SectorsPerClusterShift: is 17, allowed are 0 to 16"),
        ("SectorsPerClusterShift", 255, "SectorsPerClusterShift"),
        ("NumberOfFats", 0, "NumberOfFats: is 0, allowed are 1 and 2"),
        ("NumberOfFats", 3, "NumberOfFats"),
    ],
)
def test_a_field_out_of_its_range_is_named(field: str, value: int, match: str) -> None:
    volume = BareVolume(100)
    opened(volume)
    volume.fields[field] = value
    with pytest.raises(InconsistentVolume, match=match):
        opened(volume.seal())


@pytest.mark.parametrize("shift", [0, 8, 13, 255])
def test_a_sector_size_out_of_its_range_is_named(shift: int) -> None:
    volume = BareVolume(100)
    for start in (0, 12 * 512):
        volume.content[start + 108] = shift
        volume.seal_region(start)
    with pytest.raises(InconsistentVolume, match=f"BytesPerSectorShift: is {shift}, allowed are 9 to 12"):
        opened(volume)


def test_a_volume_of_less_than_a_mebibyte_is_read() -> None:
    assert opened(BareVolume(10)).facts.size_bytes < 32 * KIB


@pytest.mark.parametrize("length", [0, 1, 511, 512, 5632, 6143, 6144])
def test_a_cut_medium_is_refused(length: int) -> None:
    with pytest.raises(InconsistentVolume):
        ExfatVolume(MemoryDevice(bytes(BareVolume(100).content[:length])))


@pytest.mark.parametrize("shift", [9, 10, 11, 12])
@pytest.mark.parametrize("at", [3, 11, 63, 72, 88, 108, 200, 511, -1, -512])
def test_any_damage_to_the_main_boot_region_leads_to_the_backup(shift: int, at: int) -> None:
    volume = BareVolume(100, sector_shift=shift)
    volume.content[at if at >= 0 else at + 12 * volume.bytes_per_sector] ^= 0x40
    found = opened(volume)
    (note,) = found.facts.notes
    assert "main boot region is damaged" in note
    assert "backup" in note
    assert found.facts.total_clusters == 100
    assert len(found.scan().entries) == 3


def test_a_main_boot_region_that_was_wiped_is_read_from_the_backup() -> None:
    volume = BareVolume(100, sector_shift=11)
    volume.put(0, bytes(12 * volume.bytes_per_sector))
    assert "FileSystemName" in opened(volume).facts.notes[0]


@pytest.mark.parametrize("at", [106, 107, 112])
def test_the_bytes_that_change_while_a_volume_is_in_use_are_not_covered_by_the_checksum(at: int) -> None:
    volume = BareVolume(100)
    volume.content[at] ^= 2
    assert opened(volume).facts.notes == ()


def test_two_damaged_boot_regions_are_refused_by_what_is_wrong_with_the_main_one() -> None:
    volume = BareVolume(100)
    volume.content[300] ^= 1
    volume.content[12 * 512 + 72] ^= 1
    with pytest.raises(InconsistentVolume, match="Main Boot Checksum at byte 5632"):
        opened(volume)


def test_the_flags_of_the_backup_are_stale() -> None:
    volume = BareVolume(100)
    volume.fields["VolumeFlags"] = 2
    volume.seal(backup=False)
    assert opened(volume).facts.dirty
    volume.content[300] ^= 1  # of the boot code
    facts = opened(volume).facts
    assert facts.dirty and "backup" in facts.notes[0]
    volume.put(3, b"XFAT")  # now the main boot sector cannot be told from anything else
    assert not opened(volume).facts.dirty


def test_a_backup_that_says_another_sector_size_than_its_place_is_not_believed() -> None:
    volume = BareVolume(100)
    content = bytearray(volume.content)
    content[0:6144] = bytes(6144)
    larger = BareVolume(100, sector_shift=10)
    moved = larger.content[12 * 1024 : 24 * 1024]  # a backup of 1,024-byte sectors where one of 512 would lie
    content[6144 : 6144 + len(moved)] = moved
    with pytest.raises(InconsistentVolume, match="FileSystemName"):
        ExfatVolume(MemoryDevice(content))


OTHERS = [
    ("fat12", ("mkfs.fat",), 1),
    ("fat32", ("mkfs.fat", "-F", "32"), 64),
    ("ntfs", ("mkntfs", "-F", "-Q", "-q"), 16),
    ("ext4", ("mke2fs", "-F", "-q", "-t", "ext4"), 16),
    ("xfs", ("mkfs.xfs", "-q"), 320),
    ("btrfs", ("mkfs.btrfs", "-q"), 128),
]


@pytest.mark.parametrize(("kind", "command", "mebibytes"), OTHERS, ids=[other[0] for other in OTHERS])
def test_other_file_systems_are_not_exfat(kind: str, command: tuple[str, ...], mebibytes: int, tmp_path: Path) -> None:
    path = tmp_path / kind
    with path.open("wb") as file:
        file.truncate(mebibytes * MIB)
    run(*command, path)
    with path.open("rb") as file:
        assert not is_exfat(file.read(4096))


def test_an_exfat_volume_is_nothing_else(tmp_path: Path) -> None:
    path = make.make_volume(tmp_path / "v", 8 * MIB)
    head = path.read_bytes()[:4096]
    assert is_exfat(head)
    assert is_exfat(head[:512])
    assert not is_exfat(head[:511])
    assert not is_exfat(b"")
    assert not is_fat(head)
    assert not is_ntfs(head)


def test_the_serial_is_printed_as_other_programs_do_without_the_dash(tmp_path: Path) -> None:
    path = make.make_volume(tmp_path / "v", 8 * MIB)
    facts = ExfatVolume(FileDevice(path)).facts
    with path.open("rb") as file:
        (serial,) = struct.unpack_from("<I", file.read(512), 100)
    assert facts.serial == f"{serial:08X}"
    assert facts.serial == run("blkid", "-p", "-s", "UUID", "-o", "value", path).stdout.decode().strip().replace(
        "-", ""
    )
