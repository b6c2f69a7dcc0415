"""The image driver: a version of an image as a block device. A read becomes a look-up in the cluster map and a copy
out of decoded chunks."""

from __future__ import annotations

from collections.abc import Iterator

from sqlimage.device import Buffer, DeviceExtent, check_range
from sqlimage.errors import DamagedError, FormatError
from sqlimage.image.chunks import ChunkCache, Connections
from sqlimage.streams import cluster_map
from sqlimage.streams.cluster_map import MapRecord
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database

_EXTENTS_STEP = 1 << 16
"""Clusters looked up at a time when a map is walked."""


class ImageDriver:
    """The read side of one version. What no record maps reads as zeros.

    Reading raises :class:`~sqlimage.errors.DamagedError` where a content does not match its digest and
    :class:`~sqlimage.errors.FormatError` where the map contradicts itself; wrong bytes are never returned.
    """

    def __init__(self, database: Database, control: Control) -> None:
        if control.parent_uuid is not None:
            raise FormatError(
                f"{database.path}: version {control.version} needs its parent {control.parent_uuid}, "
                "which this release cannot follow"
            )
        self._path = database.path
        self._control = control
        self._unit = control.bytes_per_cluster
        cluster_map.check_disjoint(database, control.version)
        self._connections = Connections(database)
        self._chunks = ChunkCache(self._connections)

    @property
    def size_bytes(self) -> int:
        return self._control.medium_bytes

    @property
    def bytes_per_sector(self) -> int:
        return self._control.bytes_per_sector

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        check_range(offset_bytes, len(buffer), self.size_bytes, self._path)
        if not len(buffer):
            return
        view = memoryview(buffer)
        end, filled = offset_bytes + len(view), offset_bytes
        for record in self._records(offset_bytes // self._unit, (end - 1) // self._unit):
            if record.data is None:
                continue
            place = record.start_cluster * self._unit
            low, high = max(place, offset_bytes), min((record.end_cluster + 1) * self._unit, end)
            content = self._chunks.get(record.data)
            begin = record.data_offset + low - place
            if record.data_offset + (record.end_cluster + 1) * self._unit - place > len(content):
                raise DamagedError(f"{self._path}: a map record reaches beyond data {record.data}", data=record.data)
            _clear(view[filled - offset_bytes : low - offset_bytes])
            view[low - offset_bytes : high - offset_bytes] = memoryview(content)[begin : begin + high - low]
            filled = high
        _clear(view[filled - offset_bytes :])

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        check_range(offset_bytes, length_bytes, self.size_bytes, self._path)
        buffer = bytearray(length_bytes)
        self.read_into(offset_bytes, buffer)
        return bytes(buffer)

    def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
        """Mapped clusters are data; all others are known zeros."""
        check_range(offset_bytes, length_bytes, self.size_bytes, self._path)
        end, at = offset_bytes + length_bytes, offset_bytes
        for low, high in self._mapped(offset_bytes, end):
            if low > at:
                yield DeviceExtent(at, low - at, is_data=False)
            yield DeviceExtent(low, high - low, is_data=True)
            at = high
        if at < end:
            yield DeviceExtent(at, end - at, is_data=False)

    def _mapped(self, offset_bytes: int, end: int) -> Iterator[tuple[int, int]]:
        """Mapped stretches in bytes within the range, those that touch made one."""
        low = high = offset_bytes
        first, last = offset_bytes // self._unit, -(-end // self._unit)
        for step in range(first, last, _EXTENTS_STEP):
            for record in self._records(step, min(step + _EXTENTS_STEP, last) - 1):
                if record.data is None:
                    continue
                a = max(record.start_cluster * self._unit, high)
                b = min((record.end_cluster + 1) * self._unit, end)
                if a > high:
                    if high > low:
                        yield low, high
                    low = a
                high = max(high, b)
        if high > low:
            yield low, high

    def _records(self, first: int, last: int) -> list[MapRecord]:
        """The records that touch a range, checked: in order, disjoint, within the medium."""
        records = cluster_map.in_range(self._connections.mine(), self._control.version, first, last)
        at = -1
        for record in records:
            if record.start_cluster <= at or record.end_cluster < record.start_cluster:
                raise FormatError(f"{self._path}: cluster map records overlap at cluster {record.start_cluster}")
            at = record.end_cluster
        if at >= self._control.total_clusters:
            raise FormatError(f"{self._path}: the cluster map reaches to cluster {at}, beyond the medium")
        return records

    def close(self) -> None:
        self._connections.close()


def _clear(view: memoryview) -> None:
    if len(view):
        view[:] = bytes(len(view))
