"""The file allocation table as a few arrays: which clusters are taken, and where chains jump.

A FAT of 128 MiB is read slab by slab and kept as *segments* only: the longest stretches of clusters that each link to
the next one. A volume's files lie mostly in one piece, so there are about as many segments as files, whatever the
volume's size. Chains are followed from segment to segment, those of all files at the same time.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s, Runs
from sqlimage.filesystem.fat import layout
from sqlimage.filesystem.fat.boot import Geometry

SLAB_ENTRIES = 1 << 15
"""128 KiB: stays in the cache and in memory that is already mapped; 4 MiB took four times as long."""
ROUNDS_TOGETHER = 64
"""Chains of more segments than this are few: they are finished one by one."""
RUNS_ALWAYS_ALLOWED = 1 << 20

Int32s = NDArray[np.int32]


class Ending(IntEnum):
    """What a chain, or a segment of one, meets after its last cluster."""

    LINK = 0
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
            "leads into a free cluster",
            "leads into a bad cluster",
            "leads out of the volume",
            "leads back into itself",
        )[self]


@dataclass(frozen=True, slots=True, eq=False)
class Chains:
    """Followed chains; chain i has the runs ``first_run[i]`` to ``first_run[i + 1]``, all in clusters."""

    first_run: Int64s
    start: Int64s
    length: Int64s
    clusters: Int64s
    """Length of each chain."""
    ending: NDArray[np.int8]
    """An :class:`Ending` each, never LINK."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The segments of a FAT, sorted: ``start`` to ``last``, both inclusive, then ``following`` is linked to."""

    end_cluster: int
    start: Int32s
    last: Int32s
    following: Int32s
    ending: NDArray[np.int8]
    """What ``following`` is. Where LINK, ``successor`` is the segment it lies in."""
    successor: Int32s
    bad: Runs
    """Clusters marked as bad: taken, but nobody's."""

    def allocated(self) -> Runs:
        """Clusters whose entry is not zero."""
        start = self.start.astype(np.int64)
        return Runs.from_arrays(start, self.last - start + 1).union(self.bad)

    def follow(self, first: Int64s) -> Chains:
        """The chains that begin at these clusters, up to their end or to the first cluster that cannot be theirs.

        Cluster 0 begins an empty chain. Raises :class:`InconsistentVolume` only where the chains share so many
        clusters that their runs would outgrow the table.
        """
        found, ending = _locate(first, self.start, self.last, self.bad, self.end_cluster)
        ending[first == 0] = Ending.END
        limit = max(RUNS_ALWAYS_ALLOWED, 4 * len(self.start))
        chain = np.flatnonzero(ending == Ending.LINK)
        segment, entry = found[chain], first[chain]
        chains, segments, entries = [chain[:0]], [segment[:0]], [entry[:0]]
        total = 0
        for _ in range(ROUNDS_TOGETHER):
            if len(chain) == 0:
                break
            chains.append(chain)
            segments.append(segment)
            entries.append(entry)
            total += len(chain)
            _check_total(total, limit)
            ending[chain] = self.ending[segment]
            on = self.ending[segment] == Ending.LINK
            chain, entry, segment = chain[on], self.following[segment[on]].astype(np.int64), self.successor[segment[on]]
        else:
            self._follow_singly(chain, found, first, ending, chains, segments, entries, limit)
        return self._gather(first, np.concatenate(chains), np.concatenate(segments), np.concatenate(entries), ending)

    def _follow_singly(
        self,
        long: Int64s,
        found: Int32s,
        first: Int64s,
        ending: NDArray[np.int8],
        chains: list[Int64s],
        segments: list[Int32s],
        entries: list[Int64s],
        limit: int,
    ) -> None:
        """Follow the long chains again from their beginning; every loop is among them."""
        for k in range(1, len(chains)):
            short = ~np.isin(chains[k], long)
            chains[k], segments[k], entries[k] = chains[k][short], segments[k][short], entries[k][short]
        total = sum(len(part) for part in chains)
        visited_by = np.full(len(self.start), -1, dtype=np.int64)
        visited, successor, after = visited_by.data, self.successor.data, self.ending.data
        for one in long.tolist():
            path = array("i")
            at = int(found[one])
            stop = int(Ending.LINK)
            while stop == Ending.LINK:
                visited[at] = one
                path.append(at)
                stop = after[at]
                if stop == Ending.LINK:
                    at = successor[at]
                    if visited[at] == one:
                        stop = Ending.LOOP
            total += len(path)
            _check_total(total, limit)
            ending[one] = stop
            walked = np.frombuffer(path, dtype=np.int32)
            chains.append(np.full(len(path), one, dtype=np.int64))
            segments.append(walked)
            entries.append(np.concatenate((first[one : one + 1], self.following[walked[:-1]])))

    def _gather(self, first: Int64s, chain: Int64s, segment: Int32s, entry: Int64s, ending: NDArray[np.int8]) -> Chains:
        order = np.argsort(chain, kind="stable")
        chain, segment, entry = chain[order], segment[order], entry[order]
        length = self.last[segment] - entry + 1
        first_run = np.searchsorted(chain, np.arange(len(first) + 1))
        summed = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(length)))
        return Chains(first_run, entry, length, np.diff(summed[first_run]), ending)


def load(device: BlockDevice, geometry: Geometry) -> Table:
    """Read the whole FAT. Memory is bounded by a slab and by the number of segments."""
    bad_mark = layout.BAD_CLUSTER[geometry.fat_bits]
    starts, lasts, followings, bads = ([np.empty(0, dtype=np.int32)] for _ in range(4))
    linked, previous_end = False, 0
    for first, count in _slabs(device, geometry):
        if first != previous_end:
            linked = False
        previous_end = first + count
        entries = np.zeros(count + 1, dtype=np.uint32)
        known = min(count + 1, geometry.end_cluster - first)
        entries[:known] = read_entries(device, geometry, first, known)
        if entries.max() == 0:
            linked = False
            continue
        usable = (entries != 0) & (entries != bad_mark)
        cluster = np.arange(first, first + count, dtype=np.uint32)
        link = usable[:-1] & usable[1:] & (entries[:-1] == cluster + 1)
        begins = usable[:-1].copy()
        begins[1:] &= ~link[:-1]
        begins[0] &= not linked
        linked = bool(link[-1])
        ends = np.flatnonzero(usable[:-1] & ~link)
        starts.append((np.flatnonzero(begins) + first).astype(np.int32))
        lasts.append((ends + first).astype(np.int32))
        followings.append(entries[ends].astype(np.int32))
        bads.append((np.flatnonzero(entries[:-1] == bad_mark) + first).astype(np.int32))
    start, last, following = np.concatenate(starts), np.concatenate(lasts), np.concatenate(followings)
    marked = np.concatenate(bads).astype(np.int64)
    bad = Runs.from_arrays(marked, np.ones_like(marked))
    successor, ending = _locate(following, start, last, bad, geometry.end_cluster)
    ending[following >= layout.END_OF_CHAIN[geometry.fat_bits]] = Ending.END
    return Table(geometry.end_cluster, start, last, following, ending, successor, bad)


def read_entries(device: BlockDevice, geometry: Geometry, first: int, count: int) -> NDArray[np.uint32]:
    """The entries ``first`` to ``first + count`` of the FAT that is kept, without reserved bits."""
    low, high = first * geometry.fat_bits // 8, -(-(first + count) * geometry.fat_bits // 8)
    raw = device.read(geometry.fat_offset + low, high - low)
    return unpack_entries(raw, geometry.fat_bits, first, count)


def unpack_entries(raw: bytes, fat_bits: int, first: int, count: int) -> NDArray[np.uint32]:
    """As :func:`read_entries`, from the bytes of these entries: the first and last shared with others on FAT12."""
    if fat_bits == 12:
        packed = np.frombuffer(raw, dtype=np.uint8).astype(np.uint32)
        bit = np.arange(first, first + count) * 12 - first * 3 // 2 * 8
        pair = packed[bit >> 3] | packed[(bit >> 3) + 1] << 8
        unpacked: NDArray[np.uint32] = pair >> (bit & 4).astype(np.uint32) & 0xFFF
        return unpacked
    entries = np.frombuffer(raw, dtype=f"<u{fat_bits // 8}").astype(np.uint32, copy=False)
    return np.bitwise_and(entries, layout.ENTRY_MASK_FAT32, dtype=np.uint32)


def _slabs(device: BlockDevice, geometry: Geometry) -> Iterator[tuple[int, int]]:
    """(first entry, count) of what has to be read: holes of the medium are free clusters."""
    if geometry.fat_bits != 32:
        yield layout.FIRST_CLUSTER, geometry.total_clusters
        return
    at = layout.FIRST_CLUSTER
    for extent in device.extents(geometry.fat_offset, geometry.end_cluster * 4):
        if not extent.is_data:
            continue
        low = extent.offset_bytes - geometry.fat_offset
        at = max(at, low // 4)
        end = -(-(low + extent.length_bytes) // 4)
        while at < end:
            count = min(SLAB_ENTRIES, end - at)
            yield at, count
            at += count


def _locate(
    cluster: NDArray[np.signedinteger], start: Int32s, last: Int32s, bad: Runs, end_cluster: int
) -> tuple[Int32s, NDArray[np.int8]]:
    """The segment that each cluster lies in (LINK), or why it lies in none."""
    found = np.searchsorted(last, cluster.astype(np.int32))
    nearest = np.minimum(found, len(last) - 1) if len(last) else found
    inside = (found < len(last)) & (cluster >= (start[nearest] if len(last) else 0))
    ending = np.where(inside, Ending.LINK, Ending.FREE).astype(np.int8)
    ending[(cluster < layout.FIRST_CLUSTER) | (cluster >= end_cluster)] = Ending.OUTSIDE
    if len(bad):
        run = np.searchsorted(bad.start, cluster, side="right") - 1
        ending[(run >= 0) & (cluster < bad.end[run])] = Ending.BAD
    return found.astype(np.int32), ending


def _check_total(runs: int, limit: int) -> None:
    if runs > limit:
        raise InconsistentVolume("FAT", f"the chains share clusters so often that they have over {limit} runs")
