"""How an image file is opened, checked before it is trusted, and transacted."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import apsw

from sqlimage.errors import DeviceError, FormatError, NotFoundError, RefusedError, SqlimageError
from sqlimage.streams import schema

Row = tuple[Any, ...]

_LIMITS = {
    apsw.SQLITE_LIMIT_LENGTH: 256 << 20,
    apsw.SQLITE_LIMIT_SQL_LENGTH: 1 << 20,
    apsw.SQLITE_LIMIT_COLUMN: 200,
    apsw.SQLITE_LIMIT_EXPR_DEPTH: 100,
    apsw.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    apsw.SQLITE_LIMIT_VDBE_OP: 100_000,
    apsw.SQLITE_LIMIT_ATTACHED: 10,
    apsw.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1000,
    apsw.SQLITE_LIMIT_TRIGGER_DEPTH: 10,
}
_BUSY_MS = 5000
_STEPS_BETWEEN_LOOKS = 200_000
_MOST_VERSIONS, _DEEPEST_LINEAGE = 10_000, 1000


class Database:
    """One connection to one image file. Not to be shared between threads: each takes its own :meth:`reader`."""

    def __init__(self, path: str, connection: apsw.Connection, *, writable: bool) -> None:
        self.path = path
        self.connection = connection
        self.writable = writable

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, writable: bool = False) -> Database:
        """Open an image and check that it is one: identity, version, features, and the schema object by object.

        Read-only never writes, not even to take back what an interrupted change left: that is refused with a hint.
        Raises :class:`~sqlimage.errors.NotFoundError`, :class:`~sqlimage.errors.FormatError`,
        :class:`~sqlimage.errors.RefusedError`.
        """
        path = os.path.abspath(path)
        _check_header(path)
        if os.path.exists(path + "-wal"):
            raise RefusedError(
                f"{path}-wal: an image at rest has no write-ahead log beside it",
                hint="if it belongs to the image, checkpoint it with the sqlite3 shell; else move it away",
            )
        if writable and not os.access(path, os.W_OK):
            raise DeviceError(
                f"{path}: cannot be written", hint="check its permissions, or copy it from read-only media"
            )
        mode = "rw" if writable else "ro"
        with translated(path):
            connection = apsw.Connection(
                f"file:{quote(os.fsencode(path))}?mode={mode}",
                flags=apsw.SQLITE_OPEN_URI | (apsw.SQLITE_OPEN_READWRITE if writable else apsw.SQLITE_OPEN_READONLY),
            )
            try:
                _harden(connection)
                if writable:
                    connection.execute("PRAGMA synchronous = FULL")
                    connection.execute("PRAGMA foreign_keys = OFF")
                _check_identity(path, connection)
            except BaseException:
                connection.close()
                raise
        return cls(path, connection, writable=writable)

    def reader(self) -> Database:
        """Another read-only connection to the same file, for another thread. The file was checked already."""
        with translated(self.path):
            connection = apsw.Connection(
                f"file:{quote(os.fsencode(self.path))}?mode=ro", flags=apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_READONLY
            )
            _harden(connection)
        return Database(self.path, connection, writable=False)

    def query(self, sql: str, parameters: Sequence[object] = ()) -> Iterator[Row]:
        """Rows of one statement, as they come."""
        with translated(self.path):
            yield from self.connection.execute(sql, parameters)

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """All rows of one statement."""
        with translated(self.path):
            return self.connection.execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Sequence[object] = ()) -> Row | None:
        """The first row of one statement, or None."""
        with translated(self.path):
            return self.connection.execute(sql, parameters).fetchone()

    def run(self, sql: str, parameters: Sequence[object] = ()) -> None:
        """A statement without an answer."""
        with translated(self.path):
            self.connection.execute(sql, parameters)

    def run_many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        with translated(self.path):
            self.connection.executemany(sql, rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is written or nothing; when it returns, it survives a power cut."""
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        self.connection.close()


def recover(path: str) -> bool:
    """Take back what an interrupted change left beside the image; True where there was something.

    SQLite's own rollback restores the bytes that stood before the change began.
    """
    path = os.path.abspath(path)
    if not os.path.exists(path + "-journal"):
        return False
    database = Database.open(path, writable=True)
    try:
        database.run("BEGIN EXCLUSIVE")
        with contextlib.suppress(FileNotFoundError):
            # Still there, it is not hot: nothing was written to the image before the interruption. While the lock is
            # held it can be nobody else's.
            os.unlink(path + "-journal")
        database.run("COMMIT")
    finally:
        database.close()
    return True


def typed(path: str, table: str, types: Sequence[Any], row: Row) -> Row:
    """The row, if its values are of the types the format gives them.

    A table can be declared STRICT after values of other types were put into it, so that is no protection.
    """
    for value, expected in zip(row, types, strict=True):
        if not isinstance(value, expected):
            raise FormatError(f"{path}: {table} holds a {type(value).__name__} where the format has another type")
    return row


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn what SQLite raises into the errors of this library, naming the file."""
    try:
        yield
    except SqlimageError:
        raise
    except (apsw.BusyError, apsw.LockedError):
        raise RefusedError(f"{path}: another process is writing to it", hint="try again when it has finished") from None
    except (apsw.CorruptError, apsw.NotADBError) as problem:
        raise FormatError(f"{path}: the database is damaged ({problem})") from None
    except apsw.ReadOnlyError as problem:
        if getattr(problem, "extendedresult", 0) in (apsw.SQLITE_READONLY_ROLLBACK, apsw.SQLITE_READONLY_RECOVERY):
            raise _pending(path) from None
        raise RefusedError(f"{path}: opened for reading, it cannot be changed") from None
    except apsw.CantOpenError:
        if os.path.exists(path + "-journal"):
            raise _pending(path) from None
        raise DeviceError(f"{path}: cannot be opened", hint="check its permissions") from None
    except apsw.FullError:
        raise DeviceError(f"{path}: no space left on the device", hint="nothing was changed; make room") from None
    except apsw.IOError as problem:
        raise DeviceError(f"{path}: {problem}") from None
    except apsw.TooBigError as problem:
        raise FormatError(f"{path}: a value is larger than the format allows ({problem})") from None
    except apsw.AuthError as problem:
        raise RefusedError(f"{path}: {problem}") from None
    except (UnicodeDecodeError, OverflowError, apsw.MismatchError) as problem:
        raise FormatError(f"{path}: holds a value that the format does not allow ({problem})") from None


def _pending(path: str) -> RefusedError:
    return RefusedError(
        f"{path}: a change was interrupted, and {os.path.basename(path)}-journal still has to be taken back",
        hint="run `sqlimage verify --recover` on it",
    )


def _check_header(path: str) -> None:
    """Read the first 100 bytes, so that what is no image is told plainly and never handed to SQLite."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                what = "a directory" if stat.S_ISDIR(mode) else "no regular file"
                raise FormatError(f"{path}: is {what}, not an image")
            head = os.pread(fd, 100, 0)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such image") from None
    except OSError as problem:
        if isinstance(problem, SqlimageError):
            raise
        raise DeviceError(f"{path}: cannot be read ({problem.strerror})") from None
    if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
        raise FormatError(f"{path}: not an sqlimage file (no SQLite header)", hint="make one with `sqlimage capture`")
    if int.from_bytes(head[68:72], "big") != schema.APPLICATION_ID:
        raise FormatError(f"{path}: a SQLite database, but not an sqlimage file (application id)")


def _harden(connection: apsw.Connection) -> None:
    """Nothing inside the file may run code, reach another file, or make a statement grow without bounds."""
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, 0)
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 0)
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DDL, 0)
    for limit, value in _LIMITS.items():
        connection.limit(limit, value)
    connection.set_busy_timeout(_BUSY_MS)
    # A statement that runs for long gives Python a moment now and then, so that an interruption is heard.
    connection.set_progress_handler(lambda: False, _STEPS_BETWEEN_LOOKS)
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA mmap_size = 0")


def _check_identity(path: str, connection: apsw.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]  # type: ignore[index]
    if not 1 <= version <= schema.FORMAT_VERSION:
        raise FormatError(
            f"{path}: format version {version}; this reader knows 1 to {schema.FORMAT_VERSION}",
            hint="use a newer sqlimage",
        )
    found, expected = schema.read_objects(connection), schema.expected_objects()
    if found != expected:
        odd = sorted({name for _, name, _ in found ^ expected})
        raise FormatError(f"{path}: the schema is not that of an image (differs in: {', '.join(odd[:5])})")
    oldest = connection.execute("SELECT value FROM format WHERE name = 'oldest_reader'").fetchone()
    if oldest is None or not isinstance(oldest[0], int) or oldest[0] > schema.FORMAT_VERSION:
        raise FormatError(
            f"{path}: is for readers of format {oldest[0] if oldest else '?'} on; this reader knows 1 to "
            f"{schema.FORMAT_VERSION}",
            hint="use a newer sqlimage",
        )
    for name, required in connection.execute("SELECT name, required FROM feature"):
        if required and name not in schema.KNOWN_FEATURES:
            raise FormatError(f"{path}: needs the feature {name!r}, which this reader does not know")
    if connection.execute("SELECT count(*) FROM fixup").fetchone() != (0,):
        raise FormatError(f"{path}: holds fix-ups outside a transaction; it was not written to its end")
    _check_lineages(path, connection)


def _check_lineages(path: str, connection: apsw.Connection) -> None:
    """No version may be its own ancestor, nor a lineage be deeper than any tool makes: views walk along them."""
    parents = dict(connection.execute("SELECT uuid, parent_uuid FROM control LIMIT ?", [_MOST_VERSIONS + 1]))
    if len(parents) > _MOST_VERSIONS:
        raise FormatError(f"{path}: holds more than {_MOST_VERSIONS} versions")
    depth: dict[object, int] = {None: 0}
    for uuid in parents:
        line = []
        while uuid not in depth and uuid in parents:
            line.append(uuid)
            depth[uuid] = -1  # on the way: met again, it is a circle
            uuid = parents[uuid]
        if depth.get(uuid, 0) < 0:
            raise FormatError(f"{path}: a version is its own ancestor")
        for steps, above in enumerate(reversed(line), depth.get(uuid, 0) + 1):
            depth[above] = steps
    if max(depth.values()) > _DEEPEST_LINEAGE:
        raise FormatError(f"{path}: a lineage is deeper than {_DEEPEST_LINEAGE} versions")
