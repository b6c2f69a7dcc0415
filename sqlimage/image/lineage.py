"""A version and its ancestors, newest first, wherever their files lie."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlimage.errors import FormatError, NotFoundError, RefusedError, SqlimageError
from sqlimage.streams import arrangement, control
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database

SEARCH_VARIABLE = "SQLIMAGE_PATH"
"""Directories, separated by colons, in which parents are looked for."""
DEEPEST = 1000
_MOST_FILES = 120
_MOST_CANDIDATES = 10_000
_SUFFIX = ".sqlimage"


@dataclass(frozen=True, slots=True)
class Link:
    """One version of a lineage and the file that holds it."""

    file: int
    """Index into :attr:`Lineage.files`."""
    control: Control


class Lineage:
    """``links[0]`` is the version itself; the last one has no parent. ``files[0]`` is the file of the version, which
    belongs to the caller; the others were opened here and are closed by :meth:`close`."""

    def __init__(self, database: Database, version: Control) -> None:
        self.files = [database]
        self.links = [Link(0, version)]
        self.arranged = [arrangement.read(database)]
        """What each file said of its arrangement before anything else was read from it."""
        self._file_of = dict.fromkeys(control.uuids(database), 0)

    def add_file(self, database: Database, arranged: object) -> int:
        """Take over a file; its index."""
        self.arranged.append(arranged)
        self.files.append(database)
        number = len(self.files) - 1
        for uuid in control.uuids(database):
            self._file_of.setdefault(uuid, number)
        return number

    def find(self, uuid: str, near: int) -> Link | None:
        """A version in one of the files, looked for in file ``near`` first."""
        for number in (near, self._file_of.get(uuid)):
            if number is not None:
                found = control.by_uuid(self.files[number], uuid)
                if found is not None:
                    return Link(number, found)
        return None

    def from_link(self, first: int) -> Lineage:
        """The lineage of an ancestor, ``links[first]``, over the same files; it is not to be closed."""
        part = Lineage.__new__(Lineage)
        part.files, part.links, part.arranged = self.files, self.links[first:], self.arranged
        return part

    def in_file(self, file: int) -> list[int]:
        """The versions of the lineage that lie in one file, newest first, by number."""
        return [link.control.version for link in self.links if link.file == file]

    def close(self) -> None:
        for database in self.files[1:]:
            database.close()


def resolve(database: Database, version: Control, search: Sequence[str] = ()) -> Lineage:
    """Follow the parents of a version: in its own file, beside it, in ``search``, in the directories of
    ``SQLIMAGE_PATH``; always by UUID, never by a path that a file suggests.

    Raises :class:`~sqlimage.errors.NotFoundError` where the version or a parent is nowhere, naming its UUID and the
    places, and :class:`~sqlimage.errors.FormatError` where the lineage is a circle, too deep, or of unequal clusters.
    """
    lineage = Lineage(database, version)
    current = control.by_uuid(database, version.uuid)
    if current is None:
        raise NotFoundError(f"{database.path}: version {version.uuid} is not there any more")
    lineage.links[0] = Link(0, current)
    uuids = {current.uuid}
    try:
        while lineage.links[-1].control.parent_uuid is not None:
            lineage.links.append(_parent(lineage, search))
            _check(database.path, lineage.links, uuids)
    except BaseException:
        lineage.close()
        raise
    return lineage


def _parent(lineage: Lineage, search: Sequence[str]) -> Link:
    child, files = lineage.links[-1], lineage.files
    wanted = child.control.parent_uuid
    assert wanted is not None
    here = lineage.find(wanted, child.file)
    if here is not None:
        return here
    path = files[child.file].path
    # Beside its own child first, then beside the version that all this is about.
    search = [*search, os.path.dirname(files[0].path)]
    looked: list[str] = []
    for candidate in candidates(path, child.control.parent_name, search):
        try:
            database = Database.open(candidate, structure_only=True)
            arranged = arrangement.read(database)
        except SqlimageError as problem:
            looked.append(problem.message)
            continue
        found = _in_candidate(database, files[child.file], child.control, wanted, looked)
        if found is not None:
            if len(files) >= _MOST_FILES:
                database.close()
                raise FormatError(f"{path}: its lineage leads over more than {_MOST_FILES} files")
            return Link(lineage.add_file(database, arranged), found)
        database.close()
    hint = f" (it was called {child.control.parent_name!r})" if child.control.parent_name else ""
    raise NotFoundError(
        f"{path}: version {child.control.version} needs its parent {wanted}{hint}, which is not in "
        + ", ".join(places(path, search))
        + (f" ({'; '.join(looked[:3])})" if looked else ""),
        hint=f"put the parent's file beside it, or name its directory with --search or in {SEARCH_VARIABLE}",
    )


def _in_candidate(database: Database, near: Database, child: Control, wanted: str, looked: list[str]) -> Control | None:
    """The parent, where this file holds it and it fits the child in the file ``near``; ``looked`` hears of one that
    does not."""
    try:
        found = control.by_uuid(database, wanted)
        is_of_one_kind = found is None or _are_of_one_kind(near, database)
    except SqlimageError as problem:
        looked.append(problem.message)
        return None
    if found is None:
        return None
    # A copy that was made in the middle of that very edit, or a stranger's, does not stand in for the parent.
    if not is_of_one_kind:
        looked.append(f"{database.path} has it, but not encrypted as a whole with the same key")
    elif found.state != "sealed":
        looked.append(f"{database.path} has it as an edit that is not finished")
    elif found.bytes_per_cluster != child.bytes_per_cluster:
        looked.append(f"{database.path} has it with clusters of {found.bytes_per_cluster} bytes")
    else:
        return found
    return None


def _are_of_one_kind(one: Database, other: Database) -> bool:
    """Whether neither is encrypted as a whole, or both are, with one key: anybody can make a plain image, or one with
    a key of his own, that says it holds the parent."""
    if not one.is_sealed and not other.is_sealed:
        return True
    return one.is_sealed and other.is_sealed and one.key_id == other.key_id


def places(path: str, search: Sequence[str]) -> list[str]:
    """The directories in which a parent of the image ``path`` is looked for."""
    named = [place for place in os.environ.get(SEARCH_VARIABLE, "").split(":") if place]
    every = [os.path.dirname(os.path.abspath(path)), *search, *named]
    return list(dict.fromkeys(every))


def candidates(path: str, hint: str | None, search: Sequence[str]) -> Iterator[str]:
    """Files that may hold a parent: first those with the name that the child remembers, then every image."""
    known = places(path, search)
    base = os.path.basename(hint) if hint else ""
    seen = {os.path.abspath(path)}
    if base and base not in (".", "..") and "\0" not in base:
        for place in known:
            named = os.path.join(place, base)
            if named not in seen and os.path.isfile(named):
                seen.add(named)
                yield named
    for place in known:
        try:
            names = sorted(os.listdir(place))[:_MOST_CANDIDATES]
        except OSError:
            continue
        for name in names:
            found = os.path.join(place, name)
            if name.endswith(_SUFFIX) and found not in seen and os.path.isfile(found):
                seen.add(found)
                yield found


def _check(path: str, links: list[Link], uuids: set[str]) -> None:
    newest, oldest = links[0].control, links[-1].control
    if oldest.uuid in uuids:
        raise FormatError(f"{path}: version {oldest.uuid} is its own ancestor")
    uuids.add(oldest.uuid)
    if len(links) > DEEPEST:
        raise FormatError(f"{path}: its lineage is deeper than {DEEPEST} versions")
    if oldest.bytes_per_cluster != newest.bytes_per_cluster:
        raise FormatError(
            f"{path}: clusters of {newest.bytes_per_cluster} bytes, but its ancestor {oldest.uuid} has "
            f"{oldest.bytes_per_cluster}"
        )
    if oldest.state != "sealed":
        raise RefusedError(
            f"{path}: the parent {oldest.uuid} is an edit that is not finished", hint="commit that edit first"
        )
