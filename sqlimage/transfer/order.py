"""In which order the contents of an image travel: what a reader needs first comes first."""

from __future__ import annotations

import numpy as np

from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.transfer import gather
from sqlimage.transfer.contents import Numbers

_PLACE = ("data", "start")
_FIRST_PLACES = (
    "SELECT data, min(start_cluster) AS start FROM main.cluster_map "
    "WHERE version = ? AND data IS NOT NULL GROUP BY data"
)
_OWNER = ("volume", "record")
_CONTROL = (
    f"SELECT DISTINCT {', '.join(_OWNER)} FROM file "
    "WHERE version = ? AND kind IN ('metadata', 'directory') AND record IS NOT NULL"
)
_EXTENT = (*_OWNER, "start_cluster", "clusters")
_EXTENTS = f"SELECT {', '.join(_EXTENT)} FROM extent WHERE version = ? ORDER BY start_cluster"
_VOLUME = 1 << 48
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
        found = gather.numbers(database, _PLACE, _FIRST_PLACES, [version.version]).tolist()
        rows = [row for row in found if row[0] in held and row[0] not in seen]
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
    extents = gather.numbers(database, _EXTENT, _EXTENTS, [version])
    control = gather.numbers(database, _OWNER, _CONTROL, [version])
    is_control = np.isin(extents[:, 0] * _VOLUME + extents[:, 1], control[:, 0] * _VOLUME + control[:, 1])
    starts, lengths = extents[~is_control, 2], extents[~is_control, 3]
    ends = np.maximum.accumulate(starts + lengths)
    if not len(starts):
        return np.zeros(len(places), dtype=bool)
    row = np.searchsorted(starts, places, side="right") - 1
    return (row >= 0) & (places < ends[row])
