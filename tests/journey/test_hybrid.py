"""Media that are an ISO 9660 volume and a partitioned disk at once, and disks on which one was before."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import sqlimage
from tests.images import noise, tool


def run(*command: object, given: bytes | None = None) -> None:
    subprocess.run([str(word) for word in command], input=given, check=True, capture_output=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hybrid")
    (place / "tree" / "dir").mkdir(parents=True)
    (place / "tree" / "dir" / "file.bin").write_bytes(noise("iso", 3_000_000))
    (place / "tree" / "link").symlink_to("dir/file.bin")
    run("mkfs.fat", "-C", place / "efi.img", 2880)
    run("mcopy", "-i", place / "efi.img", "-", "::boot.efi", given=b"loader")
    return place


@pytest.mark.parametrize("options", [(), ("-appended_part_as_gpt", "-partition_offset", 16)], ids=["mbr", "gpt"])
def test_an_appended_partition_is_a_volume_of_its_own_or_part_of_the_iso(
    tree: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    iso = tmp_path / "h.iso"
    append = ("-append_partition", 2, "0xef", tree / "efi.img")
    run("xorriso", "-as", "mkisofs", "-R", "-V", "LIVE", "-o", iso, *append, *options, tree / "tree")
    report = sqlimage.capture(iso, tmp_path / "i.sqlimage")
    first, *others = report.volumes
    assert (first.file_system, first.captured_as, first.label) == ("iso9660", "files", "LIVE")
    assert [volume.file_system for volume in others] in ([], ["fat12"])
    prefix = "/0" if others else ""
    tool("get", tmp_path / "i.sqlimage", prefix + "/", tmp_path / "out")
    assert (tmp_path / "out" / "dir" / "file.bin").read_bytes() == noise("iso", 3_000_000)
    assert (tmp_path / "out" / "link").readlink() == Path("dir/file.bin")
    if others:
        assert tool("cat", tmp_path / "i.sqlimage", "/1/boot.efi") == "loader"
    tool("restore", tmp_path / "i.sqlimage", tmp_path / "copy.iso")
    assert (tmp_path / "copy.iso").read_bytes() == iso.read_bytes(), "a read-only volume has no free space to leave out"


def test_on_a_disk_that_was_partitioned_anew_the_partitions_count(tree: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    run("xorriso", "-as", "mkisofs", "-R", "-o", disk, tree / "tree")
    with disk.open("r+b") as file:
        file.truncate(24 << 20)
    run("sfdisk", "-q", "--wipe", "never", disk, given=b"label: dos\nstart=2048\n")
    part = tmp_path / "part"
    with part.open("wb") as file:
        file.truncate(23 << 20)
    run("mke2fs", "-q", "-t", "ext4", part)
    run("dd", f"if={part}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc")
    report = sqlimage.capture(disk, tmp_path / "i.sqlimage")
    assert [volume.file_system for volume in report.volumes] == ["ext4"]
    tool("restore", tmp_path / "i.sqlimage", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes()[: 1 << 20] == disk.read_bytes()[: 1 << 20], "what was there before is kept"
