"""Segments cut out of an image, one at a time, as a plan has them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import apsw

from sqlimage.errors import DamagedError
from sqlimage.streams.database import Database
from sqlimage.streams.translation import translated
from sqlimage.transfer.plan import Plan
from sqlimage.transfer.segment import HEADER_BYTES

Tell = Callable[[int], None]
"""Told how many more bytes of segments are done."""


def cut(database: Database, plan: Plan, number: int, into: bytearray | None = None) -> memoryview:
    """A segment after the first, whole; in memory that is used again, where there is some (at least as long).

    Raises :class:`~sqlimage.errors.DamagedError` where a content is not stored as the data stream says.
    """
    segment = _memory(plan.lengths[number - 1], into)
    segment[:HEADER_BYTES] = plan.header(number).pack()
    _copy(database, plan, number, segment, HEADER_BYTES)
    return segment


def cut_first(database: Database, plan: Plan, digests: Sequence[bytes], into: bytearray | None = None) -> memoryview:
    """The first segment; ``digests`` are those of the others."""
    header, follows = plan.first(digests)
    rest = header.rest
    segment = _memory(header.length_bytes, into)
    segment[HEADER_BYTES : HEADER_BYTES + len(follows)] = follows
    end = _copy(database, plan, 1, segment, header.data_offset_bytes)
    segment[end : rest.offset_bytes] = bytes(rest.offset_bytes - end)
    segment[rest.offset_bytes : rest.end_bytes] = plan.rest
    data = segment[header.data_offset_bytes : rest.offset_bytes]
    segment[:HEADER_BYTES] = replace(header, data_digest=digest(data)).pack()
    return segment


def _memory(length: int, into: bytearray | None) -> memoryview:
    return memoryview(bytearray(length) if into is None else into)[:length]


def digest(segment: bytes | bytearray | memoryview) -> bytes:
    """SHA-256, under which a segment is known."""
    return hashlib.sha256(segment).digest()


def digests(database: Database, plan: Plan, tell: Tell | None = None) -> list[bytes]:
    """The digests of all segments after the first, each of which is cut for it and forgotten."""
    found = []
    buffer = bytearray(max(plan.lengths))
    for number in range(2, len(plan.cut) + 1):
        found.append(digest(cut(database, plan, number, buffer)))
        if tell:
            tell(plan.lengths[number - 1])
    return found


def _copy(database: Database, plan: Plan, number: int, segment: memoryview, at: int) -> int:
    """Copy contents into a segment from ``at`` on, each straight from SQLite's pages; where they end."""
    pieces = plan.cut[number - 1]
    blob: apsw.Blob | None = None
    with translated(database.path):
        try:
            for piece in pieces:
                try:
                    if blob is None:
                        blob = database.connection.blob_open("main", "data", "bytes", piece.data, False)
                    else:
                        blob.reopen(piece.data)
                except apsw.SQLError:  # it is not there any more, or has no bytes
                    raise _damaged(database, piece.data) from None
                if blob.length() != plan.stored[piece.data][1]:
                    raise _damaged(database, piece.data)
                blob.seek(piece.start)
                blob.read_into(segment, at, piece.length)
                at += piece.length
        finally:
            if blob is not None:
                blob.close(True)
    return at


def _damaged(database: Database, data: int) -> DamagedError:
    return DamagedError(
        f"{database.path}: data {data} is not stored as the data stream says",
        data=data,
        hint="`sqlimage verify` tells what is damaged",
    )
