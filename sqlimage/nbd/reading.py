"""The answer to a read, made in one piece of memory: heads and data side by side, so that it is sent in one go."""

from __future__ import annotations

from collections.abc import Callable

from sqlimage import nbd_layout as n
from sqlimage.device import BlockDevice
from sqlimage.nbd.transmission import Session, error_reply, none_chunk, put_data_chunk, put_hole_chunk, read_pieces
from sqlimage.units import KIB

READ_HEADS_BYTES = 64
"""Room the heads of a reply need beside its data. Not more where holes are told: each spares more than it takes."""
_SPARSE_BYTES = 32 * KIB
"""From this length on a read asks the device for holes first. Below, the question costs more than it saves."""


def put_read(
    session: Session, device: BlockDevice, error_number: Callable[[BaseException], int],
    target: memoryview, begin: int, flags: int, cookie: int, offset_bytes: int, length_bytes: int,
) -> int:  # fmt: skip
    """Put the whole answer to an allowed read into ``target`` from ``begin`` on; returns where it ends.

    ``target`` must have room for the length and ``READ_HEADS_BYTES``. Never raises: where the device fails the answer
    is a refusal with what ``error_number`` makes of it.
    """
    end = offset_bytes + length_bytes
    try:
        if not session.structured:
            at = begin + n.SIMPLE_REPLY.size
            if length_bytes:
                device.read_into(offset_bytes, target[at : at + length_bytes])
            n.SIMPLE_REPLY.pack_into(target, begin, n.NBD_SIMPLE_REPLY_MAGIC, 0, cookie)
            return at + length_bytes
        if 0 < length_bytes < _SPARSE_BYTES or (flags & n.NBD_CMD_FLAG_DF and length_bytes):
            at = put_data_chunk(target, begin, cookie, offset_bytes, length_bytes, True)
            device.read_into(offset_bytes, target[at : at + length_bytes])
            return at + length_bytes
        at = begin
        extents = device.extents(offset_bytes, length_bytes) if length_bytes else ()
        for place, size, is_data in read_pieces(extents, offset_bytes, length_bytes):
            if is_data:
                at = put_data_chunk(target, at, cookie, place, size, place + size == end) + size
                device.read_into(place, target[at - size : at])
            else:
                at = put_hole_chunk(target, at, cookie, place, size, place + size == end)
        answer = b"" if length_bytes else none_chunk(cookie)
    except Exception as problem:
        at, answer = begin, error_reply(session, n.NBD_CMD_READ, cookie, error_number(problem))
    target[at : at + len(answer)] = answer
    return at + len(answer)
