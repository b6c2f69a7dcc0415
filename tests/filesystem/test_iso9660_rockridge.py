"""System Use entries built byte by byte: names, modes, times, links, moved directories, Continuation Areas."""

from __future__ import annotations

import struct

import pytest

from sqlimage.errors import InconsistentVolume, NotFoundError
from sqlimage.filesystem.contract import EntryKind, Scan
from sqlimage.filesystem.iso9660 import IsoVolume
from sqlimage.filesystem.iso9660.rockridge import AREAS_MAX, TARGET_BYTES_MAX
from sqlimage.media.memory import MemoryDevice
from tests.make.iso import (
    DIRECTORY,
    SECTOR,
    STAMP,
    STAMP_SECONDS,
    BareIso,
    ce,
    cl,
    nm,
    px,
    record,
    sl,
    susp,
)

TEXT, CURRENT, PARENT, ROOT, GOES_ON = 0, 2, 4, 8, 1
LINK = px(0o120777)


def made_of(*records: bytes) -> BareIso:
    made = BareIso(rock_ridge=True)
    made.put_root(*records)
    return made


def scan(made: BareIso) -> Scan:
    return IsoVolume(MemoryDevice(made.content)).scan()


def named(*system_use: bytes) -> BareIso:
    """A volume with one file that has these entries."""
    return made_of(record(b"PLAIN.;1", 40, 5, system_use=b"".join(system_use)))


def refused(made: BareIso, match: str) -> None:
    with pytest.raises(InconsistentVolume, match=match):
        scan(made)


@pytest.mark.parametrize(
    ("system_use", "name"),
    [
        (nm(b"name"), "name"),
        (nm(b"first ", 1) + nm(b"second"), "first second"),
        (nm(b"first ", 1) + px(0o100644) + nm(b"second"), "first second"),
        (nm(b"whole") + nm(b"not a part"), "whole"),
        (nm(b""), "PLAIN"),
        (nm(b"", 2), "PLAIN"),
        (nm(b"x", 4), "PLAIN"),
        (susp(b"NM"), "PLAIN"),
        (b"", "PLAIN"),
        (nm(b"caf\xe9"), "caf\udce9"),
        (nm("café".encode()), "café"),
        (nm(b"a/b"), "a\u2215b"),
        (nm(b"a\0b"), "a\u2400b"),
        (nm(b".."), "\u2024\u2024"),
        (nm(b"."), "\u2024"),
        (susp(b"AA", bytes(10)) + nm(b"after what is unknown"), "after what is unknown"),
        (nm(b"before the end") + susp(b"ST") + nm(b"after"), "before the end"),
        (susp(b"ST") + nm(b"name"), "PLAIN"),
        (b"NM\xff\1\0too long", "PLAIN"),
        (b"NM\3\1" + nm(b"never reached"), "PLAIN"),
    ],
)
def test_a_name_is_what_nm_tells_else_the_plain_one(system_use: bytes, name: str) -> None:
    assert scan(named(system_use)).entries.path == ["/", "/" + name]


@pytest.mark.parametrize(
    ("mode", "kind", "attributes"),
    [
        (0o100644, EntryKind.FILE, 0o100644),
        (0o104755, EntryKind.FILE, 0o104755),
        (0o040755, EntryKind.FILE, 0o100755),  # the record says file
        (0o000600, EntryKind.FILE, 0o100600),
        (0o120777, EntryKind.SYMLINK, 0o120777),
        (0o020666, EntryKind.SPECIAL, 0o020666),
        (0o060660, EntryKind.SPECIAL, 0o060660),
        (0o010600, EntryKind.SPECIAL, 0o010600),
        (0o140600, EntryKind.SPECIAL, 0o140600),
    ],
)
def test_the_mode_tells_the_kind_of_what_is_recorded_as_a_file(mode: int, kind: EntryKind, attributes: int) -> None:
    entries = scan(named(px(mode))).entries
    assert (entries.kind[1], entries.attributes[1]) == (kind, attributes)
    assert (entries.content[1] == -1) == (kind == EntryKind.SPECIAL)


def test_a_directory_is_one_whatever_its_mode_says() -> None:
    made = made_of(record(b"DIR", 30, SECTOR, DIRECTORY, px(0o100700)))
    made.put_directory(30)
    entries = scan(made).entries
    assert (entries.kind[1], entries.attributes[1]) == (EntryKind.DIRECTORY, 0o040700)


LATER = bytes((*STAMP[:6], 0))


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        (b"\x02" + LATER, STAMP_SECONDS + 3600),
        (b"\x03" + bytes(7) + LATER, STAMP_SECONDS + 3600),
        (b"\x0e" + LATER + bytes(14), STAMP_SECONDS + 3600),
        (b"\x82" + b"2024022912304500\x00", STAMP_SECONDS + 3600),
        (b"\x83" + bytes(17) + b"2024022912304500\x00", STAMP_SECONDS + 3600),
        (b"\x01" + bytes(7), STAMP_SECONDS),
        (b"\x02" + LATER[:6], STAMP_SECONDS),
        (b"", STAMP_SECONDS),
    ],
)
def test_the_time_is_of_the_modification_else_the_record_s(body: bytes, seconds: int) -> None:
    assert scan(named(susp(b"TF", body))).entries.modified_ns[1] == seconds * 10**9


@pytest.mark.parametrize(
    ("entries", "target"),
    [
        (sl((TEXT, b"file")), b"file"),
        (sl((ROOT, b"")), b"/"),
        (sl((ROOT, b""), (TEXT, b"usr"), (TEXT, b"lib")), b"/usr/lib"),
        (sl((PARENT, b""), (PARENT, b""), (TEXT, b"x")), b"../../x"),
        (sl((CURRENT, b""), (TEXT, b"x")), b"./x"),
        (sl((TEXT, b"a"), (TEXT, b"")), b"a/"),
        (sl((TEXT, b"a"), (ROOT, b""), (TEXT, b"b")), b"a//b"),
        (sl((GOES_ON, b"lo"), (TEXT, b"ng"), (TEXT, b"er")), b"long/er"),
        (sl((GOES_ON, b"lo"), flags=1) + sl((TEXT, b"ng")), b"long"),
        (sl((TEXT, b"a"), flags=1) + sl((TEXT, b"b")), b"a/b"),
        (sl((TEXT, b"a")) + sl((TEXT, b"never"), flags=0), b"a"),
        (sl(), b""),
        (susp(b"SL"), b""),
        (susp(b"SL", b"\0\0\xffcut"), b"cut"),
        (b"", b""),
    ],
)
def test_a_link_s_target_is_put_together_from_its_components(entries: bytes, target: bytes) -> None:
    made = named(LINK, entries)
    volume = IsoVolume(MemoryDevice(made.content))
    found = volume.scan()
    assert found.entries.kind[1] == EntryKind.SYMLINK
    assert found.contents.size_bytes[1] == len(target)
    assert volume.open(int(found.entries.record[1])).read(0, 5000) == target


def test_a_link_needs_no_mode() -> None:
    assert scan(named(sl((TEXT, b"x")))).entries.kind[1] == EntryKind.SYMLINK
    assert scan(named(px(0o100644), sl((TEXT, b"x")))).entries.kind[1] == EntryKind.FILE


def areas(made: BareIso, *pieces: bytes, first: int = 50) -> bytes:
    """Continuation Areas that follow each other, one a block; gives back the entry that leads to them."""
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        data = piece if last else piece + ce(first + number + 1, 100, 0xFFFF)
        made.patch((first + number) * SECTOR + 100, data)
    lengths = [len(piece) + (0 if number == len(pieces) - 1 else 28) for number, piece in enumerate(pieces)]
    for number, length in enumerate(lengths[1:]):
        at = (first + number) * SECTOR + 100 + lengths[number] - 8
        made.patch(at, struct.pack("<I", length) + struct.pack(">I", length))
    return ce(first, 100, lengths[0])


def test_entries_go_on_in_continuation_areas() -> None:
    made = BareIso(100, rock_ridge=True)
    lead = areas(made, nm(b"b" * 100, 1), nm(b"c" * 100), px(0o100640))
    made.put_root(record(b"PLAIN.;1", system_use=nm(b"a" * 100, 1) + lead))
    entries = scan(made).entries
    assert entries.path[1] == "/" + "a" * 100 + "b" * 100 + "c" * 100
    assert entries.attributes[1] == 0o100640


def test_an_area_may_cross_sectors() -> None:
    made = BareIso(100, rock_ridge=True)
    made.patch(50 * SECTOR - 8, nm(b"across the border"))
    made.put_root(record(b"PLAIN.;1", system_use=ce(49, SECTOR - 8, len(nm(b"across the border")))))
    assert scan(made).entries.path[1] == "/across the border"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (ce(63, 0, SECTOR + 1), "out of the volume"),
        (ce(0xFFFFFFFF, 0, 4), "out of the volume"),
        (ce(40, 0xFFFFFFFF, 4), "out of the volume"),
        (ce(20, 0, 0x5000), "tells of 20480 bytes"),
        (susp(b"CE", bytes(20)), "CE.*has 24 bytes"),
    ],
)
def test_an_area_that_cannot_be_is_refused(entry: bytes, words: str) -> None:
    refused(named(entry), words)


def test_areas_that_lead_to_themselves_are_refused() -> None:
    made = BareIso(100, rock_ridge=True)
    made.put(50, ce(50, 0, 28))
    made.put_root(record(b"PLAIN.;1", system_use=ce(50, 0, 28)))
    refused(made, f"CE.*over {AREAS_MAX} areas")


def test_as_many_areas_as_linux_follows_are_followed() -> None:
    made = BareIso(100, rock_ridge=True)
    lead = areas(made, *[px(0o100600)] * (AREAS_MAX - 1), nm(b"the last"))
    made.put_root(record(b"PLAIN.;1", system_use=lead))
    assert scan(made).entries.path[1] == "/the last"
    lead = areas(made, *[px(0o100600)] * AREAS_MAX, nm(b"one more"))
    made.put_root(record(b"PLAIN.;1", system_use=lead))
    refused(made, f"over {AREAS_MAX} areas")


def test_one_area_that_every_record_names_does_not_multiply() -> None:
    made = BareIso(2000, root_blocks=1000, rock_ridge=True)
    made.root = 500
    made.put_descriptor(0, 1)
    made.put(100, susp(b"XX") * 4096)
    made.put_root(*[record(b"F%05d.;1" % n, system_use=ce(100, 0, 16384)) for n in range(25_000)])
    refused(made, "System Use entries.*far more than files")


def test_a_target_longer_than_a_path_is_refused() -> None:
    long = sl((TEXT, b"x" * 240), flags=1)
    for count, is_right in ((TARGET_BYTES_MAX // 241, True), (TARGET_BYTES_MAX // 241 + 2, False)):
        made = BareIso(100, rock_ridge=True)
        lead = areas(made, long * 7, long * 7, long * (count - 14))
        made.put_root(record(b"PLAIN.;1", system_use=LINK + lead))
        if is_right:
            assert scan(made).contents.size_bytes[1] == count * 241 - 1
        else:
            refused(made, f"SL.*longer than {TARGET_BYTES_MAX} bytes")


def moved() -> BareIso:
    """``/DEEP/child`` lies below ``/moved``."""
    made = made_of(
        record(b"DEEP", 30, SECTOR, DIRECTORY, px(0o040755) + nm(b"deep")),
        record(b"MOVED", 31, SECTOR, DIRECTORY, px(0o040555) + nm(b"moved")),
    )
    made.put_directory(30, record(b"CHILD.;1", 99999, 7, 0, px(0o040711) + nm(b"child") + cl(32)))
    made.put_directory(31, record(b"CHILD", 32, SECTOR, DIRECTORY, nm(b"child") + susp(b"RE")))
    made.put_directory(32, record(b"FILE.;1", 40, 3, 0, nm(b"file")), system_use=px(0o040750) + susp(b"PL", bytes(8)))
    return made


def test_a_moved_directory_is_where_it_came_from() -> None:
    made = moved()
    volume = IsoVolume(MemoryDevice(made.content))
    found = volume.scan()
    assert found.entries.path == ["/", "/deep", "/moved", "/deep/child", "/deep/child/file"]
    at = found.entries.path.index("/deep/child")
    assert (found.entries.kind[at], found.entries.attributes[at]) == (EntryKind.DIRECTORY, 0o040750)
    assert found.entries.record[at] == 32 * SECTOR  # its own first record: the other two are not shown
    assert volume.open(32 * SECTOR).size_bytes == SECTOR
    with pytest.raises(NotFoundError):
        volume.open(30 * SECTOR + 68)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (40, "does not begin with the record of itself"),
        (99999, "CL.*out of the volume"),
        (0xFFFFFFFF, "CL.*out of the volume"),
        (30, "reached a second time"),
        (20, "reached a second time"),
        (31, "reached a second time"),
    ],
)
def test_a_moved_directory_that_is_none_or_another_is_refused(block: int, words: str) -> None:
    made = moved()
    made.put_directory(30, record(b"CHILD.;1", 0, 0, 0, nm(b"child") + cl(block)))
    refused(made, words)


@pytest.mark.parametrize("first", [record(b"\0", 32, SECTOR), record(b"A", 32, SECTOR, DIRECTORY), b""])
def test_a_moved_directory_begins_with_the_record_of_itself(first: bytes) -> None:
    made = moved()
    made.put(32, first + bytes(100))
    refused(made, "does not begin with the record of itself")


def test_a_moved_directory_that_says_it_lies_elsewhere_is_refused() -> None:
    made = moved()
    made.put(32, record(b"\0", 33, SECTOR, DIRECTORY))
    refused(made, "into the middle of a directory")
