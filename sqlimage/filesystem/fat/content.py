"""The bytes of one file, read by position from where its clusters lie."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable

from sqlimage.device import BlockDevice


class FatContent:
    """A file over runs (offset, length) in bytes of the volume.

    ``size_bytes`` is at most what the runs hold, or None for all of it. The runs are kept in packed arrays: a hostile
    chain can have millions.
    """

    def __init__(self, device: BlockDevice, runs: Iterable[tuple[int, int]], size_bytes: int | None = None) -> None:
        self._device = device
        self._offsets = array("q")
        self._begins = array("q")
        """Place in the file at which each run begins."""
        at, run_end = 0, -1
        for offset, length in runs:
            if offset != run_end:
                self._offsets.append(offset)
                self._begins.append(at)
            at, run_end = at + length, offset + length
        self._held_bytes = at
        self._size_bytes = at if size_bytes is None else size_bytes

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        at, end = max(offset_bytes, 0), min(offset_bytes + length_bytes, self._size_bytes)
        parts = []
        run = bisect_right(self._begins, at) - 1
        while at < end:
            run_end = self._begins[run + 1] if run + 1 < len(self._begins) else self._held_bytes
            count = min(run_end, end) - at
            parts.append(self._device.read(self._offsets[run] + at - self._begins[run], count))
            at += count
            run += 1
        return b"".join(parts)
