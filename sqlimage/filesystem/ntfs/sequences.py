"""The update sequence arrays of many file records at once: what they keep of each sector's end, and where."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sqlimage.extent import Int64s
from sqlimage.filesystem.ntfs import layout
from sqlimage.filesystem.ntfs.tables import Bools


class UpdateSequences:
    """Those of the records that begin at the bytes ``start`` of a buffer, which is given in words of two bytes.

    Where :meth:`ill` says so of any record, nothing else may be asked.
    """

    def __init__(self, words: NDArray[np.uint16], start: Int64s, bytes_per_record: int) -> None:
        self._start = start
        self._sectors = bytes_per_record // layout.SEQUENCE_NUMBER_STRIDE
        self._array = words[(start + layout.UPDATE_SEQUENCE_ARRAY_OFFSET_AT) >> 1].astype(np.int64)
        self._count = words[(start + layout.UPDATE_SEQUENCE_ARRAY_SIZE_AT) >> 1].astype(np.int64)
        self._words = words

    def ill(self) -> Bools:
        """Which do not fit their records."""
        ill: Bools = (self._count != self._sectors + 1) | (self._array % 2 != 0)
        ill |= self._array < layout.UPDATE_SEQUENCE_ARRAY_AT_LEAST
        ill |= self._array + 2 * self._count > layout.SEQUENCE_NUMBER_STRIDE - 2
        return ill

    def numbers(self) -> NDArray[np.uint16]:
        """What each sector of a record ends with on the medium."""
        numbers: NDArray[np.uint16] = self._words[(self._start + self._array) >> 1]
        return numbers

    def sectors(self) -> Iterator[tuple[Int64s, Int64s]]:
        """For the n-th sector of all records: the word at its end, and the word of the array that keeps it."""
        for sector in range(1, self._sectors + 1):
            end = self._start + sector * layout.SEQUENCE_NUMBER_STRIDE - 2
            yield end >> 1, (self._start + self._array + 2 * sector) >> 1
