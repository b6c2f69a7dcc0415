"""Composed disks as other programs see them: partitioning programs, mtools, checkers and drivers of file systems."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from sqlimage.filesystem.probe import open_file_system
from sqlimage.media.compose import ComposedDisk, WritableComposedDisk, compose_disk
from sqlimage.media.file import FileDevice, WritableFileDevice
from sqlimage.media.window import Window
from tests.conftest import run
from tests.make import fat, ntfs

FAT_SIZES = {12: 4 << 20, 16: 20 << 20, 32: 40 << 20}


def composed(path: Path) -> ComposedDisk:
    volume = WritableFileDevice(path)
    file_system = open_file_system(volume)
    assert file_system is not None
    facts = file_system.facts
    return compose_disk(volume, file_system=facts.file_system, hidden_sectors=facts.hidden_sectors)


def copy(device: ComposedDisk | Window, path: Path) -> Path:
    """The device as a file, with its holes."""
    with path.open("wb") as file:
        file.truncate(device.size_bytes)
        for extent in device.extents(0, device.size_bytes):
            if extent.is_data:
                file.seek(extent.offset_bytes)
                file.write(device.read(extent.offset_bytes, extent.length_bytes))
    return path


@pytest.fixture(params=["fat12", "fat16", "fat32", "ntfs"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"{request.param}.raw"
    if request.param == "ntfs":
        return ntfs.make_volume(path, 8 << 20)
    bits = int(request.param[3:])
    fat.make_volume(path, FAT_SIZES[bits], bits, sectors_per_cluster=1 if bits == 32 else None)
    fat.fill(path, {"DIR/FILE.TXT": b"content of a file\n" * 100}, tmp_path / "tree")
    return path


def test_partitioning_programs_see_one_active_partition(volume: Path, tmp_path: Path) -> None:
    os_type = {"fat12": "1", "fat16": "6", "fat32": "c", "ntfs": "7"}[volume.stem]
    disk = composed(volume)
    path = copy(disk, tmp_path / "disk.raw")
    table = json.loads(run("sfdisk", "--json", path).stdout)["partitiontable"]
    (partition,) = table["partitions"]
    assert (table["label"], table["sectorsize"]) == ("dos", 512)
    expected = {"start": 2048, "size": volume.stat().st_size // 512, "type": os_type, "bootable": True}
    assert {name: partition[name] for name in expected} == expected
    verified = run("sfdisk", "--verify", path)
    assert b"No errors detected" in verified.stdout + verified.stderr
    shown = run("fdisk", "-l", path, env={**os.environ, "LC_ALL": "C"})
    assert b"does not" not in shown.stdout + shown.stderr
    assert f"Disk identifier: 0x{table['id'][2:]}".encode() in shown.stdout


def test_chs_and_lba_of_the_record_mean_the_same_sectors(volume: Path) -> None:
    disk = composed(volume)
    record = disk.read(446, 16)
    for at, lba in ((1, 2048), (5, 2048 + volume.stat().st_size // 512 - 1)):
        head, low, high = record[at : at + 3]
        cylinder, sector = (low & 0xC0) << 2 | high, low & 0x3F
        place = (cylinder * disk.geometry.tracks_per_cylinder + head) * disk.geometry.sectors_per_track + sector - 1
        assert place == lba


def test_checkers_find_nothing_in_the_partition(volume: Path, tmp_path: Path) -> None:
    before = volume.read_bytes()
    disk = composed(volume)
    shown = copy(Window(disk, disk.partition_offset_bytes, disk.partition_length_bytes), tmp_path / "partition.raw")
    if volume.stem == "ntfs":
        run("ntfsfix", "--no-action", shown)
    else:
        run("fsck.fat", "-n", shown)
    # both boot sectors differ from the stored ones, in the number of hidden sectors only
    after = shown.read_bytes()
    places = [at for at in range(len(before)) if before[at] != after[at]] if before != after else []
    backup = {"fat32": 6 * 512, "ntfs": len(before) - 512}.get(volume.stem)
    assert places == [29, *([backup + 29] if backup else [])]
    assert volume.read_bytes() == before


@pytest.mark.parametrize("volume", ["fat12", "fat16", "fat32"], indirect=True)
def test_mtools_read_the_volume_at_its_offset(volume: Path, tmp_path: Path) -> None:
    path = copy(composed(volume), tmp_path / "disk.raw")
    listed = run("mdir", "-i", f"{path}@@1M", "::/DIR").stdout
    assert re.search(rb"FILE +TXT +1800", listed)
    assert run("mtype", "-i", f"{path}@@1M", "::/DIR/FILE.TXT").stdout == b"content of a file\n" * 100


def test_a_driver_mounts_the_ntfs_partition_and_writes_to_it(tmp_path: Path) -> None:
    path = ntfs.make_volume(tmp_path / "volume.raw", 8 << 20)
    disk = composed(path)
    shown = copy(Window(disk, disk.partition_offset_bytes, disk.partition_length_bytes), tmp_path / "partition.raw")
    with ntfs.mounted(shown) as root:
        (root / "new.txt").write_bytes(b"new")
    # what the driver wrote goes back through the composed disk, as a guest would write it
    volume = WritableFileDevice(path)
    back = compose_disk(volume, file_system="ntfs", hidden_sectors=0)
    assert isinstance(back, WritableComposedDisk)
    back.write(disk.partition_offset_bytes, shown.read_bytes())
    back.flush()
    volume.close()
    with ntfs.mounted(path) as root:
        assert (root / "new.txt").read_bytes() == b"new"
    stored = FileDevice(path)
    assert stored.read(28, 4) == bytes(4)
    stored.close()
