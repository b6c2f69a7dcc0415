"""The columns of large tables, put together by SQLite itself: row by row Python would take much longer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import apsw
import numpy as np
from numpy.typing import NDArray

from sqlimage.errors import FormatError
from sqlimage.streams.database import Database
from sqlimage.streams.translation import translated, typed
from sqlimage.transfer import columns
from sqlimage.transfer.columns import MOST_ROWS, Column


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a table in the order of its key."""

    table: str
    where: str
    """Of them all."""
    key: Sequence[str]
    """Columns that tell each from every other, in the order of rows; none is NULL."""
    names: Sequence[str]
    """Columns that are wanted: of type INTEGER, TEXT or BLOB."""


def blocks(database: Database, rows: Rows) -> Iterator[tuple[int, list[Column]]]:
    """How many rows, and their columns: up to ``MOST_ROWS`` at a time.

    Raises :class:`~sqlimage.errors.FormatError` where a value is not of the type of its column.
    """
    described = database.rows(f"PRAGMA main.table_xinfo({rows.table})")
    types = {str(row[1]): (str(row[2]), bool(row[3])) for row in described}
    told = [(name, *types[name]) for name in rows.names]
    after: Sequence[object] = ()
    most = MOST_ROWS
    while True:
        where = rows.where
        if after:
            where += f" AND ({', '.join(rows.key)}) > ({', '.join('?' * len(rows.key))})"
        ordered = f"FROM main.{rows.table} WHERE {where} ORDER BY {', '.join(rows.key)}"
        shown = ", ".join(f'"{name}"' for name in rows.names)
        aggregates = ", ".join(one for name, kind, never in told for one in _aggregates(name, kind, never))
        try:
            with translated(database.path):
                sql = f"SELECT count(*), {aggregates} FROM (SELECT {shown} {ordered} LIMIT {most})"
                found = database.connection.execute(sql, after).fetchone()
        except FormatError as problem:
            if not _is_too_big(problem) or most == 1:
                raise
            most = max(1, most // 8)
            continue
        assert found is not None
        count, values = found[0], list(found[1:])
        if not count:
            return
        yield count, [_column(database.path, rows.table, *one, count, values) for one in told]
        if count < most:
            return
        last = database.row(f"SELECT {', '.join(rows.key)} {ordered} LIMIT 1 OFFSET {count - 1}", after)
        assert last is not None
        after = last


def _aggregates(name: str, kind: str, is_never_null: bool) -> Iterator[str]:
    """How many values are of another type; which are NULL; the values, or their lengths and then they joined."""
    column = f'"{name}"'
    yield f"sum(typeof({column}) NOT IN ('{kind.lower()}', 'null'))"
    if kind == "INTEGER":
        yield "''" if is_never_null else f"group_concat({column} IS NULL, '')"
        yield f"group_concat(coalesce({column}, 0), ',')"
    else:
        yield f"group_concat(coalesce(length(CAST({column} AS BLOB)) + 1, 0), ',')"
        yield f"CAST(group_concat(CAST({column} AS TEXT), '') AS BLOB)"


def _column(path: str, table: str, name: str, kind: str, _never: bool, count: int, values: list[object]) -> Column:
    odd, first, second = values.pop(0), values.pop(0), values.pop(0)
    if odd:
        raise FormatError(f"{path}: {table}.{name} holds what is not {kind}")
    if kind == "INTEGER":
        nulls = np.frombuffer(str(first).encode(), dtype=np.uint8) == ord("1") if first else None
        return columns.integers(name, _numbers(second), nulls)
    assert second is None or isinstance(second, bytes)
    return columns.joined(name, kind.lower(), _numbers(first), second or b"")


def _is_too_big(problem: FormatError) -> bool:
    """Whether a value came to more than SQLite was told to allow."""
    return isinstance(problem.__context__, apsw.TooBigError)


def numbers(database: Database, names: Sequence[str], sql: str, parameters: Sequence[object]) -> NDArray[np.int64]:
    """The rows of a query, by the names of its columns, which hold whole numbers.

    Raises :class:`~sqlimage.errors.FormatError` where they hold something else, or NULL.
    """
    joined = ", ".join(f"sum(typeof({name}) <> 'integer'), group_concat({name}, ',')" for name in names)
    try:
        told = database.row(f"SELECT {joined} FROM ({sql})", parameters)
    except FormatError as problem:
        if not _is_too_big(problem):
            raise
        types = (int,) * len(names)
        rows = [typed(database.path, ", ".join(names), types, row) for row in database.rows(sql, parameters)]
        return np.array(rows, dtype=np.int64)
    assert told is not None
    if any(told[::2]):
        raise FormatError(f"{database.path}: {', '.join(names)} hold what is not INTEGER")
    return np.stack([_numbers(one or "") for one in told[1::2]], axis=1)


def _numbers(listed: object) -> NDArray[np.int64]:
    return np.fromstring(str(listed), dtype=np.int64, sep=",")
