"""How large a volume can become: the limits of its type, the room that its FATs have, and where its heap then begins.

The number of clusters decides the type of a FAT, so a volume can neither grow nor shrink out of its own. A FAT never
shrinks (one that is larger than needed is allowed), so that the heap of a smaller volume begins where it did.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace

import numpy as np

from sqlimage.errors import RefusedError
from sqlimage.extent import Runs
from sqlimage.filesystem.fat import layout
from sqlimage.filesystem.fat.boot import BootSector, Geometry
from sqlimage.units import power_of_two_in

SECTORS_MAX = (1 << 32) - 1
"""BPB_TotSec32."""
HEAP_ALIGNMENT_KEPT = 4096
"""Bytes. A heap that begins at such a border of the volume still does when the FATs have grown."""


@dataclass(frozen=True, slots=True)
class NewSize:
    """Of the new volume, in sectors."""

    total_sectors: int
    fat_sectors: int
    note: str = ""
    """Why the file system spans less than its room, by a cluster or more."""


def clusters_min(geometry: Geometry) -> int:
    """Fewer clusters would be another type. A FAT32 that has too few already is one by BPB_FATSz16 only."""
    if geometry.fat_bits == 16:
        return layout.CLUSTERS_FAT16_MIN
    return layout.CLUSTERS_FAT32_MIN if geometry.total_clusters >= layout.CLUSTERS_FAT32_MIN else 1


def clusters_max(fat_bits: int) -> int:
    if fat_bits == 32:
        return layout.CLUSTERS_FAT32_MAX
    return (layout.CLUSTERS_FAT16_MIN if fat_bits == 12 else layout.CLUSTERS_FAT32_MIN) - 1


def smallest_bytes(geometry: Geometry, allocated: Runs, bad: Runs) -> int:
    """Of the volume, when the allocated clusters (bad ones too) lie at the front, around those that are bad."""
    needed = allocated.total - bad.total
    good_before = bad.start - layout.FIRST_CLUSTER - (np.cumsum(bad.length) - bad.length)
    amid = int(np.searchsorted(good_before, needed))
    clusters = max(needed + int(bad.length[:amid].sum()), clusters_min(geometry))
    return geometry.heap_offset + clusters * geometry.bytes_per_cluster


def new_size(geometry: Geometry, boot: BootSector, room_bytes: int | None, smallest: int, bad: Runs) -> NewSize:
    """What a volume in ``room_bytes`` (None: of its present size) spans.

    Raises :class:`RefusedError` where that is below ``smallest``.
    """
    sector = geometry.bytes_per_sector
    total, fat_sectors = geometry.size_bytes // sector, geometry.fat_bytes // sector
    room = total if room_bytes is None else min(room_bytes // sector, SECTORS_MAX)
    if room_bytes is not None and room_bytes < smallest:
        why = f"what is allocated on it needs {smallest}"
        if smallest == geometry.heap_offset + clusters_min(geometry) * geometry.bytes_per_cluster:
            why = f"with fewer than {clusters_min(geometry)} clusters it would be no FAT{geometry.fat_bits}"
        raise RefusedError(
            f"the volume cannot be made {room_bytes} bytes: {why}", hint=f"give it {smallest} bytes or more"
        )
    if room <= total:
        return NewSize(room, fat_sectors)
    grown = _grown(geometry, boot.BPB_NumFATs, room, bad)
    if room_bytes is None or room_bytes - grown.total_sectors * sector < geometry.bytes_per_cluster:
        return grown
    spans = f"the file system spans {grown.total_sectors * sector} of {room_bytes} bytes"
    after = resized(geometry, boot, grown)
    if after.total_clusters == clusters_max(geometry.fat_bits):
        why = f"FAT{geometry.fat_bits} has at most {after.total_clusters} clusters"
    elif grown.total_sectors == room:
        why = f"BPB_TotSec32 counts at most {SECTORS_MAX} sectors"
    else:
        why = "its FATs have no entries for more clusters, and there is no room for larger ones"
    return replace(grown, note=f"{spans}: {why}")


def resized(geometry: Geometry, boot: BootSector, size: NewSize) -> Geometry:
    """The geometry that a boot sector of the new size has, but for the root cluster."""
    sector = geometry.bytes_per_sector
    fat_bytes = size.fat_sectors * sector
    reserved = boot.BPB_RsvdSecCnt * sector
    root_offset = reserved + boot.BPB_NumFATs * fat_bytes
    heap_offset = root_offset + geometry.root_bytes
    return replace(
        geometry,
        fat_offset=reserved + (boot.active_fat or 0) * fat_bytes,
        fat_bytes=fat_bytes,
        root_offset=root_offset,
        heap_offset=heap_offset,
        total_clusters=(size.total_sectors * sector - heap_offset) // geometry.bytes_per_cluster,
        size_bytes=size.total_sectors * sector,
    )


def _grown(geometry: Geometry, fats: int, room: int, bad: Runs) -> NewSize:
    """As many clusters as ``room`` sectors can give; the FATs grow where that gives more."""
    sector = geometry.bytes_per_sector
    cluster = geometry.bytes_per_cluster // sector
    heap, fat = geometry.heap_offset // sector, geometry.fat_bytes // sector
    most = clusters_max(geometry.fat_bits)
    step_bytes = max(geometry.bytes_per_cluster, min(power_of_two_in(geometry.heap_offset), HEAP_ALIGNMENT_KEPT))
    step = step_bytes // math.gcd(step_bytes, fats * sector)
    """The heap moves by whole clusters, so that bad ones can stay where they are."""

    def entries(steps: int) -> int:
        return (fat + steps * step) * sector * 8 // geometry.fat_bits - layout.FIRST_CLUSTER

    def held(steps: int) -> int:
        return min(most, (room - heap - fats * steps * step) // cluster)

    enough = bisect_left(range(room // (fats * step) + 1), True, key=lambda steps: entries(steps) >= held(steps))
    choices = {0, max(enough - 1, 0), enough}
    if len(bad):
        choices = {n for n in choices if bad.start[0] - layout.FIRST_CLUSTER >= fats * n * step // cluster}
    steps = max(sorted(choices), key=lambda steps: min(entries(steps), held(steps)))
    clusters = min(entries(steps), held(steps))
    heap += fats * steps * step
    total = room if clusters == (room - heap) // cluster else heap + clusters * cluster
    return NewSize(max(total, geometry.size_bytes // sector), fat + steps * step)
