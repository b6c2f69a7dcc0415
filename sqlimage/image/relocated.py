"""A medium as it is to be: every read comes from where the bytes lie now, with the fix-ups applied on the way."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from sqlimage.device import BlockDevice, Buffer, DeviceExtent, Prefetching, check_range
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.fixup import Fixup
from sqlimage.moves import Moves


class RelocatedDevice:
    """The read side of a medium laid out anew. What no move and no fix-up names reads as zeros.

    A fix-up is applied only over the very bytes it expects: reading raises
    :class:`~sqlimage.errors.InconsistentVolume` where others are found. Closing it leaves the medium open.
    """

    def __init__(self, device: BlockDevice, size_bytes: int, moves: Moves, fixups: Sequence[Fixup]) -> None:
        """``fixups`` are sorted and disjoint."""
        self._device = device
        self._size_bytes = size_bytes
        self._moves = moves
        self._new, self._old, self._length = moves.new.tolist(), moves.old.tolist(), moves.length.tolist()
        self._fixups = fixups
        self._fixup_start = [fixup.offset_bytes for fixup in fixups]
        self._fixup_end = [fixup.offset_bytes + len(fixup.original) for fixup in fixups]
        lengths = np.array([len(fixup.original) for fixup in fixups], dtype=np.int64)
        self._turn = [0, *np.cumsum(lengths).tolist()]
        self._applied = bytearray(self._turn[-1])
        """A byte for each byte of a fix-up: 1 once it was read."""
        self._data: Runs | None = None

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def bytes_per_sector(self) -> int:
        return self._device.bytes_per_sector

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        check_range(offset_bytes, len(buffer), self._size_bytes, "relocated medium")
        view = memoryview(buffer)
        end, filled = offset_bytes + len(view), 0
        row = max(bisect_right(self._new, offset_bytes) - 1, 0)
        while row < len(self._new) and self._new[row] < end:
            new, length = self._new[row], self._length[row]
            low, high = max(new, offset_bytes), min(new + length, end)
            if low < high:
                at = low - offset_bytes
                if at > filled:
                    view[filled:at] = bytes(at - filled)
                filled = high - offset_bytes
                self._device.read_into(self._old[row] + low - new, view[at:filled])
            row += 1
        if filled < len(view):
            view[filled:] = bytes(len(view) - filled)
        self._fix(offset_bytes, view)

    def _fix(self, offset: int, view: memoryview) -> None:
        """Apply what of the fix-ups lies in a buffer that was read at ``offset``."""
        end = offset + len(view)
        for n in range(bisect_right(self._fixup_end, offset), bisect_left(self._fixup_start, end)):
            start, after = self._fixup_start[n], self._fixup_end[n]
            low, high = max(start, offset), min(after, end)
            _, original, replacement, reason = self._fixups[n]
            if view[low - offset : high - offset] != original[low - start : high - start]:
                raise InconsistentVolume(
                    "fix-up", f"{reason}: the bytes to be replaced are not what was planned with", offset_bytes=low
                )
            view[low - offset : high - offset] = replacement[low - start : high - start]
            turn = self._turn[n] - start
            self._applied[turn + low : turn + high] = b"\1" * (high - low)

    def check_applied(self) -> None:
        """Raise :class:`~sqlimage.errors.InconsistentVolume` unless every byte of every fix-up was read."""
        first = self._applied.find(0)
        if first >= 0:
            fixup = self._fixups[bisect_right(self._turn, first) - 1]
            raise InconsistentVolume("fix-up", f"{fixup.reason}: was not applied", offset_bytes=fixup.offset_bytes)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        check_range(offset_bytes, length_bytes, self._size_bytes, "relocated medium")
        buffer = bytearray(length_bytes)
        self.read_into(offset_bytes, buffer)
        return bytes(buffer)

    def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
        check_range(offset_bytes, length_bytes, self._size_bytes, "relocated medium")
        if self._data is None:
            self._data = self._find_data()
        at, end = offset_bytes, offset_bytes + length_bytes
        for start, length in self._data.clip(offset_bytes, end):
            if start > at:
                yield DeviceExtent(at, start - at, is_data=False)
            yield DeviceExtent(start, length, is_data=True)
            at = start + length
        if at < end:
            yield DeviceExtent(at, end - at, is_data=False)

    def _find_data(self) -> Runs:
        extents = self._device.extents(0, self._device.size_bytes)
        there = Runs.of((extent.offset_bytes, extent.length_bytes) for extent in extents if extent.is_data)
        fixed = Runs.of(zip(self._fixup_start, map(len, (fixup.original for fixup in self._fixups)), strict=True))
        return self._moves.carry(there).union(fixed)

    def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        if isinstance(self._device, Prefetching):
            one = np.array([[offset_bytes], [length_bytes]], dtype=np.int64)
            met, old = self._moves.come(one[0], one[1])
            for place, length in zip(old.tolist(), met.length.tolist(), strict=True):
                self._device.prefetch(place, length)

    def close(self) -> None:
        """The medium belongs to whoever opened it."""
