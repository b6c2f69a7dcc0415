"""A client for tests that can say anything, right or wrong, with its own idea of how the protocol looks on the wire;
and devices that are slow, sparse or broken on demand."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlimage.device import BlockDevice, Buffer, DeviceExtent, WritableDevice
from sqlimage.errors import DamagedError
from sqlimage.media.memory import MemoryDevice
from sqlimage.nbd.answering import Answering
from sqlimage.nbd.resources import Resources
from sqlimage.nbd.server import Export, Server
from sqlimage.nbd.transmission import Session
from sqlimage.units import MIB

GREETING = bytes.fromhex("4e42444d41474943 49484156454f5054 0003")
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
EPERM, EIO, EINVAL, ENOSPC, ESHUTDOWN = 1, 5, 22, 28, 108
SECONDS = 20.0
"""Nothing takes so long; a client that waits longer has found a hang."""


def option(number: int, payload: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(payload)) + payload


def option_reply(number: int, kind: int, payload: bytes = b"") -> bytes:
    return bytes.fromhex("0003e889045565a9") + struct.pack(">III", number, kind, len(payload)) + payload


def string(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def go(name: bytes = b"", *informations: int) -> bytes:
    return option(7, string(name) + struct.pack(f">{1 + len(informations)}H", len(informations), *informations))


def contexts(number: int, name: bytes, *queries: bytes) -> bytes:
    return option(number, string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries)))


def request(command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 1) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


@dataclass
class Reply:
    """An answer, put together. ``chunks`` are (type, length of the payload); ``holes`` (offset, length)."""

    cookie: int
    error: int = 0
    data: dict[int, bytes] = field(default_factory=dict)
    holes: list[tuple[int, int]] = field(default_factory=list)
    status: list[tuple[int, int]] = field(default_factory=list)
    chunks: list[tuple[int, int]] = field(default_factory=list)

    def bytes_from(self, offset: int) -> bytes:
        """Data and holes in order; fails where they leave a gap or overlap."""
        joined = b""
        for place, piece in sorted([*self.data.items(), *((at, bytes(length)) for at, length in self.holes)]):
            assert place == offset + len(joined)
            joined += piece
        return joined


class Client:
    """Speaks to a server over a connected socket. Structured replies unless told otherwise."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(SECONDS)
        self.structured = False

    @classmethod
    def connect(cls, path: Path | str) -> Client:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(SECONDS)
        sock.connect(str(path))
        return cls(sock)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, length: int) -> bytes:
        received = b""
        while len(received) < length:
            piece = self.socket.recv(length - len(received))
            if not piece:
                raise EOFError(received)
            received += piece
        return received

    def greet(self, flags: int = 3) -> None:
        assert self.receive(18) == GREETING
        self.send(struct.pack(">I", flags))

    def option_reply(self) -> tuple[int, int, bytes]:
        magic, number, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == 0x3E889045565A9
        return number, kind, self.receive(length)

    def ask(self, data: bytes) -> list[tuple[int, bytes]]:
        """Send an option; all replies to it, of which the last is an ACK or an error."""
        self.send(data)
        replies: list[tuple[int, bytes]] = []
        while not replies or not (replies[-1][0] == 1 or replies[-1][0] >> 31):
            replies.append(self.option_reply()[1:])
        return replies

    def enter(self, name: bytes = b"", *, structured: bool = True) -> Client:
        """Greet and choose an export."""
        self.greet()
        if structured:
            assert self.ask(option(8)) == [(1, b"")]
            assert self.ask(contexts(10, name, b"base:allocation"))[-1] == (1, b"")
        assert self.ask(go(name))[-1] == (1, b"")
        self.structured = structured
        return self

    def reply(self, read_bytes: int = 0, offset: int = 0) -> Reply:
        """The next answer; ``read_bytes`` and ``offset`` say what a simple reply to a read carries."""
        magic = self.receive(4)
        if magic == bytes.fromhex("67446698"):
            error, cookie = struct.unpack(">IQ", self.receive(12))
            simple = Reply(cookie, error)
            if read_bytes and not error:
                simple.data[offset] = self.receive(read_bytes)
            return simple
        answer: Reply | None = None
        while True:
            assert magic == bytes.fromhex("668e33ef")
            flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
            payload = self.receive(length)
            answer = answer or Reply(cookie)
            assert answer.cookie == cookie
            answer.chunks.append((kind, length))
            if kind == 1:
                answer.data[int.from_bytes(payload[:8], "big")] = payload[8:]
            elif kind == 2:
                answer.holes.append(struct.unpack(">QI", payload))
            elif kind == 5:
                assert payload[:4] == bytes([0, 0, 0, 1])
                answer.status = list(struct.iter_unpack(">II", payload[4:]))
            elif kind == 0x8001:
                answer.error = int.from_bytes(payload[:4], "big")
                assert length == 6 + int.from_bytes(payload[4:6], "big")
            else:
                assert (kind, flags, length) == (0, 1, 0)
            if flags & 1:
                return answer
            magic = self.receive(4)

    def do(self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b"") -> Reply:
        """One request and its answer."""
        self.send(request(command, offset, length or len(data), flags=flags, cookie=77) + data)
        answer = self.reply(length if command == READ else 0, offset)
        assert answer.cookie == 77
        return answer

    def read(self, offset: int, length: int) -> bytes:
        answer = self.do(READ, offset, length)
        assert answer.error == 0
        return answer.bytes_from(offset)

    def closed(self) -> bool:
        """Whether the server has closed, after whatever it may still have sent."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionError:
            pass
        return True

    def close(self) -> None:
        self.socket.close()


@contextmanager
def serving(tmp_path: Path, *exports: Export, **options: object) -> Iterator[tuple[Server, Path]]:
    """A server on a Unix socket."""
    path = tmp_path / "nbd.sock"
    server = Server(exports, socket_path=str(path), **options)  # type: ignore[arg-type]
    server.start()
    try:
        yield server, path
    finally:
        server.stop()


class SparseDevice:
    """Holes with a stretch of data every ``every_bytes``; a read out of a hole fails, for nobody needs to."""

    bytes_per_sector = 512

    def __init__(self, size_bytes: int, every_bytes: int, data_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.every_bytes = every_bytes
        self.data_bytes = data_bytes

    def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
        at, end = offset_bytes, offset_bytes + length_bytes
        while at < end:
            within = at % self.every_bytes
            is_data = within < self.data_bytes
            stop = min(end, at - within + (self.data_bytes if is_data else self.every_bytes))
            yield DeviceExtent(at, stop - at, is_data=is_data)
            at = stop

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        assert all(extent.is_data for extent in self.extents(offset_bytes, len(buffer)))
        buffer[:] = b"\xda" * len(buffer)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        return b"\xda" * length_bytes

    def close(self) -> None:
        pass


class TroubledDevice(MemoryDevice):
    """Memory of which chosen bytes cannot be read, whose every operation can be given a failure, and which keeps a
    diary. ``gate`` holds back reads of what is not ready, and syncs, until it is set."""

    def __init__(self, content: bytes | bytearray = bytes(4 * MIB), *, not_ready_from: int | None = None) -> None:
        super().__init__(content)
        self.bad: set[int] = set()
        self.failure: Exception | None = None
        self.not_ready_from = self.size_bytes if not_ready_from is None else not_ready_from
        self.gate = threading.Event()
        self.gate.set()
        self.diary: list[str] = []

    def is_ready(self, offset_bytes: int, length_bytes: int) -> bool:
        return offset_bytes + length_bytes <= self.not_ready_from

    def _pass(self, what: str) -> None:
        self.diary.append(what)
        if self.failure is not None:
            raise self.failure

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        if not self.is_ready(offset_bytes, len(buffer)):
            assert self.gate.wait(SECONDS)
        self._pass("read")
        if any(offset_bytes <= bad < offset_bytes + len(buffer) for bad in self.bad):
            raise DamagedError("chunk 5 does not match its digest")
        super().read_into(offset_bytes, buffer)

    def write(self, offset_bytes: int, data: bytes | Buffer) -> None:
        self._pass("write")
        super().write(offset_bytes, data)

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        self._pass("zero")
        super().zero(offset_bytes, length_bytes)

    def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        self._pass(f"prefetch {offset_bytes} {length_bytes}")

    def flush(self) -> None:
        assert self.gate.wait(SECONDS)
        self._pass("flush")


@contextmanager
def answering(
    device: BlockDevice, *, structured: bool = True, writable: bool = True, early: bytes = b"",
    resources: Resources | None = None,
) -> Iterator[Client]:  # fmt: skip
    """A client past the negotiation. Fails where the server's side ends in anything but order."""
    ours, theirs = socket.socketpair()
    resources = resources or Resources(None)
    resources.start()
    session = Session(0, device.size_bytes, writable and isinstance(device, WritableDevice), structured, structured)
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            Answering(theirs, session, device, resources, early, threads=True).run()
        except OSError:
            pass
        except BaseException as failure:
            failures.append(failure)
        theirs.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    client = Client(ours)
    client.structured = structured
    try:
        yield client
    finally:
        client.close()
        thread.join(SECONDS)
        resources.stop()
        assert not thread.is_alive()
        assert failures == []
