"""The bytes of a stream: where its clusters lie, and those that are compressed."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from threading import Lock

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.content import ContentRuns, RunContent
from sqlimage.filesystem.contract import HOLE
from sqlimage.filesystem.ntfs.lznt1 import Lznt1Error, decompress

_UNITS_KEPT = 8


class ClusterRuns(ContentRuns):
    """Runs of a stream, which are told in clusters."""

    __slots__ = ()

    def append(self, lcn: int, clusters: int, bytes_per_cluster: int) -> None:
        """Add a run counted in clusters."""
        self.at.append(self.end)
        self.place.append(HOLE if lcn == HOLE else lcn * bytes_per_cluster)
        self.length.append(clusters * bytes_per_cluster)

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


class CompressedContent(RunContent):
    """A stream of LZNT1 compression units. A unit without holes is stored as it is, one without clusters is zeros,
    any other starts with its compressed form. Keeps the last units read; safe from any thread."""

    def __init__(
        self, device: BlockDevice, runs: ClusterRuns, size_bytes: int, valid_bytes: int, unit_bytes: int
    ) -> None:
        super().__init__(device, runs, size_bytes, valid_bytes)
        self._cluster_runs = runs
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
        backed, more = self._cluster_runs.clusters_of(at, size)
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
