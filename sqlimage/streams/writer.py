"""Who writes to an image: one process at a time, known by name."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import socket
import stat

from sqlimage.errors import DeviceError, RefusedError
from sqlimage.units import now

SUFFIX = "-edit"
RESERVED = (SUFFIX, "-wal", "-shm", "-journal")
"""Endings of what lies beside an image while it is written."""
_MARK = "sqlimage-writer"
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_MOST_BYTES = 4096


class WriterLock:
    """Held for as long as an edit is worked on. The file beside the image tells who holds it; a process that was killed
    leaves the file but not the lock, and the next one takes both over.

    The image itself is never opened for this: closing it would let go of SQLite's own locks on it.

    Raises :class:`~sqlimage.errors.RefusedError`, naming the holder, where another process has it.
    """

    def __init__(self, image: str, doing: str) -> None:
        self._path = image + SUFFIX
        self._fd: int | None = self._take(image)
        told = {
            _MARK: 1,
            "pid": os.getpid(),
            "user": _user(),
            "host": socket.gethostname(),
            "since": now(),
            "doing": doing,
        }
        with contextlib.suppress(OSError):  # a courtesy to the next one; the lock holds without it
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, json.dumps(told).encode(), 0)

    def _take(self, image: str) -> int:
        while True:
            try:
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
            except OSError as problem:
                raise DeviceError(f"{self._path}: cannot be made ({problem.strerror})") from None
            if not _is_ours(fd):
                os.close(fd)
                raise RefusedError(f"{self._path}: is in the way, and is no lock of sqlimage's", hint="move it away")
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_nlink:  # else the holder before us has just removed it
                    return fd
                os.close(fd)
            except OSError:
                holder = _told(os.pread(fd, _MOST_BYTES, 0))
                os.close(fd)
                raise RefusedError(
                    f"{image}: is being written by {holder}", hint="try again when that has finished"
                ) from None

    def close(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                here, there = os.fstat(self._fd), os.lstat(self._path)
                if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                    os.unlink(self._path)
            os.close(self._fd)
            self._fd = None


def holder(image: str) -> str | None:
    """Who is writing to an image now, in words; None where nobody is."""
    try:
        fd = os.open(image + SUFFIX, os.O_RDONLY | _FLAGS)
    except OSError:
        return None
    try:
        if not _is_ours(fd):
            return None
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        return _told(os.pread(fd, _MOST_BYTES, 0))
    finally:
        os.close(fd)


def _is_ours(fd: int) -> bool:
    """Whether a file is a lock, held or left behind, be it by a power cut that left anything in it: a small regular
    file that is no text of somebody's own."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
        return False
    content = os.pread(fd, _MOST_BYTES, 0)
    if not content or content[2:].startswith(_MARK.encode()):
        return True
    try:
        return not content.decode().replace("\n", "").replace("\t", "").isprintable()
    except UnicodeDecodeError:
        return True


def _told(text: bytes) -> str:
    """What the file says of its holder, in words; it may be half-written or anybody's."""
    try:
        told = json.loads(text)
        return f"{told['user']} on {told['host']} (process {int(told['pid'])}, {told['doing']}, since {told['since']})"
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return "another process"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
