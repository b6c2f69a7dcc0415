"""Changes below a mounted volume whose names nobody vouches for.

A symbolic link in a volume can lead anywhere on this machine. So every directory is opened relative to the one above,
never through a link; ``..`` is no name; and nothing is written but into regular files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlimage.errors import DeviceError, NotFoundError, RefusedError, SqlimageError, UsageError

_BLOCK_BYTES = 1 << 20
_ZEROS = bytes(_BLOCK_BYTES)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(slots=True)
class ChangeReport:
    """What a change did."""

    files: int = 0
    directories: int = 0
    total_bytes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """What the volume cannot hold: its path and why."""


def parts_of(path: str) -> tuple[str, ...]:
    """The components of an absolute path in a volume; none for its root.

    Raises :class:`~sqlimage.errors.UsageError` for a path that is not absolute, or has ``..`` or NUL in it.
    """
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if not path.startswith("/") or ".." in parts or "\0" in path:
        raise UsageError(f"{path!r} is no path in a volume", hint="begin with / and leave out ..")
    return parts


class Inside:
    """The volume whose root directory is open as ``root_fd``, which stays the caller's."""

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd

    def kind(self, path: str) -> str | None:
        """``file``, ``directory``, ``symlink`` or ``special``; None where nothing has the path."""
        parts = parts_of(path)
        if not parts:
            return "directory"
        try:
            with self._directory(parts[:-1]) as at:
                mode = os.stat(parts[-1], dir_fd=at, follow_symlinks=False).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as problem:
            raise _told(path, problem) from None
        known = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
        return known.get(stat.S_IFMT(mode), "special")

    def write_file(self, source_fd: int, path: str, report: ChangeReport) -> None:
        """Make or replace a file with what can be read from a descriptor; zeros become holes. Of a regular file the
        modification time and the permissions come along."""
        parts = parts_of(path)
        if not parts:
            raise UsageError("/ is a directory")
        try:
            with self._directory(parts[:-1]) as at:
                fd = os.open(parts[-1], _NEW_FILE, 0o644, dir_fd=at)
                try:
                    if not stat.S_ISREG(os.fstat(fd).st_mode):
                        raise RefusedError(f"{path}: is no regular file", hint="remove it first")
                    report.total_bytes += _pour(source_fd, fd)
                    _take_over(source_fd, fd)
                finally:
                    os.close(fd)
        except OSError as problem:
            raise _told(path, problem) from None
        report.files += 1

    def write_link(self, target: str, path: str, report: ChangeReport) -> None:
        """Make or replace a symbolic link; told as skipped where the file system has none."""
        parts = parts_of(path)
        try:
            with self._directory(parts[:-1]) as at:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(parts[-1], dir_fd=at)
                os.symlink(target, parts[-1], dir_fd=at)
        except OSError as problem:
            if problem.errno in _NO_LINKS:
                report.skipped.append((path, "the volume holds no symbolic links"))
                return
            raise _told(path, problem) from None
        report.files += 1

    def make_directory(self, path: str, *, parents: bool = False, exist_ok: bool = False) -> int:
        """Make a directory, with those above it where ``parents``: how many were made."""
        parts, made = parts_of(path), 0
        for count in range(1 if parents else max(1, len(parts)), len(parts) + 1):
            try:
                with self._directory(parts[: count - 1]) as at:
                    os.mkdir(parts[count - 1], 0o755, dir_fd=at)
                made += 1
            except FileExistsError as problem:
                is_last = count == len(parts)
                if (is_last and not exist_ok) or self.kind("/" + "/".join(parts[:count])) != "directory":
                    raise _told(path, problem) from None
            except OSError as problem:
                raise _told(path, problem) from None
        return made

    def set_time(self, path: str, modified_ns: int) -> None:
        """Set a directory's modification time, where the file system lets us."""
        with contextlib.suppress(OSError), self._directory(parts_of(path)) as at:
            os.utime(at, ns=(modified_ns, modified_ns))

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, a link, an empty directory, or with ``recursive`` one with all below it."""
        parts = parts_of(path)
        if not parts:
            raise RefusedError("/ cannot be removed", hint="name what is below it")
        kind = self.kind(path)
        try:
            with self._directory(parts[:-1]) as at:
                if kind != "directory":
                    os.unlink(parts[-1], dir_fd=at)
                elif recursive:
                    shutil.rmtree(parts[-1], dir_fd=at)
                else:
                    os.rmdir(parts[-1], dir_fd=at)
        except RecursionError:
            raise RefusedError(f"{path}: is nested too deeply to be removed at once") from None
        except OSError as problem:
            raise _told(path, problem) from None

    def move(self, old: str, new: str) -> None:
        """Give a file or directory another path, which nothing may have yet."""
        before, after = parts_of(old), parts_of(new)
        if not before or not after:
            raise RefusedError("/ cannot be moved")
        if self.kind(new) is not None:
            raise RefusedError(f"{new}: exists already", hint="remove it first")
        try:
            with self._directory(before[:-1]) as here, self._directory(after[:-1]) as there:
                os.rename(before[-1], after[-1], src_dir_fd=here, dst_dir_fd=there)
        except OSError as problem:
            raise _told(old if self.kind(old) is None else new, problem) from None

    @contextlib.contextmanager
    def _directory(self, parts: tuple[str, ...]) -> Iterator[int]:
        at = os.open(".", _DIRECTORY, dir_fd=self._root_fd)
        try:
            for part in parts:
                below = os.open(part, _DIRECTORY, dir_fd=at)
                os.close(at)
                at = below
            yield at
        finally:
            os.close(at)


def _pour(source_fd: int, target_fd: int) -> int:
    length = 0
    while block := os.read(source_fd, _BLOCK_BYTES):
        if block != _ZEROS[: len(block)]:
            done = 0
            while done < len(block):
                done += os.pwrite(target_fd, memoryview(block)[done:], length + done)
        length += len(block)
    os.ftruncate(target_fd, length)
    return length


def _take_over(source_fd: int, target_fd: int) -> None:
    source = os.fstat(source_fd)
    if stat.S_ISREG(source.st_mode):
        with contextlib.suppress(OSError):  # FAT has no permissions, and not every time
            os.fchmod(target_fd, source.st_mode & 0o777)
        with contextlib.suppress(OSError):
            os.utime(target_fd, ns=(source.st_mtime_ns, source.st_mtime_ns))


def _told(path: str, problem: OSError) -> SqlimageError:
    """What the operating system said about a path in the volume."""
    if isinstance(problem, SqlimageError):
        return problem
    if problem.errno == errno.ENOENT:
        return NotFoundError(f"{path}: there is no such file or directory in the volume")
    if problem.errno in (errno.ENOTDIR, errno.ELOOP):
        return UsageError(f"{path}: leads through a file or a symbolic link", hint="no link in a volume is followed")
    if problem.errno == errno.EISDIR:
        return UsageError(f"{path}: is a directory")
    if problem.errno in (errno.EEXIST, errno.ENOTEMPTY):
        what = "exists already" if problem.errno == errno.EEXIST else "is a directory with something in it"
        return RefusedError(f"{path}: {what}", hint="" if problem.errno == errno.EEXIST else "remove it with all below")
    told = DeviceError(f"{path}: {problem.strerror}")
    told.errno = problem.errno
    return told
