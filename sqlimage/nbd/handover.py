"""What a connection has given to the workers and how it comes back: a queue of replies, and an eventfd beside it that
wakes whoever waits for the socket."""

from __future__ import annotations

import os
import select
import socket
from collections import deque
from collections.abc import Callable, Iterator

from sqlimage.nbd.resources import Resources
from sqlimage.units import MIB

HELD_BYTES_MAXIMUM = 8 * MIB
"""Buffers with the workers for one connection, so that it cannot have all of them. Bounds the jobs as well."""


class Handover:
    """Used by the connection's own thread only."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._finished: deque[tuple[bytes | memoryview, bytearray | None]] = deque()
        self._rung = 0
        self._held_bytes = 0
        self._bell = -1
        self._poll = select.poll()
        self.outstanding = 0
        """Jobs whose replies have not been collected."""
        self.flushing = False
        """Whether a job without a buffer, which is a sync, is among them."""

    @property
    def finished(self) -> bool:
        """Whether a reply can be collected without waiting."""
        return bool(self._finished)

    def reserve(self, payload_bytes: int) -> bytearray | None:
        """A buffer for a job, or None where this connection or the server has as many as it may."""
        if self._held_bytes + payload_bytes > HELD_BYTES_MAXIMUM:
            return None
        buffer = self._resources.buffers.take(payload_bytes)
        self._held_bytes += len(buffer) if buffer is not None else 0
        return buffer

    def submit(self, work: Callable[[], bytes | memoryview], buffer: bytearray | None) -> None:
        """Let a worker make a reply: a read's in the buffer reserved for it, a sync's without one. ``work`` must not
        raise."""
        if self._bell < 0:
            self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        bell, finished = self._bell, self._finished

        def job() -> None:
            finished.append((work(), buffer))
            os.eventfd_write(bell, 1)

        self.outstanding += 1
        self.flushing |= buffer is None
        (self._resources.syncs if buffer is None else self._resources.decoders).submit(job)

    def wait(self, sock: socket.socket) -> bool:
        """Wait for the socket or a reply. False: there are replies to collect first."""
        self._poll.register(self._bell, select.POLLIN)
        self._poll.register(sock, select.POLLIN)
        return self._bell not in {descriptor for descriptor, _ in self._poll.poll()}

    def collect(self) -> Iterator[bytes | memoryview]:
        """The replies that are finished, after waiting for one at least. Each is valid until the next is asked for."""
        # as many as the bell has rung for, and no more: only then has their worker let go of the bell
        self._rung += os.eventfd_read(self._bell) if not self._rung else 0
        while self._rung:
            self._rung -= 1
            reply, buffer = self._finished.popleft()
            try:
                yield reply
            finally:
                self._take_back(buffer)

    def close(self) -> None:
        """Wait for what is still with the workers and throw it away."""
        while self.outstanding:
            for _ in self.collect():
                pass
        if self._bell >= 0:
            os.close(self._bell)
            self._bell = -1

    def _take_back(self, buffer: bytearray | None) -> None:
        self.outstanding -= 1
        if buffer is None:
            self.flushing = False
        else:
            self._held_bytes -= len(buffer)
            self._resources.buffers.give_back(buffer)
