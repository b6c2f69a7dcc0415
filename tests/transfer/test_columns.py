"""Rows travel by columns: what comes out is what went in, and what anybody sends is looked at."""

from __future__ import annotations

import json

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from sqlimage.errors import FormatError
from sqlimage.transfer import columns
from sqlimage.transfer.columns import Value

_INTEGERS = st.none() | st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-300, 300)
_TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_PATHS = st.none() | st.text("abé/", max_size=30) | st.text("x/", min_size=20, max_size=40)
_BLOBS = st.none() | st.binary(max_size=40)
_ANY = _INTEGERS | _TEXTS | _BLOBS | st.floats(allow_nan=False, allow_infinity=False)


def rows_of(block: columns.Block) -> list[tuple[Value, ...]]:
    return [*zip(*block.columns, strict=True)]


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[Value, ...]]:
    kinds = draw(
        st.lists(st.sampled_from([_INTEGERS, _TEXTS, _PATHS, _BLOBS, _ANY, st.none()]), min_size=1, max_size=6)
    )
    return draw(st.lists(st.tuples(*kinds), max_size=50))


@given(tables())
def test_rows_come_out_as_they_went_in(rows: list[tuple[Value, ...]]) -> None:
    names = [f"c{n}" for n in range(len(rows[0]))] if rows else ["c0"]
    found = columns.decode(columns.encode("t", names, rows))
    back = rows_of(found)
    assert (found.table, found.names, found.count, back) == ("t", names, len(rows), rows)
    assert [[type(value) for value in row] for row in back] == [[type(value) for value in row] for row in rows]


@given(st.lists(_PATHS, max_size=200))
def test_paths_in_order_come_out_as_they_went_in(paths: list[str | None]) -> None:
    rows = [(path,) for path in sorted(paths, key=lambda path: path or "")]
    assert rows_of(columns.decode(columns.encode("t", ["path"], rows))) == rows


def test_paths_in_order_cost_little() -> None:
    paths = [f"/usr/share/doc/package-{n // 50:04}/examples/part-{n % 50:02}.txt" for n in range(20_000)]
    assert len(columns.encode("t", ["path"], [(path,) for path in paths])) < 6_000


def test_a_few_bytes_do_not_stand_for_many_long_texts() -> None:
    count, long = columns.MOST_ROWS, 1 << 20

    def planes(values: list[int]) -> bytes:
        told = b"".join(bytes((value >> 8 * n) & 0xFF for value in values) for n in range(8))
        return (2 + len(told)).to_bytes(4, "little") + bytes(2) + told

    part = planes([long + 1] * count) + planes([0, *[long] * (count - 1)]) + b"a" * long
    for copies in (1, 60):
        block = _raw(
            {"table": "t", "rows": count, "columns": [[f"c{n}", "front", len(part)] for n in range(copies)]}, part
        )
        with pytest.raises(FormatError):
            columns.decode(block)
    small = planes([2, 3, 0]) + planes([0, 1, 0]) + b"ab"
    block = _raw({"table": "t", "rows": 3, "columns": [["c", "front", len(small)]]}, small)
    assert rows_of(columns.decode(block)) == [("a",), ("ab",), (None,)]
    for wrong in (planes([2, 3, 0]) + planes([0, 2, 0]) + b"ab", planes([2, 3, 0]) + planes([1, 1, 0]) + b"ab"):
        with pytest.raises(FormatError):
            columns.decode(_raw({"table": "t", "rows": 3, "columns": [["c", "front", len(wrong)]]}, wrong))


def test_halves_of_characters_are_no_text() -> None:
    for text in (r'["\ud800"]', r'["a\udc00b"]'):
        block = _raw({"table": "t", "rows": 1, "columns": [["a", "any", len(text)]]}, text.encode())
        with pytest.raises(FormatError):
            columns.decode(block)


def test_what_very_long_texts_share_costs_no_time() -> None:
    rows = [("x" * (4 << 20) + end,) for end in "ab"]
    assert rows_of(columns.decode(columns.encode("t", ["text"], rows))) == rows


def test_the_same_rows_are_the_same_bytes() -> None:
    rows: list[tuple[Value, ...]] = [(n, f"/a/{n}", bytes([n]), None) for n in range(200)]
    assert columns.encode("t", list("abcd"), rows) == columns.encode("t", list("abcd"), list(rows))


def test_numbers_that_count_up_cost_next_to_nothing() -> None:
    assert len(columns.encode("t", ["n"], [(n * 8,) for n in range(60_000)])) < 200


def test_a_block_takes_a_bounded_number_of_rows() -> None:
    with pytest.raises(ValueError, match="too many rows"):
        columns.encode("t", ["n"], [(1,)] * (columns.MOST_ROWS + 1))


@given(st.binary(max_size=400), st.data())
def test_what_was_changed_on_the_way_is_refused_or_is_still_rows(noise: bytes, data: st.DataObject) -> None:
    """Behind the compression: whatever the bytes, it is rows or one error, at a bounded cost."""
    block = columns.encode("t", ["a", "b", "c"], [(n, f"{n}", bytes(n)) for n in range(20)])
    raw = bytearray(zstandard.ZstdDecompressor().decompress(block))
    for byte in noise[:8]:
        raw[data.draw(st.integers(0, len(raw) - 1))] = byte
    try:
        found = columns.decode(zstandard.ZstdCompressor().compress(bytes(raw)))
    except FormatError:
        return
    assert all(len(column) == found.count for column in found.columns)


def _raw(head: object, body: bytes = b"") -> bytes:
    return zstandard.ZstdCompressor().compress(json.dumps(head).encode() + b"\n" + body)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"no frame",
        zstandard.ZstdCompressor().compress(b"no line"),
        _raw([]),
        _raw({"table": "t", "rows": 1 << 60, "columns": []}),
        _raw({"table": "t", "rows": -1, "columns": []}),
        _raw({"table": "t", "rows": True, "columns": []}),
        _raw({"table": 7, "rows": 0, "columns": []}),
        _raw({"table": "t", "rows": 1, "columns": [["a", "integer", 1 << 60]]}),
        _raw({"table": "t", "rows": 1, "columns": [["a", "spell", 0]]}),
        _raw({"table": "t", "rows": 1, "columns": [["a", "null", 0]]}, b"behind the end"),
        _raw({"table": "t", "rows": 1, "columns": [["a", "any", 9]]}, b"[[[[[[[[["),
        _raw({"table": "t", "rows": 1, "columns": [["a", "any", 5]]}, b"[NaN]"),
        _raw({"table": "t", "rows": 1, "columns": [["a", "any", 4]]}, b"[[]]"),
        _raw({"table": "t", "rows": 1, "columns": [["a", "any", 4]]}, b"[{}]"),
        _raw({"table": "t", "rows": 1, "columns": [["a", "any", 5]]}, b"[1,2]"),
        _raw({"table": "t", "rows": 2, "columns": [["a", "any", 4]]}, b"[1 2"),
        _raw({"table": "t", "rows": 0, "columns": [["a", "any", 3]]}, b"[1]"),
        _raw({"table": "t", "rows": 1, "columns": [["a", "any", 3]]}, b"[1,"),
        _raw({"table": "t", "rows": 1, "columns": [["a", "any", 2]]}, b"[1"),
        _raw({"table": "t", "rows": 1, "columns": [["a", "any", 1]]}, b"["),
        _raw({"table": "t", "rows": 1, "columns": [[f"c{n}", "null", 0] for n in range(1000)]}, b""),
        _raw({"table": "t", "rows": 1, "columns": [["a", "any", 24]]}, b"[99999999999999999999999"),
        _raw({"table": "t", "rows": 2, "columns": [["a", "null", 0], ["b", "any", 3]]}, b"[1]"),
    ],
)
def test_what_is_no_block_is_one_error(block: bytes) -> None:
    with pytest.raises(FormatError):
        columns.decode(block)


def test_a_block_that_claims_gigabytes_is_refused_before_they_are_there() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(columns.MOST_BLOCK_BYTES + 1))
    assert len(bomb) < 1 << 16
    with pytest.raises(FormatError, match="at most"):
        columns.decode(bomb)
