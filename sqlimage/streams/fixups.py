"""Fix-up stream: what has to change in control information that was moved. Rows live only inside a transaction."""

from __future__ import annotations

from collections.abc import Iterable

from sqlimage.fixup import Fixup
from sqlimage.streams.database import Database

_INSERT = 'INSERT INTO fixup ("offset", original, replacement, reason) VALUES (?, ?, ?, ?)'


def insert(database: Database, fixups: Iterable[Fixup]) -> None:
    """Write them down before anything is changed, by their place on the medium."""
    database.run_many(_INSERT, fixups)


def drop(database: Database) -> None:
    """All of them are applied."""
    database.run("DELETE FROM fixup")
