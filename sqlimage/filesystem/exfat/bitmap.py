"""The Allocation Bitmap: which clusters are in use, as runs."""

from __future__ import annotations

import numpy as np

from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import Content
from sqlimage.filesystem.exfat import layout

SLAB_BYTES = 1 << 20
RUNS_MAX = 1 << 23
"""More pieces than any volume in use has: they would take more memory than the bitmap itself, by far."""


def allocated_clusters(bitmap: Content, total_clusters: int) -> Runs:
    """The runs of set bits, in clusters, the first of which is 2.

    ``bitmap`` must hold a bit for each cluster. Raises :class:`InconsistentVolume` where it has more than
    ``RUNS_MAX`` runs.
    """
    needed = -(-total_clusters // 8)
    borders = [np.empty(0, dtype=np.int64)]
    count, last_bit = 0, 0
    for offset in range(0, needed, SLAB_BYTES):
        data = np.frombuffer(bitmap.read(offset, min(SLAB_BYTES, needed - offset)), dtype=np.uint8)
        # a bit of `changes` is set where a bit of the map differs from the one before it
        before = np.left_shift(data, 1, dtype=np.uint8)
        before[1:] |= data[:-1] >> 7
        before[0] |= last_bit
        last_bit = int(data[-1] >> 7)
        changes = np.bitwise_xor(data, before, dtype=np.uint8)
        at = np.flatnonzero(changes)
        if len(at) == 0:
            continue
        row, bit = np.nonzero(np.unpackbits(changes[at, np.newaxis], axis=1, bitorder="little"))
        borders.append((offset + at[row]) * 8 + bit)
        count += len(row)
        if count > 2 * RUNS_MAX:
            raise InconsistentVolume("Allocation Bitmap", f"has more than {RUNS_MAX} runs of set bits")
    border = np.concatenate(borders)
    border = border[border < total_clusters]
    if len(border) % 2:
        border = np.append(border, total_clusters)
    return Runs(border[::2] + layout.FIRST_CLUSTER, border[1::2] - border[::2])
