"""The transmission phase over a socket: one object, and one thread, for each connection.

Requests are read many at a time into one buffer, answered one after the other into another, and that is sent when it
is full or nothing is left to answer: two system calls for a batch. What would take long while others wait (a read that
must decompress, a sync) goes to the server's workers, and comes back through a queue and an eventfd: only the
connection's own thread touches the socket, so a client that does not read its replies stops nobody but itself.
"""

from __future__ import annotations

import contextlib
import socket
import time

from sqlimage import nbd_layout as n
from sqlimage.device import BlockDevice, Prefetching, Readiness, WritableDevice
from sqlimage.nbd import limits
from sqlimage.nbd.handover import Handover
from sqlimage.nbd.reading import READ_HEADS_BYTES, put_read
from sqlimage.nbd.resources import ROOM_BYTES, Resources
from sqlimage.nbd.transmission import (
    Session,
    block_status,
    check_request,
    error_reply,
    none_chunk,
    put_data_chunk,
    simple_reply,
)
from sqlimage.units import KIB, MIB

SLICE_BYTES = 512 * KIB
"""The largest payload that is taken whole; each connection has one such buffer to receive and one to send."""
_BUFFER_BYTES = SLICE_BYTES + ROOM_BYTES
_LEAST_PATIENCE_S, _MOST_PATIENCE_S = 50e-6, 250e-6
_ZEROS = bytes(MIB)
_REQUEST_BYTES = n.REQUEST.size


class Gone(ConnectionError):
    """The client has left in the middle of something, or can no longer be told anything."""


class Answering:
    """Answers the requests of one client. ``early`` is what it sent along with the end of the negotiation.

    With ``threads`` False nothing is handed to the workers.
    """

    def __init__(
        self, sock: socket.socket, session: Session, device: BlockDevice, resources: Resources, early: bytes,
        *, threads: bool,
    ) -> None:  # fmt: skip
        self._socket = sock
        self._session = session
        self._device = device
        self._writable = device if session.writable and isinstance(device, WritableDevice) else None
        self._readiness = device if threads and isinstance(device, Readiness) else None
        self._resources = resources
        self._threads = threads
        self._input = memoryview(bytearray(_BUFFER_BYTES))
        self._input[: len(early)] = early
        self._at, self._end = 0, len(early)
        self._output = memoryview(bytearray(_BUFFER_BYTES))
        self._used = 0
        self._served = 0
        self._to_flush: list[int] = []
        self._handover = Handover(resources)
        self._patience_s = 0.0
        """How long to look for the next request: about as long as the last ones let wait; none if that is long."""

    def run(self) -> None:
        """Answer until the client takes its leave or the server stops. Raises :class:`OSError` where the connection
        breaks; whatever had been handed out has come back when this returns."""
        try:
            while self._batch() and not self._resources.stopping:
                self._push()
                self._make_room()
                if not self._receive():
                    break
            self._push()
            while self._handover.outstanding:
                self._send_finished()
        finally:
            self._handover.close()

    def _batch(self) -> bool:
        """Answer all requests that have wholly arrived. False once the client is done or out of step."""
        view, session, unpack = self._input, self._session, n.REQUEST.unpack_from
        self._served = 0
        going_on = True
        while self._end - self._at >= _REQUEST_BYTES:
            if self._handover.finished:
                self._send_finished()
            magic, flags, command, cookie, offset, length = unpack(view, self._at)
            if magic != n.NBD_REQUEST_MAGIC:
                going_on = False
                break
            error = check_request(session, flags, command, offset, length)
            if command == n.NBD_CMD_WRITE and SLICE_BYTES >= length > self._end - self._at - _REQUEST_BYTES:
                break
            self._at += _REQUEST_BYTES
            self._served += 1
            if command == n.NBD_CMD_READ and not error:
                self._read(flags, cookie, offset, length)
            elif command == n.NBD_CMD_WRITE:
                self._changed(cookie, flags, self._write(error, offset, length))
            elif command == n.NBD_CMD_DISC:
                going_on = False
                break
            elif error:
                self._put(error_reply(session, command, cookie, error))
            else:
                self._other(flags, command, cookie, offset, length)
        if self._to_flush:
            self._flush()
        return going_on

    def _other(self, flags: int, command: int, cookie: int, offset: int, length: int) -> None:
        """Whatever is neither read nor write, and allowed."""
        if command == n.NBD_CMD_BLOCK_STATUS:
            try:
                one = bool(flags & n.NBD_CMD_FLAG_REQ_ONE)
                answer = block_status(cookie, self._device.extents(offset, length), one=one)
            except Exception as problem:
                answer = error_reply(self._session, command, cookie, self._resources.error_number(problem))
            self._put(answer)
        elif command == n.NBD_CMD_FLUSH:
            self._changed(cookie, n.NBD_CMD_FLAG_FUA, 0)
        elif command == n.NBD_CMD_CACHE:
            if isinstance(self._device, Prefetching) and length:
                self._resources.attempt(self._device.prefetch, offset, min(length, limits.BLOCK_BYTES_MAXIMUM))
            self._put(simple_reply(cookie))
        else:
            self._changed(cookie, flags, self._zero(flags, command, offset, length))

    def _changed(self, cookie: int, flags: int, error: int) -> None:
        """Answer a write, or remember to do so after the sync that ends the batch: one is enough for all."""
        if flags & n.NBD_CMD_FLAG_FUA and not error and self._writable is not None:
            self._to_flush.append(cookie)
        else:
            self._put(simple_reply(cookie, error))

    def _write(self, error: int, offset: int, length: int) -> int:
        """Take the payload of a write, all of it also where ``error`` says that it is refused."""
        if length > SLICE_BYTES:
            self._push()
        left = length
        while left:
            size = min(left, SLICE_BYTES)
            while self._end - self._at < size:
                self._make_room()
                if not self._receive():
                    raise Gone("the client left in the middle of a write")
            if not error and self._writable is not None:
                error = self._resources.attempt(self._writable.write, offset, self._input[self._at : self._at + size])
            self._at += size
            offset += size
            left -= size
        return error

    def _zero(self, flags: int, command: int, offset: int, length: int) -> int:
        if self._writable is None or not length:
            return 0
        if command == n.NBD_CMD_TRIM or not flags & n.NBD_CMD_FLAG_NO_HOLE:
            return self._resources.attempt(self._writable.zero, offset, length)
        end, error = offset + length, 0
        while offset < end and not error:
            size = min(len(_ZEROS), end - offset)
            stopping = self._resources.stopping
            error = (
                n.NBD_ESHUTDOWN if stopping else self._resources.attempt(self._writable.write, offset, _ZEROS[:size])
            )
            offset += size
        return error

    def _flush(self) -> None:
        """Make lasting what was written, then answer those who asked for it. Everything answered so far, on any
        connection, has been given to the device before this starts."""
        cookies, self._to_flush = self._to_flush, []
        assert self._writable is not None
        flush = self._writable.flush

        def replies() -> bytes:
            error = self._resources.attempt(flush)
            return b"".join([simple_reply(cookie, error) for cookie in cookies])

        if not self._threads or self._handover.flushing or self._alone():
            if self._used:
                self._push()
            self._put(replies())
            return
        self._handover.submit(replies, None)

    def _read(self, flags: int, cookie: int, offset: int, length: int) -> None:
        if self._readiness is not None and not self._alone() and not self._readiness.is_ready(offset, length):
            buffer = self._handover.reserve(length)
            if buffer is not None:
                view = memoryview(buffer)
                self._handover.submit(lambda: view[: self._put_read(view, 0, flags, cookie, offset, length)], buffer)
                return
            self._push()
        if length + READ_HEADS_BYTES > _BUFFER_BYTES:
            self._long_read(flags, cookie, offset, length)
            return
        if self._used + length + READ_HEADS_BYTES > _BUFFER_BYTES:
            self._push()
        self._used = self._put_read(self._output, self._used, flags, cookie, offset, length)

    def _put_read(self, target: memoryview, begin: int, flags: int, cookie: int, offset: int, length: int) -> int:
        return put_read(
            self._session, self._device, self._resources.error_number, target, begin, flags, cookie, offset, length
        )

    def _long_read(self, flags: int, cookie: int, offset: int, length: int) -> None:
        buffer = self._resources.buffers.take(length)
        if buffer is None:
            self._stream_read(flags, cookie, offset, length)
            return
        try:
            view = memoryview(buffer)
            end = self._put_read(view, 0, flags, cookie, offset, length)
            self._push()
            self._socket.sendall(view[:end])
        finally:
            self._resources.buffers.give_back(buffer)

    def _stream_read(self, flags: int, cookie: int, offset: int, length: int) -> None:
        """A long read with no memory but the connection's own. An error that shows up after the head of a simple
        reply was sent can only end the connection; a single chunk is filled up and followed by an error chunk."""
        structured, end, error = self._session.structured, offset + length, 0
        whole = not structured or bool(flags & n.NBD_CMD_FLAG_DF)
        for place in range(offset, end, SLICE_BYTES):
            size = min(SLICE_BYTES, end - place)
            self._push()
            at = 0
            if place == offset or not whole:
                span = (place, size, place + size == end) if not whole else (offset, length, False)
                if structured:
                    at = put_data_chunk(self._output, 0, cookie, *span)
                else:
                    self._output[: (at := n.SIMPLE_REPLY.size)] = simple_reply(cookie)
            data = self._output[at : at + size]
            error = error or self._resources.attempt(self._device.read_into, place, data)
            if error and (place == offset or not whole):
                self._put(error_reply(self._session, n.NBD_CMD_READ, cookie, error))
                return
            if error and not structured:
                raise Gone("a read failed after its reply had begun")
            if error:
                data[:] = bytes(size)
            self._used = at + size
        if structured and whole:
            self._push()
            self._put(error_reply(self._session, n.NBD_CMD_READ, cookie, error) if error else none_chunk(cookie))

    def _alone(self) -> bool:
        """Whether the request just taken is the only one of this client that waits."""
        return self._served == 1 and self._at == self._end and not self._handover.outstanding

    def _send_finished(self) -> None:
        self._push()
        for reply in self._handover.collect():
            self._socket.sendall(reply)

    def _put(self, reply: bytes) -> None:
        if len(reply) > _BUFFER_BYTES - self._used:
            self._push()
            if len(reply) > _BUFFER_BYTES:
                self._socket.sendall(reply)
                return
        self._output[self._used : self._used + len(reply)] = reply
        self._used += len(reply)

    def _push(self) -> None:
        if self._used:
            used, self._used = self._used, 0
            self._socket.sendall(self._output[:used])

    def _make_room(self) -> None:
        """Move what has not been served to the front."""
        left = self._end - self._at
        if self._at:
            self._input[:left] = self._input[self._at : self._end]
            self._at, self._end = 0, left

    def _receive(self) -> bool:
        """Wait for more from the client, and meanwhile send what the workers have finished. False at its end."""
        while self._handover.outstanding and not self._handover.wait(self._socket):
            self._send_finished()
        begin = time.perf_counter()
        count = self._look(begin) if self._patience_s and self._resources.looking.acquire(blocking=False) else -1
        if count < 0:
            count = self._socket.recv_into(self._input[self._end :])
        waited_s = time.perf_counter() - begin
        if waited_s > _MOST_PATIENCE_S:
            self._patience_s = 0.0
        elif waited_s > self._patience_s and self._threads:
            self._patience_s = min(max(2 * waited_s, _LEAST_PATIENCE_S), _MOST_PATIENCE_S)
        self._end += count
        return count > 0

    def _look(self, begin: float) -> int:
        """Look for the next request for a moment before going to sleep: with a client that asks one thing at a time,
        to be woken would take longer than to answer. As many bytes as came, -1 where it is time to sleep."""
        until = begin + self._patience_s
        try:
            while time.perf_counter() < until:
                with contextlib.suppress(BlockingIOError):
                    return self._socket.recv_into(self._input[self._end :], 0, socket.MSG_DONTWAIT)
            return -1
        finally:
            self._resources.looking.release()
