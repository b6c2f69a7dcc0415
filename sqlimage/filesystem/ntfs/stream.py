"""The bytes of a stream: where its clusters lie, and its content read by position."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from threading import Lock

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.contract import HOLE
from sqlimage.filesystem.ntfs.lznt1 import Lznt1Error, decompress

_UNITS_KEPT = 8


class ClusterRuns:
    """Runs of a stream in bytes, gapless from its start: ``at[i]`` is where run i starts in the stream,
    ``place[i]`` where it lies on the volume or ``HOLE``, ``length[i]`` how long it is."""

    __slots__ = ("at", "length", "place")

    def __init__(self, at: list[int], place: list[int], length: list[int]) -> None:
        self.at, self.place, self.length = at, place, length

    @property
    def end(self) -> int:
        return self.at[-1] + self.length[-1] if self.at else 0

    def append(self, lcn: int, clusters: int, bytes_per_cluster: int) -> None:
        """Add a run counted in clusters."""
        self.at.append(self.end)
        self.place.append(HOLE if lcn == HOLE else lcn * bytes_per_cluster)
        self.length.append(clusters * bytes_per_cluster)

    def read_into(self, device: BlockDevice, offset_bytes: int, view: memoryview) -> None:
        """Fill ``view`` from the stream; holes read as zeros. The range must lie within the runs."""
        done = 0
        i = bisect_right(self.at, offset_bytes) - 1
        while done < len(view):
            inside = offset_bytes + done - self.at[i]
            count = min(self.length[i] - inside, len(view) - done)
            if self.place[i] == HOLE:
                view[done : done + count] = bytes(count)
            else:
                device.read_into(self.place[i] + inside, view[done : done + count])
            done += count
            i += 1

    def clusters_of(self, offset_bytes: int, length_bytes: int) -> tuple[int, bool]:
        """How many bytes at the start of a range are backed, and whether anything behind them is too."""
        i = bisect_right(self.at, offset_bytes) - 1
        end = offset_bytes + length_bytes
        backed, in_hole, more = 0, False, False
        while i < len(self.at) and self.at[i] < end:
            count = min(self.at[i] + self.length[i], end) - max(self.at[i], offset_bytes)
            if self.place[i] == HOLE:
                in_hole = True
            elif in_hole:
                more = True
            else:
                backed += count
            i += 1
        return backed, more


class InlineContent:
    """A resident attribute's value."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    @property
    def size_bytes(self) -> int:
        return len(self._value)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        return self._value[max(offset_bytes, 0) : max(offset_bytes, 0) + max(length_bytes, 0)]


class ClusterContent:
    """A stream held by clusters, read as it lies; beyond ``valid_bytes`` it reads as zeros."""

    def __init__(self, device: BlockDevice, runs: ClusterRuns, size_bytes: int, valid_bytes: int) -> None:
        self._device = device
        self._runs = runs
        self._size_bytes = size_bytes
        self._valid_bytes = valid_bytes

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        offset = max(offset_bytes, 0)
        length = max(min(length_bytes, self._size_bytes - offset), 0)
        data = bytearray(length)
        valid = max(min(self._valid_bytes - offset, length), 0)
        if valid:
            self._fill(offset, memoryview(data)[:valid])
        return bytes(data)

    def _fill(self, offset: int, view: memoryview) -> None:
        self._runs.read_into(self._device, offset, view)


class CompressedContent(ClusterContent):
    """A stream of LZNT1 compression units. A unit without holes is stored as it is, one without clusters is zeros,
    any other starts with its compressed form. Keeps the last units read; safe from any thread."""

    def __init__(
        self, device: BlockDevice, runs: ClusterRuns, size_bytes: int, valid_bytes: int, unit_bytes: int
    ) -> None:
        super().__init__(device, runs, size_bytes, valid_bytes)
        self._unit_bytes = unit_bytes
        self._units: OrderedDict[int, bytes] = OrderedDict()
        self._lock = Lock()

    def _fill(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            number, inside = divmod(offset + done, self._unit_bytes)
            count = min(self._unit_bytes - inside, len(view) - done)
            view[done : done + count] = self._unit(number)[inside : inside + count]
            done += count

    def _unit(self, number: int) -> bytes:
        with self._lock:
            if number in self._units:
                self._units.move_to_end(number)
                return self._units[number]
        data = self._decompressed(number)
        with self._lock:
            self._units[number] = data
            while len(self._units) > _UNITS_KEPT:
                self._units.popitem(last=False)
        return data

    def _decompressed(self, number: int) -> bytes:
        at = number * self._unit_bytes
        size = min(self._unit_bytes, self._runs.end - at)
        backed, more = self._runs.clusters_of(at, size)
        where = f"compression unit {number}"
        if more:
            raise InconsistentVolume(where, "has clusters behind a hole")
        data = bytearray(backed)
        self._runs.read_into(self._device, at, memoryview(data))
        if backed in (0, size):
            return bytes(data) + bytes(self._unit_bytes - backed)
        try:
            return decompress(bytes(data), self._unit_bytes)
        except Lznt1Error as error:
            raise InconsistentVolume(where, str(error)) from None
