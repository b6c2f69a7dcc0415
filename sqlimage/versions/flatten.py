"""One version of a lineage, however long and over however many files, as an image that needs no other."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from sqlimage.errors import DamagedError, RefusedError
from sqlimage.image import effective
from sqlimage.image.chunks import content_of, read_stored
from sqlimage.image.image import Version
from sqlimage.streams import audit, bitmap, cluster_map, control, data, files, properties
from sqlimage.streams.cluster_map import MapTable
from sqlimage.streams.data import StoredChunk
from sqlimage.streams.database import Database
from sqlimage.streams.keys import Keys
from sqlimage.streams.newfile import NewImage
from sqlimage.tool import TOOL
from sqlimage.units import Progress
from sqlimage.versions.reading import Reading
from sqlimage.versions.removal import refuse_open

_AHEAD = 32
_WRITEBACK_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class FlattenReport:
    """What was made; sizes in bytes."""

    image: str
    uuid: str
    """Of the new version: it has no parent, so it is not the old one."""
    flattened_uuid: str
    versions: int
    """How many versions it was made of."""
    contents: int
    stored_bytes: int
    image_bytes: int


def flatten(
    version: Version,
    destination: str | os.PathLike[str],
    *,
    user: str | None = None,
    message: str | None = None,
    progress: Progress | None = None,
) -> FlattenReport:
    """Make a new image of one version and all it has from its ancestors. Contents are verified and copied as they are
    stored; properties, files and the audit trail of the lineage come along.

    Raises :class:`~sqlimage.errors.RefusedError` where the destination exists or the version is an edit that is not
    finished, and :class:`~sqlimage.errors.DamagedError` where a content fails its digest.
    """
    refuse_open(version.image.database, [version.control], "flattened")
    with Reading(version) as reading, NewImage(destination) as new:
        if any(os.path.realpath(file.path) == new.target for file in reading.lineage.files):
            raise RefusedError(f"{new.target}: is part of what would be flattened")
        database = new.begin(_keys(reading))
        copying = _Copying(database, reading, new)
        copying.run(progress)
        uuid = control.new_uuid()
        _tell(database, version, uuid, copying.stored_bytes)
        problems = [problem for file in reading.lineage.files for problem in audit.broken_links(file)]
        _repeat_audit(database, reading)
        audit.append(
            database,
            "flatten",
            tool=TOOL,
            version=1,
            length_bytes=copying.stored_bytes,
            detail={
                "flattened": version.control.uuid,
                "versions": len(reading.lineage.links),
                "uuid": uuid,
                "message": message,
                **({"audit_problems": problems[:10]} if problems else {}),
            },
            user=user,
        )
        new.make_indexes()
        new.publish()
        return FlattenReport(
            new.target,
            uuid,
            version.control.uuid,
            len(reading.lineage.links),
            copying.contents,
            copying.stored_bytes,
            new.size_bytes,
        )


def _keys(reading: Reading) -> Keys | None:
    """What the new image needs to hold what is encrypted in any file of the lineage."""
    found = [keys for keys in (file.keys() for file in reading.lineage.files) if keys is not None]
    return found[0] if found else None


class _Copying:
    """Data and map of the new image."""

    def __init__(self, database: Database, reading: Reading, new: NewImage) -> None:
        self._database = database
        self._reading = reading
        self._new = new
        self._numbers: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._by_name: dict[bytes, int] = {}
        self.contents = self.stored_bytes = 0

    def run(self, progress: Progress | None) -> None:
        reading = self._reading
        pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="flatten")
        try:
            for table in effective.pages(reading.lineage, reading.connections):
                self._copy(table.data, pool)
                backed = table.data > 0
                self._check(MapTable(*(column[backed] for column in table.columns())))
                rows = zip(
                    table.start[backed].tolist(),
                    table.end[backed].tolist(),
                    table.data[backed].tolist(),
                    table.data_offset[backed].tolist(),
                    strict=True,
                )
                self._database.insert(
                    cluster_map.INTO,
                    [(1, start, end, self._numbers[key], offset, 0) for start, end, key, offset in rows],
                )
                if progress:
                    progress(int(table.end[-1]) * reading.unit, reading.total_clusters * reading.unit)
        finally:
            pool.shutdown(cancel_futures=True)

    def _check(self, table: MapTable) -> None:
        """Every record lies within its content."""
        lengths = np.array([self._lengths[key] for key in table.data.tolist()], dtype=np.int64)
        wrong = table.data_offset + (table.end - table.start + 1) * self._reading.unit > lengths
        if wrong.any():
            number = effective.key_of(int(table.data[wrong][0]))[1]
            raise DamagedError(f"{self._reading.path}: a map record reaches beyond data {number}", data=number)

    def _copy(self, keys: np.ndarray[tuple[int], np.dtype[np.int64]], pool: ThreadPoolExecutor) -> None:
        """The contents that these keys name and that are not there yet, by the order in which they are first named."""
        distinct, first = np.unique(keys, return_index=True)
        wanted = [key for key in distinct[np.argsort(first)].tolist() if key and key not in self._numbers]
        window: deque[tuple[int, Future[StoredChunk]]] = deque()
        for key in wanted:
            window.append((key, pool.submit(self._verified, key)))
            if len(window) > _AHEAD:
                self._take(*window.popleft())
        while window:
            self._take(*window.popleft())

    def _verified(self, key: int) -> StoredChunk:
        chunk = read_stored(self._reading.connections, effective.key_of(key))
        content_of(chunk)
        return chunk

    def _take(self, key: int, future: Future[StoredChunk]) -> None:
        chunk = future.result()
        assert chunk.stored is not None
        number = self._by_name.get(chunk.digest)
        if number is None:
            number = self._by_name[chunk.digest] = len(self._by_name) + 1
            row = [number, chunk.digest, chunk.length, len(chunk.stored), chunk.flags, chunk.stored]
            self._database.run(data.INSERT, row)
            self.contents += 1
            before, self.stored_bytes = self.stored_bytes, self.stored_bytes + len(chunk.stored)
            if before // _WRITEBACK_BYTES != self.stored_bytes // _WRITEBACK_BYTES:
                self._new.start_writeback()
        self._numbers[key] = number
        self._lengths[key] = chunk.length


def _tell(database: Database, version: Version, uuid: str, stored_bytes: int) -> None:
    """All streams but data, map and audit."""
    told = dataclasses.replace(
        version.control, version=1, uuid=uuid, parent_uuid=None, parent_name=None, stored_bytes=stored_bytes
    )
    control.insert_control(database, told)
    version.image.attach_parents(version.control)
    source = version.image.database
    for volume in version.volumes():
        control.insert_volume(database, dataclasses.replace(volume, version=1))
        rows = files.every_row(source, version.number, volume.number)
        database.run_many(files.INSERT_FILE, ((1, *row[1:]) for row in rows))
        extents = files.every_extent(source, version.number, volume.number)
        database.run_many(files.INSERT_EXTENT, ((1, volume.number, *row) for row in extents))
    bitmap.insert(database, 1, version.allocated())
    for name, value in version.properties().items():
        properties.put(database, 1, name, value)


def _repeat_audit(database: Database, reading: Reading) -> None:
    """What was done to the version and its ancestors, oldest first, as the story of the only version there is."""
    for file, source in reversed(list(enumerate(reading.lineage.files))):
        numbers = set(reading.lineage.in_file(file))
        for row in audit.read_all(source):
            if row.version in numbers:
                audit.repeat(database, row, 1)
