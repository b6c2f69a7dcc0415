"""How large a volume becomes, and how small it can."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sqlimage.errors import RefusedError
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import HOLE, Contents
from sqlimage.filesystem.ntfs import layout
from sqlimage.filesystem.ntfs.boot import Geometry

_BITMAP_ALIGNMENT = 8  # bytes


@dataclass(frozen=True, slots=True)
class Span:
    """What a boot sector says of its volume's size."""

    total_sectors: int
    clusters: int
    size_bytes: int
    """The backup boot sector included, where there is one."""


@dataclass(frozen=True, slots=True)
class Demand:
    """The clusters that a volume needs, by how many it has."""

    clusters: int
    """It has now."""
    in_use: int
    """Neither $Bitmap's nor bad."""
    bytes_per_cluster: int
    bad: Runs
    """In clusters."""

    def fits(self, clusters: int) -> bool:
        """Whether all of it can be brought into so many."""
        good = clusters - self.bad.clip(0, clusters).total
        return self.in_use + bitmap_clusters(clusters, self.bytes_per_cluster) <= good

    def least(self) -> int:
        """The fewest clusters it can be brought into."""
        good = self.bad.complement(self.clusters)
        before = np.concatenate(([0], np.cumsum(good.length)))
        bitmap, clusters = -1, 0
        while bitmap < bitmap_clusters(clusters, self.bytes_per_cluster):
            bitmap = bitmap_clusters(clusters, self.bytes_per_cluster)
            gap = int(np.searchsorted(before[1:], self.in_use + bitmap))
            if gap == len(good):
                return self.clusters
            clusters = int(good.start[gap]) + self.in_use + bitmap - int(before[gap])
        return clusters


def bitmap_bytes(clusters: int) -> int:
    """The size of $Bitmap on a volume of so many clusters: a bit for each, in words of eight bytes."""
    return -(-clusters // (8 * _BITMAP_ALIGNMENT)) * _BITMAP_ALIGNMENT


def bitmap_clusters(clusters: int, bytes_per_cluster: int) -> int:
    return -(-bitmap_bytes(clusters) // bytes_per_cluster)


def row_of(contents: Contents, record: int, stream: str) -> int | None:
    """The row of a stream that lies in clusters."""
    for row in np.flatnonzero(contents.record == record).tolist():
        if contents.stream[row] == stream and contents.first_run[row] < contents.first_run[row + 1]:
            return int(row)
    return None


def demand_of(geometry: Geometry, contents: Contents, allocated: Runs) -> Demand:
    """``allocated`` and the contents are those of the volume as it is, in bytes."""
    unit = geometry.bytes_per_cluster
    used = allocated.clip(0, geometry.total_clusters * unit).total // unit
    bitmap = _backed(contents, row_of(contents, layout.BITMAP_RECORD, ""), unit)
    bad = _backed(contents, row_of(contents, layout.BAD_CLUSTER_RECORD, layout.BAD_CLUSTERS), unit)
    return Demand(geometry.total_clusters, used - bitmap.total - bad.total, unit, bad)


def _backed(contents: Contents, row: int | None, unit: int) -> Runs:
    if row is None:
        return Runs.empty()
    runs = slice(int(contents.first_run[row]), int(contents.first_run[row + 1]))
    offset, length = contents.run_offset[runs], contents.run_length[runs]
    backed = offset != HOLE
    return Runs.from_arrays(offset[backed] // unit, length[backed] // unit)


def least_bytes(geometry: Geometry, demand: Demand) -> int:
    """What a partition must have for the fewest clusters and a backup boot sector."""
    return demand.least() * geometry.bytes_per_cluster + geometry.boot.bytes_per_sector


def span_for(geometry: Geometry, demand: Demand, size_bytes: int | None) -> Span:
    """What becomes of the volume on a partition of ``size_bytes``: all of it but the last sector, as far as NTFS goes.

    Raises :class:`~sqlimage.errors.RefusedError` where it is too small.
    """
    sector = geometry.boot.bytes_per_sector
    per_cluster = geometry.bytes_per_cluster // sector
    if size_bytes is None:
        return Span(geometry.boot.total_sectors, geometry.total_clusters, geometry.size_bytes)
    total = size_bytes // sector - 1
    most = max(layout.CLUSTERS_MAX, geometry.total_clusters)
    if total // per_cluster > most:
        total = most * per_cluster
    if not demand.fits(total // per_cluster):
        least = demand.least()
        if total < least * per_cluster:
            needed = least_bytes(geometry, demand)
            raise RefusedError(f"NTFS: the volume needs {needed} bytes, there are {size_bytes}")
        total = least * per_cluster
    return Span(total, total // per_cluster, (total + 1) * sector)
