"""A child file's versions brought into the file of their parent, under the UUIDs they have."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote

from sqlimage.errors import FormatError, RefusedError, UsageError
from sqlimage.image.chunks import Connections, content_of
from sqlimage.image.lineage import resolve
from sqlimage.image.soundness import broken_records
from sqlimage.image.writing import writing
from sqlimage.streams import audit, control, data, signature, unlocking
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.streams.keys import Keys
from sqlimage.streams.sealed import TABLES as SEALED
from sqlimage.streams.translation import translated
from sqlimage.streams.writer import holder
from sqlimage.tool import TOOL
from sqlimage.versions.removal import refuse_open
from sqlimage.versions.within import Within, fill

_BATCH_ROWS = 32
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

# Numbers of the child's contents in the parent's file: those that are there, by digest, and new ones for the others.
_RENUMBER = (
    "CREATE TEMP TABLE arriving_data (old INTEGER PRIMARY KEY, new INTEGER NOT NULL, is_new INTEGER NOT NULL)",
    "INSERT INTO temp.arriving_data SELECT theirs.id, main.data.id, 0 "
    "FROM child.data AS theirs JOIN main.data ON main.data.digest = theirs.digest "
    "WHERE theirs.id IN (SELECT data FROM temp.wanted_data)",
    "INSERT INTO temp.arriving_data SELECT id, row_number() OVER (ORDER BY id) + "
    "(SELECT coalesce(max(id), 0) FROM main.data), 1 FROM child.data "
    "WHERE id IN (SELECT data FROM temp.wanted_data) AND id NOT IN (SELECT old FROM temp.arriving_data)",
)
_WANTED = (
    "CREATE TEMP TABLE arriving (old INTEGER PRIMARY KEY, new INTEGER NOT NULL)",
    "CREATE TEMP TABLE wanted_data (data INTEGER PRIMARY KEY)",
)
_WANT = (
    "INSERT OR IGNORE INTO temp.wanted_data SELECT data FROM child.cluster_map "
    "WHERE data IS NOT NULL AND version IN (SELECT old FROM temp.arriving)"
)
_COMING = (
    "SELECT count(*), coalesce(sum(theirs.stored_bytes), 0) "
    "FROM temp.arriving_data AS mine JOIN child.data AS theirs ON theirs.id = mine.old "
    "LEFT JOIN main.data AS here ON here.id = mine.new WHERE theirs.bytes IS NOT NULL AND here.bytes IS NULL"
)
_COPY_DATA = (
    "INSERT INTO main.data (id, digest, length, stored_bytes, flags, bytes) "
    "SELECT mine.new, theirs.digest, theirs.length, theirs.stored_bytes, theirs.flags, theirs.bytes "
    "FROM temp.arriving_data AS mine JOIN child.data AS theirs ON theirs.id = mine.old "
    "WHERE mine.is_new ORDER BY mine.old"
)
# What the parent's file knew of without having its bytes, and the child has.
_FILL_DATA = (
    "UPDATE main.data "
    "SET length = theirs.length, bytes = theirs.bytes, flags = theirs.flags, stored_bytes = theirs.stored_bytes "
    "FROM temp.arriving_data AS mine JOIN child.data AS theirs ON theirs.id = mine.old "
    "WHERE main.data.id = mine.new AND NOT mine.is_new AND main.data.bytes IS NULL AND theirs.bytes IS NOT NULL"
)
_COPY_MAP = (
    "INSERT INTO main.cluster_map (version, start_cluster, end_cluster, data, data_offset, flags) "
    "SELECT arriving.new, start_cluster, end_cluster, mine.new, data_offset, flags "
    "FROM temp.arriving JOIN child.cluster_map AS theirs ON theirs.version = arriving.old "
    "LEFT JOIN temp.arriving_data AS mine ON mine.old = theirs.data ORDER BY arriving.new, start_cluster"
)
_COPIED = {
    "bitmap": "start_cluster, end_cluster",
    "file": "volume, path, kind, bytes, modified_at, record, stream, attributes, digest, deleted",
    "extent": "volume, record, stream, file_offset, start_cluster, clusters",
    "property": "name, value",
}
_DANGLING = (
    "SELECT data FROM child.cluster_map WHERE version IN (SELECT old FROM temp.arriving) AND data IS NOT NULL "
    "AND data NOT IN (SELECT id FROM child.data) LIMIT 1"
)


@dataclass(frozen=True, slots=True)
class MergedVersion:
    """A version that was brought over."""

    number_in_child: int
    version: int
    uuid: str
    label: str | None


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What came over; sizes in bytes."""

    image: str
    child: str
    versions: tuple[MergedVersion, ...]
    present: tuple[str, ...]
    """UUIDs of versions that were there already."""
    contents: int
    stored_bytes: int
    """What the data stream grew by."""
    image_bytes: int


def merge(
    child: str | os.PathLike[str],
    into: str | os.PathLike[str],
    *,
    user: str | None = None,
    message: str | None = None,
    search: Sequence[str] = (),
) -> MergeReport:
    """Bring all versions of a child file into the file of their parent, in one transaction; the child is only read, and
    every content that comes over is verified first. Afterwards ``into`` at the UUID of each reads as the child did.

    Raises :class:`~sqlimage.errors.RefusedError` where ``into`` does not hold the parent, or the child has an edit that
    is not finished, and :class:`~sqlimage.errors.DamagedError` where a content of the child fails its digest.
    """
    child_path, into_path = os.path.realpath(child), os.path.realpath(into)
    if child_path == into_path:
        raise RefusedError(f"{child_path}: cannot be merged into itself")
    with Database.open(child_path) as theirs, writing(into_path, "merging a child into it") as database:
        if writer := holder(child_path):
            raise RefusedError(f"{child_path}: is being written by {writer}", hint="try again when that has finished")
        places = [*search, os.path.dirname(into_path)]
        arriving, present = _arriving(theirs, database)
        stored_bytes = contents = 0
        if arriving:
            keys = _keys_to_bring(theirs, database)
            _check(theirs, [old for old, _ in arriving])
            _verify(theirs, [version.version for version, _ in arriving])
            with _attached(database, theirs), database.transaction():
                if keys:
                    database.encrypt_with(keys)
                contents, stored_bytes = _copy(database, theirs, arriving)
                head = _tell(database, theirs, arriving)
                stored_bytes += _make_whole(database, theirs, arriving, places)
                audit.append(
                    database,
                    "merge",
                    tool=TOOL,
                    version=arriving[-1][1].version,
                    length_bytes=stored_bytes,
                    detail={
                        "child": os.path.basename(child_path),
                        "versions": [{"version": new.version, "uuid": new.uuid} for _, new in arriving],
                        "audit_head": head,
                        "message": message,
                    },
                    user=user,
                )
    return MergeReport(
        into_path,
        child_path,
        tuple(MergedVersion(old.version, new.version, new.uuid, new.label) for old, new in arriving),
        tuple(present),
        contents,
        stored_bytes,
        os.path.getsize(into_path),
    )


def _keys_to_bring(theirs: Database, database: Database) -> Keys | None:
    """What lets the file hold what is encrypted in the child, where it has no key; raises
    :class:`~sqlimage.errors.RefusedError` where one of them would have to be encrypted anew."""
    if theirs.is_sealed != database.is_sealed:
        whole, other = (theirs, database) if theirs.is_sealed else (database, theirs)
        raise RefusedError(
            f"{whole.path}: is encrypted as a whole, and {other.path} is not",
            hint="`sqlimage flatten` makes an image of its own of a version",
        )
    unlocking.check_same_key(theirs.path, theirs.key_id, database.path, database.key_id)
    return theirs.keys() if database.key_id is None else None


def _arriving(theirs: Database, database: Database) -> tuple[list[tuple[Control, Control]], list[str]]:
    """The versions that come over as they are and as they will be, parents first; and the UUIDs of those that are here
    already."""
    versions = control.versions(theirs)
    refuse_open(theirs, versions, "merged")
    here = control.versions(database)
    known, labels = {version.uuid for version in here}, {version.label for version in here}
    present = [version.uuid for version in versions if version.uuid in known]
    below: dict[str | None, list[Control]] = {}
    for version in versions:
        if version.uuid not in known:
            below.setdefault(version.parent_uuid, []).append(version)
    number = control.next_version(database)
    arriving: list[tuple[Control, Control]] = []
    waiting = [version for uuid in below if uuid in known for version in below[uuid]]
    for version in waiting:  # which grows
        label = _free_label(version.label, labels)
        labels.add(label)
        new = dataclasses.replace(version, version=number + len(arriving), parent_name=None, label=label)
        arriving.append((version, new))
        waiting += below.get(version.uuid, [])
    if len(arriving) + len(present) < len(versions):
        reached = {old.uuid for old, _ in arriving} | known
        lost = next(version for version in versions if version.uuid not in reached)
        parent = f"its parent {lost.parent_uuid}" if lost.parent_uuid else "a parent"
        raise RefusedError(
            f"{database.path}: does not hold {parent} of version {lost.version} of {theirs.path}",
            hint="merge into the file that `sqlimage versions` shows as its parent",
        )
    return arriving, present


def _check(theirs: Database, versions: Sequence[Control]) -> None:
    """Raise :class:`~sqlimage.errors.FormatError` for a child whose rows would do harm in its parent's file."""
    if theirs.is_sealed:
        theirs.check_maps([version.version for version in versions])
    problems = audit.broken_links(theirs)
    for version in versions:
        if not _UUID.fullmatch(version.uuid):
            problems.append(f"version {version.version} has the UUID {version.uuid!r}")
        try:
            control.check_label(version.label)
        except UsageError as problem:
            problems.append(problem.message)
        problems += broken_records(theirs, version)
    if problems:
        raise FormatError(f"{theirs.path}: {problems[0]}", hint="`sqlimage verify` tells all that is wrong with it")


def _make_whole(
    database: Database, theirs: Database, arriving: Sequence[tuple[Control, Control]], places: Sequence[str]
) -> int:
    """See to it that every version that came finds all it names from here; stored bytes that were copied for it.

    Within the transaction that brought them. Raises :class:`~sqlimage.errors.RefusedError` where the parent here is not
    sealed, and :class:`~sqlimage.errors.FormatError` where it is counted in other clusters.
    """
    came = {new.uuid: new for _, new in arriving}
    line: dict[str, str] = {}
    """Of each version, the oldest of those that came in its lineage."""
    for _, new in arriving:
        line[new.uuid] = line.get(new.parent_uuid or "", new.uuid)
    copied = 0
    for old, root in arriving:
        if line[root.uuid] == root.uuid:
            source = resolve(theirs, old, places)
            try:
                with Within(database, root, places) as within:
                    numbers = [came[uuid].version for uuid, first in line.items() if first == root.uuid]
                    copied += fill(database, numbers, within, source.files)
            finally:
                source.close()
    return copied


def _free_label(label: str | None, taken: set[str | None]) -> str | None:
    """The label, or the label with ``~`` and a number where one of that name is here."""
    if label is None or label not in taken:
        return label
    number = 2
    while f"{label}~{number}" in taken:
        number += 1
    return f"{label}~{number}"


def _verify(theirs: Database, versions: Sequence[int]) -> None:
    """Every content that comes over is what its digest says, or nothing does."""
    marks = ", ".join("?" * len(versions))
    numbers = [
        row[0]
        for row in theirs.query(
            f"SELECT DISTINCT data FROM cluster_map WHERE data IS NOT NULL AND version IN ({marks})", versions
        )
    ]
    connections = Connections(theirs)

    def check(batch: list[int]) -> None:
        for number in batch:
            chunk = data.read(connections.mine(), number)
            if chunk.stored is not None:
                content_of(chunk)

    batches = [numbers[at : at + _BATCH_ROWS] for at in range(0, len(numbers), _BATCH_ROWS)]
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="verify") as pool:
        try:
            for _ in pool.map(check, batches):
                pass
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            connections.close()


@contextmanager
def _attached(database: Database, theirs: Database) -> Iterator[None]:
    """The child's tables as ``child.*``, for reading."""
    where = f"file:{quote(os.fsencode(theirs.path))}?mode={theirs.mode}"
    with translated(database.path):
        database.connection.execute("ATTACH ? AS child", [where])
    try:
        yield
    finally:
        for table in ("arriving_data", "wanted_data", "arriving"):
            database.run(f"DROP TABLE IF EXISTS temp.{table}")
        with translated(database.path):
            database.connection.execute("DETACH child")


def _copy(database: Database, theirs: Database, arriving: Sequence[tuple[Control, Control]]) -> tuple[int, int]:
    """All streams of the versions; how many contents came, and their stored bytes."""
    for statement in _WANTED:
        database.run(statement)
    database.run_many("INSERT INTO temp.arriving VALUES (?, ?)", [(old.version, new.version) for old, new in arriving])
    if database.row(_DANGLING) is not None:
        raise FormatError("a cluster map record of the child names data that is missing")
    for statement in (_WANT, *_RENUMBER):
        database.run(statement)
    came = database.row(_COMING)
    for statement in (_COPY_DATA, _FILL_DATA, _COPY_MAP):
        database.run(statement)
    for table, columns in _COPIED.items():
        if theirs.is_sealed and table in SEALED:
            _copy_sealed(database, theirs, table, columns, arriving)
            continue
        database.run(
            f"INSERT INTO main.{table} (version, {columns}) SELECT arriving.new, {columns} FROM temp.arriving "
            f"JOIN child.{table} AS theirs ON theirs.version = arriving.old ORDER BY arriving.new"
        )
    for _, new in arriving:
        signature.bring(database, new.uuid)
    assert came is not None
    return came[0], came[1]


def _copy_sealed(
    database: Database, theirs: Database, table: str, columns: str, arriving: Sequence[tuple[Control, Control]]
) -> None:
    """The rows of a sealed stream, which only the connection of the child itself has."""
    marks = ", ".join("?" * (1 + len(columns.split(", "))))
    for old, new in arriving:
        rows = theirs.query(f"SELECT {columns} FROM {table} WHERE version = ?", [old.version])
        insert = f"INSERT INTO {table} (version, {columns}) VALUES ({marks})"
        database.run_many(insert, ((new.version, *row) for row in rows))


def _tell(database: Database, theirs: Database, arriving: Sequence[tuple[Control, Control]]) -> str:
    """Control, volumes and audit trail of the versions; the head of the child's trail, in hexadecimal."""
    numbers = {old.version: new.version for old, new in arriving}
    for old, new in arriving:
        control.insert_control(database, new)
        for volume in control.volumes(theirs, old):
            control.insert_volume(database, dataclasses.replace(volume, version=new.version))
    head = b""
    for row in audit.read_all(theirs):
        head = row.hash
        if row.version in numbers:
            audit.repeat(database, row, numbers[row.version])
    return head.hex()
