"""What the ancestors of a version hold, by digest: content that need not be stored again."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlimage.errors import DamagedError
from sqlimage.image.chunks import Connections, content_of
from sqlimage.image.lineage import Lineage
from sqlimage.streams import data
from sqlimage.streams.data import StoredChunk
from sqlimage.streams.translation import typed

_ANY = "SELECT flags, stored_bytes FROM data WHERE digest = ? AND bytes IS NOT NULL"
_USED = (
    f"{_ANY} AND EXISTS (SELECT 1 FROM cluster_map "
    "WHERE cluster_map.data = data.id AND version IN (SELECT value FROM json_each(?)))"
)


@dataclass(frozen=True, slots=True)
class Held:
    """How an ancestor holds a content."""

    flags: int
    stored_bytes: int


class Holdings:
    """Looks contents up over a lineage; safe from any thread.

    Of other files only what versions of the lineage use counts: the rest may go at any time. In the file that is being
    written (``own_file``, an index) a content stays for as long as it is referred to.
    """

    def __init__(self, lineage: Lineage, connections: list[Connections], own_file: int | None) -> None:
        self._places = [
            (each, None if file == own_file else json.dumps(lineage.in_file(file)))
            for file, each in enumerate(connections)
        ]

    def find(self, digest: bytes) -> Held | None:
        """How an ancestor holds that content, if one does."""
        for connections, versions in self._places:
            database = connections.mine()
            row = database.row(_ANY, [digest]) if versions is None else database.row(_USED, [digest, versions])
            if row is not None:
                chunk = data.find(database, digest)
                connections.check()
                # What is at hand is not given up for what may be damaged there.
                if chunk is not None and versions is not None and not _is_sound(chunk):
                    continue
                return Held(*typed(database.path, "data", (int, int), row))
        return None


def _is_sound(chunk: StoredChunk) -> bool:
    try:
        content_of(chunk)
    except DamagedError:
        return False
    return True
