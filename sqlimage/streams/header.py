"""The first bytes of an image file, looked at before SQLite is."""

from __future__ import annotations

import os
import stat

import apsw

from sqlimage.errors import DeviceError, FormatError, NotFoundError, RefusedError, SqlimageError
from sqlimage.streams import schema


def readable_alone(path: str) -> str:
    """How an image that says it has a log is read where nothing can be written beside it."""
    if os.path.exists(path + "-wal") and os.path.getsize(path + "-wal"):
        raise RefusedError(
            f"{path}: an edit was interrupted, and its log cannot be read from a directory that cannot be written",
            hint="copy the image and its -wal to another place and run `sqlimage verify --recover` on it",
        )
    return "&immutable=1"


_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
"""What the rollback journals of SQLite begin with, and end with where another file's name stands at the end."""


def check_beside(path: str) -> None:
    """Refuse what no program puts beside an image, before SQLite opens it.

    A pipe would be waited for without end. The journal of a transaction over several databases names a file, which is
    removed when the journal has been taken back, whatever it is; images are never written together with another one.
    Raises :class:`~sqlimage.errors.RefusedError`.
    """
    for suffix in ("-journal", "-wal", "-shm"):
        try:
            mode = os.lstat(path + suffix).st_mode
        except OSError:
            continue
        if not stat.S_ISREG(mode):
            raise RefusedError(f"{path}{suffix}: is in the way, and is no regular file", hint="move it away")
    try:
        fd = os.open(path + "-journal", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        size = os.fstat(fd).st_size
        tail = os.pread(fd, len(_JOURNAL_MAGIC), max(0, size - len(_JOURNAL_MAGIC)))
    except OSError as problem:
        raise DeviceError(f"{path}-journal: cannot be read ({problem.strerror})") from None
    finally:
        os.close(fd)
    if tail == _JOURNAL_MAGIC and size > len(_JOURNAL_MAGIC):
        raise RefusedError(
            f"{path}-journal: names another file, which taking it back would remove; no journal of an image does",
            hint="move it away",
        )


def _head(path: str) -> bytes:
    """The first 100 bytes, through SQLite's own file layer: another descriptor, when closed, would let go of the locks
    that other connections of this process have on the same file."""
    try:
        path.encode()
    except UnicodeEncodeError:  # a name that layer does not take; where it is not in use yet there are no locks to lose
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, 100, 0)
        finally:
            os.close(fd)
    file = apsw.VFSFile("", path, [apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READONLY, 0])
    try:
        return file.xRead(100, 0)
    finally:
        file.xClose()


def check_header(path: str) -> bool:
    """Look at the beginning of a file, so that what is no image is told plainly; whether it has a write-ahead log."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "no regular file"
            raise FormatError(f"{path}: is {what}, not an image")
        if not os.access(path, os.R_OK):
            raise DeviceError(f"{path}: cannot be read", hint="check its permissions")
        head = _head(path) if os.path.getsize(path) >= 100 else b""
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such image") from None
    except (OSError, apsw.Error) as problem:
        if isinstance(problem, SqlimageError):
            raise
        raise DeviceError(f"{path}: cannot be read ({getattr(problem, 'strerror', problem)})") from None
    if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
        raise FormatError(f"{path}: not an sqlimage file (no SQLite header)", hint="make one with `sqlimage capture`")
    if int.from_bytes(head[68:72], "big") != schema.APPLICATION_ID:
        raise FormatError(f"{path}: a SQLite database, but not an sqlimage file (application id)")
    return head[18:20] == b"\2\2"
