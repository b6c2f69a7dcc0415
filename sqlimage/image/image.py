"""An image file and the versions in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlimage.errors import FormatError, InconsistentVolume, NotFoundError, RefusedError, UsageError
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import Content, FileSystem
from sqlimage.image.attach import attach_parents
from sqlimage.image.chunks import SMALL, Cache
from sqlimage.image.driver import ImageDriver
from sqlimage.media.window import Window
from sqlimage.streams import audit, bitmap, control, files, properties, signature
from sqlimage.streams.audit import AuditRow
from sqlimage.streams.control import Control, Volume
from sqlimage.streams.database import Database
from sqlimage.streams.files import Extent, FileRow
from sqlimage.streams.properties import Value
from sqlimage.streams.writer import holder
from sqlimage.tool import TOOL

if TYPE_CHECKING:
    from sqlimage.image.edit import Edit
    from sqlimage.image.edits import Unfinished


class Image:
    """An opened image. Use as a context manager, or close it.

    The streams are reached by the accessors below, through :attr:`database` by SQL, and by :meth:`Version.driver` as
    a device.
    """

    def __init__(self, database: Database, search: Sequence[str] = ()) -> None:
        self.database = database
        self.search = tuple(search)
        self._attached: str | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, writable: bool = False, search: Sequence[str] = ()) -> Image:
        """Open an image file; read-only unless told otherwise, and then not a byte of it changes.

        Parents of its versions are looked for beside it, in the directories ``search`` and in those of
        ``SQLIMAGE_PATH``.

        Raises :class:`~sqlimage.errors.NotFoundError`, :class:`~sqlimage.errors.FormatError`,
        :class:`~sqlimage.errors.RefusedError`, :class:`~sqlimage.errors.DeviceError`.
        """
        return cls(Database.open(path, writable=writable), search)

    @property
    def path(self) -> str:
        return self.database.path

    @property
    def is_encrypted_whole(self) -> bool:
        """Whether nothing in the file tells what is on the medium, without the key."""
        return self.database.is_sealed

    def versions(self) -> list[Version]:
        """All versions in the file, by number."""
        return [Version(self, found) for found in control.versions(self.database)]

    def version(self, wanted: str | None = None) -> Version:
        """One version by number, label, UUID or the beginning of it, or ``latest`` (also None).

        Raises :class:`~sqlimage.errors.NotFoundError`, naming what there is.
        """
        return Version(self, control.find_version(self.database, wanted))

    def driver(self, version: str | None = None) -> ImageDriver:
        """A version as a block device."""
        return self.version(version).driver()

    def edit(
        self,
        version: str | None = None,
        *,
        into: str | os.PathLike[str] | None = None,
        label: str | None = None,
        user: str | None = None,
        message: str | None = None,
        cache: Cache = SMALL,
    ) -> Edit:
        """Begin an edit on top of a sealed version (the latest, unless told otherwise), in this file or, with ``into``,
        in a new child file::

            with image.edit(user="joe", message="new drivers") as edit:
                edit.driver.write(0, b"...")

        commits at the end of the block, and discards where it raised. ``user`` and ``message`` go to the audit trail.
        Raises :class:`~sqlimage.errors.RefusedError` where another process is writing to the file.
        """
        from sqlimage.image.edits import begin

        begun = begin(
            self.path,
            version,
            into=into,
            label=label,
            user=user,
            message=message,
            search=self.search,
            cache=cache,
        )
        begun.let_go = self._let_go
        return begun

    def resume(
        self,
        version: str | None = None,
        *,
        user: str | None = None,
        message: str | None = None,
        cache: Cache = SMALL,
    ) -> Edit:
        """Go on with an edit that was left open: the only one there is, unless told which.

        Raises :class:`~sqlimage.errors.NotFoundError` where there is none.
        """
        from sqlimage.image.edits import resume

        resumed = resume(self.path, version, user=user, message=message, search=self.search, cache=cache)
        resumed.let_go = self._let_go
        return resumed

    def unfinished(self) -> list[Unfinished]:
        """The edits of this file that were neither committed nor discarded."""
        from sqlimage.image.edits import unfinished

        return unfinished(self.database)

    @contextmanager
    def _let_go(self) -> Iterator[None]:
        with self.database.let_go():
            yield
        self._attached = None

    def audit(self) -> list[AuditRow]:
        """The audit trail, oldest row first."""
        return audit.read_all(self.database)

    def attach_parents(self, version: Control) -> None:
        """Have the effective views show a version's whole lineage, where it leads into other files.

        Raises :class:`~sqlimage.errors.NotFoundError` where a parent is nowhere to be found.
        """
        if version.parent_uuid is not None and self._attached != version.uuid:
            attach_parents(self.database, version, self.search)
            self._attached = version.uuid

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Version:
    """One version of an image."""

    def __init__(self, image: Image, found: Control) -> None:
        self.image = image
        self.control = found

    @property
    def number(self) -> int:
        return self.control.version

    def volumes(self) -> list[Volume]:
        """The volumes of the medium, by number."""
        return control.volumes(self.image.database, self.control)

    def volume(self, number: int) -> Volume:
        """One volume. Raises :class:`~sqlimage.errors.NotFoundError`, naming the numbers there are."""
        known = self.volumes()
        for volume in known:
            if volume.number == number:
                return volume
        numbers = ", ".join(str(volume.number) for volume in known)
        raise NotFoundError(f"{self.image.path}: no volume {number}", hint=f"there are {numbers}")

    def driver(self, *, cache: Cache = SMALL) -> ImageDriver:
        """This version as a block device; close it when done. ``cache`` bounds the decoded chunks it keeps."""
        if self.control.state == "open" and (writer := holder(self.image.path)):
            raise RefusedError(
                f"{self.image.path}: version {self.number} is being written by {writer}",
                hint="read a sealed version, or wait",
            )
        return ImageDriver(
            self.image.database,
            self.control,
            search=self.image.search,
            cache=cache,
        )

    def allocated(self) -> Runs:
        """The bitmap stream: allocated runs, in clusters of the medium."""
        self.image.attach_parents(self.control)
        return bitmap.read(self.image.database, self.number, self.control.total_clusters)

    def properties(self) -> dict[str, Value]:
        """The properties that hold for this version, by name."""
        self.image.attach_parents(self.control)
        return properties.read_all(self.image.database, self.number)

    def signers(self) -> list[bytes]:
        """The public keys under which there are signatures of this version, newest first. Whether those hold is for
        :func:`~sqlimage.versions.trust.verify_signatures` to say."""
        return [row.public_key for row in signature.of(self.image.database, self.control.uuid)]

    def set_property(self, name: str, value: Value) -> None:
        """Set a property, or hide an inherited one with None; audited, in one transaction.

        The image MUST be open for writing.
        """
        database = self.image.database
        properties.check(name, value)
        properties.check_not_reserved(name)
        with database.transaction():
            before = self.properties().get(name)
            properties.put(database, self.number, name, value)
            shown = {"name": name, "before": _told(before), "after": _told(value)}
            audit.append(database, "property", tool=TOOL, version=self.number, detail=shown)

    def unset_property(self, name: str) -> None:
        """Remove a property; audited. Raises :class:`~sqlimage.errors.NotFoundError` where it is not set."""
        if name not in self.properties():
            raise NotFoundError(f"{self.image.path}: no property {name!r} on version {self.number}")
        database = self.image.database
        with database.transaction():
            before = self.properties().get(name)
            database.run("DELETE FROM property WHERE version = ? AND name = ?", [self.number, name])
            if name in self.properties():
                properties.put(database, self.number, name, None)  # an ancestor has it too: hide that
            shown = {"name": name, "before": _told(before), "after": None}
            audit.append(database, "property", tool=TOOL, version=self.number, detail=shown)

    def find_file(self, path: str) -> FileRow:
        """The file of a path: ``/a/b`` on the only volume, ``/0/a/b`` where the medium has several.

        Raises :class:`~sqlimage.errors.NotFoundError`.
        """
        volume, inside = self.split_path(path)
        self.image.attach_parents(self.control)
        found = files.find(self.image.database, self.number, volume, inside)
        if found is None:
            found = self._in_other_case(volume, inside)
        if found is None:
            raise NotFoundError(f"{self.image.path}: no {path!r} in version {self.number}", hint=self._why(volume))
        return found

    def extents(self, path: str) -> list[Extent]:
        """Where the bytes of a file, a stream or a directory lie: runs in clusters of the medium, in its order.

        Raises :class:`~sqlimage.errors.NotFoundError`.
        """
        return files.extents_of(self.image.database, self.number, self.find_file(path))

    def _in_other_case(self, volume: int, path: str) -> FileRow | None:
        """The one file whose path differs in case only, as the systems that use FAT and NTFS would find it."""
        wanted = path.casefold()
        every = files.below(self.image.database, self.number, volume, "/")
        alike = [row for row in every if len(row.path) == len(path) and row.path.casefold() == wanted]
        return alike[0] if len(alike) == 1 else None

    def below(self, path: str) -> Iterator[FileRow]:
        """Every file below a directory, by path."""
        volume, inside = self.split_path(path)
        self.image.attach_parents(self.control)
        return files.below(self.image.database, self.number, volume, inside)

    def split_path(self, path: str) -> tuple[int, str]:
        """Volume number and path on it. A medium with one volume needs no number."""
        return split_path(self.image.path, [volume.number for volume in self.volumes()], path)

    @contextmanager
    def file_system(self, volume: int) -> Iterator[FileSystem]:
        """The file system of one volume, read out of the image.

        Raises :class:`~sqlimage.errors.UsageError` where the volume was captured raw.
        """
        # Here, since most commands read no file system: without the readers they start in half the time.
        from sqlimage.filesystem.probe import open_file_system

        row = self.volume(volume)
        driver = self.driver()
        try:
            start = row.offset_clusters * self.control.bytes_per_cluster
            try:
                found = open_file_system(Window(driver, start, row.length_bytes))
            except InconsistentVolume as problem:
                raise FormatError(f"{self.image.path}: volume {volume}: {problem}") from None
            if found is None:
                raise UsageError(f"{self.image.path}: volume {volume} holds no file system that is known")
            yield found
        finally:
            driver.close()

    @contextmanager
    def content(self, path: str) -> Iterator[Content]:
        """The bytes of one file or stream, by path. Raises :class:`~sqlimage.errors.NotFoundError` and
        :class:`~sqlimage.errors.UsageError` for a directory."""
        row = self.find_file(path)
        if row.kind == "directory":
            raise UsageError(f"{path}: is a directory")
        with self.file_system(row.volume) as file_system:
            yield open_row(file_system, row)

    def _why(self, volume: int) -> str:
        row = self.volume(volume)
        if row.raw_reason:
            how = "raw" if row.captured_as == "raw" else "by blocks"
            return f"volume {volume} was captured {how} ({row.raw_reason}), so it has no files"
        return "`sqlimage ls` shows what there is"


def split_path(image: str, numbers: list[int], path: str) -> tuple[int, str]:
    """Volume number and path on it; ``numbers`` are those there are.

    Raises :class:`~sqlimage.errors.NotFoundError` where the path does not say which volume, or names none.
    """
    clean = "/" + "/".join(part for part in path.split("/") if part)
    if len(numbers) == 1:
        return numbers[0], clean
    first, _, rest = clean[1:].partition("/")
    if first in map(str, numbers):
        return int(first), "/" + rest
    if first.isdecimal():
        raise NotFoundError(f"{image}: no volume {first}", hint=f"there are {_slashed(numbers)}")
    raise NotFoundError(
        f"{image}: {path!r} does not say which volume", hint=f"begin it with one of {_slashed(numbers)}"
    )


def open_row(file_system: FileSystem, row: FileRow) -> Content:
    """The content that a row of ``file`` names."""
    if row.record is None:
        raise NotFoundError(f"{row.path}: has no record on its volume")
    return file_system.open(row.record, row.stream or "")


def _told(value: Value) -> object:
    return f"{len(value)} bytes" if isinstance(value, bytes) else value


def _slashed(numbers: list[int]) -> str:
    return ", ".join(f"/{number}/" for number in numbers)
