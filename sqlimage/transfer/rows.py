"""The rows of an image but for the bytes of its contents, as blocks; and an image made of them, whose contents come
later."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice

from sqlimage.errors import FormatError
from sqlimage.streams import schema, signature
from sqlimage.streams.database import Database
from sqlimage.streams.translation import Row, translated
from sqlimage.transfer import columns, gather
from sqlimage.transfer.columns import MOST_ROWS, Column, Value
from sqlimage.units import MIB

_FILE, _DATA, _AUDIT, _SIGNATURE = "file", "data", "audit", "signature"
_DIGEST, _BYTES = "digest", "bytes"
_KEYS = {
    _FILE: "version, volume, path",
    "format": "name",
    "feature": "name",
    "control": "version",
    "volume": "version, number",
    "property": "version, name",
    "key_slot": "id",
    "sealed_stream": "stream, version, part",
    "data": "id",
    "cluster_map": "version, start_cluster",
    "bitmap": "version, start_cluster",
    "extent": "version, volume, record, stream, file_offset",
    _AUDIT: "id",
    _SIGNATURE: "id",
}
"""The tables that travel, and the order of their rows; the largest first, for it takes longest to be packed."""
_BY_VERSION = ("control", "volume", "property", "cluster_map", "bitmap", _FILE, "extent")
_NEVER_READ = "('rearranged')"
"""What of ``format`` tells of the file and not of the image."""
_USED = "EXISTS (SELECT 1 FROM main.cluster_map WHERE data = data.id AND version IN ({versions}))"
_BLOCK_BYTES = 16 * MIB
_ROWS_AT_A_TIME = 8
_LARGE = (_DATA, "cluster_map", "bitmap", _FILE, "extent")
"""Tables that may have very many rows."""
_SIZED = (str, bytes)
_LENGTH = struct.Struct("<I")


def pack(database: Database, versions: Sequence[int], pool: Executor, *, is_rest: bool) -> list[Future[bytes]]:
    """The rows of some versions of an image, as blocks: those without which nothing can be read, or ``is_rest``, the
    others. Of the data stream all that they map, without its bytes. What is sealed stays sealed. ``pool`` packs the
    blocks, which :func:`join` joins.
    """
    return [pool.submit(columns.pack, *one) for one in _blocks(database, versions, is_rest)]


def join(packed: Sequence[Future[bytes]]) -> bytes:
    """Blocks, each with its length before it, as 4 bytes little-endian."""
    return b"".join(_LENGTH.pack(len(block)) + block for block in (one.result() for one in packed))


Block = tuple[str, int, Sequence[Column]]
"""Table, number of rows, columns."""


def _blocks(database: Database, versions: Sequence[int], is_rest: bool) -> Iterator[Block]:
    if is_rest:
        yield from _large(database, versions, _FILE, [_DIGEST])
        yield from _table(database, versions, _AUDIT, names_of(database, _AUDIT))
        return
    for table in _KEYS:
        if table == _AUDIT or (table == _SIGNATURE and not signature.is_there(database)):
            continue
        left_out = {_FILE: _DIGEST, _DATA: _BYTES}.get(table)
        names = [one for one in names_of(database, table) if one != left_out]
        yield from (_large if table in _LARGE else _table)(database, versions, table, names)


def names_of(database: Database, table: str) -> list[str]:
    """The columns of a table that one can write to."""
    hidden = database.rows(f"PRAGMA main.table_xinfo({table})")
    return [str(row[1]) for row in hidden if row[6] == 0]


def _large(database: Database, versions: Sequence[int], table: str, names: Sequence[str]) -> Iterator[Block]:
    """The rows of a table that may have very many."""
    key = _KEYS[table].split(", ")
    if table in _BY_VERSION:  # one after the other: so the key finds them in order
        every = [gather.Rows(table, f"version = {version}", key[1:], names) for version in versions]
    else:
        every = [gather.Rows(table, _chosen(table, versions), key, names)]
    for rows in every:
        for count, found in gather.blocks(database, rows):
            yield table, count, found


def _table(database: Database, versions: Sequence[int], table: str, names: Sequence[str]) -> Iterator[Block]:
    shown = ", ".join(f'"{name}"' for name in names)
    sql = f"SELECT {shown} FROM main.{table} AS {table} WHERE {_chosen(table, versions)} ORDER BY {_KEYS[table]}"
    rows: list[Row] = []
    size = 0
    with translated(database.path):
        found = database.connection.execute(sql)
        while some := list(islice(found, _ROWS_AT_A_TIME)):
            rows += some
            size += sum(len(value) for row in some for value in row if value.__class__ in _SIZED)
            if len(rows) > MOST_ROWS - _ROWS_AT_A_TIME or size > _BLOCK_BYTES:
                yield table, len(rows), columns.of_rows(names, rows)
                rows, size = [], 0
    if rows:
        yield table, len(rows), columns.of_rows(names, rows)


def _chosen(table: str, versions: Sequence[int]) -> str:
    listed = ", ".join(map(str, versions))
    if table in _BY_VERSION:
        return f"version IN ({listed})"
    if table == "data":
        return _USED.format(versions=listed)
    if table == "format":
        return f"name NOT IN {_NEVER_READ}"
    if table == _SIGNATURE:
        return f"version_uuid IN (SELECT uuid FROM main.control WHERE version IN ({listed}))"
    return "TRUE"


def fill(database: Database, streams: bytes | memoryview, rest: bytes | memoryview | None) -> None:
    """Write the rows into a new image, inside its transaction. Without ``rest`` files have no digests there, and the
    trail is empty.

    Raises :class:`~sqlimage.errors.FormatError` for rows that no image has.
    """
    digests = _Digests(split(rest)) if rest is not None else None
    for table, names, rows in _decoded(split(streams)):
        if table == _FILE and digests is not None:
            _put(database, table, [*names, _DIGEST], digests.added(rows))
        else:
            _put(database, table, names, rows)
    for table, names, rows in digests.others() if digests is not None else ():
        _put(database, table, names, rows)


def _decoded(packed: Iterator[memoryview]) -> Iterator[tuple[str, list[str], list[tuple[Value, ...]]]]:
    """Blocks, each decoded while the one before it is written."""
    with ThreadPoolExecutor(1, thread_name_prefix="unpack") as pool:
        following: Future[tuple[str, list[str], list[tuple[Value, ...]]]] | None = None
        for block in packed:
            before, following = following, pool.submit(columns.decode, block)
            if before is not None:
                yield before.result()
        if following is not None:
            yield following.result()


class _Digests:
    """The digests of files, in step with their rows, and what follows them."""

    def __init__(self, blocks_: Iterator[memoryview]) -> None:
        self._blocks = blocks_
        self._held: list[Value] = []
        self._next: tuple[str, list[str], list[tuple[Value, ...]]] | None = None

    def added(self, rows: list[tuple[Value, ...]]) -> list[tuple[Value, ...]]:
        while len(self._held) < len(rows):
            block = next(self._blocks, None)
            if block is None:
                raise FormatError("the digests of files are fewer than the files")
            table, names, found = columns.decode(block)
            if table != _FILE or names != [_DIGEST]:
                raise FormatError("the digests of files are not where they should be")
            self._held += [digest for (digest,) in found]
        now, self._held = self._held[: len(rows)], self._held[len(rows) :]
        return [(*row, digest) for row, digest in zip(rows, now, strict=True)]

    def others(self) -> Iterator[tuple[str, list[str], list[tuple[Value, ...]]]]:
        if self._held:
            raise FormatError("the digests of files are more than the files")
        for block in self._blocks:
            table, names, rows = columns.decode(block)
            if table != _AUDIT:
                raise FormatError(f"there are rows of {table[:100]!r} where the audit trail should be")
            yield table, names, rows


def split(packed: bytes | memoryview) -> Iterator[memoryview]:
    """The blocks of :func:`join`. Raises :class:`~sqlimage.errors.FormatError` where they are cut off."""
    view, at = memoryview(packed), 0
    while at < len(view):
        if len(view) - at < _LENGTH.size:
            raise FormatError("the streams of the first segment are cut off")
        (length,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        if length > len(view) - at:
            raise FormatError("the streams of the first segment are cut off")
        yield view[at : at + length]
        at += length


def _put(database: Database, table: str, names: list[str], rows: Sequence[Sequence[object]]) -> None:
    if table not in _KEYS:
        raise FormatError(f"there are rows of a table {table[:100]!r}, which no image has")
    if table == _SIGNATURE and not signature.is_there(database):
        database.run(schema.signature_sql())
    known = names_of(database, table)
    if len(set(names)) != len(names) or not set(names) <= set(known):
        raise FormatError(f"the rows of {table!r} have columns that the table has not: {json.dumps(names)[:200]}")
    shown = ", ".join(f'"{name}"' for name in names)
    database.insert(f"main.{table} ({shown})", rows)
