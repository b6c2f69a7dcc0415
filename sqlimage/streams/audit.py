"""Audit trail stream: what was done, by whom, to which files, when; each row's hash covers the one before it."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from sqlimage.streams.database import Database
from sqlimage.streams.translation import typed
from sqlimage.units import now

FIRST_PREVIOUS = bytes(32)
"""``previous_hash`` of the first row."""
_INSERT = (
    "INSERT INTO audit (id, version, at, user, host, tool, action, path, clusters, bytes, detail, previous_hash, hash) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_SELECT = (
    "SELECT id, version, at, user, host, tool, action, path, clusters, bytes, detail, previous_hash, hash FROM audit"
)

_LAST = "SELECT id, hash FROM audit ORDER BY id DESC LIMIT 1"
_TYPES = (int, int | None, *[str] * 5, str | None, int | None, int | None, str, bytes, bytes)

SELECT_BEGUN = (
    "SELECT user, json_extract(detail, '$.message') FROM audit WHERE version = ? AND action = 'edit-begin' "
    "ORDER BY id DESC LIMIT 1"
)


@dataclass(frozen=True, slots=True)
class AuditRow:
    id: int
    version: int | None
    at: str
    user: str
    host: str
    tool: str
    action: str
    path: str | None
    clusters: int | None
    length_bytes: int | None
    detail: str
    """A JSON object."""
    previous_hash: bytes
    hash: bytes


def row_hash(row: tuple[object, ...], previous: bytes) -> bytes:
    """SHA-256 of the JSON array ``[previous hash in hexadecimal, id, version, ... detail]`` (FORMAT.md, audit)."""
    text = json.dumps([previous.hex(), *row], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).digest()


def append(
    database: Database,
    action: str,
    *,
    tool: str,
    version: int | None,
    path: str | None = None,
    clusters: int | None = None,
    length_bytes: int | None = None,
    detail: dict[str, object] | None = None,
    user: str | None = None,
) -> None:
    """Add a row at the end of the chain; call it inside the transaction that makes the change. ``user`` is whoever runs
    the process unless it is told."""
    text = json.dumps(detail or {}, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    _chain(database, (version, now(), user or _user(), _host(), tool, action, path, clusters, length_bytes, text))


def repeat(database: Database, row: AuditRow, version: int) -> None:
    """Add what another image's trail says at the end of this one's: who did what and when, as it was, about ``version``
    as that is called here."""
    told = (row.at, row.user, row.host, row.tool, row.action, row.path, row.clusters, row.length_bytes, row.detail)
    _chain(database, (version, *told))


def _chain(database: Database, told: tuple[object, ...]) -> None:
    last, previous = head(database)
    row = (last + 1, *told)
    database.run(_INSERT, [*row, previous, row_hash(row, previous)])


def head(database: Database) -> tuple[int, bytes]:
    """The id and the hash of the last row; 0 and zeros where there is none."""
    row = database.row(_LAST)
    return (0, FIRST_PREVIOUS) if row is None else (row[0], row[1])


def read_all(database: Database) -> list[AuditRow]:
    rows = database.query(f"{_SELECT} ORDER BY id")
    return [AuditRow(*typed(database.path, "audit", _TYPES, row)) for row in rows]


def broken_links(database: Database) -> list[str]:
    """What is wrong with the chain: rows changed, dropped or inserted. Empty where it holds."""
    found = [problem for _, problems in _links(database) for problem in problems]
    return found if database.row("SELECT 1 FROM audit") else ["the audit trail is empty"]


def sound_until(database: Database) -> int:
    """The id of the last row up to which the chain holds; 0 where it never does."""
    last = 0
    for number, problems in _links(database):
        if problems:
            break
        last = number
    return last


def _links(database: Database) -> Iterator[tuple[int, list[str]]]:
    """The rows by id, each with what is wrong with it."""
    previous, number = FIRST_PREVIOUS, 0
    for found in database.query(f"{_SELECT} ORDER BY id"):
        row, problems = typed(database.path, "audit", _TYPES, found), []
        number += 1
        if row[0] != number:
            problems.append(f"audit row {number} is missing (row {row[0]} follows {number - 1})")
            number = row[0]
        if row[11] != previous:
            problems.append(f"audit row {row[0]} does not follow the row before it")
        if row[12] != row_hash(row[:11], row[11]):
            problems.append(f"audit row {row[0]} was changed")
        previous = row[12]
        yield number, problems


def _user() -> str:
    sudo = os.environ.get("SUDO_USER")
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return f"{sudo} as {name}" if sudo and sudo != name else name


def _host() -> str:
    return socket.gethostname() or "unknown"
