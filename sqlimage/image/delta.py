"""What a new version says beyond its parent: the files of its volumes as they are now, beside those of the parent."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress

import numpy as np

from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import HOLE, ContentFlag, Contents, Scan, read_all
from sqlimage.filesystem.probe import open_file_system
from sqlimage.image.changes import Change, Places, Side, Stream, changed_rows, story
from sqlimage.image.describe import Key, extent_rows, file_rows, storable_streams
from sqlimage.image.medium import Medium, SourceVolume
from sqlimage.media.window import Window
from sqlimage.streams import bitmap, files
from sqlimage.streams.database import Database

_MOST_DIGESTED_HOLE = 64 << 20
_UNREAD = ContentFlag.COMPRESSED | ContentFlag.INDEX | ContentFlag.INLINE


class Delta:
    """Rows of ``file``, ``extent`` and ``bitmap`` for a version, as far as they differ from its parent's. Construction
    finds them; :meth:`write` belongs in a transaction."""

    def __init__(self, database: Database, number_before: int, number: int, total_clusters: int) -> None:
        """``database`` shows the parent as version ``number_before`` in its effective views; ``number`` is the new
        version, ``total_clusters`` the size of the parent's medium."""
        self._database = database
        self._number_before = number_before
        self._number = number
        self._total_before = total_clusters
        self._known: dict[int, Side] = {}
        self.changes: list[Change] = []
        self._rows: list[tuple[object, ...]] = []
        self._deleted: list[tuple[object, ...]] = []
        self._extents: list[tuple[object, ...]] = []

    def before(self, volume: int) -> Side:
        """The parent's files on a volume."""
        found = self._known.get(volume)
        if found is None:
            rows = files.every_row(self._database, self._number_before, volume)
            extents = files.every_extent(self._database, self._number_before, volume)
            found = self._known[volume] = Side({row[2]: row for row in rows}, Places(extents))
        return found

    def compare(
        self, volume: int, after: Side, touched: Collection[Stream] = (), moved: Collection[Stream] | None = None
    ) -> None:
        """Take up what a volume's files are now. ``touched`` are the contents on clusters that differ, ``moved`` those
        that lie elsewhere, if that is known already."""
        before = self.before(volume)
        if moved is None:
            moved = after.places.moved_since(before.places)
        changed = changed_rows(before, after, touched, moved)
        gone = [row for path, row in before.rows.items() if path not in after.rows]
        self.changes += story(before, after, changed, touched)
        number = self._number
        self._rows += [(number, *row[1:]) for row in changed.values()]
        self._deleted += [(number, volume, row[2], row[6], row[7]) for row in gone]
        # A content with any row of this version has all its extents here too: the ancestors' no longer count.
        told = {(row[6], row[7]) for row in (*changed.values(), *gone)} | set(moved)
        self._extents += [(number, volume, *row) for row in after.places.extents if row[:2] in told]
        named = {(row[6], row[7]) for row in (*changed.values(), *gone)}
        vanished = [content for content in moved if content not in named and not after.places.of(content)]
        self._deleted += [(number, volume, path, *content) for path, content in _hiding(vanished, before, after)]

    def write(self, database: Database, allocated: Runs) -> None:
        """The rows of the version; ``allocated`` is its bitmap, in clusters."""
        database.run_many(files.INSERT_FILE, self._rows)
        database.run_many(files.INSERT_DELETED, self._deleted)
        database.run_many(files.INSERT_EXTENT, self._extents)
        if allocated != bitmap.read(self._database, self._number_before, self._total_before):
            bitmap.insert(database, self._number, allocated)


class Observed:
    """The volumes of a medium as they are now, for a :class:`Delta`.

    Made in two steps, for the first needs no knowledge of what was written and can be done meanwhile.
    ``keep_page_files``: whether page files get a digest; None: those that had one.
    """

    def __init__(self, delta: Delta, medium: Medium, *, keep_page_files: bool | None) -> None:
        self._delta = delta
        self._medium = medium
        self._keep_page_files = keep_page_files
        self.digests: dict[Key, bytes] = {}
        """Of the contents, by volume and row of its scan."""
        self.touched: dict[int, list[int]] = {}
        """By volume, the rows of the contents on clusters that differ."""
        self._volumes = [_Volume(delta.before(volume.number), medium, volume) for volume in medium.volumes]
        for each in self._volumes:
            each.read = self._read(each, each.unknown)

    def compare_with(self, written: Runs, numbers: Iterable[int]) -> None:
        """Compare all volumes with the parent's, which were ``numbers``; ``written`` are the bytes of the medium that
        differ from the parent."""
        for volume in self._volumes:
            self._look_at(volume, written)
        for number in set(numbers) - {volume.source.number for volume in self._volumes}:
            self._delta.compare(number, Side.empty())

    def allocated(self) -> Runs:
        """The bitmap, in clusters."""
        unit, runs = self._medium.bytes_per_cluster, self._medium.gaps()
        for volume in self._medium.volumes:
            runs = runs.union(volume.allocated.shift(volume.offset_bytes))
        wide = runs.widen(unit)
        return Runs(wide.start // unit, wide.length // unit)

    def _look_at(self, volume: _Volume, written: Runs) -> None:
        source, number = volume.source, volume.source.number
        touched: set[Stream] = set()
        if source.scan is not None:
            hit = _overlapping(source.scan.contents, written.shift(-source.offset_bytes)) if len(written) else []
            self.touched[number] = hit
            records = source.scan.contents.record[hit].tolist()
            touched = {(record, volume.streams[row]) for record, row in zip(records, hit, strict=True)}
            digests = self._digests(volume, set(hit))
            self.digests.update({(number, row): digest for row, digest in digests.items()})
            volume.set_digests({row: digests.get(row) for row in (*hit, *volume.unknown)})
        self._delta.compare(number, Side({row[2]: row for row in volume.rows}, volume.places), touched, volume.moved)

    def _digests(self, volume: _Volume, touched: set[int]) -> dict[int, bytes]:
        """A digest for each content that had one and is as it was, or can be read now."""
        digests = {row: digest for row, digest in volume.known.items() if row not in touched}
        digests.update(volume.read)
        digests.update(self._read(volume, (touched & volume.readable).difference(volume.unknown)))
        return digests

    def _read(self, volume: _Volume, rows: Iterable[int]) -> dict[int, bytes]:
        """The digests of contents, from their bytes."""
        digests: dict[int, bytes] = {}
        scan, file_system = volume.source.scan, None
        for row in sorted(rows):
            if row in volume.page_files and not self._is_page_file_digested(volume.page_files[row]):
                continue
            if file_system is None:
                window = Window(self._medium.device, volume.source.offset_bytes, volume.source.length_bytes)
                file_system = open_file_system(window)
            assert scan is not None and file_system is not None
            hashed = hashlib.sha256()
            with suppress(InconsistentVolume):
                content = file_system.open(int(scan.contents.record[row]), scan.contents.stream[row])
                for block in read_all(content):
                    hashed.update(block)
                digests[row] = hashed.digest()
        return digests

    def _is_page_file_digested(self, had_one: bool) -> bool:
        return had_one if self._keep_page_files is None else self._keep_page_files


class _Volume:
    """One volume beside what it was, as far as it can be told without knowing what was written."""

    def __init__(self, before: Side, medium: Medium, source: SourceVolume) -> None:
        self.source = source
        self.places = Places(row[2:] for row in extent_rows(medium, source, 0))
        self.moved = self.places.moved_since(before.places)
        self.streams: list[str] = []
        self.readable: set[int] = set()
        """Contents that have a digest when they can be read."""
        self.known: dict[int, bytes] = {}
        """Digests of those that are what they were, unless they were written to."""
        self.unknown: list[int] = []
        """Those that have to be read in any case."""
        self.read: dict[int, bytes] = {}
        """The digests of those."""
        self.page_files: dict[int, bool] = {}
        """Contents of page files, and whether they had a digest."""
        if source.scan is not None:
            self._look_at_contents(before, source.scan)
        self.rows = file_rows(source, 0, self.known)

    def _look_at_contents(self, before: Side, scan: Scan) -> None:
        contents = scan.contents
        self.streams = storable_streams(contents.stream)
        self.page_files = dict.fromkeys(self.source.paging_rows, False)
        old_rows = {(row[6], row[7]): row for row in before.rows.values()}
        run_owner = contents.run_owner()[~contents.reads_as_zeros()]
        wanted = (
            (contents.size_bytes > 0)
            & (contents.flags & _UNREAD == 0)
            & (contents.zero_bytes() <= _MOST_DIGESTED_HOLE)
            & (contents.covered_bytes() >= contents.size_bytes)
            & (np.bincount(run_owner, minlength=len(contents)) > 0)  # else it is nothing but holes
        )
        if self.source.facts is not None and self.source.facts.may_share:
            wanted &= ~contents.sharing()
        wanted[list(self.source.undigested)] = False
        rows = np.flatnonzero(wanted)
        self.readable.update(rows.tolist())
        sizes, records = contents.size_bytes[rows].tolist(), contents.record[rows].tolist()
        for row, record, size in zip(rows.tolist(), records, sizes, strict=True):
            content = (record, self.streams[row])
            old = old_rows.get(content)
            if row in self.page_files:
                self.page_files[row] = old is not None and old[9] is not None
            if old is None or old[4] != size or content in self.moved:
                self.unknown.append(row)
            elif old[9] is not None:
                self.known[row] = old[9]

    def set_digests(self, digests: Mapping[int, bytes | None]) -> None:
        """Digests of contents, by row, that were found out since."""
        if self.source.scan is None or not digests:
            return
        content = self.source.scan.entries.content
        for n in np.flatnonzero(np.isin(content, np.fromiter(digests, dtype=np.int64, count=len(digests)))).tolist():
            row = self.rows[n]
            if row[3] != _DIRECTORY and row[4] and int(content[n]) not in self.source.scan.contents.inline_digest:
                self.rows[n] = (*row[:9], digests[int(content[n])])


_DIRECTORY = "directory"


def _hiding(vanished: Iterable[Stream], before: Side, after: Side) -> Iterator[tuple[str, Stream]]:
    """Names, which no file has, for the rows that hide contents no name led to, or whose name leads to another now."""
    for record, stream in sorted(vanished):
        path = f"/:{record}:{stream}"
        while path in before.rows or path in after.rows:
            path += ":"
        yield path, (record, stream)


def _overlapping(contents: Contents, written: Runs) -> list[int]:
    """Rows of contents one of whose runs meets a written one."""
    backed = contents.run_offset != HOLE
    start = contents.run_offset[backed]
    end = start + contents.run_length[backed]
    after = np.searchsorted(written.end, start, side="right")
    inside = after < len(written)
    inside[inside] = written.start[after[inside]] < end[inside]
    return np.unique(contents.run_owner()[backed][inside]).tolist()  # type: ignore[no-any-return]
