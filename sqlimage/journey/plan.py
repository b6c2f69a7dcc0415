"""From a medium to jobs of work: file by file, in each file's own order; small neighbours of a kind together.

Everything here counts clusters of the medium. Jobs come in the order of the medium, but for small files, which are
brought together by kind within a window: the source is read nearly in sequence, and the data stream lies nearly in the
order in which a restore or a boot wants it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sqlimage.extent import Int64s, Runs
from sqlimage.filesystem.contract import HOLE, ContentFlag, EntryKind
from sqlimage.journey.chain import DigestChain
from sqlimage.journey.medium import Medium, SourceVolume
from sqlimage.journey.presets import Preset

_SLAB_BYTES = 4 << 20
"""A job on a large content reads about this much."""
_MAX_DIGESTED_HOLE = 64 << 20
"""A file with more bytes in holes than this gets no digest: hashing zeros would cost more than all the rest."""

Piece = tuple[int, int, int]
"""Place in the job's buffer, first cluster on the medium, number of clusters."""


Key = tuple[int, int]
"""A content: its volume, and its row in the contents of that volume."""


class Item(NamedTuple):
    """One content in a pack."""

    key: Key | None
    """None for clusters that belong to no file."""
    start: int
    """Place in the job's buffer."""
    clusters: int
    size_bytes: int
    valid_bytes: int
    digested: bool


@dataclass(slots=True)
class Pack:
    """Small contents, neighbours on the medium, that become one chunk."""

    store: bool
    pieces: list[Piece] = field(default_factory=list)
    clusters: int = 0
    items: list[Item] = field(default_factory=list)

    def add(self, key: Key | None, pieces: Sequence[Piece], sizes: tuple[int, int, bool]) -> None:
        """Append a content, its pieces one after the other."""
        first = self.clusters
        for _, start, count in pieces:
            self.pieces.append((self.clusters, start, count))
            self.clusters += count
        self.items.append(Item(key, first, self.clusters - first, *sizes))


@dataclass(slots=True)
class Slab:
    """A stretch of one content, cut into chunks at multiples of the chunk size from the content's first byte."""

    pieces: list[Piece]
    clusters: int
    store: bool
    offset_bytes: int
    """Where the slab begins in its content."""
    chain: DigestChain | None
    turn: int
    last: bool


Job = Pack | Slab
_Small = tuple[bool, tuple[str, str], Key | None, list[Piece], int, tuple[int, int, bool]]
"""A content that goes into a pack: store, kin, key, pieces, clusters, sizes."""


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

    def jobs(self) -> Iterator[Job]:
        """The work, in order; computed as it is asked for."""
        slab_clusters = max(1, _SLAB_BYTES // self.bytes_per_cluster // self.chunk_clusters) * self.chunk_clusters
        window: list[_Small] = []
        waiting = 0
        for group, n in self._in_disk_order():
            if group == len(self.contents):
                pieces: list[Piece] = [(0, int(self.leftover.start[n]), int(self.leftover.length[n]))]
                store, key, sizes, kin = False, None, (0, 0, False), ("", "")
            else:
                content = self.contents[group]
                pieces, store, kin = content.pieces(n), content.store[n], _kin(content.path[n])
                key = (content.number, int(content.row[n]))
                sizes = (int(content.size_bytes[n]), int(content.valid_bytes[n]), content.digested[n])
            span, clusters = pieces[-1][0] + pieces[-1][2], sum(piece[2] for piece in pieces)
            if span > self.chunk_clusters or span != clusters:
                chain = DigestChain(key, sizes[0], sizes[1]) if key and sizes[2] else None
                yield from _slabs(pieces, slab_clusters, store, chain, self.bytes_per_cluster)
                continue
            window.append((store, kin, key, pieces, clusters, sizes))
            waiting += clusters
            if waiting >= self.window_clusters:
                yield from self._packs(window)
                window, waiting = [], 0
        yield from self._packs(window)

    def _packs(self, window: list[_Small]) -> Iterator[Pack]:
        """Small contents of one stretch of the medium, like beside like, so that they compress well together."""
        window.sort(key=lambda small: small[:2])
        pack = Pack(False)
        for store, _, key, pieces, clusters, sizes in window:
            if pack.clusters + clusters > self.chunk_clusters or store != pack.store:
                if pack.items:
                    yield pack
                pack = Pack(store)
            pack.add(key, pieces, sizes)
        if pack.items:
            yield pack

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
    row: Int64s
    first_run: list[int]
    """For each row and one more: where its runs begin in the two lists below."""
    run_place: list[int]
    """Clusters from the start of the content."""
    run_start: list[int]
    run_count: list[int]
    first_start: Int64s
    size_bytes: Int64s
    valid_bytes: Int64s
    digested: list[bool]
    store: list[bool]
    path: list[str]
    """A name of each; empty where it has none."""

    def pieces(self, n: int) -> list[Piece]:
        low, high = self.first_run[n], self.first_run[n + 1]
        return list(zip(self.run_place[low:high], self.run_start[low:high], self.run_count[low:high], strict=True))


def make_plan(medium: Medium, preset: Preset, store: Sequence[str] = ()) -> Plan:
    """Lay out the capture of a medium. ``store`` are globs of paths (or names) whose content stays uncompressed."""
    unit = medium.bytes_per_cluster
    allocated, wanted, owned = medium.gaps(), medium.gaps(), Runs.empty()
    contents = []
    for volume in medium.volumes:
        allocated = allocated.union(volume.allocated.shift(volume.offset_bytes))
        wanted = wanted.union(volume.allocated.subtract(volume.left_out).shift(volume.offset_bytes))
        if volume.scan:
            columns = _contents(volume, unit, store)
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
    )


def _kin(path: str) -> tuple[str, str]:
    """What makes contents alike: the ending of their name, then the name."""
    name = path[path.rfind("/") + 1 :].lower()
    dot = name.rfind(".")
    return (name[dot:] if dot > 0 else ""), name


def _clusters(runs: Runs, unit: int) -> Runs:
    wide = runs.widen(unit)
    return Runs(wide.start // unit, wide.length // unit)


def _data(medium: Medium) -> Runs:
    """Bytes of the medium that are not holes of the file it lies in."""
    return Runs.of((e.offset_bytes, e.length_bytes) for e in medium.device.extents(0, medium.size_bytes) if e.is_data)


def _contents(volume: SourceVolume, unit: int, store: Sequence[str]) -> VolumeContents:
    assert volume.scan is not None
    table = volume.scan.contents
    owner, place = table.run_owner(), table.run_place()
    backed = table.run_offset != HOLE
    if len(volume.left_out):
        index = np.searchsorted(volume.left_out.start, table.run_offset, side="right") - 1
        inside = (index >= 0) & (table.run_offset < volume.left_out.end[np.maximum(index, 0)])
        backed &= ~inside
    hole_bytes = np.bincount(owner[~backed], weights=table.run_length[~backed], minlength=len(table))
    owner, place = owner[backed], place[backed]
    start = (table.run_offset[backed] + volume.offset_bytes) // unit
    count = table.run_length[backed] // unit
    rows, first = np.unique(owner, return_index=True)
    digested = (
        ((table.flags[rows] & (ContentFlag.COMPRESSED | ContentFlag.INDEX | ContentFlag.INLINE)) == 0)
        & (hole_bytes[rows] <= _MAX_DIGESTED_HOLE)
        & (table.size_bytes[rows] > 0)
    )
    stored = _matching(volume, store)
    named = np.flatnonzero(volume.scan.entries.content >= 0)
    name_of = np.full(len(table), -1, dtype=np.int64)
    name_of[volume.scan.entries.content[named]] = named
    paths = volume.scan.entries.path
    return VolumeContents(
        volume.number,
        rows,
        [*first.tolist(), len(owner)],
        (place // unit).tolist(),
        start.tolist(),
        count.tolist(),
        start[first],
        table.size_bytes[rows],
        table.valid_bytes[rows],
        digested.tolist(),
        [row in stored for row in rows.tolist()] if stored else [False] * len(rows),
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


def _slabs(
    pieces: Sequence[Piece], length: int, store: bool, chain: DigestChain | None, bytes_per_cluster: int
) -> Iterator[Slab]:
    """Cut a content at multiples of ``length`` clusters; stretches without clusters make no slab."""
    current: list[Piece] = []
    number = -1

    def slab(last: bool) -> Slab:
        turn = 0
        if chain:
            turn, chain.slabs = chain.slabs, chain.slabs + 1
        clusters = current[-1][0] + current[-1][2]
        return Slab(current, clusters, store, number * length * bytes_per_cluster, chain, turn, last)

    for place, start, count in pieces:
        while count:
            index, inside = divmod(place, length)
            if index != number:
                if current:
                    yield slab(False)
                current, number = [], index
            part = min(count, length - inside)
            current.append((inside, start, part))
            place, start, count = place + part, start + part, count - part
    if current:
        yield slab(True)
