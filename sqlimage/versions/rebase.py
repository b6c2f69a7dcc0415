"""A version given another parent, under which it reads as before."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from sqlimage.errors import RefusedError, UsageError
from sqlimage.extent import Runs
from sqlimage.image.changes import Places, Side
from sqlimage.image.chunks import content_of, read_row, read_stored
from sqlimage.image.delta import Delta
from sqlimage.image.effective import key_of
from sqlimage.image.holding import Holdings
from sqlimage.image.image import Image, Version
from sqlimage.image.writing import give_back_space, writing
from sqlimage.streams import arrangement, audit, cluster_map, control, data, files, properties
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.streams.properties import Value
from sqlimage.tool import TOOL
from sqlimage.versions.children import Children
from sqlimage.versions.reading import Reading, Stretch, differing
from sqlimage.versions.removal import mapped_data, refuse_open, remove_unused

_OWN = ("cluster_map", "file", "extent", "bitmap", "property")
_WITHOUT_BYTES = (
    "SELECT DISTINCT data.id, data.digest FROM cluster_map JOIN data ON data.id = cluster_map.data "
    "WHERE data.bytes IS NULL AND cluster_map.version IN (SELECT value FROM json_each(?))"
)


@dataclass(frozen=True, slots=True)
class RebaseReport:
    """What a version is made of now; sizes in bytes."""

    image: str
    version: int
    uuid: str
    parent_before: str | None
    parent_uuid: str
    own_bytes: int
    """How much of the medium differs from the new parent."""
    copied_bytes: int
    """What the data stream took over of contents that only the old ancestors hold."""
    image_bytes: int


def rebase(
    image: str | os.PathLike[str],
    onto: str | os.PathLike[str],
    *,
    version: str | None = None,
    onto_version: str | None = None,
    user: str | None = None,
    message: str | None = None,
    search: Sequence[str] = (),
) -> RebaseReport:
    """Make a version the child of another one. It keeps its UUID and reads as before; what differs from the new parent
    is recorded, what does not is no more. Without ``version`` the one is meant whose parent lies in another file.

    Raises :class:`~sqlimage.errors.RefusedError` where the new parent descends from the version, is counted in other
    clusters, or a child file that is found needs what only the old parent holds.
    """
    onto_path = os.path.realpath(onto)
    places = [*search, os.path.dirname(onto_path)]
    with (
        writing(image, "giving it another parent") as database,
        Image.open(image, search=places) as own,
        Image.open(onto_path, search=search) as other,
    ):
        child, parent = _chosen(own, version), other.version(onto_version)
        refuse_open(database, [child.control], "rebased")
        refuse_open(other.database, [parent.control], "built on")
        same_file = onto_path == database.path
        with Reading(child) as mine, Reading(parent) as theirs:
            _check(child, parent, theirs)
            job = _Rebasing(database, child, parent, mine, theirs, same_file=same_file)
            children = Children(database, search)
            children.refuse_where_written()
            with database.transaction():
                copied = job.write()
                job.refuse_orphans(children)
                arrangement.count(database)
                audit.append(
                    database,
                    "rebase",
                    tool=TOOL,
                    version=child.number,
                    clusters=job.own_clusters,
                    length_bytes=job.own_clusters * mine.unit,
                    detail={
                        "parent_before": child.control.parent_uuid,
                        "parent": parent.control.uuid,
                        "copied_bytes": copied,
                        "message": message,
                    },
                    user=user,
                )
        own.close()  # who reads through a log keeps it in place
        other.close()
        give_back_space(database)
    return RebaseReport(
        database.path,
        child.number,
        child.control.uuid,
        child.control.parent_uuid,
        parent.control.uuid,
        job.own_clusters * mine.unit,
        copied,
        os.path.getsize(database.path),
    )


def _chosen(image: Image, version: str | None) -> Version:
    if version is not None:
        return image.version(version)
    every = image.versions()
    here = {known.control.uuid for known in every}
    lead_out = [known for known in every if known.control.parent_uuid and known.control.parent_uuid not in here]
    if len(lead_out) != 1:
        numbers = ", ".join(str(known.number) for known in (lead_out or every))
        raise UsageError(f"{image.path}: it is not clear which version is meant", hint=f"say which: {numbers}")
    return lead_out[0]


def _check(child: Version, parent: Version, theirs: Reading) -> None:
    if any(link.control.uuid == child.control.uuid for link in theirs.lineage.links):
        raise RefusedError(
            f"{child.image.path}: version {child.number} cannot become the child of "
            f"{parent.image.path}@{parent.number}, which descends from it"
        )
    if child.control.bytes_per_cluster != parent.control.bytes_per_cluster:
        raise RefusedError(
            f"{child.image.path}: is counted in clusters of {child.control.bytes_per_cluster} bytes, "
            f"{parent.image.path} of {parent.control.bytes_per_cluster}"
        )


class _Rebasing:
    """One rebase: looked at when it is made, written within a transaction."""

    def __init__(
        self, database: Database, child: Version, parent: Version, mine: Reading, theirs: Reading, *, same_file: bool
    ) -> None:
        self._database = database
        self._child = child
        self._parent = parent
        self._mine = mine
        self._held = Holdings(theirs.lineage, theirs.connections, 0 if same_file else None)
        self._parent_name = None if same_file else os.path.basename(parent.image.path)
        self._stretches: list[Stretch] = list(differing(mine, theirs))
        self.own_clusters = sum(stretch.clusters for stretch in self._stretches)
        self._delta = self._files()
        self._allocated: Runs = child.allocated()
        self._properties = _differences(parent.properties(), child.properties())

    def _files(self) -> Delta:
        """The files of the child beside those of the new parent."""
        self._parent.image.attach_parents(self._parent.control)
        self._child.image.attach_parents(self._child.control)
        delta = Delta(
            self._parent.image.database, self._parent.number, self._child.number, self._parent.control.total_clusters
        )
        database, number = self._child.image.database, self._child.number
        present = {volume.number for volume in self._child.volumes()}
        for volume in sorted(present):
            rows = files.every_row(database, number, volume)
            places = Places(files.every_extent(database, number, volume))
            delta.compare(volume, Side({row[2]: row for row in rows}, places))
        for volume in {volume.number for volume in self._parent.volumes()} - present:
            delta.compare(volume, Side.empty())
        return delta

    def refuse_orphans(self, children: Children) -> None:
        """Child files may refer to what only the old ancestors hold; to be asked when all is written."""
        lost: set[bytes] = set()
        for child in children.files:
            for digest in child.needs():
                row = self._database.row(data.IS_HELD, [digest])
                if row is None and self._held.find(digest) is None:
                    lost.add(digest)
        children.refuse_to_drop(lost, "rebased")

    def write(self) -> int:
        """All rows of the version as the child of its new parent; the stored bytes that were copied."""
        database, number = self._database, self._child.number
        before = mapped_data(database, [number])
        for table in _OWN:
            database.run(f"DELETE FROM {table} WHERE version = ?", [number])
        rows = [
            (number, one.start, one.start + one.clusters - 1, self._number(one.key), one.offset if one.key else 0, 0)
            for one in self._stretches
        ]
        database.insert(cluster_map.INTO, rows)
        self._delta.write(database, self._allocated)
        for name, value in self._properties.items():
            properties.put(database, number, name, value)
        freed, _ = remove_unused(database, before)
        copied = self._fill()
        stored_bytes = self._child.control.stored_bytes + copied - freed.stored_bytes
        parent = self._parent.control
        control.adopt(database, number, parent.uuid, self._parent_name, max(0, stored_bytes))
        return copied

    def _number(self, key: int) -> int | None:
        """Under which number the file knows a content of the old lineage, with or without its bytes."""
        if not key:
            return None
        file, number = key_of(key)
        if file == 0:
            return number
        row = read_row(self._mine.connections, (file, number))
        known = self._database.row(data.FIND, [row.digest])
        if known is None:
            fresh = data.next_id(self._database)
            self._database.run(data.INSERT, [fresh, row.digest, row.length, row.stored_bytes, row.flags, None])
            return fresh
        return int(known[0])

    def _fill(self) -> int:
        """Copy what this version, and those of the file that build on it, have from the old ancestors and would not
        find in the new ones."""
        versions = json.dumps(_descendants(self._database, self._child.control))
        copied = 0
        for number, digest in self._database.rows(_WITHOUT_BYTES, [versions]):
            if self._held.find(digest) is None:
                found = self._find(digest, number)
                self._database.run(data.FILL, [len(found[1]), found[0], found[1], number])
                copied += len(found[1])
        return copied

    def _find(self, digest: bytes, number: int) -> tuple[int, bytes]:
        """Flags and stored bytes of a content, verified, from the old lineage."""
        for file, connections in enumerate(self._mine.connections):
            row = connections.mine().row(data.IS_HELD, [digest])
            if row is not None:
                chunk = read_stored(self._mine.connections, (file, row[0]))
                content_of(chunk)
                assert chunk.stored is not None
                return chunk.flags, chunk.stored
        raise RefusedError(f"{self._database.path}: the bytes of data {number} are in no file of its lineage")


def _descendants(database: Database, root: Control) -> list[int]:
    """A version and all of the file that build on it."""
    known, numbers = {root.uuid}, [root.version]
    every = control.versions(database)
    while grown := [one for one in every if one.parent_uuid in known and one.uuid not in known]:
        known |= {one.uuid for one in grown}
        numbers += [one.version for one in grown]
    return numbers


def _differences(before: dict[str, Value], after: dict[str, Value]) -> dict[str, Value]:
    """The properties that a child has to say so that ``before`` becomes ``after``."""
    hidden: dict[str, Value] = dict.fromkeys(name for name in before if name not in after)
    told = {
        name: value
        for name, value in after.items()
        if name not in before or value != before[name] or type(value) is not type(before[name])
    }
    return {**hidden, **told}
