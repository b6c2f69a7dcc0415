"""The shelf: many images under directories, and which of them have the properties that are asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import apsw

from sqlimage.errors import NotFoundError, SqlimageError, UsageError
from sqlimage.image.image import Image, Version
from sqlimage.streams.properties import Value

_COLUMNS = (
    "path", "version", "uuid", "label", "state", "created_at", "medium_bytes", "file_system", "volume_label", "serial",
    "volumes", "source",
)  # fmt: skip
_TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | \[[^\]]*\] | `[^`]*`      # strings and quoted names stay as they are
      | (?P<dotted>[A-Za-z_][\w-]*+(?:\.[A-Za-z0-9_][\w-]*+)++)(?!\s*\()   # os.version
      | (?P<word>[A-Za-z_]\w*+)(?!\s*\()                                # site, label, AND
      | [A-Za-z_]\w* | \d+(?:\.\d+)? | .""",
    re.VERBOSE | re.DOTALL,
)
_NOT_PROPERTIES = frozenset(word.lower() for word in (*_COLUMNS, *apsw.keywords, "true", "false"))
_MOST_WHERE = 10_000


@dataclass(frozen=True, slots=True)
class Found:
    """A version of an image whose properties match."""

    path: str
    version: int
    uuid: str
    label: str | None
    created_at: str
    medium_bytes: int
    properties: dict[str, Value]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image file that could not be asked."""

    path: str
    why: str


def find(directories: Sequence[str | os.PathLike[str]], where: str) -> Iterator[Found | Unreadable]:
    """Every version of every ``*.sqlimage`` below the directories for which the SQL expression ``where`` is true.

    A name in it is a property (``os.version = '12'``; absent ones are NULL); ``property('name')`` reaches those that
    are words of SQL or hold a dash. The columns ``path, version, uuid, label, state, created_at, medium_bytes,
    file_system, volume_label, serial, volumes, source`` are those of the version (the volume's: of its first volume).
    Raises :class:`~sqlimage.errors.UsageError` for an expression that is not one.
    """
    shelf = _Shelf(where)
    for directory in directories:
        for path in _image_files(os.fspath(directory)):
            try:
                with Image.open(path) as image:
                    for version in image.versions():
                        found = shelf.match(version)
                        if found:
                            yield found
            except SqlimageError as problem:
                yield Unreadable(path, problem.message)


class _Shelf:
    """The expression, compiled once over an empty database that holds nothing it could reach."""

    def __init__(self, where: str) -> None:
        if len(where) > _MOST_WHERE:
            raise UsageError(f"the expression has {len(where)} characters; {_MOST_WHERE} are allowed")
        self._properties: dict[str, Value] = {}
        self._connection = apsw.Connection(":memory:")
        self._connection.create_scalar_function("property", self._property, 1)
        self._connection.authorizer = _authorize
        self._connection.limit(apsw.SQLITE_LIMIT_LENGTH, 16 << 20)
        columns = ", ".join(f"? AS {name}" for name in _COLUMNS)
        self._sql = f"SELECT ({_with_properties(where)}) IS TRUE FROM (SELECT {columns})"
        self._ask([None] * len(_COLUMNS))

    def match(self, version: Version) -> Found | None:
        control, volumes = version.control, version.volumes()
        self._properties = version.properties()
        first = volumes[0] if volumes else None
        values: list[Value] = [
            version.image.path, control.version, control.uuid, control.label, control.state, control.created_at,
            control.medium_bytes, first.file_system if first else None, first.label if first else None,
            first.serial if first else None, len(volumes), control.source,
        ]  # fmt: skip
        if not self._ask(values):
            return None
        return Found(
            version.image.path,
            control.version,
            control.uuid,
            control.label,
            control.created_at,
            control.medium_bytes,
            self._properties,
        )

    def _ask(self, values: Sequence[Value]) -> bool:
        try:
            row = self._connection.execute(self._sql, values).fetchone()
        except apsw.AuthError:
            raise UsageError("--where: only an expression over properties is allowed here") from None
        except (apsw.SQLError, apsw.BindingsError, apsw.TooBigError) as problem:
            raise UsageError(f"--where: {problem}", hint="write an SQL expression, as \"os.name = 'Debian'\"") from None
        return bool(row and row[0])

    def _property(self, *arguments: apsw.SQLiteValue) -> apsw.SQLiteValue:
        (name,) = arguments
        return self._properties.get(name) if isinstance(name, str) else None


def _with_properties(where: str) -> str:
    """The expression with each name that is neither a column nor SQL's own turned into ``property('name')``."""

    def turned(match: re.Match[str]) -> str:
        name = match["dotted"] or match["word"]
        return f"property('{name}')" if name and name.lower() not in _NOT_PROPERTIES else match[0]

    depth = 0
    for match in _TOKEN.finditer(where):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if depth < 0 or match[0] == ";":
            raise UsageError(f"--where: {match[0]!r} does not belong there", hint="write one SQL expression")
    return _TOKEN.sub(turned, where)


def _authorize(action: int, first: str | None, second: str | None, _database: str | None, _by: str | None) -> int:
    if action in (apsw.SQLITE_SELECT, apsw.SQLITE_READ) or (
        action == apsw.SQLITE_FUNCTION and second != "load_extension"
    ):
        return apsw.SQLITE_OK
    return apsw.SQLITE_DENY


def _image_files(directory: str) -> Iterator[str]:
    """Image files by name below a directory, in order; links to directories are not followed."""
    if os.path.isfile(directory):
        yield directory
        return
    if not os.path.isdir(directory):
        raise NotFoundError(f"{directory}: no such directory")
    for base, directories, names in os.walk(directory):
        directories.sort()
        for name in sorted(names):
            if name.endswith(".sqlimage"):
                yield os.path.join(base, name)
