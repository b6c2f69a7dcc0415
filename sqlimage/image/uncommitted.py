"""A version as the transaction that writes it sees it: its map, flattened, and its chunks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sqlimage.codec.chunk import decode
from sqlimage.extent import Runs, overlaps
from sqlimage.image import effective
from sqlimage.image.chunks import Connections, read_missing, read_stored
from sqlimage.image.lineage import Lineage
from sqlimage.image.stored import Fetch
from sqlimage.streams import cluster_map, data
from sqlimage.streams.cluster_map import MapTable
from sqlimage.streams.database import Database

_OWN = 127
"""Stands for the file that is written where the map tells files apart; no lineage has so many."""


@dataclass(frozen=True, slots=True)
class Ancestors:
    """The version that is built on."""

    lineage: Lineage
    connections: list[Connections]


def stored_version(database: Database, version: int, parent: Ancestors | None) -> tuple[MapTable, Fetch]:
    """Its map, all of it in memory, and who fetches its chunks. They are decoded without a look at their digests:
    whoever asks compares those of the files."""
    own = _whole(list(cluster_map.pages(database, version)))
    own = MapTable(own.start, own.end, np.where(own.data > 0, effective.joined(_OWN, own.data), 0), own.data_offset)
    if parent is not None:
        unit = parent.lineage.links[0].control.bytes_per_cluster
        own = _over(own, _whole(list(effective.pages(parent.lineage, parent.connections))), unit)
    return own, _Fetcher(database, parent).fetch


def _whole(pages: Sequence[MapTable]) -> MapTable:
    empty = np.empty(0, dtype=np.int64)
    columns = [page.columns() for page in pages] or [(empty,) * 4]
    return MapTable(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))


def _over(own: MapTable, below: MapTable, unit: int) -> MapTable:
    """Records over those of a parent, of which what they leave shows."""
    left = Runs.from_arrays(below.start, below.end - below.start + 1).subtract(
        Runs.from_arrays(own.start, own.end - own.start + 1)
    )
    met = overlaps(below.start, below.end - below.start + 1, left.start, left.length)
    start = below.start[met.a] + met.into_a
    offset = below.data_offset[met.a] + np.where(below.data[met.a] > 0, met.into_a * unit, 0)
    shown = MapTable(start, start + met.length - 1, below.data[met.a], offset)
    both = _whole([own, shown])
    order = np.argsort(both.start, kind="stable")
    return MapTable(*(column[order] for column in both.columns()))


class _Fetcher:
    """One connection for all threads, for only it sees what is not committed; chunks are decoded beside it."""

    def __init__(self, database: Database, parent: Ancestors | None) -> None:
        self._database = database
        self._connections = parent.connections if parent is not None else []
        self._lock = threading.Lock()

    def fetch(self, key: int) -> bytes:
        file, number = effective.key_of(key)
        if file == _OWN:
            with self._lock:
                chunk = data.read(self._database, number)
            chunk = chunk if chunk.stored is not None else read_missing(self._connections, chunk)
        else:
            chunk = read_stored(self._connections, (file, number))
        assert chunk.stored is not None
        return decode(
            chunk.stored,
            chunk.flags,
            chunk.length,
            chunk.digest,
            vault=chunk.vault() if chunk.vault else None,
            is_digested_elsewhere=True,
            data=number,
        )
