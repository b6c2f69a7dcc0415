"""The single writer of a capture: what workers made, into the new file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from sqlimage.extent import Runs
from sqlimage.journey.encode import Encoded, Record
from sqlimage.journey.jobs import Key
from sqlimage.streams import cluster_map, data
from sqlimage.streams.database import Database

_MOST_WAITING = 500_000
"""Map records held back, about 100 MB, so that they can be written in order."""
VERSION = 1
"""A captured file holds one version, number 1, unless it is a version added to others."""


@dataclass(slots=True)
class Totals:
    """What the data stream took, in bytes."""

    read_bytes: int = 0
    zero_bytes: int = 0
    repeated_bytes: int = 0
    stored_bytes: int = 0
    chunks: int = 0


class Writer:
    """Takes results one by one. Map records wait until they can be written in the order of their key; where a chunk
    turns out to be in the file already, its records are re-pointed."""

    def __init__(self, database: Database, version: int = VERSION) -> None:
        self._database = database
        self.version = version
        self._same_as: dict[int, int] = {}
        self._records: list[Record] = []
        self._covered = Runs.empty()
        self.digests: dict[Key, bytes] = {}
        self.totals = Totals()

    def add(self, result: Encoded) -> None:
        totals, database = self.totals, self._database
        for chunk in result.chunks:
            row = (chunk.id, chunk.digest, chunk.length, chunk.stored_bytes, chunk.flags, chunk.stored)
            database.run(data.INSERT, row)
            if database.connection.changes() == 0:
                met = database.row(data.FIND, [chunk.digest])
                assert met is not None
                self._same_as[chunk.id] = met[0]
                totals.repeated_bytes += chunk.length if chunk.stored is not None else 0
                if chunk.stored is not None:  # it may be there without its bytes, for another lineage's sake
                    database.run(data.FILL, [chunk.length, len(chunk.stored), chunk.flags, chunk.stored, met[0]])
                continue
            if chunk.stored is not None:
                totals.stored_bytes += len(chunk.stored)
                totals.chunks += 1
        self._records += result.records
        if len(self._records) > _MOST_WAITING:
            self._write_records()
        self.digests.update(result.digests)
        totals.read_bytes += result.read_bytes
        totals.zero_bytes += result.zero_bytes
        totals.repeated_bytes += result.repeated_bytes

    def add_records(self, records: Iterable[Record]) -> None:
        """Take map records as they are."""
        self._records += records

    def recorded(self) -> Runs:
        """The clusters that records were taken for."""
        places = np.array([record[:2] for record in self._records], dtype=np.int64).reshape(-1, 2)
        return self._covered.union(Runs.from_arrays(places[:, 0], places[:, 1] - places[:, 0] + 1))

    def finish(self) -> None:
        """Write what waits."""
        self._write_records()

    def repoint(self) -> None:
        """Re-point the records of chunks that are in the file under another number; the map needs its index for it."""
        for gone, kept in self._same_as.items():
            self._database.run(cluster_map.REPOINT, [kept, gone])

    def _write_records(self) -> None:
        self._covered = self.recorded()
        self._records.sort(key=itemgetter(0))
        rows = ((self.version, first, last, number, at) for first, last, number, at in self._records)
        self._database.run_many(cluster_map.INSERT, rows)
        self._records.clear()
