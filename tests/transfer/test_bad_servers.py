"""Servers that have bad days: a pull gets over what passes, and says in one line what stays; what was whole is kept,
and wrong bytes are in no image."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from sqlimage.transfer.segment import read_header
from tests.images import run_tool, tool
from tests.make import misbehaving as bad
from tests.make.misbehaving import Handler, Misbehaving, misbehaving
from tests.transfer.made import (
    NAME,
    SEGMENT_BYTES,
    World,
    check_copy,
    check_one_line,
    check_partial,
    first_segment,
    here_bytes,
    make_world,
)

Fault = Callable[[Handler], None]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def truncated(handler: Handler) -> None:
    """A server that has lost the end, and does not know."""
    handler.answer(handler.body()[:-100])


@pytest.fixture
def server(world: World) -> Iterator[Misbehaving]:
    with misbehaving(world.content) as state:
        yield state


_FIRST_AGAIN = [bad.behave] * 3
"""The first segment and its end are asked for at once, in any order, and after one wrong answer once more."""


def test_a_server_that_has_bad_moments_is_asked_again(world: World, server: Misbehaving, tmp_path: Path) -> None:
    server.faults = [
        *(
            bad.status(500),
            bad.behave,
            bad.behave,
            bad.wrong_bytes,
            *_FIRST_AGAIN,
            bad.wrong_bytes,
            bad.cut_after(100_000),
        ),
        *(bad.behave, truncated, bad.status(503), bad.cut_after(1000, reset=True), bad.behave, bad.status(500)),
    ]
    tool("pull", f"{server.url}/{NAME}", tmp_path / "copy.sqlimage")
    assert not server.faults
    check_copy(tmp_path / "copy.sqlimage", world.source)


PASSING: tuple[Fault, ...] = (
    *(bad.status(500), bad.status(503), bad.cut_after(0), bad.cut_after(100_000), bad.cut_after(1, reset=True)),
    *(bad.wrong_bytes, truncated),
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_servers_that_have_bad_moments(world: World, server: Misbehaving, tmp_path: Path) -> None:
    for turn in range(100):
        dice = random.Random(f"moments {turn}")
        image = tmp_path / f"{turn}.sqlimage"
        server.faults = [bad.behave, bad.behave, dice.choice(PASSING), *_FIRST_AGAIN]
        for _ in range(dice.randint(1, 6)):
            server.faults += [dice.choice(PASSING) for _ in range(dice.randint(1, 3))]
            server.faults += [bad.behave] * dice.randint(2, 4)  # two requests are under way at most
        print(f"turn {turn}")
        done = run_tool("pull", f"{server.url}/{NAME}", image)
        assert done.returncode == 0, done.stderr
        check_copy(image, world.source)
        image.unlink()


STAYING: dict[str, tuple[Fault, int]] = {
    "answers 500": (bad.status(500), 6),
    "hangs up": (bad.cut_after(1000), 6),
    "sends wrong bytes": (bad.wrong_bytes, 5),
    "has lost the end": (truncated, 5),
}
"""What a server does from some request on, and the exit code that it is worth."""
_SEGMENTS_BEFORE = 5
_BEHAVES = _SEGMENTS_BEFORE + 3
"""Requests: what the name stands for, the beginning of the first segment, its end, all of it, and four more."""


@dataclass(frozen=True)
class Ended:
    """A pull that failed, and the server, which behaves again."""

    server: Misbehaving
    image: Path
    done: CompletedProcess[str]


@pytest.fixture(scope="module")
def failed(world: World) -> Iterator[dict[str, Ended]]:
    """Pulls from servers that go wrong in the middle and stay so, all at once."""
    with ExitStack() as stack, ThreadPoolExecutor(len(STAYING)) as pool:
        running: dict[str, tuple[Misbehaving, Path, Future[CompletedProcess[str]]]] = {}
        for number, (name, (fault, _)) in enumerate(STAYING.items()):
            server = stack.enter_context(misbehaving(world.content))
            server.faults, server.always = [bad.behave] * _BEHAVES, fault
            image = world.place / f"staying-{number}.sqlimage"
            running[name] = server, image, pool.submit(run_tool, "pull", f"{server.url}/{NAME}", image)
        ended = {name: Ended(server, image, each.result()) for name, (server, image, each) in running.items()}
        for one in ended.values():
            one.server.always = None
        yield ended


@pytest.mark.parametrize("name", STAYING)
def test_a_server_that_stays_bad_is_told_in_one_line_and_what_is_whole_is_kept(
    world: World, failed: dict[str, Ended], name: str
) -> None:
    server, image, done = failed[name].server, failed[name].image, failed[name].done
    assert server.url in check_one_line(done, STAYING[name][1])
    check_partial(image)
    assert here_bytes(image) == _SEGMENTS_BEFORE * SEGMENT_BYTES
    server.requests.clear()
    report = json.loads(tool("pull", f"{server.url}/{NAME}", image, "--json"))
    assert report["here_bytes"] == _SEGMENTS_BEFORE * SEGMENT_BYTES
    assert len(server.requests) == 2 + report["segments"] - _SEGMENTS_BEFORE, "each of the others once"
    check_copy(image, world.source)


def places(first: bytes) -> dict[str, int]:
    """A byte in each part of a first segment."""
    header = read_header("first", first)
    begin, end = header.data_offset_bytes, header.rest.offset_bytes
    return {
        "magic": 3,
        "uuid": 25,
        "digest of the streams": 64 + 48 + 20,
        "list of contents": header.contents.offset_bytes + header.contents.length_bytes // 2,
        "streams": header.streams.offset_bytes + header.streams.length_bytes // 2,
        "first content": begin,
        "contents": begin + (end - begin) // 4,
        "zeros": end - 1,
        "rest": header.rest.offset_bytes + header.rest.length_bytes // 2,
        "last": len(first) - 1,
    }


def wrong(first: bytes, at: int) -> bytes:
    made = bytearray(first)
    made[at] ^= 0x10
    return bytes(made)


def sends(content: bytes) -> Fault:
    """Something else than lies there."""

    def fault(handler: Handler) -> None:
        low, high = handler.asked() or (0, len(content))
        handler.answer(content[low:high])

    return fault


def of_the_first(world: World, fault: Fault) -> Fault:
    """A server of which only the first segment is bad."""
    name = first_segment(world.shelf).name
    return lambda handler: (fault if handler.path.endswith(name) else bad.behave)(handler)


def test_a_first_segment_that_came_damaged_is_fetched_again(world: World, tmp_path: Path, server: Misbehaving) -> None:
    first = first_segment(world.shelf).read_bytes()
    for place in ("uuid", "streams", "contents"):
        image = tmp_path / f"{place}.sqlimage"
        server.faults = [bad.behave, bad.behave, sends(wrong(first, places(first)[place]))]
        tool("pull", f"{server.url}/{NAME}", image)
        check_copy(image, world.source)


def test_no_wrong_byte_of_the_first_segment_gets_into_an_image(world: World, tmp_path: Path) -> None:
    first = first_segment(world.shelf).read_bytes()
    wrong_at = places(first)

    def pull(place: str) -> None:
        image = tmp_path / f"{place}.sqlimage"
        with misbehaving(world.content) as server:
            server.faults = [bad.behave] * 2
            server.always = of_the_first(world, sends(wrong(first, wrong_at[place])))
            check_one_line(run_tool("pull", f"{server.url}/{NAME}", image), 5, 6)
            assert not server.faults
            check_partial(image)
            assert here_bytes(image) == 0, place
            if place == "last":
                server.always = None
                tool("pull", f"{server.url}/{NAME}", image)
                check_copy(image, world.source)

    with ThreadPoolExecutor(len(wrong_at)) as pool:  # each waits most of the time, before it asks again
        assert len([*pool.map(pull, wrong_at)]) == len(wrong_at)


def test_no_wrong_byte_in_a_pipe_gets_into_an_image(world: World, tmp_path: Path) -> None:
    first = first_segment(world.shelf).read_bytes()
    for place, at in places(first).items():
        (tmp_path / "stream").write_bytes(wrong(first, at))
        image = tmp_path / f"{place}.sqlimage"
        check_one_line(run_tool("receive", image, stdin=tmp_path / "stream"), 5, 6)
        check_partial(image)
        assert here_bytes(image) == 0, place
