"""Files out of an image: a tree of names that nobody vouches for, written below one directory and nowhere else."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime

from sqlimage.errors import (
    DeviceError,
    FormatError,
    InconsistentVolume,
    NotFoundError,
    RefusedError,
    SqlimageError,
    UsageError,
)
from sqlimage.filesystem.contract import WITH_MODES, Content, FileSystem, read_all
from sqlimage.image.image import Version, open_row
from sqlimage.journey.take_back import take_back
from sqlimage.streams.files import FileRow

_ZERO_BLOCK = bytes(1 << 20)
_MOST_NAME_BYTES = 255
_MOST_TARGET_BYTES = 4095
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
"""What FAT and others say to a symbolic link."""
_LARGEST_FILE = 4 << 40
"""A sparse file can claim any size; writing out the holes of a larger one would take hours."""
_DEEPEST = 1000
"""Directories in one another; the path of more is longer than what programs can name."""
_MOST_OPEN = 100
"""Directories of a path that are kept open, for what comes next is near."""


@dataclass(slots=True)
class ExtractReport:
    """What came out; the lists give the path in the image and why."""

    destination: str
    files: int = 0
    directories: int = 0
    symbolic_links: int = 0
    total_bytes: int = 0
    renamed: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    """Files that could not be read right; they are not there."""


def extract(
    version: Version, path: str, destination: str | os.PathLike[str], *, progress: Callable[[str], None] | None = None
) -> ExtractReport:
    """Copy a file, or a directory with all below it, out of a version to ``destination``, which must not exist yet.

    A directory becomes the directory ``destination``; ``/`` takes everything. Alternate streams become files named
    ``file:stream``. Symbolic links of ext and ISO 9660 are made, when all else is there, so that nothing is written
    through one, with the target that the image has. A link of NTFS comes out as a plain file with the bytes its own
    record holds (mostly none). Permission bits are kept, set-user-ID and the like are not. A damaged file is told and
    left out, the others come; so is what lies in more than 1,000 directories. Metadata files are left out; names that
    would lead elsewhere are changed and told. Nothing is written outside ``destination``, and where the work cannot go
    on, what was written is removed. Raises :class:`~sqlimage.errors.SqlimageError` subclasses.
    """
    target = os.path.abspath(destination)
    if os.path.lexists(target):
        raise RefusedError(f"{target}: exists already", hint="name a place that does not exist yet")
    report = ExtractReport(target)
    try:
        _extract(version, path, target, report, progress)
    except BaseException:
        take_back(target)
        raise
    return report


def _extract(
    version: Version, path: str, target: str, report: ExtractReport, progress: Callable[[str], None] | None
) -> None:
    numbers = [volume.number for volume in version.volumes()]
    if path.strip("/") == "" and len(numbers) > 1:
        _make_directory(target)
        for number in numbers:
            row = FileRow(number, "/", "directory", None, None, None, None, None, None)
            _extract_tree(version, row, os.path.join(target, str(number)), report, progress)
        return
    volume, inside = version.split_path(path)
    if inside == "/":
        row = FileRow(volume, "/", "directory", None, None, None, None, None, None)
        if not any(True for _ in version.below(path)) and version.volume(volume).raw_reason:
            version.find_file(path)  # says that the volume was captured raw
    else:
        row = version.find_file(path)
    if row.kind == "directory":
        _extract_tree(version, row, target, report, progress)
    else:
        parent = os.path.dirname(target)
        if not os.path.isdir(parent):
            raise NotFoundError(f"{parent}: no such directory")
        if row.kind == "special":
            raise UsageError(f"{path}: is neither a file nor a directory")
        with version.file_system(row.volume) as file_system, _directory(parent) as at:
            is_posix = file_system.facts.file_system in WITH_MODES
            if row.kind == "symlink" and is_posix:
                _link(file_system, row, at, os.path.basename(target), report)
            else:
                _copy(file_system, row, at, os.path.basename(target), report, is_posix)


def _extract_tree(
    version: Version, root: FileRow, target: str, report: ExtractReport, progress: Callable[[str], None] | None
) -> None:
    _make_directory(target)
    report.directories += 1
    if version.volume(root.volume).captured_as != "files":
        report.skipped.append((f"/{root.volume}/", "its files are not read"))
        return
    cut = 0 if root.path == "/" else len(root.path)
    prefix = f"/{root.volume}{root.path}" if len(version.volumes()) > 1 else root.path
    with version.file_system(root.volume) as file_system, _directory(target) as top:
        is_posix = file_system.facts.file_system in WITH_MODES
        tree = _Tree(top, report)
        links: list[tuple[FileRow, str, str]] = []
        try:
            for row in version.below(prefix):
                if progress:
                    progress(row.path)
                if row.kind in ("metadata", "special"):
                    if row.kind == "special":
                        report.skipped.append((row.path, "neither a file nor a directory"))
                    continue
                parent, _, name = row.path[cut + 1 :].rpartition("/")
                if row.kind == "symlink" and is_posix:
                    links.append((row, parent, name))
                    continue
                if row.kind == "symlink":
                    report.links.append((row.path, "extracted as the plain file its record holds"))
                at = tree.enter(parent)
                if at is None:
                    report.skipped.append((row.path, "its directory is not in the image"))
                    continue
                if row.kind == "directory":
                    if parent.count("/") >= _DEEPEST:
                        report.skipped.append((row.path, f"lies deeper than {_DEEPEST} directories"))
                        continue
                    tree.make(row.path[cut + 1 :], at, name, row)
                else:
                    try:
                        _copy(file_system, row, at, tree.free_name(at, parent, name, row.path), report, is_posix)
                    except FormatError as damage:
                        report.damaged.append((row.path, damage.message))
            for row, parent, name in links:
                at = tree.enter(parent)
                if at is None:
                    report.skipped.append((row.path, "its directory is not in the image"))
                    continue
                try:
                    _link(file_system, row, at, tree.free_name(at, parent, name, row.path), report)
                except FormatError as damage:
                    report.damaged.append((row.path, damage.message))
            tree.finish(is_posix)
            _finish(top, root, is_posix)
        finally:
            tree.close()


class _Tree:
    """The directories made so far. Each is opened relative to its parent, never through a link."""

    def __init__(self, top: int, report: ExtractReport) -> None:
        self._top = top
        self._report = report
        self._names: dict[str, str | None] = {"": ""}
        """Directory in the image to directory below the destination; None where it is skipped."""
        self._taken: dict[str, set[str]] = {}
        self._open: list[tuple[str, int]] = []
        """The directory that was entered last, after the first ones that lead to it."""
        self._made: list[tuple[str, FileRow]] = []

    def enter(self, directory: str) -> int | None:
        """A descriptor of a directory that was made, or None where it was skipped."""
        if directory == "":
            return self._top
        place = self._names.get(directory)
        if place is None:
            return None
        while self._open and not f"{place}/".startswith(f"{self._open[-1][0]}/"):
            os.close(self._open.pop()[1])
        at, reached = (self._open[-1][1], self._open[-1][0]) if self._open else (self._top, "")
        for part in place[len(reached) :].strip("/").split("/") if place != reached else ():
            try:
                at = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            except OSError as problem:
                raise DeviceError(f"{place}: {problem.strerror}") from None
            reached = f"{reached}/{part}" if reached else part
            if len(self._open) > _MOST_OPEN:
                os.close(self._open.pop()[1])
            self._open.append((reached, at))
        return at

    def make(self, path: str, at: int, name: str, row: FileRow) -> None:
        parent, shown = path.rpartition("/")[0], row.path
        safe = self.free_name(at, parent, name, shown)
        try:
            os.mkdir(safe, 0o755, dir_fd=at)
        except OSError as problem:
            raise DeviceError(f"{shown}: cannot be made ({problem.strerror})") from None
        place = self._names[parent]
        self._names[path] = f"{place}/{safe}" if place else safe
        self._made.append((path, row))
        self._report.directories += 1

    def finish(self, is_posix: bool) -> None:
        """Give the directories their own permissions and times, when nothing more is written into them."""
        for path, row in reversed(self._made):  # what is in a directory before the directory
            if (at := self.enter(path)) is not None:
                _finish(at, row, is_posix)

    def free_name(self, at: int, parent: str, name: str, shown: str) -> str:
        """A name that is safe and not taken in its directory; told where it differs from the image's."""
        safe = safe_name(name)
        taken = self._taken.setdefault(parent, set())
        number = 1
        wanted = safe
        while safe in taken:
            number += 1
            safe = f"{wanted[:200]}~{number}"
        taken.add(safe)
        if safe != name:
            self._report.renamed.append((shown, safe))
        return safe

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop()[1])


def safe_name(name: str) -> str:
    """The name as one component of a path: never empty, ``.``, ``..``, with a slash or NUL, or over 255 bytes."""
    safe = name.replace("/", "\u2215").replace("\0", "\u2400")
    if safe in ("", ".", ".."):
        safe = safe.replace(".", "\u2024") or "_"
    encoded = os.fsencode(safe.encode("utf-8", "replace").decode("utf-8"))
    if len(encoded) > _MOST_NAME_BYTES:
        encoded = encoded[: _MOST_NAME_BYTES - 8]
    return encoded.decode("utf-8", "ignore")


def _link(file_system: FileSystem, row: FileRow, at: int, name: str, report: ExtractReport) -> None:
    """One symbolic link in a directory."""
    content = _opened(file_system, row)
    try:
        target = content.read(0, _MOST_TARGET_BYTES + 1)
    except InconsistentVolume as problem:
        raise FormatError(f"{row.path}: {problem}") from None
    if not target or b"\0" in target or len(target) > _MOST_TARGET_BYTES:
        report.skipped.append((row.path, "a symbolic link to what cannot be a path"))
        return
    try:
        os.symlink(target, os.fsencode(name), dir_fd=at)
    except OSError as problem:
        if problem.errno in _NO_LINKS:
            report.skipped.append((row.path, "the destination holds no symbolic links"))
            return
        raise DeviceError(f"{row.path}: cannot be made ({problem.strerror})") from None
    report.symbolic_links += 1


def _copy(file_system: FileSystem, row: FileRow, at: int, name: str, report: ExtractReport, is_posix: bool) -> None:
    """One file's bytes into a new file of a directory; zeros become holes."""
    content = _opened(file_system, row)
    if content.size_bytes > _LARGEST_FILE:
        report.skipped.append((row.path, f"claims {content.size_bytes} bytes, more than is extracted"))
        return
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=at)
    except OSError as problem:
        raise DeviceError(f"{row.path}: cannot be made ({problem.strerror})") from None
    try:
        offset = 0
        for block in read_all(content):
            if block != _ZERO_BLOCK:
                _write_all(fd, block, offset)
            offset += len(block)
        os.ftruncate(fd, offset)
        _finish(fd, row, is_posix)
    except InconsistentVolume as problem:
        with suppress(OSError):
            os.unlink(name, dir_fd=at)
        raise FormatError(f"{row.path}: {problem}") from None
    except SqlimageError:
        with suppress(OSError):
            os.unlink(name, dir_fd=at)
        raise
    except OSError as problem:
        with suppress(OSError):
            os.unlink(name, dir_fd=at)
        raise DeviceError(f"{row.path}: cannot be written ({problem.strerror})") from None
    finally:
        os.close(fd)
    report.files += 1
    report.total_bytes += content.size_bytes


def _opened(file_system: FileSystem, row: FileRow) -> Content:
    """The content of a row, which may name a record that the volume does not have."""
    try:
        return open_row(file_system, row)
    except (InconsistentVolume, NotFoundError) as problem:
        raise FormatError(f"{row.path}: {problem.message}") from None


def _finish(fd: int, row: FileRow, is_posix: bool) -> None:
    """The permissions and the time of a file or a directory, as far as the destination can hold them."""
    if is_posix and row.attributes:
        with suppress(OSError):
            os.fchmod(fd, row.attributes & 0o777)
    if row.modified_at:
        with suppress(OSError, OverflowError, ValueError):  # what is no date, or none that a file can have
            seconds = datetime.fromisoformat(row.modified_at).timestamp()
            os.utime(fd, (seconds, seconds))


def _write_all(fd: int, block: bytes, offset: int) -> None:
    done = 0
    while done < len(block):
        done += os.pwrite(fd, block[done:], offset + done)


def _make_directory(path: str) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileNotFoundError:
        raise NotFoundError(f"{os.path.dirname(path)}: no such directory") from None
    except OSError as problem:
        raise DeviceError(f"{path}: cannot be made ({problem.strerror})") from None


@contextmanager
def _directory(path: str) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as problem:
        raise DeviceError(f"{path}: {problem.strerror}") from None
    try:
        yield fd
    finally:
        os.close(fd)
