"""Versions that nobody builds on, removed with all that only they had."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from sqlimage.errors import RefusedError, UsageError
from sqlimage.image.writing import give_back_space, writing
from sqlimage.streams import arrangement, audit, control
from sqlimage.tool import TOOL
from sqlimage.versions.children import Children
from sqlimage.versions.removal import (
    mapped_data,
    refuse_open,
    refuse_sibling_children,
    remove_rows,
    remove_unused,
)


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What was removed; sizes in bytes."""

    image: str
    versions: tuple[int, ...]
    uuids: tuple[str, ...]
    contents: int
    freed_bytes: int
    """Of the data stream."""
    image_bytes: int
    searched: str
    """Where children were looked for."""


def prune(
    image: str | os.PathLike[str],
    versions: Sequence[str],
    *,
    user: str | None = None,
    message: str | None = None,
    search: Sequence[str] = (),
) -> PruneReport:
    """Remove versions, by number, label or UUID, in one transaction. The time it takes follows what they hold.

    Raises :class:`~sqlimage.errors.RefusedError` where a version that stays has one of them as its parent, in this file
    or in a child file that is found, and says which; and where none would be left.
    """
    with writing(image, "pruning it") as database:
        doomed = list(
            {found.version: found for found in (control.find_version(database, v) for v in versions)}.values()
        )
        if not doomed:
            raise UsageError("no version to prune was named")
        refuse_open(database, doomed, "pruned")
        staying = [known for known in control.versions(database) if known not in doomed]
        refuse_sibling_children(database, doomed, staying, "pruned")
        if not staying:
            raise RefusedError(f"{database.path}: nothing would be left of it", hint="remove the file itself")
        children = Children(database, search)
        children.refuse_to_remove(doomed, "pruned")
        children.refuse_where_written()
        with database.transaction():
            candidates = mapped_data(database, [version.version for version in doomed])
            for version in doomed:
                remove_rows(database, version.version)
            freed, gone = remove_unused(database, candidates)
            children.refuse_to_drop(gone, "pruned")
            # Once more, for a child may have been made meanwhile.
            Children(database, search, gone=doomed).refuse_to_remove(doomed, "pruned")
            arrangement.count(database)
            for version in doomed:
                told = {"uuid": version.uuid, "label": version.label, "parent": version.parent_uuid, "message": message}
                audit.append(database, "prune", tool=TOOL, version=version.version, detail={**told}, user=user)
        give_back_space(database)
    return PruneReport(
        database.path,
        tuple(version.version for version in doomed),
        tuple(version.uuid for version in doomed),
        freed.contents,
        freed.stored_bytes,
        os.path.getsize(database.path),
        children.advice(),
    )
