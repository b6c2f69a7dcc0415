"""Several versions of one line made one: the newest keeps its identity and takes over what the older ones brought."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sqlimage.errors import UsageError
from sqlimage.image import remap
from sqlimage.image.writing import give_back_space, writing
from sqlimage.streams import arrangement, audit, cluster_map, control, signature
from sqlimage.streams.cluster_map import MapRecord
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.tool import TOOL
from sqlimage.versions.children import Children
from sqlimage.versions.removal import (
    chain_in_file,
    refuse_open,
    refuse_sibling_children,
    remove_rows,
    remove_unused,
)

_RECORDS_AT_A_TIME = 50_000

# Records of an older version (?1) on clusters below ?3 that the newer one (?2) says nothing about become the newer's.
_TAKE_FREE_RECORDS = """
UPDATE cluster_map SET version = ?2
WHERE version = ?1 AND end_cluster < ?3 AND start_cluster > coalesce((
  SELECT near.end_cluster FROM cluster_map AS near
  WHERE near.version = ?2 AND near.start_cluster <= cluster_map.end_cluster
  ORDER BY near.start_cluster DESC LIMIT 1), -1)
"""

# With types, for else its key is of no use in a comparison with columns that have some.
_MAKE_TOLD = """
CREATE TEMP TABLE told (volume INTEGER, record INTEGER, stream TEXT, PRIMARY KEY (volume, record, stream)) WITHOUT ROWID
"""
# Which contents the newer version says something about: of those the older one's extents do not count.
_TOLD = """
INSERT OR IGNORE INTO temp.told
SELECT volume, record, stream FROM extent WHERE version = ?1
UNION SELECT volume, record, stream FROM file WHERE version = ?1 AND record IS NOT NULL
"""
_FOLD_EXTENTS = (
    "DELETE FROM extent WHERE version = ?1 AND EXISTS (SELECT 1 FROM temp.told "
    "WHERE told.volume = extent.volume AND told.record = extent.record AND told.stream = extent.stream)"
)
_FOLD = (
    "DELETE FROM file WHERE version = ?1 AND EXISTS (SELECT 1 FROM file AS newer "
    "WHERE newer.version = ?2 AND newer.volume = file.volume AND newer.path = file.path)",
    "DELETE FROM property WHERE version = ?1 AND EXISTS (SELECT 1 FROM property AS newer "
    "WHERE newer.version = ?2 AND newer.name = property.name)",
    "DELETE FROM bitmap WHERE version = ?1 AND EXISTS (SELECT 1 FROM bitmap AS newer WHERE newer.version = ?2)",
)
# What an older version hides under a path that the newer one uses again, it goes on hiding, under a name no file has.
_HIDE_ON = """
INSERT OR IGNORE INTO file (version, volume, path, record, stream, deleted)
SELECT ?2, old.volume, '/:' || old.record || ':' || old.stream, old.record, old.stream, 1
FROM file AS old JOIN file AS newer ON newer.version = ?2 AND newer.volume = old.volume AND newer.path = old.path
WHERE old.version = ?1 AND old.deleted = 1 AND old.record IS NOT NULL AND NOT EXISTS (
  SELECT 1 FROM temp.told
  WHERE told.volume = old.volume AND told.record = old.record AND told.stream = old.stream)
"""
_TAKE_OVER = ("extent", "file", "property", "bitmap")

# What only hides an ancestor's, where there is no ancestor any more.
_NOTHING_TO_HIDE = (
    "DELETE FROM cluster_map WHERE version = ? AND data IS NULL",
    "DELETE FROM file WHERE version = ? AND deleted = 1",
    "DELETE FROM property WHERE version = ? AND value IS NULL",
)


@dataclass(frozen=True, slots=True)
class SquashReport:
    """What became one; sizes in bytes."""

    image: str
    version: int
    uuid: str
    """Of the version that is left, as it always was."""
    squashed: tuple[int, ...]
    """The versions that are part of it now, oldest first."""
    contents: int
    freed_bytes: int
    image_bytes: int
    searched: str
    was_signed: bool
    """Whether there are signatures of the version, which do not cover this."""


def squash(
    image: str | os.PathLike[str],
    first: str,
    last: str,
    *,
    user: str | None = None,
    message: str | None = None,
    search: Sequence[str] = (),
) -> SquashReport:
    """Make one version of ``last`` and its ancestors back to ``first``. It keeps number, UUID and label of ``last`` and
    reads as that did, so what builds on it stays valid. The time it takes follows what the versions hold.

    Raises :class:`~sqlimage.errors.RefusedError` where something else builds on one of those that would go, in this
    file or in a child file that is found, and says which.
    """
    with writing(image, "squashing versions of it") as database:
        newest, oldest = control.find_version(database, last), control.find_version(database, first)
        if newest.uuid == oldest.uuid:
            raise UsageError(f"{database.path}: version {newest.version} alone is one version already")
        chain = chain_in_file(database, oldest, newest)
        doomed = chain[1:]
        refuse_open(database, chain, "squashed")
        staying = [known for known in control.versions(database) if known not in chain]
        refuse_sibling_children(database, doomed, staying, "squashed")
        children = Children(database, search)
        children.refuse_to_remove(doomed, "squashed")
        children.refuse_where_written()
        with database.transaction():
            lost = _fold_all(database, newest, doomed)
            freed, gone = remove_unused(database, lost)
            children.refuse_to_drop(gone, "squashed")
            # Once more, for a child may have been made meanwhile.
            Children(database, search, gone=doomed).refuse_to_remove(doomed, "squashed")
            stored_bytes = sum(version.stored_bytes for version in chain) - freed.stored_bytes
            control.adopt(database, newest.version, oldest.parent_uuid, oldest.parent_name, max(0, stored_bytes))
            arrangement.count(database)
            told = [{"version": v.version, "uuid": v.uuid, "label": v.label} for v in reversed(doomed)]
            audit.append(
                database,
                "squash",
                tool=TOOL,
                version=newest.version,
                detail={"squashed": told, "parent": oldest.parent_uuid, "message": message},
                user=user,
            )
        was_signed = bool(signature.of(database, newest.uuid))
        give_back_space(database)
    return SquashReport(
        database.path,
        newest.version,
        newest.uuid,
        tuple(version.version for version in reversed(doomed)),
        freed.contents,
        freed.stored_bytes,
        os.path.getsize(database.path),
        children.advice(),
        was_signed,
    )


def _fold_all(database: Database, newest: Control, doomed: Sequence[Control]) -> set[int]:
    """Fold the versions, from the newest of them to the oldest; the contents that lost a record by it."""
    lost: set[int] = set()
    reach, number = newest.total_clusters, newest.version
    database.run(_MAKE_TOLD)
    try:
        database.run(_TOLD, [number])
        for older in doomed:
            reach = min(reach, older.total_clusters)
            lost |= _fold_map(database, older.version, newest, reach)
            # What the older one tells is taken down while it has all its rows: some of them fold away next.
            for statement in (_HIDE_ON, _FOLD_EXTENTS, _TOLD, *_FOLD):
                database.run(statement, [older.version, number] if "?2" in statement else [older.version])
            for table in _TAKE_OVER:
                database.run(f"UPDATE {table} SET version = ? WHERE version = ?", [number, older.version])
            remove_rows(database, older.version)
    finally:
        database.run("DROP TABLE IF EXISTS temp.told")  # it is gone where the transaction is
    if doomed[-1].parent_uuid is None:
        for statement in _NOTHING_TO_HIDE:
            database.run(statement, [number])
    elif reach < newest.total_clusters:
        # A version between was shorter: what lay beyond its end reads as zeros, whatever the ancestors have there.
        beyond = MapRecord(reach, newest.total_clusters - 1, None, 0)
        remap.store_beneath(database, number, [beyond], newest.bytes_per_cluster)
    return lost


def _fold_map(database: Database, older: int, newest: Control, reach: int) -> set[int]:
    """Records of an older version become the newest's where that says nothing; the contents of all others."""
    number, lost = newest.version, set()
    database.run(_TAKE_FREE_RECORDS, [older, number, reach])
    for table in cluster_map.pages(database, older, _RECORDS_AT_A_TIME):
        lost.update(np.unique(table.data[table.data > 0]).tolist())
        kept = [
            MapRecord(start, min(end, reach - 1), data or None, offset)
            for start, end, data, offset in zip(*(column.tolist() for column in table.columns()), strict=True)
            if start < reach
        ]
        remap.store_beneath(database, number, kept, newest.bytes_per_cluster)
    database.run("DELETE FROM cluster_map WHERE version = ?", [older])
    return lost
