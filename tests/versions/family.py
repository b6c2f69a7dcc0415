"""A directory of image files and what every version in them must read as: the model that tests of versions share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import sqlimage
from tests.image.edits import check_whole, whole

T = TypeVar("T")
Rows = list[tuple[object, ...]]
GONE = "refers to contents that would be gone"
"""Said where a child file has contents of its own versions in the file that would lose them."""
_NAMED_BY_OTHERS = (
    "bytes IS NOT NULL AND EXISTS (SELECT 1 FROM cluster_map JOIN control USING (version) "
    "WHERE data = data.id AND uuid != '{}')"
)
_LINEAGES = "SELECT uuid, parent_uuid FROM control ORDER BY version"
_TABLES = (
    *("format", "feature", "control", "volume", "cluster_map", "data", "bitmap", "file", "extent", "property"),
    *("audit", "fixup"),
)


@dataclass(frozen=True)
class Made:
    """What a version was made as."""

    content: bytes
    """Every byte of the medium."""
    unit: int
    """Bytes per cluster."""
    check: Callable[[sqlimage.Version], None] | None = None
    """What else must hold of it, for as long as it is there."""


class Family:
    """Files of one directory. A UUID may lie in several of them (a child that was merged stays where it was), and reads
    the same in each."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.files: dict[Path, dict[str, str | None]] = {}
        """By file, the UUIDs of its versions, oldest first, and of their parents."""
        self.made: dict[str, Made] = {}
        """By UUID."""
        self._names = 0

    def new_name(self) -> Path:
        self._names += 1
        return self.place / f"{self._names}.sqlimage"

    def add(self, file: Path, uuid: str, parent: str | None, made: Made) -> None:
        """A version was made."""
        self.files.setdefault(file, {})[uuid] = parent
        self.made[uuid] = made

    def remove(self, file: Path, uuids: Iterable[str]) -> None:
        """Versions are gone from a file, and a file without any is gone itself."""
        for uuid in uuids:
            del self.files[file][uuid]
        if not self.files[file]:
            del self.files[file]

    def versions(self) -> list[tuple[Path, str]]:
        """Every version of every file."""
        return [(file, uuid) for file, held in self.files.items() for uuid in held]

    def holders(self, uuid: str) -> list[Path]:
        """The files that hold a version."""
        return [file for file, held in self.files.items() if uuid in held]

    def line_in(self, file: Path, uuid: str) -> list[str]:
        """A version and its ancestors, as far as they are in its file."""
        held, line = self.files[file], [uuid]
        while (parent := held[line[-1]]) is not None and parent in held:
            line.append(parent)
        return line

    def ancestors(self, uuid: str) -> set[str]:
        """A version and all that any of the files calls an ancestor of it."""
        found, waiting = set[str](), [uuid]
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                waiting += [parent for held in self.files.values() if (parent := held.get(one)) is not None]
        return found

    def has_copies(self, uuids: Iterable[str]) -> bool:
        """Whether one of the versions lies in several files: then it may have another parent in each."""
        return any(len(self.holders(uuid)) > 1 for uuid in uuids)

    def needs(self, file: Path, doomed: set[str], *, but: str | None = None) -> bool:
        """Whether a version that would stay, ``but`` one, is the child of a doomed one: in its file, or in another that
        does not hold the parent itself."""
        here = self.files[file].items()
        return any(parent in doomed for uuid, parent in here if uuid not in doomed and uuid != but) or bool(
            self.children(file, doomed)
        )

    def children(self, file: Path, parents: Iterable[str] | None = None) -> list[Path]:
        """The other files in which there is a child of one of a file's versions, and not that version itself."""
        wanted = set(self.files[file] if parents is None else parents)
        return [
            other
            for other, held in self.files.items()
            if other != file and any(parent in wanted and parent not in held for parent in held.values())
        ]

    def is_leaned_on(self, file: Path) -> bool:
        """Whether another file knows a content of this one by its digest only."""
        held = digests(file, "bytes IS NOT NULL")
        return any(digests(other, "bytes IS NULL") & held for other in self.files if other != file)

    def would_lose(self, uuid: str, file: Path, onto: str) -> bool:
        """Whether a version below ``uuid`` in another file knows a content by its digest only that no file of its
        lineage need hold any more, were ``onto`` the parent of ``uuid``."""
        above = self.ancestors(onto)
        if self.has_copies(self.made):
            return True  # from which file each is read is more than this model knows
        for other, one in self.versions():
            line = self.ancestors(one)
            if other != file and uuid in line:
                between = {each for each in line if uuid in self.ancestors(each)} - {uuid}
                held = digests(file, _NAMED_BY_OTHERS.format(uuid))
                held |= {
                    name for each in between | above for name in digests(self.holders(each)[0], "bytes IS NOT NULL")
                }
                if digests(other, "bytes IS NULL") - held:
                    return True
        return False

    def attempt(self, work: Callable[[], T], *touched: Path) -> T | sqlimage.RefusedError:
        """Do it; where it is refused, nothing of the files has changed."""
        before = {file: told_by(file) for file in touched}
        try:
            return work()
        except sqlimage.RefusedError as refusal:
            assert {file: told_by(file) for file in touched} == before
            return refusal

    def check(self) -> None:
        """Every version reads as it was made, in every file that holds it, and the files are whole and at rest."""
        for file, held in self.files.items():
            with sqlimage.open(str(file)) as image:
                assert dict(image.database.rows(_LINEAGES)) == held, file
                for uuid in held:
                    check_version(image.version(uuid), self.made[uuid])
            check_whole(file)
        assert {self.place / name for name in os.listdir(self.place)} == set(self.files)


def check_version(version: sqlimage.Version, made: Made) -> None:
    """It reads as it was made."""
    assert version.control.bytes_per_cluster == made.unit
    found = whole(version.driver())
    where = f"{version.image.path}@{version.number}"
    assert len(found) == len(made.content), where
    differing = (
        [n for n, (a, b) in enumerate(zip(found, made.content, strict=True)) if a != b] if found != made.content else []
    )
    assert not differing, f"{where}: {len(differing)} bytes differ, the first is {differing[0]}"
    if made.check:
        made.check(version)


def digests(file: Path, condition: str) -> set[bytes]:
    """The names of the contents that a file knows, as far as a condition holds."""
    with sqlimage.open(str(file)) as image:
        return {row[0] for row in image.database.rows(f"SELECT digest FROM data WHERE {condition}")}


def told_by(file: Path) -> dict[str, Rows]:
    """All rows of all tables."""
    with sqlimage.open(str(file)) as image:
        return {table: sorted(image.database.rows(f"SELECT * FROM {table}"), key=repr) for table in _TABLES}


def differing_clusters(before: bytes, after: bytes, unit: int) -> set[int]:
    """Which clusters of two media differ; what the shorter one does not have counts as zeros."""
    clusters = -(-max(len(before), len(after)) // unit)
    a, b = before.ljust(clusters * unit, b"\0"), after.ljust(clusters * unit, b"\0")
    return {n for n in range(clusters) if a[n * unit : (n + 1) * unit] != b[n * unit : (n + 1) * unit]}
