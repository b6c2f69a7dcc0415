"""Lines that are cut: a transfer gets over what passes, and says in one line what stays; what was whole is kept."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from sqlimage.transfer.stores.cloud import CloudStore
from sqlimage.transfer.stores.contract import Store
from sqlimage.transfer.stores.registry import RegistryStore
from tests.images import run_tool
from tests.make.breaking import Cut, Line, cutting
from tests.make.servers import BUCKET, registry_server, s3_server, web_server
from tests.transfer.made import (
    NAME,
    SEGMENT,
    SEGMENT_BYTES,
    check_copy,
    check_one_line,
    check_partial,
    check_store,
    here_bytes,
    make_image,
    shelf_of,
)

KINDS = ("http", "s3", "registry")


@dataclass
class World:
    """An image, three servers, and a line to each that can be cut."""

    place: Path
    source: Path
    content: dict[str, bytes]
    lines: dict[str, Line]
    registry: str
    """Host and port, past the line."""
    environment: dict[str, str]

    @property
    def total_bytes(self) -> int:
        return sum(len(content) for name, content in self.content.items() if name.startswith("segments/"))

    def words(self, kind: str, turn: str) -> tuple[object, ...]:
        """The command that goes through the line: a pull from the web server, or a push."""
        host = self.lines[kind].host
        if kind == "http":
            return ("pull", f"http://{host}/{NAME}", self.image(turn), "--json")
        url = f"s3://{BUCKET}/{turn}/{NAME}" if kind == "s3" else f"oci://{host}/{turn}:{NAME}"
        return ("push", self.source, url, "--segment-size", SEGMENT, "--json")

    def image(self, turn: str) -> Path:
        return self.place / f"{turn}.sqlimage"

    def store(self, kind: str, turn: str) -> Store:
        """What the push fills, past the line."""
        if kind == "registry":
            return RegistryStore(f"oci://{self.registry}/{turn}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", self.environment["AWS_ENDPOINT_URL"])
            return CloudStore(f"s3://{BUCKET}/{turn}")

    def check(self, kind: str, turn: str) -> int:
        """Nothing half, nothing wrong; how many bytes of segments are whole."""
        if kind == "http":
            check_partial(self.image(turn))
            return here_bytes(self.image(turn))
        return sum(check_store(self.store(kind, turn), self.content).values())

    def check_end(self, kind: str, turn: str) -> None:
        if kind == "http":
            check_copy(self.image(turn), self.source)
        else:
            store = self.store(kind, turn)
            assert sum(check_store(store, self.content).values()) == self.total_bytes
            assert store.head(NAME) is not None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("world")
    source = make_image(place)
    shelf = place / "shelf"
    content = shelf_of(source, shelf)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        web = stack.enter_context(web_server(shelf))
        s3, environment = stack.enter_context(s3_server(place / "s3"))
        registry = stack.enter_context(registry_server(place / "registry"))
        ports = [int(host.rpartition(":")[2]) for host in (web, s3, registry)]
        lines = {kind: stack.enter_context(cutting(port)) for kind, port in zip(KINDS, ports, strict=True)}
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        CloudStore(f"s3://{BUCKET}/warm").put("image", b"the bucket is made by the first object")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{lines['s3'].host}")
        yield World(place, source, content, lines, registry, environment)


def cuts(*after_bytes: int, is_up: bool) -> list[Cut]:
    """Each second one a reset."""
    return [Cut(count, is_up=is_up, is_reset=bool(turn % 2)) for turn, count in enumerate(after_bytes)]


PASSING = {
    "what comes down is cut": (cuts(0, 90, 300, is_up=False), cuts(0, 100_000, 700_000, 1_500_000, is_up=False)),
    "what goes up is cut": (cuts(0, 150, 200_000, 700_000, is_up=True), cuts(0, 60, 60, is_up=True)),
}
"""Cuts of pushes, and of pulls."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", PASSING)
def test_a_line_that_is_cut_now_and_then_costs_nothing_but_time(world: World, kind: str, way: str) -> None:
    line, turn = world.lines[kind], f"passing-{kind}-{way.split()[2]}"
    line.cuts = [*PASSING[way][kind == "http"]]
    before = line.ended
    done = run_tool(*world.words(kind, turn))
    assert done.returncode == 0, done.stderr
    assert line.ended > before and not line.cuts
    report = json.loads(done.stdout)
    assert report["fetched_bytes" if kind == "http" else "sent_bytes"] <= world.total_bytes
    world.check_end(kind, turn)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_lines_that_are_cut_anywhere(world: World, kind: str) -> None:
    line = world.lines[kind]
    for turn in range(100):
        dice = random.Random(f"{kind} {turn}")
        line.cuts = [
            Cut(int(2 ** dice.uniform(0, 21)), is_up=dice.random() < 0.5, is_reset=dice.random() < 0.5)
            for _ in range(dice.randint(1, 4))
        ]
        print(f"{kind}: turn {turn}, {line.cuts}")
        done = run_tool(*world.words(kind, f"random-{turn}"))
        assert done.returncode == 0, done.stderr
        world.check_end(kind, f"random-{turn}")
        line.cuts = []


Broken = dict[str, tuple[CompletedProcess[str], int]]


@pytest.fixture(scope="module")
def broken(world: World) -> Broken:
    """How each command ended whose line broke for good, and the bytes that were whole then. All at once: what they do
    most is wait."""

    def break_it(line: Line) -> None:
        line.after = lambda up, down: line.cut() if up + down > begin + 7 * SEGMENT_BYTES else None
        begin = line.up_bytes + line.down_bytes

    for line in world.lines.values():
        line.cuts = []
        break_it(line)
    with ThreadPoolExecutor(len(KINDS)) as pool:
        running = {kind: pool.submit(run_tool, *world.words(kind, f"broken-{kind}")) for kind in KINDS}
        ended = {kind: each.result() for kind, each in running.items()}
    for line in world.lines.values():
        line.after = lambda up, down: None
        line.always = None
    return {kind: (done, world.check(kind, f"broken-{kind}")) for kind, done in ended.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_that_stays_cut_is_told_in_one_line_and_what_is_whole_is_kept(
    world: World, broken: Broken, kind: str
) -> None:
    done, whole_bytes = broken[kind]
    told = check_one_line(done, 6)
    assert (BUCKET if kind == "s3" else world.lines[kind].host) in told
    assert 3 * SEGMENT_BYTES <= whole_bytes <= 7 * SEGMENT_BYTES
    if kind != "http":
        assert world.store(kind, f"broken-{kind}").head(NAME) is None
    report = json.loads(run_tool(*world.words(kind, f"broken-{kind}")).stdout)
    there, moved = ("here", "fetched") if kind == "http" else ("there", "sent")
    assert report[f"{there}_bytes"] == whole_bytes
    assert report[f"{moved}_bytes"] == world.total_bytes - whole_bytes
    world.check_end(kind, f"broken-{kind}")
