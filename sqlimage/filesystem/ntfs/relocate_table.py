"""Every run of a volume as one table in clusters, and what becomes of it: laid elsewhere, cut, merged, written down."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sqlimage.errors import InconsistentVolume, RefusedError
from sqlimage.extent import Int64s, Runs, first_overlap
from sqlimage.filesystem.contract import HOLE, Contents
from sqlimage.filesystem.ntfs.tables import Bools, Parts

NEW = -2
"""In ``Table.lcn``: clusters that the volume does not have yet."""

_LOST_MAX = 1 << 20
"""So many stretches that nobody owns are no accident any more."""


@dataclass(frozen=True, slots=True)
class Table:
    """Runs in clusters, by owner. An owner is a row of the contents; each stretch of clusters that are in use though
    no content has them is an owner of its own, behind those."""

    owner: Int64s
    part: Int64s
    """Row in :class:`Parts`, or -1."""
    lcn: Int64s
    """``HOLE``, ``NEW``, or where the run lies."""
    length: Int64s

    @property
    def backed(self) -> Bools:
        backed: Bools = self.lcn != HOLE
        return backed


@dataclass(frozen=True, slots=True)
class Places:
    """Where clusters go. All backed clusters are numbered in the order of the table; those from ``number[i]`` on, up
    to ``number[i + 1]``, lie from ``lcn[i]`` on. The first number is 0."""

    number: Int64s
    lcn: Int64s

    @classmethod
    def of(cls, number: Int64s, lcn: Int64s) -> Places:
        order = np.argsort(number, kind="stable")
        return cls(number[order], lcn[order])


@dataclass(frozen=True, slots=True)
class Moved:
    """The table as the volume will have it, and how each cluster gets there."""

    table: Table
    """Runs merged where they can be."""
    changed: Bools
    """Of each part: its run list is to be written anew."""
    old: Int64s
    new: Int64s
    length: Int64s
    """In clusters; in no order."""


def table_of(contents: Contents, parts: Parts, in_use: Runs, bytes_per_cluster: int) -> Table:
    """``in_use`` are the clusters that $Bitmap has.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where streams share clusters or lie in free ones.
    """
    backed = contents.run_offset != HOLE
    lcn = np.where(backed, contents.run_offset // bytes_per_cluster, HOLE)
    length = contents.run_length // bytes_per_cluster
    shared = first_overlap(lcn[backed], length[backed])
    if shared is not None:
        raise InconsistentVolume("MFT", f"two streams have cluster {shared}")
    owned = Runs.from_arrays(lcn[backed], length[backed])
    free = owned.subtract(in_use)
    if len(free):
        raise InconsistentVolume("$Bitmap", f"cluster {int(free.start[0])} is free, though a stream has it")
    lost = in_use.subtract(owned)
    if len(lost) > _LOST_MAX:
        raise InconsistentVolume("$Bitmap", f"{lost.total} clusters are in use, though no stream has them")
    return Table(
        np.concatenate((contents.run_owner(), len(contents) + np.arange(len(lost), dtype=np.int64))),
        np.concatenate((np.repeat(np.arange(len(parts), dtype=np.int64), parts.run_count), np.full(len(lost), -1))),
        np.concatenate((lcn, lost.start)),
        np.concatenate((length, lost.length)),
    )


def resized(table: Table, owner: int, clusters: int, filler: int) -> Table:
    """The table with another length of one stream; what is new of it is ``NEW`` or a ``HOLE``.

    Raises :class:`~sqlimage.errors.RefusedError` where none of a part would be left.
    """
    low, high = np.searchsorted(table.owner, [owner, owner + 1]).tolist()
    length = table.length[low:high]
    end = np.cumsum(length)
    kept = np.clip(clusters - (end - length), 0, length)
    part = table.part[low:high]
    if len(np.unique(part[kept > 0])) < len(np.unique(part)):
        raise RefusedError(
            "NTFS: the run list of $Bitmap or $BadClus lies in several records, they cannot be shortened"
        )
    inside = kept > 0
    added = clusters - int(end[-1])
    columns = (owner, int(part[-1]), filler, added)
    rows = []
    for column, value, middle in zip(
        (table.owner, table.part, table.lcn, table.length),
        columns,
        (table.owner[low:high], part, table.lcn[low:high], kept),
        strict=True,
    ):
        extra = [value] if added > 0 else []
        new = np.array(extra, dtype=np.int64)
        rows.append(np.concatenate((column[:low], middle[inside], new, column[high:])))
    return Table(*rows)


def numbers(table: Table) -> Int64s:
    """The number of each run's first cluster among all backed ones, also for holes."""
    length = np.where(table.backed, table.length, 0)
    return np.cumsum(length) - length


def moved(table: Table, places: Places, resized_parts: Bools, *, merge: bool) -> Moved:
    """Where all runs lie when everything has been moved.

    A part is ``changed`` where any of its clusters moves, where it is one of ``resized_parts``, and, with ``merge``,
    where it has runs that could be one.
    """
    backed = np.flatnonzero(table.backed)
    first = numbers(table)[backed]
    starts = np.union1d(first, places.number)
    total = int(table.length[backed].sum())
    run = np.searchsorted(first, starts, "right") - 1
    place = np.searchsorted(places.number, starts, "right") - 1
    old = table.lcn[backed[run]]
    old = np.where(old == NEW, NEW, old + starts - first[run])
    new = places.lcn[place] + starts - places.number[place]
    length = np.diff(np.append(starts, total))
    holes = np.flatnonzero(~table.backed)
    order = np.argsort(np.concatenate((backed[run], holes)), kind="stable")
    rows = np.concatenate((backed[run], holes))[order]
    lcn = np.concatenate((new, np.full(len(holes), HOLE)))[order]
    lengths = np.concatenate((length, table.length[holes]))[order]
    pieces = Table(table.owner[rows], table.part[rows], lcn, lengths)
    changed = resized_parts.copy()
    part = pieces.part[np.concatenate((old != new, np.zeros(len(holes), dtype=np.bool_)))[order]]
    changed[part[part >= 0]] = True
    joins = _joins(pieces)
    if merge:
        changed[pieces.part[joins]] = True
    joins[joins] = changed[pieces.part[joins]]
    kept = old != NEW
    return Moved(_merged(pieces, joins), changed, old[kept], new[kept], length[kept])


def _joins(pieces: Table) -> Bools:
    """Which runs go on where the one before them ends, in the same part."""
    joins = np.zeros(len(pieces.lcn), dtype=np.bool_)
    before, lcn = pieces.lcn[:-1], pieces.lcn[1:]
    follows = np.where(before == HOLE, lcn == HOLE, (lcn != HOLE) & (lcn == before + pieces.length[:-1]))
    joins[1:] = follows & (pieces.part[1:] == pieces.part[:-1]) & (pieces.part[1:] >= 0)
    return joins


def _merged(pieces: Table, joins: Bools) -> Table:
    first = np.flatnonzero(~joins)
    if len(first) == 0:
        return pieces
    return Table(pieces.owner[first], pieces.part[first], pieces.lcn[first], np.add.reduceat(pieces.length, first))


def contents_of(table: Table, contents: Contents, bytes_per_cluster: int) -> Contents:
    """The contents with the table's runs."""
    count = len(contents)
    rows = table.owner < count
    lcn = table.lcn[rows]
    first_run = np.concatenate(([0], np.cumsum(np.bincount(table.owner[rows], minlength=count)))).astype(np.int64)
    offset = np.where(lcn == HOLE, HOLE, lcn * bytes_per_cluster)
    return replace(contents, first_run=first_run, run_offset=offset, run_length=table.length[rows] * bytes_per_cluster)


def parts_clusters(table: Table, count: int) -> NDArray[np.int64]:
    """How many clusters each part covers, holes included."""
    own = table.part >= 0
    total = np.zeros(count, dtype=np.int64)
    np.add.at(total, table.part[own], table.length[own])
    return total
