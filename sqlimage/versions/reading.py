"""Two versions side by side, cluster by cluster, whatever lineages and files they are from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqlimage.errors import FormatError
from sqlimage.extent import Int64s, Runs, stretches
from sqlimage.image import effective
from sqlimage.image.chunks import Cache, ChunkCache, connect
from sqlimage.image.flatmap import reach
from sqlimage.image.image import Version
from sqlimage.image.lineage import resolve
from sqlimage.streams import cluster_map
from sqlimage.units import MIB

_STEP_CLUSTERS = 1 << 20
_CACHE = Cache(memory_bytes=48 * MIB)


class Reading:
    """One version opened to be compared. Close it when done."""

    def __init__(self, version: Version) -> None:
        self.control = version.control
        self.unit = version.control.bytes_per_cluster
        self.path = version.image.path
        self.lineage = resolve(version.image.database, version.control, version.image.search)
        self.connections = connect(self.lineage)
        self.chunks = ChunkCache(self.connections, _CACHE)
        self.total_clusters = version.control.total_clusters
        self._names: dict[int, bytes] = {}

    def next_data(self, cluster: int) -> int | None:
        """The first cluster from ``cluster`` on that any version of the lineage has data for: all before are zeros."""
        found = [
            cluster_map.next_data(self.connections[link.file].mine(), link.control.version, cluster)
            for link, shown in zip(self.lineage.links, reach(self.lineage), strict=True)
            if shown > cluster
        ]
        return min((place for place in found if place is not None), default=None)

    def columns(self, low: int, high: int) -> tuple[Int64s, Int64s]:
        """For each cluster of ``low .. high`` (not included) the key of its content (0: zeros) and the byte in it."""
        key, offset = np.zeros(high - low, dtype=np.int64), np.zeros(high - low, dtype=np.int64)
        top = min(high, self.total_clusters)
        if top > low:
            table = effective.table_between(self.lineage, self.connections, low, top)
            count = table.end - table.start + 1
            place = np.repeat(table.start - low, count) + _counting(count)
            key[place] = np.repeat(table.data, count)
            offset[place] = np.repeat(table.data_offset, count) + _counting(count) * self.unit
            offset[key == 0] = 0
            for connections in self.connections:
                connections.check()
        return key, offset

    def names(self, keys: Int64s) -> dict[int, bytes]:
        """The digests of contents, by key."""
        wanted = [key for key in keys.tolist() if key and key not in self._names]
        found = effective.described(self.connections, wanted)
        self._names.update({key: name for key, (name, *_) in found.items()})
        return self._names

    def content(self, key: int, offset: int, clusters: int) -> NDArray[np.uint64]:
        """The bytes of some clusters in a content, as words; zeros for key 0."""
        length = clusters * self.unit
        if key == 0:
            return np.zeros(length // 8, dtype=np.uint64)
        whole = self.chunks.get(effective.key_of(key))
        if offset + length > len(whole):
            raise FormatError(f"{self.path}: a map record reaches beyond data {effective.key_of(key)[1]}")
        return np.frombuffer(whole, dtype=np.uint64, count=length // 8, offset=offset)

    def close(self) -> None:
        self.chunks.close()
        for connections in self.connections:
            connections.close()
        self.lineage.close()

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Clusters that differ, all from one content of ``a`` (key 0: zeros) from byte ``offset`` on."""

    start: int
    clusters: int
    key: int
    offset: int


def differing(a: Reading, b: Reading, within: Runs | None = None) -> Iterator[Stretch]:
    """Where the bytes of two versions differ, by place. Equal contents are known by their digests; the others are
    decoded and compared. ``within`` bounds what is looked at (clusters).

    Raises :class:`~sqlimage.errors.FormatError` where one of them contradicts itself or is damaged.
    """
    codes: dict[bytes, int] = {}
    end = max(a.total_clusters, b.total_clusters)
    low: int | None = 0
    while low is not None and low < end:
        high = min(low + _STEP_CLUSTERS, end)
        wanted = None if within is None else within.clip(low, high)
        if wanted is None or len(wanted):
            yield from _differing_between(a, b, low, high, wanted, codes)
        low = min((n for n in (a.next_data(high), b.next_data(high)) if n is not None), default=None)


def _differing_between(
    a: Reading, b: Reading, low: int, high: int, within: Runs | None, codes: dict[bytes, int]
) -> Iterator[Stretch]:
    key_a, offset_a = a.columns(low, high)
    key_b, offset_b = b.columns(low, high)
    code_a, code_b = _coded(a, key_a, codes), _coded(b, key_b, codes)
    unlike = (code_a != code_b) | (offset_a != offset_b)
    if within is not None:
        mask = np.zeros(high - low, dtype=bool)
        for start, length in within:
            mask[start - low : start - low + length] = True
        unlike &= mask
    place = np.flatnonzero(unlike)
    if not len(place):
        return
    # Cut wherever a content ends, on either side.
    new = np.ones(len(place), dtype=bool)
    new[1:] = np.diff(place) != 1
    for key, offset in ((key_a, offset_a), (key_b, offset_b)):
        step = np.diff(offset[place])
        new[1:] |= (np.diff(key[place]) != 0) | ((key[place[1:]] != 0) & (step != a.unit))
    first = np.flatnonzero(new)
    count = np.diff(np.append(first, len(place)))
    columns = (
        place[first],
        count,
        key_a[place[first]],
        offset_a[place[first]],
        key_b[place[first]],
        offset_b[place[first]],
    )
    for at, clusters, mine, my_offset, theirs, their_offset in zip(*(one.tolist() for one in columns), strict=True):
        equal = a.content(mine, my_offset, clusters) == b.content(theirs, their_offset, clusters)
        if equal.all():
            continue
        is_unlike = ~equal.reshape(clusters, -1).all(axis=1)
        for begin, stop in stretches(is_unlike):
            yield Stretch(low + at + begin, stop - begin, mine, my_offset + begin * a.unit if mine else 0)


def _coded(reading: Reading, key: Int64s, codes: dict[bytes, int]) -> Int64s:
    """Keys as numbers that are equal where the digests are, whichever file they are from."""
    distinct, inverse = np.unique(key, return_inverse=True)
    names = reading.names(distinct)
    numbers = [codes.setdefault(names[one], len(codes) + 1) if one else 0 for one in distinct.tolist()]
    return np.array(numbers, dtype=np.int64)[inverse]


def _counting(count: Int64s) -> Int64s:
    """0, 1, ... for each of some counts, one after the other."""
    total = int(count.sum())
    return np.arange(total, dtype=np.int64) - np.repeat(np.cumsum(count) - count, count)
