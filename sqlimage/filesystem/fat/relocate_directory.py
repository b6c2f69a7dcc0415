"""The numbers of first clusters that directories hold: checked against what the scan found, and made anew."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s
from sqlimage.filesystem.contract import ContentFlag, Scan
from sqlimage.filesystem.fat import layout
from sqlimage.filesystem.fat.boot import Geometry
from sqlimage.filesystem.fat.directory import first_cluster_of
from sqlimage.filesystem.fat.relocate_ledger import Ledger
from sqlimage.filesystem.fat.relocate_moves import Moves
from sqlimage.units import KIB, MIB

STRETCH_BYTES = 64 * KIB
"""At most so much is read at once, or one fix-up."""
BATCH_BYTES = 4 * MIB
"""So much is read before it is looked at: a multiple of STRETCH_BYTES."""


class _Numbers(NamedTuple):
    """First clusters in directories, by place."""

    place: Int64s
    """Of the entry, bytes from the start of the old volume."""
    owner: Int64s
    """Row of the directory it lies in."""
    row: Int64s
    """Of what it is the entry of; -1 for ``.``, -2 for ``..``, which need not be there."""
    old: Int64s
    new: Int64s


def parents(scan: Scan) -> Int64s:
    """For each content, the row of the directory that its entry lies in; the root lies in itself."""
    contents = scan.contents
    owner = contents.run_owner()
    runs = np.flatnonzero((contents.flags[owner] & ContentFlag.INDEX) != 0)
    runs = runs[np.argsort(contents.run_offset[runs], kind="stable")]
    found = np.searchsorted(contents.run_offset[runs], contents.record[1:] * layout.ENTRY_BYTES, side="right") - 1
    return np.concatenate((np.zeros(1, dtype=np.int64), owner[runs[found]]))


def fix_directories(
    device: BlockDevice,
    geometry: Geometry,
    scan: Scan,
    parent: Int64s,
    old: Int64s,
    new: Int64s,
    moves: Moves,
    ledger: Ledger,
) -> None:
    """``old`` and ``new`` are the first clusters of the contents, 0 where there is none.

    Raises :class:`InconsistentVolume` where an entry names another cluster than the scan took it to: one that is free.
    """
    numbers = _numbers(geometry, scan, parent, old, new)
    size, paths = geometry.bytes_per_sector, scan.entries.path
    sector, head, at = np.unique(numbers.place // size, return_index=True, return_inverse=True)
    owner, to = numbers.owner[head], moves.locate(sector * size)
    apart = np.arange(len(sector)) % (STRETCH_BYTES // size) == 0
    apart[1:] |= (np.diff(sector) != 1) | (np.diff(to) != size) | (np.diff(owner) != 0)
    step = BATCH_BYTES // size
    for low in range(0, len(sector), step):
        high = min(low + step, len(sector))
        batch = apart[low:high]
        begin, end = _stretches(np.ones_like(batch), batch)
        places = zip((sector[low:high][begin] * size).tolist(), ((end - begin) * size).tolist(), strict=True)
        raw = b"".join([device.read(place, length) for place, length in places])
        part = slice(*np.searchsorted(at, (low, high)).tolist())
        here = _Numbers(*(column[part] for column in numbers))
        inside = (at[part] - low) * size + here.place % size
        changed, which = _renumbered(raw, inside // layout.ENTRY_BYTES, here, geometry.fat_bits, paths)
        mask = np.zeros_like(batch)
        mask[inside[which] // size] = True
        begin, end = _stretches(mask, batch)
        for first, last in zip(begin.tolist(), end.tolist(), strict=True):
            span = slice(first * size, last * size)
            reason = f"directory {paths[owner[low + first]]!r}: first clusters"
            ledger.add(int(to[low + first]), raw[span], changed[span], reason)


def _numbers(geometry: Geometry, scan: Scan, parent: Int64s, old: Int64s, new: Int64s) -> _Numbers:
    named = np.arange(1, len(parent))
    moved = old != new
    below = named[(scan.contents.flags[1:] & ContentFlag.INDEX) != 0]
    below = below[moved[below] | moved[parent[below]]]
    above = parent[below]
    dot = geometry.heap_offset + (old[below] - layout.FIRST_CLUSTER) * geometry.bytes_per_cluster
    unknown = np.full(len(below), -1)
    columns = (
        (scan.contents.record[named] * layout.ENTRY_BYTES, dot, dot + layout.ENTRY_BYTES),
        (parent[named], below, below),
        (named, unknown, unknown - 1),
        (old[named], unknown, unknown),
        (new[named], new[below], np.where(above == 0, 0, new[above])),
    )
    whole = [np.concatenate(parts) for parts in columns]
    order = np.argsort(whole[0], kind="stable")
    return _Numbers(*(column[order] for column in whole))


def _renumbered(raw: bytes, place: Int64s, numbers: _Numbers, fat_bits: int, paths: list[str]) -> tuple[bytes, Int64s]:
    """The directories with their new numbers, and which of the numbers are new. ``place`` counts entries."""
    entries = np.frombuffer(bytearray(raw), dtype=layout.DIRECTORY_ENTRY)
    found = first_cluster_of(entries[place], fat_bits)
    wrong = np.flatnonzero((numbers.row > 0) & (found != numbers.old))
    if len(wrong):
        raise InconsistentVolume(
            f"file {paths[numbers.row[wrong[0]]]!r}",
            f"begins at cluster {found[wrong[0]]}, which is not allocated",
            offset_bytes=int(numbers.place[wrong[0]]),
        )
    change = found != numbers.new
    for row, name in ((-1, layout.NAME_DOT), (-2, layout.NAME_DOTDOT)):
        dotted = np.flatnonzero(numbers.row == row)
        there = (entries["DIR_Name"][place[dotted]] == np.frombuffer(name, dtype=np.uint8)).all(axis=1)
        change[dotted[~there]] = False
    which = np.flatnonzero(change)
    entries["DIR_FstClusLO"][place[which]] = numbers.new[which] & 0xFFFF
    if fat_bits == 32:
        entries["DIR_FstClusHI"][place[which]] = numbers.new[which] >> 16
    return entries.tobytes(), which


def _stretches(mask: NDArray[np.bool_], apart: NDArray[np.bool_]) -> tuple[Int64s, Int64s]:
    """Where a mask is set, as starts and ends, cut where ``apart`` says that a place is apart from the one before."""
    before = np.concatenate(([False], mask[:-1] & ~apart[1:]))
    after = np.concatenate((before[1:] & mask[1:], [False]))
    return np.flatnonzero(mask & ~before), np.flatnonzero(mask & ~after) + 1
