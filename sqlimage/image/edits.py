"""Edits begun, found again after a crash, and listed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass

from sqlimage.errors import NotFoundError, RefusedError, UsageError
from sqlimage.image.chunks import SMALL, Cache
from sqlimage.image.edit import Edit
from sqlimage.image.edit_driver import WRITE_BACK_BYTES
from sqlimage.image.lineage import resolve
from sqlimage.streams import audit, cluster_map, control, properties
from sqlimage.streams.control import Control, check_label
from sqlimage.streams.database import Database
from sqlimage.streams.newfile import NewImage
from sqlimage.streams.writer import RESERVED, WriterLock, holder
from sqlimage.tool import TOOL
from sqlimage.units import now


def begin(
    path: str,
    version: str | None = None,
    *,
    into: str | os.PathLike[str] | None = None,
    label: str | None = None,
    user: str | None = None,
    message: str | None = None,
    search: Sequence[str] = (),
    cache: Cache = SMALL,
    write_back_bytes: int = WRITE_BACK_BYTES,
) -> Edit:
    """Open a new version on top of a sealed one (the latest, unless told otherwise), in the same file or, with
    ``into``, in a new child file.

    Raises :class:`~sqlimage.errors.RefusedError` where another process writes to the file, by name, and where the
    version is itself an edit that is not finished.
    """
    check_label(label)
    if into is not None:
        search = [*search, os.path.dirname(os.path.abspath(path))]
        path, version = _make_child(path, version, os.fspath(into), label, user, message), "1"
    lock = WriterLock(os.path.realpath(path), "editing")
    try:
        database = Database.open(path, writable=True)
        try:
            found = control.find_version(database, version)
            resolve(database, found, search).close()
            database.vault_or_none()  # who cannot write what is encrypted does not begin
            database.use_log()
            if into is None:
                with database.transaction():
                    found = _open_version(database, found, label)
                    _tell_begin(database, found, user, message)
            return Edit(
                database.path,
                found,
                lock,
                database,
                search=search,
                user=user,
                message=message,
                cache=cache,
                write_back_bytes=write_back_bytes,
            )
        except BaseException:
            database.end_log()
            database.close()
            raise
    except BaseException:
        if into is not None:
            os.unlink(path)  # it was made for this edit, and nobody has seen it
        lock.close()
        raise


def resume(
    path: str,
    version: str | None = None,
    *,
    user: str | None = None,
    message: str | None = None,
    search: Sequence[str] = (),
    cache: Cache = SMALL,
    write_back_bytes: int = WRITE_BACK_BYTES,
) -> Edit:
    """Go on with an edit that was left open, by a crash or by :meth:`Edit.close`; the only one, unless told which.

    Raises :class:`~sqlimage.errors.NotFoundError` where there is none, and
    :class:`~sqlimage.errors.RefusedError` where another process is working on the file.
    """
    lock = WriterLock(os.path.realpath(path), "editing")
    try:
        database = Database.open(path, writable=True)
        try:
            database.use_log()
            found = find_open(database, version)
            return Edit(
                database.path,
                found,
                lock,
                database,
                search=search,
                user=user,
                message=message,
                cache=cache,
                write_back_bytes=write_back_bytes,
            )
        except BaseException:
            database.end_log()
            database.close()
            raise
    except BaseException:
        lock.close()
        raise


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An open version that waits to be resumed, committed or discarded."""

    version: int
    uuid: str
    parent_uuid: str | None
    begun_at: str
    label: str | None
    user: str | None
    message: str | None
    written_bytes: int
    """How much of the medium it says something about, as far as it was flushed."""
    held_by: str | None
    """Who is working on the file now."""


def unfinished(database: Database) -> list[Unfinished]:
    """The edits of a file that were neither committed nor discarded."""
    held = holder(database.path)
    found = []
    for version in control.versions(database):
        if version.state == "open":
            begun = database.row(audit.SELECT_BEGUN, [version.version])
            user, message = begun if begun else (None, None)
            written = cluster_map.own_clusters(database, version.version).total * version.bytes_per_cluster
            found.append(
                Unfinished(
                    version.version,
                    version.uuid,
                    version.parent_uuid,
                    version.created_at,
                    version.label,
                    user,
                    message,
                    written,
                    held,
                )
            )
    return found


def find_open(database: Database, version: str | None) -> Control:
    """The open version that is meant: by number, label or UUID, or the only one there is."""
    unfinished = [known for known in control.versions(database) if known.state == "open"]
    if version not in (None, "", "latest"):
        found = control.find_version(database, version)
        if found.state != "open":
            raise UsageError(
                f"{database.path}: version {found.version} is sealed and never changes",
                hint="`sqlimage edit begin` opens a new version on top of it",
            )
        return found
    if not unfinished:
        raise NotFoundError(f"{database.path}: has no unfinished edit", hint="`sqlimage edit begin` opens one")
    if len(unfinished) > 1:
        numbers = ", ".join(str(known.version) for known in unfinished)
        raise UsageError(f"{database.path}: has several unfinished edits", hint=f"say which: versions {numbers}")
    return unfinished[0]


def _open_version(database: Database, parent: Control, label: str | None) -> Control:
    """The rows of a new open version; inside the caller's transaction."""
    if parent.state != "sealed":
        raise RefusedError(
            f"{database.path}: version {parent.version} is an edit that is not finished",
            hint=f"go on with it as {database.path}@{parent.version}, commit it or discard it",
        )
    control.check_new_label(database, label)
    number = control.next_version(database)
    opened = _child_of(parent, number, label, None)
    control.insert_control(database, opened)
    for volume in control.volumes(database, parent):
        control.insert_volume(database, dataclasses.replace(volume, version=number))
    return opened


def _child_of(parent: Control, number: int, label: str | None, parent_name: str | None) -> Control:
    return dataclasses.replace(
        parent,
        version=number,
        uuid=control.new_uuid(),
        parent_uuid=parent.uuid,
        parent_name=parent_name,
        label=label,
        state="open",
        created_at=now(),
        stored_bytes=0,
        source=None,
    )


def _tell_begin(database: Database, opened: Control, user: str | None, message: str | None) -> None:
    told = {"message": message, "label": opened.label, "parent": opened.parent_uuid, "uuid": opened.uuid}
    audit.append(database, "edit-begin", tool=TOOL, version=opened.version, detail={**told}, user=user)


def _make_child(
    path: str, version: str | None, child: str, label: str | None, user: str | None, message: str | None
) -> str:
    """A new image whose only version is open and has its parent in another file."""
    if child.endswith(RESERVED):
        raise UsageError(f"{child}: a name that ends so belongs to another image", hint="choose another name")
    with Database.open(path) as database:
        parent = control.find_version(database, version)
        if parent.state != "sealed":
            raise RefusedError(f"{path}: version {parent.version} is an edit that is not finished")
        volumes, keys = control.volumes(database, parent), database.keys()
    with NewImage(child) as new:
        made = new.begin(keys)
        opened = _child_of(parent, 1, label, os.path.basename(path))
        control.insert_control(made, opened)
        _tell_begin(made, opened, user, message)
        for volume in volumes:
            control.insert_volume(made, dataclasses.replace(volume, version=1))
        properties.put(made, 1, "capture.tool", TOOL)
        new.make_indexes()
        new.publish()
        return new.target
