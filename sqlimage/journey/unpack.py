"""The chunks of a version to where a layout wants them: decoded, verified and written on threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from sqlimage.device import WritableDevice
from sqlimage.errors import DamagedError
from sqlimage.extent import Runs
from sqlimage.image import effective
from sqlimage.image.chunks import connect, fetch
from sqlimage.image.image import Version
from sqlimage.image.lineage import resolve
from sqlimage.journey.relaid import Layout, Writes
from sqlimage.streams.cluster_map import MapTable
from sqlimage.units import MIB, Progress

_BATCH_BYTES = 4 * MIB
"""Content a worker takes at a time."""
_WRITEBACK_BYTES = 64 * MIB
"""How much is written before the kernel is asked to begin with it, so that the sync at the end is short."""


@dataclass(frozen=True, slots=True)
class Part:
    """What of a medium is restored: all of it, or one volume. ``clusters`` are whole ones; the last may be cut."""

    start_cluster: int
    clusters: int
    length_bytes: int
    bytes_per_cluster: int

    @classmethod
    def of(cls, version: Version, volume: int | None) -> Part:
        control = version.control
        if volume is None:
            return cls(0, control.total_clusters, control.medium_bytes, control.bytes_per_cluster)
        row = version.volume(volume)
        return cls(row.offset_clusters, row.length_clusters, row.length_bytes, control.bytes_per_cluster)

    def cut(self, table: MapTable) -> MapTable:
        """The records of the part, their places counted from its first cluster."""
        low = np.maximum(table.start, self.start_cluster)
        high = np.minimum(table.end, self.start_cluster + self.clusters - 1)
        keep = (high >= low) & (table.data > 0)
        offset = table.data_offset + (low - table.start) * self.bytes_per_cluster
        return MapTable(
            (low - self.start_cluster)[keep], (high - self.start_cluster)[keep], table.data[keep], offset[keep]
        )

    def bytes_of(self, clusters: Runs) -> Runs:
        """What of some clusters of the medium lies in the part: bytes, counted from its first one."""
        inside = clusters.clip(self.start_cluster, self.start_cluster + self.clusters).shift(-self.start_cluster)
        unit = self.bytes_per_cluster
        return Runs(inside.start * unit, inside.length * unit).clip(0, self.length_bytes)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What was done; bytes."""

    written_bytes: int
    zeroed_bytes: int
    chunks: int


class Unpacking:
    """One restore in progress."""

    def __init__(
        self,
        version: Version,
        part: Part,
        layout: Layout,
        target: WritableDevice,
        start_writeback: Callable[[], None] | None = None,
    ) -> None:
        self._version = version
        self._part = part
        self._layout = layout
        self._target = target
        self._start_writeback = start_writeback
        self._lineage = resolve(version.image.database, version.control, version.image.search)
        self._connections = connect(self._lineage)
        self._written = self._chunks = 0

    def run(self, *, fresh: bool, wipe: bool, threads: int | None, progress: Progress | None) -> Unpacked:
        """Write everything. ``fresh``: the destination reads as zeros; ``wipe``: free clusters are zeroed too."""
        zeroed = 0
        pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="restore")
        window: deque[Future[tuple[int, int]]] = deque()
        total = self._layout.allocated.total

        def take_oldest() -> None:
            written, chunks = window.popleft().result()
            if (
                self._start_writeback
                and self._written // _WRITEBACK_BYTES != (self._written + written) // _WRITEBACK_BYTES
            ):
                self._start_writeback()
            self._written += written
            self._chunks += chunks
            if progress:
                progress(min(self._written, total), total)

        try:
            mapped = Runs.empty()
            for page in effective.pages(self._lineage, self._connections):
                writes = self._layout.writes(self._part.cut(page), self._part.bytes_per_cluster)
                mapped = mapped.union(writes.runs())
                for batch in _batches(writes):
                    window.append(pool.submit(self._write, batch))
                    if len(window) > 8:
                        take_oldest()
            while window:
                take_oldest()
            if not fresh:
                zeroed = self._zero(mapped, wipe)
        finally:
            pool.shutdown(cancel_futures=True)
            for connections in self._connections:
                connections.close()
            self._lineage.close()
        return Unpacked(self._written, zeroed, self._chunks)

    def _write(self, batch: Writes) -> tuple[int, int]:
        """Decode the chunks of a batch and write each to its places; bytes written and chunks verified."""
        size = self._layout.size_bytes
        written = chunks = 0
        number, content = 0, memoryview(b"")
        columns = (batch.place, batch.length, batch.data, batch.offset)
        for place, length, wanted, offset in zip(*(column.tolist() for column in columns), strict=True):
            if wanted != number:
                number, content = wanted, memoryview(fetch(self._connections, effective.key_of(wanted)))
                chunks += 1
            if offset + length > len(content):
                raise DamagedError(
                    f"{self._version.image.path}: a map record reaches beyond data {wanted}", data=wanted
                )
            length = min(length, size - place)
            self._target.write(place, content[offset : offset + length].toreadonly())
            written += length
        return written, chunks

    def _zero(self, mapped: Runs, wipe: bool) -> int:
        """Zero what reads as zeros but may hold something else: what counts, or with ``wipe`` everything."""
        whole = Runs.of([(0, self._layout.size_bytes)])
        zeroed = 0
        for start, length in (whole if wipe else self._layout.allocated).subtract(mapped):
            self._target.zero(start, length)
            zeroed += length
        return zeroed


def _batches(writes: Writes) -> Iterator[Writes]:
    """In the order of the data, in pieces of about ``_BATCH_BYTES`` that part no chunk's writes."""
    if not len(writes.place):
        return
    order = np.argsort(writes.data, kind="stable")
    number = writes.data[order]
    weight = np.cumsum(writes.length[order]) // _BATCH_BYTES
    is_first = np.concatenate(([True], number[1:] != number[:-1]))
    chunk_weight = weight[np.flatnonzero(is_first)][np.cumsum(is_first) - 1]
    cuts = np.flatnonzero(np.diff(chunk_weight)) + 1
    for part in np.split(order, cuts):
        yield writes.rows(part)
