"""$Bitmap: which clusters are in use, as runs."""

from __future__ import annotations

import numpy as np

from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import Content

_SLAB_BYTES = 1 << 20


def allocated_clusters(bitmap: Content, total_clusters: int) -> Runs:
    """The runs of set bits among the first ``total_clusters``, in clusters.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where the bitmap has fewer bits.
    """
    needed = -(-total_clusters // 8)
    if bitmap.size_bytes < needed:
        raise InconsistentVolume("$Bitmap", f"has {bitmap.size_bytes} bytes, {total_clusters} clusters need {needed}")
    borders = []
    carry = np.uint64(0)
    for offset in range(0, needed, _SLAB_BYTES):
        data = bitmap.read(offset, min(_SLAB_BYTES, needed - offset))
        words = np.frombuffer(data + bytes(-len(data) % 8), dtype="<u8")
        if carry == 0 and not words.any():
            continue
        # a bit of `changes` is set where a bit of the map differs from the one before it
        before = words << np.uint64(1)
        before[1:] |= words[:-1] >> np.uint64(63)
        before[0] |= carry
        carry = words[-1] >> np.uint64(63)
        changes = words ^ before
        at = np.flatnonzero(changes)
        bits = np.unpackbits(changes[at].view(np.uint8), bitorder="little").reshape(-1, 64)
        row, bit = np.nonzero(bits)
        borders.append(offset * 8 + at[row] * 64 + bit)
    border = np.concatenate(borders) if borders else np.empty(0, dtype=np.int64)
    border = border[border < total_clusters]
    if len(border) % 2:
        border = np.append(border, total_clusters)
    return Runs(border[::2], border[1::2] - border[::2])
