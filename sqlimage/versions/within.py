"""Whether what a version names can be had within its own lineage, as a reader will find it, and making it so."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from sqlimage.errors import RefusedError
from sqlimage.image.chunks import content_of
from sqlimage.image.lineage import resolve
from sqlimage.streams import data
from sqlimage.streams.control import Control
from sqlimage.streams.data import StoredChunk
from sqlimage.streams.database import Database

_HELD = (
    "SELECT 1 FROM data WHERE digest = ?1 AND bytes IS NOT NULL AND EXISTS (SELECT 1 FROM cluster_map "
    "WHERE cluster_map.data = data.id AND version IN (SELECT value FROM json_each(?2)))"
)
_WITHOUT_BYTES = (
    "SELECT DISTINCT data.id, data.digest FROM cluster_map JOIN data ON data.id = cluster_map.data "
    "WHERE data.bytes IS NULL AND cluster_map.version IN (SELECT value FROM json_each(?))"
)


class Within:
    """The lineage of a version as the connection that writes sees it, also before a transaction ends. Close it.

    Raises what :func:`~sqlimage.image.lineage.resolve` raises: a circle, a parent that is not sealed or not found.
    """

    def __init__(self, database: Database, version: Control, search: Sequence[str]) -> None:
        self._database = database
        self.lineage = resolve(database, version, search)
        self._others = [
            (file, json.dumps(self.lineage.in_file(number))) for number, file in enumerate(self.lineage.files) if number
        ]

    def holds(self, digest: bytes) -> bool:
        """Whether the bytes of a content are in the file that is written, or used by an ancestor in another one."""
        if self._database.row(data.IS_HELD, [digest]) is not None:
            return True
        return any(file.row(_HELD, [digest, versions]) is not None for file, versions in self._others)

    def close(self) -> None:
        self.lineage.close()

    def __enter__(self) -> Within:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fill(database: Database, versions: Iterable[int], within: Within, sources: Sequence[Database]) -> int:
    """Copy, verified, what versions name and would not find within their lineage; the stored bytes that came.

    Raises :class:`~sqlimage.errors.RefusedError` where none of the sources has it, and
    :class:`~sqlimage.errors.DamagedError` where one fails its digest.
    """
    copied = 0
    for number, digest in database.rows(_WITHOUT_BYTES, [json.dumps(list(versions))]):
        if within.holds(digest):
            continue
        chunk = _find(digest, sources)
        if chunk is None or chunk.stored is None:
            raise RefusedError(
                f"{database.path}: the bytes of data {number} would be in no file of its lineage",
                hint="run `sqlimage verify` on the child and on its parents",
            )
        content_of(chunk)
        database.run(data.FILL, [chunk.length, len(chunk.stored), chunk.flags, chunk.stored, number])
        copied += len(chunk.stored)
    return copied


def _find(digest: bytes, sources: Sequence[Database]) -> StoredChunk | None:
    for source in sources:
        chunk = data.find(source, digest)
        if chunk is not None and chunk.stored is not None:
            return chunk
    return None
