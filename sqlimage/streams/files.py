"""The tables ``file`` and ``extent``: which files a version holds and where each of them lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlimage.errors import FormatError
from sqlimage.streams.database import Database
from sqlimage.streams.translation import Row, typed

INSERT_FILE = (
    "INSERT INTO file (version, volume, path, kind, bytes, modified_at, record, stream, attributes, digest, deleted) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)"
)
INSERT_DELETED = "INSERT INTO file (version, volume, path, record, stream, deleted) VALUES (?, ?, ?, ?, ?, 1)"
INSERT_EXTENT = (
    "INSERT OR IGNORE INTO extent (version, volume, record, stream, file_offset, start_cluster, clusters) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_ALONE = "SELECT count(*) FROM lineage WHERE version = ?"
_SELECT_OWN = (
    "SELECT 0, volume, path, kind, bytes, modified_at, record, stream, attributes, digest FROM file "
    "WHERE version = ? AND volume = ? AND deleted = 0 ORDER BY path"
)
_SELECT_OWN_EXTENTS = (
    "SELECT record, stream, file_offset, start_cluster, clusters FROM extent WHERE version = ? AND volume = ? "
    "ORDER BY record, stream, file_offset"
)
_SELECT_EFFECTIVE = (
    "SELECT 0, volume, path, kind, bytes, modified_at, record, stream, attributes, digest FROM effective_file "
    "WHERE version = ? AND volume = ?"
)
_DIGESTS_OWN = "SELECT path, digest FROM file WHERE version = ? AND volume = ? AND deleted = 0 AND digest IS NOT NULL"
_DIGESTS = "SELECT path, digest FROM effective_file WHERE version = ? AND volume = ? AND digest IS NOT NULL"
_SELECT_EXTENTS = (
    "SELECT record, stream, file_offset, start_cluster, clusters FROM effective_extent "
    "WHERE version = ? AND volume = ? ORDER BY record, stream, file_offset"
)
_EXTENTS_OF_ONE = (
    "SELECT file_offset, start_cluster, clusters FROM effective_extent "
    "WHERE version = ? AND volume = ? AND record = ? AND stream = ? ORDER BY file_offset"
)
_COLUMNS = "volume, path, kind, bytes, modified_at, record, stream, attributes, digest"
_ONE = f"SELECT {_COLUMNS} FROM effective_file WHERE version = ? AND volume = ? AND path = ?"
# A directory's own row, and all below it: '0' is the character after '/'.
_BELOW = (
    f"SELECT {_COLUMNS} FROM effective_file "
    "WHERE version = ?1 AND volume = ?2 AND path >= ?3 || '/' AND path < ?3 || '0' ORDER BY path"
)
_TYPES = (int, str, str, int | None, str | None, int | None, str | None, int | None, bytes | None)
_OWNERS = "SELECT DISTINCT volume, path FROM owner WHERE version = ?1 AND start_cluster <= ?3 AND end_cluster >= ?2"


_NUMBER, _TEXT, _BYTES, _NONE = (frozenset[type]({one}) for one in (int, str, bytes, type(None)))
_EXTENT_TYPES = (_NUMBER, _TEXT, _NUMBER, _NUMBER, _NUMBER)
_ROW_TYPES = (
    *(_NUMBER, _NUMBER, _TEXT, _TEXT | _NONE, _NUMBER | _NONE, _TEXT | _NONE, _NUMBER | _NONE, _TEXT | _NONE),
    *(_NUMBER | _NONE, _BYTES | _NONE),
)


def every_row(database: Database, version: int, volume: int) -> list[Row]:
    """All names of a volume as they are in a version: the columns of ``file``, with 0 for the version."""
    rows = database.rows(_SELECT_OWN if _is_root(database, version) else _SELECT_EFFECTIVE, [version, volume])
    _check_types(database, "file", rows, _ROW_TYPES)
    return rows


def every_digest(database: Database, version: int, volume: int) -> dict[str, bytes]:
    """The digests of all names of a volume that have one."""
    rows = database.rows(_DIGESTS_OWN if _is_root(database, version) else _DIGESTS, [version, volume])
    _check_types(database, "file", rows, (_TEXT, _BYTES))
    return dict(rows)


def every_extent(database: Database, version: int, volume: int) -> list[Row]:
    """Where all contents of a volume lie in a version: record, stream, file offset, start and length in clusters."""
    rows = database.rows(_SELECT_OWN_EXTENTS if _is_root(database, version) else _SELECT_EXTENTS, [version, volume])
    _check_types(database, "extent", rows, _EXTENT_TYPES)
    return rows


def _check_types(database: Database, table: str, rows: list[Row], types: tuple[frozenset[type], ...]) -> None:
    """As :func:`~sqlimage.streams.translation.typed`, for very many rows: column by column."""
    for column, allowed in enumerate(types):
        if not {type(row[column]) for row in rows} <= allowed:
            raise FormatError(f"{database.path}: {table} holds values of types that the format does not allow")


def _is_root(database: Database, version: int) -> bool:
    """Whether a version has no ancestor, so that its own rows say it all: without the views, which cost more."""
    return database.row(_ALONE, [version]) == (1,)


@dataclass(frozen=True, slots=True)
class FileRow:
    """One name of a version, as ``effective_file`` shows it."""

    volume: int
    path: str
    kind: str
    size_bytes: int | None
    modified_at: str | None
    record: int | None
    stream: str | None
    attributes: int | None
    digest: bytes | None


def find(database: Database, version: int, volume: int, path: str) -> FileRow | None:
    """The row of one path; None where the version has no such name."""
    row = database.row(_ONE, [version, volume, path])
    return FileRow(*typed(database.path, "file", _TYPES, row)) if row else None


def below(database: Database, version: int, volume: int, path: str) -> Iterator[FileRow]:
    """Every row below a directory (not its own), by path; ``path`` is ``/`` or has no trailing slash."""
    prefix = "" if path == "/" else path
    for row in database.query(_BELOW, [version, volume, prefix]):
        if row[1] != "/":
            yield FileRow(*typed(database.path, "file", _TYPES, row))


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of a content, in clusters of the medium."""

    file_offset: int
    start_cluster: int
    clusters: int


def extents_of(database: Database, version: int, row: FileRow) -> list[Extent]:
    """Where the content of a file lies, in its order."""
    rows = database.rows(_EXTENTS_OF_ONE, [version, row.volume, row.record, row.stream])
    return [Extent(*typed(database.path, "extent", (int, int, int), found)) for found in rows]


def owners(database: Database, version: int, start_cluster: int, end_cluster: int) -> list[tuple[int, str]]:
    """Volume and path of every file that lies on the clusters ``start_cluster .. end_cluster`` (inclusive)."""
    return [(row[0], row[1]) for row in database.rows(_OWNERS, [version, start_cluster, end_cluster])]
