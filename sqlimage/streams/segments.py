"""What of a transfer has arrived: the tables ``segment`` and ``place``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlimage.streams.database import Database
from sqlimage.streams.translation import typed

HERE, MISSING = "here", "missing"
_ALL = "SELECT image, number, bytes, digest, state FROM main.segment ORDER BY number"
_PLACES = 'SELECT data, segment, "offset" FROM main.place ORDER BY data'
_FILL = "UPDATE main.data SET bytes = ?2 WHERE id = ?1 AND bytes IS NULL AND stored_bytes = length(?2)"


@dataclass(frozen=True, slots=True)
class Segment:
    """A row of ``segment``."""

    image: str
    """The identity of the transfer: SHA-256 of the header of its first segment, in hexadecimal."""
    number: int
    """From 1."""
    length_bytes: int
    digest: bytes
    """SHA-256 of it; of the first, of its header."""
    state: str

    @property
    def is_here(self) -> bool:
        return self.state == HERE


def read(database: Database) -> list[Segment]:
    """The segments of an image that was transferred, by number; none of any other."""
    types = (str, int, int, bytes, str)
    return [Segment(*typed(database.path, "segment", types, row)) for row in database.rows(_ALL)]


def places(database: Database) -> list[tuple[int, int, int]]:
    """Content, segment and offset in bytes, by content; of an image that is whole, none."""
    found: list[tuple[int, int, int]] = database.rows(_PLACES)
    for row in found:
        typed(database.path, "place", (int, int, int), row)
    return found


def write(database: Database, segments: Iterable[Segment], at: Iterable[Sequence[int]]) -> None:
    """What is to arrive."""
    database.run_many(
        "INSERT INTO main.segment (image, number, bytes, digest, state) VALUES (?, ?, ?, ?, ?)",
        [(one.image, one.number, one.length_bytes, one.digest, one.state) for one in segments],
    )
    database.insert('main.place (data, segment, "offset")', [tuple(row) for row in at])


def fill(database: Database, contents: Iterable[tuple[int, memoryview]], number: int) -> None:
    """The bytes of contents, and that segment ``number``, in which they lay, is here; when it was the last one, the
    places are forgotten. Inside a transaction."""
    database.run_many(_FILL, contents)
    database.run("UPDATE main.segment SET state = 'here' WHERE number = ?", [number])
    database.run("DELETE FROM main.place WHERE NOT EXISTS (SELECT 1 FROM main.segment WHERE state <> 'here')")


def forget(database: Database) -> None:
    """Of an image that is whole, that it was ever anywhere else; inside a transaction."""
    database.run("DELETE FROM main.segment")
    database.run("DELETE FROM main.place")
