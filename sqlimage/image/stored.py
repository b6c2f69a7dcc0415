"""What a version holds, read before it is published: a cluster map and whoever fetches its chunks, as a device."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np

from sqlimage.device import Buffer, DeviceExtent, check_range
from sqlimage.errors import DamagedError
from sqlimage.extent import Int64s
from sqlimage.streams.cluster_map import MapTable
from sqlimage.units import MIB, SECTOR_BYTES

Fetch = Callable[[int], bytes]
"""The content of a chunk, decoded and verified, by what the map calls it; from any thread."""
_HELD_BYTES = 48 * MIB


class StoredDevice:
    """The read side of a flattened map, all of which is in memory. What no record maps reads as zeros."""

    def __init__(
        self, table: MapTable, bytes_per_cluster: int, fetch: Fetch, offset_bytes: int, length_bytes: int
    ) -> None:
        """``offset_bytes`` and ``length_bytes`` tell which part of the medium the device is."""
        start, end = table.start * bytes_per_cluster - offset_bytes, (table.end + 1) * bytes_per_cluster - offset_bytes
        here = (table.data > 0) & (end > 0) & (start < length_bytes)
        self._rank_end, self._rank = end[here], table.data[here]
        self._start, self._end, self._data, self._offset = (
            array("q", column[here].tobytes()) for column in (start, end, table.data, table.data_offset)
        )
        self._size_bytes = length_bytes
        self._fetch = fetch
        self._held: OrderedDict[int, bytes] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def bytes_per_sector(self) -> int:
        return SECTOR_BYTES

    def rank(self, place: Int64s) -> Int64s:
        """A number for each place (bytes): in the order of these numbers every chunk is decoded once."""
        if not len(self._rank):
            return np.zeros(len(place), dtype=np.int64)
        row = np.minimum(np.searchsorted(self._rank_end, place, side="right"), len(self._rank) - 1)
        return self._rank[row]

    def view(self, offset_bytes: int, length_bytes: int) -> memoryview | None:
        """A range as it lies in one decoded chunk, without a copy; None where it does not lie in one."""
        row = bisect_right(self._end, offset_bytes)
        if row == len(self._end):
            return None
        into = offset_bytes - self._start[row]
        if into < 0 or offset_bytes + length_bytes > self._end[row]:
            return None
        return self._cut(row, into, length_bytes)

    def _cut(self, row: int, into: int, length: int) -> memoryview:
        content, at = self._content(self._data[row]), self._offset[row] + into
        if at + length > len(content):
            raise DamagedError(f"a map record reaches beyond data {self._data[row]}", data=self._data[row])
        return memoryview(content)[at : at + length]

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        check_range(offset_bytes, len(buffer), self._size_bytes, "stored version")
        view = memoryview(buffer)
        end, filled = offset_bytes + len(view), 0
        row = bisect_right(self._end, offset_bytes)
        while row < len(self._start) and self._start[row] < end:
            start = self._start[row]
            low, high = max(start, offset_bytes), min(self._end[row], end)
            at = low - offset_bytes
            if at > filled:
                view[filled:at] = bytes(at - filled)
            filled = high - offset_bytes
            view[at:filled] = self._cut(row, low - start, high - low)
            row += 1
        if filled < len(view):
            view[filled:] = bytes(len(view) - filled)

    def _content(self, number: int) -> bytes:
        with self._lock:
            content = self._held.get(number)
            if content is not None:
                self._held.move_to_end(number)
                return content
        content = self._fetch(number)
        with self._lock:
            if number not in self._held:
                self._held[number] = content
                self._held_bytes += len(content)
                while self._held_bytes > _HELD_BYTES and len(self._held) > 1:
                    self._held_bytes -= len(self._held.popitem(last=False)[1])
        return content

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        check_range(offset_bytes, length_bytes, self._size_bytes, "stored version")
        buffer = bytearray(length_bytes)
        self.read_into(offset_bytes, buffer)
        return bytes(buffer)

    def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
        check_range(offset_bytes, length_bytes, self._size_bytes, "stored version")
        if length_bytes:
            yield DeviceExtent(offset_bytes, length_bytes, is_data=True)

    def close(self) -> None:
        self._held.clear()
