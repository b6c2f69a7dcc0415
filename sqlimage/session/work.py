"""What serving, mounting and booting have in common: a version to read, or an edit to write, as named devices."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlimage.device import BlockDevice
from sqlimage.errors import RefusedError, SqlimageError, UsageError
from sqlimage.image.chunks import LARGE, Cache
from sqlimage.image.edit import Edit, EditReport
from sqlimage.image.edits import unfinished
from sqlimage.image.image import Image, split_path
from sqlimage.media.window import Window, WritableWindow
from sqlimage.streams.control import Control, Volume
from sqlimage.streams.database import recover
from sqlimage.streams.writer import holder
from sqlimage.transfer.opening import local_image
from sqlimage.transfer.stores.address import is_url

MEDIUM = "medium"
ENDS = ("keep", "commit", "discard")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the work ended."""

    image: str
    version: int | None
    """The version that was read, sealed, or is still open; None where an edit is gone."""
    state: str
    """``read``, ``committed``, ``unchanged`` (nothing was written, no version was made), ``discarded`` or ``open``."""
    report: EditReport | None = None

    @classmethod
    def from_plain(cls, told: Mapping[str, Any]) -> Outcome:
        """The outcome that :func:`dataclasses.asdict` made plain, in another process."""
        report = told.get("report")
        return cls(
            told["image"], told["version"], told["state"], EditReport.from_plain(report) if report is not None else None
        )

    @property
    def advice(self) -> str:
        """What the user can do next with an edit that is still open; empty where there is nothing to do."""
        if self.state != "open":
            return ""
        return (
            f"version {self.version} stays open with everything that was flushed: go on with it as "
            f"{self.image}@{self.version}, or `sqlimage edit commit {self.image}@{self.version}`, "
            f"or `sqlimage edit discard {self.image}@{self.version}`"
        )


class Work:
    """A version, or an edit, while it is used. Use :func:`open_work`; end it with :meth:`finish`."""

    def __init__(
        self,
        image: Image,
        version: Control,
        volumes: list[Volume],
        edit: Edit | None,
        cache: Cache,
        *,
        is_new: bool = False,
    ) -> None:
        self._is_finished = False
        self.is_new = is_new
        """Whether the edit began with this work."""
        self._windows: dict[int, WritableWindow] = {}
        self.path = edit.path if edit else image.path
        self.control = version
        self.volumes = volumes
        self.edit = edit
        self._image = image
        self._driver = edit.driver if edit else image.version(str(version.version)).driver(cache=cache)
        # What a crash has left is not a reader's to change.
        self._is_after_crash = _has_log(self.path) and holder(self.path) is None

    @property
    def medium(self) -> BlockDevice:
        return self._driver

    def volume(self, number: int) -> BlockDevice:
        """One volume as a device, writable where the work is an edit."""
        for row in self.volumes:
            if row.number == number:
                start = row.offset_clusters * self.control.bytes_per_cluster
                if self.edit:
                    return WritableWindow(self.edit.driver, start, row.length_bytes)
                return Window(self._driver, start, row.length_bytes)
        numbers = ", ".join(str(row.number) for row in self.volumes)
        raise UsageError(f"{self.path}: no volume {number}", hint=f"there are {numbers}")

    def writable_volume(self, number: int) -> WritableWindow:
        """One volume of an edit; the same device each time."""
        if number not in self._windows:
            device = self.volume(number)
            assert isinstance(device, WritableWindow)
            self._windows[number] = device
        return self._windows[number]

    def split_path(self, path: str) -> tuple[int, str]:
        """Volume number and path on it, as :meth:`sqlimage.image.image.Version.split_path` has them."""
        return split_path(self.path, [row.number for row in self.volumes], path)

    def devices(self) -> dict[str, BlockDevice]:
        """The medium, then its volumes, by the names under which they are offered."""
        named = {f"volume-{row.number}": self.volume(row.number) for row in self.volumes}
        return {MEDIUM: self._driver, **named}

    def finish(self, end: str = "keep") -> Outcome:
        """Let go of the image. An edit is kept open (with what was flushed), committed or discarded.

        Raises :class:`~sqlimage.errors.DeviceError` where a commit finds no room; the edit then stays open.
        """
        try:
            if self.edit is None:
                return Outcome(self.path, self.control.version, "read")
            number = self.edit.number
            if end == "commit":
                report = self.edit.commit()
                state = "unchanged" if report.version is None else "committed"
                return Outcome(self.path, report.version, state, report)
            if end == "discard":
                self.edit.discard()
                return Outcome(self.path, None, "discarded")
            self.edit.driver.flush()
            if self.is_new and not self.edit.driver.has_written:
                self.edit.discard()  # nobody asked for a version by name, and there is nothing to go on with
                return Outcome(self.path, None, "unchanged")
            return Outcome(self.path, number, "open")
        finally:
            self.close()

    def abandon(self) -> None:
        """Let go where :meth:`finish` was never reached: a new edit that was not offered to anybody is gone."""
        if self._is_finished:
            return
        if self.edit and self.is_new and not self.edit.driver.has_written:
            self.finish("discard")
        self.close()

    def close(self) -> None:
        """Let go of everything at once; what an edit has not flushed is lost."""
        self._is_finished = True
        if self.edit:
            self.edit.close()
        else:
            self._driver.close()
        self._image.close()
        if not self.edit and not self._is_after_crash and _has_log(self.path) and holder(self.path) is None:
            # A writer that ended before this reader could not remove its log. Where others still read, or nothing may
            # be written here, it stays.
            with suppress(SqlimageError):
                recover(self.path)


def _has_log(path: str) -> bool:
    return os.path.exists(path + "-wal")


def open_work(
    path: str,
    version: str | None = None,
    *,
    writable: bool = False,
    into: str | None = None,
    label: str | None = None,
    user: str | None = None,
    message: str | None = None,
    search: Sequence[str] = (),
    cache: Cache = LARGE,
) -> Work:
    """A version to read; or, ``writable``, a new edit on top of it, or the unfinished edit that ``version`` names.

    ``path`` may be a URL, of which a version can only be read; all of it is fetched meanwhile, in the order in which a
    boot reads it.
    Raises :class:`~sqlimage.errors.RefusedError` where the file has an unfinished edit and none was named: to begin
    another beside it would hide what was written into the first.
    """
    if is_url(path):
        if writable:
            raise RefusedError(f"{path}: an image elsewhere is only read", hint="`sqlimage pull` it first")
        path = local_image(path, with_rest=False, prefetch=True)
    if not writable:
        if into is not None:
            raise UsageError("a child file is only made for an edit", hint="add --writable")
        image = Image.open(path, search=search)
        try:
            found = image.version(version)
            return Work(image, found.control, found.volumes(), None, cache)
        except BaseException:
            image.close()
            raise
    image = Image.open(path, writable=into is None, search=search)
    try:
        named = image.version(version)
        is_new = into is not None or named.control.state != "open"
        if not is_new:
            edit = image.resume(version, user=user, message=message, cache=cache)
        else:
            waiting = [] if into else unfinished(image.database)
            if waiting and waiting[0].held_by:
                raise RefusedError(f"{path}: is being written by {waiting[0].held_by}", hint="try again later")
            if waiting:
                numbers = ", ".join(f"{path}@{row.version}" for row in waiting)
                raise RefusedError(
                    f"{path}: has an unfinished edit", hint=f"go on with {numbers}, or commit or discard it first"
                )
            edit = image.edit(version, into=into, label=label, user=user, message=message, cache=cache)
        return Work(image, edit.control, edit.volumes(), edit, cache, is_new=is_new)
    except BaseException:
        image.close()
        raise
