"""The reader of registry hives: every kind of list and value, hives that hivex made, and such as nobody should."""

from __future__ import annotations

import os
import re
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.osinfo.hive import Hive
from tests.conftest import run
from tests.make.cost import PATIENCE
from tests.make.hive import NOTHING, SEGMENT, BareHive, Tree, fill
from tests.make.memory_volume import Counted

REG_BINARY, REG_EXPAND_SZ, REG_QWORD = 3, 2, 11
COUNT_AT, LIST_AT, VALUE_COUNT_AT, VALUE_LIST_AT, NAME_LENGTH_AT = 0x14, 0x1C, 0x24, 0x28, 0x48
LENGTH_AT, DATA_AT = 0x04, 0x08
SAMPLE: Tree = {
    "Microsoft": {
        "Office": {"Version": "16"},
        "Windows NT": {"CurrentVersion": {"ProductName": "Windows 10 Pro", "UBR": 3803, "Letter": "x"}},
        "WindowsRuntime": {"Answer": 42},
    },
    "Policies": {},
}
PATH = "Microsoft\\Windows NT\\CurrentVersion"


def opened(hive: BareHive | bytes | bytearray) -> Hive:
    return Hive(Counted(hive.content if isinstance(hive, BareHive) else hive))


@pytest.mark.parametrize("index", [b"lf", b"lh", b"li"])
@pytest.mark.parametrize("per_leaf", [500, 7])
def test_a_key_is_found_in_every_kind_of_list(index: bytes, per_leaf: int) -> None:
    tree = {f"key {n}": {"number": n} for n in range(60)}
    hive = opened(BareHive({"Root": tree, **tree}, index=index, per_leaf=per_leaf))
    for n in range(60):
        assert hive.values(f"ROOT\\Key {n}", ["Number"]) == {"Number": n}
    assert hive.values("root\\key 60", ["number"]) == {}
    assert hive.values("key 59", ["number"]) == {"number": 59}


def test_a_wrong_hint_costs_time_and_not_the_answer() -> None:
    for index in (b"lf", b"lh"):
        hive = BareHive(SAMPLE, index=index)
        for nth in range(3):
            hive.put("Microsoft\\*subkeys", 4 + 8 * nth + 4, b"Offi")
        assert opened(hive).values(PATH, ["UBR"]) == {"UBR": 3803}


@pytest.mark.parametrize("index", [b"lf", b"lh"])
def test_hints_spare_reading_the_other_keys(index: bytes) -> None:
    content = Counted(BareHive({f"{n:05} {'x' * 100}": {"n": n} for n in range(5000)}, index=index).content)
    assert Hive(content).values(f"04321 {'X' * 100}", ["n"]) == {"n": 4321}
    assert content.bytes_read < 200_000 < content.size_bytes // 4


def test_texts_and_numbers_come_with_their_types_and_others_are_left_out() -> None:
    big = 1 << 40
    hive = opened(
        BareHive(
            {
                "key": {
                    "text": "Grün Ω",
                    "letter": (1, b"x\0"),
                    "expand": (REG_EXPAND_SZ, "%SystemRoot%\0".encode("utf-16-le")),
                    "unterminated": (1, "abc".encode("utf-16-le")),
                    "odd": (1, "abc".encode("utf-16-le") + b"!"),
                    "two": (1, "abc\0def\0".encode("utf-16-le")),
                    "halves": (1, b"\x00\xd8a\0b\0c\0"),
                    "empty": (1, b""),
                    "number": 0xFFFFFFFF,
                    "long number": (REG_QWORD, struct.pack("<Q", big)),
                    "short number": (4, b"\1\2"),
                    "binary": (REG_BINARY, b"abcdef"),
                    "": "the default value",
                }
            }
        )
    )
    names = ["text", "letter", "expand", "unterminated", "odd", "two", "halves", "empty"]
    assert hive.values("key", [*names, "number", "long number", "short number", "binary", "", "missing"]) == {
        "text": "Grün Ω",
        "letter": "x",
        "expand": "%SystemRoot%",
        "unterminated": "abc",
        "odd": "abc",
        "two": "abc",
        "halves": "\ufffdabc",
        "number": 0xFFFFFFFF,
        "long number": big,
        "": "the default value",
    }


def test_names_may_be_in_latin_1_or_utf_16() -> None:
    hive = opened(BareHive({"Zürich": {"Ωmega": {"Größe": 1, "Δ": "d"}}}))
    assert hive.values("ZÜRICH\\ωMEGA", ["größe", "δ"]) == {"größe": 1, "δ": "d"}


@pytest.mark.parametrize("length", [255, SEGMENT // 2 - 1, SEGMENT // 2, SEGMENT // 2 + 1, SEGMENT * 2, SEGMENT * 9])
def test_a_value_longer_than_a_segment_lies_in_several(length: int) -> None:
    hive = BareHive({"key": {"text": "a" * length, "next": 1}})
    assert opened(hive).values("key", ["text", "next"]) == {"text": "a" * min(length, 256), "next": 1}
    assert opened(BareHive({"key": {"text": "a" * length}}, minor=3)).values("key", ["text"])
    (place,) = struct.unpack_from("<I", hive.content, 4096 + hive.place["key\\text"] + 4 + DATA_AT)
    assert (hive.content[4096 + place + 4 :][:2] == b"db") == (2 * (length + 1) > SEGMENT)


@pytest.mark.parametrize("damage", [b"dx", b"db\1\0\0\0\0\0", b"db\1\0\xff\xff\xff\xff"])
def test_a_value_whose_segments_are_not_there_counts_as_missing(damage: bytes) -> None:
    hive = BareHive({"key": {"text": "a" * SEGMENT, "next": 1}})
    (place,) = struct.unpack_from("<I", hive.content, 4096 + hive.place["key\\text"] + 4 + DATA_AT)
    hive.content[4096 + place + 4 : 4096 + place + 4 + len(damage)] = damage
    assert opened(hive).values("key", ["text", "next"]) == {"next": 1}


def test_a_hive_that_hivex_wrote_reads_as_hivex_reads_it(tmp_path: Path) -> None:
    values: dict[str, str | int] = {"ProductName": "Windows 10 Pro", "UBR": 3803, "Zeichen": "äöü € 漢字 😀", "N": 0}
    keys: dict[str, dict[str, str | int]] = {PATH: values, **{f"Microsoft\\Key {n}": {"number": n} for n in range(700)}}
    hive = fill(tmp_path / "SOFTWARE", keys)
    reader = opened(hive.read_bytes())
    assert reader.values(PATH, list(values)) == values
    for name in values:
        told = run("hivexget", hive, PATH, name, env={**os.environ, "LC_ALL": "C.UTF-8"}).stdout.decode().rstrip("\n")
        value = values[name]
        assert told in (value, str(value), f"0x{value:08x}" if isinstance(value, int) else value)
    assert reader.values("Microsoft\\key 699", ["NUMBER"]) == {"NUMBER": 699}


@pytest.mark.parametrize(("index", "per_leaf"), [(b"lh", 500), (b"lf", 9), (b"li", 500)])
def test_other_readers_see_the_same_in_the_hives_made_here(tmp_path: Path, index: bytes, per_leaf: int) -> None:
    """What the tests build cell by cell is a hive to three readers of others."""
    tree: Tree = {**SAMPLE, "many": {f"key {n}": {"number": n} for n in range(60)}}
    path = tmp_path / "hive"
    path.write_bytes(BareHive({**tree, "long": {"text": "a" * 40_002}}, index=index, per_leaf=per_leaf).content)
    exported = run("hivexregedit", "--export", "--prefix", "HKEY", path, "\\").stdout.decode()
    assert len(re.findall(r"^\[HKEY\\many\\key \d+\]$", exported, re.MULTILINE)) == 60
    told = run("regfexport", path).stdout.decode()
    assert "Data: Windows 10 Pro" in told and "Data size: 80006" in told and told.count("Value: 0 number") == 60
    # the third one knows no value of several segments
    path.write_bytes(BareHive(tree, index=index, per_leaf=per_leaf).content)
    run("reged", "-x", path, "HKEY", "\\", tmp_path / "out.reg", cwd=tmp_path)
    text = (tmp_path / "out.reg").read_text("latin-1")
    assert '"ProductName"="Windows 10 Pro"' in text and '"UBR"=dword:00000edb' in text


def test_a_hive_in_the_midst_of_a_write_is_read_as_it_lies() -> None:
    hive = BareHive(SAMPLE)
    hive.content[4:8] = struct.pack("<I", 77)
    hive.content[508:512] = b"junk"
    assert opened(hive).values(PATH, ["UBR"]) == {"UBR": 3803}


def test_only_what_is_on_the_way_is_read() -> None:
    filler: Tree = {f"blob {n}": (REG_BINARY, bytes(16_000)) for n in range(4000)}
    content = Counted(BareHive({"Classes": filler, **SAMPLE}).content)
    assert content.size_bytes > 60 << 20
    started = time.perf_counter()
    assert Hive(content).values(PATH, ["UBR"]) == {"UBR": 3803}
    assert content.bytes_read < 64 << 10
    assert time.perf_counter() - started < 0.5 * PATIENCE


@pytest.mark.parametrize(
    "content",
    [b"", b"regf", bytes(8192), b"regx" + bytes(8188), b"regf" + bytes(8188), b"\xff" * 8192],
    ids=["empty", "short", "zeros", "other", "version 0", "ones"],
)
def test_what_is_no_hive_is_refused(content: bytes) -> None:
    with pytest.raises(InconsistentVolume):
        opened(content)


@pytest.mark.parametrize("length", [4096, 4100, 4096 + 40, 4096 + 512, 4096 + 1000])
def test_a_hive_that_ends_early_has_less(length: int) -> None:
    assert opened(BareHive(SAMPLE).content[:length]).values(PATH, ["UBR"]) == {}


PLACES = (NOTHING, 0, 1, 4, 33, 1 << 31, (1 << 31) - 8, 0x7FFFFFFF, 4096, 1 << 20)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("cell", "at"),
    [
        ("", LIST_AT), ("Microsoft\\*subkeys", 4 + 8), ("Microsoft\\Windows NT", LIST_AT), (PATH, VALUE_LIST_AT),
        (f"{PATH}\\*values", 0), (f"{PATH}\\ProductName", DATA_AT),
    ],
)  # fmt: skip
def test_a_place_that_no_cell_has_leads_nowhere(cell: str, at: int, place: int) -> None:
    hive = BareHive(SAMPLE)
    hive.put(cell, at, struct.pack("<I", place))
    assert "ProductName" not in opened(hive).values(PATH, ["ProductName"])
    root = BareHive(SAMPLE)
    root.content[0x24:0x28] = struct.pack("<I", place)
    assert opened(root).values(PATH, ["ProductName"]) == {}


def test_a_damaged_value_takes_no_other_with_it() -> None:
    hive = BareHive(SAMPLE)
    hive.put(f"{PATH}\\ProductName", 0, b"vx")
    assert opened(hive).values(PATH, ["ProductName", "UBR", "Letter"]) == {"UBR": 3803, "Letter": "x"}
    hive = BareHive(SAMPLE)
    hive.put("Microsoft\\Office", 0, b"xx")
    assert opened(hive).values(PATH, ["UBR"]) == {"UBR": 3803}
    for length in (0, 1 << 31, 1 << 31 | 5, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 20):
        hive = BareHive(SAMPLE)
        hive.put(f"{PATH}\\ProductName", LENGTH_AT, struct.pack("<I", length))
        assert opened(hive).values(PATH, ["ProductName", "UBR"]) == {"UBR": 3803}


def test_counts_beyond_their_lists_are_cut_or_refused() -> None:
    hive = BareHive(SAMPLE)
    hive.put(PATH, VALUE_COUNT_AT, struct.pack("<I", NOTHING))
    assert opened(hive).values(PATH, ["UBR"]) == {"UBR": 3803}
    hive.put("Microsoft\\*subkeys", 2, b"\xff\xff")
    assert opened(hive).values(PATH, ["UBR"]) == {}
    hive = BareHive(SAMPLE)
    hive.put(PATH, NAME_LENGTH_AT, b"\xff\xff")
    assert opened(hive).values(PATH, ["UBR"]) == {}


def test_a_name_longer_than_its_cell_is_no_name() -> None:
    """Eight characters fill the cell of a key to its end."""
    hive = BareHive({"eighteen": {"number": 1}})
    assert opened(hive).values("eighteen", ["number"]) == {"number": 1}
    hive.put("eighteen", NAME_LENGTH_AT, b"\x09")
    assert opened(hive).values("eighteen", ["number"]) == {}


def test_a_cell_that_goes_on_behind_the_end_is_not_read() -> None:
    hive = BareHive({"key": {"number": 1, "text": "near"}})
    far = hive.cell(b"f\0a\0r\0")
    hive.content = hive.content[:4096] + hive.cells
    hive.put("key\\text", LENGTH_AT, struct.pack("<II", 6, far))
    assert opened(hive).values("key", ["number", "text"]) == {"number": 1, "text": "far"}
    for missing in (7, 9, 15):
        assert opened(hive.content[:-missing]).values("key", ["number", "text"]) == {"number": 1}


def test_a_place_that_is_no_multiple_of_eight_is_none() -> None:
    hive = BareHive({"key": {"number": 1, "text": "near"}})
    far = hive.cell(bytes(4) + struct.pack("<i", -16) + b"f\0a\0r\0")
    hive.content = hive.content[:4096] + hive.cells
    hive.put("key\\text", LENGTH_AT, struct.pack("<II", 6, far + 8))
    assert opened(hive).values("key", ["number", "text"]) == {"number": 1, "text": "far"}
    hive.content[4096 + far + 4 :] = struct.pack("<i", -16) + b"f\0a\0r\0" + bytes(6)
    hive.put("key\\text", LENGTH_AT, struct.pack("<II", 6, far + 4))
    assert opened(hive).values("key", ["number", "text"]) == {"number": 1}


def test_a_freed_cell_is_not_read() -> None:
    hive = BareHive(SAMPLE)
    hive.put(f"{PATH}\\UBR", -4, struct.pack("<i", 32))
    assert opened(hive).values(PATH, ["UBR", "Letter"]) == {"Letter": "x"}


class Torn(Counted):
    """A file that cannot be read from its second page of cells on."""

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        if offset_bytes >= 8192:
            raise InconsistentVolume("compression unit 2", "is damaged")
        return super().read(offset_bytes, length_bytes)


def test_where_the_volume_cannot_be_read_a_hive_has_less() -> None:
    hive = BareHive({"key": {"number": 1, "text": "near"}})
    far = hive.cell("far\0".encode("utf-16-le"))
    assert far == 4096
    hive.content = hive.content[:4096] + hive.cells
    hive.put("key\\text", DATA_AT, struct.pack("<I", far))
    assert Hive(Counted(hive.content)).values("key", ["number", "text"]) == {"number": 1, "text": "far"}
    assert Hive(Torn(hive.content)).values("key", ["number", "text"]) == {"number": 1}


def test_a_hive_scattered_over_gibibytes_is_not_read_whole() -> None:
    hive = BareHive({"key": {"number": 1}})
    scattered = hive.cell(struct.pack("<20000I", *(n << 16 | 4096 for n in range(1, 20_001))))
    hive.content = hive.content[:4096] + hive.cells
    hive.put("key", VALUE_COUNT_AT, struct.pack("<II", 20_000, scattered))
    content = Counted(hive.content, 2 << 30)
    assert Hive(content).values("key", ["number"]) == {}
    assert content.bytes_read <= (16 << 20) + 4096


def test_lists_that_lead_back_to_themselves_end() -> None:
    hive = BareHive({f"key {n}": {"number": n} for n in range(60)}, per_leaf=7)
    root = hive.place["*subkeys"]
    for nth in range(9):
        hive.put("*subkeys", 4 + 4 * nth, struct.pack("<I", root))
    assert opened(hive).values("key 5", ["number"]) == {}
    own = BareHive(SAMPLE)
    own.put("Microsoft\\*subkeys", 4 + 8, struct.pack("<I", own.place["Microsoft"]))
    assert opened(own).values("Microsoft\\Microsoft\\Microsoft", ["UBR"]) == {}


def test_a_hive_of_lists_upon_lists_ends_within_seconds() -> None:
    """An index root of 65,535 times the same leaf, whose 65,535 elements are the same key."""
    hive = BareHive({"key": {"number": 1}})
    leaf = hive.cell(struct.pack("<2sH", b"lh", 0xFFFF) + struct.pack("<II", hive.place["key"], 0) * 0xFFFF)
    top = hive.cell(struct.pack("<2sH", b"ri", 0xFFFF) + struct.pack("<I", leaf) * 0xFFFF)
    hive.content = hive.content[:4096] + hive.cells
    hive.put("", LIST_AT, struct.pack("<I", top))
    started = time.perf_counter()
    assert opened(hive).values("other", ["number"]) == {}
    assert time.perf_counter() - started < 5 * PATIENCE


def test_a_hive_of_long_lists_that_say_they_are_short_ends_within_seconds() -> None:
    hive = BareHive({"key": {"number": 1}})
    leaf = hive.cell(struct.pack("<2sHII", b"lh", 1, hive.place["key"], 0) + bytes(520_000))
    top = hive.cell(struct.pack("<2sH", b"ri", 0xFFFF) + struct.pack("<I", leaf) * 0xFFFF)
    hive.content = hive.content[:4096] + hive.cells
    hive.put("", LIST_AT, struct.pack("<I", top))
    started = time.perf_counter()
    assert opened(hive).values("other", ["number"]) == {}
    assert time.perf_counter() - started < 5 * PATIENCE


def test_a_hive_of_values_without_end_ends_within_seconds() -> None:
    hive = BareHive({"key": {"number": 1}})
    listed = hive.cell(struct.pack("<I", hive.place["key\\number"]) * 2_000_000)
    blanks = hive.cell(b" \0" * 4000)
    hive.content = hive.content[:4096] + hive.cells
    hive.put("key", VALUE_COUNT_AT, struct.pack("<II", 2_000_000, listed))
    started = time.perf_counter()
    assert opened(hive).values("key", ["number"]) == {"number": 1}
    hive.put("key\\number", LENGTH_AT, struct.pack("<III", 8000, blanks, 1))
    assert opened(hive).values("key", ["number"]) == {}
    assert time.perf_counter() - started < 5 * PATIENCE


PRISTINE = BareHive({**SAMPLE, "long": {"text": "a" * 20_000}, **{f"key {n}": {"n": n} for n in range(20)}}, per_leaf=6)
STARTS = sorted(set(PRISTINE.place.values()) - {NOTHING})
INTERESTING = st.sampled_from([0, 1, 4, 8, 0x7FFF, 0xFFFF, 1 << 31, NOTHING, *STARTS])
CHANGE = st.one_of(
    st.tuples(st.sampled_from(STARTS), st.integers(0, 0x60), st.binary(min_size=1, max_size=8)),
    st.tuples(
        st.sampled_from(STARTS),
        st.integers(0, 0x18).map(lambda n: 4 * n),
        INTERESTING.map(lambda n: n.to_bytes(4, "little")),
    ),
    st.tuples(st.just(-4096), st.integers(0, 0x30), st.binary(min_size=1, max_size=4)),
)


@settings(max_examples=int(os.environ.get("SQLIMAGE_FUZZ_ROUNDS", "300")), deadline=2000)
@given(st.lists(CHANGE, min_size=1, max_size=5), st.one_of(st.none(), st.integers(0, len(PRISTINE.content))))
def test_no_change_to_a_hive_gives_anything_but_clean_values(
    changes: list[tuple[int, int, bytes]], length: int | None
) -> None:
    content = bytearray(PRISTINE.content)
    for start, at, data in changes:
        content[4096 + start + at : 4096 + start + at + len(data)] = data
    try:
        hive = opened(content[:length])
        found = hive.values(PATH, ["ProductName", "UBR", "Letter"]) | hive.values("long", ["text"])
        found |= hive.values("key 19", ["n"])
    except InconsistentVolume:
        return
    for value in found.values():
        assert isinstance(value, int) or (value.isprintable() and 0 < len(value) <= 256)
