"""An NTFS volume laid out anew: defragmented, smaller, larger, elsewhere on a disk.

Its runs become a table in clusters, the table gets new places, and what of the control information tells places is
written anew: run lists in MFT records, $Bitmap, $MFTMirr, the boot sector and its backup. Each part of a run list keeps
its VCNs and its record, so attribute lists stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sqlimage.errors import UsageError
from sqlimage.extent import Int64s, Runs
from sqlimage.filesystem.content import ContentRuns
from sqlimage.filesystem.contract import HOLE, Contents, Scan, VolumeFacts
from sqlimage.filesystem.ntfs import layout
from sqlimage.filesystem.ntfs.boot import Geometry
from sqlimage.filesystem.ntfs.mft import scan_mft
from sqlimage.filesystem.ntfs.reader import RecordReader
from sqlimage.filesystem.ntfs.record import damaged
from sqlimage.filesystem.ntfs.relocate_bitmap import bitmap_fixups
from sqlimage.filesystem.ntfs.relocate_boot import BootFields, boot_fields, boot_fixups, tail_moves
from sqlimage.filesystem.ntfs.relocate_fixups import content_runs, differences_in
from sqlimage.filesystem.ntfs.relocate_log import refuse_unsafe
from sqlimage.filesystem.ntfs.relocate_plan import Plan, Planner, SystemRows
from sqlimage.filesystem.ntfs.relocate_records import RecordWriter
from sqlimage.filesystem.ntfs.relocate_size import Span, bitmap_bytes, bitmap_clusters, demand_of, row_of, span_for
from sqlimage.filesystem.ntfs.relocate_slab import Sizes
from sqlimage.filesystem.ntfs.relocate_table import NEW, Table, contents_of, resized, table_of
from sqlimage.filesystem.ntfs.tables import Parts
from sqlimage.filesystem.relocation import Relocation, Wish
from sqlimage.fixup import Fixup


def relocate(reader: RecordReader, facts: VolumeFacts, allocated: Runs, scan: Scan, wish: Wish) -> Relocation:
    """The plan for a volume of which everything but its records is known already; see
    :class:`~sqlimage.filesystem.relocation.Relocatable`.

    A wish that leaves all clusters where they are changes the boot sector only, and is fulfilled for any volume.
    """
    geometry = reader.geometry
    span = span_for(geometry, demand_of(geometry, scan.contents, allocated), wish.size_bytes)
    if not wish.defragment and span.total_sectors == geometry.boot.total_sectors:
        fields = boot_fields(geometry, span, geometry.boot.mft_lcn, geometry.boot.mft2_lcn, wish)
        fixups = tuple(boot_fixups(reader.device, geometry, span, fields))
        places = allocated.start, allocated.start, allocated.length
        return Relocation(_facts(facts, span, fields), *places, fixups, allocated.union(_tail(geometry, span)), scan)
    refuse_unsafe(reader, facts)
    return _Relocator(reader, allocated, scan, span).relocation(facts, wish)


class _Relocator:
    """One volume on its way to one other size."""

    def __init__(self, reader: RecordReader, allocated: Runs, scan: Scan, span: Span) -> None:
        self._reader = reader
        self._geometry = geometry = reader.geometry
        self._unit = geometry.bytes_per_cluster
        self._span = span
        self._resized = span.clusters != geometry.total_clusters
        self._old = scan.contents
        self._rows = _system_rows(scan.contents)
        self._parts = _parts_of(reader, scan.contents)
        in_use = allocated.clip(0, geometry.total_clusters * self._unit)
        in_use = Runs(in_use.start // self._unit, in_use.length // self._unit)
        self._sizes: dict[int, Sizes] = {}
        table = table_of(scan.contents, self._parts, in_use, self._unit)
        if self._resized:
            table = self._with_new_sizes(table)
        self._table = table
        self._scan = Scan(scan.entries, self._old)

    def _with_new_sizes(self, table: Table) -> Table:
        """$Bitmap and $BadClus for the new number of clusters."""
        clusters, unit = self._span.clusters, self._unit
        size, own = bitmap_bytes(clusters), bitmap_clusters(clusters, unit)
        self._put_sizes(self._rows.bitmap, Sizes(own * unit, size, size))
        table = resized(table, self._rows.bitmap, own, NEW)
        valid = min(int(self._old.valid_bytes[self._rows.bad]), clusters * unit)
        self._put_sizes(self._rows.bad, Sizes(clusters * unit, clusters * unit, valid))
        return resized(table, self._rows.bad, clusters, HOLE)

    def _put_sizes(self, row: int, sizes: Sizes) -> None:
        first = np.flatnonzero((self._parts.content == row) & (self._parts.lowest_vcn == 0))
        self._sizes[int(first[0])] = sizes

    def relocation(self, facts: VolumeFacts, wish: Wish) -> Relocation:
        """The whole of it, as wished."""
        span, parts = self._span, self._parts
        changed_sizes = np.isin(parts.content, [self._rows.bitmap, self._rows.bad]) & self._resized
        planner = Planner(self._scan, self._table, parts, changed_sizes, self._rows, span.clusters, self._geometry)
        plan = planner.plan(defragment=wish.defragment)
        contents = self._contents(plan)
        table = plan.moved.table
        in_use = Runs.from_arrays(table.lcn[table.backed], table.length[table.backed])
        fields = self._boot_fields(contents, wish)
        fixups = [*boot_fixups(self._reader.device, self._geometry, span, fields)]
        fixups += self._record_fixups(plan, contents)
        fixups += self._bitmap_fixups(contents, in_use)
        fixups.sort(key=lambda fixup: fixup.offset_bytes)
        return Relocation(
            _facts(facts, span, fields),
            *self._moves(plan),
            tuple(fixups),
            Runs(in_use.start * self._unit, in_use.length * self._unit).union(_tail(self._geometry, span)),
            Scan(self._scan.entries, contents),
        )

    def _contents(self, plan: Plan) -> Contents:
        contents = contents_of(plan.moved.table, self._old, self._unit)
        if not self._resized:
            return contents
        size, valid = contents.size_bytes.copy(), contents.valid_bytes.copy()
        for part, sizes in self._sizes.items():
            row = int(self._parts.content[part])
            size[row], valid[row] = sizes.file_size, sizes.valid
        return replace(contents, size_bytes=size, valid_bytes=valid)

    def _boot_fields(self, contents: Contents, wish: Wish) -> BootFields:
        rows, unit = self._rows, self._unit
        if _first_place(self._old, rows.mft2) != self._geometry.boot.mft2_lcn * unit:
            raise damaged(layout.MFT2_RECORD, "$MFTMirr's first cluster is not where the boot sector says")
        mft, mft2 = _first_place(contents, rows.mft) // unit, _first_place(contents, rows.mft2) // unit
        return boot_fields(self._geometry, self._span, mft, mft2, wish)

    def _record_fixups(self, plan: Plan, contents: Contents) -> Iterator[Fixup]:
        reader, size = self._reader, self._geometry.bytes_per_record
        mirrored = min(int(self._old.valid_bytes[self._rows.mft2]) // size, reader.count)
        records = [_read(reader, reader.mft.runs, number * size, size) for number in range(mirrored)]
        rows = self._parts.content[plan.lists.part].tolist()
        labels = [self._old.stream[row] or "$DATA" for row in rows]
        writer = RecordWriter(reader, plan.lists, self._sizes, labels, content_runs(contents, self._rows.mft))
        yield from writer.fixups(records)
        old, new = content_runs(self._old, self._rows.mft2), content_runs(contents, self._rows.mft2)
        for number, record in enumerate(records):
            before = _read(reader, old, number * size, size)
            yield from differences_in(before, record, number * size, new, f"$MFTMirr record {number}")

    def _bitmap_fixups(self, contents: Contents, in_use: Runs) -> Iterator[Fixup]:
        row, clusters = self._rows.bitmap, self._span.clusters
        old, new = content_runs(self._old, row), content_runs(contents, row)
        size = int(contents.size_bytes[row])
        return bitmap_fixups(self._reader.device, old, new, in_use, clusters, size, resized=self._resized)

    def _moves(self, plan: Plan) -> tuple[Int64s, Int64s, Int64s]:
        """Old places, new places and lengths in bytes, by new place; what stays together is one."""
        tail = np.array(list(tail_moves(self._geometry, self._span)), dtype=np.int64).reshape(-1, 3)
        old = np.concatenate((plan.moved.old * self._unit, tail[:, 0]))
        new = np.concatenate((plan.moved.new * self._unit, tail[:, 1]))
        length = np.concatenate((plan.moved.length * self._unit, tail[:, 2]))
        order = np.argsort(new, kind="stable")
        old, new, length = old[order], new[order], length[order]
        end = new + length
        first = np.append(True, (new[1:] != end[:-1]) | (old[1:] != old[:-1] + length[:-1]))
        at = np.flatnonzero(first)
        return old[at], new[at], np.add.reduceat(length, at)


def _tail(geometry: Geometry, span: Span) -> Runs:
    """What lies behind the last cluster."""
    end = span.clusters * geometry.bytes_per_cluster
    return Runs.of([(end, span.size_bytes - end)])


def _facts(facts: VolumeFacts, span: Span, fields: BootFields) -> VolumeFacts:
    return replace(
        facts,
        size_bytes=span.size_bytes,
        total_clusters=span.clusters,
        hidden_sectors=fields.hidden_sectors,
        sectors_per_track=fields.sectors_per_track,
        tracks_per_cylinder=fields.number_of_heads,
    )


def _system_rows(contents: Contents) -> SystemRows:
    """Raises :class:`~sqlimage.errors.InconsistentVolume` where a system file is not as every volume has it."""
    found = []
    for record, stream in (
        (layout.MFT_RECORD, ""),
        (layout.MFT2_RECORD, ""),
        (layout.BITMAP_RECORD, ""),
        (layout.BOOT_RECORD, ""),
        (layout.BAD_CLUSTER_RECORD, layout.BAD_CLUSTERS),
    ):
        row = row_of(contents, record, stream)
        if row is None:
            raise damaged(record, f"its {stream or '$DATA'} has no clusters")
        runs = contents.run_offset[contents.first_run[row] : contents.first_run[row + 1]]
        if not stream and (runs == HOLE).any():
            raise damaged(record, "its $DATA has a hole")
        if record == layout.BOOT_RECORD and (len(runs) > 1 or runs[0] != 0):
            raise damaged(record, "$Boot is not one run from cluster 0 on")
        found.append(row)
    return SystemRows(*found)


def _parts_of(reader: RecordReader, contents: Contents) -> Parts:
    """Where all run lists lie. The contents must be those of this very volume."""
    scanned = scan_mft(reader)
    for name in ("record", "first_run", "run_offset", "run_length"):
        if not np.array_equal(getattr(scanned.contents, name), getattr(contents, name)):
            raise UsageError("NTFS: the scan is not this volume's own")
    if len(scanned.strays):
        raise damaged(int(scanned.strays[0]), "it has clusters, but no attribute list names it")
    return scanned.parts


def _first_place(contents: Contents, row: int) -> int:
    return int(contents.run_offset[contents.first_run[row]])


def _read(reader: RecordReader, runs: ContentRuns, at: int, size: int) -> bytes:
    block = bytearray(size)
    runs.read_into(reader.device, at, memoryview(block))
    return bytes(block)
