"""Sets of directory entries: what they name, and what they may not say."""

from __future__ import annotations

import itertools
import struct
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.errors import InconsistentVolume, NotFoundError
from sqlimage.filesystem.contract import ContentFlag, Scan
from sqlimage.filesystem.exfat import ExfatVolume
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import NO_TIME
from tests.make.exfat import (
    CHAINED,
    CONTIGUOUS,
    DIRECTORY,
    END,
    BareVolume,
    file_set,
    label_entry,
    sealed,
    table_entry,
)

VENDOR = b"\xe0" + bytes(31)
UNUSED = b"\x05" + bytes(31)


def volume_of(*sets: bytes) -> BareVolume:
    """A volume of 4 KiB clusters with these entries in its root directory; clusters 50 to 59 are in use."""
    volume = BareVolume(100, cluster_shift=3)
    volume.write_root(*sets)
    volume.use(*range(50, 60))
    return volume


def scanned(*sets: bytes) -> Scan:
    return ExfatVolume(MemoryDevice(volume_of(*sets).content)).scan()


def names(*sets: bytes) -> list[str]:
    return scanned(*sets).entries.path[1:-2]


def refused(match: str, *sets: bytes) -> None:
    with pytest.raises(InconsistentVolume, match=match) as raised:
        scanned(*sets)
    assert raised.value.structure


def patched(entries: bytes, at: int, data: bytes) -> bytes:
    """An entry set with bytes changed and its checksum made right."""
    return sealed(entries[:at] + data + entries[at + len(data) :])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain.txt", "plain.txt"),
        ("x" * 255, "x" * 255),
        ("𝄞" * 100, "𝄞" * 100),
        ("a/b", "a∕b"),
        ("a\0b", "a␀b"),
        ("\x1b[1m", "␛[1m"),
        ("..", "․․"),
        (".", "․"),
        ("...", "..."),
        ("\ud800x", "\ufffdx"),
        ("x\udc00", "x\ufffd"),
        (" ", " "),
    ],
)
def test_names_are_shown_so_that_they_can_be_a_part_of_a_path(name: str, shown: str) -> None:
    assert names(file_set(name)) == [f"/{shown}"]


def test_names_of_256_characters_are_read_though_their_length_does_not_fit() -> None:
    assert names(file_set("y" * 256)) == [f"/{'y' * 256}"]
    refused("NameLength", file_set("y", name_length=0))


def test_a_name_ends_where_its_length_says() -> None:
    plain = file_set("ab")
    assert names(patched(plain, 64 + 2 + 4, "garbage".encode("utf-16-le"))) == ["/ab"]


def test_two_names_that_are_one_are_told_apart() -> None:
    first, second, _ = names(file_set("same"), file_set("same"), file_set("Same"))
    assert first == "/same"
    assert second.startswith("/same~")


def test_what_is_not_in_use_is_passed_over() -> None:
    assert names(UNUSED * 3, file_set("a"), UNUSED, file_set("b"), b"\x40" + bytes(31)) == ["/a", "/b"]


def test_nothing_behind_the_end_of_a_directory_is_read() -> None:
    assert names(file_set("a"), bytes(32), file_set("b"), b"\x80" * 32) == ["/a"]


def test_benign_entries_of_any_kind_are_passed_over() -> None:
    guid = b"\xa0" + bytes(31)
    acl = b"\xa2" + bytes(31) + VENDOR * 2
    assert names(guid, file_set("a", extra=VENDOR * 3), acl, file_set("b", extra=b"\xff" + bytes(31))) == ["/a", "/b"]


@pytest.mark.parametrize("kind", [0x80, 0x84, 0x86, 0x9F])
def test_critical_primary_entries_of_unknown_types_are_refused(kind: int) -> None:
    refused("critical primary entry", bytes([kind]) + bytes(31))


@pytest.mark.parametrize("kind", [0xC0, 0xC1, 0xC2, 0xDF])
def test_critical_secondary_entries_that_a_set_cannot_have_are_refused(kind: int) -> None:
    refused("critical secondary entry", file_set("a", extra=bytes([kind]) + bytes(31)))
    refused("critical secondary entry", file_set("a", extra=VENDOR + bytes([kind]) + bytes(31)))


def test_secondary_entries_without_a_primary_one_are_refused() -> None:
    refused("secondary entries without a primary one", UNUSED + VENDOR)
    refused("SecondaryCount", file_set("a") + VENDOR)
    refused("secondary entries without a primary one", label_entry("x") + VENDOR)


def test_a_set_that_is_not_whole_is_refused() -> None:
    whole = file_set("a" * 16)
    for count in range(32, len(whole), 32):
        refused("SecondaryCount", whole[:count])
        refused("SecondaryCount", whole[:count] + file_set("b"))
        refused("SecondaryCount|without a primary", whole[:count] + UNUSED + whole[count + 32 :])
    refused("no stream or no name", sealed(b"\x85\x00" + whole[2:32]))
    refused("no stream or no name", sealed(b"\x85\x01" + whole[2:64]))


def test_the_order_of_a_set_is_checked() -> None:
    whole = file_set("a" * 16)
    head, stream, first, second = (whole[at : at + 32] for at in range(0, 128, 32))
    refused("no stream extension follows", sealed(head + first + stream + second))
    refused("a piece of a name is expected", sealed(head + stream + VENDOR + second))
    refused("NameLength needs more", patched(whole, 32 + 3, b"\x1f"))


@pytest.mark.parametrize("at", range(0, 96, 5))
def test_every_byte_of_a_set_is_covered_by_its_checksum(at: int) -> None:
    whole = bytearray(file_set("name", extra=VENDOR))
    whole[at + 2] ^= 0x04
    refused("SetChecksum|critical|SecondaryCount", bytes(whole))


def test_the_hash_of_a_name_is_checked_by_the_up_case_table_of_the_volume() -> None:
    assert names(file_set("abc", name_hash=hash_of("ABC"))) == ["/abc"]
    refused("NameHash", file_set("abc", name_hash=hash_of("abc")))
    upper = struct.pack("<6H", 0xFFFF, 0x61, ord("X"), 0x62, 0x63, 0x64)  # "a" alone is known, and is "X"
    volume = BareVolume(100, cluster_shift=3, up_case=upper)
    volume.write_root(file_set("abc", name_hash=hash_of("Xbc")))
    assert ExfatVolume(MemoryDevice(volume.content)).scan().entries.path[1] == "/abc"


def hash_of(name: str) -> int:
    total = 0
    for byte in name.encode("utf-16-le"):
        total = ((total & 1) << 15) + (total >> 1) + byte & 0xFFFF
    return total


def timestamp(when: datetime) -> int:
    date = when.year - 1980 << 9 | when.month << 5 | when.day
    return date << 16 | when.hour << 11 | when.minute << 5 | when.second // 2


@given(
    st.datetimes(datetime(1980, 1, 1), datetime(2107, 12, 31)),
    st.integers(0, 199),
    st.integers(-64, 63),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_modification_times_are_told_in_utc(when: datetime, increment: int, quarters: int, is_valid: bool) -> None:
    when = when.replace(microsecond=0, second=when.second // 2 * 2, tzinfo=UTC)
    zone = quarters & 0x7F | (0x80 if is_valid else 0)
    scan = scanned(file_set("a", modified=(timestamp(when), increment, zone)))
    expected = when - timedelta(minutes=15 * quarters if is_valid else 0)
    assert scan.entries.modified_ns[1] == int(expected.timestamp()) * 1_000_000_000 + increment * 10_000_000


@pytest.mark.parametrize(
    ("stamp", "increment"),
    [
        (0, 0),
        (1 << 21, 0),
        (13 << 21 | 1 << 16, 0),
        (timestamp(datetime(2024, 2, 28)) + (3 << 16), 0),
        (timestamp(datetime(2024, 1, 1)) | 24 << 11, 0),
        (timestamp(datetime(2024, 1, 1)) | 30, 0),
        (timestamp(datetime(2024, 1, 1)), 200),
    ],
)
def test_times_that_no_calendar_has_are_no_times(stamp: int, increment: int) -> None:
    assert scanned(file_set("a", modified=(stamp, increment, 0x80))).entries.modified_ns[1] == NO_TIME


def test_attributes_are_told_as_they_are() -> None:
    scan = scanned(file_set("a", attributes=0x27), file_set("b", attributes=0x8001), file_set("c", attributes=0x0010))
    assert scan.entries.attributes.tolist() == [0x10, 0x27, 0x8001, 0x10, 0, 0]


def test_what_was_not_written_reads_as_zeros() -> None:
    volume = volume_of(file_set("a", 50, 9000, valid=5000, flags=CONTIGUOUS), file_set("b", 55, 10, valid=0, flags=3))
    volume.write(50, b"x" * 12288)
    volume.write(55, b"x" * 4096)
    found = ExfatVolume(MemoryDevice(volume.content))
    scan = found.scan()
    assert scan.contents.size_bytes.tolist()[1:3] == [9000, 10]
    assert scan.contents.valid_bytes.tolist()[1:3] == [5000, 0]
    assert scan.contents.run_length.tolist()[1:3] == [12288, 4096]
    first, second = (found.open(record) for record in scan.entries.record.tolist()[1:3])
    assert first.read(0, 20000) == b"x" * 5000 + bytes(4000)
    assert first.read(4990, 20) == b"x" * 10 + bytes(10)
    assert second.read(0, 20) == bytes(10)


def test_the_header_of_an_encrypted_file_is_read_though_nothing_was_written_behind_it() -> None:
    def encrypted(name: str, size: int, valid: int, headers: int) -> bytes:
        plain = file_set(name, 50, size, valid=valid, flags=CONTIGUOUS)
        return patched(patched(plain, 6, b"\x00\x80"), 32 + 6, bytes([headers]))

    scan = scanned(
        encrypted("a", 4096, 0, 1), encrypted("b", 4112, 4112, 1), encrypted("c", 10, 0, 9), encrypted("d", 8192, 0, 1)
    )
    assert scan.contents.valid_bytes.tolist()[1:5] == [4096, 4112, 10, 4096]
    assert (scan.contents.flags[1:5] == ContentFlag.ENCRYPTED).all()
    assert scanned(patched(file_set("a", attributes=DIRECTORY), 6, b"\x00\x80")).contents.flags[1] == ContentFlag.INDEX


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        (file_set("a", 1), "FirstCluster is not 0 and not in 2 to 101"),
        (file_set("a", 102, 1), "FirstCluster"),
        (file_set("a", 0xFFFFFFFF, 1), "FirstCluster"),
        (file_set("a", 0, 1), "there is no FirstCluster"),
        (file_set("a", 50, 409_601, flags=CONTIGUOUS), "exceeds the cluster heap"),
        (file_set("a", 50, 1 << 63, valid=0), "exceeds the cluster heap"),
        (file_set("a", 50, 2**64 - 1), "exceeds the cluster heap"),
        (file_set("a", 50, 4096, valid=4097, flags=CONTIGUOUS), "ValidDataLength exceeds"),
        (file_set("a", 50, 4096, valid=2**64 - 1, flags=CONTIGUOUS), "ValidDataLength exceeds"),
        (file_set("a", 101, 4097, flags=CONTIGUOUS), "reach beyond the cluster heap"),
        (file_set("a", 50, 4096, flags=0), "AllocationPossible"),
        (file_set("a", 50, 4096), "its chain in the FAT leads to"),
    ],
    ids=itertools.count(),
)
def test_contents_that_cannot_lie_where_they_say_are_refused(entries: bytes, match: str) -> None:
    if "leads to" in match:
        entries = file_set("a", 50, 4097)
    refused(match, entries)


@pytest.mark.parametrize("flags", [0, CHAINED, CONTIGUOUS])
def test_empty_files_have_no_clusters_whatever_their_flags(flags: int) -> None:
    scan = scanned(file_set("a", flags=flags))
    assert scan.contents.size_bytes[1] == 0
    assert scan.contents.first_run.tolist()[1:3] == [1, 1]


def test_empty_directories_of_no_cluster_are_directories() -> None:
    volume = volume_of(file_set("d", attributes=DIRECTORY), file_set("e", 50, 4096, attributes=DIRECTORY, flags=3))
    found = ExfatVolume(MemoryDevice(volume.content))
    scan = found.scan()
    assert scan.entries.path[1:3] == ["/d", "/e"]
    assert scan.contents.size_bytes.tolist()[1:3] == [0, 4096]
    assert [found.open(record).size_bytes for record in scan.entries.record.tolist()[1:3]] == [0, 4096]


def test_only_as_much_of_a_directory_is_read_as_its_length_says() -> None:
    volume = volume_of(file_set("d", 50, 224, attributes=DIRECTORY, flags=CONTIGUOUS))
    volume.write(50, file_set("a") + file_set("b") + file_set("c"))
    with pytest.raises(InconsistentVolume, match="SecondaryCount"):
        ExfatVolume(MemoryDevice(volume.content)).scan()
    volume.write_root(file_set("d", 50, 192, attributes=DIRECTORY, flags=CONTIGUOUS))
    assert ExfatVolume(MemoryDevice(volume.content)).scan().entries.path[2:4] == ["/d/a", "/d/b"]


@pytest.mark.parametrize("kind", [0x81, 0x82, 0x83])
def test_only_the_root_directory_may_hold_what_describes_the_volume(kind: int) -> None:
    volume = volume_of(file_set("d", 50, 4096, attributes=DIRECTORY, flags=CONTIGUOUS))
    volume.write(50, table_entry(kind, 2, 16))
    with pytest.raises(InconsistentVolume, match="only the root") as raised:
        ExfatVolume(MemoryDevice(volume.content)).scan()
    assert raised.value.offset_bytes == volume.offset_of(50)


@pytest.mark.parametrize(
    ("entry", "label"),
    [
        (label_entry("DATA"), "DATA"),
        (label_entry(""), None),
        (label_entry("elevenchars"), "elevenchars"),
        (label_entry("fifteen letters"), "fifteen letters"),
        (label_entry("fifteen letters", 255), "fifteen letters"),
        (label_entry("abc", 2), "ab"),
        (label_entry("abc\0\0\0", 6), "abc"),
        (label_entry("\0\0\0"), None),
        (label_entry("a/\x1b"), "a∕␛"),
        (label_entry("𝄞", 1), "\ufffd"),
        (b"\x03" + label_entry("gone")[1:], None),
    ],
    ids=itertools.count(),
)
def test_the_label_is_that_of_the_root_directory(entry: bytes, label: str | None) -> None:
    assert ExfatVolume(MemoryDevice(volume_of(entry).content)).facts.label == label


@pytest.mark.parametrize("way", [CHAINED, CONTIGUOUS])
@pytest.mark.parametrize("name", ["short", "n" * 150])
def test_sets_that_go_on_in_another_cluster_are_opened_as_they_are_scanned(way: int, name: str) -> None:
    volume = BareVolume(200)
    clusters = [50, 90, 70, 60, 80, 100] if way == CHAINED else [50, 51, 52, 53, 54, 55]
    if way == CHAINED:
        volume.chain(*clusters)
    volume.use(*clusters, 110)
    volume.write_root(file_set("d", 50, 512 * 6, attributes=DIRECTORY, flags=way))
    sets = b"".join(file_set(f"{k}{name}", 110, k + 1, flags=CONTIGUOUS) for k in range(30))[: 512 * 6]
    each = len(file_set(f"0{name}"))
    sets = sets[: len(sets) // each * each].ljust(512 * 6, b"\0") if name == "short" else sets[: 6 * each]
    for at, cluster in enumerate(clusters):
        volume.write(cluster, sets[at * 512 : at * 512 + 512].ljust(512, b"\0"))
    found = ExfatVolume(MemoryDevice(volume.content))
    scan = found.scan()
    crossing = 0
    for record, size in zip(scan.entries.record.tolist()[2:-2], scan.contents.size_bytes.tolist()[2:-2], strict=True):
        assert found.open(record).size_bytes == size
        crossing += (record * 32 - volume.heap_offset) % 512 + each > 512
    assert crossing > 3


def test_a_set_is_not_opened_where_the_cluster_is_free_or_the_set_is_damaged() -> None:
    volume = volume_of(file_set("d", 50, 4096, attributes=DIRECTORY, flags=CONTIGUOUS))
    volume.write(50, file_set("a"))
    volume.write(70, file_set("stale"))
    volume.content[volume.offset_of(50) + 128] = 0x85
    found = ExfatVolume(MemoryDevice(volume.content))
    assert found.open(volume.offset_of(50) // 32).size_bytes == 0
    for cluster, entry in ((70, 0), (50, 1), (50, 2), (51, 0)):
        with pytest.raises(NotFoundError):
            found.open(volume.offset_of(cluster) // 32 + entry)
    with pytest.raises(InconsistentVolume):
        found.open(volume.offset_of(50) // 32 + 4)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        (lambda v: b"", "0 entries of an active Allocation Bitmap"),
        (lambda v: v.root_entries[:32], "0 entries of an Up-case Table"),
        (lambda v: v.root_entries[32:], "0 entries of an active Allocation Bitmap"),
        (lambda v: v.root_entries * 2, "2 entries of an active Allocation Bitmap"),
        (lambda v: v.root_entries * 3, "too many"),
        (lambda v: v.root_entries + v.root_entries[32:], "2 entries of an Up-case Table"),
        (lambda v: table_entry(0x81, 2, 13, flags=1) + v.root_entries[32:], "0 entries of an active"),
        (lambda v: table_entry(0x81, 1, 13) + v.root_entries[32:], "Allocation Bitmap.*FirstCluster is 1"),
        (lambda v: table_entry(0x81, 102, 13) + v.root_entries[32:], "Allocation Bitmap.*FirstCluster is 102"),
        (lambda v: table_entry(0x81, 2, 12) + v.root_entries[32:], "DataLength is 12, allowed are 13 to"),
        (lambda v: table_entry(0x81, 2, 1 << 63) + v.root_entries[32:], "Allocation Bitmap.*DataLength"),
        (lambda v: table_entry(0x81, 2, 4097) + v.root_entries[32:], "chain.* too early|chain in the FAT ends"),
        (lambda v: v.root_entries[:32] + table_entry(0x82, 3, 0), "Up-case Table.*DataLength is 0"),
        (lambda v: v.root_entries[:32] + table_entry(0x82, 3, 131_074), "Up-case Table.*allowed are 2 to 131072"),
        (lambda v: v.root_entries[:32] + table_entry(0x82, 0, 60), "Up-case Table.*FirstCluster is 0"),
    ],
    ids=itertools.count(),
)
def test_a_root_directory_must_tell_where_the_tables_of_the_volume_lie(entries, match: str) -> None:  # type: ignore[no-untyped-def]
    volume = BareVolume(100, cluster_shift=3)
    volume.write(volume.root, entries(volume).ljust(4096, b"\0"))
    with pytest.raises(InconsistentVolume, match=match):
        ExfatVolume(MemoryDevice(volume.content)).scan()


@pytest.mark.parametrize(("following", "words"), [(0, "empty"), (0xFFFFFFF7, "bad"), (200, "out of"), (4, "itself")])
def test_a_root_directory_must_end(following: int, words: str) -> None:
    volume = BareVolume(100, cluster_shift=3)
    assert volume.root == 4
    if following == 4:
        volume.chain(4, 50, 51)
        volume.link(51, 50)
    else:
        volume.link(4, 50)
        volume.link(50, following)
    with pytest.raises(InconsistentVolume, match=rf"root directory.*{words}"):
        _ = ExfatVolume(MemoryDevice(volume.content)).facts
    volume.link(4, END)
    assert ExfatVolume(MemoryDevice(volume.content)).facts
