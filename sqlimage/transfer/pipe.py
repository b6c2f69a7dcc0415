"""An image through a pipe: its segments one after the other, each telling its own length."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from sqlimage.errors import DeviceError, FormatError, RefusedError, UsageError
from sqlimage.streams.database import Database
from sqlimage.transfer.arrive import First, Incoming, check_is_this, make_image
from sqlimage.transfer.cut import cut, cut_first, digests
from sqlimage.transfer.plan import plan_for
from sqlimage.transfer.segment import HEADER_BYTES, USUAL_BYTES, Header, read_header
from sqlimage.units import MIB, Progress

_PIECE_BYTES = MIB


@dataclass(frozen=True, slots=True)
class SendReport:
    """What was sent; sizes in bytes."""

    image: str
    uuid: str
    segments: int
    sent_segments: int
    sent_bytes: int


@dataclass(frozen=True, slots=True)
class ReceiveReport:
    """What arrived; sizes in bytes."""

    image: str
    uuid: str
    segments: int
    received_segments: int
    received_bytes: int
    missing: Sequence[int]
    """Numbers of the segments that are still to come."""


def send(
    path: str,
    version: str | None,
    out: BinaryIO,
    *,
    segment_bytes: int = USUAL_BYTES,
    begin: int = 1,
    progress: Progress | None = None,
) -> SendReport:
    """Write the segments of an image into a pipe, from number ``begin`` on.

    Each is cut twice: once for its digest, which stands in the first one.
    Raises :class:`~sqlimage.errors.UsageError` where there are not so many.
    """
    with Database.open(path, structure_only=True) as database:
        plan = plan_for(database, version, segment_bytes)
        count = len(plan.cut)
        if not 1 <= begin <= count:
            raise UsageError(f"{path}: has no segment {begin}", hint=f"it has segments 1 to {count}")
        total = sum(plan.lengths[begin - 1 :])
        sent = 0
        buffer = bytearray(max(plan.lengths))
        for number in range(begin, count + 1):
            if number > 1:
                segment = cut(database, plan, number, buffer)
            else:
                segment = cut_first(database, plan, digests(database, plan), buffer)
            out.write(segment)
            sent += len(segment)
            if progress:
                progress(sent, total)
        out.flush()
        return SendReport(database.path, plan.newest.uuid, count, count - begin + 1, sent)


def receive(source: BinaryIO, path: str, *, progress: Progress | None = None) -> ReceiveReport:
    """Read segments from a pipe into a new image, or into one that lacks some; in any order but for the first, which
    makes the file.

    Ends with the pipe, and says what is missing. Raises :class:`~sqlimage.errors.FormatError` for what is no segment of
    the image, and nothing of it is used.
    """
    path = os.path.realpath(path)
    count = received = 0
    incoming = Incoming(path, "receiving it") if os.path.lexists(path) else None
    try:
        while (found := _read_segment(source)) is not None:
            header, segment = found
            if incoming is None:
                if not header.is_first:
                    raise RefusedError(
                        f"{path}: is not there, and segment {header.number} of an image cannot begin it",
                        hint="send it from the first segment on",
                    )
                make_image(path, First.from_segment("the pipe", segment))
                incoming = Incoming(path, "receiving it")
            elif header.is_first:
                check_is_this(path, incoming, header.identity, "the pipe")
            row = incoming.find(segment)
            if row is None:
                raise FormatError(
                    f"the pipe: segment {header.number} of {header.image} is damaged, or none of {path}; "
                    "it was not used",
                    hint=_go_on(incoming),
                )
            if not row.is_here:
                incoming.take(row.number, segment)
                count += 1
                received += len(segment)
            if progress:
                here = sum(one.length_bytes for one in incoming.segments if one.is_here)
                progress(here, sum(one.length_bytes for one in incoming.segments))
        if incoming is None:
            raise FormatError("the pipe: nothing came", hint="`sqlimage send IMAGE` on the other side")
        missing = tuple(row.number for row in incoming.missing())
        newest = incoming.database.row("SELECT uuid FROM main.control ORDER BY version DESC")
        return ReceiveReport(path, str(newest[0]) if newest else "", len(incoming.segments), count, received, missing)
    except DeviceError as problem:
        if incoming is not None:
            problem.hint = "; ".join(filter(None, (problem.hint, _go_on(incoming))))
        raise
    finally:
        if incoming is not None:
            incoming.close()


def _go_on(incoming: Incoming) -> str:
    missing = incoming.missing()
    if not missing:
        return "the image is whole without it"
    return f"what came stays; go on with `sqlimage send --from {missing[0].number}`"


def _read_segment(source: BinaryIO) -> tuple[Header, memoryview] | None:
    """The next segment; None at the end. Raises :class:`~sqlimage.errors.DeviceError` where it ends within one."""
    segment = bytearray()
    _read(source, segment, HEADER_BYTES)
    if not segment:
        return None
    if len(segment) < HEADER_BYTES:
        raise DeviceError("the pipe: ended in the middle of a segment")
    header = read_header("the pipe", bytes(segment))
    _read(source, segment, header.length_bytes)
    if len(segment) < header.length_bytes:
        raise DeviceError(f"the pipe: ended in the middle of segment {header.number} of {header.count}")
    return header, memoryview(segment)


def _read(source: BinaryIO, into: bytearray, length: int) -> None:
    """Up to that length, or the end; memory is taken as bytes come, not as they are promised."""
    while len(into) < length:
        piece = source.read(min(_PIECE_BYTES, length - len(into)))
        if not piece:
            return
        into += piece
