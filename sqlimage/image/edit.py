"""An edit: an open version on top of a sealed one, worked on by one process at a time, then sealed or discarded."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from sqlimage.errors import NotFoundError, RefusedError, UsageError
from sqlimage.image.attach import attach_parents
from sqlimage.image.changes import Change
from sqlimage.image.chunks import CACHE_BYTES
from sqlimage.image.edit_driver import WRITE_BACK_BYTES, EditDriver
from sqlimage.image.seal import Sealing
from sqlimage.streams import audit, cluster_map, control, properties, schema
from sqlimage.streams.control import Control, Volume, check_label
from sqlimage.streams.database import Database
from sqlimage.streams.newfile import NewImage
from sqlimage.streams.writer import WriterLock, holder
from sqlimage.tool import TOOL
from sqlimage.units import now

_STREAMS = ("volume", "cluster_map", "bitmap", "file", "extent", "property", "control")
_FREE_PAGES_AT_A_TIME = 16_384


@dataclass(frozen=True, slots=True)
class EditReport:
    """What a finished edit came to; sizes in bytes."""

    image: str
    version: int | None
    """The sealed version; None where nothing was written and none was made."""
    uuid: str | None
    parent_uuid: str | None
    changes: tuple[Change, ...] = ()
    written_bytes: int = 0
    """How much of the medium the version says something about."""
    stored_bytes: int = 0
    """What it added to the data stream."""
    notes: tuple[str, ...] = ()


class Edit:
    """An open version being worked on. Use :func:`begin` or :func:`resume`; end it with :meth:`commit`,
    :meth:`discard`, or :meth:`close`, which leaves it to be resumed."""

    def __init__(
        self,
        path: str,
        version: Control,
        lock: WriterLock,
        database: Database,
        *,
        search: Sequence[str],
        user: str | None,
        message: str | None,
        cache_bytes: int,
        write_back_bytes: int = WRITE_BACK_BYTES,
    ) -> None:
        self.path = path
        self.control = version
        self._lock = lock
        self._database = database
        self._user = user
        self._message = message
        self._is_open = True
        self.let_go: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered while the log is removed: others in this process let go of the file meanwhile."""
        attach_parents(database, version, search)
        self.driver = EditDriver(
            database, version, search=search, cache_bytes=cache_bytes, write_back_bytes=write_back_bytes
        )

    @property
    def number(self) -> int:
        """The number of the open version."""
        return self.control.version

    @property
    def is_open(self) -> bool:
        return self._is_open

    def volumes(self) -> list[Volume]:
        """The volumes as they were when the edit began."""
        return control.volumes(self._database, self.control)

    def commit(self) -> EditReport:
        """Seal the version: bitmap, files and audit as the volumes are now, all in one transaction.

        Where nothing was written there is no version to seal and the edit is gone. Raises
        :class:`~sqlimage.errors.DeviceError` where the disk is full; the edit then stays open.
        """
        self.driver.flush()
        database, number = self._database, self.number
        if database.row("SELECT 1 FROM cluster_map WHERE version = ? LIMIT 1", [number]) is None:
            self._remove("edit-discard", {"why": "nothing was written"})
            self.close()
            return EditReport(self.path, None, None, self.control.parent_uuid)
        sealing = Sealing(database, self.control, self.driver)
        with database.transaction():
            sealing.write()
            self.driver.remove_superseded()
            self._tell(sealing)
        row = control.by_uuid(database, self.control.uuid)
        assert row is not None
        self.close()
        return EditReport(
            self.path,
            number,
            row.uuid,
            row.parent_uuid,
            tuple(sealing.changes),
            sealing.written_clusters * row.bytes_per_cluster,
            row.stored_bytes,
            tuple(_notes(sealing)),
        )

    def _tell(self, sealing: Sealing) -> None:
        several = len(sealing.volumes) > 1
        for change in sealing.changes:
            detail = {
                "kind": change.kind,
                "bytes_before": change.bytes_before,
                "bytes_after": change.bytes_after,
                "old_path": change.old_path,
                "what": list(change.what) or None,
            }
            audit.append(
                self._database,
                change.action,
                tool=TOOL,
                version=self.number,
                path=f"/{change.volume}{change.path}" if several else change.path,
                length_bytes=change.bytes_after if change.action != "deleted" else change.bytes_before,
                detail={name: value for name, value in detail.items() if value is not None},
                user=self._user,
            )
        count = {
            action: sum(change.action == action for change in sealing.changes)
            for action in ("created", "changed", "deleted", "renamed")
        }
        audit.append(
            self._database,
            "edit-commit",
            tool=TOOL,
            version=self.number,
            clusters=sealing.written_clusters,
            length_bytes=sealing.written_clusters * self.control.bytes_per_cluster,
            detail={"message": self._message, **count, "notes": _notes(sealing)},
            user=self._user,
        )

    def discard(self) -> None:
        """Remove the version and all that only it holds; the audit trail keeps that it was there."""
        self._remove("edit-discard", {"message": self._message})
        self.close()

    def _remove(self, action: str, detail: dict[str, object]) -> None:
        database, number = self._database, self.number
        with database.transaction():
            for table in _STREAMS:
                database.run(f"DELETE FROM {table} WHERE version = ?", [number])
            database.run("DELETE FROM data WHERE id NOT IN (SELECT data FROM cluster_map WHERE data IS NOT NULL)")
            audit.append(database, action, tool=TOOL, version=number, detail=detail, user=self._user)
        database.run(f"PRAGMA incremental_vacuum({_FREE_PAGES_AT_A_TIME})")

    def close(self) -> None:
        """Let go of the image. What was flushed stays in the open version, to be resumed; what was not is lost."""
        if self._is_open:
            self._is_open = False
            self.driver.close()
            try:
                with self.let_go():
                    self._database.end_log()
            finally:
                self._database.close()
                self._lock.close()

    def __enter__(self) -> Edit:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Commit; or discard where the block raised."""
        if self._is_open:
            try:
                if kind is None:
                    self.commit()
                else:
                    self.discard()
            finally:
                self.close()


def begin(
    path: str,
    version: str | None = None,
    *,
    into: str | os.PathLike[str] | None = None,
    label: str | None = None,
    user: str | None = None,
    message: str | None = None,
    search: Sequence[str] = (),
    cache_bytes: int = CACHE_BYTES,
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
        path, version = _make_child(path, version, os.fspath(into), label), "1"
    lock = WriterLock(os.path.abspath(path), "editing")
    try:
        database = Database.open(path, writable=True)
        try:
            found = control.find_version(database, version)
            with database.transaction():
                if into is None:
                    found = _open_version(database, found, label)
                detail: dict[str, object] = {
                    "message": message,
                    "label": label,
                    "parent": found.parent_uuid,
                    "uuid": found.uuid,
                }
                audit.append(database, "edit-begin", tool=TOOL, version=found.version, detail=detail, user=user)
            database.use_log()
            return Edit(
                database.path,
                found,
                lock,
                database,
                search=search,
                user=user,
                message=message,
                cache_bytes=cache_bytes,
                write_back_bytes=write_back_bytes,
            )
        except BaseException:
            database.close()
            raise
    except BaseException:
        lock.close()
        raise


def resume(
    path: str,
    version: str | None = None,
    *,
    user: str | None = None,
    message: str | None = None,
    search: Sequence[str] = (),
    cache_bytes: int = CACHE_BYTES,
    write_back_bytes: int = WRITE_BACK_BYTES,
) -> Edit:
    """Go on with an edit that was left open, by a crash or by :meth:`Edit.close`; the only one, unless told which.

    Raises :class:`~sqlimage.errors.NotFoundError` where there is none, and
    :class:`~sqlimage.errors.RefusedError` where another process is working on the file.
    """
    lock = WriterLock(os.path.abspath(path), "editing")
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
                cache_bytes=cache_bytes,
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
            hint=f"resume it (`sqlimage edit resume {database.path} {parent.version}`), commit it or discard it",
        )
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


def _make_child(path: str, version: str | None, child: str, label: str | None) -> str:
    """A new image whose only version is open and has its parent in another file."""
    with Database.open(path) as database:
        parent = control.find_version(database, version)
        if parent.state != "sealed":
            raise RefusedError(f"{path}: version {parent.version} is an edit that is not finished")
        volumes = control.volumes(database, parent)
    with NewImage(child) as new:
        made = Database(new.target, new.connection, writable=True)
        made.run("BEGIN")
        for name, value in (("oldest_reader", schema.OLDEST_READER), ("writer", TOOL)):
            made.run("INSERT INTO format (name, value) VALUES (?, ?)", [name, value])
        control.insert_control(made, _child_of(parent, 1, label, os.path.basename(path)))
        for volume in volumes:
            control.insert_volume(made, dataclasses.replace(volume, version=1))
        properties.put(made, 1, "capture.tool", TOOL)
        new.make_indexes()
        made.run("COMMIT")
        new.publish()
        return new.target


def _notes(sealing: Sealing) -> list[str]:
    """What whoever commits should know of the volumes as they were left."""
    notes = []
    for volume in sealing.volumes:
        if volume.dirty:
            notes.append(f"volume {volume.number} is marked dirty: it was not unmounted")
        if volume.raw_reason:
            notes.append(f"volume {volume.number} is not read by files: {volume.raw_reason}")
    return notes
