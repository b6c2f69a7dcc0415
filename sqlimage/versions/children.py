"""Which other files hold children of an image's versions, as far as they can be found, and what they need of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlimage.errors import FormatError, RefusedError, SqlimageError
from sqlimage.image.lineage import SEARCH_VARIABLE, candidates, places
from sqlimage.streams import control, data, signature
from sqlimage.streams.control import Control
from sqlimage.streams.database import Database
from sqlimage.streams.header import check_header
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
        with Database.open(self.path, leave_alone=True, structure_only=True) as database:
            return {row[0] for row in database.query(data.WITHOUT_BYTES)}

    def signed(self) -> set[str]:
        """The UUIDs of those of its versions that are signed."""
        with Database.open(self.path, leave_alone=True, structure_only=True) as database:
            return signature.signed(database)

    def holds(self, digests: set[bytes]) -> set[bytes]:
        """Those of some contents whose bytes it has."""
        with Database.open(self.path, leave_alone=True, structure_only=True) as database:
            return {digest for digest in digests if database.row(data.IS_HELD, [digest]) is not None}


class Children:
    """The child files of an image beside it, in the directories that are searched, and their own child files."""

    def __init__(
        self, database: Database, search: Sequence[str], *, strict: bool = True, gone: Iterable[Control] = ()
    ) -> None:
        """``gone`` are versions that were in the file until now. Where ``strict``, raises
        :class:`~sqlimage.errors.RefusedError` for a file that may be an image and cannot be looked at just now: it may
        be a child that would be lost."""
        self._path = database.path
        self.searched = places(database.path, search)
        found: list[ChildFile] = []
        for path in candidates(database.path, None, search):
            try:
                with Database.open(path, leave_alone=True, structure_only=True) as other:
                    found.append(ChildFile(path, tuple(control.versions(other))))
            except SqlimageError as problem:
                if strict and _may_be_image(path):
                    raise RefusedError(
                        f"{path}: may be a child of this image and cannot be looked at ({problem.message})",
                        hint="run `sqlimage verify --recover` on it, or move it away",
                    ) from None
        self.files: list[ChildFile] = []
        known = {version.uuid for version in (*control.versions(database), *gone)}
        while grown := [one for one in found if any(version.parent_uuid in known for version in one.leading_out())]:
            self.files += grown
            found = [one for one in found if one not in grown]
            known |= {version.uuid for one in grown for version in one.versions}

    def below(self, uuids: set[str]) -> list[ChildFile]:
        """The child files with a version that builds on one of some versions, and theirs in turn."""
        known, below, others = set(uuids), list[ChildFile](), list(self.files)
        while grown := [one for one in others if any(version.parent_uuid in known for version in one.leading_out())]:
            below += grown
            others = [one for one in others if one not in grown]
            known |= {version.uuid for one in grown for version in one.versions}
        return below

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


def _may_be_image(path: str) -> bool:
    """Whether a file that cannot be opened may be an image all the same."""
    try:
        check_header(path)
    except FormatError:
        return False
    except SqlimageError:
        return True
    return True
