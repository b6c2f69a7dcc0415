"""Which of the possible layouts is taken: one whose run lists fit into the records that hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sqlimage.errors import RefusedError
from sqlimage.extent import Int64s
from sqlimage.filesystem.contract import Scan
from sqlimage.filesystem.ntfs.boot import Geometry
from sqlimage.filesystem.ntfs.relocate_layout import directory_order, from_the_front, into_gaps
from sqlimage.filesystem.ntfs.relocate_records import RunLists
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

    def plan(self, *, defragment: bool) -> Plan:
        """Only what must move, where that can be had; else everything from the front.

        Raises :class:`~sqlimage.errors.RefusedError` where a run list does not fit into its record whatever is tried.
        """
        for cut in () if defragment else (False, True):
            places = into_gaps(self._table, self._clusters, self._rows.bitmap, cut=cut)
            plan = None if places is None else self._with(places, merge=False)
            if plan is not None and len(self._too_long(plan)) == 0:
                return plan
        return self._from_the_front()

    def _with(self, places: Places, *, merge: bool) -> Plan:
        result = moved(self._table, places, self._resized, merge=merge)
        return Plan(result, RunLists.of(result, self._parts))

    def _too_long(self, plan: Plan) -> Int64s:
        """The rows whose run lists outgrow their records."""
        return np.unique(self._parts.content[plan.lists.too_long(self._parts, self._geometry.bytes_per_record)])

    def _from_the_front(self) -> Plan:
        """A stream whose list is too long comes to the very front, where LCNs are short; if that does not help, it
        stays where it is."""
        owners = max(len(self._scan.contents), int(self._table.owner[-1]) + 1)
        order = directory_order(self._scan, owners)
        fixed, front = np.zeros((2, owners), dtype=np.bool_)
        fixed[[self._rows.boot, self._rows.bad]] = True
        for _ in range(_ROUNDS):
            arranged = np.concatenate((order[front[order]], order[~front[order]]))
            plan = self._with(self._places(arranged, fixed), merge=True)
            long = self._too_long(plan)
            if len(long) == 0:
                self._check_records(plan)
                return plan
            staying = long[front[long]]
            if fixed[staying].any() or not self._can_stay()[staying].all():
                break
            fixed[staying] = True
            front[long] = True
        raise RefusedError(f"NTFS: the run list of {self._name(int(long[0]))} does not fit into its record any more")

    def _places(self, order: Int64s, fixed: Bools) -> Places:
        for split in (False, True):
            places = from_the_front(self._table, order, fixed, self._clusters, split=split)
            if places is not None:
                return places
        raise RefusedError(f"NTFS: {self._clusters} clusters are too few for what is in use")

    def _can_stay(self) -> Bools:
        table = self._table
        gone = table.backed & ((table.lcn < 0) | (table.lcn + table.length > self._clusters))
        can: Bools = np.bincount(table.owner, weights=gone, minlength=len(self._scan.contents)) == 0
        return can

    def _check_records(self, plan: Plan) -> None:
        """No record of the MFT may be torn by a bad cluster."""
        table, geometry = plan.moved.table, self._geometry
        for row in (self._rows.mft, self._rows.mft2):
            length = table.length[table.owner == row] * geometry.bytes_per_cluster
            if (length[:-1] % geometry.bytes_per_record).any():
                raise RefusedError("NTFS: bad clusters leave no place for the MFT")

    def _name(self, row: int) -> str:
        entries, contents = self._scan.entries, self._scan.contents
        found = np.flatnonzero(entries.record == contents.record[row])
        path = entries.path[int(found[0])] if len(found) else f"MFT record {int(contents.record[row])}"
        return f"{path}:{contents.stream[row]}" if contents.stream[row] else path
