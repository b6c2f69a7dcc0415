"""The header of a segment, and the list of what lies where."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlimage.errors import FormatError
from sqlimage.transfer.contents import OWN, Contents, SegmentInfo, most_packed_bytes, unpack_contents
from sqlimage.transfer.segment import HEADER_BYTES, Header, Part, read_header
from sqlimage.units import GIB, KIB, MIB

_UUID = "0d8c6b1e-3c3d-4d86-9a55-0a4f0f9a2f11"
_FIRST = Header(
    _UUID, 1, 3, MIB, MIB, Part(256, 100, b"c" * 32), Part(356, 1000, b"s" * 32), Part(MIB - 50, 50, b"r" * 32), 1356
)


def test_a_header_says_what_it_said() -> None:
    for header in (_FIRST, Header(_UUID, 2, 3, MIB, 77_000)):
        packed = header.pack()
        assert len(packed) == HEADER_BYTES
        assert read_header("x", packed + b"contents") == header


def test_the_identity_is_that_of_every_part() -> None:
    other = replace(_FIRST, rest=replace(_FIRST.rest, digest=b"R" * 32))
    assert _FIRST.identity != other.identity


@given(st.integers(0, HEADER_BYTES - 1), st.integers(1, 255))
def test_a_changed_header_is_refused_or_is_another_identity(at: int, by: int) -> None:
    packed = bytearray(_FIRST.pack())
    packed[at] ^= by
    try:
        found = read_header("x", bytes(packed))
    except FormatError as problem:
        assert str(problem).startswith("x: ")
        return
    assert found.identity != _FIRST.identity


@pytest.mark.parametrize(
    "header",
    [
        replace(_FIRST, number=0),
        replace(_FIRST, number=4),
        replace(_FIRST, segment_bytes=1 << 40, length_bytes=1 << 40, rest=Part((1 << 40) - 50, 50, b"r" * 32)),
        replace(_FIRST, length_bytes=2 * MIB, rest=Part(2 * MIB - 50, 50, b"r" * 32)),
        replace(_FIRST, contents=Part(255, 101, b"c" * 32)),
        replace(_FIRST, streams=Part(356, GIB, b"c" * 32)),
        replace(_FIRST, rest=Part(1000, MIB - 1000, b"r" * 32)),
        replace(_FIRST, data_offset_bytes=1400),
        replace(Header(_UUID, 2, 3, MIB, MIB), contents=_FIRST.contents),
        Header(_UUID, 2, 3, MIB, 255),
        Header(_UUID, 2, 3, 1000, 900),
    ],
)
def test_a_header_that_cannot_be_is_refused(header: Header) -> None:
    with pytest.raises(FormatError, match="contradicts itself"):
        read_header("x", header.pack())


def _contents(places: list[tuple[int, int, int, int]], segments: int) -> Contents:
    listed = [
        SegmentInfo(OWN, MIB),
        *(SegmentInfo(hashlib.sha256(bytes([n])).digest(), MIB) for n in range(1, segments)),
    ]
    return Contents(listed, *np.array(places, dtype=np.int64).reshape(-1, 4).T)


@given(
    st.lists(
        st.tuples(st.integers(1, 1 << 62), st.integers(1, 5), st.integers(0, 4096), st.integers(1, 8192)),
        max_size=60,
        unique_by=lambda place: place[0],
    )
)
def test_what_lies_where_comes_out_as_it_went_in_and_is_never_longer_than_was_planned(
    some: list[tuple[int, int, int, int]],
) -> None:
    free = [0] * 6
    places = []
    for data, segment, gap, length in some:
        places.append((data, segment, free[segment] + gap, length))
        free[segment] += gap + length
    contents = _contents(places, 5)
    packed = contents.pack()
    assert len(packed) <= most_packed_bytes(5, len(places))
    back = unpack_contents("x", packed, 32 * len(places))
    assert back.segments == contents.segments
    assert np.stack(back.places(), axis=1).tolist() == [list(place) for place in places]


def test_pieces_of_a_content_follow_each_other() -> None:
    contents = _contents([(7, 1, 500, 100), (7, 2, 256, 300), (7, 3, 256, 5), (9, 3, 261, 50)], 3)
    assert unpack_contents("x", contents.pack(), KIB).starts().tolist() == [0, 100, 400, 0]


@pytest.mark.parametrize(
    "contents",
    [
        _contents([(1, 6, 0, 1)], 5),
        _contents([(1, 0, 0, 1)], 5),
        _contents([(0, 1, 0, 1)], 5),
        _contents([(1, 1, 0, 0)], 5),
        _contents([(7, 1, 0, 1), (8, 1, 1, 1), (7, 2, 0, 1)], 5),
        _contents([(7, 1, 0, 100), (8, 1, 99, 1)], 5),
        _contents([(7, 2, 0, 100), (8, 1, 0, 1), (9, 2, 0, 100)], 5),
        _contents([(7, 2, 0, 1), (7, 2, 1, 1)], 5),
        _contents([(7, 2, 0, 1), (7, 3, 0, 1), (7, 2, 1, 1)], 5),
        _contents([(7, 2, MIB - 1, 2)], 5),
        _contents([(n, 1, n, 1) for n in range(1, 200)], 1),
        replace(_contents([], 2), segments=[SegmentInfo(b"x" * 32, MIB)]),
        replace(_contents([], 2), segments=[SegmentInfo(OWN, MIB), SegmentInfo(OWN, MIB)]),
        replace(_contents([], 2), segments=[SegmentInfo(OWN, MIB), SegmentInfo(b"x" * 32, 1 << 50)]),
        replace(_contents([], 2), segments=[]),
    ],
)
def test_a_list_that_cannot_be_is_refused(contents: Contents) -> None:
    with pytest.raises(FormatError, match="list of its segments"):
        unpack_contents("x", contents.pack(), KIB)


@given(st.binary(max_size=200))
def test_what_is_no_list_is_one_error(noise: bytes) -> None:
    with pytest.raises(FormatError):
        unpack_contents("x", noise, KIB)
