"""Volumes that lie: each lie is refused as inconsistent or made harmless, never believed and never a crash."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.contract import EntryKind, Scan
from sqlimage.filesystem.ntfs.volume import NtfsVolume
from sqlimage.media.memory import MemoryDevice
from tests.make.ntfs import VolumeBytes, make_everything, make_volume, mounted

MIB = 1 << 20
FILE_NAME, DATA, ATTRIBUTE_LIST, STANDARD_INFORMATION = 0x30, 0x80, 0x20, 0x10
PARENT, NAME_LENGTH, NAME = 0x00, 0x40, 0x42


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_everything(tmp_path_factory.mktemp("hostile") / "v.img")


@pytest.fixture
def made(pristine: bytes) -> VolumeBytes:
    return VolumeBytes(pristine)


@pytest.fixture(scope="module")
def record(pristine: bytes) -> dict[str, int]:
    """Record numbers by path."""
    entries = NtfsVolume(MemoryDevice(pristine)).scan().entries
    return dict(zip(entries.path, entries.record.tolist(), strict=True))


def scan(made: VolumeBytes) -> Scan:
    return NtfsVolume(MemoryDevice(made.content)).scan()


def reference(number: int, sequence: int) -> bytes:
    return struct.pack("<Q", number | sequence << 48)


def test_a_file_whose_parent_was_replaced_is_an_orphan(made: VolumeBytes, record: dict[str, int]) -> None:
    made.patch_value(record["/large"], FILE_NAME, PARENT, reference(record["/a"], 77))
    paths = scan(made).entries.path
    assert f"/$OrphanFiles/{record['/large']}-large" in paths
    assert "/large" not in paths and "/a/large" not in paths


@pytest.mark.parametrize("parent", ["/small", "/sparse"])
def test_a_file_whose_parent_is_no_directory_is_an_orphan(
    made: VolumeBytes, record: dict[str, int], parent: str
) -> None:
    made.patch_value(record["/large"], FILE_NAME, PARENT, reference(record[parent], 0))
    assert f"/$OrphanFiles/{record['/large']}-large" in scan(made).entries.path


@pytest.mark.parametrize("parent", [1 << 40, (1 << 48) - 1, 2000])
def test_a_file_whose_parent_is_beyond_the_mft_is_an_orphan(
    made: VolumeBytes, record: dict[str, int], parent: int
) -> None:
    made.patch_value(record["/large"], FILE_NAME, PARENT, reference(parent, 1))
    assert f"/$OrphanFiles/{record['/large']}-large" in scan(made).entries.path


@pytest.mark.parametrize("inner", ["/a", "/a/b", "/a/b/c"])
def test_a_directory_within_itself_is_an_orphan_with_all_it_holds(
    made: VolumeBytes, record: dict[str, int], inner: str
) -> None:
    made.patch_value(record["/a"], FILE_NAME, PARENT, reference(record[inner], 0))
    entries = scan(made).entries
    below = [path for path in entries.path if path.startswith("/$OrphanFiles/")]
    assert {os.path.basename(path).split("-")[-1] for path in below} == {"a", "b", "c", "file", "second", "linked"}
    assert len(entries) == len(record)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a/b", "a\u2215b"),
        ("a\0b", "a\u2400b"),
        ("..", "\u2024\u2024"),
        (".", "\u2024"),
        ("\ud800x", "\ud800x"),
        ("x\ud800", "x\ud800"),
    ],
)
def test_a_name_cannot_be_mistaken_for_a_path(made: VolumeBytes, record: dict[str, int], name: str, shown: str) -> None:
    units = name.encode("utf-16-le", "surrogatepass")
    made.patch_value(record["/large"], FILE_NAME, NAME, units)
    made.patch_value(record["/large"], FILE_NAME, NAME_LENGTH, bytes([len(units) // 2]))
    assert f"/{shown}" in scan(made).entries.path


def test_two_files_of_one_name_are_two_entries(made: VolumeBytes, record: dict[str, int]) -> None:
    made.patch_value(record["/large"], FILE_NAME, NAME, "small".encode("utf-16-le"))
    paths = scan(made).entries.path
    assert len(set(paths)) == len(paths)
    assert {"/small", f"/small~{max(record['/large'], record['/small'])}"} <= set(paths)


def test_a_nameless_file_is_listed_by_its_number(made: VolumeBytes, record: dict[str, int]) -> None:
    made.patch_value(record["/large"], FILE_NAME, NAME_LENGTH + 1, b"\x02")  # as if its only name were an 8.3 alias
    assert f"/$OrphanFiles/{record['/large']}" in scan(made).entries.path


def nested(image: Path, levels: int, files: int) -> VolumeBytes:
    """Directories of 40-letter names, each in the one before, and files in the last."""
    make_volume(image, 48 * MIB)
    with mounted(image) as root:
        for i in range(levels):
            (root / f"{i:040}").mkdir()
        for i in range(files):
            (root / f"file{i}").touch()
    made = VolumeBytes(image.read_bytes())
    entries = scan(made).entries
    above = 5
    for path, number in sorted(zip(entries.path, entries.record.tolist(), strict=True)):
        if path.startswith(("/0", "/file")):
            made.patch_value(number, FILE_NAME, PARENT, reference(above, 0))
            above = number if path.startswith("/0") else above
    return made


def test_a_path_longer_than_windows_can_open_starts_anew(tmp_path: Path) -> None:
    entries = scan(nested(tmp_path / "v.img", 1200, 0)).entries
    assert int((entries.kind == EntryKind.DIRECTORY).sum()) == 1201
    assert 30_000 < max(map(len, entries.path)) <= 32767
    assert any(path.startswith("/$OrphanFiles/") for path in entries.path)


def test_paths_that_outgrow_the_volume_are_refused_before_they_are_made(tmp_path: Path) -> None:
    with pytest.raises(InconsistentVolume, match="nested so deeply"):
        scan(nested(tmp_path / "v.img", 700, 1400))


def test_an_unused_record_may_hold_anything(made: VolumeBytes, record: dict[str, int]) -> None:
    before = scan(made)
    unused = max(record.values()) + 5
    for garbage in (b"BAAD" + b"\xff" * 1020, bytes(1024), b"FILE" + bytes(18) + b"\0\0" + b"\xff" * 1000):
        at = made.record_at(unused)
        made.content[at : at + 1024] = garbage
        assert scan(made).entries.path == before.entries.path


def damage(made: VolumeBytes, number: int, how: str) -> None:
    at = made.record_at(number)
    first = made.attribute_at(number, STANDARD_INFORMATION)
    data = made.attribute_at(number, DATA)
    if how == "signature":
        made.content[at : at + 4] = b"BAAD"
    elif how == "zeros":
        made.content[at : at + 1024] = bytes(1024)
    elif how == "torn":
        made.content[at + 1022] ^= 1
    elif how == "update sequence array":
        made.content[at + 4 : at + 6] = b"\xfe\x03"
    else:
        where, value = {
            "first attribute": (0x14, b"\x03\x00"),
            "first attribute beyond": (0x14, b"\xf8\xff"),
            "length beyond": (0x18, b"\xff\xff\xff\x7f"),
            "length zero": (0x18, bytes(4)),
            "attribute of no length": (first + 4, bytes(4)),
            "attribute of odd length": (first + 4, b"\x61\0\0\0"),
            "attribute of endless length": (first + 4, b"\xf8\xff\xff\xff"),
            "attribute of type 0": (first, bytes(4)),
            "value beyond": (first + 0x10, b"\xff\xff\0\0"),
            "name beyond": (first + 9, b"\xff"),
            "form": (first + 8, b"\x02"),
            "standard information too short": (first + 0x10, b"\x10\0\0\0"),
            "negative lowest VCN": (data + 0x10, b"\xff" * 8),
            "highest VCN": (data + 0x18, b"\xff" * 7 + b"\x7f"),
            "mapping pairs beyond": (data + 0x20, b"\xff\xff"),
            "mapping pairs in the header": (data + 0x20, b"\x10\0"),
            "size": (data + 0x30, b"\xff" * 7 + b"\x7f"),
            "negative size": (data + 0x30, b"\xff" * 8),
            "negative valid length": (data + 0x38, b"\xff" * 8),
            "run beyond the volume": (data + 0x40, b"\x31\x45\xff\xff\x7f\0"),
        }[how]
        made.patch(number, where, value)


DAMAGES = (
    "signature",
    "zeros",
    "torn",
    "update sequence array",
    "standard information too short",
    "first attribute",
    "first attribute beyond",
    "length beyond",
    "length zero",
    "attribute of no length",
    "attribute of odd length",
    "attribute of endless length",
    "attribute of type 0",
    "value beyond",
    "name beyond",
    "form",
    "negative lowest VCN",
    "highest VCN",
    "mapping pairs beyond",
    "mapping pairs in the header",
    "size",
    "negative size",
    "negative valid length",
    "run beyond the volume",
)
SEEN_BY_SCANS_ONLY = DAMAGES[:2] + DAMAGES[4:5]
"""A record without its signature is one that is not in use; times do not matter to a file's bytes."""


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("path", ["/large", "/$MFT"])
def test_a_damaged_record_in_use_makes_the_volume_inconsistent(
    made: VolumeBytes, record: dict[str, int], path: str, how: str
) -> None:
    damage(made, record[path], how)
    with pytest.raises(InconsistentVolume):
        scan(made)


@pytest.mark.parametrize("how", sorted(set(DAMAGES) - set(SEEN_BY_SCANS_ONLY)))
def test_a_damaged_record_is_no_better_when_opened_alone(made: VolumeBytes, record: dict[str, int], how: str) -> None:
    damage(made, record["/large"], how)
    with pytest.raises(InconsistentVolume):
        NtfsVolume(MemoryDevice(made.content)).open(record["/large"])


def test_a_valid_length_beyond_the_size_counts_as_the_size(made: VolumeBytes, record: dict[str, int]) -> None:
    made.patch(record["/large"], made.attribute_at(record["/large"], DATA) + 0x38, b"\xff" * 6 + b"\0\0")
    found = scan(made)
    row = found.entries.content[found.entries.path.index("/large")]
    assert found.contents.valid_bytes[row] == found.contents.size_bytes[row] == 70_000


def test_what_lies_behind_the_valid_length_is_never_shown(made: VolumeBytes, record: dict[str, int]) -> None:
    made.patch(record["/large"], made.attribute_at(record["/large"], DATA) + 0x38, struct.pack("<Q", 1000))
    content = NtfsVolume(MemoryDevice(made.content)).open(record["/large"])
    assert content.read(0, 70_000) == b"L" * 1000 + bytes(69_000)
    assert content.read(990, 20) == b"L" * 10 + bytes(10)


def test_a_bitmap_shorter_than_the_volume_is_refused(made: VolumeBytes) -> None:
    made.patch(6, made.attribute_at(6, DATA) + 0x30, struct.pack("<Q", 100))
    with pytest.raises(InconsistentVolume, match="Bitmap"):
        NtfsVolume(MemoryDevice(made.content)).allocated()


def list_entries(made: VolumeBytes, number: int) -> tuple[int, int]:
    """Where a record's resident $ATTRIBUTE_LIST's value starts, and its length."""
    at = made.attribute_at(number, ATTRIBUTE_LIST)
    data = made.record(number)
    if data[at + 8] == 0:
        length, value = struct.unpack_from("<IH", data, at + 0x10)
        return made.record_at(number) + at + value, length
    (pairs,) = struct.unpack_from("<H", data, at + 0x20)
    (length,) = struct.unpack_from("<Q", data, at + 0x30)
    head = data[at + pairs]
    start = at + pairs + 1 + (head & 15)
    lcn = int.from_bytes(data[start : start + (head >> 4)], "little", signed=True)
    return lcn * made.cluster_bytes, length


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0x04, b"\0\0"),
        (0x04, b"\x1f\0"),
        (0x04, b"\xf8\xff"),
        (0x00, b"\x81\0\0\0"),
        (0x08, b"\x01" * 8),
        (0x10, struct.pack("<Q", 1 << 47)),
        (0x10, struct.pack("<Q", 16)),
        (0x10, struct.pack("<Q", 5)),
        (0x16, b"\x99\x99"),
        (0x18, b"\x77\x77"),
    ],
    ids=["no length", "odd length", "endless", "type", "VCN", "beyond", "unused", "another file", "stale", "instance"],
)
def test_an_attribute_list_that_leads_nowhere_is_refused(
    made: VolumeBytes, record: dict[str, int], field: int, value: bytes
) -> None:
    start, length = list_entries(made, record["/sparse"])
    last = start + length - 0x20
    made.content[last + field : last + field + len(value)] = value
    with pytest.raises(InconsistentVolume):
        scan(made)
    with pytest.raises(InconsistentVolume):
        NtfsVolume(MemoryDevice(made.content)).open(record["/sparse"])


def test_an_attribute_listed_twice_is_refused(made: VolumeBytes, record: dict[str, int]) -> None:
    start, length = list_entries(made, record["/sparse"])
    end = start + length
    made.content[end - 0x20 : end] = made.content[end - 0x40 : end - 0x20]
    with pytest.raises(InconsistentVolume):
        scan(made)
    with pytest.raises(InconsistentVolume):
        NtfsVolume(MemoryDevice(made.content)).open(record["/sparse"])


def test_a_malformed_compression_unit_is_refused_when_it_is_read(made: VolumeBytes, record: dict[str, int]) -> None:
    found = scan(made)
    row = int(found.entries.content[found.entries.path.index("/packed/text")])
    place = int(found.contents.run_offset[found.contents.first_run[row]])
    made.content[place + 2 : place + 40] = b"\xff" * 38
    with pytest.raises(InconsistentVolume):
        NtfsVolume(MemoryDevice(made.content)).open(record["/packed/text"]).read(0, 100)


@pytest.mark.parametrize("size", [4095, 8192, 100_000, 2 * MIB])
def test_a_cut_volume_is_refused(pristine: bytes, size: int) -> None:
    with pytest.raises(InconsistentVolume):
        NtfsVolume(MemoryDevice(pristine[:size])).scan()
