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


def content_runs(contents: Contents, row: int) -> ContentRuns:
    """The runs of one content."""
    low, high = int(contents.first_run[row]), int(contents.first_run[row + 1])
    length = contents.run_length[low:high]
    at: Int64s = np.cumsum(length) - length
    return ContentRuns(at.tolist(), contents.run_offset[low:high].tolist(), length.tolist())
