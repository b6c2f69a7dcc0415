"""What was fetched of images elsewhere, kept for the next time: bounded, in a file of the user's that may be lost."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence

import apsw

from sqlimage.transfer.places import cache_directory
from sqlimage.units import GIB, parse_size

SIZE_VARIABLE = "SQLIMAGE_CACHE_SIZE"
"""How much is kept, with a unit; 4 GiB where it is not set."""
_USUAL_BYTES = 4 * GIB
_NAME = "contents-1.db"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS kept (
  image TEXT NOT NULL, data INTEGER NOT NULL, size INTEGER NOT NULL, turn INTEGER NOT NULL, bytes BLOB NOT NULL,
  PRIMARY KEY (image, data));
CREATE INDEX IF NOT EXISTS kept_by_turn ON kept (turn, size);
CREATE TABLE IF NOT EXISTS total (size INTEGER NOT NULL, turn INTEGER NOT NULL);
INSERT INTO total SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM total);
"""
_BUSY_MS = 2000


class Kept:
    """Stored bytes of contents, by image and number, oldest first to go; safe from any thread and process. Where the
    disk is full or the file is damaged it holds nothing and nobody is told: everything in it can be had again."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        if limit_bytes is None:
            told = os.environ.get(SIZE_VARIABLE)
            limit_bytes = parse_size(told) if told else _USUAL_BYTES
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._connection: apsw.Connection | None = None
        if limit_bytes > 0:
            self._connection = self._open(os.path.join(cache_directory(), _NAME))

    def _open(self, path: str) -> apsw.Connection | None:
        for again in (True, False):
            with contextlib.suppress(apsw.Error):
                connection = apsw.Connection(path)
                try:
                    connection.set_busy_timeout(_BUSY_MS)
                    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.execute("PRAGMA synchronous = OFF")
                    connection.execute(_SCHEMA)
                    return connection
                except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError):
                    connection.close(True)
                    if again:
                        for suffix in ("", "-wal", "-shm"):
                            with contextlib.suppress(OSError):
                                os.unlink(path + suffix)
        return None

    def get(self, image: str, data: int) -> bytes | None:
        """What is kept of a content."""
        row = self._ask("SELECT bytes FROM kept WHERE image = ? AND data = ?", image, data)
        return row[0] if row and isinstance(row[0], bytes) else None

    def has(self, image: str, data: int) -> bool:
        return self._ask("SELECT 1 FROM kept WHERE image = ? AND data = ?", image, data) is not None

    def held_bytes(self) -> int:
        """How much is kept."""
        row = self._ask("SELECT size FROM total")
        return row[0] if row and isinstance(row[0], int) else 0

    def _ask(self, sql: str, *values: object) -> tuple[object, ...] | None:
        with self._lock, contextlib.suppress(apsw.Error):
            if self._connection is not None:
                return self._connection.execute(sql, values).fetchone()
        return None

    def put(self, image: str, contents: Sequence[tuple[int, bytes]]) -> None:
        """Keep contents; the oldest go where there is no room."""
        with self._lock, contextlib.suppress(apsw.Error):
            if self._connection is None:
                return
            with self._connection as connection:
                connection.execute("UPDATE total SET turn = turn + 1")
                for data, content in contents:
                    values = (image, data, len(content), content)
                    connection.execute(
                        "INSERT OR IGNORE INTO kept (image, data, size, turn, bytes) "
                        "SELECT ?1, ?2, ?3, turn, ?4 FROM total",
                        values,
                    )
                    if connection.changes():
                        connection.execute("UPDATE total SET size = size + ?", [len(content)])
                self._make_room(connection)

    def _make_room(self, connection: apsw.Connection) -> None:
        excess = connection.execute("SELECT size - ? FROM total", [self.limit_bytes]).fetchone()
        if excess is None or excess[0] <= 0:
            return
        gone, last = 0, 0
        for turn, size in connection.execute("SELECT turn, size FROM kept ORDER BY turn"):
            if gone >= excess[0] + self.limit_bytes // 8:  # some room at once, not a little each time
                break
            gone, last = gone + size, turn
        connection.execute("DELETE FROM kept WHERE turn <= ?", [last])
        connection.execute("UPDATE total SET size = (SELECT coalesce(sum(size), 0) FROM kept)")
        connection.execute("PRAGMA incremental_vacuum(65536)").fetchall()

    def drop(self, image: str, data: int | None = None) -> None:
        """Forget one content, or all of an image."""
        with self._lock, contextlib.suppress(apsw.Error):
            if self._connection is not None:
                with self._connection as connection:
                    if data is None:
                        connection.execute("DELETE FROM kept WHERE image = ?", [image])
                    else:
                        connection.execute("DELETE FROM kept WHERE image = ? AND data = ?", [image, data])
                    connection.execute("UPDATE total SET size = (SELECT coalesce(sum(size), 0) FROM kept)")

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
