"""A server as its owner sees it: sockets, addresses, limits, the end."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sqlimage.errors import DeviceError, NotFoundError, RefusedError, UsageError
from sqlimage.media.memory import MemoryDevice
from sqlimage.media.window import Window
from sqlimage.nbd import connection
from sqlimage.nbd.server import Export, Server
from sqlimage.units import MIB
from tests.images import noise
from tests.make.cost import PATIENCE
from tests.nbd.client import DISC, FLUSH, READ, SECONDS, WRITE, Client, TroubledDevice, option, request, serving

DISK = Export("disk", MemoryDevice(bytes(MIB)), "a disk", writable=True)


def test_a_server_needs_a_place_and_sound_exports() -> None:
    window = Window(MemoryDevice(bytes(1024)), 0, 512)
    for exports, options in (
        ([DISK], {}),
        ([], {"port": 0}),
        ([DISK, DISK], {"port": 0}),
        ([Export("x" * 4097, DISK.device)], {"port": 0}),
        ([Export("x", DISK.device, "ü" * 2049)], {"port": 0}),
        ([Export("window", window, writable=True)], {"port": 0}),
    ):
        with pytest.raises(UsageError):
            Server(exports, **options)  # type: ignore[arg-type]


def test_uris_tell_every_export_on_every_socket(tmp_path: Path) -> None:
    path = tmp_path / "a socket"
    with Server([DISK, Export("größe/2", DISK.device)], socket_path=str(path), port=0) as server:
        port = server.uris[2].split(":")[2].split("/")[0]
        assert server.uris == (
            f"nbd+unix:///disk?socket={tmp_path}/a%20socket",
            f"nbd+unix:///gr%C3%B6%C3%9Fe%2F2?socket={tmp_path}/a%20socket",
            f"nbd://127.0.0.1:{port}/disk",
            f"nbd://127.0.0.1:{port}/gr%C3%B6%C3%9Fe%2F2",
        )
        assert server.uri == server.uris[0]
        Client(socket.create_connection(("127.0.0.1", int(port)))).enter("größe/2".encode()).close()


def test_the_empty_name_is_the_first_export(tmp_path: Path) -> None:
    with serving(tmp_path, DISK, Export("other", MemoryDevice(b"\1" * 512))) as (_, path):
        assert Client.connect(path).enter(b"").read(0, 1) == b"\0"
        assert Client.connect(path).enter(b"other").read(0, 1) == b"\1"


def test_a_unix_socket_is_its_owners_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    with serving(tmp_path, DISK) as (_, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(RefusedError, match="listens"):
            Server([DISK], socket_path=str(path)).start()
        assert Client.connect(path).enter().read(0, 1) == b"\0"
    assert not path.exists()


def test_a_socket_left_behind_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen()
    with serving(tmp_path, DISK):
        assert Client.connect(path).enter().read(0, 1) == b"\0"
    makers: tuple[Callable[[], None], ...] = (path.touch, lambda: path.symlink_to(tmp_path / "elsewhere"), path.mkdir)
    for make in makers:
        make()
        with pytest.raises(RefusedError, match="not a socket"):
            Server([DISK], socket_path=str(path)).start()
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_socket_that_is_anothers_by_now_is_left_alone(tmp_path: Path) -> None:
    with serving(tmp_path, DISK) as (_, path):
        path.unlink()
        path.touch()
    assert path.exists()


def test_places_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        Server([DISK], socket_path=str(tmp_path / "missing" / "socket")).start()
    with pytest.raises(UsageError):
        Server([DISK], socket_path=str(tmp_path / ("x" * 120))).start()
    for address, port in ((None, 65536), (None, -1), ("no.such.host.invalid", 0), ("\0", 0)):
        with pytest.raises(UsageError):
            Server([DISK], address=address, port=port).start()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        socket_path = tmp_path / "socket"
        with pytest.raises(RefusedError, match="port"):
            Server([DISK], port=taken.getsockname()[1], socket_path=str(socket_path)).start()
        assert not socket_path.exists()


@pytest.mark.parametrize("address", ["0.0.0.0", "::", ""])
def test_without_tls_only_this_machine_is_served(address: str) -> None:
    server = Server([DISK], address=address, port=0)
    if address:
        with pytest.raises(UsageError, match="TLS"):
            server.start()
    else:
        with server:
            assert server.uri.startswith("nbd://127.0.0.1:")


def test_loopback_of_the_sixth_version() -> None:
    with Server([DISK], address="::1", port=0) as server:
        assert server.uri.startswith("nbd://[::1]:")


def test_the_excess_of_clients_is_closed_at_once_and_others_are_not_disturbed(tmp_path: Path) -> None:
    with serving(tmp_path, DISK, most_connections=3) as (_, path):
        present = [Client.connect(path).enter() for _ in range(3)]
        for _ in range(10):
            assert Client.connect(path).closed()
        assert all(client.read(0, 512) == bytes(512) for client in present)
        present[0].send(request(DISC))
        assert present[0].closed()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                Client.connect(path).enter()
                break
            except (EOFError, ConnectionError):
                time.sleep(0.01)
        else:
            pytest.fail("the place of a client that left was not given to another")


def test_half_open_clients_make_room_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlimage.nbd.server._NEGOTIATION_RIGHT_SECONDS", 0.05)
    with serving(tmp_path, DISK, most_connections=4) as (_, path):
        working = Client.connect(path).enter()
        silent = [Client.connect(path) for _ in range(3)]
        time.sleep(0.2)
        assert Client.connect(path).enter().read(0, 1) == b"\0"
        assert silent[0].closed()
        assert working.read(0, 1) == b"\0"


def test_who_does_not_come_to_the_end_of_the_negotiation_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "NEGOTIATION_SECONDS", 0.3)
    with serving(tmp_path, DISK) as (_, path):
        settled, silent, slow = Client.connect(path).enter(), Client.connect(path), Client.connect(path)
        slow.greet()
        begin = time.monotonic()
        with pytest.raises((EOFError, ConnectionError)):
            while True:
                slow.ask(option(11))
                time.sleep(0.05)
        assert silent.closed()
        assert 0.2 < time.monotonic() - begin < 2 * PATIENCE
        assert settled.read(0, 1) == b"\0"


def test_the_socket_is_closed_after_the_farewell(tmp_path: Path) -> None:
    with serving(tmp_path, DISK) as (_, path):
        client = Client.connect(path).enter()
        client.send(request(DISC))
        assert client.socket.recv(1) == b""


def test_stop_answers_what_is_under_way_flushes_once_and_closes(tmp_path: Path) -> None:
    content = noise("stop", MIB)
    device = TroubledDevice(content, not_ready_from=4096)
    other = TroubledDevice()
    exports = (Export("a", device, writable=True), Export("b", device, writable=True), Export("c", other))
    with serving(tmp_path, *exports) as (server, path):
        clients = [Client.connect(path).enter() for _ in range(5)]
        idle, half_open = Client.connect(path).enter(), Client.connect(path)
        device.gate.clear()
        for client in clients:
            client.send(request(READ, 8192, 4096, cookie=5) + request(READ, 16384, 4096, cookie=6))
        time.sleep(0.1)
        threading.Timer(0.3, device.gate.set).start()
        server.stop()
        for client in clients:
            answers = sorted([client.reply(), client.reply()], key=lambda answer: answer.cookie)
            assert answers[0].bytes_from(8192) == content[8192:12288]
            assert answers[1].bytes_from(16384) == content[16384:20480]
            assert client.closed()
        assert idle.closed()
        assert half_open.closed()
        assert (device.diary.count("flush"), other.diary.count("flush")) == (1, 0)
        server.stop()
        assert device.diary.count("flush") == 1
    with pytest.raises((ConnectionError, FileNotFoundError)):
        Client.connect(path)


def test_stop_resets_no_connection_of_which_requests_are_left_unread() -> None:
    """A reset would overtake replies that the client has not read yet."""
    device = TroubledDevice(not_ready_from=0)
    with Server([Export("disk", device)], port=0) as server:
        port = int(server.uri.split(":")[2].split("/")[0])
        client = Client(socket.create_connection(("127.0.0.1", port))).enter()
        device.gate.clear()
        client.send(request(READ, 0, 512))
        time.sleep(0.1)
        client.send(request(READ, 0, 512) * 10)
        threading.Timer(0.2, device.gate.set).start()
        server.stop()
        assert client.reply().bytes_from(0) == bytes(512)
        assert client.socket.recv(1) == b""


def test_stop_does_not_wait_longer_than_its_grace_for_a_client_that_takes_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, Export("big", MemoryDevice(bytes(32 * MIB)))) as (server, path):
        clients = [Client.connect(path).enter() for _ in range(4)]
        for client in clients:
            client.send(request(READ, 0, 32 * MIB) * 5)
        time.sleep(0.2)
        begin = time.monotonic()
        server.stop(grace_seconds=0.3)
        assert time.monotonic() - begin < 3 * PATIENCE


def test_stop_does_not_wait_for_clients_that_go_on_asking(tmp_path: Path) -> None:
    with serving(tmp_path, DISK) as (server, path):
        client = Client.connect(path).enter()
        over = threading.Event()

        def ask() -> None:
            try:
                while not over.is_set():
                    client.read(0, 4096)
            except (EOFError, OSError):
                over.set()

        asker = threading.Thread(target=ask)
        asker.start()
        time.sleep(0.1)
        begin = time.monotonic()
        server.stop()
        assert time.monotonic() - begin < 3 * PATIENCE
        asker.join(SECONDS)
        assert over.is_set()


def test_a_flush_that_fails_at_the_end_is_told_after_everything_is_closed(tmp_path: Path) -> None:
    device = TroubledDevice()
    path = tmp_path / "socket"
    server = Server([Export("a", device, writable=True)], socket_path=str(path))
    server.start()
    client = Client.connect(path).enter()
    device.failure = DeviceError("no space for the journal")
    with pytest.raises(DeviceError, match="journal"):
        server.stop()
    assert client.closed()
    assert not path.exists()


def test_no_threads_and_descriptors_are_left(tmp_path: Path) -> None:
    def count() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    before = count()
    for _ in range(3):
        device = TroubledDevice(not_ready_from=0)
        with serving(tmp_path, Export("a", device, writable=True)) as (_, path):
            clients = [Client.connect(path).enter() for _ in range(5)]
            for client in clients:
                client.send(request(READ, 0, 9) + request(READ, 9, 9) + request(FLUSH) + request(WRITE, 0, 100))
                assert [client.reply().error for _ in range(3)] == [0] * 3
            for client in clients:
                client.close()
    deadline = time.monotonic() + SECONDS
    while count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert count() <= before


def test_writes_of_one_connection_are_seen_and_flushed_by_another(tmp_path: Path) -> None:
    device = TroubledDevice()
    with serving(tmp_path, Export("a", device, writable=True)) as (_, path):
        one, two = Client.connect(path).enter(), Client.connect(path).enter()
        assert one.do(WRITE, 5, data=b"seen").error == 0
        assert two.read(5, 4) == b"seen"
        assert two.do(FLUSH).error == 0
        assert device.diary == ["write", "read", "flush"]
