"""Directory entries: which are listed, by what name, with what time."""

from __future__ import annotations

import random
import struct
from datetime import UTC, datetime

import numpy as np
import pytest

from sqlimage.filesystem.contract import Entries, EntryKind
from sqlimage.filesystem.fat import FatVolume
from sqlimage.filesystem.fat.directory import times
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import NO_TIME
from tests.make.fat import BareVolume, long_entries, short_entry


def listed(*root: bytes, bits: int = 12) -> Entries:
    """The entries below the root of a volume that has just these."""
    volume = BareVolume(bits, 100, sectors_per_cluster=8)
    volume.write_root(*root)
    return FatVolume(MemoryDevice(volume.content)).scan().entries


def names(*root: bytes) -> list[str]:
    return [path[1:] for path in listed(*root).path[1:]]


def test_deleted_entries_labels_and_dots_are_not_listed() -> None:
    assert names(
        short_entry(b"VOLUME", attributes=0x08),
        short_entry(b".", attributes=0x10),
        short_entry(b"..", attributes=0x10),
        short_entry(b"\xe5ONE    TXT"),
        short_entry(b"KEPT    TXT"),
    ) == ["KEPT.TXT"]


def test_nothing_behind_the_end_mark_is_listed() -> None:
    assert names(short_entry(b"A"), bytes(32), short_entry(b"B")) == ["A"]


@pytest.mark.parametrize(
    ("name", "case", "shown"),
    [
        (b"README  TXT", 0x00, "README.TXT"),
        (b"README  TXT", 0x08, "readme.TXT"),
        (b"README  TXT", 0x10, "README.txt"),
        (b"README  TXT", 0x18, "readme.txt"),
        (b"NOEXT      ", 0x08, "noext"),
        (b"A B     C D", 0x00, "A B.C D"),
        (b"\x05LPHA   TXT", 0x00, "σLPHA.TXT"),
        (b"\x8eRGER   TXT", 0x08, "ärger.TXT"),
        (b"A/B     TXT", 0x00, "A∕B.TXT"),
        (b"A\x00B     TXT", 0x00, "A␀B.TXT"),
        (b"A\x1b[2J   TXT", 0x00, "A␛[2J.TXT"),
        (b"A\x7fB        ", 0x00, "A␡B"),
        (b"           ", 0x00, "_"),
        (b"        TXT", 0x00, ".TXT"),
    ],
)
def test_short_names_are_shown_in_their_case_and_made_safe(name: bytes, case: int, shown: str) -> None:
    assert names(short_entry(name, case=case)) == [shown]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a", "a"),
        ("thirteen.char", "thirteen.char"),
        ("Long Name With Spaces.extension", "Long Name With Spaces.extension"),
        ("x" * 255, "x" * 255),
        ("日本語のファイル名.テキスト", "日本語のファイル名.テキスト"),
        ("smile 😀 beyond the BMP", "smile 😀 beyond the BMP"),
        ("a/b", "a∕b"),
        ("line\nfeed\x1b", "line␊feed␛"),
        ("\x9b31m", "\ufffd31m"),
        ("..", "\u2024\u2024"),
        (".", "\u2024"),
        ("...", "..."),
        (".hidden", ".hidden"),
        ("lone \ud800 half", "lone \ufffd half"),
    ],
)
def test_long_names_are_shown_whole_and_made_safe(name: str, shown: str) -> None:
    short = short_entry(b"SHORT~1 TXT")
    assert names(long_entries(name, b"SHORT~1 TXT"), short) == [shown]


def test_pieces_of_a_long_name_that_do_not_belong_leave_the_short_name() -> None:
    right = long_entries("a name of three pieces, no less", b"SHORT")
    first, second, third = right[:32], right[32:64], right[64:]
    short, other = short_entry(b"SHORT"), short_entry(b"OTHER")
    assert names(right, short) == ["a name of three pieces, no less"]
    assert names(right, other) == ["OTHER"]  # checksum
    assert names(right, other, short) == ["OTHER", "SHORT"]  # something between
    assert names(second, third, short) == ["SHORT"]  # no last piece
    assert names(first, third, short) == ["SHORT"]
    assert names(first, second, short) == ["SHORT"]
    assert names(third, second, first, short) == ["SHORT"]  # order
    assert names(first, b"\xe5" + second[1:], third, short) == ["SHORT"]
    assert names(long_entries("", b"SHORT"), short) == ["SHORT"]
    assert names(first, right, short) == ["a name of three pieces, no less"]
    assert names(*[struct.pack("<B", k | 0x40 * (k == 21)) + third[1:] for k in range(21, 0, -1)], short) == ["SHORT"]


def test_a_long_name_does_not_reach_into_the_directory_read_before() -> None:
    volume = BareVolume(12, 100)
    for cluster in (3, 4):
        volume.chain(cluster)
    volume.write_root(short_entry(b"ONE", 3, attributes=0x10), short_entry(b"TWO", 4, attributes=0x10))
    volume.write(3, long_entries("not yours", b"SHORT"))
    volume.write(4, short_entry(b"SHORT"))
    assert FatVolume(MemoryDevice(volume.content)).scan().entries.path == ["/", "/ONE", "/TWO", "/TWO/SHORT"]


def test_a_long_name_may_cross_the_border_between_clusters() -> None:
    volume = BareVolume(32, 100)
    volume.chain(2, 50)
    entries = b"".join(short_entry(b"%d" % k) for k in range(14)) + long_entries("x" * 100, b"SHORT")
    entries += short_entry(b"SHORT")
    volume.write(2, entries[:512])
    volume.write(50, entries[512:])
    assert FatVolume(MemoryDevice(volume.content)).scan().entries.path[-1] == "/" + "x" * 100


def test_the_later_one_of_equal_names_gets_its_record_behind_it() -> None:
    entries = listed(short_entry(b"SAME"), short_entry(b"SAME"), short_entry(b"DIR"), short_entry(b"SAME"))
    first, second, third = (int(entries.record[k]) for k in (1, 2, 4))
    assert first + 1 == second == third - 2
    assert entries.path[1:] == ["/SAME", f"/SAME~{second}", "/DIR", f"/SAME~{third}"]


def test_kind_attributes_and_place_are_those_of_the_entry() -> None:
    volume = BareVolume(16, 5000)
    volume.chain(9)
    volume.write_root(short_entry(b"FILE", attributes=0x27), short_entry(b"DIR", 9, attributes=0x12))
    entries = FatVolume(MemoryDevice(volume.content)).scan().entries
    assert entries.path == ["/", "/FILE", "/DIR"]
    assert entries.kind.tolist() == [EntryKind.DIRECTORY, EntryKind.FILE, EntryKind.DIRECTORY]
    assert entries.attributes.tolist() == [0x10, 0x27, 0x12]
    assert entries.record.tolist() == [0, volume.root_offset // 32, volume.root_offset // 32 + 1]


def test_times_are_read_to_two_seconds_and_impossible_ones_are_none() -> None:
    def date(year: int, month: int, day: int) -> int:
        return (year - 1980) << 9 | month << 5 | day

    good = [(1980, 1, 1, 0, 0, 0), (2000, 2, 29, 23, 59, 58), (2107, 12, 31, 12, 30, 0), (2024, 6, 15, 1, 2, 4)]
    words = [(date(*g[:3]), g[3] << 11 | g[4] << 5 | g[5] // 2) for g in good]
    wrong = [(0, 0), (date(2023, 2, 29), 0), (date(2023, 13, 1), 0), (date(2023, 4, 31), 0), (date(2023, 1, 0), 0)]
    wrong += [(date(2023, 1, 1), 24 << 11), (date(2023, 1, 1), 60 << 5), (date(2023, 1, 1), 30)]
    both = np.array(words + wrong, dtype=np.uint16)
    expected = [int(datetime(*g, tzinfo=UTC).timestamp()) * 10**9 for g in good] + [NO_TIME] * len(wrong)
    assert times(both[:, 0], both[:, 1]).tolist() == expected


def test_many_names_of_all_lengths_survive() -> None:
    chance = random.Random(5)
    wanted, entries = [], []
    for k in range(60):
        name = f"{k}-" + "".join(chr(chance.choice([65, 0xE9, 0x4E2D])) for _ in range(chance.randrange(1, 250)))
        wanted.append(name)
        entries += [long_entries(name, b"F%d" % k), short_entry(b"F%d" % k)]
    volume = BareVolume(12, 100, root_entries=2048)
    volume.write_root(*entries)
    assert FatVolume(MemoryDevice(volume.content)).scan().entries.path[1:] == [f"/{name}" for name in wanted]
