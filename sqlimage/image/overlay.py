"""Writes that are not in the database yet: whole clusters, and stretches of zeros beneath them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import numpy as np

from sqlimage.extent import Runs

_RECORD_BYTES = 128
"""What a cluster or a stretch costs beside its bytes."""


class Overlay:
    """What was written last wins: a cluster in ``data`` covers the zeros, zeroing drops the clusters it covers. All
    numbers are clusters; the caller keeps other threads out."""

    def __init__(self, bytes_per_cluster: int) -> None:
        self.unit = bytes_per_cluster
        self.data: dict[int, bytes] = {}
        self._zero_start: list[int] = []
        self._zero_end: list[int] = []

    def __bool__(self) -> bool:
        return bool(self.data or self._zero_start)

    @property
    def held_bytes(self) -> int:
        """About how much memory this takes."""
        return len(self.data) * (self.unit + _RECORD_BYTES) + len(self._zero_start) * _RECORD_BYTES

    def zero(self, first: int, last: int) -> None:
        """Clusters ``first .. last`` (inclusive) read as zeros from now on."""
        if last - first < len(self.data):
            for cluster in range(first, last + 1):
                self.data.pop(cluster, None)
        else:
            for cluster in [cluster for cluster in self.data if first <= cluster <= last]:
                del self.data[cluster]
        low = bisect_left(self._zero_end, first)
        high = bisect_right(self._zero_start, last + 1)
        if low < high:  # those it meets or touches become one with it
            first, last = min(first, self._zero_start[low]), max(last, self._zero_end[high - 1] - 1)
        self._zero_start[low:high] = [first]
        self._zero_end[low:high] = [last + 1]

    def zeros_within(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Zeroed stretches ``start, end`` (end not included) within ``first .. last``; ``data`` may cover parts."""
        for row in range(bisect_right(self._zero_end, first), bisect_right(self._zero_start, last)):
            yield max(self._zero_start[row], first), min(self._zero_end[row], last + 1)

    def zeros(self) -> Runs:
        """All zeroed stretches, less what was written over them."""
        start, end = np.array(self._zero_start, dtype=np.int64), np.array(self._zero_end, dtype=np.int64)
        return Runs(start, end - start).subtract(self.written())

    def written(self) -> Runs:
        """All clusters that hold data."""
        return _clusters(np.fromiter(self.data, dtype=np.int64, count=len(self.data)))

    def shown_by(self, first: int, last: int, mapped: Runs) -> Runs:
        """What of ``first .. last`` holds data, given what does beneath."""
        zeros = Runs.of((start, end - start) for start, end in self.zeros_within(first, last))
        keys = np.fromiter(self.data, dtype=np.int64, count=len(self.data))
        return mapped.subtract(zeros).union(_clusters(keys[(keys >= first) & (keys <= last)]))

    def put_under(self, newer: Overlay) -> None:
        """Become what holds when ``newer`` is written over this."""
        for start, end in zip(newer._zero_start, newer._zero_end, strict=True):
            self.zero(start, end - 1)
        self.data.update(newer.data)


def _clusters(numbers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Runs:
    return Runs.from_arrays(numbers, np.ones(len(numbers), dtype=np.int64))
