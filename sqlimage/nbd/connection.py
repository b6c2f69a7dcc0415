"""One client from its first byte to its last: greeting, negotiation against the clock, TLS, requests, farewell."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Sequence

from sqlimage.device import BlockDevice
from sqlimage.nbd.answering import Answering
from sqlimage.nbd.handshake import Negotiation, Offer, State
from sqlimage.nbd.resources import Resources
from sqlimage.nbd.tls import TlsSettings
from sqlimage.nbd.transmission import Session

NEGOTIATION_SECONDS = 10.0
"""After that a client that has not chosen an export is dropped."""
_FAREWELL_SECONDS = 0.5
_RECEIVE_BYTES = 65536


class Connection:
    """``since`` is when it was accepted (monotonic seconds), ``negotiating`` until an export was chosen."""

    def __init__(
        self, sock: socket.socket, offers: Sequence[Offer], devices: Sequence[BlockDevice], tls: TlsSettings | None,
        resources: Resources,
    ) -> None:  # fmt: skip
        self._socket = sock
        self._offers = offers
        self._devices = devices
        self._tls = tls
        self._resources = resources
        self.since = time.monotonic()
        self.negotiating = True
        self.dropped = False

    def run(self) -> None:
        """Serve the client to its end. Never raises."""
        try:
            negotiation = Negotiation(self._offers, tls=self._tls is not None)
            session = self._negotiate(negotiation)
            if session is not None:
                self._serve(session, negotiation.rest)
        except OSError:
            pass  # the client is gone, or does not speak the protocol: nobody is left to be told
        except Exception as problem:
            self._resources.note(f"a connection was closed: {type(problem).__name__}: {problem}")
        finally:
            self._close()

    def drop(self, how: int = socket.SHUT_RDWR) -> None:
        """End it from another thread: its own wakes up and closes. ``SHUT_RD``: what is under way is answered yet."""
        self.dropped = True
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, how)  # an SSLSocket's own would forget the encryption

    def _negotiate(self, negotiation: Negotiation) -> Session | None:
        deadline = self.since + NEGOTIATION_SECONDS
        answer = negotiation.greeting
        while True:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            if answer:
                self._socket.sendall(answer)
            if negotiation.state is State.STARTTLS and self._tls is not None:
                self._encrypt(self._tls)
                negotiation.tls_started()
            elif negotiation.state in (State.TRANSMISSION, State.CLOSED):
                return negotiation.session
            data = self._socket.recv(_RECEIVE_BYTES)
            if not data:
                return None
            answer = negotiation.receive(data)

    def _encrypt(self, tls: TlsSettings) -> None:
        # in two steps, so that another thread can end the handshake too
        sock = tls.context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
        self._socket = sock
        try:
            sock.do_handshake()
        except ssl.SSLError as problem:
            self._resources.note(f"a client was refused by TLS ({problem.reason or problem})")
            raise

    def _serve(self, session: Session, early: bytes) -> None:
        self.negotiating = False
        self._socket.settimeout(None)
        threads = not isinstance(self._socket, ssl.SSLSocket)  # these may not be waited for along with an eventfd
        device = self._devices[session.export]
        Answering(self._socket, session, device, self._resources, early, threads=threads).run()

    def _close(self) -> None:
        """Clients such as nbdcopy wait for this after their farewell."""
        with contextlib.suppress(OSError, ValueError):
            self._socket.settimeout(_FAREWELL_SECONDS)
            if isinstance(self._socket, ssl.SSLSocket):
                self._socket.unwrap()
            elif self._resources.stopping:
                self._linger()
        self._socket.close()

    def _linger(self) -> None:
        """Closing while unread requests lie in the socket would also throw away replies the client has not read."""
        self._socket.shutdown(socket.SHUT_WR)
        end = time.monotonic() + _FAREWELL_SECONDS
        while time.monotonic() < end and self._socket.recv(_RECEIVE_BYTES):
            pass
