"""Connections to image files that nobody vouches for: hardened, and looked at before anything is read."""

from __future__ import annotations

import os
from urllib.parse import quote

import apsw

from sqlimage.errors import FormatError
from sqlimage.streams import schema

_LIMITS = {
    apsw.SQLITE_LIMIT_LENGTH: 16 << 20,  # the largest content has 8 MiB; views, tables and texts each hold copies
    apsw.SQLITE_LIMIT_SQL_LENGTH: 1 << 20,
    apsw.SQLITE_LIMIT_COLUMN: 200,
    apsw.SQLITE_LIMIT_EXPR_DEPTH: 100,
    apsw.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    apsw.SQLITE_LIMIT_VDBE_OP: 100_000,
    apsw.SQLITE_LIMIT_ATTACHED: 10,
    apsw.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1000,
    apsw.SQLITE_LIMIT_TRIGGER_DEPTH: 10,
}
_MOST_WRITTEN_BYTES = 256 << 20
"""For those who write: while a volume is laid out anew, the fix-ups of a whole FAT are one row."""
BUSY_MS = 5000
"""How long is waited for others who have a lock."""
_STEPS_BETWEEN_LOOKS = 200_000
_MOST_VERSIONS, _DEEPEST_LINEAGE = 10_000, 1000


def connect(path: str, mode: str) -> apsw.Connection:
    """A hardened connection; ``mode`` is ``rw`` or ``ro``, and what else the URI says."""
    flags = apsw.SQLITE_OPEN_READONLY if mode.startswith("ro") else apsw.SQLITE_OPEN_READWRITE
    connection = apsw.Connection(f"file:{quote(os.fsencode(path))}?mode={mode}", flags=apsw.SQLITE_OPEN_URI | flags)
    try:
        _harden(connection)
        if flags == apsw.SQLITE_OPEN_READWRITE:
            # EXTRA: the directory is synced too when the journal is gone, or a power cut could bring it back.
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.limit(apsw.SQLITE_LIMIT_LENGTH, _MOST_WRITTEN_BYTES)
    except BaseException:
        connection.close()
        raise
    return connection


def _harden(connection: apsw.Connection) -> None:
    """Nothing inside the file may run code, reach another file, or make a statement grow without bounds."""
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, 0)
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 0)
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DDL, 0)
    for limit, value in _LIMITS.items():
        connection.limit(limit, value)
    connection.set_busy_timeout(BUSY_MS)
    # A statement that runs for long gives Python a moment now and then, so that an interruption is heard.
    connection.set_progress_handler(lambda: False, _STEPS_BETWEEN_LOOKS)
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA mmap_size = 0")


def check_identity(path: str, connection: apsw.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]  # type: ignore[index]
    if not 1 <= version <= schema.FORMAT_VERSION:
        raise FormatError(
            f"{path}: format version {version}; this reader knows 1 to {schema.FORMAT_VERSION}",
            hint="use a newer sqlimage",
        )
    found, expected = schema.read_objects(connection), schema.expected_objects()
    if found != expected:
        odd = sorted({str(name) for _, name, _ in found ^ expected})  # a damaged name may be anything
        raise FormatError(f"{path}: the schema is not that of an image (differs in: {', '.join(odd[:5])})")
    oldest = connection.execute("SELECT value FROM format WHERE name = 'oldest_reader'").fetchone()
    if oldest is None or not isinstance(oldest[0], int) or oldest[0] > schema.FORMAT_VERSION:
        raise FormatError(
            f"{path}: is for readers of format {oldest[0] if oldest else '?'} on; this reader knows 1 to "
            f"{schema.FORMAT_VERSION}",
            hint="use a newer sqlimage",
        )
    for name, required in connection.execute("SELECT name, required FROM feature"):
        if required and name not in schema.KNOWN_FEATURES:
            raise FormatError(f"{path}: needs the feature {name!r}, which this reader does not know")
    if connection.execute("SELECT count(*) FROM fixup").fetchone() != (0,):
        raise FormatError(f"{path}: holds fix-ups outside a transaction; it was not written to its end")
    _check_lineages(path, connection)


def _check_lineages(path: str, connection: apsw.Connection) -> None:
    """No version may be its own ancestor, nor a lineage be deeper than any tool makes: views walk along them."""
    parents = dict(connection.execute("SELECT uuid, parent_uuid FROM control LIMIT ?", [_MOST_VERSIONS + 1]))
    if len(parents) > _MOST_VERSIONS:
        raise FormatError(f"{path}: holds more than {_MOST_VERSIONS} versions")
    depth: dict[object, int] = {None: 0}
    for uuid in parents:
        line = []
        while uuid not in depth and uuid in parents:
            line.append(uuid)
            depth[uuid] = -1  # on the way: met again, it is a circle
            uuid = parents[uuid]
        if depth.get(uuid, 0) < 0:
            raise FormatError(f"{path}: a version is its own ancestor")
        for steps, above in enumerate(reversed(line), depth.get(uuid, 0) + 1):
            depth[above] = steps
    if max(depth.values()) > _DEEPEST_LINEAGE:
        raise FormatError(f"{path}: a lineage is deeper than {_DEEPEST_LINEAGE} versions")
