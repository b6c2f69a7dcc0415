"""The File Allocation Table: chains followed from it, as far as the contents they hold reach.

Most contents of an exFAT volume have NoFatChain set, and the entries of their clusters hold anything. So the table is
never read as a whole: pages of it are loaded where a chain passes, and split into *segments*, the longest stretches of
clusters that each link to the next one. All chains are followed at the same time, from segment to segment.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s
from sqlimage.filesystem.exfat import layout
from sqlimage.filesystem.exfat.boot import Geometry

PAGE_ENTRIES = 1 << 14
PAGES_KEPT = 2048
"""128 MiB of entries. Segments take as much again, three times as much where each is a single cluster."""
LOADS_MAX = 1 << 15
"""Pages that may be loaded at a time, also again: 2 GiB of the table. Only chains that jump to and fro across a huge
table need more."""
RUNS_MAX = 1 << 21
"""Of all chains that are followed together."""
ROUNDS_TOGETHER = 64
"""Chains of more segments than this are few: they are finished one by one."""

UInt32s = NDArray[np.uint32]


class Ending(IntEnum):
    """Why a chain is followed no further."""

    ENOUGH = 0
    END = 1
    FREE = 2
    BAD = 3
    OUTSIDE = 4
    LOOP = 5

    @property
    def words(self) -> str:
        return (
            "goes on",
            "ends",
            "leads to a cluster whose entry is empty",
            "leads to a bad cluster",
            "leads out of the cluster heap",
            "leads back into itself",
        )[self]


@dataclass(frozen=True, slots=True, eq=False)
class Chains:
    """Followed chains; chain i has the runs ``first_run[i]`` to ``first_run[i + 1]``, all in clusters."""

    first_run: Int64s
    start: Int64s
    length: Int64s
    ending: NDArray[np.int8]
    """An :class:`Ending` each: ENOUGH where it has all clusters that were asked for."""

    def clusters(self, chain: int) -> int:
        return int(self.length[self.first_run[chain] : self.first_run[chain + 1]].sum())


class _Segments:
    """``start`` to ``last``, both inclusive, then ``following`` is linked to. Clusters without an entry are in none."""

    __slots__ = ("following", "last", "start")

    def __init__(self, first: int, entries: UInt32s) -> None:
        count = len(entries)
        used = entries != 0
        link = used & (entries == np.arange(first + 1, first + count + 1, dtype=np.uint32))
        link[:-1] &= used[1:]
        link[-1] = False  # the next page begins anew
        begins = used.copy()
        begins[1:] &= ~link[:-1]
        ends = np.flatnonzero(used & ~link)
        self.start = (np.flatnonzero(begins) + first).astype(np.uint32)
        self.last = (ends + first).astype(np.uint32)
        self.following = entries[ends]


class _Page:
    """A part of the table, as entries and, where they are asked for, as segments."""

    def __init__(self, first: int, entries: UInt32s) -> None:
        self.first = first
        self._entries = entries
        self.entries = entries.data

    @cached_property
    def segments(self) -> _Segments:
        return _Segments(self.first, self._entries)

    @cached_property
    def last(self) -> memoryview:
        return self.segments.last.data


class Table:
    """The active FAT of a volume."""

    def __init__(self, device: BlockDevice, geometry: Geometry) -> None:
        self._device = device
        self._geometry = geometry
        self._pages: dict[int, _Page] = {}
        self._loads = 0

    def follow(self, first: Int64s, clusters: Int64s) -> Chains:
        """The chains that begin at these clusters, each as far as so many clusters; none where that is 0.

        What a chain does after them is not looked at. Raises :class:`InconsistentVolume` only where the chains have
        more pieces than ``RUNS_MAX``, or need more of the table than ``LOADS_MAX``.
        """
        self._loads = 0
        missing = clusters.copy()
        ending = np.zeros(len(first), dtype=np.int8)
        chain = np.flatnonzero(missing > 0)
        cluster = first[chain]
        chains, starts, lengths = [chain[:0]], [cluster[:0]], [missing[:0]]
        total = 0
        for _ in range(ROUNDS_TOGETHER):
            chain, cluster = self._inside(chain, cluster, ending)
            if len(chain) == 0:
                break
            total += len(chain)
            _check_total(total)
            last, following = self._stretches(cluster)
            length = np.minimum(last - cluster + 1, missing[chain])
            chains.append(chain)
            starts.append(cluster)
            lengths.append(length)
            missing[chain] -= length
            on = missing[chain] > 0
            chain, cluster = chain[on], following[on]
        for one, at in zip(chain.tolist(), cluster.tolist(), strict=True):
            start, length, stop = self._walk(at, int(missing[one]), RUNS_MAX - total)
            total += len(start)
            ending[one] = stop
            chains.append(np.full(len(start), one, dtype=np.int64))
            starts.append(start)
            lengths.append(length)
        return _gathered(np.concatenate(chains), np.concatenate(starts), np.concatenate(lengths), ending)

    def successor(self, cluster: int) -> int | None:
        """The cluster that one is linked to; None where that is no cluster of the heap."""
        page = self._page(cluster // PAGE_ENTRIES)
        following = page.entries[cluster - page.first]
        return following if layout.FIRST_CLUSTER <= following < self._geometry.end_cluster else None

    def _inside(self, chain: Int64s, cluster: Int64s, ending: NDArray[np.int8]) -> tuple[Int64s, Int64s]:
        """Those that go on in the heap; the others have their ending told."""
        inside = (cluster >= layout.FIRST_CLUSTER) & (cluster < self._geometry.end_cluster)
        for k in np.flatnonzero(~inside).tolist():
            ending[chain[k]] = _ending_of(int(cluster[k]))
        return chain[inside], cluster[inside]

    def _stretches(self, cluster: Int64s) -> tuple[Int64s, Int64s]:
        """(last, following) of each cluster: up to ``last`` each links to the next one, within one page."""
        last, following = cluster.copy(), np.zeros_like(cluster)
        pages = cluster // PAGE_ENTRIES
        order = np.argsort(pages, kind="stable")
        numbers, begins = np.unique(pages[order], return_index=True)
        for number, rows in zip(numbers.tolist(), np.split(order, begins[1:]), strict=True):
            segments = self._page(number).segments
            here = cluster[rows].astype(np.uint32)
            found = np.searchsorted(segments.last, here)
            known = found < len(segments.last)
            rows, here, found = rows[known], here[known], found[known]
            known = segments.start[found] <= here
            last[rows[known]] = segments.last[found[known]]
            following[rows[known]] = segments.following[found[known]]
        return last, following

    def _walk(self, cluster: int, missing: int, runs_left: int) -> tuple[Int64s, Int64s, Ending]:
        """One chain, segment by segment."""
        starts, lengths = array("q"), array("q")
        end_cluster = self._geometry.end_cluster
        milestone, steps, steps_to_next = 0, 0, 1
        ending = Ending.ENOUGH
        while missing > 0:
            if not layout.FIRST_CLUSTER <= cluster < end_cluster:
                ending = _ending_of(cluster)
                break
            if cluster == milestone:
                ending = Ending.LOOP
                break
            steps += 1
            if steps == steps_to_next:  # Brent's cycle detection: no memory of the path is kept
                milestone, steps, steps_to_next = cluster, 0, steps_to_next * 2
                _check_total(len(starts), runs_left)
            page = self._page(cluster // PAGE_ENTRIES)
            length, following = 1, page.entries[cluster - page.first]
            if following == cluster + 1:
                last = page.last
                found = bisect_left(last, cluster)
                length = min(last[found] - cluster + 1, missing)
                following = page.entries[last[found] - page.first]
            starts.append(cluster)
            lengths.append(length)
            missing -= length
            cluster = following
        _check_total(len(starts), runs_left)
        return np.frombuffer(starts, dtype=np.int64), np.frombuffer(lengths, dtype=np.int64), ending

    def _page(self, number: int) -> _Page:
        page = self._pages.get(number)
        if page is None:
            if len(self._pages) >= PAGES_KEPT:
                self._pages.clear()
            self._pages[number] = page = self._load(number)
        return page

    def _load(self, number: int) -> _Page:
        self._loads += 1
        if self._loads > LOADS_MAX:
            raise InconsistentVolume("FAT", "its chains jump to and fro across the whole of it")
        first = number * PAGE_ENTRIES
        count = min(PAGE_ENTRIES, self._geometry.end_cluster - first)
        size = layout.FAT_ENTRY_BYTES
        raw = self._device.read(self._geometry.fat_offset + first * size, count * size)
        return _Page(first, np.frombuffer(raw, dtype="<u4").astype(np.uint32, copy=False))


def _ending_of(value: int) -> Ending:
    known = {0: Ending.FREE, layout.BAD_CLUSTER: Ending.BAD, layout.END_OF_CHAIN: Ending.END}
    return known.get(value, Ending.OUTSIDE)


def _check_total(runs: int, allowed: int = RUNS_MAX) -> None:
    if runs > allowed:
        raise InconsistentVolume("FAT", f"the chains have more than {RUNS_MAX} pieces")


def _gathered(chain: Int64s, start: Int64s, length: Int64s, ending: NDArray[np.int8]) -> Chains:
    """The pieces of all chains, each chain's together; pieces that touch are one. A chain that passes a cluster twice
    is told so."""
    order = np.argsort(chain, kind="stable")
    chain, start, length = chain[order], start[order], length[order]
    new = np.ones(len(chain), dtype=np.bool_)
    new[1:] = (chain[1:] != chain[:-1]) | (start[1:] != start[:-1] + length[:-1])
    if not new.all():
        begins = np.flatnonzero(new)
        chain, start, length = chain[begins], start[begins], np.add.reduceat(length, begins)
    if len(chain) and (chain[1:] == chain[:-1]).any():
        order = np.lexsort((start, chain))
        owner, low = chain[order], start[order]
        twice = (owner[1:] == owner[:-1]) & (low[1:] < low[:-1] + length[order][:-1])
        ending[owner[1:][twice]] = Ending.LOOP
    return Chains(np.searchsorted(chain, np.arange(len(ending) + 1)), start, length, ending)
