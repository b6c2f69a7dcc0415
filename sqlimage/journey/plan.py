"""From a medium to jobs of work: file by file, in each file's own order; small neighbours of a kind together.

Everything here counts clusters of the medium. Jobs come in the order of the medium, but for small files, which are
brought together by kind within a window: the source is read nearly in sequence, and the data stream lies nearly in the
order in which a restore or a boot wants it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sqlimage.extent import Int64s, Runs, overlaps
from sqlimage.filesystem.contract import ContentFlag, EntryKind
from sqlimage.image.medium import Medium, SourceVolume
from sqlimage.journey.jobs import NOBODY, About, Encrypt, Job, Piece, Window
from sqlimage.journey.presets import Preset

_MOST_IN_WINDOW = 100_000
"""Contents held at a time to bring small ones together, about 60 MB."""
_MAX_DIGESTED_HOLE = 64 << 20
"""A file with more bytes in holes than this gets no digest: hashing zeros would cost more than all the rest."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be read, in which jobs."""

    allocated: Runs
    """Clusters of the medium that the bitmap stream will call allocated."""
    wanted: Runs
    """Clusters whose bytes are taken."""
    contents: tuple[VolumeContents, ...]
    bytes_per_cluster: int
    chunk_clusters: int
    window_clusters: int
    """From how large a stretch small contents are brought together by kind."""
    leftover: Runs
    """Wanted clusters that belong to no content: boot sectors, tables, gaps."""
    secret: Runs
    """What is encrypted."""

    def jobs(self, announce: Callable[[Runs], None]) -> Iterator[Job]:
        """The work, in order; computed as it is asked for. ``announce`` is told, before each window, which clusters
        will be read out of order."""
        window = Window(self.chunk_clusters, self.bytes_per_cluster)
        met = overlaps(self.leftover.start, self.leftover.length, self.secret.start, self.secret.length).a
        nobody = [NOBODY] * len(self.leftover)
        for n in met.tolist():
            nobody[n] = NOBODY._replace(encrypt=Encrypt.PARTS)
        for group, n in self._in_disk_order():
            if group == len(self.contents):
                start, length = int(self.leftover.start[n]), int(self.leftover.length[n])
                window.add([(0, start, length)], nobody[n])
            else:
                content = self.contents[group]
                window.add(content.pieces(n), content.about(n))
            if window.small_clusters >= self.window_clusters or len(window) >= _MOST_IN_WINDOW:
                announce(window.places())
                yield from window.jobs()
                window = Window(self.chunk_clusters, self.bytes_per_cluster)
        announce(window.places())
        yield from window.jobs()

    def _in_disk_order(self) -> Iterator[tuple[int, int]]:
        """Which group (a volume's contents; the last one is the leftover) and which row of it comes next."""
        starts = [*(content.first_start for content in self.contents), self.leftover.start]
        group = np.repeat(np.arange(len(starts)), [len(start) for start in starts])
        row = np.concatenate([np.arange(len(start)) for start in starts])
        order = np.argsort(np.concatenate(starts), kind="stable")
        return zip(group[order].tolist(), row[order].tolist(), strict=True)


@dataclass(frozen=True, slots=True)
class VolumeContents:
    """The contents of one volume that have clusters to be taken, as columns, in clusters of the medium."""

    number: int
    row: list[int]
    first_run: list[int]
    """For each row and one more: where its runs begin in the two lists below."""
    run_place: list[int]
    """Clusters from the start of the content."""
    run_start: list[int]
    run_count: list[int]
    first_start: Int64s
    size_bytes: list[int]
    valid_bytes: list[int]
    digested: list[bool]
    store: list[bool]
    encrypt: list[Encrypt]
    path: list[str]
    """A name of each; empty where it has none."""

    def about(self, n: int) -> About:
        return About(
            (self.number, self.row[n]),
            self.path[n],
            self.size_bytes[n],
            self.valid_bytes[n],
            self.digested[n],
            self.store[n],
            self.encrypt[n],
        )

    def pieces(self, n: int) -> list[Piece]:
        low, high = self.first_run[n], self.first_run[n + 1]
        if high - low == 1:  # nearly all of them
            return [(self.run_place[low], self.run_start[low], self.run_count[low])]
        return list(zip(self.run_place[low:high], self.run_start[low:high], self.run_count[low:high], strict=True))


def make_plan(medium: Medium, preset: Preset, store: Sequence[str] = ()) -> Plan:
    """Lay out the capture of a medium. ``store`` are globs of paths (or names) whose content stays uncompressed."""
    unit = medium.bytes_per_cluster
    allocated, wanted, owned = medium.gaps(), medium.gaps(), Runs.empty()
    contents = []
    secret = _clusters(medium.secret, unit)
    for volume in medium.volumes:
        allocated = allocated.union(volume.allocated.shift(volume.offset_bytes))
        wanted = wanted.union(volume.allocated.subtract(volume.left_out).shift(volume.offset_bytes))
        if volume.scan:
            columns = _contents(volume, unit, store, secret)
            contents.append(columns)
            owned = owned.union(
                Runs.from_arrays(
                    np.array(columns.run_start, dtype=np.int64), np.array(columns.run_count, dtype=np.int64)
                )
            )
    wanted = _clusters(wanted, unit)
    leftover = wanted.subtract(owned).intersect(_clusters(_data(medium), unit))
    return Plan(
        _clusters(allocated, unit),
        wanted,
        tuple(contents),
        unit,
        preset.chunk_bytes // unit,
        preset.window_bytes // unit,
        leftover,
        secret,
    )


def _clusters(runs: Runs, unit: int) -> Runs:
    wide = runs.widen(unit)
    return Runs(wide.start // unit, wide.length // unit)


def _data(medium: Medium) -> Runs:
    """Bytes of the medium that are not holes of the file it lies in."""
    return Runs.of((e.offset_bytes, e.length_bytes) for e in medium.device.extents(0, medium.size_bytes) if e.is_data)


def _contents(volume: SourceVolume, unit: int, store: Sequence[str], secret: Runs) -> VolumeContents:
    assert volume.scan is not None
    table = volume.scan.contents
    owner, place = table.run_owner(), table.run_place()
    backed = ~table.reads_as_zeros()
    if len(volume.left_out):  # of a run that is left out in part, the rest belongs to no content
        index = np.minimum(
            np.searchsorted(volume.left_out.end, table.run_offset, side="right"), len(volume.left_out) - 1
        )
        meets = volume.left_out.start[index] < table.run_offset + table.run_length
        backed &= ~(meets & (table.run_offset < volume.left_out.end[index]))
    finer = backed & ((table.run_offset + volume.offset_bytes) % unit + table.run_length % unit > 0)
    if finer.any():  # than the clusters of the image (a child's are its parent's): those belong to no content
        backed &= ~np.isin(owner, owner[finer])
    zero_bytes = table.zero_bytes()
    if volume.facts is not None and volume.facts.may_share:
        backed &= ~table.sharing()[owner]
    owner, place = owner[backed], place[backed]
    start = (table.run_offset[backed] + volume.offset_bytes) // unit
    count = table.run_length[backed] // unit
    rows, first = np.unique(owner, return_index=True)
    digested = (
        ((table.flags[rows] & (ContentFlag.COMPRESSED | ContentFlag.INDEX | ContentFlag.INLINE)) == 0)
        & (zero_bytes[rows] <= _MAX_DIGESTED_HOLE)
        & (table.size_bytes[rows] > 0)
        & (table.covered_bytes()[rows] >= table.size_bytes[rows])
    )
    if len(volume.left_out):  # nor does a page or swap file of which a part is taken get one
        digested &= ~np.isin(rows, list(volume.paging_rows))
    stored = _matching(volume, store)
    digested &= ~np.isin(rows, list(volume.undigested))
    touching = overlaps(start, count, secret.start, secret.length)
    is_secret = np.bincount(owner[touching.a], touching.length, minlength=len(table))[rows]
    clusters = np.bincount(owner, count, minlength=len(table))[rows]
    encrypt = np.where(is_secret == 0, Encrypt.NOTHING, np.where(is_secret < clusters, Encrypt.PARTS, Encrypt.ALL))
    named = np.flatnonzero(volume.scan.entries.content >= 0)
    name_of = np.full(len(table), -1, dtype=np.int64)
    name_of[volume.scan.entries.content[named]] = named
    paths = volume.scan.entries.path
    return VolumeContents(
        volume.number,
        rows.tolist(),
        [*first.tolist(), len(owner)],
        (place // unit).tolist(),
        start.tolist(),
        count.tolist(),
        start[first],
        table.size_bytes[rows].tolist(),
        table.valid_bytes[rows].tolist(),
        digested.tolist(),
        [row in stored for row in rows.tolist()] if stored else [False] * len(rows),
        [Encrypt(number) for number in encrypt.tolist()],
        [paths[n] if n >= 0 else "" for n in name_of[rows].tolist()],
    )


def _matching(volume: SourceVolume, globs: Sequence[str]) -> set[int]:
    """Rows of contents one of whose names matches a glob, by whole path where the glob has a slash, else by name."""
    if not globs or volume.scan is None:
        return set()
    entries = volume.scan.entries
    found = set()
    for path, kind, row in zip(entries.path, entries.kind.tolist(), entries.content.tolist(), strict=True):
        if row < 0 or kind == EntryKind.DIRECTORY:
            continue
        name = path.rpartition("/")[2]
        if any(fnmatch.fnmatchcase(path if "/" in glob else name, glob) for glob in globs):
            found.add(row)
    return found
