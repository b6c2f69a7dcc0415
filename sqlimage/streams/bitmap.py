"""Bitmap stream: which clusters of the medium are allocated, and by the gaps between them, which are free."""

from __future__ import annotations

from sqlimage.extent import Runs
from sqlimage.streams.database import Database

INSERT = "INSERT INTO bitmap (version, start_cluster, end_cluster) VALUES (?, ?, ?)"


def insert(database: Database, version: int, allocated: Runs) -> None:
    """Write a version's allocated runs (clusters)."""
    database.run_many(INSERT, ((version, start, start + length - 1) for start, length in allocated))


def read(database: Database, version: int) -> Runs:
    """The allocated runs of a version, its own or those of the nearest ancestor that has any (clusters)."""
    rows = database.query("SELECT start_cluster, end_cluster FROM effective_bitmap WHERE version = ?", [version])
    return Runs.of((start, end - start + 1) for start, end in rows)
