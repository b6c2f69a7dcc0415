"""What hostile clients have done to other servers. Each time another client goes on being served."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sqlimage.nbd.server import Export
from sqlimage.units import KIB, MIB
from tests.conftest import CHECKOUT
from tests.images import noise
from tests.make.cost import PATIENCE
from tests.nbd.client import (
    EINVAL,
    READ,
    SECONDS,
    WRITE,
    Client,
    TroubledDevice,
    go,
    option,
    request,
    serving,
)

CONTENT = noise("attacks", MIB)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    """A server's socket. Whatever the test does, a client beside it is served all the time, and a new one after."""
    device = TroubledDevice(CONTENT)
    with serving(tmp_path, Export("disk", device, writable=True)) as (_, path):
        bystander = Client.connect(path).enter()
        assert bystander.read(0, MIB) == CONTENT
        yield path
        begin = time.monotonic()
        assert bystander.read(0, MIB) == CONTENT
        assert time.monotonic() - begin < 5 * PATIENCE
        newcomer = patiently(path)
        assert newcomer.read(0, MIB) == CONTENT


def patiently(path: Path) -> Client:
    """A client that tries again where the server is full."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return Client.connect(path).enter()
        except (EOFError, ConnectionError, BlockingIOError):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("length", [65537, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("number", [1, 2, 3, 6, 7, 9, 10, 77])
def test_options_that_claim_to_be_huge(served: Path, number: int, length: int) -> None:
    client = Client.connect(served)
    client.greet()
    client.send(b"IHAVEOPT" + struct.pack(">II", number, length))
    assert client.closed()


@pytest.mark.parametrize("number", [6, 7])
def test_names_that_claim_to_be_huge(served: Path, number: int) -> None:
    client = Client.connect(served)
    client.greet()
    for length in (0xFFFFFFFF, 0x80000000, 4097, 5):
        assert client.ask(option(number, struct.pack(">I", length) + b"disk"))[-1][0] >> 31
    assert client.ask(go(b"disk"))[-1] == (1, b"")


def test_options_without_end(served: Path) -> None:
    client = Client.connect(served)
    client.greet()
    with pytest.raises((EOFError, ConnectionError)):
        for _ in range(1000):
            client.ask(option(3))


def test_commands_before_the_negotiation_ends(served: Path) -> None:
    for flags in (0, 1, 2, 3):
        client = Client.connect(served)
        client.greet(flags)
        client.send(request(READ, 0, 4096) * 10)
        assert client.closed()


def test_oldstyle_clients_that_say_nothing_right(served: Path) -> None:
    for said in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(1000), b"\xff" * 100_000, b"NBDMAGIC" * 9):
        client = Client.connect(served)
        client.send(said)
        assert client.closed()


def test_reads_and_writes_of_4_gib_and_beyond_the_end_of_numbers(served: Path) -> None:
    client = Client.connect(served).enter()
    top = (1 << 64) - 1
    for offset, length in ((0, (1 << 32) - 1), (top, 1), (top, (1 << 32) - 1), (top - 5, 10), (MIB, 1)):
        assert client.do(READ, offset, length).error == EINVAL
    assert client.read(0, 512) == CONTENT[:512]
    client.send(request(WRITE, 0, (1 << 32) - 1) + bytes(100 * MIB))  # drained, for it may come to its end


def test_half_open_clients_by_the_hundred(served: Path) -> None:
    sockets = []
    for _ in range(400):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(served))
        sockets.append(sock)
    patiently(served).close()
    for sock in sockets:
        sock.close()


def test_idle_clients_as_many_as_are_let_in(served: Path) -> None:
    idle = []
    for _ in range(300):
        try:
            idle.append(Client.connect(served).enter())
        except (EOFError, ConnectionError):
            continue
    assert len(idle) == 63
    for client in idle[::2]:
        assert client.read(4096, 512) == CONTENT[4096:4608]
    for client in idle:
        client.close()


def test_hanging_up_at_every_point(served: Path) -> None:
    said = bytes.fromhex("00000003") + option(8) + go(b"disk") + request(READ, 0, 4096) + request(WRITE, 0, 9) + b"1234"
    for end in range(len(said) + 1):
        client = Client.connect(served)
        client.send(said[:end])
        client.close()


def test_hanging_up_with_replies_under_way(served: Path) -> None:
    for _ in range(50):
        client = Client.connect(served).enter()
        client.send(request(READ, 0, MIB) * 20)
        client.close()


def test_clients_that_never_read_their_replies(served: Path) -> None:
    deaf = [Client.connect(served).enter() for _ in range(20)]
    for client in deaf:
        client.send(request(READ, 0, MIB) * 100)
    for _ in range(20):
        begin = time.monotonic()
        other = Client.connect(served).enter()
        assert other.read(0, MIB) == CONTENT
        assert time.monotonic() - begin < 2 * PATIENCE
        other.close()
    for client in deaf:
        client.close()


SERVER = """
import sys
from sqlimage.device import DeviceExtent
from sqlimage.nbd.server import Export, Server
class Device:
    size_bytes, bytes_per_sector = 1 << 40, 512
    def read_into(self, offset, buffer): buffer[:] = b"x" * len(buffer)
    def extents(self, offset, length): yield DeviceExtent(offset, length, True)
    def is_ready(self, offset, length): return offset % 3 == 0
    def write(self, offset, data): pass
    def zero(self, offset, length): pass
    def flush(self): pass
    def read(self, offset, length): return bytes(length)
    def close(self): pass
server = Server([Export("disk", Device(), writable=True)], socket_path=sys.argv[1])
server.start()
print("ready", flush=True)
sys.stdin.read()
server.stop(grace_seconds=0.3)
"""


def test_memory_stays_under_256_mib_whatever_clients_do(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=CHECKOUT
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"ready\n"
        clients = [Client.connect(path).enter(structured=bool(number % 2)) for number in range(60)]
        for number, client in enumerate(clients):
            requests = [request(READ, 4096 * at + number, 32 * MIB >> at % 10, cookie=at) for at in range(40)]
            client.send(b"".join(requests) + request(WRITE, 0, 512 * KIB))
            client.socket.settimeout(0.02)
            with contextlib.suppress(TimeoutError):  # the server takes no more before its replies are taken
                client.send(bytes(512 * KIB - 1))
        begin = time.monotonic()
        assert patiently(path).read(0, 8 * MIB) == b"x" * 8 * MIB
        assert time.monotonic() - begin < 5 * PATIENCE
        status = Path(f"/proc/{child.pid}/status").read_text()
        peak_kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
        assert peak_kib < 256 * KIB
    finally:
        child.stdin.close()
        child.stdout.close()
        assert child.wait(SECONDS) == 0


def test_running_out_of_descriptors_ends_nothing(tmp_path: Path) -> None:
    problems: list[str] = []
    device = TroubledDevice(CONTENT)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(tmp_path, Export("disk", device), on_problem=problems.append) as (_, path):
        present = Client.connect(path).enter()
        waiting = socket.socket(socket.AF_UNIX)
        os.close(lowest := os.dup(waiting.fileno()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            waiting.connect(str(path))
            time.sleep(0.2)
            assert present.read(0, 512) == CONTENT[:512]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert Client(waiting).enter().read(0, 512) == CONTENT[:512]
    assert any("could not be accepted" in problem for problem in problems)
