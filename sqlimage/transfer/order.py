"""In which order the contents of an image travel: what a reader needs first comes first."""

from __future__ import annotations

import numpy as np

from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.transfer.contents import Numbers

_FIRST_PLACES = (
    "SELECT data, min(start_cluster) FROM main.cluster_map WHERE version = ? AND data IS NOT NULL GROUP BY data"
)
_FILES = (
    "SELECT DISTINCT volume, record, stream FROM file WHERE version = ? AND deleted = 0 AND record IS NOT NULL "
    "AND kind NOT IN ('metadata', 'directory')"
)
_EXTENTS = "SELECT volume, record, stream, start_cluster, clusters FROM extent WHERE version = ?"
_HELD = "SELECT id FROM main.data WHERE bytes IS NOT NULL"


def in_reading_order(database: Database, versions: list[Control], *, is_sealed: bool) -> Numbers:
    """The contents that versions of a file map, by number in the data stream, as far as the file has their bytes.

    Newest version first. Of each version first what belongs to no ordinary file: boot sectors, tables, inodes,
    directories; then files by their place on the medium. Of an image that is encrypted as a whole, where only
    holders of the key could tell, all by place.
    """
    held = {row[0] for row in database.query(_HELD)}
    seen: set[int] = set()
    order: list[int] = []
    for version in reversed(versions):
        rows = [
            row for row in database.query(_FIRST_PLACES, [version.version]) if row[0] in held and row[0] not in seen
        ]
        if not rows:
            continue
        table = np.array(rows, dtype=np.int64).reshape(-1, 2)
        numbers, places = table[:, 0], table[:, 1]
        is_file = np.zeros(len(numbers), dtype=bool) if is_sealed else _is_in_file(database, version.version, places)
        order += numbers[np.lexsort((places, is_file))].tolist()
        seen.update(numbers.tolist())
    return np.array(order, dtype=np.int64)


def _is_in_file(database: Database, version: int, places: Numbers) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each cluster belongs to an ordinary file that the version itself tells of."""
    files = set(database.query(_FILES, [version]))
    runs = sorted(
        (start, start + count) for *place, start, count in database.query(_EXTENTS, [version]) if tuple(place) in files
    )
    if not runs:
        return np.zeros(len(places), dtype=bool)
    starts, ends = np.array(runs, dtype=np.int64).T
    ends = np.maximum.accumulate(ends)
    row = np.searchsorted(starts, places, side="right") - 1
    return (row >= 0) & (places < ends[row])
