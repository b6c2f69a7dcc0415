"""The Up-case Table: which character stands for which where names are compared."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.exfat import layout
from sqlimage.filesystem.exfat.checksum import rotated_sum

TABLE_BYTES_MAX = 2 * layout.UP_CASE_UNITS
"""A table that is not compressed; a compressed one is smaller."""


def decode(table: bytes, checksum: int) -> NDArray[np.uint16]:
    """The upper case of each of the 65,536 UTF-16 units. Units that the table does not reach are their own.

    Raises :class:`InconsistentVolume` where the checksum is another one, or where the table has more than so many.
    """
    if (found := rotated_sum(table, 32)) != checksum:
        raise InconsistentVolume("Up-case Table", f"its checksum is 0x{found:08X}, TableChecksum is 0x{checksum:08X}")
    units = np.frombuffer(table[: len(table) & ~1], dtype="<u2").astype(np.uint16)
    result = np.arange(layout.UP_CASE_UNITS, dtype=np.uint16)
    at, filled = 0, 0
    markers = np.append(np.flatnonzero(units == layout.IDENTITY_RUN), len(units)).tolist()
    for marker in markers:
        if marker < at:
            continue  # it is the count of the marker before
        count = marker - at
        skipped = 0
        if marker + 1 < len(units):
            skipped = int(units[marker + 1])
        elif marker < len(units):
            count += 1  # the last unit of a table is no marker: nothing follows it
        if filled + count + skipped > layout.UP_CASE_UNITS:
            raise InconsistentVolume("Up-case Table", "it has more than 65536 characters")
        result[filled : filled + count] = units[at : at + count]
        filled += count + skipped
        at = marker + 2
    return result
