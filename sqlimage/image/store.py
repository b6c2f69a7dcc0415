"""From clusters that were written to chunks and map records of an open version, in one commit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from operator import attrgetter

from sqlimage.codec.chunk import encode, name_of
from sqlimage.codec.vault import Vault
from sqlimage.extent import Runs
from sqlimage.image import remap
from sqlimage.image.chunks import Connections
from sqlimage.image.overlay import Overlay
from sqlimage.streams import cluster_map, control, data
from sqlimage.streams.cluster_map import MapRecord
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.units import MIB

_LEVEL = 1
"""zstd's: a guest waits for it."""
_TASK_BYTES = MIB
_GARBAGE_ROWS = 4096
"""How many superseded chunks may wait before they are removed."""
_MOST_ASKED = 1000
_place = attrgetter("start_cluster")
_SELECT_UNUSED = "SELECT id FROM data WHERE NOT EXISTS (SELECT 1 FROM cluster_map WHERE data = data.id)"

_HELD = (
    "SELECT digest FROM data WHERE bytes IS NOT NULL AND EXISTS "
    "(SELECT 1 FROM cluster_map WHERE cluster_map.data = data.id AND version IN ({versions})) AND digest IN ({marks})"
)

Ancestor = tuple[Connections, Sequence[int]]
"""Another file of the lineage, and the versions in it that belong to the lineage."""
Coded = tuple[bytes, int, int, bytes]
"""Digest, length, flags and stored bytes of a piece."""


class Store:
    """The one writer of an open version. Not safe from two threads: the caller takes turns."""

    def __init__(self, database: Database, version: Control, ancestors: Callable[[], Sequence[Ancestor]]) -> None:
        self._database = database
        self._version = version.version
        self._unit = version.bytes_per_cluster
        self._chunk_clusters = max(1, version.chunk_bytes // version.bytes_per_cluster)
        self._ancestors = ancestors
        """Where content may lie already. What other versions of those files hold is nothing to rely on: they may go."""
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="encode")
        self._vault = database.vault_or_none()
        """In an image that holds anything encrypted, all that is written is: it may be part of any file."""
        self._cover = remap.Cover(database, self._version)
        self._stored_bytes = 0
        # Never given twice while this edit is worked on: caches know chunks by number.
        self._next_id = data.next_id(database)
        # What an interrupted edit had superseded, nobody remembers but the file itself.
        is_resumed = cluster_map.next_mapped(database, self._version, 0) is not None
        self._superseded: set[int] = {row[0] for row in database.query(_SELECT_UNUSED)} if is_resumed else set()

    def write(self, overlay: Overlay) -> Runs:
        """Write everything the overlay holds; when this returns, it is on the disk. Returns the clusters.

        Raises :class:`~sqlimage.errors.DeviceError`; then nothing was written.
        """
        written, zeros = overlay.written(), overlay.zeros()
        with self._database.transaction():
            records = [MapRecord(start, start + length - 1, None, 0) for start, length in zeros]
            self._stored_bytes = 0
            for pieces, coded in self._coded(overlay, written):
                numbers = self._put([one for one in coded if one is not None])
                records += [
                    MapRecord(start, start + clusters - 1, None if one is None else numbers[one[0]], 0)
                    for (start, clusters), one in zip(pieces, coded, strict=True)
                ]
            records.sort(key=_place)
            self._superseded |= remap.store(self._database, self._version, records, self._unit, self._cover)
            control.add_stored_bytes(self._database, self._version, self._stored_bytes)
            is_much = len(self._superseded) > _GARBAGE_ROWS
            if is_much:
                self.remove_superseded()
        if is_much:
            self._superseded.clear()
        return written.union(zeros)

    def remove_superseded(self) -> None:
        """Remove chunks that later writes have left without a record; inside the caller's transaction."""
        self._database.run_many(data.DELETE_UNUSED, ((number,) for number in self._superseded))

    def _coded(self, overlay: Overlay, written: Runs) -> Iterator[tuple[list[tuple[int, int]], list[Coded | None]]]:
        """The written runs in pieces of at most a chunk, coded on threads, a few ahead of the writer."""
        tasks: list[list[tuple[int, int]]] = [[]]
        held = 0
        for start, length in written:
            for at in range(start, start + length, self._chunk_clusters):
                clusters = min(self._chunk_clusters, start + length - at)
                tasks[-1].append((at, clusters))
                held += clusters * self._unit
                if held >= _TASK_BYTES:
                    tasks.append([])
                    held = 0
        yield from zip(tasks, self._pool.map(lambda task: _encode(overlay, task, self._vault), tasks), strict=True)

    def _put(self, coded: Sequence[Coded]) -> dict[bytes, int]:
        """The number of each content in the data stream, by digest; what is there already is not stored again."""
        digests = list({one[0] for one in coded})
        numbers: dict[bytes, int] = {}
        without: set[bytes] = set()
        """What is in the data stream, but with its bytes elsewhere: perhaps not within this lineage."""
        held_elsewhere: set[bytes] = set()
        for part in range(0, len(digests), _MOST_ASKED):
            asked = digests[part : part + _MOST_ASKED]
            marks = ", ".join("?" * len(asked))
            for content, number, has_bytes in self._database.rows(f"{data.FIND_ALL} ({marks})", asked):
                numbers[content] = number
                if not has_bytes:
                    without.add(content)
            for connections, versions in self._ancestors():
                held = _HELD.format(versions=", ".join(map(str, versions)), marks=marks)
                held_elsewhere.update(row[0] for row in connections.mine().rows(held, asked))
        new = []
        for content, length, flags, stored in coded:
            if content not in numbers:
                numbers[content] = self._next_id
                bytes_ = None if content in held_elsewhere else stored
                new.append((self._next_id, content, length, len(stored), flags, bytes_))
                self._next_id += 1
            elif content in without and content not in held_elsewhere:
                without.remove(content)
                self._database.run(data.FILL, [length, len(stored), flags, stored, numbers[content]])
                self._stored_bytes += len(stored)
        self._database.insert(data.INTO, new)
        self._stored_bytes += sum(len(row[5]) for row in new if row[5] is not None)
        return numbers

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@lru_cache(maxsize=1024)
def _zeros(length: int) -> bytes:
    return bytes(length)


def _encode(overlay: Overlay, task: list[tuple[int, int]], vault: Vault | None) -> list[Coded | None]:
    """Digest and stored form of each piece; None where it is all zeros."""
    coded: list[Coded | None] = []
    for start, clusters in task:
        if clusters == 1:
            content = overlay.data[start]
        else:
            content = b"".join([overlay.data[cluster] for cluster in range(start, start + clusters)])
        if content == _zeros(len(content)):
            coded.append(None)
            continue
        name = name_of(content, vault)
        flags, stored = encode(content, _LEVEL, vault, name)
        coded.append((name, len(content), flags, stored))
    return coded
