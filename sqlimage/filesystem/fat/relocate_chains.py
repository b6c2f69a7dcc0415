"""Every chain of a volume, checked: only what lies in exactly one chain can be moved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s
from sqlimage.filesystem.contract import Contents
from sqlimage.filesystem.fat import layout
from sqlimage.filesystem.fat.boot import Geometry
from sqlimage.filesystem.fat.table import Chains, Ending, Table


@dataclass(frozen=True, slots=True, eq=False)
class SoundChains:
    """The chains of the scan's contents, row by row, then the lost ones (no entry names them), by first cluster."""

    contents: int
    """So many of the chains are the contents'; those of empty files have no runs."""
    chains: Chains
    end_mark: Int64s
    """What the last entry of each chain holds; 0 where it has none."""

    @property
    def first(self) -> Int64s:
        """The first cluster of each content; 0 where it has none."""
        return _at_first_run(self.chains.first_run[: self.contents + 1], self.chains.start)


def sound_chains(geometry: Geometry, table: Table, contents: Contents) -> SoundChains:
    """Raises :class:`InconsistentVolume` where a chain does not end or a cluster is reached in two ways or in none."""
    _check_ends(table)
    offset = _at_first_run(contents.first_run, contents.run_offset)
    first = np.where(
        offset >= geometry.heap_offset,
        (offset - geometry.heap_offset) // geometry.bytes_per_cluster + layout.FIRST_CLUSTER,
        0,
    )
    reached = _reached(table, first[first != 0])
    lost = table.start[reached == 0].astype(np.int64)
    chains = table.follow(np.concatenate((first, lost)))
    if int(chains.clusters.sum()) != int((table.last.astype(np.int64) - table.start + 1).sum()):
        raise InconsistentVolume("FAT", "a chain that belongs to no file leads back into itself")
    end_mark = np.zeros(len(chains.clusters), dtype=np.int64)
    some = np.flatnonzero(chains.clusters)
    tail = chains.first_run[some + 1] - 1
    end_mark[some] = table.following[np.searchsorted(table.last, chains.start[tail])]
    return SoundChains(len(contents), chains, end_mark)


def _check_ends(table: Table) -> None:
    wrong = np.flatnonzero((table.ending != Ending.LINK) & (table.ending != Ending.END))
    if len(wrong):
        words = Ending(int(table.ending[wrong[0]])).words
        raise InconsistentVolume("FAT", f"the chain that reaches cluster {table.last[wrong[0]]} {words}")


def _reached(table: Table, first: Int64s) -> Int64s:
    """How often each segment is linked to or begins a content: 0 or 1."""
    link = table.ending == Ending.LINK
    target = np.concatenate((table.following[link], first.astype(np.int32)))
    segment = np.concatenate((table.successor[link], np.searchsorted(table.last, first.astype(np.int32))))
    amid = np.flatnonzero(table.start[segment] != target)
    times = np.bincount(segment, minlength=len(table.start))
    twice = np.flatnonzero(times > 1)
    if len(amid) or len(twice):
        cluster = target[amid[0]] if len(amid) else table.start[twice[0]]
        raise InconsistentVolume("FAT", f"cluster {cluster} is reached by two chains or files")
    return times


def _at_first_run(first_run: Int64s, value: Int64s) -> Int64s:
    """Of each row the value of its first run, or 0."""
    found = np.zeros(len(first_run) - 1, dtype=np.int64)
    some = np.flatnonzero(np.diff(first_run))
    found[some] = value[first_run[some]]
    return found
