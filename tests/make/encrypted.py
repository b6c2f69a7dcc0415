"""What an encrypted image gives away to somebody who has the file and no key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw

import sqlimage
from sqlimage.codec.chunk import ChunkFlag, decode
from sqlimage.codec.keyring import keyring

KEY = sqlimage.KeyFile(b"a key that only this test has")


_CONTENTS = "SELECT id, digest, length, flags, bytes FROM data WHERE bytes IS NOT NULL"


def without_keys() -> None:
    """Let this process know no key, as another one would."""
    keyring.forget()


def with_key(way: sqlimage.KeyFile | sqlimage.Passphrase = KEY) -> None:
    keyring.forget()
    keyring.add(way)


def shown(image: Path) -> Iterator[bytes]:
    """Everything that can be read without a key: the file with what lies beside it, and every content of the data
    stream that is not encrypted, decoded."""
    for path in sorted(image.parent.glob(image.name + "*")):
        yield path.read_bytes()
    connection = apsw.Connection(f"file:{image}?mode=ro", flags=apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_READONLY)
    try:
        rows: list[Any] = connection.execute(_CONTENTS).fetchall()
    finally:
        connection.close()
    for number, name, length, flags, stored in rows:
        if not flags & ChunkFlag.ENCRYPTED:
            yield decode(stored, flags, length, name, data=number)


def is_shown(image: Path, *secrets: bytes | str) -> list[bytes]:
    """Those of the secrets that somebody without a key finds, in UTF-8, UTF-16 or upper case, or as hexadecimal."""
    everything = list(shown(image))
    found = []
    for secret in secrets:
        forms = {secret, secret.hex().encode()} if isinstance(secret, bytes) else _forms(secret)
        if any(form in part for form in forms for part in everything):
            found.append(secret if isinstance(secret, bytes) else secret.encode())
    return found


def _forms(text: str) -> set[bytes]:
    return {form.encode(code) for form in (text, text.upper()) for code in ("utf-8", "utf-16-le")}


def changed(image: Path, *statements: str) -> Path:
    """What a stranger with the sqlite3 shell makes of an image."""
    connection = apsw.Connection(str(image))
    try:
        for statement in statements:
            connection.execute(statement)
    finally:
        connection.close()
    return image
