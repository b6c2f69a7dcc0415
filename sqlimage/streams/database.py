"""How an image file is opened, checked before it is trusted, and transacted."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import apsw

from sqlimage.errors import DeviceError, FormatError, RefusedError, SqlimageError
from sqlimage.streams import schema
from sqlimage.streams.header import check_beside, check_header, readable_alone
from sqlimage.streams.writer import WriterLock

Row = tuple[Any, ...]

_LIMITS = {
    apsw.SQLITE_LIMIT_LENGTH: 16 << 20,  # the largest content has 8 MiB; views, tables and texts each hold copies
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
_ROWS_AT_A_TIME = 64
_LOG_PAGES = 16_384
"""How long the log may grow (64 MiB) before it is brought into the image."""
_MOST_VERSIONS, _DEEPEST_LINEAGE = 10_000, 1000


class Database:
    """One connection to one image file. Not to be shared between threads: each takes its own :meth:`reader`."""

    def __init__(self, path: str, connection: apsw.Connection, *, writable: bool, mode: str = "ro") -> None:
        self.path = path
        self.mode = mode
        """How it is opened to be read, as SQLite's URIs have it."""
        self.connection = connection
        self.writable = writable
        self.is_log_wanted = False
        """Whether the first transaction goes over to a log; until then not a byte changes."""
        self._closed = False
        self._log_pages = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, writable: bool = False, leave_alone: bool = False) -> Database:
        """Open an image and check that it is one: identity, version, features, and the schema object by object.

        Read-only never writes, not even to take back what an interrupted change left: that is refused with a hint.
        ``leave_alone`` makes no file beside it either, where nobody has it open: for a short look at somebody else's.
        Raises :class:`~sqlimage.errors.NotFoundError`, :class:`~sqlimage.errors.FormatError`,
        :class:`~sqlimage.errors.RefusedError`.
        """
        path = os.path.realpath(path)  # what belongs to an image lies beside it, not beside links to it
        has_log = check_header(path)
        check_beside(path)
        if not has_log and os.path.exists(path + "-wal"):
            raise RefusedError(
                f"{path}-wal: does not belong to the image, which is at rest and has no write-ahead log",
                hint="move it away",
            )
        if writable and not os.access(path, os.W_OK):
            raise DeviceError(
                f"{path}: cannot be written", hint="check its permissions, or copy it from read-only media"
            )
        mode = "rw" if writable else "ro"
        is_at_rest = leave_alone and not os.path.exists(path + "-wal")
        if has_log and not writable and (is_at_rest or not os.access(os.path.dirname(path), os.W_OK)):
            mode += readable_alone(path)
        with translated(path):
            connection = _connect(path, mode)
            try:
                _check_identity(path, connection)
            except BaseException:
                connection.close()
                raise
        return cls(path, connection, writable=writable, mode="ro" if writable else mode)

    def use_log(self) -> None:
        """Write through a write-ahead log from now on: commits are short, and readers go on reading meanwhile."""
        with translated(self.path):
            try:
                mode = self.connection.execute("PRAGMA main.journal_mode = WAL").fetchone()
            except apsw.BusyError:
                raise RefusedError(
                    f"{self.path}: others are reading it just now", hint="try again when they have finished"
                ) from None
            if mode != ("wal",):
                raise DeviceError(
                    f"{self.path}: cannot be edited here (SQLite answered {mode!r})",
                    hint="edit it on a local disk; network file systems have no shared memory",
                )
            self.connection.set_wal_hook(self._log_grew)

    def _log_grew(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    @property
    def is_log_long(self) -> bool:
        """Whether the log should be brought into the image; commits do not do that by themselves."""
        return self._log_pages > _LOG_PAGES

    def shorten_log(self) -> None:
        """Bring the log into the image, beside commits and readers, by a connection of its own; from any thread."""
        with translated(self.path):
            connection = _connect(self.path, "rw")
            try:
                connection.execute("PRAGMA main.wal_checkpoint(PASSIVE)").fetchall()
            finally:
                connection.close()

    def end_log(self) -> bool:
        """Bring everything into the image file and remove the log; False where others are still reading, and the last
        writer to come will do it."""
        try:
            with translated(self.path):
                busy = self.connection.execute("PRAGMA main.wal_checkpoint(TRUNCATE)").fetchone()
                self.connection.set_busy_timeout(0)
                mode = self.connection.execute("PRAGMA main.journal_mode = DELETE").fetchone()
                return busy is not None and busy[0] == 0 and mode == ("delete",)
        except RefusedError:
            return False
        finally:
            self.connection.set_busy_timeout(_BUSY_MS)

    def reader(self) -> Database:
        """Another read-only connection to the same file, for another thread. The file was checked already."""
        with translated(self.path):
            return Database(self.path, _connect(self.path, self.mode), writable=False, mode=self.mode)

    @contextmanager
    def let_go(self) -> Iterator[None]:
        """Without a connection while the block runs, and with a fresh one after it: a connection that has read through
        a log keeps the log in place."""
        self.connection.close()
        try:
            yield
        finally:
            if not self._closed:
                with translated(self.path):
                    self.connection = _connect(self.path, "rw" if self.writable else self.mode)

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

    def insert(self, into: str, rows: Sequence[Sequence[object]], conflict: str = "") -> None:
        """``INSERT INTO into VALUES ... conflict`` for many rows, many to a statement: for small rows twice as fast as
        one by one."""
        if not rows:
            return
        width = len(rows[0])
        marks = f"({', '.join('?' * width)})"
        many = f"INSERT INTO {into} VALUES {', '.join([marks] * _ROWS_AT_A_TIME)} {conflict}"
        whole = len(rows) - len(rows) % _ROWS_AT_A_TIME
        with translated(self.path):
            for at in range(0, whole, _ROWS_AT_A_TIME):
                values = [value for row in rows[at : at + _ROWS_AT_A_TIME] for value in row]
                self.connection.execute(many, values)
            self.connection.executemany(f"INSERT INTO {into} VALUES {marks} {conflict}", rows[whole:])

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is written or nothing; when it returns, it survives a power cut."""
        if self.is_log_wanted:
            self.use_log()
            self.is_log_wanted = False
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        self._closed = True
        self.connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def recover(path: str) -> bool:
    """Bring an image to rest after an interruption; True where there was something to do.

    A change that was interrupted is taken back by SQLite's own rollback; a write-ahead log, which holds what was
    flushed, is brought into the image.
    """
    path = os.path.realpath(path)
    had_journal = os.path.exists(path + "-journal")
    if had_journal:
        database = Database.open(path, writable=True)
        try:
            database.run("BEGIN EXCLUSIVE")
            try:
                # Still there, it is not hot: nothing was written to the image before the interruption. While the lock
                # is held it can be nobody else's.
                os.unlink(path + "-journal")
            except FileNotFoundError:
                pass
            except OSError as problem:
                raise DeviceError(f"{path}-journal: cannot be removed ({problem.strerror})") from None
            database.run("COMMIT")
        finally:
            database.close()
    # Also where there was a journal: it may have been that of going over to a log, or back.
    if not check_header(path):
        return had_journal
    lock = WriterLock(path, "recovering it")
    try:
        database = Database.open(path, writable=True)
        try:
            database.end_log()
        finally:
            database.close()
    finally:
        lock.close()
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
        full = DeviceError(f"{path}: no space left on the device", hint="nothing was changed; make room")
        full.errno = errno.ENOSPC  # a guest is told by number
        raise full from None
    except apsw.IOError as problem:
        raise DeviceError(f"{path}: {problem}") from None
    except apsw.ConnectionClosedError:
        raise RefusedError(f"{path}: is closed already") from None
    except apsw.TooBigError as problem:
        raise FormatError(f"{path}: a value is larger than the format allows ({problem})") from None
    except apsw.AuthError as problem:
        raise RefusedError(f"{path}: {problem}") from None
    except (apsw.ConstraintError, apsw.SQLError) as problem:
        raise FormatError(f"{path}: holds what the format does not allow ({problem})") from None
    except (UnicodeDecodeError, OverflowError, apsw.MismatchError) as problem:
        raise FormatError(f"{path}: holds a value that the format does not allow ({problem})") from None


def _pending(path: str) -> RefusedError:
    return RefusedError(
        f"{path}: a change was interrupted, and {os.path.basename(path)}-journal still has to be taken back",
        hint="run `sqlimage verify --recover` on it",
    )


def _connect(path: str, mode: str) -> apsw.Connection:
    """A hardened connection; ``mode`` is ``rw`` or ``ro``, and what else the URI says."""
    flags = apsw.SQLITE_OPEN_READONLY if mode.startswith("ro") else apsw.SQLITE_OPEN_READWRITE
    connection = apsw.Connection(f"file:{quote(os.fsencode(path))}?mode={mode}", flags=apsw.SQLITE_OPEN_URI | flags)
    try:
        _harden(connection)
        if flags == apsw.SQLITE_OPEN_READWRITE:
            # EXTRA: the directory is synced too when the journal is gone, or a power cut could bring it back.
            connection.execute("PRAGMA synchronous = EXTRA")
    except BaseException:
        connection.close()
        raise
    return connection


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
