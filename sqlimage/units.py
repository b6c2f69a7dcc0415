"""Sizes, alignment and times as people write and read them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

from sqlimage.errors import UsageError

Progress = Callable[[int, int], None]
"""Called from time to time with bytes done and bytes to do."""

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
NO_TIME = -(1 << 63)
"""A time in nanoseconds that says: none is told, or none that a calendar has."""
SECTOR_BYTES = 512
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(i?B)?", re.IGNORECASE)


def format_size(length_bytes: int) -> str:
    """Bytes with a binary unit: ``512 B``, ``1.5 KiB``, ``2.0 GiB``."""
    amount = float(length_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(amount) < 1024 or unit == "PiB":
            return f"{length_bytes} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError


def parse_size(text: str) -> int:
    """Bytes from ``4096``, ``64K``, ``64KiB``, ``1.5 GiB`` (always powers of 1,024).

    Raises :class:`UsageError` for anything else and for what exceeds 2**63 - 1.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{text!r} is not a size", hint="write a number with a unit, as 64MiB or 4096")
    amount = int(float(match[1]) * 1024 ** " KMGTP".index(match[2].upper() or " "))
    if amount >= 1 << 63:
        raise UsageError(f"{text!r} is more than the largest size, 8 EiB")
    return amount


def power_of_two_in(number: int) -> int:
    """The largest power of two that divides ``number``; 0 for 0."""
    return number & -number


def now() -> str:
    """The present moment as the format writes it: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def format_time(nanoseconds: int) -> str | None:
    """Unix nanoseconds as ISO 8601 UTC with seconds; None for ``NO_TIME`` and where no calendar date can be given."""
    if nanoseconds == NO_TIME:
        return None
    try:
        return datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return None
