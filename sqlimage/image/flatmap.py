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

import numpy as np
from numpy.typing import NDArray

from sqlimage.errors import FormatError
from sqlimage.extent import Int64s
from sqlimage.image.chunks import Connections
from sqlimage.image.keys import Key
from sqlimage.image.lineage import Lineage
from sqlimage.streams import cluster_map
from sqlimage.streams.cluster_map import MapTable

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
        self._reach = np.array(reach(lineage), dtype=np.int64)
        self._total_of_link = np.array([link.control.total_clusters for link in lineage.links], dtype=np.int64)
        self._by_file: dict[int, tuple[list[int], Int64s]] = {}
        """Of each file, the versions of the lineage in it, by number and as indexes into its links."""
        for file in dict.fromkeys(link.file for link in lineage.links):
            links = [index for index, link in enumerate(lineage.links) if link.file == file]
            versions = [lineage.links[index].control.version for index in links]
            self._by_file[file] = (versions, np.array(links, dtype=np.int64))
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
            owner, table = cluster_map.in_range_of_many(self._connections[file].mine(), versions, low, high - 1)
            if len(table):
                self._check_disjoint(file, owner, table, links)
                link = links[owner]
                top = np.minimum(self._reach[link], high)
                shown = np.maximum(table.start, low) < top
                layers.append(_Layer(file, link, table, top, shown))
        self._check()
        if not layers:
            return _EMPTY
        return self._painted(layers, low, high)

    def _check_disjoint(self, file: int, owner: Int64s, table: MapTable, links: Int64s) -> None:
        """Raise :class:`~sqlimage.errors.FormatError` unless the records of each version are in order, disjoint, and
        within its medium."""
        path = self._lineage.files[file].path
        same = owner[1:] == owner[:-1]
        wrong = (same & (table.start[1:] <= table.end[:-1])) | (table.end[1:] < table.start[1:])
        if wrong.any() or table.end[0] < table.start[0]:
            place = table.start[1:][wrong][0] if wrong.any() else table.start[0]
            raise FormatError(f"{path}: cluster map records overlap at cluster {place}")
        beyond = table.end >= self._total_of_link[links[owner]]
        if beyond.any():
            raise FormatError(f"{path}: the cluster map reaches to cluster {table.end[beyond][0]}, beyond the medium")

    def _painted(self, layers: list[_Layer], low: int, high: int) -> Window:
        """The oldest version is painted first, each newer one over it."""
        link = np.concatenate([layer.link[layer.shown] for layer in layers])
        order = np.argsort(-link, kind="stable")
        file = np.concatenate([np.full(int(layer.shown.sum()), layer.file) for layer in layers])[order]
        start, end, data, offset = (
            np.concatenate(columns)[order] for columns in zip(*(layer.columns() for layer in layers), strict=True)
        )
        first = np.maximum(start, low)
        origin = offset - start * self._unit  # constant along a record
        if len(link) and (link == link[0]).all():
            kept = data != ZEROS
            first, end, origin, data, file = first[kept], end[kept], origin[kept], data[kept], file[kept]
        else:
            owner = np.full(high - low, -1, dtype=np.int64)
            count = end - first
            place = np.repeat(first - low - (np.cumsum(count) - count), count) + np.arange(int(count.sum()))
            owner[place] = np.repeat(np.arange(len(first)), count)  # of equal places the last one counts
            border = np.flatnonzero(np.diff(owner)) + 1
            begin = np.concatenate(([0], border))
            stop = np.concatenate((border, [high - low]))
            row = owner[begin]
            kept = row >= 0
            kept[kept] = data[row[kept]] != ZEROS
            row = row[kept]
            first, end = begin[kept] + low, stop[kept] + low
            origin, data, file = origin[row], data[row], file[row]
        return Window(
            first.tolist(), end.tolist(), file.tolist(), data.tolist(), (origin + first * self._unit).tolist()
        )


@dataclass(frozen=True, slots=True)
class _Layer:
    """Records of one file in a window."""

    file: int
    link: Int64s
    """Of each record, the version it belongs to, as an index into the lineage."""
    table: MapTable
    top: Int64s
    """Up to where it shows."""
    shown: NDArray[np.bool_]

    def columns(self) -> tuple[Int64s, Int64s, Int64s, Int64s]:
        """Start, end (not included), data and offset of the records that show."""
        table, shown = self.table, self.shown
        end = np.minimum(table.end + 1, self.top)
        return table.start[shown], end[shown], table.data[shown], table.data_offset[shown]


def reach(lineage: Lineage) -> list[int]:
    """How far each version of a lineage shows (clusters): what a shorter one does not have reads as zeros, also where
    an ancestor of it has something."""
    return list(accumulate((link.control.total_clusters for link in lineage.links), min))
