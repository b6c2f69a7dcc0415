"""The checksums of exFAT: a sum that is rotated right by one bit before each byte is added."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sqlimage.extent import Int64s

FEW = 16
"""So many sums are faster computed one by one."""


def rotated_sum(data: bytes, bits: int, total: int = 0) -> int:
    """The checksum of all of ``data``, in 16 or 32 bits, carried on from ``total``."""
    high, mask = bits - 1, (1 << bits) - 1
    for byte in data:
        total = ((total & 1) << high | total >> 1) + byte & mask
    return total


def rotated_sums(
    data: NDArray[np.uint8], start: Int64s, length: Int64s, left_out: tuple[int, ...] = ()
) -> NDArray[np.uint16]:
    """The 16-bit checksum of each stretch of ``data``. ``left_out`` are bytes, counted from the start of a stretch,
    that are passed over."""
    if len(start) < FEW:
        raw = data.tobytes()
        few = []
        for low, size in zip(start.tolist(), length.tolist(), strict=True):
            stretch = raw[low : low + size]
            if left_out:
                stretch = bytes(byte for k, byte in enumerate(stretch) if k not in left_out)
            few.append(rotated_sum(stretch, 16))
        return np.array(few, dtype=np.uint16)
    order = np.argsort(-length, kind="stable")
    place = start[order]
    ascending = length[order][::-1]
    total = np.zeros(len(start), dtype=np.uint16)
    for k in range(int(ascending[-1])):
        if k in left_out:
            continue
        # those still going on come first
        count = len(place) - int(np.searchsorted(ascending, k, side="right"))
        part = total[:count]
        total[:count] = (part >> 1 | part << 15) + data[place[:count] + k]
    result = np.empty_like(total)
    result[order] = total
    return result
