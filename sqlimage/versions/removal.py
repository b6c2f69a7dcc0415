"""What pruning and squashing share: versions taken out of a file, and with them what only they had."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlimage.errors import RefusedError
from sqlimage.image.lineage import DEEPEST
from sqlimage.streams import control, signature
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database

STREAMS = ("volume", "cluster_map", "bitmap", "file", "extent", "property", "control")
_AT_A_TIME = 1000
_UNUSED = (
    "SELECT data.id, data.digest, data.stored_bytes, data.bytes IS NOT NULL FROM json_each(?) AS asked "
    "JOIN data ON data.id = asked.value WHERE NOT EXISTS (SELECT 1 FROM cluster_map WHERE cluster_map.data = data.id)"
)
_DELETE = "DELETE FROM data WHERE id IN (SELECT value FROM json_each(?))"


@dataclass(slots=True)
class Freed:
    """What was taken out of the data stream."""

    contents: int = 0
    stored_bytes: int = 0


def mapped_data(database: Database, versions: Iterable[int]) -> set[int]:
    """The contents that the records of versions name."""
    found: set[int] = set()
    for version in versions:
        rows = database.query("SELECT DISTINCT data FROM cluster_map WHERE version = ? AND data IS NOT NULL", [version])
        found.update(row[0] for row in rows)
    return found


def remove_rows(database: Database, version: int) -> None:
    """All rows of a version but those of the audit trail, and its signatures."""
    for row in database.rows("SELECT uuid FROM control WHERE version = ?", [version]):
        signature.remove(database, row[0])
    for table in STREAMS:
        database.run(f"DELETE FROM {table} WHERE version = ?", [version])


def remove_unused(database: Database, numbers: Iterable[int]) -> tuple[Freed, set[bytes]]:
    """Remove those of some contents that no record names any more; the digests of those whose bytes went with them."""
    freed, gone = Freed(), set()
    every = sorted(numbers)
    for at in range(0, len(every), _AT_A_TIME):
        rows = database.rows(_UNUSED, [json.dumps(every[at : at + _AT_A_TIME])])
        for _, digest, stored_bytes, has_bytes in rows:
            if has_bytes:
                gone.add(digest)
                freed.contents += 1
                freed.stored_bytes += stored_bytes
        database.run(_DELETE, [json.dumps([row[0] for row in rows])])
    return freed, gone


def chain_in_file(database: Database, first: Control, last: Control) -> list[Control]:
    """The versions from ``last`` back to its ancestor ``first``, newest first, all in this file.

    Raises :class:`~sqlimage.errors.RefusedError` where ``first`` is no ancestor of ``last`` within the file.
    """
    chain = [last]
    while chain[-1].uuid != first.uuid:
        parent = control.by_uuid(database, chain[-1].parent_uuid) if chain[-1].parent_uuid else None
        if parent is None or len(chain) > DEEPEST:
            raise RefusedError(
                f"{database.path}: version {first.version} is no ancestor of version {last.version} in this file",
                hint="`sqlimage versions` shows which is whose parent",
            )
        chain.append(parent)
    return chain


def refuse_sibling_children(
    database: Database, doomed: Sequence[Control], staying: Iterable[Control], what: str
) -> None:
    """Raise :class:`~sqlimage.errors.RefusedError` where a version that stays has its parent among the doomed."""
    uuids = {version.uuid: version for version in doomed}
    for version in staying:
        parent = uuids.get(version.parent_uuid or "")
        if parent is not None:
            raise RefusedError(
                f"{database.path}: version {parent.version} cannot be {what}: version {version.version} is its child",
                hint=f"`sqlimage squash --from {parent.version} --to {version.version}` makes one of the two",
            )


def refuse_open(database: Database, versions: Iterable[Control], what: str) -> None:
    """Raise :class:`~sqlimage.errors.RefusedError` for an edit that is not finished."""
    for version in versions:
        if version.state != "sealed":
            raise RefusedError(
                f"{database.path}: version {version.version} is an edit that is not finished and cannot be {what}",
                hint=f"`sqlimage edit commit {database.path}@{version.version}` or `edit discard` ends it",
            )
