"""Which clusters of a medium differ from a version of an image: by digest where a content lies there whole, else by
its bytes.

The parent's map says where each content should lie. It is gathered from those places and digested: one hash of what is
there proves all of it unchanged, without decompressing anything. Only a content that differs, or that no longer lies
anywhere whole, is decoded and compared cluster by cluster.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sqlimage.codec.chunk import name_of
from sqlimage.codec.vault import Vault
from sqlimage.device import BlockDevice, Prefetching
from sqlimage.errors import DamagedError
from sqlimage.extent import Int64s, Runs
from sqlimage.image import effective
from sqlimage.image.chunks import Connections, fetch
from sqlimage.image.lineage import Lineage
from sqlimage.streams.cluster_map import MapTable
from sqlimage.units import MIB

_TASK_BYTES = 4 * MIB
"""Content that a worker takes at a time."""
_TASKS_AHEAD = 6
_AHEAD_BYTES = 64 * MIB

Segment = tuple[int, int, int]
"""First cluster on the medium, clusters, and the byte in the content where they lie."""
Chunk = tuple[int, bytes, int, Vault | None, list[Segment]]
"""Key of a content, its digest and length, the key it is encrypted with, and where it lies, by place in the content."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Clusters of a medium beside those of a version."""

    changed: Runs
    """What is to be taken from the medium differs there."""
    gone: Runs
    """The version has data there, and nothing is taken from the medium."""
    backed: Runs
    """Where the version has data."""


class Comparing:
    """A medium beside a version, in two steps: :meth:`look_at_map` needs no knowledge of the medium and can be done
    while that is inspected, by one thread; then :meth:`finish`.

    Both raise :class:`~sqlimage.errors.FormatError` where the version's map contradicts itself or a content of it fails
    its digest, and :class:`~sqlimage.errors.DeviceError` where the medium cannot be read.
    """

    def __init__(
        self,
        device: BlockDevice,
        lineage: Lineage,
        connections: list[Connections],
        *,
        threads: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """``progress`` is told the bytes that were read."""
        self.unit = lineage.links[0].control.bytes_per_cluster
        self._device = device
        self._lineage = lineage
        self._connections = connections
        self._threads = threads or os.cpu_count() or 1
        self._progress = progress
        self._local = threading.local()
        self._backed = Runs.empty()
        self._differing: list[Int64s] = []
        self._read_bytes = 0
        self._coming: Iterator[tuple[int, int]] = iter(())
        self._announced = 0
        """The cluster up to which the device was told what will be read."""
        self._is_stopped = False

    def look_at_map(self) -> None:
        """Compare the places where the version's contents should lie."""
        self._differing += self._run(self._contents())

    def stop(self) -> None:
        """Have :meth:`look_at_map` end early, in whichever thread; what it found is of no use then."""
        self._is_stopped = True

    def finish(self, wanted: Runs, total_clusters: int) -> Comparison:
        """Compare where the version has nothing, too. What is not ``wanted`` of the medium (clusters) counts as zeros;
        ``total_clusters`` are all it has."""
        data = Runs.of(
            (e.offset_bytes, e.length_bytes) for e in self._device.extents(0, self._device.size_bytes) if e.is_data
        ).widen(self.unit)
        fresh = wanted.subtract(self._backed).intersect(Runs(data.start // self.unit, data.length // self.unit))
        self._coming, self._announced = iter(fresh), 0
        found = self._run(_in_steps(fresh, _TASK_BYTES // self.unit))
        changed = _single(self._differing).intersect(wanted).union(_single(found))
        return Comparison(changed, self._backed.subtract(wanted).clip(0, total_clusters), self._backed)

    def _run(self, tasks: Iterable[list[Chunk] | Runs]) -> list[Int64s]:
        """The clusters that differ, of all tasks."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="compare")
        window: deque[Future[Int64s]] = deque()
        found: list[Int64s] = []
        try:
            for task in tasks:
                window.append(pool.submit(self._look, task))
                if len(window) > _TASKS_AHEAD:
                    found.append(window.popleft().result())
                    if self._progress:
                        self._progress(self._read_bytes)
            found += [future.result() for future in window]
        finally:
            pool.shutdown(cancel_futures=True)
        return found

    def _contents(self) -> Iterator[list[Chunk]]:
        """The contents of the version with their places."""
        for table in effective.pages(self._lineage, self._connections):
            keep = table.data > 0
            backed = Runs.from_arrays(table.start[keep], (table.end - table.start + 1)[keep])
            self._backed = self._backed.union(backed)
            self._coming = itertools.chain(self._coming, backed)
            yield from self._chunks(MapTable(*(column[keep] for column in table.columns())))

    def _chunks(self, table: MapTable) -> Iterator[list[Chunk]]:
        """The contents of a page of the map, in the order of their first places, about a task's worth at a time."""
        if not len(table):
            return
        order = np.lexsort((table.start, table.data_offset, table.data))
        key = table.data[order]
        first = np.concatenate(([0], np.flatnonzero(np.diff(key)) + 1, [len(key)]))
        places = np.minimum.reduceat(table.start[order], first[:-1])
        start, offset = table.start[order].tolist(), table.data_offset[order].tolist()
        count = (table.end - table.start + 1)[order].tolist()
        known = effective.described(self._connections, key[first[:-1]].tolist())
        task: list[Chunk] = []
        held = 0
        bounds = list(pairwise(first.tolist()))
        for n in np.argsort(places, kind="stable").tolist():
            if self._is_stopped:
                return
            low, high = bounds[n]
            number = int(key[low])
            name, length, encrypted_in = known[number]
            vault = encrypted_in.vault() if encrypted_in else None
            segments = list(zip(start[low:high], count[low:high], offset[low:high], strict=True))
            task.append((number, name, length, vault, segments))
            held += length
            if held >= _TASK_BYTES:
                self._announce(int(places[n]))
                yield task
                task, held = [], 0
        if task:
            yield task

    def _announce(self, cluster: int) -> None:
        """Tell the device what comes: contents are gathered from many places, about in the medium's order."""
        if not isinstance(self._device, Prefetching):
            return
        while self._announced < cluster + _AHEAD_BYTES // self.unit:
            run = next(self._coming, None)
            if run is None:
                self._announced = 1 << 62
                return
            start, count = run
            self._device.prefetch(start * self.unit, count * self.unit)
            self._announced = start + count

    def _look(self, task: list[Chunk] | Runs) -> Int64s:
        """The clusters of a task that differ."""
        if isinstance(task, Runs):
            differing = [self._not_zero(start, count) for start, count in task]
        else:
            differing = [part for chunk in task for part in self._differing_of(chunk)]
        return np.concatenate(differing) if differing else np.empty(0, dtype=np.int64)

    def _not_zero(self, start: int, count: int) -> Int64s:
        content = self._read(start, count, self._buffer(count * self.unit))
        return np.flatnonzero(content.reshape(count, -1).any(axis=1)) + start

    def _differing_of(self, chunk: Chunk) -> Iterator[Int64s]:
        key, name, length, vault, segments = chunk
        whole = self._gathered(length, segments)
        is_same = whole is not None and name_of(whole, vault) == name
        expected = whole if is_same else fetch(self._connections, effective.key_of(key))
        assert expected is not None
        reached = 0
        for start, count, offset in segments:
            if offset + count * self.unit > len(expected) or offset % self.unit:
                raise DamagedError(f"{self._lineage.files[0].path}: a map record reaches beyond its content")
            end = offset + count * self.unit
            if is_same and offset == reached:  # it is what was digested
                reached = end
                continue
            reached = max(reached, end)
            content = self._read(start, count, self._second(count * self.unit))
            wanted = np.frombuffer(expected, dtype=np.uint64, count=count * self.unit // 8, offset=offset)
            if not (content == wanted).all():
                yield np.flatnonzero((content != wanted).reshape(count, -1).any(axis=1)) + start

    def _gathered(self, length: int, segments: list[Segment]) -> memoryview | None:
        """The content as it lies on the medium, by the first place of each part of it; None where it is not whole."""
        reached = 0
        for _, count, offset in segments:
            if offset > reached or offset % self.unit:
                return None
            reached = max(reached, offset + count * self.unit)
        if reached != length:
            return None
        view = self._buffer(length)
        reached = 0
        for start, count, offset in segments:
            end = offset + count * self.unit
            if end > reached:
                self._read(start + (reached - offset) // self.unit, (end - reached) // self.unit, view[reached:end])
                reached = end
        return view

    def _read(self, start: int, count: int, view: memoryview) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """Clusters of the medium; what lies beyond its end is zero."""
        at, length = start * self.unit, count * self.unit
        beyond = max(0, at + length - self._device.size_bytes)
        if beyond >= length:
            view[:] = bytes(length)
        else:
            self._device.read_into(at, view[: length - beyond])
            if beyond:
                view[length - beyond :] = bytes(beyond)
        self._read_bytes += length
        return np.frombuffer(view, dtype=np.uint64)

    def _buffer(self, length: int) -> memoryview:
        """A buffer that this thread uses again and again."""
        return self._reused("first", length)

    def _second(self, length: int) -> memoryview:
        return self._reused("second", length)

    def _reused(self, name: str, length: int) -> memoryview:
        buffer: bytearray | None = getattr(self._local, name, None)
        if buffer is None or len(buffer) < length:
            buffer = bytearray(max(length, MIB))
            setattr(self._local, name, buffer)
        return memoryview(buffer)[:length]


def _single(found: list[Int64s]) -> Runs:
    """Runs of single clusters."""
    clusters = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
    return Runs.from_arrays(clusters, np.ones(len(clusters), dtype=np.int64))


def _in_steps(runs: Runs, step: int) -> Iterator[Runs]:
    """Runs cut and gathered so that each part holds about ``step`` clusters."""
    part: list[tuple[int, int]] = []
    held = 0
    for start, length in runs:
        while length:
            taken = min(length, step - held)
            part.append((start, taken))
            start, length, held = start + taken, length - taken, held + taken
            if held == step:
                yield Runs.of(part)
                part, held = [], 0
    if part:
        yield Runs.of(part)
