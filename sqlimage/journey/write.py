"""The single writer of a capture: what workers made, and all the streams that tell about it, into the new file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sqlimage.filesystem.contract import HOLE, EntryKind
from sqlimage.image.medium import Medium, SourceVolume
from sqlimage.journey.encode import Encoded, Record
from sqlimage.journey.jobs import Key
from sqlimage.streams import cluster_map, data, files
from sqlimage.streams.control import Volume, insert_volume
from sqlimage.streams.database import Database
from sqlimage.units import NO_TIME

KIND_NAMES = {kind: kind.name.lower() for kind in EntryKind}
_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\ufffd"
_MOST_WAITING = 500_000
"""Map records held back, about 100 MB, so that they can be written in order."""
VERSION = 1
"""A captured file holds one version, number 1."""


@dataclass(slots=True)
class Totals:
    """What the data stream took, in bytes."""

    read_bytes: int = 0
    zero_bytes: int = 0
    repeated_bytes: int = 0
    stored_bytes: int = 0
    chunks: int = 0


class Writer:
    """Takes results one by one. Map records wait until they can be written in the order of their key; where a chunk
    turns out to be in the file already, its records are re-pointed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._same_as: dict[int, int] = {}
        self._records: list[Record] = []
        self.digests: dict[Key, bytes] = {}
        self.totals = Totals()

    def add(self, result: Encoded) -> None:
        totals, database = self.totals, self._database
        for chunk in result.chunks:
            row = (chunk.id, chunk.digest, chunk.length, len(chunk.stored), chunk.flags, chunk.stored)
            database.run(data.INSERT, row)
            if database.connection.changes() == 0:
                met = database.row(data.FIND, [chunk.digest])
                assert met is not None
                self._same_as[chunk.id] = met[0]
                totals.repeated_bytes += chunk.length
                continue
            totals.stored_bytes += len(chunk.stored)
            totals.chunks += 1
        self._records += result.records
        if len(self._records) > _MOST_WAITING:
            self._write_records()
        self.digests.update(result.digests)
        totals.read_bytes += result.read_bytes
        totals.zero_bytes += result.zero_bytes
        totals.repeated_bytes += result.repeated_bytes

    def finish(self) -> None:
        """Write what waits."""
        self._write_records()

    def repoint(self) -> None:
        """Re-point the records of chunks that are in the file under another number; the map needs its index for it."""
        for gone, kept in self._same_as.items():
            self._database.run(cluster_map.REPOINT, [kept, gone])

    def _write_records(self) -> None:
        self._records.sort()
        rows = ((VERSION, first, last, number, at) for first, last, number, at in self._records)
        self._database.run_many(cluster_map.INSERT, rows)
        self._records.clear()


def write_volume(database: Database, medium: Medium, volume: SourceVolume, hidden_sectors: int | None) -> None:
    """The row of one volume in the control stream."""
    unit, facts, partition = medium.bytes_per_cluster, volume.facts, volume.partition
    insert_volume(
        database,
        Volume(
            version=VERSION,
            number=volume.number,
            offset_clusters=volume.offset_bytes // unit,
            length_clusters=-(-volume.length_bytes // unit),
            length_bytes=volume.length_bytes,
            hidden_sectors=_hidden_sectors(medium, volume, hidden_sectors),
            partition_number=partition.number if partition else None,
            partition_type=partition.type if partition else None,
            partition_name=(partition.name or None) if partition else None,
            partition_uuid=partition.uuid if partition else None,
            file_system=facts.file_system if facts else None,
            format_version=facts.format_version if facts else None,
            label=_SURROGATE.sub(_REPLACEMENT, facts.label) if facts and facts.label else None,
            serial=facts.serial if facts else None,
            bytes_per_sector=facts.bytes_per_sector if facts else None,
            bytes_per_cluster=facts.bytes_per_cluster if facts else None,
            total_clusters=facts.total_clusters if facts else None,
            clusters_per_record=facts.clusters_per_record if facts else None,
            os_name=None,
            os_version=None,
            os_update=None,
            dirty=int(facts.dirty) if facts else None,
            hibernated=int(facts.hibernated) if facts else None,
            captured_as="files" if volume.scan else "raw",
            raw_reason=volume.raw_reason,
        ),
    )


def _hidden_sectors(medium: Medium, volume: SourceVolume, given: int | None) -> int | None:
    """Sectors before the volume: as the caller says, else as the partition table has it, else the boot sector."""
    if given is not None:
        return given
    if volume.partition:
        return volume.partition.offset_bytes // medium.device.bytes_per_sector
    return volume.facts.hidden_sectors if volume.facts else None


def write_files(database: Database, volume: SourceVolume, digests: dict[Key, bytes]) -> int:
    """The files of one volume; how many names there are."""
    if volume.scan is None:
        return 0
    entries, contents = volume.scan.entries, volume.scan.contents
    paths = storable(entries.path)
    seconds = entries.modified_ns // 1_000_000_000
    times = np.datetime_as_string(seconds.astype("datetime64[s]")).tolist()
    has_time = (entries.modified_ns != NO_TIME).tolist()
    kinds = [KIND_NAMES[EntryKind(kind)] for kind in range(1, len(EntryKind) + 1)]
    kind, row, record = entries.kind.tolist(), entries.content.tolist(), entries.record.tolist()
    sizes, attributes, number = contents.size_bytes.tolist(), entries.attributes.tolist(), volume.number
    inline, streams = contents.inline_digest, storable_streams(contents.stream)

    def rows() -> Iterable[tuple[object, ...]]:
        for n in sorted(range(len(paths)), key=paths.__getitem__):
            at = row[n]
            is_file = kind[n] != EntryKind.DIRECTORY
            yield (
                VERSION,
                number,
                paths[n],
                kinds[kind[n] - 1],
                (sizes[at] if at >= 0 else 0) if is_file else None,
                times[n] + "Z" if has_time[n] else None,
                record[n],
                streams[at] if at >= 0 else "",
                attributes[n],
                (digests.get((number, at)) or inline.get(at)) if is_file and at >= 0 and sizes[at] else None,
            )

    database.run_many(files.INSERT_FILE, rows())
    return len(paths)


def write_extents(database: Database, medium: Medium, volume: SourceVolume) -> None:
    """Where every content of one volume lies."""
    if volume.scan is None:
        return
    contents, unit, number = volume.scan.contents, medium.bytes_per_cluster, volume.number
    backed = contents.run_offset != HOLE
    owner, place = contents.run_owner()[backed], contents.run_place()[backed]
    columns = zip(
        contents.record[owner].tolist(),
        owner.tolist(),
        (place // unit).tolist(),
        ((contents.run_offset[backed] + volume.offset_bytes) // unit).tolist(),
        (contents.run_length[backed] // unit).tolist(),
        strict=True,
    )
    stream = storable_streams(contents.stream)
    database.run_many(
        files.INSERT_EXTENT,
        ((VERSION, number, record, stream[row], place, start, count) for record, row, place, start, count in columns),
    )


def storable(paths: list[str]) -> list[str]:
    """The paths as SQLite can hold them: what is not Unicode (lone surrogates) becomes U+FFFD, directory by directory,
    and no two are equal."""
    if not any(_SURROGATE.search(path) for path in paths):
        return paths
    taken = set(paths)
    safe: dict[str, str] = {}
    for path in sorted(paths, key=len):  # a directory before what is in it
        if not _SURROGATE.search(path):
            continue
        parent, _, name = path.rpartition("/")
        wanted = text = f"{safe.get(parent, parent)}/{_SURROGATE.sub(_REPLACEMENT, name)}"
        number = 1
        while text in taken:
            number += 1
            text = f"{wanted}~{number}"
        taken.add(text)
        safe[path] = text
    return [safe.get(path, path) for path in paths]


def storable_streams(streams: list[str]) -> list[str]:
    """The names of streams, likewise; the row's number keeps those apart that would become one."""
    return [
        f"{_SURROGATE.sub(_REPLACEMENT, name)}~{row}" if _SURROGATE.search(name) else name
        for row, name in enumerate(streams)
    ]
