"""A line that can be cut: a TCP proxy on this machine that ends connections after so many bytes, either way."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_PIECE_BYTES = 16 << 10
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a connection ends."""

    after_bytes: int
    is_up: bool = False
    """Counted in what the client sends; else in what it is sent."""
    is_reset: bool = False
    """Ended by a reset; else as if the other side had closed."""


class Line:
    """``cuts`` are taken one by one, one for each connection; those that find none are not cut, or as ``always`` says.
    ``after`` is called with the bytes that have gone up and down in all, after each piece, from any thread."""

    def __init__(self, port: int) -> None:
        self.target_port = port
        self.cuts: list[Cut] = []
        self.always: Cut | None = None
        self.after: Callable[[int, int], object] = lambda up, down: None
        self.connections = self.ended = 0
        self.up_bytes = self.down_bytes = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """From now on nothing gets through, until ``always`` is None again."""
        self.always = Cut(0)
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with self._lock:
            self.connections += 1
            cut = self.cuts.pop(0) if self.cuts else self.always
        try:
            server = socket.create_connection(("127.0.0.1", self.target_port))
        except OSError:
            client.close()
            return
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open |= {client, server}
        up = threading.Thread(target=self._copy, args=(client, server, cut, True), daemon=True)
        up.start()
        self._copy(server, client, cut, False)
        up.join()
        for one in (client, server):
            one.close()
        with self._lock:
            self._open -= {client, server}

    def _copy(self, source: socket.socket, sink: socket.socket, cut: Cut | None, is_up: bool) -> None:
        left = cut.after_bytes if cut is not None and cut.is_up == is_up else None
        with contextlib.suppress(OSError):
            while left is None or left > 0:
                piece = source.recv(_PIECE_BYTES if left is None else min(_PIECE_BYTES, left))
                if not piece:
                    break
                sink.sendall(piece)
                left = None if left is None else left - len(piece)
                self._count(len(piece), is_up)
        if left == 0 and cut is not None:
            self.ended += 1
            if cut.is_reset:
                for one in (source, sink):
                    with contextlib.suppress(OSError):
                        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            # who closes with such a linger resets, if it has not said before that it is at its end
            for one in (source, sink):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RD if cut.is_reset else socket.SHUT_RDWR)
        else:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

    def _count(self, length: int, is_up: bool) -> None:
        with self._lock:
            if is_up:
                self.up_bytes += length
            else:
                self.down_bytes += length
            told = self.up_bytes, self.down_bytes
        self.after(*told)

    def close(self) -> None:
        with self._lock:
            left = [*self._open]
        for one in (self._listening, *left):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


@contextlib.contextmanager
def cutting(port: int) -> Iterator[Line]:
    """A line to a port of this machine."""
    line = Line(port)
    try:
        yield line
    finally:
        line.close()
