"""Parents in other files: their rows beside those of this one, so that the effective views show the whole lineage."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib.resources import files
from urllib.parse import quote

import apsw

from sqlimage.errors import FormatError
from sqlimage.image.lineage import Lineage, resolve
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database, translated

_STRIDE = 1_000_000
"""Versions of the n-th other file are shown as their number plus n times this."""
_TABLES = {
    "control": ("version, uuid, parent_uuid, bytes_per_cluster", "version"),
    "file": (
        "version, volume, path, kind, bytes, modified_at, record, stream, attributes, digest, deleted",
        "version, volume, path",
    ),
    "extent": (
        "version, volume, record, stream, file_offset, start_cluster, clusters",
        "version, volume, record, stream, file_offset",
    ),
    "bitmap": ("version, start_cluster, end_cluster", "version, start_cluster"),
    "property": ("version, name, value", "version, name"),
}
"""Columns and key of what the views read."""
_VIEW = re.compile(r"^CREATE VIEW .*?;$", re.MULTILINE | re.DOTALL)
_SOURCE = re.compile(r"\b(FROM|JOIN) (" + "|".join(_TABLES) + r")\b( AS)?")
_NEEDED = ("effective_property", "effective_file", "effective_bitmap", "effective_extent", "owner")


def attach_parents(database: Database, version: Control, search: Sequence[str] = ()) -> None:
    """Make the views of this connection show a version's whole lineage, where it leads into other files.

    Raises what :func:`~sqlimage.image.lineage.resolve` raises.
    """
    lineage = resolve(database, version, search)
    try:
        if len(lineage.files) > 1:
            _attach(database, lineage)
    finally:
        lineage.close()


def _attach(database: Database, lineage: Lineage) -> None:
    """Copy what the ancestors in other files say into temporary tables: they never change, and a statement over a
    hundred attached files would be more than SQLite takes."""
    connection = database.connection
    if any(link.control.version >= _STRIDE for link in lineage.links):
        raise FormatError(f"{database.path}: its lineage has version numbers above {_STRIDE}")
    with translated(database.path):
        connection.limit(apsw.SQLITE_LIMIT_ATTACHED, 1)
        for table, (columns, key) in _TABLES.items():
            connection.execute(f"DROP TABLE IF EXISTS temp.parents_{table}")
            connection.execute(f"CREATE TEMP TABLE parents_{table} ({columns}, PRIMARY KEY ({key})) WITHOUT ROWID")
        for number, parent in enumerate(lineage.files[1:], 1):
            versions = ", ".join(str(link.control.version) for link in lineage.links if link.file == number)
            where = f"file:{quote(os.fsencode(parent.path))}?mode={parent.mode}"
            connection.execute("ATTACH ? AS parent", [where])
            try:
                for table, (columns, key) in _TABLES.items():
                    rest = columns.partition(", ")[2]
                    connection.execute(
                        f"INSERT INTO temp.parents_{table} SELECT version + {number * _STRIDE}, {rest} "
                        f"FROM parent.{table} WHERE version IN ({versions}) ORDER BY {key}"
                    )
            finally:
                connection.execute("DETACH parent")
        for statement in _views():
            connection.execute(statement)
        # Told as it was resolved: files of strangers could make a walk along their UUIDs endless.
        number = lineage.links[0].control.version
        connection.execute("DROP TABLE IF EXISTS temp.lineage")
        connection.execute("CREATE TEMP TABLE lineage (version, ancestor, depth, PRIMARY KEY (version, depth))")
        connection.execute("INSERT INTO temp.lineage SELECT * FROM main.lineage WHERE version != ?", [number])
        connection.executemany(
            "INSERT INTO temp.lineage VALUES (?, ?, ?)",
            [(number, link.control.version + link.file * _STRIDE, depth) for depth, link in enumerate(lineage.links)],
        )


def _views() -> list[str]:
    """The views of the format over the rows of all files."""
    statements = []
    for table, (columns, _) in _TABLES.items():
        both = f"SELECT {columns} FROM main.{table} UNION ALL SELECT {columns} FROM temp.parents_{table}"
        statements += [f"DROP VIEW IF EXISTS temp.all_{table}", f"CREATE TEMP VIEW all_{table} AS {both}"]
    text = (files("sqlimage.schema") / "views.sql").read_text("utf-8")
    for view in _VIEW.findall(text):
        name = view.split()[2]
        if name in _NEEDED:
            whole = _SOURCE.sub(lambda m: f"{m[1]} all_{m[2]} AS {'' if m[3] else m[2]}".rstrip(), view)
            statements += [
                f"DROP VIEW IF EXISTS temp.{name}",
                whole.replace("CREATE VIEW", "CREATE TEMP VIEW", 1),
            ]
    return statements
