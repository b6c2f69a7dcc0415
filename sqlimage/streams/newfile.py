"""A new image while it is being written: a database in a file that has no name yet.

SQLite opens files by name only, so for the one call that opens the database, its ``open`` is answered with the
descriptor of the nameless file.
"""

from __future__ import annotations

import ctypes
import os
import threading

import apsw

from sqlimage.errors import DeviceError
from sqlimage.nameless import NamelessFile
from sqlimage.streams import schema
from sqlimage.streams.database import Database
from sqlimage.streams.keys import Keys
from sqlimage.streams.sealed import IN_MEMORY
from sqlimage.streams.translation import translated
from sqlimage.tool import TOOL

_OPEN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int)
_hook_lock = threading.Lock()


class NewImage:
    """An image in the making. Use as a context manager: what is not published is gone when it ends.

    Raises what :class:`~sqlimage.nameless.NamelessFile` raises.
    """

    def __init__(self, target: str | os.PathLike[str], page_bytes: int = schema.PAGE_BYTES) -> None:
        self._file = NamelessFile(target)
        self._page_bytes = page_bytes
        self._database: Database | None = None
        try:
            self.connection = self._connect()
        except BaseException:
            self._file.close()
            raise

    @property
    def target(self) -> str:
        return self._file.target

    @property
    def size_bytes(self) -> int:
        """What has been written so far."""
        return self._file.size_bytes

    def _connect(self) -> apsw.Connection:
        with translated(self.target), _hook_lock:
            connection = _connection_to(self._file.stand_in, self._file.fd)
            # In this order: a journal must never be looked for beside a file that has no name.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(f"PRAGMA page_size = {self._page_bytes}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA cache_size = -4096")
            connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {schema.FORMAT_VERSION}")
            connection.execute(schema.schema_sql()[0])
        return connection

    def begin_copy(self) -> Database:
        """The database, within the transaction in which all of it is written: every row that another image has."""
        database = self._database = Database(self.target, self.connection, writable=True)
        database.run("BEGIN")
        return database

    def begin(self, keys: Keys | None = None) -> Database:
        """The database, within the transaction in which all of it is written. With ``keys`` it may hold what is
        encrypted."""
        database = self._database = Database(self.target, self.connection, writable=True)
        if keys and keys.is_whole:
            database.run(IN_MEMORY)
        elif keys:
            database.keep_fixups_in_memory()
        database.run("BEGIN")
        for name, value in (("oldest_reader", schema.OLDEST_READER), ("writer", TOOL)):
            database.run("INSERT INTO format (name, value) VALUES (?, ?)", [name, value])
        if keys:
            database.encrypt_with(keys)
        return database

    def start_writeback(self) -> None:
        """Let the kernel write what it has, without waiting for it."""
        self._file.start_writeback()

    def sync_meanwhile(self) -> None:
        """Make durable what was written out so far, beside whatever the caller goes on with."""
        self._file.sync_meanwhile()

    def make_indexes(self) -> None:
        """Make the indexes, once the rows are there; the pages of rows that were there meanwhile are given back."""
        with translated(self.target):
            # By their full names: tables in memory may have the same.
            self.connection.execute(schema.schema_sql()[1].replace("CREATE INDEX ", "CREATE INDEX main."))
            self.connection.execute("PRAGMA incremental_vacuum").fetchall()

    def publish(self) -> None:
        """Commit, close the database, make it durable, and give it its name, all at once."""
        with translated(self.target):
            if self._database:
                self._database.seal()
            self.connection.execute("COMMIT")
            self.connection.close()
        self._file.publish()

    def close(self) -> None:
        """Let go of everything; without :meth:`publish` nothing of it stays."""
        self.connection.close(True)
        self._file.close()

    def __enter__(self) -> NewImage:
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
