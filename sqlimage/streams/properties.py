"""Property stream: typed values under dotted names, by which an image is found."""

from __future__ import annotations

import re

from sqlimage.errors import UsageError
from sqlimage.streams.database import Database
from sqlimage.streams.translation import typed

Value = str | int | float | bytes | None
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*")
_MAX_NAME, _MAX_VALUE_BYTES = 200, 1 << 20
SET = "INSERT INTO property (version, name, value) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"


def check(name: str, value: Value) -> None:
    """Raise :class:`~sqlimage.errors.UsageError` unless the name is dotted words and the value within 1 MiB."""
    if len(name) > _MAX_NAME or not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a property name",
            hint=f"use words of letters, digits, _ and - joined by dots, as os.version; {_MAX_NAME} characters at most",
        )
    if isinstance(value, str) and "\0" in value:
        raise UsageError(f"the value of {name} holds a NUL character")
    size = (
        len(value.encode("utf-8", "replace"))
        if isinstance(value, str)
        else len(value)
        if isinstance(value, bytes)
        else 8
    )
    if size > _MAX_VALUE_BYTES:
        raise UsageError(f"the value of {name} has {size} bytes; {_MAX_VALUE_BYTES} are allowed")


def is_reserved(name: str) -> bool:
    """Whether the tool tells of itself under a name."""
    return name.startswith("capture.")


def check_not_reserved(name: str) -> None:
    """Raise :class:`~sqlimage.errors.UsageError` for the names in which the tool tells of itself."""
    if is_reserved(name):
        raise UsageError(f"{name}: properties under capture. are the tool's own", hint="choose another name")


def parse(text: str) -> tuple[str, Value]:
    """``NAME=VALUE``: whole numbers and decimals become numbers, ``"42"`` in double quotes stays text."""
    name, separator, value = text.partition("=")
    if not separator:
        raise UsageError(f"{text!r} is not NAME=VALUE", hint="write a property as os.name=Debian")
    typed = typed_value(value)
    check(name, typed)
    return name, typed


def typed_value(text: str) -> Value:
    """A number where the text is one and survives the trip back unchanged; else the text, quotes around it removed."""
    if re.fullmatch(r"-?(0|[1-9]\d{0,17})", text):
        return int(text)
    if re.fullmatch(r"-?(0|[1-9]\d*)\.\d+", text) and repr(float(text)) == text:
        return float(text)
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1]
    return text


def put(database: Database, version: int, name: str, value: Value) -> None:
    check(name, value)
    database.run(SET, [version, name, value])


def read_all(database: Database, version: int) -> dict[str, Value]:
    """Every property that holds for a version, by name."""
    rows = database.query("SELECT name, value FROM effective_property WHERE version = ? ORDER BY name", [version])
    return {str(typed(database.path, "property", (str,), row[:1])[0]): row[1] for row in rows}
