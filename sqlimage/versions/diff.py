"""What differs between two versions, by file and by cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlimage.errors import RefusedError
from sqlimage.extent import Runs
from sqlimage.image.changes import Change, Places, Side, Stream, changed_rows, count_actions, story
from sqlimage.image.image import Version
from sqlimage.streams import files
from sqlimage.versions.reading import Reading, differing


@dataclass(frozen=True, slots=True)
class ClusterRun:
    """Consecutive clusters that differ (inclusive)."""

    start_cluster: int
    end_cluster: int


@dataclass(frozen=True, slots=True)
class Difference:
    """What became of one version in another; sizes in bytes."""

    before: str
    """``FILE@NUMBER``."""
    after: str
    changes: tuple[Change, ...]
    counts: Mapping[str, int]
    medium_bytes_before: int
    medium_bytes_after: int
    bytes_per_cluster: int
    clusters: tuple[ClusterRun, ...] | None
    """None where it was not asked for."""
    differing_bytes: int | None
    raw_volumes: tuple[int, ...]
    """Volumes that have no files in one of the two, of which only clusters can tell."""


def diff(before: Version, after: Version, *, clusters: bool = False) -> Difference:
    """Compare two versions of any images: by file, and with ``clusters`` by cluster, too.

    Raises :class:`~sqlimage.errors.RefusedError` where the two are counted in clusters of different sizes.
    """
    a, b = before.control, after.control
    if a.bytes_per_cluster != b.bytes_per_cluster:
        raise RefusedError(
            f"{after.image.path}: is counted in clusters of {b.bytes_per_cluster} bytes, {before.image.path} of "
            f"{a.bytes_per_cluster}",
            hint="restore both and compare the files",
        )
    sides_before, sides_after = _sides(before), _sides(after)
    changes = _by_file(before, after, sides_before, sides_after)
    runs = _by_cluster(before, after, None) if clusters else None
    raw = [v.number for version in (before, after) for v in version.volumes() if v.captured_as != "files"]
    return Difference(
        f"{before.image.path}@{before.number}",
        f"{after.image.path}@{after.number}",
        tuple(changes),
        count_actions(changes),
        a.medium_bytes,
        b.medium_bytes,
        a.bytes_per_cluster,
        None if runs is None else tuple(ClusterRun(start, start + length - 1) for start, length in runs),
        None if runs is None else runs.total * a.bytes_per_cluster,
        tuple(sorted(set(raw))),
    )


def _sides(version: Version) -> dict[int, Side]:
    """The files of every volume."""
    version.image.attach_parents(version.control)
    database, sides = version.image.database, {}
    for volume in version.volumes():
        rows = files.every_row(database, version.number, volume.number)
        places = Places(files.every_extent(database, version.number, volume.number))
        sides[volume.number] = Side({row[2]: row for row in rows}, places)
    return sides


def _by_file(
    before: Version, after: Version, sides_before: Mapping[int, Side], sides_after: Mapping[int, Side]
) -> list[Change]:
    touched = _touched(before, after, sides_before, sides_after)
    changes: list[Change] = []
    nothing = Side.empty()
    for number in sorted(sides_before.keys() | sides_after.keys()):
        old, new = sides_before.get(number, nothing), sides_after.get(number, nothing)
        hit = touched.get(number, set())
        moved = new.places.moved_since(old.places)
        changes += story(old, new, changed_rows(old, new, hit, moved), hit)
    if len(sides_before) > 1 or len(sides_after) > 1:
        changes = [change.on_its_volume() for change in changes]
    return changes


def _touched(
    before: Version, after: Version, sides_before: Mapping[int, Side], sides_after: Mapping[int, Side]
) -> dict[int, set[Stream]]:
    """Contents that have no digest which could tell, and lie where they did, on clusters that differ."""
    asked: list[tuple[int, Stream, int, int]] = []
    for number, new in sides_after.items():
        old = sides_before.get(number)
        for path, row in new.rows.items() if old else ():
            same = old.rows.get(path) if old else None
            if row[9] is None and row[4] and same is not None and same[4] == row[4]:
                asked += [(number, (row[6], row[7]), start, length) for _, start, length in new.content(row)]
    if not asked:
        return {}
    runs = _by_cluster(before, after, Runs.of((start, length) for _, _, start, length in asked))
    touched: dict[int, set[Stream]] = {}
    for number, content, start, length in asked:
        if len(runs.clip(start, start + length)):
            touched.setdefault(number, set()).add(content)
    return touched


def _by_cluster(before: Version, after: Version, within: Runs | None) -> Runs:
    with Reading(before) as a, Reading(after) as b:
        return Runs.of((stretch.start, stretch.clusters) for stretch in differing(a, b, within))
