"""Signatures: the table ``signature``, which a file has from the first one on."""

from __future__ import annotations

from dataclasses import dataclass

from sqlimage.streams import schema
from sqlimage.streams.database import Database
from sqlimage.streams.translation import typed

_IS_THERE = "SELECT 1 FROM {}.sqlite_schema WHERE type = 'table' AND name = 'signature'"
_SELECT = (
    "SELECT id, public_key, CAST(statement AS BLOB), signature FROM signature WHERE version_uuid = ? ORDER BY id DESC"
)
_PUT = "INSERT OR REPLACE INTO signature (public_key, statement, signature) VALUES (?, ?, ?)"
_REMOVE = "DELETE FROM signature WHERE version_uuid = ?"
_COPY = (
    "INSERT OR REPLACE INTO main.signature (public_key, statement, signature) "
    "SELECT public_key, statement, signature FROM child.signature WHERE version_uuid = ? ORDER BY id"
)


@dataclass(frozen=True, slots=True)
class SignatureRow:
    """A row of ``signature``; nothing of it has been verified."""

    id: int
    public_key: bytes
    statement: bytes
    """UTF-8, as it was signed."""
    signature: bytes


def is_there(database: Database, schema_name: str = "main") -> bool:
    """Whether a file has signatures at all."""
    return database.row(_IS_THERE.format(schema_name)) is not None


def of(database: Database, uuid: str) -> list[SignatureRow]:
    """The signatures of a version, newest first."""
    if not is_there(database):
        return []
    types = (int, bytes, bytes, bytes)
    return [SignatureRow(*typed(database.path, "signature", types, row)) for row in database.rows(_SELECT, [uuid])]


def signed(database: Database) -> set[str]:
    """The UUIDs of the versions that a file has signatures of, valid or not."""
    if not is_there(database):
        return set()
    return {str(row[0]) for row in database.query("SELECT DISTINCT version_uuid FROM signature")}


def put(database: Database, public_key: bytes, statement: str, signature: bytes) -> None:
    """Add a signature; one of the same version by the same key is replaced. It belongs in a transaction."""
    _make(database)
    database.run(_PUT, [public_key, statement, signature])


def remove(database: Database, uuid: str) -> None:
    """Remove the signatures of a version that is going."""
    if is_there(database):
        database.run(_REMOVE, [uuid])


def bring(database: Database, uuid: str) -> None:
    """Take over the signatures of a version from the file that is attached as ``child``."""
    if is_there(database, "child") and database.row("SELECT 1 FROM child.signature WHERE version_uuid = ?", [uuid]):
        _make(database)
        database.run(_COPY, [uuid])


def _make(database: Database) -> None:
    if not is_there(database):
        database.run(schema.signature_sql())
