"""Which clusters of a medium differ from a version of an image: by digest where a content lies there whole, else by
its bytes.

The parent's map says where each content should lie. It is gathered from those places and digested: one hash of what is
there proves all of it unchanged, without decompressing anything. Only a content that differs, or that no longer lies
anywhere whole, is decoded and compared cluster by cluster.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sqlimage.codec.chunk import digest
from sqlimage.device import BlockDevice, Prefetching
from sqlimage.errors import DamagedError
from sqlimage.extent import Int64s, Runs
from sqlimage.image import effective
from sqlimage.image.chunks import Connections, fetch
from sqlimage.image.lineage import Lineage
from sqlimage.streams import data
from sqlimage.streams.cluster_map import MapTable
from sqlimage.units import MIB, Progress

_TASK_BYTES = 4 * MIB
"""Content that a worker takes at a time."""
_TASKS_AHEAD = 6
_AHEAD_BYTES = 64 * MIB
_MOST_ASKED = 1000

Segment = tuple[int, int, int]
"""First cluster on the medium, clusters, and the byte in the content where they lie."""
Chunk = tuple[int, bytes, int, list[Segment]]
"""Key of a content, its digest and length, and where it lies, by place in the content."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Clusters of a medium beside those of a version."""

    changed: Runs
    """What is to be taken from the medium differs there, or the version has nothing but zeros there."""
    gone: Runs
    """The version has data there, and nothing is taken from the medium."""
    backed: Runs
    """Where the version has data."""
    read_bytes: int


def compare(
    device: BlockDevice,
    wanted: Runs,
    lineage: Lineage,
    connections: list[Connections],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare the clusters ``wanted`` of a medium with a version; all others of the medium count as zeros.

    Raises :class:`~sqlimage.errors.FormatError` where the version's map contradicts itself or a content of it fails its
    digest, and :class:`~sqlimage.errors.DeviceError` where the medium cannot be read.
    """
    work = _Comparing(device, wanted, lineage, connections)
    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="compare")
    window: deque[Future[Int64s]] = deque()
    found: list[Int64s] = []
    total = wanted.total * work.unit

    def take_oldest() -> None:
        found.append(window.popleft().result())
        if progress:
            progress(min(work.read_bytes, total), total)

    try:
        for task in work.tasks():
            window.append(pool.submit(work.run, task))
            if len(window) > _TASKS_AHEAD:
                take_oldest()
        while window:
            take_oldest()
    finally:
        pool.shutdown(cancel_futures=True)
    clusters = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
    changed = Runs.from_arrays(clusters, np.ones(len(clusters), dtype=np.int64))
    return Comparison(changed, work.backed.subtract(wanted), work.backed, work.read_bytes)


class _Comparing:
    def __init__(self, device: BlockDevice, wanted: Runs, lineage: Lineage, connections: list[Connections]) -> None:
        self.unit = lineage.links[0].control.bytes_per_cluster
        self._device = device
        self._wanted = wanted
        self._lineage = lineage
        self._connections = connections
        self._local = threading.local()
        self.backed = Runs.empty()
        self.read_bytes = 0
        self._coming = iter(wanted)
        self._announced = 0
        """The cluster up to which the device was told what will be read."""

    def tasks(self) -> Iterator[list[Chunk] | Runs]:
        """The work: contents with their places, and then what the version has no data for."""
        for table in effective.pages(self._lineage, self._connections):
            keep = table.data > 0
            start, end = table.start[keep], table.end[keep] + 1
            self.backed = self.backed.union(Runs.from_arrays(start, end - start))
            yield from self._chunks(
                _within(self._wanted, start, end, table.data[keep], table.data_offset[keep], self.unit)
            )
        has_data = Runs.of(
            (e.offset_bytes, e.length_bytes) for e in self._device.extents(0, self._device.size_bytes) if e.is_data
        ).widen(self.unit)
        fresh = self._wanted.subtract(self.backed).intersect(
            Runs(has_data.start // self.unit, has_data.length // self.unit)
        )
        step = _TASK_BYTES // self.unit
        yield from _in_steps(fresh, step)

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
        known = self._known(key[first[:-1]].tolist())
        task: list[Chunk] = []
        held = 0
        bounds = list(pairwise(first.tolist()))
        for n in np.argsort(places, kind="stable").tolist():
            low, high = bounds[n]
            number = int(key[low])
            name, length = known[number]
            task.append(
                (number, name, length, list(zip(start[low:high], count[low:high], offset[low:high], strict=True)))
            )
            held += length
            if held >= _TASK_BYTES:
                self._announce(int(places[n]))
                yield task
                task, held = [], 0
        if task:
            yield task

    def _known(self, keys: list[int]) -> dict[int, tuple[bytes, int]]:
        """Digest and length of contents."""
        known: dict[int, tuple[bytes, int]] = {}
        by_file: dict[int, list[int]] = {}
        for key in keys:
            file, number = effective.key_of(key)
            by_file.setdefault(file, []).append(number)
        for file, numbers in by_file.items():
            database = self._connections[file].mine()
            for at in range(0, len(numbers), _MOST_ASKED):
                for number, name, length in database.rows(data.NAMES, [json.dumps(numbers[at : at + _MOST_ASKED])]):
                    known[effective.joined(file, number)] = (name, length)
            self._connections[file].check()
        missing = next((key for key in keys if key not in known), None)
        if missing is not None:
            number = effective.key_of(missing)[1]
            raise DamagedError(f"{self._lineage.files[0].path}: the map refers to data {number}, which is missing")
        return known

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

    def run(self, task: list[Chunk] | Runs) -> Int64s:
        """The clusters of a task that differ."""
        if isinstance(task, Runs):
            differing = [self._not_zero(start, count) for start, count in task]
        else:
            differing = [part for chunk in task for part in self._differing(chunk)]
        return np.concatenate(differing) if differing else np.empty(0, dtype=np.int64)

    def _not_zero(self, start: int, count: int) -> Int64s:
        content = self._read(start, count, self._buffer(count * self.unit))
        return np.flatnonzero(content.reshape(count, -1).any(axis=1)) + start

    def _differing(self, chunk: Chunk) -> Iterator[Int64s]:
        key, name, length, segments = chunk
        whole = self._gathered(length, segments)
        if whole is not None and digest(whole) == name:
            expected = whole
        elif whole is not None or segments:
            expected = memoryview(fetch(self._connections, effective.key_of(key)))
        is_same = whole is not None and expected is whole
        reached = 0
        for start, count, offset in segments:
            if offset + count * self.unit > len(expected):
                raise DamagedError(f"{self._lineage.files[0].path}: a map record reaches beyond its content")
            if is_same and offset == reached:  # it is what was digested
                reached += count * self.unit
                continue
            content = self._read(start, count, self._second(count * self.unit))
            wanted = np.frombuffer(expected, dtype=np.uint64, count=count * self.unit // 8, offset=offset)
            if not (content == wanted).all():
                yield np.flatnonzero((content != wanted).reshape(count, -1).any(axis=1)) + start

    def _gathered(self, length: int, segments: list[Segment]) -> memoryview | None:
        """The content as it lies on the medium, by the first place of each part of it; None where it is not whole."""
        reached = 0
        for _, count, offset in segments:
            if offset == reached:
                reached += count * self.unit
            elif offset + count * self.unit > reached:
                return None
        if reached != length:
            return None
        view = self._buffer(length)
        reached = 0
        for start, count, offset in segments:
            if offset == reached:
                self._read(start, count, view[reached : reached + count * self.unit])
                reached += count * self.unit
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
        self.read_bytes += length
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


def _within(wanted: Runs, start: Int64s, end: Int64s, key: Int64s, offset: Int64s, unit: int) -> MapTable:
    """The parts of map records (``end`` not included) that lie in ``wanted``."""
    if not len(wanted) or not len(start):
        none = np.empty(0, dtype=np.int64)
        return MapTable(none, none, none, none)
    first = np.searchsorted(wanted.end, start, side="right")
    last = np.searchsorted(wanted.start, end, side="left")
    parts = np.maximum(last - first, 0)
    row = np.repeat(np.arange(len(start)), parts)
    run = np.repeat(first - np.concatenate(([0], np.cumsum(parts)[:-1])), parts) + np.arange(len(row))
    low, high = np.maximum(start[row], wanted.start[run]), np.minimum(end[row], wanted.end[run])
    return MapTable(low, high - 1, key[row], offset[row] + (low - start[row]) * unit)


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
