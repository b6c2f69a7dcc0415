"""The cluster map of a whole lineage in bulk, for journeys over the whole medium."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from sqlimage.codec.chunk import MAX_CHUNK_BYTES, ChunkFlag
from sqlimage.errors import DamagedError, FormatError
from sqlimage.extent import Int64s
from sqlimage.image.chunks import Connections
from sqlimage.image.flatmap import reach
from sqlimage.image.keys import Key
from sqlimage.image.lineage import Lineage
from sqlimage.streams import cluster_map, data
from sqlimage.streams.cluster_map import MapTable
from sqlimage.streams.database import Database

Number = TypeVar("Number", int, Int64s)

_STEP_CLUSTERS = 1 << 20
_MOST_ASKED = 1000
_FILES = 128
"""Ids in these tables carry the file they belong to: ``id * 128 + index of the file``."""


def key_of(data: int) -> Key:
    """File and id of what :func:`pages` has in its column ``data``."""
    return data % _FILES, data // _FILES


def joined(file: int, data: Number) -> Number:
    """The reverse of :func:`key_of`."""
    return data * _FILES + file


def _is_possible(length: object) -> bool:
    return isinstance(length, int) and 1 <= length <= MAX_CHUNK_BYTES


def described(connections: list[Connections], keys: Sequence[int]) -> dict[int, tuple[bytes, int, Database | None]]:
    """Digest and length of contents, and of those that are encrypted, the image that unlocks
    them. Raises :class:`~sqlimage.errors.DamagedError` where one is missing."""
    known: dict[int, tuple[bytes, int, Database | None]] = {}
    asked: dict[int, list[int]] = {}
    for key in keys:
        file, number = key_of(key)
        asked.setdefault(file, []).append(number)
    for file, numbers in asked.items():
        database = connections[file].mine()
        for at in range(0, len(numbers), _MOST_ASKED):
            rows = database.rows(data.NAMES, [json.dumps(numbers[at : at + _MOST_ASKED])])
            for number, name, length, flags in rows:
                if not isinstance(name, bytes) or not isinstance(flags, int) or not _is_possible(length):
                    raise DamagedError(f"{database.path}: data {number} has no possible length", data=number)
                known[joined(file, number)] = name, length, database if flags & ChunkFlag.ENCRYPTED else None
        connections[file].check()
        missing = next((number for number in numbers if joined(file, number) not in known), None)
        if missing is not None:
            raise DamagedError(f"{database.path}: the map refers to data {missing}, which is missing", data=missing)
    return known


def pages(lineage: Lineage, connections: list[Connections]) -> Iterator[MapTable]:
    """The flattened map by place, in tables of bounded size; raises :class:`~sqlimage.errors.FormatError` where records
    of one version overlap or leave its medium."""
    if len(lineage.links) == 1:
        only = lineage.links[0]
        database, last = connections[0].mine(), -1
        for table in cluster_map.pages(database, only.control.version):
            _check(database.path, table, last, only.control.total_clusters)
            last = int(table.end[-1])
            connections[0].check()
            yield MapTable(table.start, table.end, table.data * _FILES, table.data_offset)
        return
    total = lineage.links[0].control.total_clusters
    at: int | None = 0
    while at is not None and at < total:
        low = at
        high = min(low + _STEP_CLUSTERS, total)
        table = table_between(lineage, connections, low, high)
        found = [
            cluster_map.next_data(connections[link.file].mine(), link.control.version, high) for link in lineage.links
        ]
        at = min((place for place in found if place is not None), default=None)
        for each in connections:
            each.check()
        yield table


def table_between(lineage: Lineage, connections: list[Connections], low: int, high: int) -> MapTable:
    """The flattened map of clusters ``low .. high`` (not included)."""
    unit = lineage.links[0].control.bytes_per_cluster
    data = np.full(high - low, -1, dtype=np.int64)
    origin = np.zeros(high - low, dtype=np.int64)
    for link, shortest in reversed(list(zip(lineage.links, reach(lineage), strict=True))):
        top = min(high, shortest)
        if top <= low:
            continue
        database = connections[link.file].mine()
        table = cluster_map.table_in_range(database, link.control.version, low, top - 1)
        if not len(table):
            continue
        _check(database.path, table, -1, link.control.total_clusters)
        keys = np.where(table.data > 0, table.data * _FILES + link.file, 0).tolist()
        # Constant along a record, so that a border is wherever a column changes.
        origins = (table.data_offset - table.start * unit).tolist()
        first = np.maximum(table.start - low, 0).tolist()
        last = (np.minimum(table.end + 1, top) - low).tolist()
        for a, b, key, start in zip(first, last, keys, origins, strict=True):
            data[a:b] = key
            origin[a:b] = start
    origin[data <= 0] = 0
    changes = (np.diff(data) != 0) | (np.diff(origin) != 0)
    first_of = np.concatenate(([0], np.flatnonzero(changes) + 1))
    last_of = np.concatenate((first_of[1:], [high - low])) - 1
    kept = data[first_of] >= 0
    first_of, last_of = first_of[kept], last_of[kept]
    key = data[first_of]
    offset = np.where(key > 0, origin[first_of] + (first_of + low) * unit, 0)
    return MapTable(first_of + low, last_of + low, key, offset)


def _check(path: str, table: MapTable, last: int, total_clusters: int) -> None:
    """Records are in order, disjoint, within the medium."""
    if int(table.start[0]) <= last or (table.start[1:] <= table.end[:-1]).any() or (table.end < table.start).any():
        raise FormatError(f"{path}: cluster map records overlap")
    if int(table.end[-1]) >= total_clusters:
        raise FormatError(f"{path}: the cluster map reaches beyond the medium")
