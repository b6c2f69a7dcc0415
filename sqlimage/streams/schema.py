"""The format's schema as data: what a file must hold, object for object, to be an image."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

import apsw

APPLICATION_ID = 0x53514C49
"""``SQLI``, at byte 68 of the file."""
FORMAT_VERSION = 1
"""``PRAGMA user_version``: the version of the format this library writes, and the newest it reads."""
OLDEST_READER = 1
"""The oldest format version whose readers understand what this library writes."""
ENCRYPTION, SEALED_STREAMS = "encryption", "sealed-streams"
KNOWN_FEATURES: frozenset[str] = frozenset({ENCRYPTION, SEALED_STREAMS})
"""Names in ``feature`` that this reader understands."""
PAGE_BYTES = 4096

SchemaObject = tuple[str, str, str | None]
"""Type, name and SQL of one row of ``sqlite_schema``."""


_OBJECTS = "SELECT type, name, sql FROM sqlite_schema"
_INDEX = re.compile(r"^CREATE INDEX .*?;$", re.MULTILINE | re.DOTALL)


@cache
def schema_sql() -> tuple[str, str]:
    """The statements that make an empty image: all but the indexes, and the indexes.

    A writer of many rows makes the indexes last, from rows that are there: it is faster, and they come out denser.
    """
    room = files("sqlimage.schema")
    whole = "".join((room / name).read_text("utf-8") for name in ("image.sql", "views.sql"))
    return _INDEX.sub("", whole), "\n".join(_INDEX.findall(whole))


@cache
def temporary_sql(tables: tuple[str, ...]) -> tuple[str, ...]:
    """The statements that make temporary tables of the same form and name as those of the format, with their indexes,
    and all views over them."""
    whole, indexes = schema_sql()
    statements = [
        re.sub(r"^CREATE TABLE", "CREATE TEMP TABLE", found[0])
        for found in re.finditer(r"^CREATE TABLE (\w+) .*?;$", whole, re.MULTILINE | re.DOTALL)
        if found[1] in tables
    ]
    statements += [
        found[0].replace("CREATE INDEX ", "CREATE INDEX temp.", 1)
        for found in re.finditer(r"^CREATE INDEX \w+ ON (\w+) .*?;$", indexes, re.MULTILINE | re.DOTALL)
        if found[1] in tables
    ]
    views = re.findall(r"^CREATE VIEW .*?;$", whole, re.MULTILINE | re.DOTALL)
    return (*statements, *(view.replace("CREATE VIEW", "CREATE TEMP VIEW", 1) for view in views))


@cache
def expected_objects() -> frozenset[SchemaObject]:
    """Every object an image holds, with its exact SQL; an image that differs is not opened."""
    connection = apsw.Connection(":memory:")
    try:
        for statements in schema_sql():
            connection.execute(statements)
        return read_objects(connection)
    finally:
        connection.close()


@cache
def signature_sql() -> str:
    """The statement that makes the table of signatures, which an image has from its first signature on."""
    return (files("sqlimage.schema") / "signature.sql").read_text("utf-8")


@cache
def optional_objects() -> frozenset[SchemaObject]:
    """What an image may hold besides, with its exact SQL: all of it or none."""
    connection = apsw.Connection(":memory:")
    try:
        connection.execute(signature_sql())
        return frozenset(connection.execute(_OBJECTS))
    finally:
        connection.close()


def read_objects(connection: apsw.Connection) -> frozenset[SchemaObject]:
    """The objects of an image, but for those it need not have, where they are as they should be."""
    found = frozenset(connection.execute(_OBJECTS))
    return found - optional_objects() if found >= optional_objects() else found
