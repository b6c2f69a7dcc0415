"""Where clusters go: units of a length each into the gaps, in order, as little broken up as can be. Clusters only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sqlimage.extent import Int64s, Runs

CAREFUL_GAPS = 256
"""So many gaps, the largest, are filled by whole units; also an order among some hundred bad clusters costs little."""
WINDOW = 1 << 16
"""So many of the waiting units are looked at together."""
MISFITS = 32
"""So often a gap's rest is offered to the units that come after one that does not fit."""


class Overlap(NamedTuple):
    """Two sequences of lengths, laid one over the other and cut wherever either has a border."""

    a: Int64s
    """Which piece of the first sequence each part belongs to."""
    into_a: Int64s
    """How far into that piece it begins."""
    b: Int64s
    into_b: Int64s
    length: Int64s


def overlap(a: Int64s, b: Int64s) -> Overlap:
    """As far as the first sequence reaches; the second is at least as long."""
    end_a, end_b = np.cumsum(a), np.cumsum(b)
    reach = int(end_a[-1]) if len(a) else 0
    borders = np.sort(np.concatenate((end_a, end_b[end_b < reach])), kind="stable")  # merges: both are sorted
    borders = borders[np.diff(borders, prepend=0) > 0]
    start = np.concatenate((np.zeros(1, dtype=np.int64), borders[:-1])) if len(borders) else borders
    of_a, of_b = np.searchsorted(end_a, start, side="right"), np.searchsorted(end_b, start, side="right")
    return Overlap(of_a, start - (end_a - a)[of_a], of_b, start - (end_b - b)[of_b], borders - start)


class Stretches(NamedTuple):
    """Where units lie: by unit, and within one in its order."""

    unit: Int64s
    start: Int64s
    length: Int64s


def place(size: Int64s, gaps: Runs) -> Stretches:
    """Put units of these sizes into the gaps, which have room for all together.

    Each lies whole in the first of the large gaps that has room when its turn comes; only what fits in none is cut.
    """
    waiting = np.flatnonzero(size > 0)
    used = np.zeros(len(gaps), dtype=np.int64)
    units, starts = [waiting[:0]], [waiting[:0]]
    for gap in np.sort(np.argsort(-gaps.length, kind="stable")[:CAREFUL_GAPS]).tolist():
        at, end = int(gaps.start[gap]), int(gaps.start[gap] + gaps.length[gap])
        misfits = 0
        while len(waiting) and misfits < MISFITS:
            fits = np.flatnonzero(size[waiting[:WINDOW]] <= end - at)
            reach = np.cumsum(size[waiting[fits]])
            taken = int(np.searchsorted(reach, end - at, side="right"))
            if taken == 0:
                break
            misfits += taken < min(len(waiting), WINDOW)
            unit = waiting[fits[:taken]]
            units.append(unit)
            starts.append(at + reach[:taken] - size[unit])
            at += int(reach[taken - 1])
            waiting = np.delete(waiting, fits[:taken])
        used[gap] = at - gaps.start[gap]
    whole = np.concatenate(units)
    cut = _fill(waiting, size[waiting], gaps.start + used, gaps.length - used)
    unit = np.concatenate((whole, cut.unit))
    order = np.argsort(unit, kind="stable")
    start, length = np.concatenate((*starts, cut.start)), np.concatenate((size[whole], cut.length))
    return Stretches(unit[order], start[order], length[order])


def _fill(unit: Int64s, size: Int64s, start: Int64s, room: Int64s) -> Stretches:
    """Lay units one after the other into as few places as hold them, cutting at their ends."""
    largest = np.argsort(-room, kind="stable")
    enough = int(np.searchsorted(np.cumsum(room[largest]), size.sum())) + 1
    chosen = np.sort(largest[:enough])
    parts = overlap(size, room[chosen])
    return Stretches(unit[parts.a], start[chosen[parts.b]] + parts.into_b, parts.length)
