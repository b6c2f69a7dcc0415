"""Proof that an image is whole: every digest, range and reference, the audit chain, and the database itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from sqlimage.errors import DamagedError, FormatError, RefusedError, SqlimageError
from sqlimage.filesystem.contract import read_all
from sqlimage.image.chunks import Connections, content_of
from sqlimage.image.image import Image, Version, open_row
from sqlimage.image.lineage import Lineage, resolve
from sqlimage.image.soundness import broken_records
from sqlimage.streams import audit, control, data, files
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.units import Progress

_BATCH_ROWS = 32
_MOST_LISTED = 1000
_MOST_DATABASE_LINES = 5

_ELSEWHERE = (
    "SELECT min(cluster_map.version), data.id, data.digest FROM cluster_map JOIN data ON data.id = cluster_map.data "
    "WHERE cluster_map.version IN (SELECT value FROM json_each(?)) AND data.bytes IS NULL "
    "AND data.id NOT IN (SELECT data FROM place) GROUP BY data.id"
)

# Each names what is wrong with the rows of the whole file that it finds.
_FILE_CHECKS = {
    "data whose bytes are neither here nor in a parent": """
        SELECT 'data ' || id FROM data WHERE bytes IS NULL AND id NOT IN (SELECT data FROM place)
        AND NOT EXISTS (SELECT 1 FROM control WHERE parent_uuid IS NOT NULL)""",
    "data of another length than stored_bytes says": """
        SELECT 'data ' || id FROM data WHERE bytes IS NOT NULL AND length(bytes) != stored_bytes""",
    "data with a number below 1": "SELECT 'data ' || id FROM data WHERE id < 1",
    "rows of a version that is not there": """
        SELECT 'version ' || version FROM (
          SELECT version FROM volume UNION SELECT version FROM cluster_map UNION SELECT version FROM bitmap
          UNION SELECT version FROM file UNION SELECT version FROM extent UNION SELECT version FROM property)
        WHERE version NOT IN (SELECT version FROM control)""",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    what: str
    data: int | None = None
    """The damaged row of the data stream, where that is it."""
    files: tuple[str, ...] = ()
    """The files it hits, as ``VERSION:/path`` (``VERSION:/VOLUME/path`` where a medium has several volumes)."""


@dataclass(slots=True)
class VerifyReport:
    """What was looked at; sizes in bytes."""

    image: str
    versions: int = 0
    chunks: int = 0
    content_bytes: int = 0
    stored_bytes: int = 0
    records: int = 0
    audit_rows: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return not self.problems


def verify(image: Image, *, threads: int | None = None, progress: Progress | None = None) -> VerifyReport:
    """Check everything and report all that is wrong; the image is only read.

    Damage is reported, not raised.
    """
    report = VerifyReport(image.path)
    for check in (_database, _arrived, _maps, partial(_versions, search=image.search), _audit):
        try:
            check(image.database, report)
        except FormatError as problem:
            report.problems.append(Problem(problem.message))
    try:
        _digests(image.database, report, threads or os.cpu_count() or 1, progress)
    except FormatError as problem:
        report.problems.append(Problem(problem.message))
    return report


def verify_files(version: Version, *, progress: Progress | None = None) -> list[Problem]:
    """Read every file of a version and compare it with the digest in the file table: what differs or cannot be read."""
    problems = []
    known = version.volumes()
    for volume in known:
        if volume.captured_as != "files":
            continue
        rows = list(version.below(f"/{volume.number}/" if len(known) > 1 else "/"))
        with version.file_system(volume.number) as file_system:
            for done, row in enumerate(rows):
                if progress:
                    progress(done, len(rows))
                if row.digest is None:
                    continue
                hashed = hashlib.sha256()
                try:
                    for block in read_all(open_row(file_system, row)):
                        hashed.update(block)
                except SqlimageError as problem:
                    problems.append(Problem(f"{row.path}: {problem.message}", files=(f"{version.number}:{row.path}",)))
                    continue
                if hashed.digest() != row.digest:
                    what = f"{row.path}: the bytes do not match the digest in the file table"
                    problems.append(Problem(what, files=(f"{version.number}:{row.path}",)))
    return problems


def _database(database: Database, report: VerifyReport) -> None:
    found = [text for (text,) in database.query(f"PRAGMA integrity_check({_MOST_LISTED})") if text != "ok"]
    lines = list(dict.fromkeys(line for text in found for line in str(text).splitlines() if not line.startswith("***")))
    report.problems.extend(Problem(f"database: {line}") for line in lines[:_MOST_DATABASE_LINES])
    if len(lines) > _MOST_DATABASE_LINES:
        report.problems.append(Problem(f"database: {len(lines) - _MOST_DATABASE_LINES} more findings of this kind"))


def _arrived(database: Database, report: VerifyReport) -> None:
    """Whether all segments have; of an image that never was transferred there are none."""
    try:
        database.check_whole()
    except RefusedError as problem:
        report.problems.append(Problem(str(problem)))


def _maps(database: Database, report: VerifyReport) -> None:
    """Where they are sealed; the first that is another one is told."""
    if database.is_sealed:
        database.check_maps()


def _versions(database: Database, report: VerifyReport, search: Sequence[str]) -> None:
    versions = control.versions(database)
    here = {version.uuid: version for version in versions}
    for version in versions:
        report.versions += 1
        control.volumes(database, version)
        parent = here.get(version.parent_uuid or "")
        # What has its parent in this file has the lineage of that, which is looked at by itself.
        if parent is None or parent.state != "sealed" or parent.bytes_per_cluster != version.bytes_per_cluster:
            try:
                lineage = resolve(database, version, search)
                try:
                    report.problems.extend(_lost_contents(database, _line(version, versions), lineage))
                finally:
                    lineage.close()
            except SqlimageError as problem:
                report.problems.append(Problem(problem.message))
        report.problems.extend(
            Problem(f"version {version.version}: {what}") for what in broken_records(database, version)
        )
    for what, sql in _FILE_CHECKS.items():
        report.problems.extend(Problem(f"{what} ({row[0]})") for row in database.rows(f"{sql} LIMIT 10"))
    row = database.row("SELECT count(*) FROM cluster_map")
    report.records = row[0] if row else 0


def _line(root: Control, versions: Sequence[Control]) -> list[int]:
    """A version and all of the file that build on it, by number."""
    below: dict[str | None, list[Control]] = {}
    for version in versions:
        below.setdefault(version.parent_uuid, []).append(version)
    found = [root]
    for version in found:  # which grows
        found += below.get(version.uuid, [])
    return [version.version for version in found]


def _lost_contents(database: Database, versions: Sequence[int], lineage: Lineage) -> Iterator[Problem]:
    """Contents that versions have in other files of their lineage, and that are in none of them."""
    for version, number, digest in database.rows(_ELSEWHERE, [json.dumps(list(versions))]):
        if all(file.row(data.IS_HELD, [digest]) is None for file in lineage.files[1:]):
            what = f"version {version}: the bytes of data {number} are neither here nor in a parent"
            yield Problem(what, number, tuple(_hit(database, number)))


def _audit(database: Database, report: VerifyReport) -> None:
    report.problems.extend(Problem(what) for what in audit.broken_links(database))
    row = database.row("SELECT count(*) FROM audit")
    report.audit_rows = row[0] if row else 0


def _digests(database: Database, report: VerifyReport, threads: int, progress: Progress | None) -> None:
    _, _, total = data.totals(database)
    connections = Connections(database)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="verify")
    window: deque[Future[_Batch]] = deque()

    def take_oldest() -> None:
        batch = window.popleft().result()
        report.chunks += batch.chunks
        report.content_bytes += batch.content_bytes
        report.stored_bytes += batch.stored_bytes
        for damage in batch.damage:
            report.problems.append(Problem(damage.message, damage.data, tuple(_hit(database, damage.data))))
        if progress:
            progress(report.stored_bytes, total)

    try:
        for ids in _id_ranges(database):
            window.append(pool.submit(_check_batch, connections, ids))
            if len(window) > threads * 3:
                take_oldest()
        while window:
            take_oldest()
    finally:
        pool.shutdown(cancel_futures=True)
        connections.close()


@dataclass(slots=True)
class _Batch:
    chunks: int = 0
    content_bytes: int = 0
    stored_bytes: int = 0
    damage: list[DamagedError] = field(default_factory=list)


def _id_ranges(database: Database) -> Iterator[list[int]]:
    """The ids of the data stream in batches; from its index where the table itself cannot be walked."""
    try:
        ids = [row[0] for row in database.query("SELECT id FROM data ORDER BY id")]
    except FormatError:
        ids = sorted(row[0] for row in database.query("SELECT id FROM data INDEXED BY sqlite_autoindex_data_1"))
    for start in range(0, len(ids), _BATCH_ROWS):
        yield ids[start : start + _BATCH_ROWS]


def _check_batch(connections: Connections, ids: list[int]) -> _Batch:
    batch, database = _Batch(), connections.mine()
    for number in ids:
        batch.chunks += 1
        try:
            chunk = data.read(database, number)
            if chunk.stored is not None:
                batch.stored_bytes += len(chunk.stored)
                batch.content_bytes += len(content_of(chunk))
        except DamagedError as damage:
            batch.damage.append(damage)
        except FormatError as damage:
            batch.damage.append(DamagedError(f"data {number}: {damage.message}", data=number))
    return batch


def _hit(database: Database, number: int | None) -> Iterator[str]:
    """The files that a damaged chunk backs, in every version that maps it."""
    rows = database.rows(
        "SELECT version, start_cluster, end_cluster FROM cluster_map WHERE data = ? ORDER BY 1, 2 LIMIT ?",
        [number, _MOST_LISTED],
    )
    known: dict[int, Control] = {version.version: version for version in control.versions(database)}
    seen = set()
    for version, start, end in rows:
        if version not in known:
            continue
        several = len(control.volumes(database, known[version])) > 1
        for volume, path in files.owners(database, version, start, end):
            shown = f"{version}:/{volume}{path}" if several else f"{version}:{path}"
            if shown not in seen:
                seen.add(shown)
                yield shown
