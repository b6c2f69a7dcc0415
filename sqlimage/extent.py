"""Runs and their algebra, on numpy arrays: what is allocated, what is left over, what overlaps.

A run is half-open, ``start`` to ``start + length``; the unit (bytes or clusters) is the caller's. The on-disk
streams use ranges inclusive on both ends, as cluster maps do; the conversion is made where they are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """A set of places: sorted, disjoint, non-empty, never touching (adjacent runs are one run)."""

    start: Int64s
    length: Int64s

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> Runs:
        """Runs from ``(start, length)`` pairs in any order, overlapping or not; empty ones vanish."""
        table = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
        return cls.from_arrays(table[:, 0], table[:, 1])

    @classmethod
    def from_arrays(cls, start: Int64s, length: Int64s) -> Runs:
        """As :meth:`of`, from two arrays of the same length."""
        keep = length > 0
        start, length = start[keep], length[keep]
        if len(start) == 0:
            return cls.empty()
        order = np.argsort(start, kind="stable")
        start = start[order]
        reach = np.maximum.accumulate(start + length[order])
        first = np.concatenate(([True], start[1:] > reach[:-1]))
        last = np.concatenate((first[1:], [True]))
        start = start[first]
        return cls(start, reach[last] - start)

    @classmethod
    def empty(cls) -> Runs:
        none = np.empty(0, dtype=np.int64)
        return cls(none, none)

    @property
    def end(self) -> Int64s:
        return self.start + self.length

    @property
    def total(self) -> int:
        """Sum of the lengths."""
        return int(self.length.sum())

    def __len__(self) -> int:
        return len(self.start)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pairs of ``(start, length)``."""
        return iter(zip(self.start.tolist(), self.length.tolist(), strict=True))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Runs)
            and np.array_equal(self.start, other.start)
            and np.array_equal(self.length, other.length)
        )

    def union(self, other: Runs) -> Runs:
        return Runs.from_arrays(np.concatenate((self.start, other.start)), np.concatenate((self.length, other.length)))

    def intersect(self, other: Runs) -> Runs:
        return _sweep(self, other, both=True)

    def subtract(self, other: Runs) -> Runs:
        return _sweep(self, other, both=False)

    def clip(self, start: int, end: int) -> Runs:
        """The part of the runs inside ``start .. end``."""
        low = np.clip(self.start, start, end)
        return Runs.from_arrays(low, np.clip(self.end, start, end) - low)

    def complement(self, end: int) -> Runs:
        """What of ``0 .. end`` the runs leave free."""
        return Runs.of([(0, end)]).subtract(self)

    def shift(self, by: int) -> Runs:
        return Runs(self.start + by, self.length)

    def widen(self, unit: int) -> Runs:
        """The smallest set of whole ``unit``-sized, ``unit``-aligned cells that covers the runs."""
        low = self.start // unit * unit
        return Runs.from_arrays(low, -(-self.end // unit) * unit - low)

    def covers(self, other: Runs) -> bool:
        """Whether every place of ``other`` is in here too."""
        return len(other.subtract(self)) == 0


def stretches(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where a mask is set, as ``start, end`` (end not included)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def first_overlap(start: Int64s, length: Int64s) -> int | None:
    """The place where two of the given runs (any order) first meet, or None where none do."""
    keep = length > 0
    start, length = start[keep], length[keep]
    if len(start) < 2:
        return None
    order = np.argsort(start, kind="stable")
    start = start[order]
    reach = np.maximum.accumulate(start + length[order])
    hit = np.flatnonzero(start[1:] < reach[:-1])
    return int(start[hit[0] + 1]) if len(hit) else None


def _sweep(a: Runs, b: Runs, *, both: bool) -> Runs:
    """Walk the borders of two sets: keep where a holds and b does (``both``) or does not."""
    if len(a) == 0 or (both and len(b) == 0):
        return Runs.empty()
    if len(b) == 0:
        return a
    border = np.concatenate((a.start, a.end, b.start, b.end))
    in_a = np.repeat(np.array([1, -1, 0, 0]), [len(a), len(a), len(b), len(b)])
    in_b = np.repeat(np.array([0, 0, 1, -1]), [len(a), len(a), len(b), len(b)])
    order = np.argsort(border, kind="stable")
    border = border[order]
    wanted = (np.cumsum(in_a[order]) == 1) & (np.cumsum(in_b[order]) == int(both))
    return Runs.from_arrays(border[:-1][wanted[:-1]], np.diff(border)[wanted[:-1]])


class Overlap(NamedTuple):
    """Where ranges of two tables meet: the row in each, how far into each, and for how long."""

    a: Int64s
    b: Int64s
    into_a: Int64s
    into_b: Int64s
    length: Int64s


def overlaps(start: Int64s, length: Int64s, b_start: Int64s, b_length: Int64s) -> Overlap:
    """All pairs of a range of the first table (any order) and one of the second (sorted, disjoint, none empty), in the
    order of the first, then of the second."""
    first = np.searchsorted(b_start + b_length, start, side="right")
    count = np.maximum(np.searchsorted(b_start, start + length, side="left") - first, 0)
    count[length == 0] = 0  # even amid a range of the second
    a = np.repeat(np.arange(len(start), dtype=np.int64), count)
    b = np.arange(len(a), dtype=np.int64) + np.repeat(first - (np.cumsum(count) - count), count)
    low = np.maximum(start[a], b_start[b])
    high = np.minimum(start[a] + length[a], b_start[b] + b_length[b])
    return Overlap(a, b, low - start[a], low - b_start[b], high - low)


def joined(owner: Int64s, place: Int64s, at: Int64s, length: Int64s) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """Runs of many owners (whose, how far into it, where it lies, for how long) with those that go on where the one
    before ends made one. None is empty."""
    if not len(owner):
        return owner, place, at, length
    first = np.ones(len(owner), dtype=np.bool_)
    first[1:] = (owner[1:] != owner[:-1]) | (place[1:] != (place + length)[:-1]) | (at[1:] != (at + length)[:-1])
    begin = np.flatnonzero(first)
    end = np.concatenate((begin[1:], [len(owner)])) - 1
    return owner[begin], place[begin], at[begin], (at + length)[end] - at[begin]
