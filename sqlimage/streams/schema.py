"""The format's schema as data: what a file must hold, object for object, to be an image."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import apsw

APPLICATION_ID = 0x53514C49
"""``SQLI``, at byte 68 of the file."""
FORMAT_VERSION = 1
"""``PRAGMA user_version``: the version of the format this library writes, and the newest it reads."""
OLDEST_READER = 1
"""The oldest format version whose readers understand what this library writes."""
KNOWN_FEATURES: frozenset[str] = frozenset()
"""Names in ``feature`` that this reader understands."""
MAX_CHUNK_BYTES = 8 << 20
"""The largest ``data.length``, checked before anything is decompressed."""
PAGE_BYTES = 4096

SchemaObject = tuple[str, str, str | None]
"""Type, name and SQL of one row of ``sqlite_schema``."""


@cache
def schema_sql() -> str:
    """The statements that make an empty image."""
    room = files("sqlimage.schema")
    return "".join((room / name).read_text("utf-8") for name in ("image.sql", "views.sql"))


@cache
def expected_objects() -> frozenset[SchemaObject]:
    """Every object an image holds, with its exact SQL; an image that differs is not opened."""
    connection = apsw.Connection(":memory:")
    try:
        connection.execute(schema_sql())
        return read_objects(connection)
    finally:
        connection.close()


def read_objects(connection: apsw.Connection) -> frozenset[SchemaObject]:
    return frozenset(connection.execute("SELECT type, name, sql FROM sqlite_schema"))
