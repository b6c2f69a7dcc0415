"""Parents in other files, attached: the effective views then show the whole lineage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from urllib.parse import quote

import apsw

from sqlimage.image.lineage import Lineage, resolve
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database, translated

_STRIDE = 1_000_000
"""Versions of the n-th attached file are shown as their number plus n times this."""
_TABLES = {
    "control": "version, uuid, parent_uuid, bytes_per_cluster",
    "file": "version, volume, path, kind, bytes, modified_at, record, stream, attributes, digest, deleted",
    "extent": "version, volume, record, stream, file_offset, start_cluster, clusters",
    "bitmap": "version, start_cluster, end_cluster",
    "property": "version, name, value",
}
_VIEW = re.compile(r"^CREATE VIEW .*?;$", re.MULTILINE | re.DOTALL)
_SOURCE = re.compile(r"\b(FROM|JOIN) (" + "|".join(_TABLES) + r")\b( AS)?")
_NEEDED = ("lineage", "effective_property", "effective_file", "effective_bitmap", "effective_extent", "owner")


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
    connection = database.connection
    with translated(database.path):
        attached = {row[1] for row in connection.execute("PRAGMA database_list")}
        connection.limit(apsw.SQLITE_LIMIT_ATTACHED, 125)
        for number, parent in enumerate(lineage.files[1:], 1):
            if f"parent{number}" in attached:
                connection.execute(f"DETACH parent{number}")
            connection.execute(f"ATTACH ? AS parent{number}", [f"file:{quote(parent.path)}?mode=ro"])
        for statement in _views(lineage):
            connection.execute(statement)


def _views(lineage: Lineage) -> list[str]:
    """The views of the format over the union of all files."""
    statements = []
    for table, columns in _TABLES.items():
        parts = [f"SELECT {columns} FROM main.{table}"]
        rest = columns.partition(", ")[2]
        for number in range(1, len(lineage.files)):
            versions = ", ".join(str(link.control.version) for link in lineage.links if link.file == number)
            parts.append(
                f"SELECT version + {number * _STRIDE}, {rest} FROM parent{number}.{table} WHERE version IN ({versions})"
            )
        statements.append(f"DROP VIEW IF EXISTS temp.all_{table}")
        statements.append(f"CREATE TEMP VIEW all_{table} ({columns}) AS {' UNION ALL '.join(parts)}")
    text = (files("sqlimage.schema") / "views.sql").read_text("utf-8")
    for view in _VIEW.findall(text):
        name = view.split()[2]
        if name in _NEEDED:
            statements.append(f"DROP VIEW IF EXISTS temp.{name}")
            whole = _SOURCE.sub(lambda m: f"{m[1]} all_{m[2]} AS {'' if m[3] else m[2]}".rstrip(), view)
            statements.append(whole.replace("CREATE VIEW", "CREATE TEMP VIEW", 1))
    return statements
