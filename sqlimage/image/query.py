"""SQL over one image: read-only, with the content of files as a function, and nothing else of the machine in reach."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import apsw

from sqlimage.errors import NotFoundError, RefusedError, UsageError
from sqlimage.filesystem.contract import FileSystem
from sqlimage.image.attach import attach_parents
from sqlimage.image.image import Version, open_row
from sqlimage.streams import files
from sqlimage.streams.translation import Row, translated

MOST_CONTENT_BYTES = 64 << 20
"""The largest file ``content()`` gives in one value."""
_MOST_VALUE_BYTES = MOST_CONTENT_BYTES + (16 << 20)

_VIEWS = re.compile("effective|owner|lineage", re.IGNORECASE)
"""What a statement names that looks beyond one version."""
_MAP_VIEW = "effective_cluster_map"

_ALLOWED = frozenset(
    {
        apsw.SQLITE_SELECT,
        apsw.SQLITE_READ,
        apsw.SQLITE_FUNCTION,
        apsw.SQLITE_RECURSIVE,
    }
)
_ALLOWED_PRAGMAS = frozenset(
    {
        *("table_info", "table_xinfo", "table_list", "index_list", "index_info", "function_list"),
        *("user_version", "application_id", "encoding", "page_size", "page_count", "freelist_count"),
        *("integrity_check", "quick_check", "compile_options"),
    }
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The columns and rows of a query; rows come as they are found."""

    columns: tuple[str, ...]
    rows: Iterator[Row]


class Query:
    """Runs statements on a version's image. Use as a context manager.

    ``content(path)`` is the bytes of a file of this version, ``content(volume, path)`` where a medium has several
    volumes; NULL where there is none, or more than 64 MiB. The tables and views are
    those of ``schema/FORMAT.md``.
    """

    def __init__(self, version: Version) -> None:
        self._version = version
        self._database = version.image.database.reader()
        try:
            self._database.unseal()
        except BaseException:
            self._database.close()
            raise
        self.notes: list[str] = []
        """What whoever asks should know: the views show only this file where a parent is not to be found."""
        self._stack = ExitStack()
        self._volumes: dict[int, FileSystem] = {}
        connection = self._database.connection
        connection.limit(apsw.SQLITE_LIMIT_LENGTH, _MOST_VALUE_BYTES)
        connection.create_scalar_function("content", self._content, -1)
        connection.authorizer = _authorize

    def run(self, sql: str, parameters: tuple[object, ...] = ()) -> Answer:
        """One statement that reads. Raises :class:`~sqlimage.errors.RefusedError` for one that would write and
        :class:`~sqlimage.errors.UsageError` for one that is not SQL or asks for what is not there."""
        self._attach(sql)
        rows = self._run(sql, parameters)
        columns = next(rows)
        return Answer(tuple(str(name) for name in columns), rows)

    def _attach(self, sql: str) -> None:
        """Have the views show ancestors in other files, as far as a statement asks for them."""
        if self._version.control.parent_uuid is None or not _VIEWS.search(sql):
            return
        self._database.connection.authorizer = None
        try:
            attach_parents(
                self._database, self._version.control, self._version.image.search, with_map=_MAP_VIEW in sql.lower()
            )
        except NotFoundError as problem:
            self.notes.append(f"the views show this file alone: {problem.message}")
        finally:
            self._database.connection.authorizer = _authorize

    def _run(self, sql: str, parameters: tuple[object, ...]) -> Iterator[Row]:
        """The column names, then the rows."""
        with translated(self._database.path):
            try:
                cursor = self._database.connection.cursor()
                described: list[tuple[str, ...]] = []

                def remember(cursor: apsw.Cursor, _sql: str, _bindings: object) -> bool:
                    if described:
                        raise UsageError("one statement at a time", hint="leave out what follows the semicolon")
                    described.append(tuple(column[0] for column in cursor.description) if cursor.is_readonly else ())
                    return True

                cursor.exec_trace = remember
                cursor.execute(sql, parameters or None, can_cache=False)
                yield described[0] if described else ()
                yield from cursor
            except apsw.AuthError:
                raise RefusedError("only statements that read are allowed here") from None
            except apsw.ReadOnlyError:
                raise RefusedError("only statements that read are allowed here") from None
            except (apsw.SQLError, apsw.BindingsError) as problem:
                hint = '`sqlimage sql IMAGE "SELECT name, sql FROM sqlite_schema"` shows the tables'
                raise UsageError(f"SQL: {problem}", hint=hint) from None

    def _content(self, *arguments: apsw.SQLiteValue) -> apsw.SQLiteValue:
        """``content(path)`` on the first volume that has the path, or ``content(volume, path)``; NULL for what is no
        file or has more than ``MOST_CONTENT_BYTES``."""
        path = arguments[-1]
        if not isinstance(path, str) or len(arguments) not in (1, 2):
            return None
        numbers = [volume.number for volume in self._version.volumes()]
        for number in numbers if len(arguments) == 1 else [n for n in numbers if n == arguments[0]]:
            row = files.find(self._version.image.database, self._version.number, number, path)
            if row is None or row.kind == "directory" or (row.size_bytes or 0) > MOST_CONTENT_BYTES:
                continue
            if number not in self._volumes:
                self._volumes[number] = self._stack.enter_context(self._version.file_system(number))
            content = open_row(self._volumes[number], row)
            return content.read(0, min(content.size_bytes, MOST_CONTENT_BYTES))
        return None

    def close(self) -> None:
        self._stack.close()
        self._database.close()

    def __enter__(self) -> Query:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _authorize(action: int, first: str | None, _second: str | None, _database: str | None, _by: str | None) -> int:
    if action in _ALLOWED or (action == apsw.SQLITE_PRAGMA and first in _ALLOWED_PRAGMAS):
        return apsw.SQLITE_OK
    return apsw.SQLITE_DENY
