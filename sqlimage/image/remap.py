"""Cutting new records into a version's own cluster map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from sqlimage.streams import cluster_map
from sqlimage.streams.cluster_map import MapRecord
from sqlimage.streams.database import Database

_WINDOW_CLUSTERS = 4096
_MOST_WINDOWS = 1 << 14
_LONG_CLUSTERS = 64 * _WINDOW_CLUSTERS
"""A range as long as this is looked up in the database: there may be any number of windows in it."""
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


class Cover:
    """Which clusters a version's own records cover, learned window by window: most writes meet none, and to ask the
    database each time would cost more than all the rest."""

    def __init__(self, database: Database, version: int) -> None:
        self._database = database
        self._version = version
        self._masks: dict[int, int] = {}
        """By window, one bit a cluster. May say too much, never too little."""

    def meets(self, first: int, last: int) -> bool:
        """Whether a record of the version may touch clusters ``first .. last`` (inclusive)."""
        if last - first >= _LONG_CLUSTERS:
            return True
        return any(self._mask(number) & bits for number, bits in _bits(first, last))

    def add(self, first: int, last: int) -> None:
        """Records of these clusters are in the database now. Windows that are not at hand will be read from there."""
        if last - first >= _LONG_CLUSTERS:
            low, high = first // _WINDOW_CLUSTERS, last // _WINDOW_CLUSTERS
            for number in [number for number in self._masks if low <= number <= high]:
                del self._masks[number]
            return
        for number, bits in _bits(first, last):
            if number in self._masks:
                self._masks[number] |= bits

    def _mask(self, number: int) -> int:
        mask = self._masks.get(number)
        if mask is None:
            mask, low = 0, number * _WINDOW_CLUSTERS
            high = low + _WINDOW_CLUSTERS - 1
            for record in cluster_map.in_range(self._database, self._version, low, high):
                a, b = max(record.start_cluster, low) - low, min(record.end_cluster, high) - low
                mask |= ((1 << (b - a + 1)) - 1) << a
            if len(self._masks) >= _MOST_WINDOWS:
                self._masks.clear()
            self._masks[number] = mask
        return mask


def _bits(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The windows that a range touches, with a mask of the clusters of each."""
    for number in range(first // _WINDOW_CLUSTERS, last // _WINDOW_CLUSTERS + 1):
        low = number * _WINDOW_CLUSTERS
        a, b = max(first, low) - low, min(last, low + _WINDOW_CLUSTERS - 1) - low
        yield number, ((1 << (b - a + 1)) - 1) << a


def store(
    database: Database, version: int, new: Sequence[MapRecord], unit: int, cover: Cover | None = None
) -> set[int]:
    """Write new records, sorted and disjoint, into the version's own map; what they cover is cut away. Inside the
    caller's transaction. ``cover`` spares look-ups. Returns the data that lost a record by it."""
    own: list[MapRecord] = []
    for group in _groups(new):
        if cover is not None and not cover.meets(group[0].start_cluster, group[-1].end_cluster):
            continue
        for record in cluster_map.in_range(database, version, group[0].start_cluster, group[-1].end_cluster):
            if not own or record.start_cluster > own[-1].start_cluster:  # a long one may meet several groups
                own.append(record)
    gone: list[tuple[int, int]] = []
    added: list[tuple[object, ...]] = []
    lost: set[int] = set()
    for record, stay in cut(own, new, unit):
        gone.append((version, record.start_cluster))
        added += [_row(version, part) for part in stay]
        if record.data is not None:
            lost.add(record.data)
    if gone:
        database.run_many(cluster_map.DELETE, gone)
    database.insert(cluster_map.INTO, [*added, *(_row(version, record) for record in new)])
    if cover is not None:
        for record in new:
            cover.add(record.start_cluster, record.end_cluster)
    return lost


def store_beneath(database: Database, version: int, old: Sequence[MapRecord], unit: int) -> None:
    """Write what the version's own records leave free of some older ones, sorted and disjoint; inside the caller's
    transaction. ``unit`` is bytes per cluster."""
    added: list[tuple[object, ...]] = []
    for group in _groups(old):
        own = cluster_map.in_range(database, version, group[0].start_cluster, group[-1].end_cluster)
        parts = {id(record): stay for record, stay in cut(group, own, unit)}
        for record in group:
            added += [_row(version, part) for part in parts.get(id(record), [record])]
    database.insert(cluster_map.INTO, added)


def _row(version: int, record: MapRecord) -> tuple[object, ...]:
    return (version, record.start_cluster, record.end_cluster, record.data, record.data_offset, 0)


def _groups(new: Sequence[MapRecord]) -> Iterable[list[MapRecord]]:
    group = list(new[:1])
    for before, record in pairwise(new):
        if record.start_cluster - before.end_cluster > _NEAR_CLUSTERS:
            yield group
            group = []
        group.append(record)
    if group:
        yield group
