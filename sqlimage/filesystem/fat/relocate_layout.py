"""The new place of every cluster: around what has to stay where it is, in directory order or where it was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqlimage.extent import Int64s, Runs
from sqlimage.filesystem.contract import ContentFlag, Contents
from sqlimage.filesystem.fat import layout
from sqlimage.filesystem.fat.boot import Geometry
from sqlimage.filesystem.fat.relocate_chains import SoundChains
from sqlimage.filesystem.fat.relocate_place import Stretches, overlap, place


@dataclass(frozen=True, slots=True, eq=False)
class ClusterMoves:
    """Every piece of a chain, moved or not, in clusters by their old and new numbers. The pieces of a chain lie
    together, in its order."""

    chain: Int64s
    old: Int64s
    new: Int64s
    length: Int64s
    bad: Runs
    """By their new numbers: they stay where they are on the medium, and are gone where that is behind the end."""

    def taken(self) -> Runs:
        return Runs.from_arrays(self.new, self.length).union(self.bad)

    def begins(self) -> NDArray[np.bool_]:
        """Which pieces are the first of their chain."""
        change: NDArray[np.bool_] = np.diff(self.chain, prepend=-1) != 0
        return change

    def first(self, contents: int) -> Int64s:
        """The new first cluster of each of the first chains; 0 where it has none."""
        found = np.zeros(max(int(self.chain.max(initial=0)) + 1, contents), dtype=np.int64)
        heads = self.begins()
        found[self.chain[heads]] = self.new[heads]
        return found[:contents]


def directory_order(contents: Contents, parent: Int64s) -> Int64s:
    """The contents as a walk of the tree meets them: a directory, the files in it, then the directories in it.

    ``parent`` is the row of the directory that each lies in. Rows come level by level, as in every scan.
    """
    directory = (contents.flags & ContentFlag.INDEX) != 0
    rows = np.flatnonzero(directory)[1:].tolist()
    above = parent.tolist()
    below = [1] * len(contents)
    """Directories in the tree that begins at a row, itself included."""
    for row in reversed(rows):
        below[above[row]] += below[row]
    turn, following = [0] * len(contents), [1] * len(contents)
    for row in rows:
        turn[row] = following[above[row]]
        following[above[row]] += below[row]
        following[row] = turn[row] + 1
    walked = np.array(turn, dtype=np.int64)
    return np.argsort(np.where(directory, walked, walked[parent]), kind="stable")


def move_clusters(
    old: Geometry, new: Geometry, sound: SoundChains, bad: Runs, pinned: Int64s, order: Int64s | None
) -> ClusterMoves:
    """``order``: of the contents, to lay every chain in one run from the front; None: what can stay does.

    ``pinned`` are contents that stay where they are on the medium, as far as all of one lies within the new heap.
    """
    shift = (new.heap_offset - old.heap_offset) // old.bytes_per_cluster
    front, end = layout.FIRST_CLUSTER, new.end_cluster
    chain = np.repeat(np.arange(len(sound.chains.clusters), dtype=np.int64), np.diff(sound.chains.first_run))
    start, length = sound.chains.start, sound.chains.length
    fixed = np.isin(chain, pinned)
    fixed &= ~np.isin(chain, chain[fixed & ((start - shift < front) | (start + length - shift > end))])
    bad = bad.shift(-shift).clip(front, end)
    stays = Runs.from_arrays(start[fixed] - shift, length[fixed]).union(bad)
    if order is not None:
        turn = np.arange(len(sound.chains.clusters), dtype=np.int64)  # lost ones come behind, as they are
        turn[order] = np.arange(len(order))
        walked = np.argsort(turn[chain], kind="stable")
        chain, start, length, fixed = chain[walked], start[walked], length[walked], fixed[walked]
        kept = fixed
    else:
        piece, start, length = _cut(start, length, Runs.of([(front, end - front)]).subtract(stays))
        chain, fixed = chain[piece], fixed[piece]
        kept = fixed | ((start < end) & ~_lie_in(start, stays))
    new_start = np.where(fixed, start - shift, start)
    gaps = Runs.of([(front, end - front)]).subtract(stays.union(Runs.from_arrays(new_start[kept], length[kept])))
    unit = np.cumsum((np.diff(chain, prepend=-1) != 0) | kept) - 1
    lies = _put(unit, new_start, length, kept, gaps)
    part = overlap(length, lies.length)
    return ClusterMoves(chain[part.a], start[part.a] + part.into_a, lies.start[part.b] + part.into_b, part.length, bad)


def _put(unit: Int64s, start: Int64s, length: Int64s, kept: NDArray[np.bool_], gaps: Runs) -> Stretches:
    """Where all units lie: those that are kept, and the others in the gaps."""
    size = np.bincount(unit[~kept], weights=length[~kept]).astype(np.int64)
    moved = place(size, gaps)
    whose = np.concatenate((unit[kept], moved.unit))
    by_unit = np.argsort(whose, kind="stable")
    starts, lengths = np.concatenate((start[kept], moved.start)), np.concatenate((length[kept], moved.length))
    return Stretches(whose[by_unit], starts[by_unit], lengths[by_unit])


def _cut(start: Int64s, length: Int64s, usable: Runs) -> tuple[Int64s, Int64s, Int64s]:
    """Pieces cut where usable places begin or end: (which one it was, start, length)."""
    borders = np.sort(np.concatenate((usable.start, usable.end)))
    after = np.searchsorted(borders, start, side="right")
    inside = np.searchsorted(borders, start + length) - after
    piece = np.repeat(np.arange(len(start)), inside + 1)
    nth = np.arange(len(piece)) - np.repeat(np.cumsum(inside + 1) - inside - 1, inside + 1)
    at = after[piece] + nth
    padded = np.append(borders, 0)
    low = np.where(nth == 0, start[piece], padded[at - 1])
    high = np.where(nth == inside[piece], (start + length)[piece], padded[np.minimum(at, len(borders))])
    return piece, low, high - low


def _lie_in(place: Int64s, runs: Runs) -> NDArray[np.bool_]:
    found = np.searchsorted(runs.start, place, side="right") - 1
    inside: NDArray[np.bool_] = found >= 0
    if len(runs):
        inside &= place < runs.end[found]
    return inside
