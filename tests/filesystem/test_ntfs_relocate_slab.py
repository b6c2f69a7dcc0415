"""Run lists put into thousands of MFT records at once, against records built one by one."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.content import ContentRuns
from sqlimage.filesystem.ntfs.relocate_fixups import RecordDifferences, differences_in
from sqlimage.filesystem.ntfs.relocate_slab import RecordSlab, RunLists, Sizes
from sqlimage.fixup import Fixup

FIRST = 77
"""The number of the slab's first record."""
FIRST_ATTRIBUTE = 0x38
BEFORE_SIZES, SIZES = b"\x11" * 24, Sizes(1 << 40, 12345, 999)


@dataclass(frozen=True)
class Attribute:
    """A nonresident one; ``new`` are its mapping pairs to be, None where they stay."""

    name: str
    old: bytes
    new: bytes | None
    resized: bool

    @property
    def pairs_at(self) -> int:
        return 64 + 2 * len(self.name)

    def built(self, pairs: bytes, highest_vcn: int, sizes: bytes) -> bytes:
        out = bytearray(b"\xee" * self.pairs_at + pairs)
        out += bytes(-len(out) % 8)
        struct.pack_into("<IIBBH", out, 0, 0x80, len(out), 1, len(self.name), 64)
        struct.pack_into("<qH", out, 0x18, highest_vcn, self.pairs_at)
        out[0x28:0x40] = sizes
        out[64 : self.pairs_at] = self.name.encode("utf-16-le")
        return bytes(out)

    def before(self) -> bytes:
        return self.built(self.old, 5, BEFORE_SIZES)

    def after(self) -> bytes:
        if self.new is None:
            return self.before()
        sizes = struct.pack("<qqq", 1 << 40, 12345, 999) if self.resized else BEFORE_SIZES
        return self.built(self.new, 1 << 33, sizes)


def record(attributes: list[bytes], slack: bytes, size: int = 1024) -> bytes:
    """One whose sectors end with the number 0x4142, and what is kept of them."""
    free = FIRST_ATTRIBUTE + sum(map(len, attributes)) + 8
    out = bytearray(
        struct.pack("<4sHHQHHHHII", b"FILE", 0x30, size // 512 + 1, 8, 1, 1, FIRST_ATTRIBUTE, 1, free, size)
    )
    out += bytes(FIRST_ATTRIBUTE - len(out)) + b"".join(attributes) + b"\xff\xff\xff\xff\0\0\0\0" + slack
    out[0x30:0x32] = b"AB"
    for i in range(1, size // 512 + 1):
        out[0x30 + 2 * i : 0x32 + 2 * i] = out[i * 512 - 2 : i * 512]
        out[i * 512 - 2 : i * 512] = b"AB"
    assert len(out) == size
    return bytes(out)


def before_and_after(attributes: list[Attribute]) -> tuple[bytes, bytes]:
    old, new = [a.before() for a in attributes], [a.after() for a in attributes]
    length, new_length = sum(map(len, old)), sum(map(len, new))
    room = 1024 - FIRST_ATTRIBUTE - 8
    past = bytes(i % 251 for i in range(room - length))
    return record(old, past), record(new, past if length == new_length else bytes(room - new_length))


PAIRS = st.binary(min_size=1, max_size=60)
ATTRIBUTE = st.builds(Attribute, st.sampled_from(["", "$I30", "odd"]), PAIRS, st.none() | PAIRS, st.booleans())
RECORDS = st.lists(st.lists(ATTRIBUTE, min_size=1, max_size=5) | st.none(), min_size=1, max_size=6)
"""None is a record of which nothing is known but that it has no list."""


def lists_of(records: list[list[Attribute] | None]) -> tuple[RunLists, dict[int, Sizes]]:
    rows, pairs, sizes = [], [], {}
    for number, attributes in enumerate(records):
        at = (FIRST + number) * 1024 + FIRST_ATTRIBUTE
        for attribute in attributes or []:
            size = len(attribute.before())
            if attribute.new is not None:
                rows.append((at, size, attribute.pairs_at, len(attribute.after()) - size))
                pairs.append(attribute.new)
                if attribute.resized:
                    sizes[len(rows) - 1] = SIZES
            at += size
    place, length, pairs_at, growth = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    start = np.array([0, *accumulate(map(len, pairs))], dtype=np.int64)
    joined = np.frombuffer(b"".join(pairs), dtype=np.uint8)
    part, highest = np.arange(len(rows)), np.full(len(rows), 1 << 33)
    return RunLists(part, place, length, pairs_at, growth, highest, joined, start), sizes


def put(old: bytes, lists: RunLists, sizes: dict[int, Sizes]) -> bytes:
    buffer = np.frombuffer(old, dtype=np.uint8).copy()
    RecordSlab(buffer, FIRST, 1024, lists, sizes)
    return buffer.tobytes()


@given(RECORDS, st.data())
def test_records_are_as_if_built_with_their_new_lists(
    records: list[list[Attribute] | None], data: st.DataObject
) -> None:
    lists, sizes = lists_of(records)
    if len(lists) == 0:
        return
    unknown = bytes(range(256)) * 4
    pairs = [before_and_after(attributes) if attributes else (unknown, unknown) for attributes in records]
    new = b"".join(after for _, after in pairs)
    assert put(b"".join(before for before, _ in pairs), lists, sizes) == new
    low = data.draw(st.integers(0, len(lists) - 1))
    one = put(b"".join(before for before, _ in pairs), lists.between(low, low + 1), sizes)
    number = int(lists.place[low]) // 1024 - FIRST
    others = [i for i in range(len(records)) if i != number]
    assert all(one[i * 1024 : (i + 1) * 1024] == pairs[i][0] for i in others)


def test_in_a_full_record_a_list_takes_what_another_gives_back() -> None:
    first = Attribute("", bytes(range(1, 100)), b"\x11\x05\x09\0", False)
    second = Attribute("$I30", b"\x11\x05\x09\0", bytes(range(1, 104)), False)
    rest = Attribute(
        "", b"\x07" * (1024 - FIRST_ATTRIBUTE - 8 - 64 - len(first.before() + second.before())), None, False
    )
    for attributes in ([first, second, rest], [second, first, rest]):
        old, new = before_and_after(attributes)
        assert len(b"".join(a.before() for a in attributes)) == 1024 - FIRST_ATTRIBUTE - 8
        assert put(old, *lists_of([attributes])) == new


def damage(at: int, value: bytes) -> bytes:
    """Three records with a list each, the last two damaged."""
    block = bytearray(before_and_after([Attribute("$I30", b"\x11\x05\x09\0", b"\x11\x05\x0a\0", False)])[0] * 3)
    for number in (1, 2):
        block[number * 1024 + at : number * 1024 + at + len(value)] = value
    return bytes(block)


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, b"BAAD", "update sequence array"),
        (4, b"\x31\0", "update sequence array"),
        (4, b"\xfa\x01", "update sequence array"),
        (4, b"\xfe\xff", "update sequence array"),
        (6, b"\x02\0", "update sequence array"),
        (510, b"AC", "update sequence array"),
        (1022, b"AC", "update sequence array"),
        (FIRST_ATTRIBUTE + 0x0A, b"\x42\0", "name of an attribute lies behind"),
        (FIRST_ATTRIBUTE + 0x0A, b"\xff\xff", "name of an attribute lies behind"),
    ],
)
def test_a_record_that_is_not_what_it_was_is_refused_by_its_number(at: int, value: bytes, said: str) -> None:
    attributes = [Attribute("$I30", b"\x11\x05\x09\0", b"\x11\x05\x0a\0", False)]
    with pytest.raises(InconsistentVolume, match=f"MFT record {FIRST + 1}: .*{said}"):
        put(damage(at, value), *lists_of([attributes] * 3))


@given(
    st.binary(min_size=64 * 16, max_size=64 * 16),
    st.lists(st.tuples(st.integers(0, 64 * 16 - 1), st.integers(0, 255)), max_size=40),
    st.sets(st.integers(1, 80 * 16 - 1), max_size=12),
)
def test_differences_of_many_records_are_those_of_each(
    old: bytes, changes: list[tuple[int, int]], borders: set[int]
) -> None:
    changed = bytearray(old)
    for at, value in changes:
        changed[at] = value
    new, size, first = bytes(changed), 64, 4
    starts = [0, *sorted(borders)]
    lengths = [end - start for start, end in zip(starts, [*starts[1:], 80 * 16], strict=True)]
    places = [10_000 - 3 * start for start in starts]
    runs = ContentRuns(starts, places, lengths)
    wanted: list[Fixup] = []
    for number in range(16):
        part = slice(number * size, (number + 1) * size)
        wanted += differences_in(old[part], new[part], (first + number) * size, runs, f"record {first + number}")
    reasons = {first + number: f"record {first + number}" for number in range(16)}
    assert list(RecordDifferences(runs, size).fixups(old, new, first, reasons)) == wanted
