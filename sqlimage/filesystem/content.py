"""The bytes of a content: where its runs lie, and read by position."""

from __future__ import annotations

from bisect import bisect_right

from sqlimage.device import BlockDevice
from sqlimage.filesystem.contract import HOLE, Content

__all__ = ["Content", "ContentRuns", "InlineContent", "RunContent"]


class ContentRuns:
    """Runs of a content in bytes, gapless from its start: ``at[i]`` is where run i starts in it,
    ``place[i]`` where it lies on the volume or ``HOLE``, ``length[i]`` how long it is."""

    __slots__ = ("at", "length", "place")

    def __init__(self, at: list[int], place: list[int], length: list[int]) -> None:
        self.at, self.place, self.length = at, place, length

    @property
    def end(self) -> int:
        return self.at[-1] + self.length[-1] if self.at else 0

    def read_into(self, device: BlockDevice, offset_bytes: int, view: memoryview) -> None:
        """Fill ``view`` from the content; holes read as zeros. The range must lie within the runs."""
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


class InlineContent:
    """Bytes that lie inside control information."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    @property
    def size_bytes(self) -> int:
        return len(self._value)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        return self._value[max(offset_bytes, 0) : max(offset_bytes, 0) + max(length_bytes, 0)]


class RunContent:
    """A content read as it lies; beyond ``valid_bytes`` it reads as zeros."""

    def __init__(self, device: BlockDevice, runs: ContentRuns, size_bytes: int, valid_bytes: int) -> None:
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
