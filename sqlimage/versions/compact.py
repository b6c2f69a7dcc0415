"""An image made as small as it can be: no content that nobody names, no dust of random writes, no free pages.

Everything is done in steps, each a transaction after which every version reads as it did, so it can be interrupted at
any moment, and never needs room for a second copy of the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sqlimage.codec.chunk import ChunkFlag, encode, name_of
from sqlimage.codec.vault import Vault
from sqlimage.errors import DamagedError
from sqlimage.image.chunks import Cache, ChunkCache, Connections
from sqlimage.image.writing import give_back_space, writing
from sqlimage.streams import arrangement, audit, control, data, signature
from sqlimage.streams.cluster_map import MapRecord
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.tool import TOOL
from sqlimage.units import MIB, Progress
from sqlimage.versions.children import Children
from sqlimage.versions.removal import Freed, remove_unused

_LEVEL = 3
_ROWS_AT_A_TIME = 4096
_STEP_BYTES = 16 * MIB
"""Content that is cut anew in one transaction."""
_DUST = 16
"""A chunk of less than this part of a whole one is dust where there is much of it."""
_MUCH_DUST = 8
_UNUSED = "SELECT id FROM data WHERE NOT EXISTS (SELECT 1 FROM cluster_map WHERE cluster_map.data = data.id)"

# Contents that records of one version alone name, and that are dust or mostly not named at all; ?1 is a chunk, ?2 bytes
# per cluster.
_POOR = f"""
SELECT used.version, data.id FROM (
  SELECT data, min(version) AS version, max(version) AS newest, sum(end_cluster - start_cluster + 1) * ?2 AS bytes
  FROM cluster_map WHERE data IS NOT NULL GROUP BY data
) AS used JOIN data ON data.id = used.data
WHERE used.version = used.newest AND data.bytes IS NOT NULL
  AND (data.length * {_DUST} <= ?1 OR used.bytes * 2 < data.length)
"""
_RECORDS = (
    "SELECT start_cluster, end_cluster, data, data_offset FROM cluster_map "
    "WHERE version = ?1 AND data IN (SELECT value FROM json_each(?2)) ORDER BY start_cluster"
)
_REPLACE = "UPDATE cluster_map SET data = ?, data_offset = ? WHERE version = ? AND start_cluster = ?"


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What was gained; sizes in bytes."""

    image: str
    bytes_before: int
    bytes_after: int
    dropped_contents: int
    dropped_bytes: int
    """Contents that no version named."""
    recut_contents: int
    """Contents that were brought together into fewer ones."""
    recut_into: int
    kept_for_children: int
    """Contents that child files refer to, left as they are."""
    kept_for_signatures: int
    """Versions that are signed, or that a signed one builds on: their contents are left as they are."""
    searched: str


@dataclass(slots=True)
class _Recut:
    contents: int = 0
    into: int = 0
    kept: set[int] = field(default_factory=set)


def compact(
    image: str | os.PathLike[str],
    *,
    user: str | None = None,
    message: str | None = None,
    search: Sequence[str] = (),
    progress: Progress | None = None,
) -> CompactReport:
    """Drop what no version names, bring together what random writes left in small pieces, and give the space back.

    Contents that child files refer to stay as they are, as far as those files are found: beside the image, in
    ``search`` and in the directories of ``SQLIMAGE_PATH``; so does what a signature covers, there or here. Raises
    :class:`~sqlimage.errors.DamagedError` where a content that would be cut anew fails its digest; what was done until
    then stays done.
    """
    with writing(image, "compacting it") as database:
        before = os.path.getsize(database.path)
        children = Children(database, search)
        children.refuse_where_written()
        needed = set[bytes]().union(*(child.needs() for child in children.files))
        with database.transaction():  # first, for it may be interrupted
            audit.append(
                database, "compact", tool=TOOL, version=None, detail={"begun": True, "message": message}, user=user
            )
        dropped = _drop_unused(database, needed)
        recut, vouched = _Recut(), _vouched_for(database, children)
        for version in control.versions(database):
            if version.state == "sealed" and version.uuid not in vouched:
                _recut_version(database, version, needed, recut, progress)
        with database.transaction():
            audit.append(
                database,
                "compact",
                tool=TOOL,
                version=None,
                length_bytes=dropped.stored_bytes,
                detail={
                    "dropped": dropped.contents,
                    "cut_anew": recut.contents,
                    "into": recut.into,
                    "message": message,
                },
                user=user,
            )
        give_back_space(database)
    return CompactReport(
        database.path,
        before,
        os.path.getsize(database.path),
        dropped.contents,
        dropped.stored_bytes,
        recut.contents,
        recut.into,
        len(recut.kept),
        len(vouched),
        children.advice(),
    )


def _vouched_for(database: Database, children: Children) -> set[str]:
    """The UUIDs of the versions of the file that a signature covers: its own, or one of a version that builds on it."""
    known = [*control.versions(database), *(version for child in children.files for version in child.versions)]
    above = {version.uuid: version.parent_uuid for version in known}
    vouched: set[str] = set()
    for uuid in signature.signed(database).union(*(child.signed() for child in children.files)):
        one: str | None = uuid
        while one is not None and one in above and one not in vouched:
            vouched.add(one)
            one = above[one]
    return vouched & set(control.uuids(database))


def _drop_unused(database: Database, needed: set[bytes]) -> Freed:
    """Contents that no record of any version names, a few at a time."""
    numbers = [row[0] for row in database.query(_UNUSED)]
    total = Freed()
    for at in range(0, len(numbers), _ROWS_AT_A_TIME):
        part = numbers[at : at + _ROWS_AT_A_TIME]
        if needed:
            part = [number for number in part if data.describe(database, number).digest not in needed]
        with database.transaction():
            freed, _ = remove_unused(database, part)
            arrangement.count(database)
        total.contents += freed.contents
        total.stored_bytes += freed.stored_bytes
        _keep_log_short(database)
    return total


def _recut_version(
    database: Database, version: Control, needed: set[bytes], recut: _Recut, progress: Progress | None
) -> None:
    """Bring together the poor contents of one version, in the order of the medium."""
    rows = database.rows(_POOR, [version.chunk_bytes, version.bytes_per_cluster])
    poor = {number for owner, number in rows if owner == version.version}
    if needed:
        kept = {number for number in poor if data.describe(database, number).digest in needed}
        recut.kept |= kept
        poor -= kept
    if len(poor) < _MUCH_DUST:
        return
    records = [MapRecord(*row) for row in database.rows(_RECORDS, [version.version, json.dumps(sorted(poor))])]
    total, done = _length(records, version), 0
    for step in _in_steps(records, version.bytes_per_cluster):
        with database.transaction():
            into = _recut_records(database, version, step)
            numbers = {record.data for record in step if record.data is not None}
            freed, _ = remove_unused(database, numbers)
            arrangement.count(database)
        recut.contents += freed.contents
        recut.into += into
        done += _length(step, version)
        if progress:
            progress(done, total)
        _keep_log_short(database)


def _length(records: list[MapRecord], version: Control) -> int:
    """How much of the medium records tell of, in bytes."""
    return sum(record.end_cluster - record.start_cluster + 1 for record in records) * version.bytes_per_cluster


def _in_steps(records: list[MapRecord], unit: int) -> Iterator[list[MapRecord]]:
    step: list[MapRecord] = []
    held = 0
    for record in records:
        step.append(record)
        held += (record.end_cluster - record.start_cluster + 1) * unit
        if held >= _STEP_BYTES:
            yield step
            step, held = [], 0
    if step:
        yield step


def _recut_records(database: Database, version: Control, records: list[MapRecord]) -> int:
    """Put what records name into new, whole chunks, and have them name those; how many chunks there are now."""
    unit, made = version.bytes_per_cluster, 0
    connections = [Connections(database, arrangement.read(database))]
    chunks = ChunkCache(connections, Cache(memory_bytes=2 * _STEP_BYTES))
    try:
        parts: list[bytes] = []
        places: dict[tuple[int, int, int], int] = {}
        moved: list[tuple[int, int]] = []
        held = 0
        vault: Vault | None = None
        """Of what is in the parts: what is encrypted stays so, and what is not is read without a key."""

        def write() -> None:
            nonlocal made, held
            made += _write_chunk(database, version, b"".join(parts), moved, vault)
            parts.clear()
            places.clear()
            moved.clear()
            held = 0

        for record in records:
            assert record.data is not None
            length = (record.end_cluster - record.start_cluster + 1) * unit
            is_encrypted = data.describe(database, record.data).flags & ChunkFlag.ENCRYPTED != 0
            if held and (held + length > version.chunk_bytes or is_encrypted != (vault is not None)):
                write()
            vault = database.vault() if is_encrypted else None
            same = (record.data, record.data_offset, length)
            if same not in places:
                content = chunks.get((0, record.data))
                if record.data_offset + length > len(content):
                    raise DamagedError(f"{database.path}: a map record reaches beyond data {record.data}")
                places[same] = held
                parts.append(content[record.data_offset : record.data_offset + length])
                held += length
            moved.append((record.start_cluster, places[same]))
        if moved:
            write()
    finally:
        chunks.close()
        for each in connections:
            each.close()
    return made


def _write_chunk(
    database: Database, version: Control, content: bytes, moved: list[tuple[int, int]], vault: Vault | None
) -> int:
    """One content, and the records that name it from now on."""
    name = name_of(content, vault)
    row = database.row(data.IS_HELD, [name])
    made = 0
    if row is None:
        flags, stored = encode(content, _LEVEL, vault, name)
        number = data.next_id(database)
        database.run(data.INSERT, [number, name, len(content), len(stored), flags, stored])
        if database.connection.changes() == 0:  # it is known, with its bytes elsewhere
            found = database.row(data.FIND, [name])
            assert found is not None
            number = found[0]
            database.run(data.FILL, [len(content), len(stored), flags, stored, number])
        made = 1
    else:
        number = row[0]
    database.run_many(_REPLACE, ((number, offset, version.version, start) for start, offset in moved))
    return made


def _keep_log_short(database: Database) -> None:
    if database.is_log_long:
        database.shorten_log()
