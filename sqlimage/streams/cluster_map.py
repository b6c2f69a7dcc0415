"""Cluster map stream: which place in which content backs which clusters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sqlimage.errors import FormatError
from sqlimage.extent import Int64s, Runs
from sqlimage.streams.database import Database
from sqlimage.streams.translation import Row, typed

INTO = "cluster_map (version, start_cluster, end_cluster, data, data_offset, flags)"
INSERT = f"INSERT INTO {INTO} VALUES (?, ?, ?, ?, ?, 0)"
DELETE = "DELETE FROM cluster_map WHERE version = ? AND start_cluster = ?"
REPOINT = "UPDATE cluster_map SET data = ? WHERE data = ?"
_COLUMNS = "SELECT start_cluster, end_cluster, data, data_offset FROM cluster_map"
_RANGE = (
    f"{_COLUMNS} WHERE version = ?1 AND start_cluster <= ?3 AND start_cluster >= coalesce((SELECT start_cluster "
    "FROM cluster_map WHERE version = ?1 AND start_cluster <= ?2 ORDER BY start_cluster DESC LIMIT 1), ?2) "
    "ORDER BY start_cluster"
)
_RANGE_OF_MANY = (
    "SELECT near.key, m.start_cluster, m.end_cluster, m.data, m.data_offset FROM json_each(?1) AS near "
    "CROSS JOIN cluster_map AS m ON m.version = near.value AND m.start_cluster <= ?3 AND m.start_cluster >= coalesce("
    "(SELECT start_cluster FROM cluster_map WHERE version = near.value AND start_cluster <= ?2 "
    "ORDER BY start_cluster DESC LIMIT 1), ?2) ORDER BY near.key, m.start_cluster"
)
_PAGE = f"{_COLUMNS} WHERE version = ? AND start_cluster >= ? ORDER BY start_cluster LIMIT ?"
_OVERLAP = (
    "SELECT start_cluster FROM (SELECT start_cluster, lag(end_cluster) OVER (ORDER BY start_cluster) AS reach "
    "FROM cluster_map WHERE version = ?) WHERE start_cluster <= reach LIMIT 1"
)
_NEXT = "SELECT start_cluster FROM cluster_map WHERE version = ? AND start_cluster >= ? ORDER BY start_cluster LIMIT 1"
_BEFORE = (
    "SELECT end_cluster FROM cluster_map WHERE version = ? AND start_cluster < ? ORDER BY start_cluster DESC LIMIT 1"
)
_NEXT_DATA = (
    "SELECT start_cluster FROM cluster_map WHERE version = ? AND start_cluster >= ? AND data IS NOT NULL "
    "ORDER BY start_cluster LIMIT 1"
)
_DATA_BEFORE = (
    "SELECT end_cluster, data FROM cluster_map WHERE version = ? AND start_cluster < ? "
    "ORDER BY start_cluster DESC LIMIT 1"
)
_TYPES = (int, int, int | None, int)
_MOST = 1 << 55
"""Above every cluster, number of a content and place in one that can be; sums of a few such do not overflow."""


@dataclass(frozen=True, slots=True)
class MapRecord:
    """Clusters ``start_cluster .. end_cluster`` (inclusive) lie in content ``data`` from byte ``data_offset`` of it;
    ``data`` None: they read as zeros and hide the parent's."""

    start_cluster: int
    end_cluster: int
    data: int | None
    data_offset: int


@dataclass(frozen=True, slots=True)
class MapTable:
    """Many records as columns, sorted by ``start``; ``data`` is 0 where the clusters read as zeros."""

    start: Int64s
    end: Int64s
    data: Int64s
    data_offset: Int64s

    def __len__(self) -> int:
        return len(self.start)

    def columns(self) -> tuple[Int64s, Int64s, Int64s, Int64s]:
        return self.start, self.end, self.data, self.data_offset


def in_range(database: Database, version: int, start_cluster: int, end_cluster: int) -> list[MapRecord]:
    """The version's own records that touch ``start_cluster .. end_cluster``, by place."""
    rows = database.rows(_RANGE, [version, start_cluster, end_cluster])
    found = [MapRecord(*typed(database.path, "cluster_map", _TYPES, row)) for row in rows]
    for record in found:
        if not 0 <= record.data_offset < _MOST or (record.data is not None and record.data < 1):
            raise FormatError(f"{database.path}: the cluster map record at {record.start_cluster} is out of range")
    return [record for record in found if record.end_cluster >= start_cluster]


def in_range_of_many(
    database: Database, versions: Sequence[int], start_cluster: int, end_cluster: int
) -> tuple[Int64s, MapTable]:
    """As :func:`table_in_range` for several versions of one file, one after the other, in one statement; and for each
    record the index of its version."""
    found = database.rows(_RANGE_OF_MANY, [json.dumps(versions), start_cluster, end_cluster])
    table = _as_table(database, [row[1:] for row in found])
    owner = np.array([row[0] for row in found], dtype=np.int64)
    keep = table.end >= start_cluster
    if not keep.all():
        owner, table = owner[keep], MapTable(*(column[keep] for column in table.columns()))
    return owner, table


def next_mapped(database: Database, version: int, cluster: int) -> int | None:
    """The first cluster from ``cluster`` on that one of the version's own records covers; None where none does."""
    before = database.row(_BEFORE, [version, cluster])
    if before is not None and typed(database.path, "cluster_map", (int,), before)[0] >= cluster:
        return cluster
    found = database.row(_NEXT, [version, cluster])
    return None if found is None else int(typed(database.path, "cluster_map", (int,), found)[0])


def next_data(database: Database, version: int, cluster: int) -> int | None:
    """The first cluster from ``cluster`` on that one of the version's own records has data for; None where none has."""
    before = database.row(_DATA_BEFORE, [version, cluster])
    if (
        before is not None
        and before[1] is not None
        and typed(database.path, "cluster_map", (int, int), before)[0] >= cluster
    ):
        return cluster
    found = database.row(_NEXT_DATA, [version, cluster])
    return None if found is None else int(typed(database.path, "cluster_map", (int,), found)[0])


def check_disjoint(database: Database, version: int) -> None:
    """Raise :class:`~sqlimage.errors.FormatError` where two records of a version overlap."""
    row = database.row(_OVERLAP, [version])
    if row:
        raise FormatError(f"{database.path}: cluster map records overlap at cluster {row[0]}")


def pages(database: Database, version: int, rows: int = 250_000) -> Iterator[MapTable]:
    """The whole map of a version in tables of at most ``rows`` records, by place."""
    after = 0
    while True:
        found = database.rows(_PAGE, [version, after, rows])
        if not found:
            return
        table = _as_table(database, found)
        yield table
        after = int(table.start[-1]) + 1


def table_in_range(database: Database, version: int, start_cluster: int, end_cluster: int) -> MapTable:
    """The version's own records that touch ``start_cluster .. end_cluster``, by place."""
    found = database.rows(_RANGE, [version, start_cluster, end_cluster])
    table = _as_table(database, found)
    keep = table.end >= start_cluster
    return MapTable(table.start[keep], table.end[keep], table.data[keep], table.data_offset[keep])


def own_clusters(database: Database, version: int) -> Runs:
    """The clusters that a version's own records cover, zero records too."""
    runs = Runs.empty()
    for table in pages(database, version):
        runs = runs.union(Runs.from_arrays(table.start, table.end - table.start + 1))
    return runs


def _as_table(database: Database, found: list[Row]) -> MapTable:
    try:
        table = np.array([(s, e, 0 if d is None else d, o) for s, e, d, o in found], dtype=np.int64).reshape(-1, 4)
    except (TypeError, ValueError, OverflowError):
        raise FormatError(f"{database.path}: the cluster map holds what is no number") from None
    mapped = np.array([row[2] is not None for row in found], dtype=bool)
    if (table < 0).any() or (table[mapped, 2] < 1).any() or (table >= _MOST).any():
        raise FormatError(f"{database.path}: a cluster map record is out of range")
    return MapTable(table[:, 0], table[:, 1], table[:, 2], table[:, 3])
