"""The transmission phase without I/O: is a request allowed, and how is it answered (NBD protocol, "Transmission")."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlimage import nbd_layout as n
from sqlimage.device import DeviceExtent
from sqlimage.nbd import limits

_FUA = n.NBD_CMD_FLAG_FUA
_FLAGS = {
    n.NBD_CMD_READ: _FUA | n.NBD_CMD_FLAG_DF,
    n.NBD_CMD_WRITE: _FUA,
    n.NBD_CMD_DISC: _FUA,
    n.NBD_CMD_FLUSH: _FUA,
    n.NBD_CMD_TRIM: _FUA,
    n.NBD_CMD_CACHE: _FUA,
    n.NBD_CMD_WRITE_ZEROES: _FUA | n.NBD_CMD_FLAG_NO_HOLE,
    n.NBD_CMD_BLOCK_STATUS: _FUA | n.NBD_CMD_FLAG_REQ_ONE,
}
"""Flags each command may carry. FUA must be taken on all, for there are clients that set it everywhere."""
_CHANGING = frozenset((n.NBD_CMD_WRITE, n.NBD_CMD_TRIM, n.NBD_CMD_WRITE_ZEROES))
_HOLE = n.NBD_STATE_HOLE | n.NBD_STATE_ZERO
_EXTENTS_LOOKED_AT = 1 << 16
"""Extents taken from a device for one request, those that touch and are alike counted one by one."""


@dataclass(frozen=True, slots=True)
class Session:
    """What client and server agreed on. ``export`` is the index of the export chosen, ``structured`` says that
    replies are structured, ``allocation`` that the context ``base:allocation`` was selected."""

    export: int
    size_bytes: int
    writable: bool
    structured: bool
    allocation: bool


def check_request(session: Session, flags: int, command: int, offset_bytes: int, length_bytes: int) -> int:
    """The error number that refuses a request, or 0. The numbers are unsigned as they came over the wire.

    A refused write is still followed by its payload, which must be read and thrown away.
    """
    end = offset_bytes + length_bytes
    if command == n.NBD_CMD_READ and not flags and end <= session.size_bytes:  # nearly every request there is
        return 0 if length_bytes <= limits.BLOCK_BYTES_MAXIMUM else n.NBD_EINVAL
    allowed = _FLAGS.get(command)
    if allowed is None or flags & ~allowed or (flags & n.NBD_CMD_FLAG_DF and not session.structured):
        return n.NBD_EINVAL
    if command in (n.NBD_CMD_FLUSH, n.NBD_CMD_DISC):
        return 0
    if command in _CHANGING and not session.writable:
        return n.NBD_EPERM
    if command in (n.NBD_CMD_READ, n.NBD_CMD_WRITE) and length_bytes > limits.BLOCK_BYTES_MAXIMUM:
        return n.NBD_EINVAL
    if end > session.size_bytes:
        grows = command in (n.NBD_CMD_WRITE, n.NBD_CMD_WRITE_ZEROES) and end < 1 << 64
        return n.NBD_ENOSPC if grows else n.NBD_EINVAL
    if command == n.NBD_CMD_BLOCK_STATUS and not (length_bytes and session.allocation):
        return n.NBD_EINVAL
    return 0


def simple_reply(cookie: int, error: int = 0) -> bytes:
    """The whole answer to anything but a read or a block status; the head of a simple read's."""
    return n.SIMPLE_REPLY.pack(n.NBD_SIMPLE_REPLY_MAGIC, error, cookie)


def error_reply(session: Session, command: int, cookie: int, error: int) -> bytes:
    """A refusal. Where structured replies were agreed on, a read must not be answered by a simple one.

    No text goes along: what an error says names paths of the server, which are no business of a client.
    """
    if session.structured and command in (n.NBD_CMD_READ, n.NBD_CMD_BLOCK_STATUS):
        magic, kind = n.NBD_STRUCTURED_REPLY_MAGIC, n.NBD_REPLY_TYPE_ERROR
        return n.CHUNK_ERROR.pack(
            magic, n.NBD_REPLY_FLAG_DONE, kind, cookie, n.CHUNK_ERROR.size - n.CHUNK.size, error, 0
        )
    return simple_reply(cookie, error)


def none_chunk(cookie: int) -> bytes:
    """The end of a structured reply that has nothing more to say."""
    return n.CHUNK.pack(n.NBD_STRUCTURED_REPLY_MAGIC, n.NBD_REPLY_FLAG_DONE, n.NBD_REPLY_TYPE_NONE, cookie, 0)


def put_data_chunk(target: memoryview, at: int, cookie: int, offset_bytes: int, length_bytes: int, done: bool) -> int:
    """Put the head of an OFFSET_DATA chunk into ``target``; returns where its ``length_bytes`` of data belong."""
    n.CHUNK_OFFSET_DATA.pack_into(
        target, at, n.NBD_STRUCTURED_REPLY_MAGIC, done, n.NBD_REPLY_TYPE_OFFSET_DATA, cookie, 8 + length_bytes,
        offset_bytes,
    )  # fmt: skip
    return at + n.CHUNK_OFFSET_DATA.size


def put_hole_chunk(target: memoryview, at: int, cookie: int, offset_bytes: int, length_bytes: int, done: bool) -> int:
    """Put an OFFSET_HOLE chunk into ``target``; returns where it ends."""
    n.CHUNK_OFFSET_HOLE.pack_into(
        target, at, n.NBD_STRUCTURED_REPLY_MAGIC, done, n.NBD_REPLY_TYPE_OFFSET_HOLE, cookie, 12,
        offset_bytes, length_bytes,
    )  # fmt: skip
    return at + n.CHUNK_OFFSET_HOLE.size


def block_status(cookie: int, extents: Iterable[DeviceExtent], *, one: bool) -> bytes:
    """The answer to a block status: extents from the offset asked for on, alike ones made one, as many as an answer
    may hold, or a single one. ``extents`` must not be empty; it is not read further than needed."""
    most = 1 if one else limits.STATUS_DESCRIPTORS_MAXIMUM
    descriptors = []
    for _, length_bytes, is_data in _alike(extents):
        descriptors.append(n.STATUS_DESCRIPTOR.pack(length_bytes, 0 if is_data else _HOLE))
        if len(descriptors) == most:
            break
    payload = n.LENGTH.pack(limits.BASE_ALLOCATION_ID) + b"".join(descriptors)
    magic, done = n.NBD_STRUCTURED_REPLY_MAGIC, n.NBD_REPLY_FLAG_DONE
    return n.CHUNK.pack(magic, done, n.NBD_REPLY_TYPE_BLOCK_STATUS, cookie, len(payload)) + payload


def read_pieces(extents: Iterable[DeviceExtent], offset_bytes: int, length_bytes: int) -> list[tuple[int, int, bool]]:
    """A read's range as pieces (offset, length, is data), in order, that cover it; holes too short to be worth a
    message are data. Never more than one piece for every ``HOLE_BYTES_MINIMUM`` bytes."""
    pieces: list[tuple[int, int, bool]] = []
    at, end = offset_bytes, offset_bytes + length_bytes
    for place, length, is_data in _alike(extents):
        if not is_data and length >= limits.HOLE_BYTES_MINIMUM:
            if place > at:
                pieces.append((at, place - at, True))
            pieces.append((place, length, False))
            at = place + length
    if at < end:
        pieces.append((at, end - at, True))
    return pieces


def _alike(extents: Iterable[DeviceExtent]) -> Iterator[tuple[int, int, bool]]:
    """Extents as (offset, length, is data) with alike neighbours made one, from a bounded number of them."""
    place = length = 0
    kind = True
    for number, extent in enumerate(extents):
        if number == _EXTENTS_LOOKED_AT:
            break
        if length and extent.is_data == kind:
            length += extent.length_bytes
            continue
        if length:
            yield place, length, kind
        place, length, kind = extent.offset_bytes, extent.length_bytes, extent.is_data
    if length:
        yield place, length, kind
