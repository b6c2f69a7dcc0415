"""A disk with volumes of several kinds, each laid out anew in its place, or taken as it is and noted."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

import sqlimage
from sqlimage.filesystem.fat import FatVolume
from sqlimage.media.file import FileDevice
from sqlimage.units import KIB, MIB
from tests.conftest import run
from tests.images import kept_bytes, noise, tool
from tests.make import fat_oracle
from tests.make.defragmented import (
    Both,
    Fat,
    capture_both,
    check_fat,
    check_ntfs,
    files_of,
    make_disk,
    make_ext4,
    restored,
    torn,
)
from tests.make.ntfs import make_volume, mounted, scatter_free_space, write_tree
from tests.make.ntfs_scattered import read_through_driver

SECTOR = 512
LARGE = {"large.bin": noise("large", 700 * KIB), "directory/text": b"to and fro " * 9000}
EXT4 = {"one": noise("one", 300_000), "d/other": b"other" * 999}


@dataclass(frozen=True)
class Parts:
    """What is put on the disks, by what it is."""

    fat: bytes
    fat_digests: dict[str, str]
    ntfs: bytes
    ntfs_files: dict[str, bytes]
    ext4: bytes


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    place = tmp_path_factory.mktemp("parts")
    fat = Fat(16, 9 * MIB, 1).make(place / "fat.img")
    device = FileDevice(fat)
    volume = FatVolume(device)
    digests = fat_oracle.digests(volume, volume.scan())
    device.close()
    ntfs = make_volume(place / "ntfs.img", 6 * MIB, cluster_bytes=512)
    with mounted(ntfs) as root:
        written = scatter_free_space(root, 20_000)
        write_tree(root, LARGE)
    ext4 = make_ext4(place / "ext4.img", 4 * MIB, EXT4)
    return Parts(fat.read_bytes(), digests, ntfs.read_bytes(), written | LARGE, ext4.read_bytes())


@dataclass(frozen=True)
class Disk:
    source: Path
    both: Both
    begin: dict[str, int]
    """The first byte of each part."""


@pytest.fixture(scope="module", params=["gpt", "dos"])
def disk(request: pytest.FixtureRequest, parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Disk:
    """GPT at the usual places; MBR with volumes in an extended partition, at places that no cluster divides."""
    place = tmp_path_factory.mktemp("disk")
    if request.param == "gpt":
        at = {"fat": 2048, "ntfs": 22528, "ext4": 36864, "raw": 47104}
        rows = [f"start={at[name]}, size={size}" for name, size in _SECTORS.items()]
    else:
        at = {"fat": 63, "ntfs": 20601, "ext4": 40961, "raw": 51300}
        numbers = {"fat": (1, "6"), "ntfs": (5, "7"), "ext4": (6, "83"), "raw": (3, "da")}
        rows = [
            f"p{numbers[name][0]} : start={at[name]}, size={_SECTORS[name]}, type={numbers[name][1]}" for name in at
        ]
        rows.insert(1, "p2 : start=20500, size=30000, type=5")
        rows.sort()
    table = f"label: {request.param}\n" + "".join(f"{row}\n" for row in rows)
    contents = {"fat": parts.fat, "ntfs": parts.ntfs, "ext4": parts.ext4, "raw": noise("raw", MIB)}
    source = make_disk(
        place / "disk.img", table, {at[name]: content for name, content in contents.items()}, 28 * MIB + 512
    )
    with source.open("r+b") as file:  # a boot loader, and something between partitions
        file.seek(40 * SECTOR)
        file.write(noise("loader", 10_000))
        file.seek(20_480 * SECTOR)
        file.write(noise("between", 5_000))
    return Disk(source, capture_both(source, place), {name: sector * SECTOR for name, sector in at.items()})


_SECTORS = {"fat": 9 * MIB // SECTOR, "ntfs": 6 * MIB // SECTOR + 9, "ext4": 4 * MIB // SECTOR, "raw": 2048}


def test_every_volume_is_laid_out_anew_or_noted(disk: Disk) -> None:
    fat, ntfs, ext4, raw = disk.both.defragmented.volumes
    assert [volume.file_system for volume in disk.both.defragmented.volumes] == ["fat16", "ntfs", "ext4", None]
    for laid_out in (fat, ntfs):
        assert laid_out.moved_bytes is not None and laid_out.moved_bytes > MIB // 2 and laid_out.fixups > 10
    for as_it_is in (ext4, raw):
        assert (as_it_is.moved_bytes, as_it_is.fixups) == (None, 0)
    notes = set(disk.both.defragmented.warnings) - set(disk.both.plain.warnings)
    assert notes == {"volume 2: is not defragmented: ext4 cannot be, NTFS and FAT can"}
    with sqlimage.open(str(disk.both.image)) as opened:
        told = json.loads(opened.audit()[0].detail)["defragmented"]
    assert told == {str(v.number): {"moved_bytes": v.moved_bytes, "fixups": v.fixups} for v in (fat, ntfs)}
    assert {row[0] for row in torn(Path(disk.both.plain.image))} > {"/large.bin"}
    assert {row[0] for row in torn(disk.both.image)} <= {"/$Journal"}, "that is the ext4 volume's"


def test_each_volume_of_the_image_is_right_to_its_own_tools(disk: Disk, parts: Parts, tmp_path: Path) -> None:
    check_fat(restored(disk.both.image, tmp_path / "fat", volume=0), parts.fat_digests)
    ntfs = restored(disk.both.image, tmp_path / "ntfs", volume=1)
    os.truncate(ntfs, len(parts.ntfs))  # the partition is longer, and ntfsfix looks at its end
    check_ntfs(ntfs)
    read_through_driver(ntfs, parts.ntfs_files)
    ext4 = restored(disk.both.image, tmp_path / "ext4", volume=2)
    run("e2fsck", "-fn", ext4)
    assert restored(disk.both.image, tmp_path / "raw", volume=3).read_bytes() == noise("raw", MIB)


def test_all_but_those_volumes_is_byte_for_byte_what_it_was(disk: Disk, tmp_path: Path) -> None:
    copy = restored(disk.both.image, tmp_path / "copy.img").read_bytes()
    wanted = bytearray(kept_bytes(Path(disk.both.plain.image), disk.source.read_bytes()))
    assert len(copy) == len(wanted)
    for name in ("fat", "ntfs"):
        begin = disk.begin[name]
        end = begin + _SECTORS[name] * SECTOR
        assert copy[begin:end] != wanted[begin:end]
        wanted[begin:end] = copy[begin:end]
    assert copy == wanted
    run("sfdisk", "--verify", "-q", tmp_path / "copy.img")


def test_one_partition_of_it_is_laid_out_as_within_the_disk(disk: Disk, tmp_path: Path) -> None:
    number = {"fat16": 1, "ntfs": 2 if disk.begin["fat"] == MIB else 5}
    for volume, (name, partition) in enumerate(number.items()):
        image = tmp_path / f"{name}.sqlimage"
        report = sqlimage.capture(disk.source, image, partition=partition, defragment=True)
        assert [found.file_system for found in report.volumes] == [name]
        assert torn(image) == []
        alone = restored(image, tmp_path / "alone.img").read_bytes()
        assert alone == restored(disk.both.image, tmp_path / "within.img", volume=volume).read_bytes()


def test_the_command_line_notes_what_it_leaves_as_it_is(disk: Disk, tmp_path: Path) -> None:
    said = tool("capture", disk.source, tmp_path / "i.sqlimage", "--defragment")
    assert said.count("  defragmented: ") == 2
    assert files_of(tmp_path / "i.sqlimage") == files_of(disk.both.image)
