"""Bitmap stream: which clusters of the medium are allocated, and by the gaps between them, which are free."""

from __future__ import annotations

from sqlimage.errors import FormatError
from sqlimage.extent import Runs
from sqlimage.streams.database import Database
from sqlimage.streams.translation import typed

INSERT = "INSERT INTO bitmap (version, start_cluster, end_cluster) VALUES (?, ?, ?)"


def insert(database: Database, version: int, allocated: Runs) -> None:
    """Write a version's allocated runs (clusters)."""
    database.run_many(INSERT, ((version, start, start + length - 1) for start, length in allocated))


def read(database: Database, version: int, total_clusters: int) -> Runs:
    """The allocated runs of a version, its own or those of the nearest ancestor that has any (clusters).

    Raises :class:`~sqlimage.errors.FormatError` where one leaves the medium.
    """
    rows = database.rows("SELECT start_cluster, end_cluster FROM effective_bitmap WHERE version = ?", [version])
    if rows and not total_clusters:
        return Runs.empty()  # a medium without a byte has no rows of its own to say so
    for row in rows:
        start, end = typed(database.path, "bitmap", (int, int), row)
        if not 0 <= start <= end < total_clusters:
            raise FormatError(f"{database.path}: the bitmap run {start} to {end} leaves the medium")
    return Runs.of((start, end - start + 1) for start, end in rows)
