"""An edit: an open version on top of a sealed one, worked on by one process at a time, then sealed or discarded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from sqlimage.image.attach import attach_parents
from sqlimage.image.changes import Change, count_actions
from sqlimage.image.chunks import Cache
from sqlimage.image.edit_driver import WRITE_BACK_BYTES, EditDriver
from sqlimage.image.seal import Sealing
from sqlimage.image.writing import give_back_space
from sqlimage.streams import audit, control
from sqlimage.streams.control import Control, Volume
from sqlimage.streams.database import Database
from sqlimage.streams.writer import WriterLock
from sqlimage.tool import TOOL

_STREAMS = ("volume", "cluster_map", "bitmap", "file", "extent", "property", "control")


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

    @classmethod
    def from_plain(cls, told: Mapping[str, Any]) -> EditReport:
        """The report that :func:`dataclasses.asdict` made plain, in another process."""
        changes = tuple(Change(**{**change, "what": tuple(change["what"])}) for change in told["changes"])
        return cls(**{**told, "changes": changes, "notes": tuple(told["notes"])})


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
        cache: Cache,
        write_back_bytes: int = WRITE_BACK_BYTES,
    ) -> None:
        self.path = path
        self.control = version
        self._lock = lock
        self._database = database
        self._user = user
        self._message = message
        self._is_open = True
        self._is_empty = False
        self.let_go: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered while the log is removed: others in this process let go of the file meanwhile."""
        attach_parents(database, version, search)
        self.driver = EditDriver(database, version, search=search, cache=cache, write_back_bytes=write_back_bytes)

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
        self.driver.fence()
        try:
            return self._commit()
        except BaseException:
            if self._is_open:
                self.driver.fence(up=False)
            raise

    def _commit(self) -> EditReport:
        self.driver.flush()
        database, number = self._database, self.number
        if database.row("SELECT 1 FROM cluster_map WHERE version = ? LIMIT 1", [number]) is None:
            self._remove("edit-discard", {"why": "nothing was written"})
            self.close()
            return EditReport(self.path, None, None, self.control.parent_uuid)
        sealing = Sealing(database, self.control, self.driver)
        if len(sealing.volumes) > 1:
            sealing.changes = [change.on_its_volume() for change in sealing.changes]
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
                path=change.path,
                length_bytes=change.bytes_after if change.action != "deleted" else change.bytes_before,
                detail={name: value for name, value in detail.items() if value is not None},
                user=self._user,
            )
        count = count_actions(sealing.changes)
        audit.append(
            self._database,
            "edit-commit",
            tool=TOOL,
            version=self.number,
            clusters=sealing.written_clusters,
            length_bytes=sealing.written_clusters * self.control.bytes_per_cluster,
            detail={"message": self._message or self._begun_message(), **count, "notes": _notes(sealing)},
            user=self._user,
        )

    def _begun_message(self) -> str | None:
        """What was said when the edit began; a resumed one is committed under it."""
        begun = self._database.row(audit.SELECT_BEGUN, [self.number])
        return begun[1] if begun else None

    def discard(self) -> None:
        """Remove the version and all that only it holds; the audit trail keeps that it was there."""
        self._remove("edit-discard", {"message": self._message})
        self.close()

    def _remove(self, action: str, detail: dict[str, object]) -> None:
        self.driver.close()  # nothing is written behind our back from here on
        database, number = self._database, self.number
        if len(control.versions(database)) == 1:  # a child file: nothing would be left in it
            self._is_empty = True
            return
        with database.transaction():
            for table in _STREAMS:
                database.run(f"DELETE FROM {table} WHERE version = ?", [number])
            database.run("DELETE FROM data WHERE id NOT IN (SELECT data FROM cluster_map WHERE data IS NOT NULL)")
            audit.append(database, action, tool=TOOL, version=number, detail=detail, user=self._user)
        give_back_space(database)

    def close(self) -> None:
        """Let go of the image. What was flushed stays in the open version, to be resumed; what was not is lost."""
        if self._is_open:
            self._is_open = False
            self.driver.close()
            try:
                if not self._is_empty:
                    with self.let_go():
                        self._database.end_log()
            finally:
                self._database.close()
                if self._is_empty:
                    for suffix in ("", "-wal", "-shm"):
                        with suppress(FileNotFoundError):
                            os.unlink(self.path + suffix)
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


def _notes(sealing: Sealing) -> list[str]:
    """What whoever commits should know of the volumes as they were left."""
    notes = []
    for volume in sealing.volumes:
        if volume.dirty:
            notes.append(f"volume {volume.number} is marked dirty: it was not unmounted")
        if volume.raw_reason:
            notes.append(f"volume {volume.number} is not read by files: {volume.raw_reason}")
    return notes
