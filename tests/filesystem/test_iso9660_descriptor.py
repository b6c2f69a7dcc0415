"""Volume descriptors: what is an ISO 9660 volume, what it is called, how long it is, which of its trees counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.iso9660 import IsoVolume, is_iso9660
from sqlimage.filesystem.iso9660.times import long_time, short_times, uuid_text
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import NO_TIME
from tests.conftest import run
from tests.make.iso import (
    DIRECTORY,
    SECTOR,
    SP,
    STAMP,
    STAMP_SECONDS,
    BareIso,
    both16,
    both32,
    genisoimage,
    mkisofs,
    px,
    record,
    susp,
)

JOLIET = b"%/E"


def volume_of(made: BareIso) -> IsoVolume:
    return IsoVolume(MemoryDevice(made.content))


def paths(made: BareIso) -> list[str]:
    return volume_of(made).scan().entries.path


@pytest.mark.parametrize("size", [0, 1, 512, 16 * SECTOR, 17 * SECTOR - 1])
def test_a_short_device_is_none(size: int) -> None:
    device = MemoryDevice(BareIso().content[:size])
    assert not is_iso9660(device)
    with pytest.raises(InconsistentVolume, match="no Primary Volume Descriptor"):
        IsoVolume(device)


def test_a_descriptor_at_sector_16_makes_the_volume() -> None:
    made = BareIso()
    assert is_iso9660(MemoryDevice(made.content))
    made.patch(16 * SECTOR + 1, b"CDROM")
    assert not is_iso9660(MemoryDevice(made.content))


def test_the_primary_descriptor_may_come_after_others() -> None:
    made = BareIso()
    made.put_sector(16, b"\0CD001\1" + b"SOME OTHER BOOT SYSTEM")
    made.put_descriptor(1, 1)
    made.put_sector(18, b"\xffCD001\1")
    assert is_iso9660(MemoryDevice(made.content))
    assert paths(made) == ["/"]


def test_a_set_without_a_terminator_ends_where_no_descriptor_is() -> None:
    made = BareIso()
    made.put_sector(17, bytes(SECTOR))
    assert paths(made) == ["/"]


@pytest.mark.parametrize(
    ("offset", "field", "problem"),
    [
        (0, b"\xff", "no Primary"),
        (128, both16(0), "Logical Block Size.*is 0"),
        (128, both16(4096), "Logical Block Size.*is 4096"),
        (80, both32(0), "Volume Space Size.*is 0 blocks"),
        (80, both32(16), "Volume Space Size.*outside"),
        (156, b"\x21", "Directory Record at byte 32924"),
        (156 + 32, b"\0", "Length of File Identifier"),
        (156 + 32, b"\2", "Length of File Identifier"),
    ],
)
def test_a_primary_descriptor_that_cannot_be_is_refused(offset: int, field: bytes, problem: str) -> None:
    made = BareIso()
    made.patch(16 * SECTOR + offset, field)
    with pytest.raises(InconsistentVolume, match=problem):
        volume_of(made)


@pytest.mark.parametrize(("offset", "words"), [(2, "leads to bytes"), (10, "leads to bytes")])
def test_a_root_directory_outside_the_volume_is_refused_when_it_is_read(offset: int, words: str) -> None:
    made = BareIso()
    made.patch(16 * SECTOR + 156 + offset, both32(1 << 20))
    with pytest.raises(InconsistentVolume, match=words):
        volume_of(made).scan()


def test_of_two_halves_of_a_number_the_little_endian_one_counts_and_a_note_says_so() -> None:
    made = BareIso(100)
    made.patch(16 * SECTOR + 84, (50).to_bytes(4, "big"))
    facts = volume_of(made).facts
    assert facts.size_bytes == 100 * SECTOR
    assert facts.notes == ("its Volume Space Size is recorded as 100 and as 50; 100 was used",)


@pytest.mark.parametrize("block_bytes", [512, 1024, 2048])
def test_blocks_may_be_smaller_than_sectors(block_bytes: int) -> None:
    made = BareIso(64 * SECTOR // block_bytes, block_bytes=block_bytes)
    place = 40 * SECTOR // block_bytes + (1 if block_bytes < SECTOR else 0)
    made.put_root(record(b"FILE.TXT;1", place, 700))
    made.put(place, b"x" * 700)
    volume = volume_of(made)
    scan = volume.scan()
    assert volume.facts.alignment_bytes == block_bytes
    assert scan.contents.run_offset.tolist()[1:] == [place * block_bytes]
    assert scan.contents.run_length.tolist()[1:] == [-(-700 // block_bytes) * block_bytes]
    assert volume.open(int(scan.entries.record[1])).read(0, 999) == b"x" * 700


@pytest.mark.parametrize("missing", [1, SECTOR, 10 * SECTOR + 5])
def test_a_medium_that_lacks_only_what_nothing_names_is_read_with_a_note(missing: int) -> None:
    made = BareIso(64)
    made.put_root(record(b"FILE.TXT;1", 30, 4000))
    device = MemoryDevice(made.content[:-missing])
    volume = IsoVolume(device)
    size = (64 * SECTOR - missing) // SECTOR * SECTOR
    assert volume.facts.size_bytes == size
    assert volume.allocated() == Runs.of([(0, size)])
    assert volume.facts.notes == (f"it should have 131072 bytes, but its medium ends after {device.size_bytes}",)
    assert len(volume.scan().entries) == 2


@pytest.mark.parametrize("end", [31, 32])
def test_a_medium_that_ends_before_a_file_does_is_refused(end: int) -> None:
    made = BareIso(64)
    made.put_root(record(b"FILE.TXT;1", 30, 2049))
    volume = IsoVolume(MemoryDevice(made.content[: end * SECTOR]))
    if end == 31:
        with pytest.raises(InconsistentVolume, match=r"Location of Extent.*leads to bytes 61440 to 65536"):
            volume.scan()
    else:
        assert len(volume.scan().entries) == 2


def three_trees() -> BareIso:
    made = BareIso(64, rock_ridge=True)
    made.put_root(record(b"PRIMARY.;1", system_use=susp(b"NM", b"\0rock ridge")))
    for number, kind, block, name in ((1, 1, 24, "joliet;1".encode("utf-16-be")), (2, 2, 26, b"enhanced")):
        made.put_descriptor(number, 2, version=kind, escape=JOLIET if number == 1 else b"", root=block)
        made.put_directory(block, record(name))
    made.put_sector(19, b"\xffCD001\1")
    return made


def drop_rock_ridge(made: BareIso) -> None:
    made.patch(20 * SECTOR, record(b"\0", 20, SECTOR, DIRECTORY).ljust(len(made.root_system_use) + 34, b"\0")[:34])
    made.patch(20 * SECTOR + 34, bytes(len(made.root_system_use)))
    made.put_directory(20, record(b"PRIMARY.;1"))


def drop_joliet(made: BareIso) -> None:
    made.patch(17 * SECTOR + 88, b"(B ")


def drop_enhanced(made: BareIso) -> None:
    made.patch(18 * SECTOR + 6, b"\1")


@pytest.mark.parametrize(
    ("drops", "name"),
    [
        ((), "rock ridge"),
        ((drop_rock_ridge,), "joliet"),
        ((drop_rock_ridge, drop_joliet), "enhanced"),
        ((drop_rock_ridge, drop_joliet, drop_enhanced), "PRIMARY"),
        ((drop_joliet, drop_enhanced), "rock ridge"),
    ],
)
def test_the_richest_tree_counts(drops: tuple[Callable[[BareIso], None], ...], name: str) -> None:
    made = three_trees()
    for drop in drops:
        drop(made)
    assert paths(made) == ["/", "/" + name]


@pytest.mark.parametrize(
    "field",
    [
        b"",
        susp(b"SP", b"\xbe\xee\0") + px(0o40755),
        px(0o40755),
        susp(b"SP", b"\xbe\xef\0"),
        susp(b"SP", b"\xbe\xef\0") + susp(b"ER", bytes((3, 0, 0, 1)) + b"AAA"),
    ],
)
def test_rock_ridge_counts_only_where_the_root_says_that_it_is_there(field: bytes) -> None:
    made = BareIso()
    made.root_system_use = field
    made.put_root(record(b"FILE.;1", system_use=susp(b"NM", b"\0name")))
    assert paths(made) == ["/", "/FILE"]


@pytest.mark.parametrize(
    "field",
    [
        px(0o40755),
        susp(b"RR", b"\x89"),
        susp(b"ER", bytes((10, 0, 0, 1)) + b"RRIP_1991A"),
        susp(b"ER", bytes((10, 0, 0, 1)) + b"IEEE_P1282"),
        susp(b"ER", bytes((9, 0, 0, 1)) + b"IEEE_1282"),
    ],
)
def test_rock_ridge_is_told_by_its_identifier_or_by_entries_of_its_own(field: bytes) -> None:
    made = BareIso()
    made.root_system_use = SP + field
    made.put_root(record(b"FILE.;1", system_use=susp(b"NM", b"\0name")))
    assert paths(made) == ["/", "/name"]


@pytest.mark.parametrize("skip", [0, 14])
def test_rock_ridge_is_found_behind_the_fields_of_cd_rom_xa(skip: int) -> None:
    attributes = bytes(6) + b"XA" + bytes(6)
    made = BareIso()
    made.root_system_use = attributes + susp(b"SP", bytes((0xBE, 0xEF, skip))) + susp(b"RR", b"\x89")
    lead = bytes(6) + b"XA" + bytes(6) if skip else b""
    made.put_root(record(b"FILE.;1", system_use=lead + susp(b"NM", b"\0name") + px(0o100600)))
    assert paths(made) == ["/", "/name"]


@pytest.mark.parametrize("escape", [b"%/@", b"%/C", b"%/E"])
def test_every_level_of_joliet_is_known(escape: bytes) -> None:
    made = three_trees()
    drop_rock_ridge(made)
    made.patch(17 * SECTOR + 88, escape)
    assert paths(made) == ["/", "/joliet"]
    made.patch(17 * SECTOR + 7, b"\1")  # an unregistered character set
    assert paths(made) == ["/", "/enhanced"]


def test_system_use_entries_are_not_read_in_other_trees() -> None:
    made = three_trees()
    drop_rock_ridge(made)
    made.put_directory(24, record("joliet".encode("utf-16-be"), system_use=susp(b"NM", b"\0rock ridge")))
    assert paths(made) == ["/", "/joliet"]


def test_a_supplementary_descriptor_of_other_blocks_is_refused() -> None:
    made = three_trees()
    made.patch(17 * SECTOR + 128, both16(1024))
    with pytest.raises(InconsistentVolume, match=r"Logical Block Size.*differs"):
        volume_of(made)


@pytest.mark.parametrize(
    "label",
    ["SHORT", "Mixed Case", "A_VERY_LONG_LABEL_OF_THIRTY_TWO_C", "naïve ☃", "under_score", "sixteen letters!", ""],
)
@pytest.mark.parametrize("options", [(), ("-J",)])
def test_label_and_serial_are_what_blkid_prints(label: str, options: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").touch()
    options = (*options, "-R", "-input-charset", "utf-8", "-V", label[:32])
    images = [genisoimage(tmp_path / "g.iso", tmp_path / "tree", *options)]
    if label and label.isascii():
        images.append(mkisofs(tmp_path / "x.iso", tmp_path / "tree", *options, "--modification-date=2021123123595907"))
    for image in images:
        facts = IsoVolume(MemoryDevice(image.read_bytes())).facts
        lines = [facts.serial, facts.label] if facts.label else [facts.serial]
        printed = run("blkid", "-p", "-o", "value", "-s", "LABEL", "-s", "UUID", image).stdout.decode()
        assert printed.splitlines() == lines


@pytest.mark.parametrize(
    ("joliet", "primary", "label"),
    [
        ("Grüße an alle Wel", b"GR__E_AN_ALLE_WELTEN_UND_MEHR", "Grüße an alle WeLTEN_UND_MEHR"),
        ("a_b", b"A B", "a b"),
        ("Joliet Label", b"ISO_LABEL", "Joliet Label"),
        ("Short", b"SHORT_BUT_LONGER", "Short"),
        ("", b"ONLY PRIMARY", "ONLY PRIMARY"),
        ("cut\0garbage", b"CUT", "cut"),
        ("", b"", None),
    ],
)
def test_labels_of_joliet_and_the_primary_descriptor_complete_each_other(
    joliet: str, primary: bytes, label: str | None
) -> None:
    made = BareIso()
    made.patch(16 * SECTOR + 40, primary.ljust(32))
    made.put_descriptor(1, 2, escape=JOLIET, label=joliet.ljust(16)[:16].encode("utf-16-be"))
    made.put_sector(18, b"\xffCD001\1")
    assert volume_of(made).facts.label == label


def test_the_serial_is_of_the_modification_else_of_the_creation() -> None:
    zeros, date, other = b"0" * 16 + b"\0", b"2024010203040506\0", b"1999123123595999\0"
    assert uuid_text(date, other) == "2024-01-02-03-04-05-06"
    assert uuid_text(zeros, other) == "1999-12-31-23-59-59-99"
    assert uuid_text(zeros, zeros) is None
    assert uuid_text(bytes(17), bytes(17)) is None


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        (STAMP, STAMP_SECONDS),
        (bytes((70, 1, 1, 0, 0, 0, 0)), 0),
        (bytes((0, 1, 1, 0, 0, 0, 0)), -2208988800),
        (bytes((124, 2, 29, 12, 30, 45, 256 - 48)), STAMP_SECONDS + 13 * 3600),
        (bytes((124, 2, 29, 12, 30, 45, 100)), STAMP_SECONDS + 3600),
        (bytes(7), None),
        (bytes((123, 2, 29, 0, 0, 0, 0)), None),
        (bytes((124, 13, 1, 0, 0, 0, 0)), None),
        (bytes((124, 1, 1, 24, 0, 0, 0)), None),
        (bytes((124, 1, 1, 0, 60, 0, 0)), None),
    ],
)
def test_a_short_time_is_told_in_utc(stamp: bytes, seconds: int | None) -> None:
    told = short_times(stamp + STAMP)
    assert told.tolist() == [NO_TIME if seconds is None else seconds * 10**9, STAMP_SECONDS * 10**9]


@pytest.mark.parametrize(
    ("stamp", "hundredths"),
    [
        (b"2024022912304550\x04", STAMP_SECONDS * 100 + 50),
        (b"1970010100000000\x00", 0),
        (b"1678010100000000\x00", -9214560000 * 100),
        (b"0000000000000000\x00", None),
        (b"1600010100000000\x00", None),
        (b"9999010100000000\x00", None),
        (b"2023022900000000\x00", None),
        (b"2024 22912304550\x04", None),
        (bytes(17), None),
        (b"\xb2\xb2\xb2\xb2020101010101\x00"[:17].ljust(17), None),
    ],
)
def test_a_long_time_is_told_in_utc(stamp: bytes, hundredths: int | None) -> None:
    assert long_time(stamp) == (NO_TIME if hundredths is None else hundredths * 10**7)


def test_facts_are_plain_values() -> None:
    facts = volume_of(BareIso()).facts
    assert json.dumps([getattr(facts, name) for name in facts.__slots__])
