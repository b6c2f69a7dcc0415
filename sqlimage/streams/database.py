"""How an image file is opened, checked before it is trusted, and transacted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import apsw

from sqlimage.codec.vault import Vault
from sqlimage.errors import DeviceError, FormatError, RefusedError
from sqlimage.streams import schema, unlocking
from sqlimage.streams.connecting import BUSY_MS, check_identity, connect
from sqlimage.streams.header import check_beside, check_header, readable_alone
from sqlimage.streams.keys import INSERT_SLOT, Keys, new_identity
from sqlimage.streams.sealed import IN_MEMORY, SealedStreams
from sqlimage.streams.translation import Row, translated
from sqlimage.streams.writer import WriterLock

_ROWS_AT_A_TIME = 64
_SEGMENTS = "SELECT count(*) FILTER (WHERE state <> 'here'), count(*) FROM main.segment"
_LOG_PAGES = 16_384
"""How long the log may grow (64 MiB) before it is brought into the image."""


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
        self.sealed: SealedStreams | None = None
        """Of an image that is encrypted as a whole, once it is unlocked."""
        self._vault: Vault | None = None
        self._is_sealed: bool | None = None
        self._closed = False
        self._log_pages = 0

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        writable: bool = False,
        leave_alone: bool = False,
        structure_only: bool = False,
        partial: bool = False,
    ) -> Database:
        """Open an image and check that it is one: identity, version, features, and the schema object by object.

        Read-only never writes, not even to take back what an interrupted change left: that is refused with a hint.
        ``leave_alone`` makes no file beside it either, where nobody has it open: for a short look at somebody else's.
        An image that is encrypted as a whole is unlocked, unless its ``structure_only`` is asked for: control without
        texts, data, map, bitmap. One of which segments are missing is only written to by whoever says that ``partial``
        is what it expects.
        Raises :class:`~sqlimage.errors.NotFoundError`, :class:`~sqlimage.errors.FormatError`,
        :class:`~sqlimage.errors.RefusedError`, :class:`~sqlimage.errors.LockedError`.
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
            connection = connect(path, mode)
            try:
                check_identity(path, connection)
            except BaseException:
                connection.close()
                raise
        database = cls(path, connection, writable=writable, mode="ro" if writable else mode)
        try:
            if writable and not partial:
                database.check_whole()
            if not structure_only:
                database.unseal()
        except BaseException:
            connection.close()
            raise
        return database

    def check_whole(self) -> None:
        """Raise :class:`~sqlimage.errors.RefusedError` where segments of the image have not arrived."""
        missing, of = self.row(_SEGMENTS) or (0, 0)
        if missing:
            raise RefusedError(
                f"{self.path}: is not whole, {missing} of its {of} segments have not arrived",
                hint="go on with `sqlimage pull --resume`",
            )

    @property
    def key_id(self) -> str | None:
        """Which data key the image is encrypted with, in parts at least; None where nothing is."""
        with translated(self.path):
            return unlocking.key_id(self.path, self.connection)

    @property
    def is_sealed(self) -> bool:
        """Whether the image is encrypted as a whole."""
        if self._is_sealed is None:
            self._is_sealed = self.row("SELECT 1 FROM feature WHERE name = ?", [schema.SEALED_STREAMS]) is not None
        return self._is_sealed

    def vault(self) -> Vault:
        """The data key of the image.

        Raises :class:`~sqlimage.errors.LockedError` where none of the keys that were given opens it, and
        :class:`~sqlimage.errors.FormatError` where it is not the key of an image of that kind.
        """
        if self._vault is None:
            with translated(self.path):
                vault = unlocking.unlock(self.path, self.connection)
            if vault.is_whole != self.is_sealed:
                is_not = "not encrypted" if vault.is_whole else "encrypted"
                raise FormatError(f"{self.path}: says that it is {is_not} as a whole, and its key says otherwise")
            self._vault = vault
        return self._vault

    def vault_or_none(self) -> Vault | None:
        """The data key, or None where nothing in the image is encrypted."""
        return None if self.key_id is None else self.vault()

    def keys(self) -> Keys | None:
        """What a child file is made with: the same key, and the same ways to it; None where nothing is encrypted.

        Raises :class:`~sqlimage.errors.LockedError`, for without the key nothing can be added.
        """
        vault = self.vault_or_none()
        if vault is None:
            return None
        with translated(self.path):
            return Keys(vault, unlocking.read_slots(self.path, self.connection), self.is_sealed)

    def encrypt_with(self, keys: Keys) -> None:
        """Let a file that is being made hold what is encrypted; inside the transaction that makes it."""
        name = new_identity()
        self._vault = keys.vault
        for feature in (schema.ENCRYPTION, schema.SEALED_STREAMS)[: 1 + keys.is_whole]:
            self.run("INSERT INTO feature (name, required) VALUES (?, 1)", [feature])
        for told in ((unlocking.KEY_ID, keys.vault.key_id), (unlocking.IDENTITY, name)):
            self.run("INSERT INTO format (name, value) VALUES (?, ?)", told)
        for slot in keys.slots:
            self.run(INSERT_SLOT, [slot.id, slot.kind, slot.parameters, slot.wrapped_key])
        self._is_sealed = keys.is_whole
        if keys.is_whole:
            with translated(self.path):
                self.sealed = SealedStreams(self.path, self.connection, keys.vault, name, is_new=True)

    def keep_fixups_in_memory(self) -> None:
        """Have the fix-up stream where the file never sees it, for it holds what is encrypted everywhere else. To be
        called outside a transaction, and before anything temporary is made."""
        if self.sealed is None:
            self.run(IN_MEMORY)
            self.run(schema.temporary_sql(("fixup",))[0])

    def unseal(self) -> None:
        """Have the sealed streams of this connection in memory, where the image has some."""
        if self.is_sealed:
            vault = self.vault()
            with translated(self.path):
                name = unlocking.identity(self.path, self.connection)
                self.connection.execute(IN_MEMORY)
                self.connection.execute("BEGIN")  # all that is read is of one time
                try:
                    self.sealed = SealedStreams(self.path, self.connection, vault, name)
                    self.sealed.load()
                finally:
                    self.connection.execute("COMMIT")

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
            connection = connect(self.path, "rw")
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
            self.connection.set_busy_timeout(BUSY_MS)

    def reader(self) -> Database:
        """Another read-only connection to the same file, for another thread. The file was checked already; of one that
        is encrypted as a whole it shows the structure, until :meth:`unseal`."""
        with translated(self.path):
            return Database(self.path, connect(self.path, self.mode), writable=False, mode=self.mode)

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
                    self.connection = connect(self.path, "rw" if self.writable else self.mode)
                if self.sealed:
                    self.unseal()

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
            if self.sealed:
                with translated(self.path):
                    self.sealed.refresh()
            yield
            self.seal()
            self.run("COMMIT")
        except BaseException:
            self.roll_back()
            if self.sealed:
                self.sealed.roll_back()
            raise

    def roll_back(self) -> None:
        """Take back what an unfinished transaction has written."""
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")
        with suppress(apsw.Error):  # where the disk was full, SQLite takes back what it wrote with the next read
            self.connection.execute("SELECT count(*) FROM main.sqlite_schema").fetchall()

    def check_maps(self, versions: Sequence[int] | None = None) -> None:
        """See that the maps of versions, of all unless told which, are those that were sealed; of an image that is
        encrypted as a whole.

        Raises :class:`~sqlimage.errors.DamagedError`.
        """
        with translated(self.path):
            if versions is None:
                versions = [row[0] for row in self.connection.execute("SELECT version FROM main.control")]
            sealed = self.sealed
            if sealed is None:
                name = unlocking.identity(self.path, self.connection)
                sealed = SealedStreams(self.path, self.connection, self.vault(), name, tables=False)
            sealed.check_maps(versions)

    def seal(self) -> None:
        """Seal what the transaction changed in the streams that only holders of the key read."""
        if self.sealed:
            with translated(self.path):
                self.sealed.store()

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
        database = Database.open(path, writable=True, structure_only=True, partial=True)
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
        database = Database.open(path, writable=True, structure_only=True, partial=True)
        try:
            database.end_log()
        finally:
            database.close()
    finally:
        lock.close()
    return True
