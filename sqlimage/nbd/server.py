"""A server of devices: listens, gives each client a thread, and stops in good order."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import quote

from sqlimage.device import BlockDevice, WritableDevice
from sqlimage.errors import SqlimageError, UsageError
from sqlimage.nbd.connection import Connection
from sqlimage.nbd.handshake import Offer
from sqlimage.nbd.limits import STRING_BYTES_MAXIMUM
from sqlimage.nbd.listening import listen_tcp, listen_unix, prepare_client
from sqlimage.nbd.resources import Resources
from sqlimage.nbd.tls import TlsSettings
from sqlimage.nbd_layout import DEFAULT_PORT

_NEGOTIATION_RIGHT_SECONDS = 1.0
"""How long a client may negotiate before it has to make room for another where the server is full."""
_PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Export:
    """A device under a name. ``writable`` needs a :class:`~sqlimage.device.WritableDevice`."""

    name: str
    device: BlockDevice
    description: str = ""
    writable: bool = False


class Server:
    """Serves ``exports`` on a Unix socket, a TCP port, or both. The empty export name means the first of them.

    Without ``address`` the port is one of the loopback interface; 0 picks a free one, and with an address alone it is
    10809. Every user of this machine can reach a loopback port, only the owner a Unix socket. With ``tls`` every client
    must encrypt. At most ``most_connections`` clients are served, the excess is
    closed at once. ``on_problem`` is told in one line what clients are not, such as a damaged chunk; from any thread.

    Raises :class:`~sqlimage.errors.UsageError` where there is nothing to serve or to listen on, two exports have one
    name, a name is too long, or an export is to be writable and its device is not.
    """

    def __init__(
        self, exports: Sequence[Export], *, socket_path: str | None = None, address: str | None = None,
        port: int | None = None, tls: TlsSettings | None = None, most_connections: int = 64,
        on_problem: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        if socket_path is None and address is None and port is None:
            raise UsageError("a server needs a Unix socket or a port to listen on")
        self._exports = tuple(exports)
        self._offers = _offers(self._exports)
        self._socket_path = socket_path
        self._address = address
        self._port = DEFAULT_PORT if port is None and address is not None else port
        self._tls = tls
        self._most_connections = most_connections
        self._resources = Resources(on_problem)
        self._listeners: list[socket.socket] = []
        self._inode = (0, 0)
        self._connections: dict[Connection, threading.Thread] = {}
        self._lock = threading.Lock()
        self._acceptor: threading.Thread | None = None
        self._bell = -1
        self.uris: tuple[str, ...] = ()
        """Where each export is to be found, once the server has started."""

    @property
    def uri(self) -> str:
        """Where the first export is to be found, once the server has started."""
        return self.uris[0]

    def start(self) -> None:
        """Listen and serve, in threads of its own. Can be called once.

        Raises :class:`~sqlimage.errors.RefusedError` where socket or port are in use or not to be replaced, and
        :class:`~sqlimage.errors.UsageError` for an address that is not this machine's, or for one other machines can
        reach without ``tls``.
        """
        if self._acceptor is not None:
            raise UsageError("the server has been started already")
        try:
            if self._port is not None:
                self._listeners.append(listen_tcp(self._address, self._port, anywhere=self._tls is not None))
            if self._socket_path is not None:
                self._listeners.insert(0, listen_unix(self._socket_path))
                status = os.lstat(self._socket_path)
                self._inode = (status.st_dev, status.st_ino)
        except BaseException:
            self._stop_listening()
            raise
        self.uris = tuple(self._uri(listener, export) for listener in self._listeners for export in self._exports)
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        self._acceptor = threading.Thread(target=self._accept_all, name="nbd-acceptor", daemon=True)
        with _without_sigpipe():
            self._resources.start()
            self._acceptor.start()

    def stop(self, grace_seconds: float = 5.0) -> None:
        """Accept nobody any more, answer what is under way, flush each writable device once, close. Clients that take
        longer than ``grace_seconds`` are cut off. Calling it twice is allowed.

        Raises what a device's flush raises, after everything is closed.
        """
        if self._acceptor is None or self._resources.stopping:
            return
        self._resources.stopping = True
        os.eventfd_write(self._bell, 1)
        self._acceptor.join()
        os.close(self._bell)
        self._stop_listening()
        with self._lock:
            remaining = dict(self._connections)
        for connection in remaining:
            connection.drop(socket.SHUT_RDWR if connection.negotiating else socket.SHUT_RD)
        _join(remaining.values(), grace_seconds)
        for connection, thread in remaining.items():
            if thread.is_alive():
                connection.drop()
        _join(remaining.values(), 1.0)
        self._resources.stop()
        self._flush()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _flush(self) -> None:
        failure: SqlimageError | None = None
        devices = {id(export.device): export.device for export in self._exports if export.writable}
        for device in devices.values():
            try:
                if isinstance(device, WritableDevice):
                    device.flush()
            except SqlimageError as problem:
                failure = failure or problem
        if failure is not None:
            raise failure

    def _uri(self, listener: socket.socket, export: Export) -> str:
        scheme = "nbds" if self._tls is not None else "nbd"
        name = quote(export.name, safe="")
        if listener.family == socket.AF_UNIX:
            return f"{scheme}+unix:///{name}?socket={quote(str(self._socket_path))}"
        host, port = listener.getsockname()[:2]
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/{name}"

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        if self._socket_path is not None and self._inode != (0, 0):
            with contextlib.suppress(OSError):
                status = os.lstat(self._socket_path)
                if (status.st_dev, status.st_ino) == self._inode:  # it may be another's by now
                    os.unlink(self._socket_path)

    def _accept_all(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._bell, selectors.EVENT_READ)
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ)
            while not self._resources.stopping:
                for key, _ in selector.select():
                    while isinstance(key.fileobj, socket.socket) and self._accept(key.fileobj):
                        pass

    def _accept(self, listener: socket.socket) -> bool:
        """Take one client; False where nobody else waits, or the server stops."""
        try:
            sock, _ = listener.accept()
        except ConnectionError:
            return True  # gone before it was looked at
        except BlockingIOError:
            return False
        except OSError as problem:
            self._resources.note(f"a client could not be accepted ({problem.strerror})")
            time.sleep(_PAUSE_SECONDS)  # out of descriptors: it will not be better at once
            return False
        if not self._has_room():
            sock.close()
            return True
        self._begin(sock)
        return not self._resources.stopping

    def _begin(self, sock: socket.socket) -> None:
        prepare_client(sock)
        devices = [export.device for export in self._exports]
        connection = Connection(sock, self._offers, devices, self._tls, self._resources)
        thread = threading.Thread(target=self._serve, args=(connection,), name="nbd-connection", daemon=True)
        with self._lock:
            self._connections[connection] = thread
        try:
            thread.start()
        except RuntimeError:
            self._resources.note("a client was turned away, for no thread could be started")
            with self._lock:
                del self._connections[connection]
            sock.close()

    def _has_room(self) -> bool:
        """Whether one more client can be served; where only half-open ones are in the way the oldest has to go."""
        with self._lock:
            present = [connection for connection in self._connections if not connection.dropped]
        if len(present) < self._most_connections:
            return True
        latest = time.monotonic() - _NEGOTIATION_RIGHT_SECONDS
        idle = [connection for connection in present if connection.negotiating and connection.since < latest]
        if idle:
            min(idle, key=lambda connection: connection.since).drop()
        return bool(idle)

    def _serve(self, connection: Connection) -> None:
        try:
            connection.run()
        finally:
            with self._lock:
                self._connections.pop(connection, None)


def _offers(exports: Sequence[Export]) -> tuple[Offer, ...]:
    if not exports:
        raise UsageError("a server needs something to serve")
    offers = []
    for export in exports:
        name, description = export.name.encode(), export.description.encode()
        if max(len(name), len(description)) > STRING_BYTES_MAXIMUM:
            raise UsageError(f"name and description of an export may have {STRING_BYTES_MAXIMUM} bytes")
        if export.writable and not isinstance(export.device, WritableDevice):
            raise UsageError(f"export {export.name!r} cannot be writable, its device only reads")
        offers.append(Offer(name, description, export.device.size_bytes, export.writable))
    if len({offer.name for offer in offers}) < len(offers):
        raise UsageError("two exports have the same name")
    return tuple(offers)


@contextlib.contextmanager
def _without_sigpipe() -> Iterator[None]:
    """Threads started in the block, and those they start, are not ended by a client that hangs up before its reply: a
    command line lets SIGPIPE end the process, and OpenSSL writes without ``MSG_NOSIGNAL``."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGPIPE,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _join(threads: Iterable[threading.Thread], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
