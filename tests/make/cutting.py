"""A line that breaks: passes bytes on to a server, and cuts connections after so many of them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator


class Cutting:
    """``cuts`` are taken one by one, one for each connection that sends anything: after how many bytes towards the
    server it is cut (None: never). When they have run out no connection is cut. ``sent`` counts what each connection
    passed on, with what it was cut after."""

    def __init__(self, host: str) -> None:
        name, _, port = host.rpartition(":")
        self._target = (name, int(port))
        self.cuts: list[int | None] = []
        self.sent: list[int] = []
        self.back_cuts: list[int | None] = []
        """The same for what comes back from the server."""
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()

    def run(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            with self._lock:
                self._open.update((near, far))
            threading.Thread(target=self._towards_server, args=(near, far), daemon=True).start()
            threading.Thread(target=self._back, args=(far, near), daemon=True).start()

    def _towards_server(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            piece = near.recv(1 << 16)
            with self._lock:
                left = self.cuts.pop(0) if self.cuts else None
                self.sent.append(0)
                number = len(self.sent) - 1
            while piece:
                piece, left = _as_far_as(piece, left)
                far.sendall(piece)
                self.sent[number] += len(piece)
                if left == 0:
                    break
                piece = near.recv(1 << 16)
        self._end(far, is_reset=False)
        self._end(near, is_reset=True)

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            piece = far.recv(1 << 16)
            with self._lock:
                left = self.back_cuts.pop(0) if piece and self.back_cuts else None
            while piece:
                piece, left = _as_far_as(piece, left)
                near.sendall(piece)
                if left == 0:
                    break
                piece = far.recv(1 << 16)
        self._end(far, is_reset=False)
        self._end(near, is_reset=False)

    def _end(self, one: socket.socket, *, is_reset: bool) -> None:
        with contextlib.suppress(OSError):
            if is_reset:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for one in self._open:
                self._end(one, is_reset=False)


def _as_far_as(piece: bytes, left: int | None) -> tuple[bytes, int | None]:
    """As much of a piece as may pass, and what may pass after it."""
    if left is None:
        return piece, None
    return piece[:left], left - len(piece[:left])


@contextlib.contextmanager
def cutting(host: str) -> Iterator[Cutting]:
    """Such a line to ``host:port``; its own near end is :attr:`Cutting.host`."""
    line = Cutting(host)
    thread = threading.Thread(target=line.run, daemon=True)
    thread.start()
    try:
        yield line
    finally:
        line.close()
        thread.join()
