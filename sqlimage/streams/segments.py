"""What of a transfer has arrived: the tables ``segment`` and ``place``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlimage.streams.database import Database
from sqlimage.streams.translation import typed

HERE, MISSING = "here", "missing"
_ALL = "SELECT image, number, bytes, digest, state FROM main.segment ORDER BY number"
_PLACES = (
    'SELECT place.data, start, segment, "offset", place.length, data.stored_bytes FROM main.place '
    "JOIN main.data ON data.id = place.data ORDER BY segment, 4"
)
_CONTRADICTIONS = (
    "SELECT place.data FROM main.place LEFT JOIN main.data ON data.id = place.data "
    "GROUP BY place.data HAVING sum(place.length) IS NOT max(data.stored_bytes)"
)
_FILL = "UPDATE main.data SET bytes = ?2 WHERE id = ?1 AND bytes IS NULL AND stored_bytes = length(?2)"
_IS_AWAITED = "SELECT 1 FROM main.place WHERE data = ? AND bytes IS NULL LIMIT 1"
_PIECES = "SELECT bytes FROM main.place WHERE data = ? ORDER BY start"


@dataclass(frozen=True, slots=True)
class Segment:
    """A row of ``segment``."""

    image: str
    """The identity of the transfer: SHA-256 of the header of its first segment, in hexadecimal."""
    number: int
    """From 1."""
    length_bytes: int
    digest: bytes
    """SHA-256 of it."""
    state: str

    @property
    def is_here(self) -> bool:
        return self.state == HERE


Place = tuple[int, int, int, int, int, int]
"""Content, the byte of it that a piece begins with, segment, offset in that, length, and the length of the whole."""


def read(database: Database) -> list[Segment]:
    """The segments of an image that was transferred, by number; none of any other."""
    types = (str, int, int, bytes, str)
    return [Segment(*typed(database.path, "segment", types, row)) for row in database.rows(_ALL)]


def places(database: Database) -> list[Place]:
    """All pieces, by segment and offset; none of an image that is whole."""
    types = (int,) * 6
    return [typed(database.path, "place", types, row) for row in database.rows(_PLACES)]


def contradiction(database: Database) -> int | None:
    """A content whose pieces are not all of it; None where there is none."""
    row = database.row(_CONTRADICTIONS)
    return None if row is None else int(row[0])


def write(database: Database, segments: Iterable[Segment], at: Iterable[Sequence[int]]) -> None:
    """What is to arrive; ``at`` are content, start, segment, offset and length of pieces."""
    database.run_many(
        "INSERT INTO main.segment (image, number, bytes, digest, state) VALUES (?, ?, ?, ?, ?)",
        [(one.image, one.number, one.length_bytes, one.digest, one.state) for one in segments],
    )
    database.insert('main.place (data, start, segment, "offset", length)', [tuple(row) for row in at])


def fill(
    database: Database,
    whole: Iterable[tuple[int, memoryview]],
    pieces: Iterable[tuple[int, int, memoryview]],
    number: int,
) -> None:
    """The bytes of contents, and pieces of others (content, start, bytes); and that segment ``number``, in which they
    lay, is here. When it was the last one, the places are forgotten. Inside a transaction."""
    database.run_many(_FILL, whole)
    for data, start, piece in pieces:
        database.run("UPDATE main.place SET bytes = ?3 WHERE data = ?1 AND start = ?2", [data, start, piece])
        if database.row(_IS_AWAITED, [data]) is None:  # else what came before would be read for each
            arrived = [row[0] for row in database.rows(_PIECES, [data])]
            database.run(_FILL, [data, b"".join(arrived)])
            database.run("UPDATE main.place SET bytes = NULL WHERE data = ?", [data])
    database.run("UPDATE main.segment SET state = 'here' WHERE number = ?", [number])
    database.run("DELETE FROM main.place WHERE NOT EXISTS (SELECT 1 FROM main.segment WHERE state <> 'here')")
