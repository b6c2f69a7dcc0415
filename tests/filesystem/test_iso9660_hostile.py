"""Volumes that contradict themselves: refused by name or read in bounded time, never anything else."""

from __future__ import annotations

import pytest

from sqlimage.errors import InconsistentVolume, NotFoundError
from sqlimage.filesystem.contract import EntryKind, Scan
from sqlimage.filesystem.iso9660 import IsoVolume
from sqlimage.media.memory import MemoryDevice
from tests.make.iso import (
    ASSOCIATED,
    DIRECTORY,
    MULTI_EXTENT,
    SECTOR,
    BareIso,
    both16,
    both32,
    nm,
    px,
    record,
)


def made_of(*records: bytes) -> BareIso:
    made = BareIso()
    made.put_root(*records)
    return made


def scan(made: BareIso) -> Scan:
    return IsoVolume(MemoryDevice(made.content)).scan()


def refused(made: BareIso, match: str) -> None:
    with pytest.raises(InconsistentVolume, match=match):
        scan(made)


@pytest.mark.parametrize("block", [20, 30])
def test_a_directory_that_holds_itself_or_the_root_is_refused(block: int) -> None:
    made = made_of(record(b"A", 30, SECTOR, DIRECTORY))
    made.put_directory(30, record(b"B", block, SECTOR, DIRECTORY))
    refused(made, "directory '/A/B' .*is reached a second time")


def test_two_directories_in_one_place_are_refused() -> None:
    made = made_of(record(b"A", 30, SECTOR, DIRECTORY), record(b"B", 30, SECTOR, DIRECTORY))
    made.put_directory(30)
    refused(made, "directory '/B' .*is reached a second time")


def test_directories_that_overlap_are_refused() -> None:
    made = made_of(record(b"A", 30, 2 * SECTOR, DIRECTORY), record(b"B", 31, SECTOR, DIRECTORY))
    made.put_directory(30, size=2 * SECTOR)
    made.put_directory(31)
    refused(made, "two of them lie in the same place")


def test_a_directory_of_no_length_is_empty() -> None:
    found = scan(made_of(record(b"A", 0xFFFFFFFF, 0, DIRECTORY)))
    assert found.entries.path == ["/", "/A"]
    assert found.entries.kind[1] == EntryKind.DIRECTORY


def test_a_root_directory_of_no_length_is_refused() -> None:
    made = BareIso()
    made.patch(16 * SECTOR + 156 + 10, both32(0))
    refused(made, "root directory has no length")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x21" + bytes(40), "its length of 33 bytes"),
        (b"\x01" + bytes(40), "its length of 1 bytes"),
        (b"\xff" + bytes(31) + b"\xff", "File Identifier.*is 255 in a record of 255"),
        (b"\x22" + bytes(31) + b"\x02", "File Identifier.*is 2 in a record of 34"),
        (b"\x22" + bytes(31) + b"\x00", "File Identifier.*is 0 in a record of 34"),
    ],
)
def test_a_record_that_cannot_be_is_refused(data: bytes, words: str) -> None:
    made = BareIso()
    made.patch(20 * SECTOR + 68, data)
    refused(made, words)


def test_a_record_that_crosses_into_the_next_sector_is_refused() -> None:
    made = BareIso(root_blocks=2)
    made.put_root(*[record(b"%037d" % n) for n in range(28)])
    at = 68 + 28 * 70
    assert SECTOR - at < 34 + 6
    made.patch(20 * SECTOR + at, record(b"LONGER"))
    refused(made, "its length of 40 bytes cannot be there")


def test_behind_a_record_of_no_length_the_next_sector_follows() -> None:
    made = BareIso(root_blocks=3)
    made.put_root(record(b"FIRST"))
    made.patch(22 * SECTOR, record(b"LAST"))
    made.patch(20 * SECTOR + 1000, b"\xff" * 300)  # never looked at
    assert scan(made).entries.path == ["/", "/FIRST", "/LAST"]


def test_a_directory_may_end_within_a_sector() -> None:
    made = made_of(record(b"FIRST"))
    made.patch(16 * SECTOR + 156 + 10, both32(68 + len(record(b"FIRST"))))
    made.patch(20 * SECTOR + 68 + len(record(b"FIRST")), b"\xff" * 100)
    assert scan(made).entries.path == ["/", "/FIRST"]


@pytest.mark.parametrize("missing", [1, 20, 37])
def test_a_record_that_reaches_behind_its_directory_is_refused(missing: int) -> None:
    made = made_of(record(b"FIRST"))
    made.patch(16 * SECTOR + 156 + 10, both32(68 + len(record(b"FIRST")) - missing))
    refused(made, "its length of 38 bytes cannot be there")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"A/B", "A\u2215B"),
        (b"A\0B", "A\u2400B"),
        (b"..;1", "\u2024"),
        (b"..", "\u2024"),
        (b".;1", "_"),
        (b"\0\0", "\u2400\u2400"),
        (b";1", "_"),
        (b"A.;2", "A.;2"),
        (b"A.B.;1", "A.B"),
        (b"\xff\xfe", "\udcff\udcfe"),
    ],
)
def test_a_name_that_no_path_can_have_is_shown_by_another(name: bytes, shown: str) -> None:
    assert scan(made_of(record(name))).entries.path == ["/", "/" + shown]


def test_names_of_joliet_that_are_not_unicode_are_shown_by_another() -> None:
    made = BareIso()
    made.put_descriptor(1, 2, escape=b"%/E", root=30)
    made.put_sector(18, b"\xffCD001\1")
    made.put_directory(30, record(b"\xd8\0"), record(b"\0A\0"), record(b"\0/\0\0"), record("x;1".encode("utf-16-be")))
    assert scan(made).entries.path == ["/", "/\ufffd", "/A\ufffd", "/\u2215\u2400", "/x"]


def test_names_are_unique() -> None:
    made = made_of(*[record(name) for name in (b"A", b"A;1", b"A.;1", b"A~2", b"A")])
    assert scan(made).entries.path == ["/", "/A", "/A~3", "/A~4", "/A~2", "/A~5"]


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (record(b"F", 64, 1), "leads to bytes 131072 to 133120, the volume has 131072"),
        (record(b"F", 63, SECTOR + 1), "leads to bytes 129024 to 133120"),
        (record(b"F", 0xFFFFFFFF, 0xFFFFFFFF), "leads to bytes"),
        (record(b"F", 63, 1, attribute_blocks=1), "leads to bytes"),
        (record(b"F", 30, 5000, unit=1, gap=1), "interleaved"),
        (record(b"F", 30, 5000, gap=1), "interleaved"),
        (record(b"D", 63, SECTOR + 1, DIRECTORY), "leads to bytes"),
    ],
)
def test_a_file_that_lies_nowhere_is_refused(one: bytes, words: str) -> None:
    refused(made_of(one), words)


def test_a_file_on_another_volume_of_a_set_is_refused() -> None:
    made = made_of(record(b"F", 30, 5, sequence=2))
    assert len(scan(made).entries) == 2  # the set has one volume: the number is a slip
    made.patch(16 * SECTOR + 120, both16(2))
    refused(made, "lies on volume 2 of its set")


def test_an_extended_attribute_record_is_not_the_file_s() -> None:
    made = made_of(record(b"F", 30, 4, attribute_blocks=2), record(b"D", 40, SECTOR, DIRECTORY, attribute_blocks=1))
    made.put(32, b"data")
    made.put_directory(41, record(b"G"))
    volume = IsoVolume(MemoryDevice(made.content))
    found = volume.scan()
    assert found.entries.path == ["/", "/F", "/D", "/D/G"]
    assert volume.open(int(found.entries.record[1])).read(0, 9) == b"data"


def sections(*parts: tuple[bytes, int, int, int]) -> BareIso:
    return made_of(*[record(name, block, size, flags) for name, block, size, flags in parts], record(b"Z"))


def test_sections_are_one_file() -> None:
    made = sections(
        (b"F", 30, 2 * SECTOR, MULTI_EXTENT),
        (b"F", 40, SECTOR, MULTI_EXTENT),
        (b"F", 41, SECTOR, MULTI_EXTENT),
        (b"F", 50, 10, 0),
    )
    for number, block in enumerate((30, 31, 40, 41, 50)):
        made.put(block, bytes((65 + number,)) * SECTOR)
    volume = IsoVolume(MemoryDevice(made.content))
    found = volume.scan()
    assert found.entries.path == ["/", "/F", "/Z"]
    assert found.contents.size_bytes[1] == 4 * SECTOR + 10
    assert found.contents.run_offset.tolist()[1:] == [30 * SECTOR, 40 * SECTOR, 50 * SECTOR]
    assert found.contents.run_length.tolist()[1:] == [2 * SECTOR, 2 * SECTOR, SECTOR]
    data = volume.open(int(found.entries.record[1])).read(0, 1 << 20)
    assert data == b"".join(bytes((65 + n,)) * (10 if n == 4 else SECTOR) for n in range(5))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([(b"F", 30, SECTOR, MULTI_EXTENT)], "its last section is not there"),
        ([(b"F", 30, SECTOR, MULTI_EXTENT), (b"G", 40, 5, 0)], "its last section is not there"),
        ([(b"F", 30, 0, MULTI_EXTENT), (b"F", 40, 5, 0)], "a section of 0 bytes"),
        ([(b"F", 30, 5, MULTI_EXTENT), (b"F", 40, 5, 0)], "a section of 5 bytes"),
        ([(b"F", 30, SECTOR, MULTI_EXTENT), (b"F", 40, 5, DIRECTORY)], "different kinds"),
        ([(b"F", 30, SECTOR, MULTI_EXTENT), (b"F", 40, 5, ASSOCIATED)], "different kinds"),
        ([(b"F", 30, SECTOR, MULTI_EXTENT | DIRECTORY), (b"F", 40, 5, 0)], "a directory has several"),
        ([(b"F", 30, SECTOR, MULTI_EXTENT), (b"F", 64, 5, 0)], "leads to bytes"),
        ([(b"F", 0, 48 * SECTOR, MULTI_EXTENT), (b"F", 0, 48 * SECTOR, 0)], "larger than the volume"),
    ],
)
def test_sections_that_do_not_make_a_file_are_refused(parts: list[tuple[bytes, int, int, int]], words: str) -> None:
    refused(sections(*parts), words)


def test_a_last_section_at_the_end_of_a_directory_is_missed() -> None:
    made = made_of(record(b"F", 30, SECTOR, MULTI_EXTENT))
    refused(made, "its last section is not there")
    with pytest.raises(InconsistentVolume):
        IsoVolume(MemoryDevice(made.content)).open(20 * SECTOR + 68)


@pytest.mark.parametrize(("sector", "is_right"), [(21, True), (22, False)])
def test_the_next_section_follows_in_the_same_or_the_next_sector(sector: int, is_right: bool) -> None:
    made = BareIso(root_blocks=3)
    made.put_root(record(b"F", 30, SECTOR, MULTI_EXTENT))
    made.put_sector(sector, record(b"F", 40, 5))
    volume = IsoVolume(MemoryDevice(made.content))
    if is_right:
        assert volume.open(int(volume.scan().entries.record[1])).size_bytes == SECTOR + 5
    else:
        refused(made, "its last section is not there")
        with pytest.raises(InconsistentVolume):
            volume.open(20 * SECTOR + 68)


def test_an_associated_file_comes_before_or_without_its_file() -> None:
    made = made_of(record(b"F", 30, 5, ASSOCIATED), record(b"F", 31, 6), record(b"G", 32, 7, ASSOCIATED))
    found = scan(made)
    assert found.entries.path == ["/", "/F:associated", "/F", "/G:associated"]
    assert found.contents.stream == ["", "associated", "", "associated"]


@pytest.mark.parametrize("record_", [-1, 0, 16 * SECTOR + 155, 17 * SECTOR, 40 * SECTOR, 64 * SECTOR, 1 << 62])
def test_a_record_that_is_none_is_not_found(record_: int) -> None:
    volume = IsoVolume(MemoryDevice(made_of(record(b"F", 30, 5)).content))
    with pytest.raises(NotFoundError):
        volume.open(record_)


def test_opening_any_record_of_a_volume_only_finds_or_does_not_find() -> None:
    made = BareIso(rock_ridge=True)
    made.put_root(
        record(b"F", 40, 5, 0, px(0o100644) + nm(b"name")),
        record(b"L", 0, 0, 0, px(0o120777)),
        record(b"N", 0, 0, 0, px(0o020600)),
        record(b"D", 30, SECTOR, DIRECTORY),
        record(b"F", 41, SECTOR, MULTI_EXTENT),
        record(b"F", 45, 5),
    )
    made.put_directory(30, record(b"G", 50, 7))
    volume = IsoVolume(MemoryDevice(made.content))
    found = volume.scan()
    opened = set()
    for at in range(len(made.content) + 10):
        try:
            volume.open(at).read(0, 100)
            opened.add(at)
        except (NotFoundError, InconsistentVolume):
            pass
    has_content = found.entries.content >= 0
    assert set(found.entries.record[has_content].tolist()) <= opened
    assert len(opened) < 40
    with pytest.raises(NotFoundError):
        volume.open(int(found.entries.record[1]), "stream")
