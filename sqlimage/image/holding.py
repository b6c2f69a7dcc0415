"""What the ancestors of a version hold, by digest: content that need not be stored again."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlimage.image.chunks import Connections
from sqlimage.image.lineage import Lineage
from sqlimage.streams.database import typed

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
                connections.check()
                return Held(*typed(database.path, "data", (int, int), row))
        return None
