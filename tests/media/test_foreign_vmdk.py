"""A VMDK description names its extents: only plain files beside it are opened."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from sqlimage.errors import FormatError, NotFoundError, RefusedError, SqlimageError
from sqlimage.media.foreign.source import open_source
from tests.conftest import run
from tests.media.foreign import convert, disk


def description(*extents: str, create_type: str = "monolithicFlat", parent: str = "ffffffff") -> bytes:
    lines = ["# Disk DescriptorFile", "version=1", "CID=12345678", f"parentCID={parent}"]
    return "\n".join([*lines, f'createType="{create_type}"', "", "# Extent description", *extents, ""]).encode()


def content_of(path: Path) -> bytes:
    device = open_source(path)
    try:
        return device.read(0, device.size_bytes)
    finally:
        device.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a flat extent of 1 MiB in it, and a secret beside the directory."""
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm" / "flat.vmdk").write_bytes(b"flat".ljust(1 << 20, b"."))
    (tmp_path / "secret").write_bytes(b"secret".ljust(1 << 20, b"."))
    return tmp_path / "vm"


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_what_qemu_makes_of_several_files_is_read(subformat: str, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(disk())
    path = convert(tmp_path / "raw", tmp_path / "a, b:c.vmdk", "vmdk", "-o", f"subformat={subformat}")
    assert len(list(tmp_path.iterdir())) == 3
    assert content_of(path) == disk()


def test_extents_follow_each_other(place: Path) -> None:
    (place / "second.bin").write_bytes(b"x" * 512 + b"second".ljust(512, b"!"))
    (place / "d.vmdk").write_bytes(description('RW 2048 FLAT "flat.vmdk" 0', 'RDONLY 1 FLAT "second.bin" 1'))
    assert content_of(place / "d.vmdk") == b"flat".ljust(1 << 20, b".") + b"second".ljust(512, b"!")


def test_lines_end_as_on_windows_too_and_names_may_be_strange(place: Path) -> None:
    for name in (" spaces ", "json:{}", "nbd:x:1", "-o", "a,b", "f%$s", "ü"):
        (place / "flat.vmdk").rename(place / name)
        (place / "d.vmdk").write_bytes(description(f'RW 2048 FLAT "{name}" 0').replace(b"\n", b"\r\n"))
        assert content_of(place / "d.vmdk").startswith(b"flat")
        (place / name).rename(place / "flat.vmdk")


def test_the_description_may_be_reached_by_a_link(place: Path, tmp_path: Path) -> None:
    (place / "d.vmdk").write_bytes(description('RW 2048 FLAT "flat.vmdk" 0'))
    (tmp_path / "link").symlink_to("vm/d.vmdk")
    assert content_of(tmp_path / "link").startswith(b"flat")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "./flat.vmdk", "sub/x", "..", ".", "", "..\\secret"])
def test_an_extent_outside_the_directory_is_refused(name: str, place: Path) -> None:
    (place / "d.vmdk").write_bytes(description(f'RW 2048 FLAT "{name}" 0'))
    with pytest.raises(RefusedError, match="which is no file beside it"):
        open_source(place / "d.vmdk")


def test_an_extent_that_is_no_plain_file_is_refused(place: Path) -> None:
    (place / "link").symlink_to("../secret")
    (place / "inside").symlink_to("flat.vmdk")
    (place / "directory").mkdir()
    os.mkfifo(place / "fifo")
    for name in ("link", "inside", "directory", "fifo"):
        (place / "d.vmdk").write_bytes(description(f'RW 2048 FLAT "{name}" 0'))
        with pytest.raises(RefusedError, match="is named as an extent, but"):
            open_source(place / "d.vmdk")


def test_an_extent_that_is_not_there_is_told(place: Path) -> None:
    (place / "d.vmdk").write_bytes(description('RW 2048 FLAT "gone" 0'))
    with pytest.raises(NotFoundError, match=r"vm/gone: no such file, but .*d.vmdk names it as an extent"):
        open_source(place / "d.vmdk")


@pytest.mark.parametrize(
    ("extent", "create_type"),
    [
        ('RW 63 FLAT "/dev/sda" 0', "partitionedDevice"),
        ('RW 2048 FLAT "flat.vmdk" 0', "fullDevice"),
        ('RW 2048 VMFSRDM "flat.vmdk"', "vmfsRawDeviceMap"),
        ('RW 2048 FLAT "flat.vmdk" 0', "custom"),
    ],
)
def test_disks_of_devices_are_refused(extent: str, create_type: str, place: Path) -> None:
    (place / "d.vmdk").write_bytes(description(extent, create_type=create_type))
    with pytest.raises(RefusedError, match=f"createType '{create_type}' does not consist of files"):
        open_source(place / "d.vmdk")


@pytest.mark.parametrize("line", ["RW 2048 ZERO", 'NOACCESS 2048 FLAT "flat.vmdk" 0', 'RW 2048 VMFSRAW "flat.vmdk"'])
def test_extents_that_qemu_would_pass_over_in_silence_are_refused(line: str, place: Path) -> None:
    (place / "d.vmdk").write_bytes(description('RW 2048 FLAT "flat.vmdk" 0', line))
    with pytest.raises(RefusedError, match="are not read"):
        open_source(place / "d.vmdk")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('RW 4096 FLAT "flat.vmdk" 0', "1048576 bytes, 2097152 are needed"),
        ('RW 1 FLAT "flat.vmdk" 2048', "1048576 bytes, 1049088 are needed"),
        ('RW 999999999999999999 FLAT "flat.vmdk" 999999999999999999', "are needed"),
        ('RW 0 FLAT "flat.vmdk" 0', "no sectors"),
        ('RW 2048 FLAT "flat.vmdk"', "no place"),
        ('RW 2048 SPARSE "flat.vmdk"', "is none of kind SPARSE"),
        ('RW 2048 SESPARSE "flat.vmdk"', "is none of kind SESPARSE"),
        ('RW many FLAT "flat.vmdk" 0', "cannot be understood"),
        ('RW 2048 FLAT "flat.vmdk', "cannot be understood"),
        ("", "it names no extent"),
    ],
)
def test_a_description_that_contradicts_its_files_is_corrupt(line: str, said: str, place: Path) -> None:
    (place / "d.vmdk").write_bytes(description(line))
    with pytest.raises(FormatError, match=said):
        open_source(place / "d.vmdk")


def test_a_description_with_a_parent_is_refused_with_its_name(place: Path) -> None:
    (place / "d.vmdk").write_bytes(
        description('RW 2048 FLAT "flat.vmdk" 0', 'parentFileNameHint="/etc/base.vmdk"', parent="cafebabe")
    )
    with pytest.raises(RefusedError, match=r"needs its parent \(/etc/base.vmdk\)"):
        open_source(place / "d.vmdk")


def test_more_extents_than_a_process_may_open_files_are_refused(place: Path) -> None:
    (place / "d.vmdk").write_bytes(description(*['RW 1 FLAT "flat.vmdk" 0'] * 600))
    with pytest.raises(RefusedError, match="more than 500 extents"):
        open_source(place / "d.vmdk")


def embedded(text: bytes, capacity: int = 0) -> bytes:
    """A sparse file whose header says that the description inside it counts."""
    header = struct.pack("<4sIIQQQQIQQQB", b"KDMV", 1, 3, capacity, 128, 1, 20, 512, 0, 21, 128, 0)
    return header.ljust(512, b"\0") + text.ljust(20 * 512, b"\0") + bytes(512)


def test_a_sparse_file_whose_inner_description_would_count_is_refused(place: Path) -> None:
    """Without a capacity QEMU opens the extents that the description inside names, whatever they are."""
    inner = embedded(description('RW 2048 FLAT "/etc/passwd" 0'))
    (place / "d.vmdk").write_bytes(inner)
    with pytest.raises(FormatError, match="a capacity of 0 is not allowed"):
        open_source(place / "d.vmdk")
    (place / "sparse").write_bytes(inner)
    (place / "d.vmdk").write_bytes(description('RW 2048 SPARSE "sparse"', create_type="twoGbMaxExtentSparse"))
    with pytest.raises(FormatError, match="a capacity of 0 is not allowed"):
        open_source(place / "d.vmdk")


def test_a_sparse_file_whose_description_names_a_parent_is_refused(place: Path) -> None:
    (place / "d.vmdk").write_bytes(embedded(description(parent="00000001"), 2048))
    with pytest.raises(RefusedError, match="needs its parent"):
        open_source(place / "d.vmdk")


def test_a_vmfs_sparse_file_that_names_a_parent_is_refused(place: Path) -> None:
    (place / "d.vmdk").write_bytes(b"COWD".ljust(44, b"\1") + b"base.vmdk".ljust(4096, b"\0"))
    with pytest.raises(RefusedError, match=r"needs its parent \(base.vmdk\)"):
        open_source(place / "d.vmdk")


def test_a_description_is_no_longer_than_one_can_be(place: Path) -> None:
    (place / "d.vmdk").write_bytes(description().ljust((1 << 20) + 1))
    with pytest.raises(FormatError, match="1048577 bytes are too many"):
        open_source(place / "d.vmdk")


def test_a_description_full_of_spaces_takes_no_time(place: Path) -> None:
    for filler in (b" " * (1 << 20), b"RW " + b" " * (1 << 19), b'RW 1 FLAT "' + b"x" * (1 << 19), b"=" * (1 << 19)):
        (place / "d.vmdk").write_bytes((description() + filler)[: 1 << 20])
        with pytest.raises(SqlimageError):
            open_source(place / "d.vmdk")


def test_a_vmdk_in_one_file_is_read_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(disk())
    path = convert(tmp_path / "raw", tmp_path / "disk.vmdk", "vmdk", "-o", "subformat=streamOptimized")
    run("mv", path, tmp_path / "other")
    assert content_of(tmp_path / "other") == disk()
