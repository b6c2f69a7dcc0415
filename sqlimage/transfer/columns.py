"""Rows of a table as bytes, column by column, so that what is alike lies together and compresses; and back.

A *block* is a zstd frame of at most ``MOST_BLOCK_BYTES`` decoded. It begins with a JSON object in a line: ``table``,
``rows``, and ``columns``, a list of name, kind and length of each column; their bytes follow in that order. Kinds:

- ``integer``: a byte 0 (the values) or 1 (each minus the one before), a byte whether NULLs follow; if so a bit for each
  row, the first in the highest bit, 1 where it is NULL; then the low bytes of all values, then their next bytes, eight
  times, in two's complement.
- ``text``, ``blob``: the lengths plus one as ``integer``, 0 for NULL, their size before them as 4 bytes little-endian;
  then all texts in UTF-8, or blobs, one after the other.
- ``front``: texts in an order in which neighbours begin alike. Their lengths plus one, and how many bytes each has in
  common with the one before it, both as ``integer`` with their size before them; then the rest of all of them.
- ``any``: a JSON list of the values, blobs as ``{"hex": ...}``.
- ``null``: nothing; all are NULL.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from sqlimage.errors import FormatError

Value = int | float | str | bytes | None
MOST_BLOCK_BYTES = 64 << 20
MOST_ROWS = 1 << 16
_LEVEL = 6
_MOST_HEAD = 64 << 10
_MOST_COLUMNS = 64
"""Of any table; of NULLs alone that a block tells of in a few bytes, each row takes memory."""
_HEX = re.compile(r'\{"hex":\s*"([0-9a-f]*)"\}')
_SPACE = re.compile(r"[ \t\r\n]*")
_BETWEEN = re.compile(r"[ \t\r\n]*([,\]])[ \t\r\n]*")
_SIZE = struct.Struct("<I")
_FRONT = "front"
_WORD = 8
_MOST_SHARED = 4096
"""Bytes that are looked for in common: longer than any path."""


class Malformed(FormatError):
    """A block is not of the form it should be."""


Column = tuple[str, str, bytes]
"""Name, kind and bytes of a column of a block."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a table, column by column."""

    table: str
    count: int
    """Of rows."""
    names: Sequence[str]
    columns: Sequence[Sequence[Value]]


def encode(table: str, names: Sequence[str], rows: Sequence[Sequence[Value]]) -> bytes:
    """A block. Raises :class:`ValueError` for more than ``MOST_ROWS`` rows."""
    return pack(table, len(rows), of_rows(names, rows))


def of_rows(names: Sequence[str], rows: Sequence[Sequence[Value]]) -> list[Column]:
    """The columns of rows."""
    by_column = zip(*rows, strict=True) if rows else [()] * len(names)
    return [_encoded(name, column) for name, column in zip(names, by_column, strict=True)]


def pack(table: str, rows: int, columns: Sequence[Column]) -> bytes:
    """A block of columns. Raises :class:`ValueError` for more than ``MOST_ROWS`` rows."""
    if rows > MOST_ROWS:
        raise ValueError("too many rows for one block")
    told = [[name, kind, len(part)] for name, kind, part in columns]
    head = json.dumps({"table": table, "rows": rows, "columns": told}, separators=(",", ":")).encode() + b"\n"
    return zstandard.ZstdCompressor(level=_LEVEL).compress(b"".join([head, *(part for _, _, part in columns)]))


def integers(name: str, values: NDArray[np.int64], nulls: NDArray[np.bool_] | None) -> Column:
    """A column of whole numbers; those that are NULL are 0 in ``values``."""
    if nulls is not None and not nulls.any():
        nulls = None
    if nulls is not None and nulls.all():
        return name, "null", b""
    return name, "integer", _planes(values, nulls)


def joined(name: str, kind: str, lengths: NDArray[np.int64], joined: bytes) -> Column:
    """A column of texts (in UTF-8) or blobs, with their lengths plus one, 0 for NULL."""
    if not lengths.any():
        return name, "null", b""
    front = _front_coded(lengths, joined) if kind == "text" else None
    if front is not None:
        return name, _FRONT, front
    return name, kind, _sized(_planes(lengths, None)) + joined


def decode(block: bytes | memoryview) -> Block:
    """What :func:`encode` made. Raises :class:`~sqlimage.errors.FormatError` for what is none."""
    try:
        size = zstandard.get_frame_parameters(block).content_size
        if size > MOST_BLOCK_BYTES:
            raise Malformed(f"a block of streams has {size} bytes; at most {MOST_BLOCK_BYTES} are allowed")
        raw = zstandard.ZstdDecompressor().decompress(block, max_output_size=MOST_BLOCK_BYTES)
    except zstandard.ZstdError:
        raise Malformed("a block of streams cannot be decoded") from None
    try:
        return _decoded(raw)
    except (ValueError, TypeError, LookupError, struct.error, RecursionError, OverflowError):
        raise Malformed("a block of streams is not of the form it should be") from None


def _decoded(raw: bytes) -> Block:
    end = raw.index(b"\n", 0, _MOST_HEAD)
    head = json.loads(raw[:end])
    table, count, told = head["table"], head["rows"], head["columns"]
    if not isinstance(table, str) or type(count) is not int or not 0 <= count <= MOST_ROWS:
        raise ValueError
    if not isinstance(told, list) or len(told) > _MOST_COLUMNS:
        raise ValueError
    at, names, columns = end + 1, list[str](), list[Sequence[Value]]()
    most_bytes = MOST_BLOCK_BYTES
    for name, kind, length in told:
        if not isinstance(name, str) or type(length) is not int or not 0 <= length <= len(raw) - at:
            raise ValueError
        names.append(name)
        part = memoryview(raw)[at : at + length]
        if kind == _FRONT:
            texts, most_bytes = _front_of(part, count, most_bytes)
            columns.append(texts)
        else:
            columns.append(_DECODERS[kind](part, count))
        at += length
    if at != len(raw):
        raise ValueError
    return Block(table, count, names, columns)


def _encoded(name: str, column: Sequence[Value]) -> Column:
    kinds = {type(value) for value in column}
    kinds.discard(type(None))
    if not kinds:
        return name, "null", b""
    if kinds == {int}:
        values = np.array([0 if value is None else value for value in column], dtype=np.int64)
        return integers(name, values, np.array([value is None for value in column]))
    if kinds in ({str}, {bytes}):
        blobs = [value.encode() if isinstance(value, str) else value for value in column]
        lengths = np.array([0 if value is None else len(value) + 1 for value in blobs], dtype=np.int64)  # type: ignore[arg-type]
        kind = "text" if kinds == {str} else "blob"
        return joined(name, kind, lengths, b"".join(value for value in blobs if value))  # type: ignore[misc]
    return name, "any", json.dumps(list(column), default=_hex, separators=(",", ":")).encode()


def _planes(values: NDArray[np.int64], nulls: NDArray[np.bool_] | None) -> bytes:
    with np.errstate(over="ignore"):
        steps = np.diff(values, prepend=np.int64(0))
    plain, stepped = (_by_bytes(numbers) for numbers in (values, steps))
    is_stepped = _cost(stepped) < _cost(plain)
    told = b"" if nulls is None else np.packbits(nulls).tobytes()
    return bytes([is_stepped, nulls is not None]) + told + (stepped if is_stepped else plain)


def _by_bytes(values: NDArray[np.int64]) -> bytes:
    """The low bytes of all, then their next bytes."""
    return np.ascontiguousarray(values.astype("<i8").view(np.uint8).reshape(-1, 8).T).tobytes()


def _cost(planes: bytes) -> int:
    return len(zstandard.ZstdCompressor(level=1).compress(planes))


def _front_coded(lengths: NDArray[np.int64], joined: bytes) -> bytes | None:
    """Texts that come after each other in order, as ``front``; None where they have too little in common."""
    sizes = np.maximum(lengths - 1, 0)
    shared = _shared(sizes, joined)
    if 2 * int(shared.sum()) < len(joined):
        return None
    begins = np.cumsum(sizes) - sizes
    edges = np.zeros(len(joined) + 1, dtype=np.int8)  # where what is shared with the text before begins, and ends
    np.add.at(edges, begins, 1)
    np.subtract.at(edges, begins + shared, 1)
    rest: bytes = np.frombuffer(joined, dtype=np.uint8)[np.cumsum(edges[:-1], dtype=np.int8) == 0].tobytes()
    return _sized(_planes(lengths, None)) + _sized(_planes(shared, None)) + rest


def _sized(part: bytes) -> bytes:
    return _SIZE.pack(len(part)) + part


def _shared(sizes: NDArray[np.int64], joined: bytes) -> NDArray[np.int64]:
    """How many bytes each text has in common with the one before it; eight at a time are compared."""
    begins = np.cumsum(sizes) - sizes
    padded = np.frombuffer(joined + bytes(_WORD), dtype=np.uint8)
    words = np.lib.stride_tricks.as_strided(padded, (len(joined) + 1, _WORD), (1, 1), writeable=False)
    shared: NDArray[np.int64] = np.zeros(len(sizes), dtype=np.int64)
    most: NDArray[np.int64] = np.minimum(sizes, np.concatenate([[0], sizes[:-1]]))
    row, at = np.flatnonzero(most), 0
    while len(row) and at < _MOST_SHARED:
        differs = words[begins[row] + at] != words[begins[row - 1] + at]
        common = np.where(differs.any(axis=1), differs.argmax(axis=1), _WORD)
        shared[row] = at + common
        at += _WORD
        row = row[(common == _WORD) & (at < most[row])]
    return np.minimum(shared, most, out=shared)


def _integers_of(part: memoryview, count: int) -> list[int | None]:
    values, nulls = _numbers_of(part, count)
    column: list[int | None] = values.tolist()
    for row in nulls:
        column[row] = None
    return column


def _numbers_of(part: memoryview, count: int) -> tuple[NDArray[np.int64], list[int]]:
    """The values, and which of them are NULL."""
    is_stepped, has_null = part[0], part[1]
    at = 2 + (-(-count // 8) if has_null else 0)
    if is_stepped > 1 or has_null > 1 or len(part) != at + 8 * count:
        raise ValueError
    values = np.frombuffer(part[at:], dtype=np.uint8).reshape(8, count).T.copy().view("<i8").reshape(count)
    if is_stepped:
        with np.errstate(over="ignore"):
            values = np.cumsum(values, dtype=np.int64)
    if not has_null:
        return values, []
    nulls = np.unpackbits(np.frombuffer(part[2:at], dtype=np.uint8), count=count)
    return values, np.flatnonzero(nulls).tolist()


def _sized_of(part: memoryview, count: int) -> tuple[NDArray[np.int64], memoryview]:
    """Numbers with their size before them, none of them NULL; and what follows them."""
    (size,) = _SIZE.unpack_from(part)
    at = _SIZE.size + size
    if at > len(part):
        raise ValueError
    values, nulls = _numbers_of(part[_SIZE.size : at], count)
    if nulls:
        raise ValueError
    return values, part[at:]


def _split(part: memoryview, count: int) -> tuple[memoryview, list[int], list[int], list[int]]:
    """What was joined; where each value begins and ends in it; and which of them are NULL."""
    lengths, joined = _sized_of(part, count)
    if count and (lengths.min() < 0 or lengths.max() > len(joined) + 1):
        raise ValueError
    begins, ends = _bounds(np.maximum(lengths - 1, 0), joined)
    return joined, begins, ends, np.flatnonzero(lengths == 0).tolist()


def _bounds(sizes: NDArray[np.int64], joined: memoryview) -> tuple[list[int], list[int]]:
    """Where each of some parts, which follow each other, begins and ends."""
    ends = np.cumsum(sizes)
    if (int(ends[-1]) if len(ends) else 0) != len(joined):
        raise ValueError
    return (ends - sizes).tolist(), ends.tolist()


def _texts_of(part: memoryview, count: int) -> list[str | None]:
    joined, begins, ends, nulls = _split(part, count)
    whole = bytes(joined)
    texts: list[str | None]
    if whole.isascii():
        text = whole.decode()
        texts = [text[begin:end] for begin, end in zip(begins, ends, strict=True)]
    else:
        texts = [whole[begin:end].decode() for begin, end in zip(begins, ends, strict=True)]
    for row in nulls:
        texts[row] = None
    return texts


def _front_of(part: memoryview, count: int, most_bytes: int) -> tuple[list[str | None], int]:
    """The texts, and how many of ``most_bytes`` are left: a few bytes could stand for any number of long ones."""
    lengths, part = _sized_of(part, count)
    shared, rest = _sized_of(part, count)
    sizes = np.maximum(lengths - 1, 0)
    before = np.concatenate([np.zeros(min(count, 1), dtype=np.int64), sizes[:-1]])
    if count and (lengths.min() < 0 or lengths.max() > most_bytes + 1 or int(sizes.sum()) > most_bytes):
        raise ValueError
    if not ((shared >= 0) & (shared <= sizes) & (shared <= before)).all():
        raise ValueError
    begins, ends = _bounds(sizes - shared, rest)
    parts = zip(begins, ends, shared.tolist(), strict=True)
    whole, texts = bytes(rest), list[str | None]()
    if whole.isascii():  # then characters are bytes, and need not be decoded one by one
        text, told = "", whole.decode()
        texts += [
            text := text[:both] + told[low:high] if low < high or both < len(text) else text
            for low, high, both in parts
        ]
    else:
        raw = b""
        texts += [(raw := raw[:both] + whole[low:high]).decode() for low, high, both in parts]
    for row in np.flatnonzero(lengths == 0).tolist():
        texts[row] = None
    return texts, most_bytes - int(sizes.sum())


def _blobs_of(part: memoryview, count: int) -> list[bytes | None]:
    joined, begins, ends, nulls = _split(part, count)
    blobs: list[bytes | None] = [bytes(joined[begin:end]) for begin, end in zip(begins, ends, strict=True)]
    for row in nulls:
        blobs[row] = None
    return blobs


def _any_of(part: memoryview, count: int) -> list[Value]:
    """A value at a time: a list as a whole could have lists of nothing in it, twenty times as large as their text."""
    text = str(part, "utf-8").strip(" \t\r\n")
    if text == "[]" and not count:
        return []
    if text[:1] != "[":
        raise ValueError
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    column: list[Value] = []
    at = _SPACE.match(text, 1).end()  # type: ignore[union-attr]  # it matches nothing as well
    while len(column) < count:
        if found := _HEX.match(text, at):
            column.append(bytes.fromhex(found[1]))
            at = found.end()
        elif text[at] in "[{":
            raise ValueError
        else:
            value, at = decoder.raw_decode(text, at)
            column.append(_plain(value))
        between = _BETWEEN.match(text, at)
        if between is None or (between[1] == "]") != (len(column) == count):
            raise ValueError
        at = between.end()
    if at != len(text):
        raise ValueError
    return column


def _plain(value: Any) -> Value:
    if type(value) is str:
        value.encode()  # JSON can tell of what is no text: halves of surrogate pairs
        return value
    if value is None or type(value) is float or (type(value) is int and -(1 << 63) <= value < 1 << 63):
        return value
    raise ValueError


def _no_constant(_name: str) -> None:
    raise ValueError  # what JSON itself has not: infinities, and what is no number


def _nulls_of(part: memoryview, count: int) -> list[None]:
    if len(part):
        raise ValueError
    return [None] * count


def _hex(value: object) -> object:
    assert isinstance(value, bytes)
    return {"hex": value.hex()}


_DECODERS: dict[str, Callable[[memoryview, int], Sequence[Value]]] = {
    "integer": _integers_of,
    "text": _texts_of,
    "blob": _blobs_of,
    "any": _any_of,
    "null": _nulls_of,
}
