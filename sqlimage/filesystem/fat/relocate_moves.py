"""What moves, in bytes: the clusters, and all that lies before and behind them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sqlimage.extent import Int64s, Runs
from sqlimage.filesystem.fat import layout
from sqlimage.filesystem.fat.boot import BootSector, Geometry
from sqlimage.filesystem.fat.relocate_layout import ClusterMoves


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """As in :class:`~sqlimage.filesystem.relocation.Relocation`: sorted by new place, neighbours joined."""

    old: Int64s
    new: Int64s
    length: Int64s

    def locate(self, place: Int64s) -> Int64s:
        """The new places of bytes that are kept."""
        order = np.argsort(self.old)
        found = order[np.searchsorted(self.old[order], place, side="right") - 1]
        return place + (self.new - self.old)[found]


def byte_moves(boot: BootSector, old: Geometry, new: Geometry, clusters: ClusterMoves) -> Moves:
    reserved = boot.BPB_RsvdSecCnt * old.bytes_per_sector
    around = [(0, 0, reserved), (old.root_offset, new.root_offset, old.root_bytes)]
    for number in range(boot.BPB_NumFATs):
        around.append((reserved + number * old.fat_bytes, reserved + number * new.fat_bytes, old.fat_bytes))
    if old.heap_end == new.heap_end:
        around.append((old.heap_end, old.heap_end, min(old.size_bytes, new.size_bytes) - old.heap_end))
    outside = np.array(around, dtype=np.int64)
    shift = (new.heap_offset - old.heap_offset) // old.bytes_per_cluster
    origin = np.concatenate((clusters.old, clusters.bad.start + shift))
    to = np.concatenate((clusters.new, clusters.bad.start))
    count = np.concatenate((clusters.length, clusters.bad.length))
    size = old.bytes_per_cluster
    return _joined(
        np.concatenate((outside[:, 0], old.heap_offset + (origin - layout.FIRST_CLUSTER) * size)),
        np.concatenate((outside[:, 1], new.heap_offset + (to - layout.FIRST_CLUSTER) * size)),
        np.concatenate((outside[:, 2], count * size)),
    )


def allocated_bytes(new: Geometry, clusters: ClusterMoves) -> Runs:
    """As :meth:`FatVolume.allocated` will tell of the new volume."""
    taken, size = clusters.taken(), new.bytes_per_cluster
    heap = Runs.from_arrays(new.heap_offset + (taken.start - layout.FIRST_CLUSTER) * size, taken.length * size)
    return heap.union(Runs.of([(0, new.heap_offset), (new.heap_end, new.size_bytes - new.heap_end)]))


def _joined(old: Int64s, new: Int64s, length: Int64s) -> Moves:
    order = np.argsort(new, kind="stable")
    order = order[length[order] > 0]
    old, new, length = old[order], new[order], length[order]
    first = np.ones(len(new), dtype=np.bool_)
    first[1:] = (new[1:] != new[:-1] + length[:-1]) | (old[1:] != old[:-1] + length[:-1])
    begins = np.flatnonzero(first)
    return Moves(old[begins], new[begins], np.add.reduceat(length, begins))
