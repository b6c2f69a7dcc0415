"""Dates and times: 7 bytes of a Directory Record (ECMA-119 9.1.5), 17 bytes of a descriptor (ECMA-119 8.4.26.1)."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from sqlimage.extent import Int64s
from sqlimage.filesystem.iso9660 import layout
from sqlimage.units import NO_TIME

_MINUTES_PER_OFFSET = 15
_OFFSET_MAX = 52
"""Quarters of an hour from Greenwich; one farther off is taken for no offset, as Linux does."""
_YEARS = range(1678, 2262)
"""What 64 bits of nanoseconds hold."""


def short_times(stamps: bytes | bytearray) -> Int64s:
    """Unix nanoseconds of many 7-byte stamps, one after the other; ``NO_TIME`` where no calendar has the date."""
    field = np.frombuffer(bytes(stamps), dtype=np.uint8).reshape(-1, layout.SHORT_TIME_BYTES).astype(np.int64)
    year, month, day, hour, minute, second, offset = field.T
    offset = (offset ^ 0x80) - 0x80
    offset = np.where(np.abs(offset) <= _OFFSET_MAX, offset, 0)
    months = ((year - 70) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    minutes = (days.astype(np.int64) * 24 + hour) * 60 + minute - offset * _MINUTES_PER_OFFSET
    possible = (month >= 1) & (month <= 12) & (day >= 1) & (days.astype("datetime64[M]") == months)
    possible &= (hour < 24) & (minute < 60) & (second < 60)
    return np.where(possible, (minutes * 60 + second) * 1_000_000_000, NO_TIME)


def long_time(stamp: bytes) -> int:
    """Unix nanoseconds of a 17-byte stamp; ``NO_TIME`` where it is not set or cannot be told."""
    digits = stamp[:16]
    if not digits.isdigit() or int(digits[:4]) not in _YEARS:
        return NO_TIME
    year, month, day, hour, minute, second = (
        int(digits[low:high]) for low, high in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 14))
    )
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return NO_TIME
    offset = (stamp[16] ^ 0x80) - 0x80
    seconds = int(moment.timestamp()) - (offset * _MINUTES_PER_OFFSET * 60 if abs(offset) <= _OFFSET_MAX else 0)
    return seconds * 1_000_000_000 + int(digits[14:]) * 10_000_000


def uuid_text(modified: bytes, created: bytes) -> str | None:
    """What udev and blkid call the volume: the digits of the first of the two 17-byte stamps that is set."""
    for stamp in (modified, created):
        digits = stamp[:16]
        if digits.isdigit() and (digits != b"0" * 16 or stamp[16]):
            text = digits.decode("ascii")
            return "-".join((text[:4], *(text[at : at + 2] for at in range(4, 16, 2))))
    return None
