"""Items of given sizes packed into gaps: in their order, or as few as possible torn."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np

from sqlimage.extent import Int64s, Runs

_GAPS_MAX = 1 << 14
"""With more gaps than this, looking for the best one costs more than it is worth."""
_NOWHERE = -1


class Packed(NamedTuple):
    """Pieces of items: of which one, from where in it, and where it lies."""

    item: Int64s
    inside: Int64s
    place: Int64s


def pack(gaps: Runs, size: Int64s, first: int) -> Packed | None:
    """Every item in one piece and in their order; if the gaps do not take them so, only the ``first`` ones keep their
    order, and items that no gap takes are torn.

    None where all gaps together are too small.
    """
    if int(size.sum()) > gaps.total:
        return None
    place = _in_order(gaps, size)
    if place is not None:
        return _whole(place)
    kept = _in_order(gaps, size[:first])
    if kept is None:
        first, kept = 0, size[:0]
    left = gaps.subtract(Runs.from_arrays(kept, size[:first]))
    place = np.append(kept, np.full(len(size) - first, _NOWHERE))
    if len(left) <= _GAPS_MAX:
        left = _best_first(left, size, place)
    lying = _whole(place)
    torn = np.flatnonzero(place == _NOWHERE)
    flowing = _flow(left, size[torn])
    there = np.flatnonzero(place != _NOWHERE)
    return Packed(
        np.concatenate((there, torn[flowing.item])),
        np.concatenate((lying.inside[there], flowing.inside)),
        np.concatenate((place[there], flowing.place)),
    )


def _whole(place: Int64s) -> Packed:
    return Packed(np.arange(len(place)), np.zeros_like(place), place)


def _in_order(gaps: Runs, size: Int64s) -> Int64s | None:
    """Places where each item lies behind the one before it, in the first gap that has room for it."""
    behind = np.cumsum(size)
    ahead = behind - size
    place = np.zeros_like(size)
    done = 0
    for start, length in gaps:
        if done == len(size):
            break
        before = int(ahead[done])
        end = int(np.searchsorted(behind, before + length, "right"))
        place[done:end] = start + ahead[done:end] - before
        done = end
    return place if done == len(size) else None


def _best_first(gaps: Runs, size: Int64s, place: Int64s) -> Runs:
    """Give items that have no place one, the largest first, each in the smallest gap that takes it; what is left."""
    left = sorted((length, start) for start, length in gaps)
    waiting = np.flatnonzero(place == _NOWHERE)
    for i in waiting[np.argsort(-size[waiting], kind="stable")].tolist():
        wanted = int(size[i])
        at = bisect_left(left, (wanted, 0))
        if at < len(left):
            room, start = left.pop(at)
            place[i] = start
            if room > wanted:
                insort(left, (room - wanted, start + wanted))
    return Runs.of((start, length) for length, start in left)


def _flow(gaps: Runs, size: Int64s) -> Packed:
    """Items through the gaps as if these were one."""
    if len(size) == 0:
        return _whole(size)
    ahead = np.cumsum(size) - size
    gap_at = np.cumsum(gaps.length) - gaps.length
    starts = np.union1d(ahead, gap_at[gap_at < int(size.sum())])
    item = np.searchsorted(ahead, starts, "right") - 1
    gap = np.searchsorted(gap_at, starts, "right") - 1
    return Packed(item, starts - ahead[item], gaps.start[gap] + starts - gap_at[gap])
