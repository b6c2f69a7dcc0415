"""A new image while it is being written: a file without a name, so that an interruption leaves nothing behind.

On Linux the file is made with ``O_TMPFILE`` and gets its name by one ``linkat`` when it is whole and synced. SQLite
opens files by name only, so for the one call that opens the database, its ``open`` is answered with the descriptor.
Where the directory's file system knows no nameless files, a hidden name beside the target stands in; what a killed
capture left under such a name is removed by the next capture to the same target.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import threading

import apsw

from sqlimage.errors import DeviceError, NotFoundError, RefusedError
from sqlimage.streams import schema
from sqlimage.streams.database import translated

_OPEN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int)
_hook_lock = threading.Lock()


class NewFile:
    """An image in the making. Use as a context manager: what is not published is gone when it ends.

    Raises :class:`~sqlimage.errors.RefusedError` where the target exists already and
    :class:`~sqlimage.errors.DeviceError` where its directory cannot be written.
    """

    def __init__(self, target: str | os.PathLike[str]) -> None:
        self.target = os.path.abspath(target)
        directory, name = os.path.split(self.target)
        if os.path.lexists(self.target):
            raise RefusedError(f"{self.target}: exists already", hint="choose another name or remove it")
        self._stand_in = os.path.join(directory, f".{name}.capturing")
        self._named = False
        try:
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundError(f"{directory}: no such directory") from None
        except OSError as problem:
            raise DeviceError(f"{directory}: {problem.strerror}") from None
        try:
            self._fd = self._make(directory)
            self.connection = self._connect()
        except OSError as problem:
            os.close(self._directory)
            raise DeviceError(f"{self.target}: cannot be made ({problem.strerror})") from None

    def _make(self, directory: str) -> int:
        try:
            return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except OSError:
            self._named = True
        fd = os.open(self._stand_in, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        os.ftruncate(fd, 0)
        return fd

    def _connect(self) -> apsw.Connection:
        with translated(self.target), _hook_lock:
            connection = _connection_to(self._stand_in, self._fd)
            # In this order: a journal must never be looked for beside a file that has no name.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(f"PRAGMA page_size = {schema.PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA cache_size = -16384")
            connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {schema.FORMAT_VERSION}")
            connection.execute(schema.schema_sql())
        return connection

    @property
    def size_bytes(self) -> int:
        """What has been written so far."""
        return os.fstat(self._fd).st_size

    def publish(self) -> None:
        """Close the database, make it durable, and give it its name, all at once.

        Raises :class:`~sqlimage.errors.RefusedError` where the name was taken in the meantime.
        """
        with translated(self.target):
            self.connection.close()
        try:
            os.fsync(self._fd)
            if self._named:
                os.link(self._stand_in, self.target)
            else:
                name = os.path.basename(self.target)
                os.link(f"/proc/self/fd/{self._fd}", name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            os.fsync(self._directory)
        except FileExistsError:
            raise RefusedError(f"{self.target}: exists already", hint="choose another name or remove it") from None
        except OSError as problem:
            raise DeviceError(f"{self.target}: cannot be written ({problem.strerror})") from None

    def close(self) -> None:
        """Let go of everything; without :meth:`publish` nothing of it stays."""
        self.connection.close(True)
        if self._fd >= 0:
            if self._named:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._stand_in)
            os.close(self._fd)
            os.close(self._directory)
            self._fd = -1

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _UnixVfs(apsw.VFS):
    """The way to SQLite's table of system calls; it opens nothing itself."""

    def __init__(self) -> None:
        super().__init__("sqlimage-open", "unix")


def _connection_to(stand_in: str, fd: int) -> apsw.Connection:
    """A connection whose database file is ``fd``, whatever lies under the name ``stand_in``."""
    vfs = _UnixVfs()
    original = vfs.xGetSystemCall("open")
    if original is None:
        raise DeviceError("SQLite was built without its table of system calls")
    really_open = _OPEN(original)
    wanted = os.fsencode(stand_in)

    def answer(path: bytes, flags: int, mode: int) -> int:
        return os.dup(fd) if path == wanted else int(really_open(path, flags, mode))

    hook = _OPEN(answer)
    vfs.xSetSystemCall("open", ctypes.cast(hook, ctypes.c_void_p).value or 0)
    try:
        return apsw.Connection(stand_in, vfs="unix")
    finally:
        vfs.xSetSystemCall("open", original)
        vfs.unregister()
