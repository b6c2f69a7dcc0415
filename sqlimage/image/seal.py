"""Sealing an edit: the volumes are read again as they are now, and all streams but data and map are brought in step."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import HOLE, ContentFlag, Contents, read_all
from sqlimage.filesystem.probe import open_file_system
from sqlimage.image.changes import Change, Places, Side, Stream, changed_rows, story
from sqlimage.image.describe import Key, extent_rows, file_rows, storable_streams, volume_row
from sqlimage.image.medium import PAGE_FILES, Medium, SourceVolume, inspect
from sqlimage.media.window import Window
from sqlimage.streams import bitmap, cluster_map, control, files
from sqlimage.streams.control import Control, Volume
from sqlimage.streams.database import Database

_MOST_DIGESTED_HOLE = 64 << 20
_UNALIGNED = "its partitions do not begin at clusters of the image"


class Sealing:
    """One version about to be sealed. Construction reads the medium; :meth:`write` belongs in a transaction."""

    def __init__(self, database: Database, version: Control, device: BlockDevice) -> None:
        self._database = database
        self._version = version
        self._device = device
        self._written = cluster_runs_in_bytes(database, version)
        self._medium = _in_units_of(version.bytes_per_cluster, inspect(device, keep_page_files=True))
        self.changes: list[Change] = []
        self.written_clusters = self._written.total // version.bytes_per_cluster
        self.volumes: list[Volume] = []
        self._rows: list[tuple[object, ...]] = []
        self._deleted: list[tuple[object, ...]] = []
        self._extents: list[tuple[object, ...]] = []
        known = {volume.number: volume for volume in control.volumes(database, version)}
        for volume in self._medium.volumes:
            self._look_at(volume)
            self.volumes.append(_as_it_was(volume_row(self._medium, volume, version.version, None), known))
        for number in known.keys() - {volume.number for volume in self._medium.volumes}:
            self._compare(number, Side({}, {}), [], set())

    def write(self) -> None:
        """The streams of the version as they are now."""
        database, number = self._database, self._version.version
        for table in ("volume", "file", "extent", "bitmap"):
            database.run(f"DELETE FROM {table} WHERE version = ?", [number])
        for volume in self.volumes:
            control.insert_volume(database, volume)
        database.run_many(files.INSERT_FILE, self._rows)
        database.run_many(files.INSERT_DELETED, self._deleted)
        database.run_many(files.INSERT_EXTENT, self._extents)
        allocated = self._allocated()
        if allocated != bitmap.read(database, number, self._version.total_clusters):
            bitmap.insert(database, number, allocated)
        table_ = self._medium.table
        control.seal(database, number, table_.scheme if table_ else None, table_.disk_id if table_ else None)

    def _allocated(self) -> Runs:
        runs = self._medium.gaps()
        for volume in self._medium.volumes:
            runs = runs.union(volume.allocated.shift(volume.offset_bytes))
        wide = runs.widen(self._version.bytes_per_cluster)
        return Runs(wide.start // self._version.bytes_per_cluster, wide.length // self._version.bytes_per_cluster)

    def _look_at(self, volume: SourceVolume) -> None:
        """Compare one volume's files with what they were."""
        number = self._version.version
        extents = list(extent_rows(self._medium, volume, number))
        places = _by_content((row[2], row[3], row[4], row[5], row[6]) for row in extents)
        touched = self._touched(volume)
        digests = self._digests(volume, places, touched)
        rows = {row[2]: row for row in file_rows(volume, number, digests)}
        self._compare(volume.number, Side(rows, places), extents, touched)

    def _compare(
        self, volume: int, after: Side, extents: list[tuple[int, int, int, str, int, int, int]], touched: set[Stream]
    ) -> None:
        before = self._before(volume)
        changed = dict(changed_rows(before, after, touched))
        gone = [row for path, row in before.rows.items() if path not in after.rows]
        self.changes += story(before, after, changed, touched)
        number = self._version.version
        self._rows += [(number, *row[1:]) for row in changed.values()]
        self._deleted += [(number, volume, row[2], row[6], row[7]) for row in gone]
        # A content with any row of this version has all its extents here too: the ancestors' no longer count.
        told = {(row[6], row[7]) for row in (*changed.values(), *gone)}
        told |= {content for content, where in after.places.items() if before.places.get(content) != where}
        self._extents += [row for row in extents if (row[2], row[3]) in told]
        vanished = before.places.keys() - after.places.keys() - told
        self._deleted += [(number, volume, path, *content) for path, content in _hiding(vanished, before, after)]

    def _before(self, volume: int) -> Side:
        rows = self._database.rows(files.SELECT_EFFECTIVE, [self._version.version, volume])
        extents = self._database.rows(files.SELECT_EXTENTS, [self._version.version, volume])
        return Side({row[2]: row for row in rows}, _by_content(extents))

    def _touched(self, volume: SourceVolume) -> set[Stream]:
        """Contents on clusters that were written."""
        if volume.scan is None or not len(self._written):
            return set()
        contents = volume.scan.contents
        hit = _overlapping(contents, self._written.shift(-volume.offset_bytes))
        streams = storable_streams(contents.stream)
        return {(int(contents.record[row]), streams[row]) for row in hit}

    def _digests(self, volume: SourceVolume, places: dict[Stream, Places], touched: set[Stream]) -> dict[Key, bytes]:
        """A digest for each content that had one and is as it was, or can be read now."""
        if volume.scan is None:
            return {}
        contents, digests = volume.scan.contents, {}
        before = self._before(volume.number)
        known = {(row[6], row[7]): row for row in before.rows.values()}
        streams = storable_streams(contents.stream)
        left_out = {
            int(content)
            for path, content in zip(volume.scan.entries.path, volume.scan.entries.content.tolist(), strict=True)
            if path.casefold() in PAGE_FILES
        }
        unread = ContentFlag.COMPRESSED | ContentFlag.INDEX | ContentFlag.INLINE
        hole_bytes = _hole_bytes(contents)
        file_system = None
        for row in range(len(contents)):
            size, content = int(contents.size_bytes[row]), (int(contents.record[row]), streams[row])
            if not places.get(content):
                continue  # nothing but holes
            old = known.get(content)
            # A page file has none, unless it was captured on request.
            is_left_out = row in left_out and (old is None or old[9] is None)
            if not size or contents.flags[row] & unread or is_left_out or hole_bytes[row] > _MOST_DIGESTED_HOLE:
                continue
            same = old is not None and old[4] == size and before.places.get(content, ()) == places.get(content, ())
            if same and content not in touched and old is not None:
                if old[9] is not None:
                    digests[(volume.number, row)] = old[9]
                continue
            if file_system is None:
                file_system = open_file_system(Window(self._device, volume.offset_bytes, volume.length_bytes))
                assert file_system is not None
            hashed = hashlib.sha256()
            with suppress(InconsistentVolume):
                for block in read_all(file_system.open(content[0], contents.stream[row])):
                    hashed.update(block)
                digests[(volume.number, row)] = hashed.digest()
        return digests


def cluster_runs_in_bytes(database: Database, version: Control) -> Runs:
    """What a version itself says something about, in bytes of the medium."""
    runs, unit = cluster_map.own_clusters(database, version.version), version.bytes_per_cluster
    return Runs(runs.start * unit, runs.length * unit)


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


def _hole_bytes(contents: Contents) -> list[int]:
    holes = contents.run_offset == HOLE
    weights = contents.run_length[holes]
    return np.bincount(contents.run_owner()[holes], weights=weights, minlength=len(contents)).tolist()  # type: ignore[no-any-return]


def _by_content(rows: Iterable[tuple[int, str, int, int, int]]) -> dict[Stream, Places]:
    found: dict[Stream, list[tuple[int, int, int]]] = defaultdict(list)
    for record, stream, place, start, clusters in rows:
        found[(record, stream)].append((place, start, clusters))
    return {content: tuple(where) for content, where in found.items()}


def _in_units_of(unit: int, medium: Medium) -> Medium:
    """The medium in the clusters of the image, which do not change. What a guest laid out finer than them is told in
    whole clusters; partitions that begin between them cannot be told, and the medium is one raw volume."""
    if all(volume.offset_bytes % unit == 0 for volume in medium.volumes):
        return dataclasses.replace(medium, bytes_per_cluster=unit)
    whole = Runs.of([(0, medium.size_bytes)])
    raw = SourceVolume(0, 0, medium.size_bytes, None, None, None, whole, Runs.empty(), (), _UNALIGNED)
    return dataclasses.replace(medium, bytes_per_cluster=unit, volumes=(raw,))


def _as_it_was(new: Volume, known: dict[int, Volume]) -> Volume:
    """What a medium does not tell of itself is as it was: where a bare volume lay, and which partition it was."""
    old = known.get(new.number)
    if old is None or new.partition_number is not None or old.offset_clusters != new.offset_clusters:
        return new
    return dataclasses.replace(
        new,
        hidden_sectors=old.hidden_sectors,
        partition_number=old.partition_number,
        partition_type=old.partition_type,
        partition_name=old.partition_name,
        partition_uuid=old.partition_uuid,
    )
