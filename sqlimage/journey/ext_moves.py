"""Where the data of files have gone, read off two scans of a volume, before and after somebody has moved them; and the
steps in which they go."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s, Runs, first_overlap, overlaps
from sqlimage.filesystem.contract import Contents, EntryKind, Scan
from sqlimage.moves import Moves


class _Laid(NamedTuple):
    """The runs of some contents one behind the other, gapless from 0."""

    place: Int64s
    offset: Int64s
    length: Int64s
    is_zeros: NDArray[np.bool_]


def follow(before: Scan, after: Scan, data: Runs) -> Moves:
    """What has become of the bytes ``data`` of a volume before, all of which are files'. A file is known by its path.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where there are other names than before, where a file is of
    another size, or with holes elsewhere, and where two lie in the same place.
    """
    if other := set(before.entries.path).symmetric_difference(after.entries.path):
        raise InconsistentVolume("directories", f"{min(other)!a} is there in one of them only")
    old_row, new_row = _pairs(before, after, data)
    old, new = _laid(before.contents, old_row), _laid(after.contents, new_row)
    met = overlaps(new.place, new.length, old.place, old.length)
    if (new.is_zeros[met.a] != old.is_zeros[met.b]).any():
        raise InconsistentVolume("files", "one of them has its holes elsewhere than before")
    written = ~new.is_zeros[met.a]
    was, now = (old.offset[met.b] + met.into_b)[written], (new.offset[met.a] + met.into_a)[written]
    of_data = overlaps(was, met.length[written], data.start, data.length)
    was, now = was[of_data.a] + of_data.into_a, now[of_data.a] + of_data.into_a
    for place, when in ((was, "before"), (now, "after")):
        if (shared := first_overlap(place, of_data.length)) is not None:
            raise InconsistentVolume("files", f"two of them lie at byte {shared} {when}")
    return Moves.of(was, now, of_data.length)


def _pairs(before: Scan, after: Scan, data: Runs) -> tuple[Int64s, Int64s]:
    """The contents of files, and of whatever else has some of the data, in the order they had."""
    old, new, was, now = before.entries, after.entries, before.contents, after.contents
    has_data = np.zeros(len(was), dtype=np.bool_)
    written = np.flatnonzero(~was.reads_as_zeros())
    met = overlaps(was.run_offset[written], was.run_length[written], data.start, data.length)
    has_data[was.run_owner()[written[met.a]]] = True
    mine = np.flatnonzero(old.content >= 0)
    mine = mine[(old.kind[mine] == EntryKind.FILE) | has_data[old.content[mine]]]
    old_row, first = np.unique(old.content[mine], return_index=True)
    there = dict(zip(new.path, new.content.tolist(), strict=True))
    new_row = np.array([there.get(old.path[n], -1) for n in mine[first].tolist()], dtype=np.int64)
    same = new_row >= 0
    for one, other in ((was.covered_bytes(), now.covered_bytes()), (was.size_bytes, now.size_bytes)):
        same[same] = one[old_row[same]] == other[new_row[same]]
    if not same.all():
        path = old.path[mine[first][np.flatnonzero(~same)[0]]]
        raise InconsistentVolume(f"file {path!a}", "it is gone, or of another size than before")
    return old_row, new_row


def _laid(contents: Contents, rows: Int64s) -> _Laid:
    covered = contents.covered_bytes()[rows]
    base = np.full(len(contents), -1, dtype=np.int64)
    base[rows] = np.cumsum(covered) - covered
    owner = contents.run_owner()
    mine = np.flatnonzero(base[owner] >= 0)
    place = base[owner[mine]] + contents.run_place()[mine]
    order = np.argsort(place, kind="stable")
    mine = mine[order]
    return _Laid(place[order], contents.run_offset[mine], contents.run_length[mine], contents.reads_as_zeros()[mine])


def steps_down(above: Runs, step_bytes: int, unit: int) -> list[int]:
    """Sizes, multiples of ``unit``, at which a volume can stop on its way down, when ``above`` has to go from its end:
    between two of them lies a step of it, and less behind the last."""
    before = np.cumsum(above.length) - above.length
    kept = above.total - np.arange(step_bytes, above.total, max(step_bytes, 1))
    run = np.searchsorted(before, kept, side="right") - 1
    places = above.start[run] + kept - before[run]
    return np.unique(-(-places // unit) * unit)[::-1].tolist()  # type: ignore[no-any-return]


def steps_up(size_bytes: int, wanted: int, step_bytes: int, share: float, unit: int) -> list[int]:
    """Sizes, multiples of ``unit``, between two, so that ``share`` of what is added from one to the next is a step."""
    if not share or not step_bytes:
        return []
    stride = max(int(step_bytes / share) // unit, 1) * unit
    return list(range(size_bytes // unit * unit + stride, wanted, stride))
