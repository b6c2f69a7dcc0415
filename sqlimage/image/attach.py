"""Parents in other files: their rows beside those of this one, so that the effective views show the whole lineage."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import accumulate
from urllib.parse import quote

import apsw

from sqlimage.errors import FormatError
from sqlimage.image.lineage import Lineage, resolve
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.streams.sealed import TABLES as SEALED
from sqlimage.streams.translation import translated

_STRIDE = 1_000_000
"""Versions of the n-th other file are shown as their number plus n times this."""
_TABLES = {
    "control": ("version, uuid, parent_uuid, label, created_at, medium_bytes, bytes_per_cluster", "version"),
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
_MAP = {
    "cluster_map": ("version, start_cluster, end_cluster, data, data_offset", "version, start_cluster"),
}
"""Likewise, where the map is asked for too."""
_TEXTS = ("uuid", "parent_uuid", "label", "created_at", "path", "kind", "modified_at", "stream", "name")
_TYPES = {**dict.fromkeys(_TEXTS, "TEXT"), "digest": "BLOB", "value": ""}
"""Types of columns without integers. A key that has none is of no use in comparisons with columns that have some."""
_LINEAGE = "version INTEGER, ancestor INTEGER, depth INTEGER, reach INTEGER, PRIMARY KEY (version, depth)"
_DEEPEST_OF_ALL = 200
"""In a lineage up to this deep, the views show every ancestor as a version of its own, too."""
_VIEW = re.compile(r"^CREATE VIEW .*?;$", re.MULTILINE | re.DOTALL)
_SOURCE = re.compile(r"\b(FROM|JOIN) (" + "|".join((*_TABLES, *_MAP)) + r")\b( AS)?")
_NEEDED = ("effective_control", "effective_property", "effective_file", "effective_bitmap", "effective_extent", "owner")
_NEEDED_OF_MAP = ("effective_cluster_map",)


def attach_parents(database: Database, version: Control, search: Sequence[str] = (), *, with_map: bool = False) -> None:
    """Make the views of this connection show a version's whole lineage, where it leads into other files; the view of
    the cluster map only ``with_map``.

    Raises what :func:`~sqlimage.image.lineage.resolve` raises.
    """
    lineage = resolve(database, version, search)
    try:
        if len(lineage.files) > 1:
            _attach(database, lineage, {**_TABLES, **_MAP} if with_map else _TABLES)
    finally:
        lineage.close()


def _attach(database: Database, lineage: Lineage, tables: Mapping[str, tuple[str, str]]) -> None:
    """Copy what the ancestors in other files say into temporary tables: they never change, and a statement over a
    hundred attached files would be more than SQLite takes."""
    connection = database.connection
    if any(link.control.version >= _STRIDE for link in lineage.links):
        raise FormatError(f"{database.path}: its lineage has version numbers above {_STRIDE}")
    with translated(database.path):
        connection.limit(apsw.SQLITE_LIMIT_ATTACHED, 1)
        for table, (columns, key) in tables.items():
            typed = ", ".join(f"{column} {_TYPES.get(column, 'INTEGER')}" for column in columns.split(", "))
            connection.execute(f"DROP TABLE IF EXISTS temp.{_copy_of(table)}")
            connection.execute(f"CREATE TEMP TABLE {_copy_of(table)} ({typed}, PRIMARY KEY ({key})) WITHOUT ROWID")
        for number, parent in enumerate(lineage.files):
            if number and parent.is_sealed:
                _copy_sealed(connection, parent, lineage.in_file(number), number * _STRIDE)
            schema = "parent" if number else "main"
            if number:
                where = f"file:{quote(os.fsencode(parent.path))}?mode={parent.mode}"
                connection.execute("ATTACH ? AS parent", [where])
            try:
                versions = ", ".join(map(str, lineage.in_file(number)))
                for table, (columns, key) in tables.items():
                    if (number and not (parent.is_sealed and table in SEALED)) or table in _MAP:
                        connection.execute(
                            f"INSERT INTO temp.{_copy_of(table)} "
                            f"SELECT version + {number * _STRIDE}, {columns.partition(', ')[2]} "
                            f"FROM {schema}.{table} WHERE version IN ({versions}) ORDER BY {key}"
                        )
            finally:
                if number:
                    connection.execute("DETACH parent")
        for statement in _views(tables):
            connection.execute(statement)
        # Told as it was resolved: files of strangers could make a walk along their UUIDs endless.
        kind = connection.execute("SELECT type FROM temp.sqlite_schema WHERE name = 'lineage'").fetchone()
        connection.execute(f"DROP {kind[0] if kind else 'TABLE IF EXISTS'} temp.lineage")
        connection.execute(f"CREATE TEMP TABLE lineage ({_LINEAGE})")
        connection.executemany("INSERT INTO temp.lineage VALUES (?, ?, ?, ?)", _lines(lineage))
        connection.execute(
            "INSERT INTO temp.lineage SELECT * FROM main.lineage "
            "WHERE version NOT IN (SELECT version FROM temp.lineage)"
        )


def _copy_sealed(connection: apsw.Connection, parent: Database, versions: Sequence[int], stride: int) -> None:
    """What an ancestor says that is encrypted as a whole: only a connection of its own has its rows."""
    if parent.sealed is None:
        parent.unseal()
    for table, (columns, key) in _TABLES.items():
        if table in SEALED:
            rest = columns.partition(", ")[2]
            rows = parent.query(
                f"SELECT version + {stride}, {rest} FROM {table} "
                f"WHERE version IN ({', '.join(map(str, versions))}) ORDER BY {key}"
            )
            marks = ", ".join("?" * len(columns.split(", ")))
            connection.executemany(f"INSERT INTO temp.{_copy_of(table)} VALUES ({marks})", rows)


def _lines(lineage: Lineage) -> Iterator[tuple[int, int, int, int]]:
    """Version, ancestor, depth and reach: of the version, and of its ancestors unless it has very many."""
    numbers = [link.control.version + link.file * _STRIDE for link in lineage.links]
    clusters = [link.control.total_clusters for link in lineage.links]
    for first in range(len(numbers) if len(numbers) <= _DEEPEST_OF_ALL else 1):
        for depth, reach in enumerate(accumulate(clusters[first:], min)):
            yield numbers[first], numbers[first + depth], depth, reach


def _copy_of(table: str) -> str:
    """The temporary table with the rows of other files; of the map with all rows, for its view looks up single ones."""
    return f"all_{table}" if table in _MAP else f"parents_{table}"


def _views(tables: Mapping[str, tuple[str, str]]) -> list[str]:
    """The views of the format over the rows of all files."""
    statements = []
    needed = _NEEDED + (_NEEDED_OF_MAP if "cluster_map" in tables else ())
    for table, (columns, _) in _TABLES.items():
        # Not main.x: of an image that is encrypted as a whole the rows are in temporary tables.
        both = f"SELECT {columns} FROM {table} UNION ALL SELECT {columns} FROM temp.parents_{table}"
        statements += [f"DROP VIEW IF EXISTS temp.all_{table}", f"CREATE TEMP VIEW all_{table} AS {both}"]
    text = (files("sqlimage.schema") / "views.sql").read_text("utf-8")
    for view in _VIEW.findall(text):
        name = view.split()[2]
        if name in needed:
            whole = _SOURCE.sub(lambda m: f"{m[1]} all_{m[2]} AS {'' if m[3] else m[2]}".rstrip(), view)
            statements += [
                f"DROP VIEW IF EXISTS temp.{name}",
                whole.replace("CREATE VIEW", "CREATE TEMP VIEW", 1),
            ]
    return statements
