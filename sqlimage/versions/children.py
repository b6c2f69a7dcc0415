"""Which other files hold children of an image's versions, as far as they can be found, and what they need of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlimage.errors import RefusedError, SqlimageError
from sqlimage.image.lineage import SEARCH_VARIABLE, candidates, places
from sqlimage.streams import control, data
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.streams.writer import holder


@dataclass(frozen=True, slots=True)
class ChildFile:
    """An image whose versions descend from those of another one."""

    path: str
    versions: tuple[Control, ...]

    def leading_out(self) -> list[Control]:
        """Its versions whose parent lies in another file: one that is here, too, is no other's business."""
        here = {version.uuid for version in self.versions}
        return [version for version in self.versions if version.parent_uuid and version.parent_uuid not in here]

    def needs(self) -> set[bytes]:
        """The digests of the contents that it has in other files."""
        with Database.open(self.path) as database:
            return {row[0] for row in database.query(data.WITHOUT_BYTES)}


class Children:
    """The child files of an image beside it, in the directories that are searched, and their own child files."""

    def __init__(self, database: Database, search: Sequence[str]) -> None:
        self._path = database.path
        self.searched = places(database.path, search)
        found: list[ChildFile] = []
        for path in candidates(database.path, None, search):
            try:
                with Database.open(path) as other:
                    found.append(ChildFile(path, tuple(control.versions(other))))
            except SqlimageError:
                continue  # whatever it is, no version of it can be read
        self.files: list[ChildFile] = []
        known = {version.uuid for version in control.versions(database)}
        while grown := [one for one in found if any(version.parent_uuid in known for version in one.leading_out())]:
            self.files += grown
            found = [one for one in found if one not in grown]
            known |= {version.uuid for one in grown for version in one.versions}

    def refuse_to_remove(self, doomed: Iterable[Control], what: str) -> None:
        """Raise :class:`~sqlimage.errors.RefusedError` where one of the versions is the parent of one in a child
        file."""
        uuids = {version.uuid: version for version in doomed}
        for child in self.files:
            for version in child.leading_out():
                parent = uuids.get(version.parent_uuid or "")
                if parent is not None:
                    raise RefusedError(
                        f"{self._path}: version {parent.version} cannot be {what}: {child.path} needs it",
                        hint="merge, rebase or flatten that child first",
                    )

    def refuse_to_drop(self, digests: set[bytes], what: str) -> None:
        """Raise :class:`~sqlimage.errors.RefusedError` where a child file refers to contents that would be gone."""
        for child in self.files if digests else ():
            if child.needs() & digests:
                raise RefusedError(
                    f"{self._path}: cannot be {what}: {child.path} refers to contents that would be gone",
                    hint="merge, rebase or flatten that child first",
                )

    def refuse_where_written(self) -> None:
        """Raise :class:`~sqlimage.errors.RefusedError` where a child is being written, for it may refer to more at any
        moment."""
        for child in self.files:
            if writer := holder(child.path):
                raise RefusedError(f"{child.path}: a child of this image is being written by {writer}")

    def advice(self) -> str:
        """Where children were looked for."""
        where = ", ".join(map(os.path.relpath, self.searched))
        return f"children were looked for in {where}; name other directories with --search or in {SEARCH_VARIABLE}"
