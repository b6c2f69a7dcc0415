"""Data stream: the table ``data``, one row per distinct content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlimage.codec.chunk import ChunkFlag
from sqlimage.codec.vault import Vault
from sqlimage.errors import DamagedError
from sqlimage.streams.database import Database
from sqlimage.streams.translation import typed

INTO = "data (id, digest, length, stored_bytes, flags, bytes)"
INSERT = f"INSERT INTO {INTO} VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING"
FIND = "SELECT id FROM data WHERE digest = ?"
NAMES = "SELECT data.id, digest, length, flags FROM json_each(?) AS asked JOIN data ON data.id = asked.value"
IS_HELD = "SELECT id FROM data WHERE digest = ? AND bytes IS NOT NULL"
WITHOUT_BYTES = "SELECT digest FROM data WHERE bytes IS NULL"
FIND_ALL = "SELECT digest, id, bytes IS NOT NULL FROM data WHERE digest IN"
FILL = "UPDATE data SET length = ?, stored_bytes = ?, flags = ?, bytes = ? WHERE id = ? AND bytes IS NULL"
DELETE_UNUSED = "DELETE FROM data WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM cluster_map WHERE data = ?1)"
_TYPES = (int, bytes, int, int, bytes | None)
_SELECT = "SELECT digest, length, flags, bytes FROM data WHERE id = ?"
_SELECT_DIGEST = "SELECT id, digest, length, flags, bytes FROM data WHERE digest = ?"


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A row of ``data`` as it lies in the file: nothing decoded, nothing verified."""

    id: int
    digest: bytes
    length: int
    """Bytes of the content before compression."""
    flags: int
    stored: bytes | None
    """None: an ancestor or a segment that has not arrived holds the bytes."""
    vault: Callable[[], Vault] | None = None
    """Where it is encrypted: unlocks the image it is in."""
    forget: Callable[[], None] | None = None
    """Where it came from elsewhere: makes it be fetched anew."""


@dataclass(frozen=True, slots=True)
class DataRow:
    """A row of ``data`` without its bytes."""

    id: int
    digest: bytes
    length: int
    stored_bytes: int
    flags: int


def describe(database: Database, data: int) -> DataRow:
    """One row by id, without its bytes. Raises :class:`~sqlimage.errors.DamagedError` where it is not there."""
    row = database.row("SELECT digest, length, stored_bytes, flags FROM data WHERE id = ?", [data])
    if row is None:
        raise DamagedError(f"{database.path}: the map refers to data {data}, which is missing", data=data)
    return DataRow(data, *typed(database.path, "data", (bytes, int, int, int), row))


def read(database: Database, data: int) -> StoredChunk:
    """One row by id. Raises :class:`~sqlimage.errors.DamagedError` where a map record names a row that is not there."""
    row = database.row(_SELECT, [data])
    if row is None:
        raise DamagedError(f"{database.path}: the map refers to data {data}, which is missing", data=data)
    return _chunk(database, data, *typed(database.path, "data", _TYPES[1:], row))


def find(database: Database, digest: bytes) -> StoredChunk | None:
    """The row with that content, if this file has one."""
    row = database.row(_SELECT_DIGEST, [digest])
    return None if row is None else _chunk(database, *typed(database.path, "data", (int, *_TYPES[1:]), row))


def _chunk(database: Database, number: int, name: bytes, length: int, flags: int, stored: bytes | None) -> StoredChunk:
    is_encrypted = flags & ChunkFlag.ENCRYPTED != 0
    if database.is_sealed and not is_encrypted:
        raise DamagedError(f"{database.path}: data {number} is not encrypted, and all of the image is", data=number)
    return StoredChunk(number, name, length, flags, stored, database.vault if is_encrypted else None)


def next_id(database: Database) -> int:
    """The first number from which on all are free."""
    row = database.row("SELECT coalesce(max(id), 0) + 1 FROM data")
    assert row is not None
    return int(row[0])


def totals(database: Database) -> tuple[int, int, int]:
    """Rows, bytes of content, bytes stored."""
    row = database.row("SELECT count(*), coalesce(sum(length), 0), coalesce(sum(stored_bytes), 0) FROM data")
    assert row is not None
    return row[0], row[1], row[2]
