"""Places that are taken, and whether new ones meet them."""

from __future__ import annotations

import numpy as np

from sqlimage.extent import Int64s


class Places:
    """Disjoint runs, kept in sorted arrays of growing sizes: many small additions cost little more than a large one."""

    def __init__(self) -> None:
        self._sorted: list[tuple[Int64s, Int64s]] = []
        """(start, end) each."""

    def add(self, start: Int64s, length: Int64s) -> int | None:
        """Take runs, none of them empty. The index of one that meets another one, or None: then all are taken."""
        if len(start) == 0:
            return None
        order = np.argsort(start, kind="stable")
        low = start[order]
        high = low + length[order]
        met = np.flatnonzero(low[1:] < np.maximum.accumulate(high)[:-1])
        if len(met):
            return int(order[met[0] + 1])
        for taken_low, taken_high in self._sorted:
            nearest = np.searchsorted(taken_high, low, side="right")
            known = nearest < len(taken_low)
            known[known] = taken_low[nearest[known]] < high[known]
            if known.any():
                return int(order[int(known.argmax())])
        while self._sorted and len(self._sorted[-1][0]) <= 2 * len(low):
            other_low, other_high = self._sorted.pop()
            low, high = np.concatenate((other_low, low)), np.concatenate((other_high, high))
            order = np.argsort(low, kind="stable")
            low, high = low[order], high[order]
        self._sorted.append((low, high))
        return None
