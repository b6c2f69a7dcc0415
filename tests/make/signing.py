"""Keys for tests, and images whose rows a hand has changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import apsw
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import sqlimage

KEY = sqlimage.SigningKey(Ed25519PrivateKey.from_private_bytes(b"k" * 32))
OTHER = sqlimage.SigningKey(Ed25519PrivateKey.from_private_bytes(b"o" * 32))


def by_hand(image: Path, *statements: str) -> None:
    """Change an image as somebody does who knows SQL: without the triggers that stop a slip of the hand, and without
    the checks of values."""
    connection = apsw.Connection(str(image))
    connection.execute("PRAGMA ignore_check_constraints = ON")
    triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    for _, sql in triggers:
        connection.execute(str(sql))
    connection.close()


def copied(image: Path, place: Path, *statements: str) -> Path:
    """A copy of an image, changed by hand."""
    place.mkdir(exist_ok=True)
    copy = Path(shutil.copy(image, place / image.name))
    by_hand(copy, *statements)
    return copy


def checked(image: Path, *keys: sqlimage.SigningKey, version: str | None = None) -> sqlimage.TrustReport:
    """What is said of the signatures of an image where these keys (or else one) are trusted."""
    with sqlimage.open(str(image)) as opened:
        return sqlimage.verify_signatures(opened, [key.public for key in keys or (KEY,)], version=version)


def problems(image: Path, *keys: sqlimage.SigningKey, version: str | None = None) -> list[str]:
    return [problem.what for problem in checked(image, *keys, version=version).problems]
