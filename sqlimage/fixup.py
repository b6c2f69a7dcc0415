"""One change of control information that has moved, or that tells of what has."""

from __future__ import annotations

from typing import NamedTuple


class Fixup(NamedTuple):
    """What must change at a place once everything has been moved. ``original`` is what lies there before,
    ``replacement`` (as long) what must lie there after."""

    offset_bytes: int
    """From the start of the volume or disk as it will be."""
    original: bytes
    replacement: bytes
    reason: str
    """For people: ``MFT record 38: run list of $DATA``, ``FAT 1: chains``, ``boot sector: BPB_TotSec32``."""
