"""The versions of a file as the tree they are, with what each takes up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlimage.errors import SqlimageError
from sqlimage.image.image import Image
from sqlimage.image.lineage import candidates
from sqlimage.streams import control
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.versions.children import Children

# Stored bytes that only records of one version name, those that records of several name, and those that lie in other
# files.
_SIZES = """
WITH used AS MATERIALIZED (SELECT DISTINCT version, data FROM cluster_map WHERE data IS NOT NULL),
     counted AS MATERIALIZED (
       SELECT used.data AS data, count(*) AS versions,
              (SELECT CASE WHEN bytes IS NULL AND id NOT IN (SELECT data FROM place)
                           THEN -stored_bytes ELSE stored_bytes END
               FROM data WHERE data.id = used.data) AS size
       FROM used GROUP BY used.data)
SELECT used.version,
       sum(CASE WHEN size > 0 AND versions = 1 THEN size ELSE 0 END),
       sum(CASE WHEN size > 0 AND versions > 1 THEN size ELSE 0 END),
       sum(CASE WHEN size < 0 THEN -size ELSE 0 END)
FROM used JOIN counted ON counted.data = used.data
GROUP BY used.version
"""
_OWN_CLUSTERS = "SELECT version, sum(end_cluster - start_cluster + 1) FROM cluster_map GROUP BY version"


@dataclass(frozen=True, slots=True)
class Branch:
    """One version in the tree; sizes in bytes."""

    version: int
    depth: int
    """0 where its parent is not in this file."""
    uuid: str
    label: str | None
    state: str
    created_at: str
    parent_uuid: str | None
    parent_file: str | None
    """Where the parent lies, if not in this file; None where it is not found."""
    medium_bytes: int
    changed_bytes: int
    """How much of the medium the version itself says something about."""
    own_bytes: int
    """Stored bytes that would be freed with it."""
    shared_bytes: int
    """Stored bytes of this file that its records share with other versions'."""
    elsewhere_bytes: int
    """Stored bytes that its records name and other files hold."""


@dataclass(frozen=True, slots=True)
class Descendant:
    """A child file that was found."""

    path: str
    versions: int


@dataclass(frozen=True, slots=True)
class Tree:
    """All versions of a file, parents before children, and the child files that were found."""

    image: str
    branches: tuple[Branch, ...]
    child_files: tuple[Descendant, ...]
    searched: tuple[str, ...]


def version_tree(image: Image) -> Tree:
    """The tree of an image's versions. A parent that is not found is no error here."""
    database = image.database
    sizes = {row[0]: row[1:] for row in database.query(_SIZES)}
    changed: dict[int, int] = dict(database.rows(_OWN_CLUSTERS))
    every = control.versions(database)
    parents = _parent_files(database, every, image.search)
    branches = [
        Branch(
            version.version,
            depth,
            version.uuid,
            version.label,
            version.state,
            version.created_at,
            version.parent_uuid,
            None if depth else parents.get(version.parent_uuid or ""),
            version.medium_bytes,
            changed.get(version.version, 0) * version.bytes_per_cluster,
            *sizes.get(version.version, (0, 0, 0)),
        )
        for version, depth in _in_order(every)
    ]
    children = Children(database, image.search, strict=False)
    found = tuple(Descendant(child.path, len(child.versions)) for child in children.files)
    return Tree(image.path, tuple(branches), found, tuple(children.searched))


def _in_order(every: Sequence[Control]) -> Iterator[tuple[Control, int]]:
    """Versions with their depth, each before those that build on it."""
    here = {version.uuid for version in every}
    below: dict[str | None, list[Control]] = {}
    for version in every:
        below.setdefault(version.parent_uuid if version.parent_uuid in here else None, []).append(version)
    waiting = [(version, 0) for version in reversed(below.get(None, []))]
    while waiting:
        version, depth = waiting.pop()
        yield version, depth
        waiting += [(child, depth + 1) for child in reversed(below.get(version.uuid, []))]


def _parent_files(database: Database, every: Sequence[Control], search: Sequence[str]) -> dict[str, str]:
    """Where the parents lie that are in other files, by UUID, as far as they are found."""
    here = {version.uuid for version in every}
    wanted = {
        version.parent_uuid: version for version in every if version.parent_uuid and version.parent_uuid not in here
    }
    found: dict[str, str] = {}
    hints = {version.parent_name for version in wanted.values()}
    for path in candidates(database.path, next(iter(hints)) if len(hints) == 1 else None, search) if wanted else ():
        try:
            with Database.open(path, leave_alone=True, structure_only=True) as other:
                for uuid in control.uuids(other):
                    if uuid in wanted:
                        found.setdefault(uuid, path)
        except SqlimageError:
            continue
        if len(found) == len(wanted):
            break
    return found
