"""Segments cut out of an image, one at a time, as a plan has them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from sqlimage.errors import DamagedError
from sqlimage.streams.database import Database
from sqlimage.streams.translation import translated
from sqlimage.transfer.plan import Plan
from sqlimage.transfer.segment import HEADER_BYTES

_BYTES = "SELECT bytes FROM main.data WHERE id = ?"
Tell = Callable[[int], None]
"""Told how many more bytes of segments are done."""


def cut(database: Database, plan: Plan, number: int) -> bytearray:
    """A segment after the first, whole.

    Raises :class:`~sqlimage.errors.DamagedError` where a content is not stored as the data stream says.
    """
    segment = bytearray(plan.lengths[number - 1])
    segment[:HEADER_BYTES] = plan.header(number).pack()
    _copy(database, plan, number, segment, HEADER_BYTES)
    return segment


def cut_first(database: Database, plan: Plan, digests: Sequence[bytes]) -> bytearray:
    """The first segment; ``digests`` are those of the others."""
    header, follows = plan.first(digests)
    segment = bytearray(header.length_bytes)
    segment[HEADER_BYTES : HEADER_BYTES + len(follows)] = follows
    segment[header.rest.offset_bytes : header.rest.end_bytes] = plan.rest
    _copy(database, plan, 1, segment, header.data_offset_bytes)
    data = memoryview(segment)[header.data_offset_bytes : header.rest.offset_bytes]
    segment[:HEADER_BYTES] = replace(header, data_digest=digest(data)).pack()
    return segment


def digest(segment: bytes | bytearray | memoryview) -> bytes:
    """SHA-256, under which a segment is known."""
    return hashlib.sha256(segment).digest()


def digests(database: Database, plan: Plan, tell: Tell | None = None) -> list[bytes]:
    """The digests of all segments after the first, each of which is cut for it and forgotten."""
    found = []
    for number in range(2, len(plan.cut) + 1):
        found.append(digest(cut(database, plan, number)))
        if tell:
            tell(plan.lengths[number - 1])
    return found


def _copy(database: Database, plan: Plan, number: int, segment: bytearray, at: int) -> None:
    with translated(database.path):
        cursor = database.connection.cursor()
        for piece in plan.cut[number - 1]:
            row = cursor.execute(_BYTES, [piece.data]).fetchone()
            stored = row[0] if row else None
            if not isinstance(stored, bytes) or len(stored) != plan.stored[piece.data][1]:
                raise DamagedError(
                    f"{database.path}: data {piece.data} is not stored as the data stream says",
                    data=piece.data,
                    hint="`sqlimage verify` tells what is damaged",
                )
            segment[at : at + piece.length] = (
                stored if piece.length == len(stored) else stored[piece.start : piece.start + piece.length]
            )
            at += piece.length
