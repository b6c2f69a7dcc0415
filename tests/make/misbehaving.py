"""A web server that does on demand what servers and lines do on bad days. One object, or a shelf of them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Misbehaving:
    """Serves ``content`` under every path, or where it is a mapping what it has for the path after ``/shelf/``.

    ``faults`` are taken one by one, one for each request, before it behaves; ``requests`` is what was asked for: the
    path, and the headers in small letters."""

    def __init__(self, content: bytes | Mapping[str, bytes]) -> None:
        self.content = content
        self.faults: list[Callable[[Handler], None]] = []
        self.always: Callable[[Handler], None] | None = None
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent_bytes = 0
        self.url = ""
        self.stopping = threading.Event()

    def next_fault(self) -> Callable[[Handler], None] | None:
        with contextlib.suppress(IndexError):
            return self.faults.pop(0)
        return self.always


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Misbehaving
    content: bytes

    def do_GET(self) -> None:
        self.state.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        shelf = self.state.content
        found = shelf if isinstance(shelf, bytes) else shelf.get(self.path.removeprefix("/shelf/"))
        self.content = found or b""
        (status(404) if found is None else self.state.next_fault() or behave)(self)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name of the base class
        pass

    def asked(self) -> tuple[int, int] | None:
        """The part that was asked for, as far as there is one."""
        told = self.headers.get("Range")
        if not told:
            return None
        first, last = told.removeprefix("bytes=").split("-")
        return int(first), min(int(last) + 1, len(self.content))

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, body: bytes) -> None:
        if self.command != "HEAD":
            self.wfile.write(body)
            self.state.sent_bytes += len(body)

    def answer(self, body: bytes, status: int | None = None, **changed: str) -> None:
        """An answer as it should be, but for what is changed: names of headers with _ for -."""
        part = self.asked()
        headers = {"Content-Length": str(len(body))}
        if part:
            headers["Content-Range"] = f"bytes {part[0]}-{part[1] - 1}/{len(self.content)}"
        headers.update({name.replace("_", "-"): value for name, value in changed.items()})
        self.begin(status or (206 if part else 200), headers)
        self.send(body)

    def body(self) -> bytes:
        first, end = self.asked() or (0, len(self.content))
        return self.content[first:end]

    def hang_up(self, *, reset: bool) -> None:
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.wfile.flush()
        self.close_connection = True
        if reset:
            self.connection.close()


def behave(handler: Handler) -> None:
    part = handler.asked()
    if part and part[0] >= len(handler.content):
        handler.begin(416, {"Content-Length": "0", "Content-Range": f"bytes */{len(handler.content)}"})
        return
    handler.answer(handler.body())


def status(code: int, **headers: str) -> Callable[[Handler], None]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.begin(code, {"Content-Length": "0", **named})


def cut_after(count: int, *, reset: bool = False) -> Callable[[Handler], None]:
    """All headers, the first bytes, and no more."""

    def fault(handler: Handler) -> None:
        body = handler.body()
        part = handler.asked()
        told = {"Content-Range": f"bytes {part[0]}-{part[1] - 1}/{len(handler.content)}"} if part else {}
        handler.begin(206 if part else 200, {"Content-Length": str(len(body)), **told})
        handler.send(body[:count])
        handler.hang_up(reset=reset)

    return fault


def wrong_bytes(handler: Handler) -> None:
    body = bytearray(handler.body())
    body[len(body) // 2] ^= 1
    handler.answer(bytes(body))


def no_ranges(handler: Handler) -> None:
    handler.begin(200, {"Content-Length": str(len(handler.content))})
    with contextlib.suppress(OSError):  # who wanted a part hangs up
        for at in range(0, len(handler.content), 1 << 16):
            handler.send(handler.content[at : at + (1 << 16)])


def lies(**headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(handler.body(), None, **headers)


def endless(handler: Handler) -> None:
    """A body of which the headers tell no length, and that does not end as long as somebody reads."""
    handler.begin(200, {"Transfer-Encoding": "chunked"})
    with contextlib.suppress(OSError):
        while not handler.state.stopping.is_set():
            handler.send(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
    handler.close_connection = True


def silent(handler: Handler) -> None:
    """No answer until the server is stopped."""
    handler.state.stopping.wait(60)
    handler.close_connection = True


def dripping(pieces: int, pause_s: float) -> Callable[[Handler], None]:
    def fault(handler: Handler) -> None:
        body = handler.body()
        handler.begin(200, {"Content-Length": str(len(body))})
        step = -(-len(body) // pieces)
        for at in range(0, len(body), step):
            handler.send(body[at : at + step])
            time.sleep(pause_s)

    return fault


def redirect(url: str, code: int = 302) -> Callable[[Handler], None]:
    return status(code, Location=url)


@contextlib.contextmanager
def misbehaving(content: bytes | Mapping[str, bytes], certificate: Path | None = None) -> Iterator[Misbehaving]:
    """Such a server, over TLS with a certificate (its key in the same file)."""
    state = Misbehaving(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
    server.daemon_threads = True
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]  # who was cut off resets
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    host = "localhost" if certificate else "127.0.0.1"
    state.url = f"{'https' if certificate else 'http'}://{host}:{server.server_address[1]}/shelf"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()


def make_certificate(path: Path) -> Path:
    """A certificate for localhost that vouches for itself, and its key, in one file of PEM."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path
