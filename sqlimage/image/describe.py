"""The rows that tell about a medium: its volumes, the files on them, and where each file lies. A capture writes them
for version 1, an edit for its own when it is sealed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

import numpy as np

from sqlimage.extent import joined
from sqlimage.filesystem.contract import HOLE, EntryKind
from sqlimage.image.medium import Medium, SourceVolume
from sqlimage.streams.control import Volume
from sqlimage.units import NO_TIME

KIND_NAMES = {kind: kind.name.lower() for kind in EntryKind}
_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\ufffd"
Key = tuple[int, int]
"""Volume and row of a content."""
FileColumns = tuple[int, int, str, str, int | None, str | None, int, str, int, bytes | None]
"""version, volume, path, kind, bytes, modified_at, record, stream, attributes, digest."""
ExtentColumns = tuple[int, int, int, str, int, int, int]
"""version, volume, record, stream, file_offset, start_cluster, clusters."""


def volume_row(medium: Medium, volume: SourceVolume, version: int, hidden_sectors: int | None) -> Volume:
    """One volume as the control stream tells it; ``hidden_sectors`` overrides what the medium says."""
    unit, facts, partition, system = medium.bytes_per_cluster, volume.facts, volume.partition, volume.system
    return Volume(
        version=version,
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
        os_name=system.name if system else None,
        os_version=system.version if system else None,
        os_update=system.update if system else None,
        dirty=int(facts.dirty) if facts else None,
        hibernated=int(facts.hibernated) if facts else None,
        captured_as=volume.captured_as,
        raw_reason=volume.raw_reason,
    )


def _hidden_sectors(medium: Medium, volume: SourceVolume, given: int | None) -> int | None:
    """Sectors before the volume: as the caller says, else as the partition table has it, else the boot sector."""
    if given is not None:
        return given
    if volume.partition:
        return volume.partition.offset_bytes // medium.device.bytes_per_sector
    return volume.facts.hidden_sectors if volume.facts else None


def file_rows(volume: SourceVolume, version: int, digests: Mapping[int, bytes]) -> list[FileColumns]:
    """The names of one volume as rows of ``file``, in the order of its scan; ``digests`` are those of contents that
    were hashed, by their row."""
    if volume.scan is None:
        return []
    entries, contents = volume.scan.entries, volume.scan.contents
    seconds = entries.modified_ns // 1_000_000_000
    times = np.datetime_as_string(seconds.astype("datetime64[s]")).tolist()
    has_time = (entries.modified_ns != NO_TIME).tolist()
    kinds = ["", *(KIND_NAMES[EntryKind(kind)] for kind in range(1, len(EntryKind) + 1))]
    row, is_directory = entries.content.tolist(), (entries.kind == EntryKind.DIRECTORY).tolist()
    # One more for names without a content, whose row is -1.
    sizes, streams = [*contents.size_bytes.tolist(), 0], [*storable_streams(contents.stream), ""]
    known: list[bytes | None] = [None] * len(sizes)
    for at, digest in (*contents.inline_digest.items(), *digests.items()):
        known[at] = digest
    for at in volume.undigested:
        known[at] = None
    columns = zip(
        itertools.repeat(version),
        itertools.repeat(volume.number),
        storable(entries.path),
        [kinds[kind] for kind in entries.kind.tolist()],
        [None if no_size else sizes[at] for at, no_size in zip(row, is_directory, strict=True)],
        [time + "Z" if has else None for time, has in zip(times, has_time, strict=True)],
        entries.record.tolist(),
        [streams[at] for at in row],
        entries.attributes.tolist(),
        [known[at] if sizes[at] and not no_size else None for at, no_size in zip(row, is_directory, strict=True)],
        strict=False,
    )
    return list(columns)


def extent_rows(medium: Medium, volume: SourceVolume, version: int) -> Iterator[ExtentColumns]:
    """Where every content of one volume lies, as rows of ``extent``; a run that the file system tells in several parts
    is one."""
    if volume.scan is None:
        return
    contents, unit, number = volume.scan.contents, medium.bytes_per_cluster, volume.number
    backed = contents.run_offset != HOLE
    owner, place, start, length = joined(
        contents.run_owner()[backed],
        contents.run_place()[backed],
        contents.run_offset[backed] + volume.offset_bytes,
        contents.run_length[backed],
    )
    first = start // unit
    columns = zip(
        contents.record[owner].tolist(),
        owner.tolist(),
        (place // unit).tolist(),
        first.tolist(),
        (-(-(start + length) // unit) - first).tolist(),
        strict=True,
    )
    stream = storable_streams(contents.stream)
    for record, row, at, cluster, count in columns:
        yield (version, number, record, stream[row], at, cluster, count)


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
