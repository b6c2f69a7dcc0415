"""What a new version says beyond its parent: the files of its volumes as they are now, beside those of the parent."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

import numpy as np

from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s, Runs
from sqlimage.filesystem.contract import HOLE, ContentFlag, Contents, read_all
from sqlimage.filesystem.probe import open_file_system
from sqlimage.image.changes import Change, Places, Side, Stream, changed_rows, story
from sqlimage.image.describe import Key, extent_rows, file_rows, storable_streams
from sqlimage.image.medium import PAGE_FILES, Medium, SourceVolume
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
            rows = self._database.rows(files.SELECT_EFFECTIVE, [self._number_before, volume])
            extents = self._database.rows(files.SELECT_EXTENTS, [self._number_before, volume])
            found = self._known[volume] = Side({row[2]: row for row in rows}, _by_content(extents))
        return found

    def compare(
        self,
        volume: int,
        after: Side,
        extents: Iterable[tuple[int, int, int, str, int, int, int]],
        touched: set[Stream],
    ) -> None:
        """Take up what a volume's files are now; ``extents`` are the rows that ``after`` has its places from, and
        ``touched`` the contents on clusters that differ."""
        before = self.before(volume)
        changed = dict(changed_rows(before, after, touched))
        gone = [row for path, row in before.rows.items() if path not in after.rows]
        self.changes += story(before, after, changed, touched)
        number = self._number
        self._rows += [(number, *row[1:]) for row in changed.values()]
        self._deleted += [(number, volume, row[2], row[6], row[7]) for row in gone]
        # A content with any row of this version has all its extents here too: the ancestors' no longer count.
        told = {(row[6], row[7]) for row in (*changed.values(), *gone)}
        told |= {content for content, where in after.places.items() if before.places.get(content) != where}
        self._extents += [(number, *row[1:]) for row in extents if (row[2], row[3]) in told]
        vanished = before.places.keys() - after.places.keys() - told
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

    ``written`` are the bytes of the medium that differ from the parent. ``keep_page_files``: whether page files get
    a digest; None: those that had one.
    """

    def __init__(self, delta: Delta, medium: Medium, written: Runs, *, keep_page_files: bool | None) -> None:
        self._delta = delta
        self._medium = medium
        self._written = written
        self._keep_page_files = keep_page_files
        self.digests: dict[Key, bytes] = {}
        """Of the contents, by volume and row of its scan."""
        self.touched: dict[int, list[int]] = {}
        """By volume, the rows of the contents on clusters that differ."""

    def compare_with(self, numbers: Iterable[int]) -> None:
        """Compare all volumes with the parent's, which were ``numbers``."""
        present = {volume.number for volume in self._medium.volumes}
        for volume in self._medium.volumes:
            self._look_at(volume)
        for number in set(numbers) - present:
            self._delta.compare(number, Side({}, {}), [], set())

    def allocated(self) -> Runs:
        """The bitmap, in clusters."""
        unit, runs = self._medium.bytes_per_cluster, self._medium.gaps()
        for volume in self._medium.volumes:
            runs = runs.union(volume.allocated.shift(volume.offset_bytes))
        wide = runs.widen(unit)
        return Runs(wide.start // unit, wide.length // unit)

    def _look_at(self, volume: SourceVolume) -> None:
        extents = list(extent_rows(self._medium, volume, 0))
        places = _by_content((row[2], row[3], row[4], row[5], row[6]) for row in extents)
        touched = self._touch(volume)
        if volume.scan is not None:
            self._find_digests(volume, places, touched)
        rows = {row[2]: row for row in file_rows(volume, 0, self.digests)}
        self._delta.compare(volume.number, Side(rows, places), extents, touched)

    def _touch(self, volume: SourceVolume) -> set[Stream]:
        """Contents on clusters that were written."""
        if volume.scan is None or not len(self._written):
            return set()
        contents = volume.scan.contents
        hit = _overlapping(contents, self._written.shift(-volume.offset_bytes))
        self.touched[volume.number] = hit
        streams = storable_streams(contents.stream)
        return {(int(contents.record[row]), streams[row]) for row in hit}

    def _find_digests(self, volume: SourceVolume, places: Mapping[Stream, Places], touched: set[Stream]) -> None:
        """A digest for each content that had one and is as it was, or can be read now."""
        assert volume.scan is not None
        contents, before = volume.scan.contents, self._delta.before(volume.number)
        known = {(row[6], row[7]): row for row in before.rows.values()}
        streams = storable_streams(contents.stream)
        left_out = {
            int(content)
            for path, content in zip(volume.scan.entries.path, volume.scan.entries.content.tolist(), strict=True)
            if len(path) <= _LONGEST_PAGE_FILE and path.casefold() in PAGE_FILES
        }
        skipped = (contents.flags & _UNREAD != 0) | (hole_bytes(contents) > _MOST_DIGESTED_HOLE)
        columns = zip(contents.record.tolist(), streams, contents.size_bytes.tolist(), skipped.tolist(), strict=True)
        file_system = None
        for row, (record, stream, size, is_skipped) in enumerate(columns):
            content = (record, stream)
            if not size or is_skipped or content not in places:  # in none: nothing but holes
                continue
            old = known.get(content)
            if row in left_out and not self._is_page_file_digested(old is not None and old[9] is not None):
                continue
            if (
                old is not None
                and old[4] == size
                and content not in touched
                and before.places.get(content, ()) == places[content]
            ):
                if old[9] is not None:
                    self.digests[(volume.number, row)] = old[9]
                continue
            if file_system is None:
                window = Window(self._medium.device, volume.offset_bytes, volume.length_bytes)
                file_system = open_file_system(window)
                assert file_system is not None
            hashed = hashlib.sha256()
            with suppress(InconsistentVolume):
                for block in read_all(file_system.open(record, contents.stream[row])):
                    hashed.update(block)
                self.digests[(volume.number, row)] = hashed.digest()

    def _is_page_file_digested(self, had_one: bool) -> bool:
        return had_one if self._keep_page_files is None else self._keep_page_files


_LONGEST_PAGE_FILE = max(map(len, PAGE_FILES))


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


def hole_bytes(contents: Contents) -> Int64s:
    """Of each content, how much of it lies in holes."""
    holes = contents.run_offset == HOLE
    total = np.bincount(contents.run_owner()[holes], weights=contents.run_length[holes], minlength=len(contents))
    return total.astype(np.int64)


def _by_content(rows: Iterable[tuple[int, str, int, int, int]]) -> dict[Stream, Places]:
    found: dict[Stream, list[tuple[int, int, int]]] = defaultdict(list)
    for record, stream, place, start, clusters in rows:
        found[(record, stream)].append((place, start, clusters))
    return {content: tuple(where) for content, where in found.items()}
