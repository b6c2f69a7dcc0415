"""The cluster map of a whole lineage as one: window by window, flattened when first touched.

A read through sixty versions thus costs what a read of one does. Nothing is loaded when an image is opened, however
many records it has, and what is kept is bounded.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter

import numpy as np

from sqlimage.errors import FormatError
from sqlimage.image.chunks import Connections
from sqlimage.image.keys import Key
from sqlimage.image.lineage import Lineage
from sqlimage.streams import cluster_map
from sqlimage.streams.cluster_map import MapRecord
from sqlimage.streams.control import Control

WINDOW_CLUSTERS = 4096
"""How much of the map is flattened at a time."""
_MOST_RECORDS = 1 << 18
"""Flattened records kept, about 60 MB."""
ZEROS = 0
"""In ``Piece.data``: the clusters read as zeros."""


@dataclass(frozen=True, slots=True)
class Window:
    """Flattened records of one window, by place, disjoint; clusters that none covers read as zeros.

    Columns, for a look-up is a bisection of ``start`` and nothing else.
    """

    start: list[int]
    end: list[int]
    """The first cluster after the piece."""
    file: list[int]
    data: list[int]
    offset: list[int]
    """Bytes into the content at ``start``."""

    def touching(self, first: int, last: int) -> range:
        """The rows that touch clusters ``first .. last`` (inclusive)."""
        low = bisect_right(self.start, first) - 1
        if low < 0 or self.end[low] <= first:
            low += 1
        return range(low, bisect_right(self.start, last))


_EMPTY = Window([], [], [], [], [])


class FlatMap:
    """Which content backs which clusters, over a lineage. Safe from any thread."""

    def __init__(self, lineage: Lineage, connections: list[Connections]) -> None:
        self._lineage = lineage
        self._connections = connections
        self._unit = lineage.links[0].control.bytes_per_cluster
        self.total_clusters = lineage.links[0].control.total_clusters
        self._reach = reach(lineage)
        self._by_file: dict[int, tuple[list[int], list[int]]] = {}
        """Of each file, the versions of the lineage in it, by number and as indexes into its links."""
        for index, link in enumerate(lineage.links):
            versions, links = self._by_file.setdefault(link.file, ([], []))
            versions.append(link.control.version)
            links.append(index)
        self._windows: OrderedDict[int, Window] = OrderedDict()
        self._held = 0
        self._turn = 0
        self._lock = threading.Lock()

    def cached(self, number: int) -> Window | None:
        """A window, if it is at hand."""
        return self._windows.get(number)

    def window(self, number: int) -> Window:
        """The window of clusters ``number * WINDOW_CLUSTERS`` on.

        Raises :class:`~sqlimage.errors.FormatError` where records overlap or leave the medium.
        """
        while True:
            with self._lock:
                found = self._windows.get(number)
                if found is not None:
                    self._windows.move_to_end(number)
                    return found
                turn = self._turn
            made = self._flatten(number)
            with self._lock:
                if self._turn != turn:
                    continue  # the map changed meanwhile
                self._windows[number] = made
                self._held += len(made.start) + 1
                while self._held > _MOST_RECORDS and len(self._windows) > 1:
                    self._held -= len(self._windows.popitem(last=False)[1].start) + 1
                return made

    def pieces(self, first: int, last: int) -> Iterator[tuple[int, int, Key, int]]:
        """What backs clusters ``first .. last`` (inclusive): start, end (not included), content, and the byte in it.
        What is not told of reads as zeros."""
        for number in range(first // WINDOW_CLUSTERS, last // WINDOW_CLUSTERS + 1):
            window = self.cached(number) or self.window(number)
            for row in window.touching(first, last):
                low, high = max(window.start[row], first), min(window.end[row], last + 1)
                offset = window.offset[row] + (low - window.start[row]) * self._unit
                yield low, high, (window.file[row], window.data[row]), offset

    def forget_between(self, changed: Iterable[tuple[int, int]]) -> None:
        """Drop the windows ``first .. last`` (inclusive) of each pair: their records have changed on the disk."""
        with self._lock:
            self._turn += 1
            for first, last in changed:
                if last - first > len(self._windows):
                    gone = [number for number in self._windows if first <= number <= last]
                else:
                    gone = [number for number in range(first, last + 1) if number in self._windows]
                for number in gone:
                    self._held -= len(self._windows.pop(number).start) + 1

    def mapped(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Stretches ``start, end`` (end not included) within clusters ``first .. last`` that hold data; long empty
        stretches cost one look-up a version, however long they are."""
        at = first
        while at <= last:
            number = at // WINDOW_CLUSTERS
            window = self.window(number)
            for row in window.touching(at, min(last, (number + 1) * WINDOW_CLUSTERS - 1)):
                if window.data[row] != ZEROS:
                    yield max(window.start[row], at), min(window.end[row], last + 1)
            at = (number + 1) * WINDOW_CLUSTERS
            if at <= last:
                at = self._next_record(at, last)

    def _next_record(self, cluster: int, last: int) -> int:
        """The first cluster from ``cluster`` on that any version says something about; beyond ``last`` where none."""
        nearest = last + 1
        for link in self._lineage.links:
            database = self._connections[link.file].mine()
            found = cluster_map.next_mapped(database, link.control.version, cluster)
            nearest = min(nearest, last + 1 if found is None else max(found, cluster))
        self._check()
        return nearest

    def _check(self) -> None:
        for file in self._by_file:
            self._connections[file].check()

    def _flatten(self, number: int) -> Window:
        low = number * WINDOW_CLUSTERS
        high = min(low + WINDOW_CLUSTERS, self.total_clusters)
        layers = []
        for file, (versions, links) in self._by_file.items():
            found = cluster_map.in_range_of_many(self._connections[file].mine(), versions, low, high - 1)
            for link, records in zip(links, found, strict=True):
                top = min(high, self._reach[link])
                records = [record for record in records if record.start_cluster < top]
                if records and top > low:
                    check_records(self._lineage.files[file].path, self._lineage.links[link].control, records)
                    layers.append((link, file, top, records))
        self._check()
        layers.sort(key=itemgetter(0))
        if not layers:
            return _EMPTY
        if len(layers) == 1:
            return self._single(*layers[0][1:], low)
        return self._painted(layers, low, high)

    def _single(self, file: int, high: int, records: list[MapRecord], low: int) -> Window:
        kept = [record for record in records if record.data is not None]
        start = [max(record.start_cluster, low) for record in kept]
        return Window(
            start,
            [min(record.end_cluster + 1, high) for record in kept],
            [file] * len(kept),
            [record.data or ZEROS for record in kept],
            [
                record.data_offset + (at - record.start_cluster) * self._unit
                for at, record in zip(start, kept, strict=True)
            ],
        )

    def _painted(self, layers: list[tuple[int, int, int, list[MapRecord]]], low: int, high: int) -> Window:
        """Several versions: the oldest is painted first, each newer one over it."""
        data = np.zeros(high - low, dtype=np.int64)
        file = np.zeros(high - low, dtype=np.int64)
        origin = np.zeros(high - low, dtype=np.int64)
        for _, layer, top, records in reversed(layers):
            for record in records:
                part = slice(max(record.start_cluster, low) - low, min(record.end_cluster + 1, top) - low)
                data[part] = record.data or ZEROS
                file[part] = layer
                # Constant along a record, so that a border is wherever a column changes.
                origin[part] = record.data_offset - record.start_cluster * self._unit
        changes = (np.diff(data) != 0) | (np.diff(file) != 0) | (np.diff(origin) != 0)
        first = np.concatenate(([0], np.flatnonzero(changes) + 1))
        last = np.concatenate((first[1:], [high - low]))
        kept = data[first] != ZEROS
        first, last = first[kept], last[kept]
        return Window(
            (first + low).tolist(),
            (last + low).tolist(),
            file[first].tolist(),
            data[first].tolist(),
            (origin[first] + (first + low) * self._unit).tolist(),
        )


def reach(lineage: Lineage) -> list[int]:
    """How far each version of a lineage shows (clusters): what a shorter one does not have reads as zeros, also where
    an ancestor of it has something."""
    return list(accumulate((link.control.total_clusters for link in lineage.links), min))


def check_records(path: str, version: Control, records: list[MapRecord]) -> None:
    """Raise :class:`~sqlimage.errors.FormatError` unless records are in order, disjoint, and within the medium."""
    at = -1
    for record in records:
        if record.start_cluster <= at or record.end_cluster < record.start_cluster:
            raise FormatError(f"{path}: cluster map records overlap at cluster {record.start_cluster}")
        at = record.end_cluster
    if at >= version.total_clusters:
        raise FormatError(f"{path}: the cluster map reaches to cluster {at}, beyond the medium")
