"""Cutting new records into a version's own cluster map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from sqlimage.streams import cluster_map
from sqlimage.streams.cluster_map import MapRecord
from sqlimage.streams.database import Database

_NEAR_CLUSTERS = 16
"""New records that lie closer than this are looked up together."""


def cut(own: Sequence[MapRecord], new: Sequence[MapRecord], unit: int) -> list[tuple[MapRecord, list[MapRecord]]]:
    """Each of ``own`` that ``new`` covers in part or whole, with the parts of it that stay. Both sorted and disjoint;
    ``unit`` is bytes per cluster."""
    touched = []
    at = 0
    for record in own:
        while at < len(new) and new[at].end_cluster < record.start_cluster:
            at += 1
        covering = at
        start, stay = record.start_cluster, []
        while covering < len(new) and new[covering].start_cluster <= record.end_cluster:
            if new[covering].start_cluster > start:
                stay.append(_part(record, start, new[covering].start_cluster - 1, unit))
            start = new[covering].end_cluster + 1
            covering += 1
        if covering > at:
            if start <= record.end_cluster:
                stay.append(_part(record, start, record.end_cluster, unit))
            touched.append((record, stay))
    return touched


def _part(record: MapRecord, start: int, end: int, unit: int) -> MapRecord:
    offset = record.data_offset + (start - record.start_cluster) * unit if record.data is not None else 0
    return MapRecord(start, end, record.data, offset)


def store(database: Database, version: int, new: Sequence[MapRecord], unit: int) -> set[int]:
    """Write new records, sorted and disjoint, into the version's own map; what they cover is cut away. Inside the
    caller's transaction. Returns the data that lost a record by it."""
    gone: list[tuple[int, int]] = []
    added: list[tuple[object, ...]] = []
    lost: set[int] = set()
    for group in _groups(new):
        own = cluster_map.in_range(database, version, group[0].start_cluster, group[-1].end_cluster)
        for record, stay in cut(own, group, unit):
            gone.append((version, record.start_cluster))
            added += [_row(version, part) for part in stay]
            if record.data is not None:
                lost.add(record.data)
    if gone:
        database.run_many(cluster_map.DELETE, gone)
    database.run_many(cluster_map.INSERT, [*added, *(_row(version, record) for record in new)])
    return lost


def _row(version: int, record: MapRecord) -> tuple[object, ...]:
    return (version, record.start_cluster, record.end_cluster, record.data, record.data_offset)


def _groups(new: Sequence[MapRecord]) -> Iterable[list[MapRecord]]:
    group = list(new[:1])
    for before, record in pairwise(new):
        if record.start_cluster - before.end_cluster > _NEAR_CLUSTERS:
            yield group
            group = []
        group.append(record)
    if group:
        yield group
