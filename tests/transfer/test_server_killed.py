"""A store whose server is killed in the middle and comes back: the command that is under way says so in one line, or
gets over it, and the same command then goes on."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sqlimage.transfer.stores.address import open_store
from sqlimage.transfer.stores.wrappers import Retrying
from tests.images import run_tool, tool
from tests.make.breaking import Line, cutting
from tests.make.servers import ACCESS_KEY, BUCKET, SECRET_KEY, free_ports, registry_server, s3_server
from tests.transfer.made import (
    NAME,
    SEGMENT,
    SEGMENT_BYTES,
    World,
    check_copy,
    check_one_line,
    check_partial,
    check_store,
    here_bytes,
    make_world,
)

KINDS = ("s3", "registry")


class Server:
    """A server that can be killed and started again, on the same directory and ports; it is talked to through a line,
    which tells when."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self._directory = directory
        self._ports = free_ports(8)
        self._running = ExitStack()
        self.start()

    @property
    def port(self) -> int:
        return self._ports[-1]

    def start(self) -> None:
        if self.kind == "s3":
            self._running.enter_context(s3_server(self._directory, self._ports))
        else:
            self._running.enter_context(registry_server(self._directory, port=self.port))

    def kill(self) -> None:
        """By SIGKILL."""
        self._running.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@contextmanager
def served(kind: str, directory: Path) -> Iterator[tuple[Server, Line]]:
    """A server, and the line through which clients reach it."""
    server = Server(kind, directory)
    with ExitStack() as stack:
        stack.callback(server.kill)
        line = stack.enter_context(cutting(server.port))
        if kind != "s3":
            yield server, line
            return
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{line.host}")
        yield server, line


def url_of(kind: str, line: Line, place: str) -> str:
    return f"s3://{BUCKET}/{place}/{NAME}" if kind == "s3" else f"oci://{line.host}/{place}:{NAME}"


@contextmanager
def killed_after(server: Server, line: Line, moved_bytes: int, *, comes_back: bool) -> Iterator[None]:
    """Kill the server once the line has moved so much more; and start it again, at once or when the block ends."""
    due, is_dead = threading.Event(), threading.Event()
    begin = line.up_bytes + line.down_bytes

    def look(up: int, down: int) -> None:
        if up + down >= begin + moved_bytes:
            due.set()
            is_dead.wait()  # nothing overtakes the kill

    def wait() -> None:
        due.wait()
        server.kill()
        is_dead.set()
        if comes_back:
            server.start()

    line.after = look
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        try:
            yield
        finally:
            line.after = lambda up, down: None
            was_due = due.is_set()
            due.set()
            waiting.result()
    assert was_due, "it ended before the server was killed"
    if not comes_back:
        server.start()


def push_and_kill(world: World, server: Server, line: Line, place: str, moved_bytes: int, *, comes_back: bool) -> None:
    """The server of a push is killed; what it has then is whole, and the same command sends the rest."""
    url = url_of(server.kind, line, place)
    words = ("push", world.source, url, "--segment-size", SEGMENT, "--json")
    with killed_after(server, line, moved_bytes, comes_back=comes_back):
        done = run_tool(*words)
    if done.returncode:
        check_one_line(done, 6)
    assert comes_back or done.returncode
    store = Retrying(open_store(url)[0])  # a server that has just come back may need a moment
    there = check_store(store, world.content)
    is_there = store.head(NAME) is not None
    assert is_there == (done.returncode == 0)
    report = json.loads(tool(*words))
    assert report["there_bytes"] == sum(there.values())
    assert report["sent_bytes"] == world.total_bytes - sum(there.values())
    assert sum(check_store(store, world.content).values()) == world.total_bytes
    store.close()


def pull_and_kill(world: World, server: Server, line: Line, image: Path, moved_bytes: int, *, comes_back: bool) -> None:
    """The server of a pull is killed; what is here is whole, and the same command fetches the rest."""
    words = ("pull", url_of(server.kind, line, "pulled"), image, "--json")
    with killed_after(server, line, moved_bytes, comes_back=comes_back):
        done = run_tool(*words)
    if done.returncode:
        check_one_line(done, 6)
    assert comes_back or done.returncode
    check_partial(image)
    was_here = here_bytes(image)
    assert (was_here == world.total_bytes) == (done.returncode == 0)
    report = json.loads(tool(*words))
    assert (report["here_bytes"], report["fetched_bytes"]) == (was_here, world.total_bytes - was_here)
    check_copy(image, world.source)


def kill_twice(world: World, kind: str, place: Path) -> None:
    place.mkdir()
    with served(kind, place / "server") as (server, line):
        push_and_kill(world, server, line, "pulled", 9 * SEGMENT_BYTES, comes_back=False)
        pull_and_kill(world, server, line, place / "copy.sqlimage", 9 * SEGMENT_BYTES, comes_back=True)


@pytest.fixture(scope="module")
def killed(world: World) -> dict[str, Future[None]]:
    """Both kinds at once: what they do most is wait."""
    with ThreadPoolExecutor(len(KINDS)) as pool:
        return {kind: pool.submit(kill_twice, world, kind, world.place / kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_is_killed_costs_nothing_that_was_whole(killed: dict[str, Future[None]], kind: str) -> None:
    killed[kind].result()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_killed_servers(world: World, tmp_path: Path, kind: str) -> None:
    with served(kind, tmp_path / "server") as (server, line):
        push = run_tool("push", world.source, url_of(kind, line, "pulled"), "--segment-size", SEGMENT)
        assert push.returncode == 0, push.stderr
        for turn in range(50):
            print(f"{kind}: turn {turn}")
            dice = random.Random(f"{kind} {turn}")
            moved = dice.randrange(1000, world.total_bytes - SEGMENT_BYTES)
            push_and_kill(world, server, line, f"pushed-{turn}", moved, comes_back=dice.random() < 0.7)
            moved = dice.randrange(1000, world.total_bytes - SEGMENT_BYTES)
            image = tmp_path / f"copy-{turn}.sqlimage"
            pull_and_kill(world, server, line, image, moved, comes_back=dice.random() < 0.7)
            image.unlink()
