"""The rows of an image but for the bytes of its contents, as blocks; and an image made of them, whose contents come
later."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import islice

from sqlimage.errors import FormatError
from sqlimage.image.chunks import Connections
from sqlimage.streams import schema, signature
from sqlimage.streams.database import Database
from sqlimage.streams.translation import Row, translated
from sqlimage.transfer import columns, gather
from sqlimage.transfer.columns import MOST_ROWS, Block, Column, Value
from sqlimage.units import MIB

_FILE, _DATA, _AUDIT, _SIGNATURE = "file", "data", "audit", "signature"
_DIGEST, _BYTES = "digest", "bytes"
_KEYS = {
    "format": "name",
    "feature": "name",
    "control": "version",
    "volume": "version, number",
    "property": "version, name",
    "key_slot": "id",
    "sealed_stream": "stream, version, part",
    _DATA: "id",
    _SIGNATURE: "id",
    "bitmap": "version, start_cluster",
    "cluster_map": "version, start_cluster",
    "extent": "version, volume, record, stream, file_offset",
    _FILE: "version, volume, path",
    _AUDIT: "id",
}
"""The tables that travel, in their order, and the order of their rows. Contents can be filled in once what comes up to
the data stream is there."""
_PLACES = {table: place for place, table in enumerate(_KEYS)}
_BY_VERSION = ("control", "volume", "property", "cluster_map", "bitmap", _FILE, "extent")
_NEVER_READ = "('rearranged')"
"""What of ``format`` tells of the file and not of the image."""
_USED = "EXISTS (SELECT 1 FROM main.cluster_map WHERE data = data.id AND version IN ({versions}))"
_BLOCK_BYTES = 16 * MIB
_ROWS_READ_AT_A_TIME = 8
_LARGE = (_DATA, "cluster_map", "bitmap", _FILE, "extent")
"""Tables that may have very many rows."""
_ROWS_IN_ONE = 64
"""Of a statement."""
_ROWS_AT_ONCE = 8192
"""What takes a moment to be written."""
_SIZED = (str, bytes)
_LENGTH = struct.Struct("<I")
Packed = tuple[str, int, Sequence[Column]]
"""Table, number of rows, columns: what a block is made of."""
Packing = Sequence[Future[list[bytes]]]
"""The blocks of each table, on threads."""


def pack(connections: Connections, versions: Sequence[int], pool: Executor) -> tuple[Packing, Packing]:
    """The rows of some versions of an image, as blocks: those without which nothing can be read, and the others. Of the
    data stream all that they map, without its bytes. What is sealed stays sealed. ``pool`` reads and packs, a table at
    a time, what :func:`join` joins.
    """

    def packed(table: str, names: Sequence[str]) -> list[bytes]:
        database = connections.mine()
        chosen = (_large if table in _LARGE else _table)(database, versions, table, names)
        return [columns.pack(*one) for one in chosen]

    database = connections.mine()
    jobs: dict[str, Future[list[bytes]]] = {}
    for table in reversed(_KEYS):
        if table == _AUDIT or (table == _SIGNATURE and not signature.is_there(database)):
            continue
        left_out = {_FILE: _DIGEST, _DATA: _BYTES}.get(table)
        names = [one for one in names_of(database, table) if one != left_out]
        jobs[table] = pool.submit(packed, table, names)
    rest = [pool.submit(packed, _FILE, [_DIGEST]), pool.submit(packed, _AUDIT, names_of(database, _AUDIT))]
    return [jobs[table] for table in _KEYS if table in jobs], rest


def join(packed: Packing) -> bytes:
    """Blocks, each with its length before it, as 4 bytes little-endian."""
    return b"".join(_LENGTH.pack(len(block)) + block for one in packed for block in one.result())


def names_of(database: Database, table: str) -> list[str]:
    """The columns of a table that one can write to."""
    hidden = database.rows(f"PRAGMA main.table_xinfo({table})")
    return [str(row[1]) for row in hidden if row[6] == 0]


def _large(database: Database, versions: Sequence[int], table: str, names: Sequence[str]) -> Iterator[Packed]:
    """The rows of a table that may have very many."""
    key = _KEYS[table].split(", ")
    if table in _BY_VERSION:  # one after the other: so the key finds them in order
        every = [gather.Rows(table, f"version = {version}", key[1:], names) for version in versions]
    else:
        every = [gather.Rows(table, _chosen(table, versions), key, names)]
    for rows in every:
        for count, found in gather.blocks(database, rows):
            yield table, count, found


def _table(database: Database, versions: Sequence[int], table: str, names: Sequence[str]) -> Iterator[Packed]:
    shown = ", ".join(f'"{name}"' for name in names)
    sql = f"SELECT {shown} FROM main.{table} AS {table} WHERE {_chosen(table, versions)} ORDER BY {_KEYS[table]}"
    rows: list[Row] = []
    size = 0
    with translated(database.path):
        found = database.connection.execute(sql)
        while some := list(islice(found, _ROWS_READ_AT_A_TIME)):
            rows += some
            size += sum(len(value) for row in some for value in row if value.__class__ in _SIZED)
            if len(rows) > MOST_ROWS - _ROWS_READ_AT_A_TIME or size > _BLOCK_BYTES:
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


def filling(database: Database, streams: bytes | memoryview, rest: bytes | memoryview | None) -> Iterator[str]:
    """Write the rows into a new image, inside its transaction: some whenever the next is asked for, which is the name
    of their table. Without ``rest`` files have no digests there, and the trail is empty.

    Raises :class:`~sqlimage.errors.FormatError` for rows that no image has.
    """
    digests = _Digests(split(rest)) if rest is not None else None
    latest = 0
    for block in _decoded(split(streams)):
        place = _PLACES.get(block.table)
        if place is None:
            raise FormatError(f"there are rows of a table {block.table[:100]!r}, which no image has")
        if place < latest:
            raise FormatError(f"there are rows of {block.table!r} after those of tables that come after it")
        latest = place
        yield from _put(database, digests.added(block) if block.table == _FILE and digests is not None else block)
    for block in digests.others() if digests is not None else ():
        yield from _put(database, block)


def is_before_contents(table: str) -> bool:
    """Whether the rows of a table must be there before contents can be."""
    return _PLACES[table] <= _PLACES[_DATA]


def _decoded(packed: Iterator[memoryview]) -> Iterator[Block]:
    """Blocks, each decoded while the one before it is written."""
    with ThreadPoolExecutor(1, thread_name_prefix="unpack") as pool:
        following: Future[Block] | None = None
        for block in packed:
            before, following = following, pool.submit(columns.decode, block)
            if before is not None:
                yield before.result()
        if following is not None:
            yield following.result()


class _Digests:
    """The digests of files, in step with their rows, and what follows them."""

    def __init__(self, packed: Iterator[memoryview]) -> None:
        self._blocks = packed
        self._held: list[Value] = []

    def added(self, files: Block) -> Block:
        while len(self._held) < files.count:
            packed = next(self._blocks, None)
            if packed is None:
                raise FormatError("the digests of files are fewer than the files")
            block = columns.decode(packed)
            if block.table != _FILE or list(block.names) != [_DIGEST]:
                raise FormatError("the digests of files are not where they should be")
            self._held += block.columns[0]
        now, self._held = self._held[: files.count], self._held[files.count :]
        return Block(_FILE, files.count, [*files.names, _DIGEST], [*files.columns, now])

    def others(self) -> Iterator[Block]:
        if self._held:
            raise FormatError("the digests of files are more than the files")
        for packed in self._blocks:
            block = columns.decode(packed)
            if block.table != _AUDIT:
                raise FormatError(f"there are rows of {block.table[:100]!r} where the audit trail should be")
            yield block


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


def _put(database: Database, block: Block) -> Iterator[str]:
    table, names = block.table, list(block.names)
    if table == _SIGNATURE and not signature.is_there(database):
        database.run(schema.signature_sql())
    known = names_of(database, table)
    if len(set(names)) != len(names) or not set(names) <= set(known):
        raise FormatError(f"the rows of {table!r} have columns that the table has not: {json.dumps(names)[:200]}")
    if names:
        shown = ", ".join(f'"{name}"' for name in names)
        for begin in range(0, block.count, _ROWS_AT_ONCE):
            _insert(database, f"main.{table} ({shown})", block, begin, min(begin + _ROWS_AT_ONCE, block.count))
            yield table


def _insert(database: Database, into: str, block: Block, begin: int, end: int) -> None:
    """Many rows to a statement, and no row is put together: the columns follow each other in its parameters."""
    with translated(database.path):
        for at in range(begin, end, _ROWS_IN_ONE):
            count = min(_ROWS_IN_ONE, end - at)
            values: list[Value] = []
            for column in block.columns:
                values += column[at : at + count]
            database.connection.execute(_insertion(into, count, len(block.columns)), values)


@lru_cache(2)
def _insertion(into: str, count: int, width: int) -> str:
    rows = (", ".join(f"?{row + count * column}" for column in range(width)) for row in range(1, count + 1))
    return f"INSERT INTO {into} VALUES {', '.join(f'({row})' for row in rows)}"
