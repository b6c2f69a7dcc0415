"""What lies where after a volume or a disk was laid out anew: pure data, in bytes, and the questions asked of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sqlimage.extent import Int64s, Overlap, Runs, overlaps


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """Old places, new places and lengths of everything that is kept, moved or not: sorted by new place, disjoint in
    both; what follows its neighbour in both is one move."""

    old: Int64s
    new: Int64s
    length: Int64s

    @classmethod
    def of(cls, old: Int64s, new: Int64s, length: Int64s) -> Moves:
        """From arrays in any order, disjoint in both places; empty ones vanish."""
        keep = length > 0
        order = np.argsort(new[keep], kind="stable")
        old, new, length = (column[keep][order] for column in (old, new, length))
        if not len(new):
            return cls(old, new, length)
        first = np.ones(len(new), dtype=np.bool_)
        first[1:] = (new[1:] != (new + length)[:-1]) | (old[1:] != (old + length)[:-1])
        begin = np.flatnonzero(first)
        end = np.concatenate((begin[1:], [len(new)])) - 1
        return cls(old[begin], new[begin], (new + length)[end] - new[begin])

    @classmethod
    def of_runs(cls, runs: Runs, by: int = 0) -> Moves:
        """Runs that all move by the same distance; 0: they stay."""
        return cls(runs.start, runs.start + by, runs.length)

    @classmethod
    def joined(cls, parts: Iterable[Moves]) -> Moves:
        """Several together, disjoint in both places."""
        columns = [(part.old, part.new, part.length) for part in (*parts, cls.of_runs(Runs.empty()))]
        return cls.of(*(np.concatenate(column) for column in zip(*columns, strict=True)))

    def __len__(self) -> int:
        return len(self.new)

    @property
    def moved_bytes(self) -> int:
        """How much does not stay where it is."""
        return int(self.length[self.old != self.new].sum())

    def shift(self, old_by: int, new_by: int) -> Moves:
        """The same on a device on which the old volume begins ``old_by`` bytes later, and the new one ``new_by``."""
        return Moves(self.old + old_by, self.new + new_by, self.length)

    def by_old(self) -> Moves:
        """Sorted by old place instead, as :meth:`leave` wants it."""
        order = np.argsort(self.old, kind="stable")
        return Moves(self.old[order], self.new[order], self.length[order])

    def leave(self, start: Int64s, length: Int64s) -> tuple[Overlap, Int64s]:
        """Of ranges of the old place, the parts that are kept, and where each comes to lie. Only of what
        :meth:`by_old` returned."""
        met = overlaps(start, length, self.old, self.length)
        return met, self.new[met.b] + met.into_b

    def come(self, start: Int64s, length: Int64s) -> tuple[Overlap, Int64s]:
        """Of ranges of the new place, the parts that come from somewhere, and where each lay."""
        met = overlaps(start, length, self.new, self.length)
        return met, self.old[met.b] + met.into_b

    def carry(self, runs: Runs) -> Runs:
        """Where what lay in some runs of the old place comes to lie."""
        met, place = self.by_old().leave(runs.start, runs.length)
        return Runs.from_arrays(place, met.length)
