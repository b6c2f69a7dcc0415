"""The image driver: a version of an image as a block device. A read becomes a look-up in the flattened cluster map of
the version's lineage and a copy out of decoded chunks."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from sqlimage.device import Buffer, DeviceExtent, check_range
from sqlimage.errors import DamagedError
from sqlimage.image.chunks import SMALL, Cache, ChunkCache, connect
from sqlimage.image.flatmap import WINDOW_CLUSTERS, FlatMap
from sqlimage.image.keys import Key
from sqlimage.image.lineage import resolve
from sqlimage.streams.arrangement import Rearranged
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.units import MIB

_AHEAD_BYTES = 4 * MIB
"""How far a sequence of reads is run ahead of."""

Place = tuple[int, int, Key, int]
"""Where bytes come from: first byte and byte after the last, on the medium; a chunk; the place of the first in it."""


class _Look:
    """What is known of a lineage as its files were arranged at one time."""

    def __init__(self, database: Database, control: Control, search: Sequence[str], cache: Cache) -> None:
        self._database = database.reader()
        try:
            self.lineage = resolve(self._database, control, search)
        except BaseException:
            self._database.close()
            raise
        self.connections = connect(self.lineage)
        self.map = FlatMap(self.lineage, self.connections)
        self.chunks = ChunkCache(self.connections, cache)

    def close(self) -> None:
        self.chunks.close()
        for connections in self.connections:
            connections.close()
        self.lineage.close()
        self._database.close()

    def __del__(self) -> None:
        if hasattr(self, "chunks"):
            with suppress(Exception):  # what a thread is still reading through goes when that thread ends
                self.close()


class ImageDriver:
    """The read side of one version. What no record maps reads as zeros.

    ``cache`` bounds the decoded chunks that are kept; ``search`` are directories in which parents are looked for.
    Reading raises :class:`~sqlimage.errors.DamagedError` where a content does not match its digest and
    :class:`~sqlimage.errors.FormatError` where the map contradicts itself; wrong bytes are never returned.
    """

    def __init__(
        self,
        database: Database,
        control: Control,
        *,
        search: Sequence[str] = (),
        cache: Cache = SMALL,
    ) -> None:
        self._path = database.path
        self._control = control
        self._unit = control.bytes_per_cluster
        self._origin = database
        self._search = search
        self._cache = cache
        self._look = _Look(database, control, search, cache)
        self._looking = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._next_bytes = -1
        """Where a read would begin that goes on where the last one ended."""
        self._ahead_bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._control.medium_bytes

    @property
    def bytes_per_sector(self) -> int:
        return self._control.bytes_per_sector

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        check_range(offset_bytes, len(buffer), self.size_bytes, self._path)
        if len(buffer):
            view = memoryview(buffer)
            look = self._look
            while True:
                try:
                    places = self._places(look, offset_bytes, offset_bytes + len(view))
                    self._run_ahead(look, offset_bytes, len(view), places)
                    self._fill(look, offset_bytes, view, places)
                    return
                except Rearranged:
                    look = self._look_again(look)

    def _look_again(self, stale: _Look) -> _Look:
        """After somebody rearranged a file of the lineage: the same version, wherever its contents are now.

        Raises :class:`~sqlimage.errors.NotFoundError` where it was removed.
        """
        with self._looking:
            if self._look is stale:
                # The old one goes with the last thread that reads through it.
                self._look = _Look(self._origin, self._control, self._search, self._cache)
            return self._look

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        check_range(offset_bytes, length_bytes, self.size_bytes, self._path)
        buffer = bytearray(length_bytes)
        self.read_into(offset_bytes, buffer)
        return bytes(buffer)

    def is_ready(self, offset_bytes: int, length_bytes: int) -> bool:
        """Whether a read would find everything it needs decoded."""
        look = self._look
        end = offset_bytes + length_bytes
        first, last = offset_bytes // self._unit, (end - 1) // self._unit
        for number in range(first // WINDOW_CLUSTERS, last // WINDOW_CLUSTERS + 1):
            window = look.map.cached(number)
            if window is None:
                return False
            for row in window.touching(first, last):
                if not look.chunks.peek((window.file[row], window.data[row])):
                    return False
        return True

    def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
        """Mapped clusters are data; all others are known zeros."""
        check_range(offset_bytes, length_bytes, self.size_bytes, self._path)
        end, at = offset_bytes + length_bytes, offset_bytes
        if not length_bytes:
            return
        low = high = offset_bytes
        for first, after in self._mapped(offset_bytes // self._unit, (end - 1) // self._unit):
            a, b = max(first * self._unit, offset_bytes), min(after * self._unit, end)
            if a > high:
                if high > low:
                    yield from _data(at, low, high)
                    at = high
                low = a
            high = max(high, b)
        if high > low:
            yield from _data(at, low, high)
            at = high
        if at < end:
            yield DeviceExtent(at, end - at, is_data=False)

    def _mapped(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        look, at = self._look, first
        while True:
            try:
                for start, after in look.map.mapped(at, last):
                    yield start, after
                    at = after
                return
            except Rearranged:
                look = self._look_again(look)

    def _places(self, look: _Look, begin: int, end: int) -> list[Place]:
        """Where the bytes ``begin .. end`` of the medium come from; what is not listed reads as zeros."""
        unit, places = self._unit, []
        first, last = begin // unit, (end - 1) // unit
        for number in range(first // WINDOW_CLUSTERS, last // WINDOW_CLUSTERS + 1):
            window = look.map.cached(number) or look.map.window(number)
            for row in window.touching(first, last):
                start = window.start[row] * unit
                low = start if start > begin else begin
                high = window.end[row] * unit
                if high > end:
                    high = end
                key = (window.file[row], window.data[row])
                places.append((low, high, key, window.offset[row] + low - start))
        return places

    def _fill(self, look: _Look, begin: int, view: memoryview, places: list[Place]) -> None:
        filled = 0
        for low, high, key, at in places:
            low, high = low - begin, high - begin
            if low > filled:
                view[filled:low] = bytes(low - filled)
            if not look.chunks.copy(key, at, view[low:high]):
                raise DamagedError(f"{self._path}: a map record reaches beyond data {key[1]}", data=key[1])
            filled = high
        if filled < len(view):
            view[filled:] = bytes(len(view) - filled)

    def _run_ahead(self, look: _Look, offset: int, length: int, places: list[Place]) -> None:
        """Have the chunks of a long read decoded side by side, and of a sequence of reads before they are asked for."""
        follows, self._next_bytes = offset == self._next_bytes, offset + length
        if not follows:
            self._ahead_bytes = 0
            if len({place[2] for place in places}) > 1:
                look.chunks.begin((place[2] for place in places[1:]), self._workers())
            return
        begin = max(self._ahead_bytes, offset)
        if begin - offset > _AHEAD_BYTES // 2:
            return
        self._ahead_bytes = min(offset + length + _AHEAD_BYTES, self.size_bytes)
        if begin < self._ahead_bytes:
            keys = dict.fromkeys(place[2] for place in self._places(look, begin, self._ahead_bytes))
            look.chunks.begin(keys, self._workers())

    def _workers(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")
        return self._pool

    def close(self) -> None:
        for connections in self._look.connections:
            connections.is_closing = True
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        self._look.close()


def _data(at: int, low: int, high: int) -> Iterator[DeviceExtent]:
    """A stretch of data, and the zeros before it from ``at`` on."""
    if low > at:
        yield DeviceExtent(at, low - at, is_data=False)
    yield DeviceExtent(low, high - low, is_data=True)
