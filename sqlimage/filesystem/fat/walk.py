"""One chain followed by itself, reading no more of the FAT than the pages it crosses: for opening a single file."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.fat import layout
from sqlimage.filesystem.fat.boot import Geometry
from sqlimage.filesystem.fat.table import Ending, read_entries

PAGE_ENTRIES = 1 << 14


class Pages:
    """Pages of the FAT, each as the sorted positions where an entry is not its own number plus 1.

    Each is read once and kept: a hostile chain that hops from page to page would have them read again at each step.
    """

    def __init__(self, device: BlockDevice, geometry: Geometry) -> None:
        self._device = device
        self.geometry = geometry
        self._pages: dict[int, tuple[memoryview, memoryview]] = {}

    def stretch(self, cluster: int) -> tuple[int, int]:
        """(last, following): the clusters ``cluster`` to ``last`` each link to the next one, within one page."""
        number = cluster // PAGE_ENTRIES
        positions, values = self._pages.get(number) or self._load(number)
        k = bisect_left(positions, cluster)
        return positions[k], values[k]

    def _load(self, number: int) -> tuple[memoryview, memoryview]:
        first = number * PAGE_ENTRIES
        count = min(PAGE_ENTRIES, self.geometry.end_cluster - first)
        entries = read_entries(self._device, self.geometry, first, count)
        breaks = entries != np.arange(first + 1, first + count + 1, dtype=np.uint32)
        breaks[-1] = True  # the next page begins anew
        where = np.flatnonzero(breaks)
        self._pages[number] = page = ((where + first).astype(np.uint32).data, entries[where].data)
        return page


def walk(pages: Pages, first: int) -> Iterator[tuple[int, int]]:
    """Runs of the chain that begins at ``first``, as (cluster, length in clusters), in file order.

    Raises :class:`InconsistentVolume` where the chain goes on to a cluster that cannot be its next one; a caller that
    needs no more clusters stops asking before.
    """
    geometry = pages.geometry
    bad, end_mark = layout.BAD_CLUSTER[geometry.fat_bits], layout.END_OF_CHAIN[geometry.fat_bits]
    cluster = first
    milestone, steps, steps_to_next = 0, 0, 1
    while True:
        if not layout.FIRST_CLUSTER <= cluster < geometry.end_cluster:
            raise chain_problem(first, Ending.OUTSIDE)
        if cluster == milestone:
            raise chain_problem(first, Ending.LOOP)
        steps += 1
        if steps == steps_to_next:  # Brent's cycle detection: no memory of the path is kept
            milestone, steps, steps_to_next = cluster, 0, steps_to_next * 2
        last, following = pages.stretch(cluster)
        if following in (0, bad):
            if last > cluster:
                yield cluster, last - cluster
            raise chain_problem(first, Ending.BAD if following else Ending.FREE)
        yield cluster, last - cluster + 1
        if following >= end_mark:
            return
        cluster = following


def chain_problem(first: int, ending: Ending) -> InconsistentVolume:
    """The error for a chain that does not end as it must."""
    return InconsistentVolume("FAT", f"the chain that begins at cluster {first} {ending.words}")
