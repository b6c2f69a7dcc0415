"""The client's side of the NBD protocol, as much of it as reading and writing a disk needs: fixed newstyle, structured
replies, ``base:allocation``. See ``doc/proto.md`` of the NetworkBlockDevice project.

One request at a time is under way. The server is our own child process, but what it reads is hostile: every length is
bounded by what was asked for, data must come in order and fill the request exactly, and everything has a deadline.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from typing import NoReturn

from sqlimage import nbd_layout as n
from sqlimage.media.foreign.connection import BrokenConnection, Connection

HANDSHAKE_S = 10.0
REQUEST_S = 60.0
LARGEST_TRANSFER = 4 << 20
"""Bytes in one read or write: enough to make the messages around them cheap."""
LARGEST_QUERY = (1 << 32) - (1 << 16)
"""Bytes in one question for the block status; the protocol counts them in 32 bits."""
LARGEST_ZEROING = 1 << 28
"""Bytes in one request to zero: a server may have to write them."""
_LONGEST_TEXT = 4096
"""proto.md, "Values": no string is longer."""
_MOST_REPLIES = 64
"""Replies to one option, and errors in one answer."""
_MOST_DESCRIPTORS = 1 << 18
_LARGEST_SIZE = (1 << 63) - 1

Status = list[tuple[int, bool]]
"""Lengths in bytes, and whether there is data (True) or what is known to read as zeros."""


class ServerRefusal(Exception):
    """The server answers, in order, that it cannot do what it was asked: an NBD error, or what it says instead."""

    def __init__(self, code: int, text: str = "") -> None:
        super().__init__(text or os.strerror(_ERRORS.get(code, errno.EIO)))


_ERRORS = {
    n.NBD_EPERM: errno.EPERM,
    n.NBD_EIO: errno.EIO,
    n.NBD_EINVAL: errno.EINVAL,
    n.NBD_ENOSPC: errno.ENOSPC,
    n.NBD_ESHUTDOWN: errno.ESHUTDOWN,
}


class Client:
    """A connection to the default export of a server, past the negotiation.

    Every method raises :class:`~sqlimage.media.foreign.connection.BrokenConnection` where the server breaks the
    protocol or does not answer, after which the client is of no use any more, and :class:`ServerRefusal` where it
    answers with an error. Ranges are the caller's to check.
    """

    def __init__(self, connection: Connection) -> None:
        self._wire = connection
        self._cookie = 0
        self._context: int | None = None
        self.size_bytes = 0
        self.flags = 0
        """NBD_FLAG_* of the export."""
        self._wire.begin(HANDSHAKE_S)
        self._negotiate()

    # The handshake

    def _negotiate(self) -> None:
        magic, greeting, flags = n.GREETING.unpack(self._wire.receive(n.GREETING.size))
        if (magic, greeting) != (n.NBDMAGIC, n.IHAVEOPT) or not flags & n.NBD_FLAG_FIXED_NEWSTYLE:
            raise BrokenConnection("it does not speak fixed newstyle NBD")
        no_zeroes = n.NBD_FLAG_C_NO_ZEROES if flags & n.NBD_FLAG_NO_ZEROES else 0
        self._wire.send([n.CLIENT_FLAGS.pack(n.NBD_FLAG_C_FIXED_NEWSTYLE | no_zeroes)])
        self._ask(n.NBD_OPT_STRUCTURED_REPLY)
        query = n.LENGTH.pack(0) + n.LENGTH.pack(1) + n.LENGTH.pack(len(n.BASE_ALLOCATION)) + n.BASE_ALLOCATION
        for kind, payload in self._ask(n.NBD_OPT_SET_META_CONTEXT, query):
            if kind == n.NBD_REP_META_CONTEXT and payload[4:] == n.BASE_ALLOCATION:
                self._context = int.from_bytes(payload[:4], "big")
        for kind, payload in self._ask(n.NBD_OPT_GO, n.LENGTH.pack(0) + bytes(2)):
            if kind == n.NBD_REP_INFO:
                self._take_information(payload)
        if not self.flags & n.NBD_FLAG_HAS_FLAGS:
            raise BrokenConnection("it does not tell the size of its export")

    def _ask(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; all replies to it but the last, which acknowledges."""
        self._wire.send([n.OPTION.pack(n.IHAVEOPT, option, len(data)), data])
        replies: list[tuple[int, bytes]] = []
        for _ in range(_MOST_REPLIES):
            magic, answered, kind, length = n.OPTION_REPLY.unpack(self._wire.receive(n.OPTION_REPLY.size))
            if magic != n.OPTION_REPLY_MAGIC or answered != option or length > 2 * _LONGEST_TEXT:
                raise BrokenConnection(f"its reply to option {option} is malformed")
            payload = self._wire.receive(length)
            if kind & n.NBD_REP_FLAG_ERROR:
                said = payload[:_LONGEST_TEXT].decode("utf-8", "replace")
                raise ServerRefusal(n.NBD_EINVAL, f"option {option} is refused: {said or hex(kind)}")
            if kind == n.NBD_REP_ACK:
                return replies
            replies.append((kind, payload))
        raise BrokenConnection(f"it does not end its reply to option {option}")

    def _take_information(self, payload: bytes) -> None:
        kind = int.from_bytes(payload[: n.INFO_TYPE.size], "big")
        if kind == n.NBD_INFO_EXPORT:
            if len(payload) != n.INFO_EXPORT.size:
                raise BrokenConnection("NBD_INFO_EXPORT is malformed")
            _, self.size_bytes, self.flags = n.INFO_EXPORT.unpack(payload)
            if self.size_bytes > _LARGEST_SIZE:
                raise BrokenConnection("its export is larger than 8 EiB")
        elif kind == n.NBD_INFO_BLOCK_SIZE:
            if len(payload) != n.INFO_BLOCK_SIZE.size:
                raise BrokenConnection("NBD_INFO_BLOCK_SIZE is malformed")
            _, minimum, _, maximum = n.INFO_BLOCK_SIZE.unpack(payload)
            if minimum > 1 or maximum < LARGEST_TRANSFER:  # qemu-nbd takes any request of who does not ask
                raise BrokenConnection(f"it wants requests of {minimum} to {maximum} bytes")

    # Requests

    def read_into(self, offset_bytes: int, view: memoryview) -> None:
        """Fill the view, at most ``LARGEST_TRANSFER`` bytes."""
        # in one piece, or qemu-nbd hangs up where it should tell of an error
        whole = n.NBD_CMD_FLAG_DF if self.flags & n.NBD_FLAG_SEND_DF else 0
        self._request(n.NBD_CMD_READ, offset_bytes, len(view), flags=whole)
        done, errors = 0, 0
        refusal: ServerRefusal | None = None
        while True:
            flags, kind, length = self._chunk()
            if kind == n.NBD_REPLY_TYPE_OFFSET_DATA and 8 < length <= 8 + len(view) - done:
                self._check_place(offset_bytes + done)
                self._wire.receive_into(view[done : done + length - 8])
                done += length - 8
            elif kind == n.NBD_REPLY_TYPE_OFFSET_HOLE and length == 12:
                self._check_place(offset_bytes + done)
                hole = int.from_bytes(self._wire.receive(4), "big")
                if not 0 < hole <= len(view) - done:
                    raise BrokenConnection("a hole reaches beyond what was asked for")
                view[done : done + hole] = bytes(hole)
                done += hole
            elif kind & _ERROR_BIT:
                refusal = self._refusal(length)
                errors += 1
                if errors > _MOST_REPLIES:
                    raise BrokenConnection("its errors do not end")
            elif not (kind == n.NBD_REPLY_TYPE_NONE and length == 0 and flags & n.NBD_REPLY_FLAG_DONE):
                self._malformed(kind, length)
            if flags & n.NBD_REPLY_FLAG_DONE:
                break
        if refusal is not None:
            raise refusal
        if done != len(view):
            raise BrokenConnection(f"it sent {done} bytes of {len(view)}")

    def block_status(self, offset_bytes: int, length_bytes: int) -> Status:
        """What lies from ``offset_bytes`` on: at least something, and nothing beyond the ``length_bytes`` (at most
        ``LARGEST_QUERY``) that were asked about. All of it is data where the server cannot tell."""
        if self._context is None:
            return [(length_bytes, True)]
        self._request(n.NBD_CMD_BLOCK_STATUS, offset_bytes, length_bytes)
        status: Status | None = None
        refusal: ServerRefusal | None = None
        for _ in range(_MOST_REPLIES):
            flags, kind, length = self._chunk()
            if kind == n.NBD_REPLY_TYPE_BLOCK_STATUS and status is None:
                status = self._status(length, length_bytes)
            elif kind & _ERROR_BIT:
                refusal = self._refusal(length)
            elif not (kind == n.NBD_REPLY_TYPE_NONE and length == 0):
                self._malformed(kind, length)
            if flags & n.NBD_REPLY_FLAG_DONE:
                break
        else:
            raise BrokenConnection("its answer does not end")
        if refusal is not None:
            raise refusal
        if status is None:
            raise BrokenConnection("it told no block status")
        return status

    def write(self, offset_bytes: int, data: bytes | memoryview) -> None:
        """Write at most ``LARGEST_TRANSFER`` bytes."""
        self._request(n.NBD_CMD_WRITE, offset_bytes, len(data), data)
        self._finish()

    def write_zeroes(self, offset_bytes: int, length_bytes: int) -> None:
        """Make at most ``LARGEST_ZEROING`` bytes read as zeros, in a hole where that is possible."""
        self._request(n.NBD_CMD_WRITE_ZEROES, offset_bytes, length_bytes)
        self._finish()

    def flush(self) -> None:
        self._request(n.NBD_CMD_FLUSH, 0, 0)
        self._finish()

    def disconnect(self) -> None:
        """Say goodbye, in order; nothing is answered."""
        self._request(n.NBD_CMD_DISC, 0, 0)
        self._wire.close()

    def close(self) -> None:
        """Let go at once."""
        self._wire.close()

    # Messages

    def _request(
        self, command: int, offset_bytes: int, length_bytes: int, data: bytes | memoryview = b"", *, flags: int = 0
    ) -> None:
        self._wire.begin(REQUEST_S)
        self._cookie += 1
        header = n.REQUEST.pack(n.NBD_REQUEST_MAGIC, flags, command, self._cookie, offset_bytes, length_bytes)
        self._wire.send([header, data])

    def _finish(self) -> None:
        """The answer to a request that brings no data: a simple reply or a structured one."""
        magic = self._wire.receive(_MAGIC.size)
        if magic == _SIMPLE:
            error, cookie = _SIMPLE_REST.unpack(self._wire.receive(_SIMPLE_REST.size))
            self._check_cookie(cookie)
            if error:
                raise ServerRefusal(error)
            return
        flags, kind, length = self._chunk(magic)
        refusal = self._refusal(length) if kind & _ERROR_BIT else None
        if not flags & n.NBD_REPLY_FLAG_DONE or (refusal is None and (kind, length) != (n.NBD_REPLY_TYPE_NONE, 0)):
            self._malformed(kind, length)
        if refusal is not None:
            raise refusal

    def _chunk(self, magic: bytes = b"") -> tuple[int, int, int]:
        """The header of a chunk, its magic read already where it is given: flags, type, bytes that follow."""
        magic = magic or self._wire.receive(_MAGIC.size)
        if magic != _STRUCTURED:
            raise BrokenConnection("its reply is no structured one")
        flags, kind, cookie, length = _CHUNK_REST.unpack(self._wire.receive(_CHUNK_REST.size))
        self._check_cookie(cookie)
        return flags, kind, length

    def _check_cookie(self, cookie: int) -> None:
        if cookie != self._cookie:
            raise BrokenConnection("it answers another request than the one that was made")

    def _check_place(self, offset_bytes: int) -> None:
        if int.from_bytes(self._wire.receive(8), "big") != offset_bytes:
            raise BrokenConnection("its data are not those that were asked for, or not in order")

    def _refusal(self, length: int) -> ServerRefusal:
        """An error chunk: the code, a text that says less than the code, and for one that names a place the offset."""
        if not 6 <= length <= 6 + _LONGEST_TEXT + 8:
            self._malformed(n.NBD_REPLY_TYPE_ERROR, length)
        return ServerRefusal(int.from_bytes(self._wire.receive(length)[:4], "big"))

    def _status(self, length: int, asked_bytes: int) -> Status:
        size = n.STATUS_DESCRIPTOR.size
        if not 4 + size <= length <= 4 + size * _MOST_DESCRIPTORS or (length - 4) % size:
            self._malformed(n.NBD_REPLY_TYPE_BLOCK_STATUS, length)
        payload = self._wire.receive(length)
        if int.from_bytes(payload[:4], "big") != self._context:
            raise BrokenConnection("it tells of a context that was not asked about")
        status: Status = []
        left = asked_bytes
        for extent_bytes, state in n.STATUS_DESCRIPTOR.iter_unpack(payload[4:]):
            if extent_bytes == 0 or left == 0:
                raise BrokenConnection("its block status has empty extents, or too many")
            taken = min(extent_bytes, left)  # the last one may reach further than the question
            status.append((taken, not state & n.NBD_STATE_ZERO))
            left -= taken
        return status

    def _malformed(self, kind: int, length: int) -> NoReturn:
        raise BrokenConnection(f"a chunk of type {kind:#x} with {length} bytes does not belong here")


_MAGIC = struct.Struct(">I")
_SIMPLE = _MAGIC.pack(n.NBD_SIMPLE_REPLY_MAGIC)
_STRUCTURED = _MAGIC.pack(n.NBD_STRUCTURED_REPLY_MAGIC)
_SIMPLE_REST = struct.Struct(">IQ")
_CHUNK_REST = struct.Struct(">HHQI")
_ERROR_BIT = 1 << 15


def connect(connections: Sequence[Connection]) -> list[Client]:
    """Negotiate on each; all must be told the same export."""
    clients = [Client(connection) for connection in connections]
    if len({(client.size_bytes, client.flags) for client in clients}) > 1:
        raise BrokenConnection("its connections lead to different exports")
    return clients
