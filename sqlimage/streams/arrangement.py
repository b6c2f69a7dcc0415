"""How often an image was rearranged: versions removed, brought together, or their contents cut anew.

Whoever reads keeps in memory which content backs which clusters. Other writers only add to an image; after one of these
changes, what is remembered no longer holds. The count in the table ``format`` tells.
"""

from __future__ import annotations

from sqlimage.errors import RefusedError
from sqlimage.streams.database import Database

_READ = "SELECT value FROM format WHERE name = 'rearranged'"
_COUNT = "INSERT INTO format (name, value) VALUES ('rearranged', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"


class Rearranged(RefusedError):
    """Another process has rearranged an image since it was looked at; nothing that was read meanwhile was used."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path}: was rearranged while it was read", hint="run the command again")


def read(database: Database) -> object:
    """The count; None where it never happened."""
    row = database.row(_READ)
    return row[0] if row else None


def count(database: Database) -> None:
    """Tell all readers to look again; inside the transaction that rearranges."""
    database.run(_COUNT)
