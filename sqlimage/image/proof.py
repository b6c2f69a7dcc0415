"""Proof that a volume that was laid out anew is the one that was planned, and holds what it held before.

Four things together: our own reader finds in the new volume what the plan says; every run of it leads back, through
the moves, to where the same bytes of the same file lay before; what lies there has the digest that it had there; and
all the rest (directories, tables, what nobody owns) is byte for byte what was there, with the fix-ups applied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqlimage.device import BlockDevice
from sqlimage.errors import DamagedError, InconsistentVolume
from sqlimage.extent import Int64s, Runs, joined, overlaps
from sqlimage.filesystem.contract import HOLE, ContentFlag, Contents, EntryKind, FileSystem, Scan, VolumeFacts
from sqlimage.filesystem.probe import open_file_system
from sqlimage.filesystem.relocation import Relocation
from sqlimage.fixup import Fixup
from sqlimage.image.relayout import moves_of
from sqlimage.image.relocated import RelocatedDevice
from sqlimage.image.reread import digests, first_places
from sqlimage.image.stored import StoredDevice
from sqlimage.units import MIB

_BLOCK_BYTES = MIB
_DEFECT = "this is a defect of sqlimage: report it"
_CHANGED = "capture it while nobody writes to it; if nobody did, "


@dataclass(frozen=True, slots=True)
class Before:
    """A volume as it was."""

    device: BlockDevice
    scan: Scan
    digests: Mapping[int, bytes]
    """SHA-256 of contents, by row, as they were taken from the old volume; others are read from it again."""
    ignored: NDArray[np.bool_] | None = None
    """Contents whose clusters were not taken (page files), by row."""
    taken_by_moves: bool = False
    """The digests are of what was read by way of the moves, which proves nothing about these: they are compared with
    what the old volume's own run lists lead to, too."""


def prove(volume: BlockDevice, relocation: Relocation, before: Before, *, threads: int | None = None) -> int:
    """Read the new volume and compare all of it; how many contents were compared by digest.

    Raises :class:`~sqlimage.errors.DamagedError`, with the first file that differs.
    """
    after, told = relocation.scan.contents, _told(relocation.scan)
    _check_runs(before.scan.contents, after, relocation, told)
    rows = np.flatnonzero(_comparable(relocation, told, before.ignored))
    place = first_places(after)[rows]
    rows = rows[np.lexsort((place, volume.rank(place) if isinstance(volume, StoredDevice) else place))]
    known = np.isin(rows, np.fromiter(before.digests, dtype=np.int64, count=len(before.digests)))
    known &= (after.flags[rows] & ContentFlag.COMPRESSED) == 0
    with ThreadPoolExecutor(1, thread_name_prefix="prove") as beside:
        structure = beside.submit(_check_structure, volume, relocation)
        others = beside.submit(_check_others, volume, relocation, before, rows)
        try:
            _check_digests(volume, relocation.scan, rows[known], before, threads)
        finally:
            structure.result()  # whatever differs, this says it best
        others.result()
    if before.taken_by_moves:
        source = rows[known][np.argsort(first_places(before.scan.contents)[rows[known]], kind="stable")]
        _check_digests(before.device, before.scan, source, before, threads, _CHANGED)
    rest = rows[~known]
    rest = rest[_touching(before, rest)]
    was = digests(before.device, before.scan.contents, rest, as_stored=True, threads=threads)
    for (row, old), (_, new) in zip(was, digests(volume, after, rest, as_stored=True, threads=threads), strict=True):
        if old != new:
            raise _differs(f"{_name(relocation.scan, row)} does not have the digest it had")
    return len(rows)


def prove_in_place(volume: BlockDevice, facts: VolumeFacts) -> None:
    """As :func:`prove`, for a volume of which nothing moved: it says of itself what it is to say."""
    file_system = _opened(volume)
    if dataclasses.replace(file_system.facts, notes=facts.notes) != facts:
        raise _differs("its control information")


def _opened(volume: BlockDevice) -> FileSystem:
    try:
        file_system = open_file_system(volume)
    except InconsistentVolume as contradiction:
        raise _differs(str(contradiction)) from None
    if file_system is None:
        raise _differs("its file system is not recognised")
    return file_system


def prove_files(volume: BlockDevice, before: Before, *, threads: int | None = None) -> int:
    """As :func:`prove`, where others laid out the volume anew (resize2fs), so that only names and contents are known:
    they are compared by path; how many contents were compared."""
    file_system = _opened(volume)
    try:
        scan = file_system.scan()
    except InconsistentVolume as contradiction:
        raise _differs(str(contradiction)) from None
    new, old = _files(scan), _files(before.scan)
    if new.keys() != old.keys():
        raise _differs(f"{min(new.keys() ^ old.keys())} is there in one of them only")
    # What is pending in a journal does not lie where it will once that is replayed, as it is before a resize.
    lies_new, lies_old = ((each.contents.flags & ContentFlag.COMPRESSED) == 0 for each in (scan, before.scan))
    row_of = {row: old[path] for path, row in new.items() if lies_new[row] and lies_old[old[path]]}
    rows = np.array(sorted(row_of), dtype=np.int64)
    rows = rows[np.argsort(first_places(scan.contents)[rows], kind="stable")]
    known = np.array([row_of[row] in before.digests for row in rows.tolist()], dtype=np.bool_)
    told = {row: before.digests[row_of[row]] for row in rows[known].tolist()}
    rest = np.array([row_of[row] for row in rows[~known].tolist()], dtype=np.int64)
    was = dict(digests(before.device, before.scan.contents, rest, threads=threads))
    told |= {row: was[row_of[row]] for row in rows[~known].tolist()}
    for row, digest in digests(volume, scan.contents, rows, threads=threads):
        if digest != told[row]:
            raise _differs(f"{_name(scan, row)} does not have the digest it had")
    return len(rows)


def _files(scan: Scan) -> dict[str, int]:
    """The contents of files that have clusters, by one of their names."""
    contents, entries = scan.contents, scan.entries
    there = ((contents.flags & (ContentFlag.INLINE | ContentFlag.INDEX)) == 0) & (np.diff(contents.first_run) > 0)
    rows = np.flatnonzero((entries.kind == EntryKind.FILE) & (entries.content >= 0))
    rows = rows[there[entries.content[rows]]]
    return {entries.path[row]: int(entries.content[row]) for row in rows.tolist()}


def _differs(what: str, hint: str = "") -> DamagedError:
    return DamagedError(f"the volume laid out anew is not what was planned: {what}", hint=f"{hint}{_DEFECT}")


def _check_structure(volume: BlockDevice, relocation: Relocation) -> None:
    """That our reader finds what the plan tells."""
    found = _opened(volume)
    try:
        _compare_structure(found, relocation)
    except InconsistentVolume as contradiction:
        raise _differs(str(contradiction)) from None


def _compare_structure(found: FileSystem, relocation: Relocation) -> None:
    if dataclasses.replace(found.facts, notes=relocation.facts.notes) != relocation.facts:
        raise _differs("its control information")
    if found.allocated() != relocation.allocated:
        raise _differs("its allocated clusters")
    scan = found.scan()
    for name, one, other in (
        ("names", scan.entries, relocation.scan.entries),
        ("contents", scan.contents, relocation.scan.contents),
    ):
        for field in dataclasses.fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if not (np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b):
                raise _differs(f"{field.name} of its {name}")


def _told(scan: Scan) -> NDArray[np.bool_]:
    """Of each content, whether it is a file's or a directory's, not one by which the file system keeps itself."""
    told = np.ones(len(scan.contents), dtype=np.bool_)
    entries = scan.entries
    rows = entries.content[(entries.kind == EntryKind.METADATA) & (entries.content >= 0)]
    told[rows] = False
    return told


def _check_digests(
    device: BlockDevice, scan: Scan, rows: Int64s, before: Before, threads: int | None, hint: str = ""
) -> None:
    for row, digest in digests(device, scan.contents, rows, threads=threads):
        if digest != before.digests[row]:
            raise _differs(f"{_name(scan, row)} does not have the digest it had", hint)


def _check_runs(old: Contents, new: Contents, relocation: Relocation, told: NDArray[np.bool_]) -> None:
    """Every run of the new volume comes from the same place of the same content."""
    backed, owner, place = ~new.reads_as_zeros(), new.run_owner(), new.run_place()
    counts = np.flatnonzero(backed & told[owner])
    met, came = moves_of(relocation).come(new.run_offset[counts], new.run_length[counts])
    run = counts[met.a]
    traced = joined(owner[run], place[run] + met.into_a, came, met.length)
    backed, owner, place = ~old.reads_as_zeros(), old.run_owner(), old.run_place()
    counts = np.flatnonzero(backed & told[owner])
    was = joined(owner[counts], place[counts], old.run_offset[counts], old.run_length[counts])
    if not all(np.array_equal(a, b) for a, b in zip(traced, was, strict=True)):
        raise _differs("a file's clusters are not its own")


def _comparable(
    relocation: Relocation, told: NDArray[np.bool_], ignored: NDArray[np.bool_] | None
) -> NDArray[np.bool_]:
    """Files and streams with clusters; directories are compared name by name, and by their runs."""
    contents = relocation.scan.contents
    there = told.copy()
    there &= (np.diff(contents.first_run) > 0) & ((contents.flags & ContentFlag.INDEX) == 0)
    start, length = places_of(relocation.fixups)
    backed = np.flatnonzero(~contents.reads_as_zeros())
    met = overlaps(contents.run_offset[backed], contents.run_length[backed], start, length)
    there[contents.run_owner()[backed[met.a]]] = False
    there &= first_places(contents) >= 0
    return there if ignored is None else there & ~ignored


def places_of(fixups: Sequence[Fixup]) -> tuple[Int64s, Int64s]:
    """Where fix-ups lie, and how long they are (bytes)."""
    start = np.array([fixup.offset_bytes for fixup in fixups], dtype=np.int64)
    return start, np.array([len(fixup.original) for fixup in fixups], dtype=np.int64)


def _check_others(volume: BlockDevice, relocation: Relocation, before: Before, compared: Int64s) -> None:
    """Everything allocated that is none of the compared contents, nor of those that were not taken."""
    contents = relocation.scan.contents
    done = np.zeros(len(contents), dtype=np.bool_) if before.ignored is None else before.ignored.copy()
    done[compared] = True
    runs = np.flatnonzero((contents.run_offset != HOLE) & done[contents.run_owner()])
    others = relocation.allocated.subtract(Runs.from_arrays(contents.run_offset[runs], contents.run_length[runs]))
    planned = RelocatedDevice(before.device, relocation.facts.size_bytes, moves_of(relocation), relocation.fixups)
    wanted, found = np.empty((2, _BLOCK_BYTES), dtype=np.uint8)
    for start, length in others:
        for at in range(start, start + length, _BLOCK_BYTES):
            size = min(_BLOCK_BYTES, start + length - at)
            planned.read_into(at, wanted[:size].data)
            volume.read_into(at, found[:size].data)
            if not np.array_equal(wanted[:size], found[:size]):
                raise _differs(f"bytes {at} to {at + size} of it are not what was there")


def _touching(before: Before, rows: Int64s) -> NDArray[np.bool_]:
    """Whether anything but zeros can lie in the clusters of contents."""
    if not len(rows):
        return np.zeros(0, dtype=np.bool_)
    extents = before.device.extents(0, before.device.size_bytes)
    data = Runs.of((extent.offset_bytes, extent.length_bytes) for extent in extents if extent.is_data)
    contents = before.scan.contents
    backed = np.flatnonzero(~contents.reads_as_zeros())
    met = overlaps(contents.run_offset[backed], contents.run_length[backed], data.start, data.length)
    return np.isin(rows, contents.run_owner()[backed[met.a]])


def _name(scan: Scan, row: int) -> str:
    named = np.flatnonzero(scan.entries.content == row)
    return scan.entries.path[int(named[0])] if len(named) else f"record {scan.contents.record[row]}"
