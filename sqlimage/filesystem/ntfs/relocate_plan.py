"""Which of the possible layouts is taken: one whose run lists fit into the records that hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sqlimage.errors import RefusedError
from sqlimage.extent import Int64s
from sqlimage.filesystem.contract import Scan
from sqlimage.filesystem.ntfs.boot import Geometry
from sqlimage.filesystem.ntfs.relocate_layout import directory_order, from_the_front, into_gaps
from sqlimage.filesystem.ntfs.relocate_records import lists_of, too_long
from sqlimage.filesystem.ntfs.relocate_slab import RunLists
from sqlimage.filesystem.ntfs.relocate_table import Moved, Places, Table, moved
from sqlimage.filesystem.ntfs.tables import Bools, Parts

_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class SystemRows:
    """Rows of the contents that matter for the layout."""

    mft: int
    mft2: int
    bitmap: int
    boot: int
    bad: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A layout and the run lists that tell it."""

    moved: Moved
    lists: RunLists


class Planner:
    """Finds the layout of a table that has the sizes of the new volume already."""

    def __init__(
        self,
        scan: Scan,
        table: Table,
        parts: Parts,
        resized: Bools,
        rows: SystemRows,
        clusters: int,
        geometry: Geometry,
    ) -> None:
        """``resized`` are the parts with new lengths, ``clusters`` what the new volume has."""
        self._scan = scan
        self._table = table
        self._parts = parts
        self._resized = resized
        self._rows = rows
        self._clusters = clusters
        self._geometry = geometry
        self._torn_before = self._torn(table)

    def plan(self, *, defragment: bool) -> Plan:
        """Only what must move, where that can be had; else everything from the front.

        Raises :class:`~sqlimage.errors.RefusedError` where a run list does not fit into its record whatever is tried.
        """
        for cut in () if defragment else (False, True):
            places = into_gaps(self._table, self._clusters, self._rows.bitmap, cut=cut)
            plan = None if places is None else self._with(places, merge=False)
            if plan is not None and len(self._misfits(plan)) == 0:
                return plan
        return self._from_the_front()

    def _with(self, places: Places, *, merge: bool) -> Plan:
        result = moved(self._table, places, self._resized, merge=merge)
        return Plan(result, lists_of(result, self._parts))

    def _misfits(self, plan: Plan) -> Int64s:
        """The rows that cannot lie so: their run lists outgrow their records, or records of the MFT would be torn."""
        parts = too_long(plan.lists, self._parts, self._geometry.bytes_per_record)
        torn = self._torn(plan.moved.table) - self._torn_before
        return np.union1d(self._parts.content[parts], np.array(sorted(torn), dtype=np.int64))

    def _torn(self, table: Table) -> set[int]:
        """Of $MFT and $MFTMirr, those that have a record in two runs."""
        geometry, torn = self._geometry, set()
        for row in (self._rows.mft, self._rows.mft2):
            end = np.cumsum(table.length[table.owner == row] * geometry.bytes_per_cluster)
            if (end[:-1] % geometry.bytes_per_record).any():
                torn.add(row)
        return torn

    def _from_the_front(self) -> Plan:
        """A stream that does not fit comes to the very front, where LCNs are short and gaps are wide; if that does not
        help, it stays where it is."""
        owners = max(len(self._scan.contents), int(self._table.owner[-1]) + 1)
        order = directory_order(self._scan, owners)
        fixed, front = np.zeros((2, owners), dtype=np.bool_)
        fixed[[self._rows.boot, self._rows.bad]] = True
        for _ in range(_ROUNDS):
            arranged = np.concatenate((order[front[order]], order[~front[order]]))
            places = from_the_front(self._table, arranged, fixed, self._clusters, int(front.sum()))
            if places is None:
                raise RefusedError(f"NTFS: {self._clusters} clusters are too few for what is in use")
            plan = self._with(places, merge=True)
            misfits = self._misfits(plan)
            if len(misfits) == 0:
                return plan
            staying = misfits[front[misfits]]
            if fixed[staying].any() or not self._can_stay()[staying].all():
                break
            fixed[staying] = True
            front[misfits] = True
        name = self._name(int(misfits[0]))
        raise RefusedError(f"NTFS: {name} fits nowhere: its run list would outgrow its record, or bad clusters tear it")

    def _can_stay(self) -> Bools:
        table = self._table
        gone = table.backed & ((table.lcn < 0) | (table.lcn + table.length > self._clusters))
        can: Bools = np.bincount(table.owner, weights=gone, minlength=len(self._scan.contents)) == 0
        return can

    def _name(self, row: int) -> str:
        entries, contents = self._scan.entries, self._scan.contents
        found = np.flatnonzero(entries.record == contents.record[row])
        path = entries.path[int(found[0])] if len(found) else f"MFT record {int(contents.record[row])}"
        return f"{path}:{contents.stream[row]}" if contents.stream[row] else path
