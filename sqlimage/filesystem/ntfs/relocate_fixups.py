"""Changed bytes of a stream as fix-ups at their new places."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from sqlimage.extent import Int64s
from sqlimage.filesystem.content import ContentRuns
from sqlimage.filesystem.contract import Contents
from sqlimage.fixup import Fixup


def differences(old: bytes, new: bytes, place: int, reason: str) -> Iterator[Fixup]:
    """At most one fix-up: from the first to the last byte that differs. For new places ``old`` is zeros."""
    if old == new:
        return
    differ = np.flatnonzero(np.frombuffer(old, dtype=np.uint8) != np.frombuffer(new, dtype=np.uint8))
    first, end = int(differ[0]), int(differ[-1]) + 1
    yield Fixup(place + first, old[first:end], new[first:end], reason)


def differences_in(old: bytes, new: bytes, at: int, runs: ContentRuns, reason: str) -> Iterator[Fixup]:
    """As :func:`differences`, for bytes of a content from ``at`` on, which may lie in several runs."""
    if old == new:
        return
    done = 0
    for place, length in pieces(runs, at, len(old)):
        yield from differences(old[done : done + length], new[done : done + length], place, reason)
        done += length


def pieces(runs: ContentRuns, at: int, length: int) -> Iterator[tuple[int, int]]:
    """Where a range of a content without holes lies: places and lengths."""
    i = bisect_right(runs.at, at) - 1
    while length > 0:
        inside = at - runs.at[i]
        count = min(runs.length[i] - inside, length)
        yield runs.place[i] + inside, count
        at, length, i = at + count, length - count, i + 1


class RecordDifferences:
    """As :func:`differences_in`, for each of many records of the MFT, which will lie in ``runs``."""

    def __init__(self, runs: ContentRuns, bytes_per_record: int) -> None:
        self._run_at = np.array(runs.at, dtype=np.int64)
        self._run_place = np.array(runs.place, dtype=np.int64)
        self._size = bytes_per_record

    def fixups(self, old: bytes, new: bytes, first: int, reasons: dict[int, str]) -> Iterator[Fixup]:
        """Of the records from ``first`` on; ``reasons`` are those of all that differ."""
        differ = np.flatnonzero(np.frombuffer(old, dtype=np.uint8) != np.frombuffer(new, dtype=np.uint8))
        at = differ + first * self._size
        record, run = at // self._size, np.searchsorted(self._run_at, at, "right") - 1
        begin = np.flatnonzero((np.diff(record, prepend=-1) != 0) | (np.diff(run, prepend=-1) != 0))
        last = np.append(begin, len(differ))[1:] - 1
        place = (at - self._run_at[run] + self._run_place[run])[begin]
        columns = (column.tolist() for column in (place, differ[begin], differ[last] + 1, record[begin]))
        for offset, low, high, number in zip(*columns, strict=True):
            yield Fixup(offset, old[low:high], new[low:high], reasons[number])


def content_runs(contents: Contents, row: int) -> ContentRuns:
    """The runs of one content."""
    low, high = int(contents.first_run[row]), int(contents.first_run[row + 1])
    length = contents.run_length[low:high]
    at: Int64s = np.cumsum(length) - length
    return ContentRuns(at.tolist(), contents.run_offset[low:high].tolist(), length.tolist())
