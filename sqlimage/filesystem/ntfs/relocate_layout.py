"""Where everything goes: only what has to move into what is free, or all of it from the front."""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

import numpy as np

from sqlimage.extent import Int64s, Runs
from sqlimage.filesystem.contract import EntryKind, Scan
from sqlimage.filesystem.ntfs import layout
from sqlimage.filesystem.ntfs.relocate_pack import pack
from sqlimage.filesystem.ntfs.relocate_table import NEW, Places, Table, numbers
from sqlimage.filesystem.ntfs.tables import Bools

_METADATA, _FILES, _MFT = range(3)
_UNITS_MAX = 1 << 20
"""More pieces than this are not fitted into gaps one by one."""


def directory_order(scan: Scan, owners: int) -> Int64s:
    """All owners of clusters in the order in which they are to lie: metadata by record, then directories, each with
    what is in it behind it, by name; last what belongs to nobody, and $MFT, which so has room to grow."""
    entries, record = scan.entries, scan.contents.record
    text = [path.upper().replace("/", "\0") for path in entries.path]
    by_name = np.array(sorted(range(len(text)), key=text.__getitem__), dtype=np.int64)
    records = int(max(entries.record.max(initial=0), record.max(initial=0))) + 1
    rank = np.full(records, len(text), dtype=np.int64)
    np.minimum.at(rank, entries.record[by_name], np.arange(len(text)))
    group = np.full(records, _FILES)
    group[entries.record[entries.kind == EntryKind.METADATA]] = _METADATA
    rank[group == _METADATA] = 0
    of_mft = np.flatnonzero(record == layout.MFT_RECORD)
    groups = np.concatenate((group[record], np.full(owners - len(record), _FILES)))
    groups[of_mft] = _MFT
    ranks = np.concatenate((rank[record], np.full(owners - len(record), len(text) + 1)))
    order: Int64s = np.lexsort(
        (np.arange(owners), np.append(record, np.zeros(owners - len(record), dtype=np.int64)), ranks, groups)
    )
    return order


def into_gaps(table: Table, clusters: int, whole: int, *, cut: bool) -> Places | None:
    """Everything stays where it is but the runs that reach beyond ``clusters``, and those of the owner ``whole``, which
    is kept in one run where any of it has to move. What an owner has to move stays together where a gap takes it.
    With ``cut`` only that part of a run moves that lies beyond.

    None where there are gaps enough, but each too small for a run.
    """
    if cut:
        table = _cut_at(table, clusters)
    rows = np.flatnonzero(table.backed)
    lcn, length, owner = table.lcn[rows].copy(), table.length[rows], table.owner[rows]
    leaves = (lcn == NEW) | (lcn + length > clusters)
    one = owner == whole
    if (leaves & one).any():
        leaves |= one
    gaps = Runs.from_arrays(lcn[~leaves], length[~leaves]).complement(clusters)
    if (leaves & one).any():
        place = _one_place(gaps, int(lcn[one][0]), int(length[one].sum()))
        if place is None:
            return None
        lcn[one] = place + np.cumsum(length[one]) - length[one]
        gaps = gaps.subtract(Runs.of([(place, int(length[one].sum()))]))
        leaves &= ~one
    going = np.flatnonzero(leaves)
    if not _fill(gaps, going, owner, length, lcn):
        return None
    return Places.of(numbers(table)[rows], lcn)


def _cut_at(table: Table, clusters: int) -> Table:
    """The runs across a border made two; nothing else changes, the numbers of clusters included."""
    across = (table.lcn >= 0) & (table.lcn < clusters) & (table.lcn + table.length > clusters)
    row = np.repeat(np.arange(len(table.lcn)), 1 + across)
    is_second = np.append(False, row[1:] == row[:-1])
    is_first = np.append(is_second[1:], False)
    lcn = np.where(is_second, clusters, table.lcn[row])
    length = np.where(is_first, clusters - table.lcn[row], table.length[row])
    length = np.where(is_second, table.lcn[row] + table.length[row] - clusters, length)
    return Table(table.owner[row], table.part[row], lcn, length)


def _one_place(gaps: Runs, preferred: int, clusters: int) -> int | None:
    """Where so many clusters find room: from ``preferred`` on, or in the first gap that takes them."""
    inside = (gaps.start <= preferred) & (gaps.end >= preferred + clusters)
    if inside.any():
        return preferred
    wide = np.flatnonzero(gaps.length >= clusters)
    return int(gaps.start[wide[0]]) if len(wide) else None


def _fill(gaps: Runs, going: Int64s, owner: Int64s, length: Int64s, lcn: Int64s) -> bool:
    """Give the runs ``going`` their new LCNs, the largest units of them first, each in the largest gap left.

    A unit is what an owner has to move, or where no gap takes that, a single run. False where a run finds no gap.
    """
    if len(going) == 0:
        return True
    if len(gaps) == 0 or len(going) > _UNITS_MAX:
        return False
    first = np.flatnonzero(np.diff(owner[going], prepend=-1))
    total = np.add.reduceat(length[going], first)
    largest = int(gaps.length.max())
    if int(total.sum()) <= largest:
        lcn[going] = int(gaps.start[int(np.argmax(gaps.length))]) + np.cumsum(length[going]) - length[going]
        return True
    units = [
        (-size, begin, going[begin:end].tolist())
        for size, begin, end in zip(total.tolist(), first.tolist(), [*first[1:].tolist(), len(going)], strict=True)
    ]
    heapify(units)
    left = [(-size, start) for start, size in gaps]
    heapify(left)
    while units:
        wanted, begin, runs = heappop(units)
        room, start = left[0]
        if room <= wanted:
            heapreplace(left, (room - wanted, start - wanted))
            for run in runs:
                lcn[run] = start
                start += int(length[run])
        elif len(runs) == 1:
            return False
        else:
            for i, run in enumerate(runs):
                heappush(units, (-int(length[run]), begin + i, [run]))
    return True


def from_the_front(table: Table, order: Int64s, fixed: Bools, clusters: int, first: int = 0) -> Places | None:
    """All owners one behind the other in ``order``, each in one run; those that are ``fixed`` stay where they are, and
    the others are laid around them. Where the order leaves gaps too large for that, only the ``first`` so many keep to
    it, and where some fit into no gap, those are torn.

    None where more are in use than ``clusters``.
    """
    rows = np.flatnonzero(table.backed)
    owner, length, number = table.owner[rows], table.length[rows], numbers(table)[rows]
    begin = np.flatnonzero(np.diff(owner, prepend=-1))
    sizes, number_of = np.zeros((2, len(order)), dtype=np.int64)
    sizes[owner[begin]], number_of[owner[begin]] = np.add.reduceat(length, begin), number[begin]
    stays = fixed[owner]
    gaps = Runs.from_arrays(table.lcn[rows[stays]], length[stays]).complement(clusters)
    is_item = ~fixed[order] & (sizes[order] > 0)
    items = order[is_item]
    packed = pack(gaps, sizes[items], int(is_item[:first].sum()))
    if packed is None:
        return None
    item, inside, lcn = packed
    numbered = number_of[items][item] + inside
    return Places.of(np.concatenate((number[stays], numbered)), np.concatenate((table.lcn[rows[stays]], lcn)))
