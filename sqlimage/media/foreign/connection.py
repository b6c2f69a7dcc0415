"""A connected socket on which every exchange has a deadline: the peer may be anything, and may say nothing."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence

_PIECE_BYTES = 1 << 20
"""Largest piece that is received before the clock is looked at again."""


class BrokenConnection(Exception):
    """The peer has gone, is silent, or breaks the protocol: nothing more can be asked on this connection."""


class Connection:
    """Whole messages in and out. Every method raises :class:`BrokenConnection` when the deadline set by :meth:`begin`
    has passed or the peer has closed."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._seconds = 0.0
        self._deadline = 0.0

    def begin(self, seconds: float) -> None:
        """From now on, all that follows must be done in this time."""
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds

    def send(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send these bytes, one part after the other."""
        views = [memoryview(part) for part in parts if len(part)]
        try:
            while views:
                self._set_timeout()
                sent = self._socket.sendmsg(views)
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if sent:
                    views[0] = views[0][sent:]
        except TimeoutError:
            raise self._late() from None
        except OSError as problem:
            raise BrokenConnection(f"the connection broke ({problem.strerror})") from None

    def receive_into(self, view: memoryview) -> None:
        """Fill the view."""
        done = 0
        try:
            while done < len(view):
                self._set_timeout()
                count = self._socket.recv_into(view[done : done + _PIECE_BYTES])
                if count == 0:
                    raise BrokenConnection("it closed the connection")
                done += count
        except TimeoutError:
            raise self._late() from None
        except OSError as problem:
            raise BrokenConnection(f"the connection broke ({problem.strerror})") from None

    def receive(self, length_bytes: int) -> bytes:
        """So many bytes. The caller has made sure that the number is no larger than it should be."""
        buffer = bytearray(length_bytes)
        self.receive_into(memoryview(buffer))
        return bytes(buffer)

    def close(self) -> None:
        """Let go, and wake whoever waits for the peer."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _set_timeout(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._late()
        self._socket.settimeout(left)

    def _late(self) -> BrokenConnection:
        return BrokenConnection(f"no answer within {self._seconds:.0f} seconds")
