"""A version given another parent, under which it reads as before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from sqlimage.errors import RefusedError, UsageError
from sqlimage.extent import Runs
from sqlimage.image.changes import Places, Side
from sqlimage.image.chunks import read_row
from sqlimage.image.delta import Delta
from sqlimage.image.effective import key_of
from sqlimage.image.image import Image, Version
from sqlimage.image.writing import give_back_space, writing
from sqlimage.streams import arrangement, audit, cluster_map, control, data, files, properties, signature
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.streams.properties import Value
from sqlimage.tool import TOOL
from sqlimage.versions.children import Children
from sqlimage.versions.reading import Reading, Stretch, differing
from sqlimage.versions.removal import mapped_data, refuse_open, remove_unused
from sqlimage.versions.within import Within, fill

_OWN = ("cluster_map", "file", "extent", "bitmap", "property")


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
    was_signed: bool
    """Whether there are signatures of the version, which do not cover this."""


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
                copied = job.write(places, children)
                for connections in theirs.connections:
                    connections.check()  # nobody has pruned the new parent meanwhile
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
        was_signed = bool(signature.of(database, child.control.uuid))
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
        was_signed,
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
        self._parent_name = None if same_file else os.path.basename(parent.image.path)
        whole = Runs.of([(0, mine.total_clusters)])  # the parent's medium may be longer
        self._stretches: list[Stretch] = list(differing(mine, theirs, whole))
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

    def refuse_orphans(self, children: Children, within: Within) -> None:
        """Child files of the version, and theirs, may refer to what only the old ancestors hold; to be asked when all
        is written."""
        uuids = {version.uuid for version in _descendants(self._database, self._child.control)}
        affected = children.below(uuids)
        for child in affected:
            lost = {digest for digest in child.needs() if not within.holds(digest)}
            for other in affected:
                if lost and other is not child:
                    lost -= other.holds(lost)
            if lost:
                raise RefusedError(
                    f"{self._database.path}: version {self._child.number} cannot be rebased: {child.path} refers to "
                    "contents that would be gone: only its old parent holds them",
                    hint="merge, rebase or flatten that child first",
                )

    def write(self, search: Sequence[str], children: Children) -> int:
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
        parent, old = self._parent.control, self._child.control
        control.adopt(database, number, parent.uuid, self._parent_name, old.stored_bytes)
        current = control.by_uuid(database, old.uuid)
        assert current is not None
        # As its readers will find it: from its own file, and whatever was removed by now is gone.
        with Within(database, current, search) as within:
            if not any(link.control.uuid == parent.uuid for link in within.lineage.links):
                raise RefusedError(f"{database.path}: the new parent {parent.uuid} is not found from there")
            versions = [version.version for version in _descendants(database, old)]
            copied = fill(database, versions, within, self._mine.lineage.files)
            self.refuse_orphans(children, within)
        stored_bytes = max(0, old.stored_bytes + copied - freed.stored_bytes)
        control.adopt(database, number, parent.uuid, self._parent_name, stored_bytes)
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


def _descendants(database: Database, root: Control) -> list[Control]:
    """A version and all of the file that build on it."""
    known, found = {root.uuid}, [root]
    every = control.versions(database)
    while grown := [one for one in every if one.parent_uuid in known and one.uuid not in known]:
        known |= {one.uuid for one in grown}
        found += grown
    return found


def _differences(before: dict[str, Value], after: dict[str, Value]) -> dict[str, Value]:
    """The properties that a child has to say so that ``before`` becomes ``after``."""
    hidden: dict[str, Value] = dict.fromkeys(name for name in before if name not in after)
    told = {
        name: value
        for name, value in after.items()
        if name not in before or value != before[name] or type(value) is not type(before[name])
    }
    return {**hidden, **told}
