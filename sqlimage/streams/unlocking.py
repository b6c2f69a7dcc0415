"""Which data key an image is encrypted with, and how it is had: the table ``key_slot``, and two names in ``format``."""

from __future__ import annotations

import re
from typing import Any

import apsw

from sqlimage.codec import slots
from sqlimage.codec.keyring import keyring
from sqlimage.codec.slots import KeySlot
from sqlimage.codec.vault import Vault
from sqlimage.errors import FormatError, RefusedError

KEY_ID, IDENTITY = "key_id", "identity"
"""Names in ``format``: which data key, and which file among those that have the same key; both 16 bytes in
hexadecimal."""
_FORM = re.compile("[0-9a-f]{32}")
_MOST_WRAPPED = 4096


def key_id(path: str, connection: apsw.Connection) -> str | None:
    """Which data key an image needs; None where nothing in it is encrypted."""
    return _named(path, connection, KEY_ID)


def identity(path: str, connection: apsw.Connection) -> str:
    """What tells a file with a key from all others. Raises :class:`~sqlimage.errors.FormatError` where it has none."""
    found = _named(path, connection, IDENTITY)
    if found is None:
        raise FormatError(f"{path}: has sealed streams, but no identity")
    return found


def read_slots(path: str, connection: apsw.Connection) -> list[KeySlot]:
    """The key slots, by number. Raises :class:`~sqlimage.errors.FormatError` where they are more than allowed."""
    rows: list[Any] = connection.execute(
        "SELECT id, kind, parameters, wrapped_key FROM key_slot ORDER BY id LIMIT ?", [slots.MOST_SLOTS + 1]
    ).fetchall()
    if len(rows) > slots.MOST_SLOTS:
        raise FormatError(f"{path}: has more than {slots.MOST_SLOTS} key slots")
    found = []
    for number, kind, parameters, wrapped in rows:
        fits = isinstance(kind, str) and isinstance(parameters, str) and isinstance(wrapped, bytes)
        if not fits or len(wrapped) > _MOST_WRAPPED:
            raise FormatError(f"{path}: key slot {number} holds what the format does not allow")
        found.append(KeySlot(number, kind, parameters, wrapped))
    return found


def unlock(path: str, connection: apsw.Connection) -> Vault:
    """The data key of an image, by whatever the user of this process has given.

    Raises :class:`~sqlimage.errors.LockedError` where none of it fits, and :class:`~sqlimage.errors.FormatError` where
    the image has no key.
    """
    wanted = key_id(path, connection)
    if wanted is None:
        raise FormatError(f"{path}: holds encrypted contents, but names no key")
    return keyring.known(wanted) or keyring.unlock(path, wanted, read_slots(path, connection))


def check_same_key(one: str, key_of_one: str | None, other: str, key_of_other: str | None) -> None:
    """Raise :class:`~sqlimage.errors.RefusedError` where two files that are to share contents have different keys."""
    if None not in (key_of_one, key_of_other) and key_of_one != key_of_other:
        raise RefusedError(
            f"{one} and {other} are encrypted with different keys",
            hint="restore one of them and capture it as a child of the other",
        )


def _named(path: str, connection: apsw.Connection, name: str) -> str | None:
    row = connection.execute("SELECT value FROM format WHERE name = ?", [name]).fetchone()
    if row is None:
        return None
    if not isinstance(row[0], str) or not _FORM.fullmatch(row[0]):
        raise FormatError(f"{path}: its {name} is not 16 bytes in hexadecimal")
    return row[0]
