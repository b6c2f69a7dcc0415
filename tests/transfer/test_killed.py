"""Transfers that are killed at any moment: the same command goes on, sends and fetches nothing twice, and in between
nothing half is to be seen anywhere."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sqlimage.transfer.stores.cloud import CloudStore
from sqlimage.transfer.stores.contract import Store
from sqlimage.transfer.stores.directory import DirectoryStore
from tests.images import run_tool, tool
from tests.make.misbehaving import Misbehaving, misbehaving
from tests.make.servers import BUCKET, s3_server
from tests.transfer.made import (
    NAME,
    SEGMENT,
    SEGMENT_BYTES,
    check_beside,
    check_copy,
    check_one_line,
    check_partial,
    check_store,
    first_segment,
    here,
    here_bytes,
    make_image,
    segments,
    shelf_of,
)

PROGRAM = Path(sys.executable).with_name("sqlimage")
EVERY_DAY = 4
"""Kills of each of the five commands."""
LONG = 100
FEW = 3
MOST = 20
BYTES_PER_S = 3 << 19
LIMIT = ("--limit", "1536KiB")


@dataclass
class World:
    """An image, and the places it goes to and comes from."""

    place: Path
    source: Path
    web: Misbehaving
    """A web server that behaves, over the segments of the image."""
    stream: Path
    """What ``send`` writes."""
    total_bytes: int
    first_bytes: int
    medium: bytes
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each command takes, undisturbed."""

    @property
    def bucket(self) -> str:
        return f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("world")
    source = make_image(place)
    shelf = place / "shelf"
    content = shelf_of(source, shelf)
    stream = place / "stream"
    with stream.open("wb") as out:
        done = subprocess.run([PROGRAM, "send", source, "--segment-size", SEGMENT], stdout=out, check=False)
    assert done.returncode == 0
    tool("restore", source, place / "restored.img")
    with ExitStack() as stack:
        _, environment = stack.enter_context(s3_server(place / "s3"))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        web = stack.enter_context(misbehaving(content))
        lengths = {name: len(each) for name, each in content.items() if name.startswith("segments/")}
        restored = (place / "restored.img").read_bytes()
        made = World(place, source, web, stream, sum(lengths.values()), first_segment(shelf).stat().st_size, restored)
        CloudStore(f"{made.bucket}/warm").put("image", b"the bucket is made by the first object")
        tool("push", source, f"{made.bucket}/shelf/{NAME}", "--segment-size", SEGMENT)
        yield made


@dataclass(frozen=True)
class Journey:
    """A command, what must hold once it was killed, and what once the same command has ended; ``begin`` makes all of
    them for a fresh place."""

    words: tuple[object, ...]
    killed: Callable[[], bool]
    """Whether something was whole by then, and not all."""
    ended: Callable[[str], None]
    stdin: Path | str = os.devnull
    slowly: tuple[object, ...] = ()
    """Further words with which it takes seconds: what has just arrived may be lost with the process."""


def push(world: World, store: Store, url: str, on_their_way: int) -> Journey:
    """``on_their_way`` segments the store may have got from a client that was killed before it saw them there."""
    there: dict[str, int] = {}
    is_published = False

    def killed() -> bool:
        nonlocal is_published
        there.update(check_store(store))
        is_published = store.head(NAME) is not None
        return bool(there) and not is_published

    def ended(told: str) -> None:
        report = json.loads(told)
        least = world.total_bytes if is_published else sum(there.values())
        assert least <= report["there_bytes"] <= least + on_their_way * SEGMENT_BYTES
        assert report["sent_bytes"] + report["there_bytes"] == world.total_bytes
        assert sum(check_store(store).values()) == world.total_bytes
        assert {name.partition("/")[0] for name in store.list()} == {"segments", "versions", NAME}

    return Journey(("push", world.source, url, "--segment-size", SEGMENT, "--json"), killed, ended)


def push_to_a_directory(world: World, work: Path) -> Journey:
    shelf = work / "shelf"
    journey = push(world, DirectoryStore(shelf), f"file://{shelf}/{NAME}", 0)

    def ended(told: str) -> None:
        journey.ended(told)
        listed = {path.name for path in shelf.iterdir()}
        assert listed == {NAME, "segments", "versions"}, "nothing else lies there"

    return Journey(journey.words, journey.killed, ended, slowly=LIMIT)


def push_to_s3(world: World, work: Path) -> Journey:
    url = f"{world.bucket}/{work.name}-{random.randrange(1 << 60):x}"
    return push(world, CloudStore(url), f"{url}/{NAME}", 2)


def arriving(world: World, work: Path, received: str) -> tuple[Path, Callable[[], bool], Callable[[str], None]]:
    """Where an image arrives, and what must hold of it; the report's words begin with ``received``."""
    image = work / "arrived" / "copy.sqlimage"
    image.parent.mkdir()
    was_here = 0

    def killed() -> bool:
        nonlocal was_here
        check_beside(image)
        check_partial(image)
        was_here = here_bytes(image)
        return 0 < was_here < world.total_bytes

    def ended(told: str) -> None:
        report = json.loads(told)
        assert report[f"{received}_bytes"] == world.total_bytes - was_here
        assert report.get("here_bytes", was_here) == was_here
        assert [path.name for path in image.parent.iterdir()] == [image.name]
        check_copy(image, world.source)

    return image, killed, ended


def pull_from_s3(world: World, work: Path) -> Journey:
    image, killed, ended = arriving(world, work, "fetched")
    return Journey(("pull", f"{world.bucket}/shelf/{NAME}", image, "--json"), killed, ended, slowly=LIMIT)


def receive(world: World, work: Path) -> Journey:
    image, killed, ended = arriving(world, work, "received")
    return Journey(("receive", image, "--json"), killed, ended, stdin=world.stream)


def restore(world: World, work: Path) -> Journey:
    restored = work / "arrived" / "disk.img"
    restored.parent.mkdir()
    cache = Path(os.environ["SQLIMAGE_CACHE"])
    asked: set[str] = set()

    def cached() -> Path | None:
        return next(cache.glob("whole/*/*.sqlimage"), None)

    def killed() -> bool:
        image = cached()
        asked.clear()
        assert {path.name for path in restored.parent.iterdir()} <= {restored.name}
        if restored.exists():  # then it was killed after all was done, and has only to be cleared away
            assert restored.read_bytes() == world.medium
            restored.unlink()
        if image is not None:
            check_beside(image)
            check_partial(image)
            asked.update(f"/shelf/segments/{one.digest.hex()}" for one in here(image) if one.number > 1)
        world.web.requests.clear()
        return image is not None and 0 < here_bytes(image) < world.total_bytes

    def ended(told: str) -> None:
        assert restored.read_bytes() == world.medium
        assert [path.name for path in restored.parent.iterdir()] == [restored.name]
        assert not asked & {path for path, _ in world.web.requests}, "what was here is not fetched again"
        assert cached() is None and not [*cache.glob("whole/*")], "what is restored need not be kept"

    return Journey(("restore", f"{world.web.url}/{NAME}", restored, "--json"), killed, ended, slowly=LIMIT)


JOURNEYS: dict[str, Callable[[World, Path], Journey]] = {
    "push to a directory": push_to_a_directory,
    "push to s3": push_to_s3,
    "pull from s3": pull_from_s3,
    "receive": receive,
    "restore from a url": restore,
}
SLOW = tuple(name for name in JOURNEYS if name != "push to s3")
"""Those that are slowed down: they may lose what came within the last second, or take none."""


def undisturbed(world: World, name: str, work: Path) -> float:
    """How many seconds it takes."""
    if name in SLOW:
        return world.total_bytes / BYTES_PER_S
    work.mkdir()
    journey = JOURNEYS[name](world, work)
    begin = time.monotonic()
    done = run_tool(*journey.words, stdin=journey.stdin)
    seconds = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    shutil.rmtree(work)
    return seconds


@contextmanager
def slow_pipe(content: bytes, place: Path) -> Iterator[Path]:
    """A pipe with a name, out of which the content comes as slowly as over a line."""
    fifo = place / "fifo"
    os.mkfifo(fifo)

    def write() -> None:
        with suppress(OSError), open(fifo, "wb", buffering=0) as out:
            for at in range(0, len(content), BYTES_PER_S // 20):
                out.write(content[at : at + BYTES_PER_S // 20])
                time.sleep(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield fifo
    finally:
        with suppress(OSError):  # one that nobody reads waits for a reader
            os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
        writer.join()
        fifo.unlink()


def kill(world: World, name: str, work: Path, dice: random.Random) -> bool:
    """Kill it once, sometimes twice, and have it go on; whether that was in the middle."""
    work.mkdir()
    journey = JOURNEYS[name](world, work)
    in_the_middle = False
    earliest = 0.6 if name in SLOW else 0.2
    for _ in range(1 + (dice.random() < 0.2)):
        with ExitStack() as stack:
            stdin = journey.stdin
            if name == "receive":
                stdin = stack.enter_context(slow_pipe(world.stream.read_bytes(), work))
            seconds = dice.uniform(earliest, 1.0) * world.seconds[name]
            try:
                done = run_tool(*journey.words, *journey.slowly, stdin=stdin, seconds=seconds)
            except subprocess.TimeoutExpired:
                in_the_middle |= journey.killed()
                continue
        assert done.returncode == 0, done.stderr
        break
    else:
        done = run_tool(*journey.words, stdin=journey.stdin)
        assert done.returncode == 0, (done.stdout, done.stderr)
        journey.ended(done.stdout)
    shutil.rmtree(work)
    return in_the_middle


def kill_again_and_again(world: World, name: str, work: Path, times: int, seed: int) -> None:
    """So many times, and more where none was in the middle."""
    work.mkdir()
    world.seconds[name] = undisturbed(world, name, work / "undisturbed")
    in_the_middle = turn = 0
    while turn < times or (not in_the_middle and turn < MOST):
        print(f"{name}: seed {seed}, kill {turn}; so far {in_the_middle} in the middle")
        in_the_middle += kill(world, name, work / f"turn-{turn}", random.Random(f"{name} {seed} {turn}"))
        turn += 1
    print(f"{name}: {in_the_middle} of {turn} in the middle")
    assert in_the_middle


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, in which nothing may stay."""
    monkeypatch.setenv("SQLIMAGE_CACHE", str(tmp_path / "cache"))


def test_a_push_to_a_server_that_was_killed_goes_on_and_ends(world: World, tmp_path: Path) -> None:
    kill_again_and_again(world, "push to s3", tmp_path / "work", EVERY_DAY, 1)


def test_what_was_killed_on_its_slow_way_goes_on_and_ends(world: World, tmp_path: Path) -> None:
    """All at once: what they do most is wait."""
    with ThreadPoolExecutor(len(SLOW)) as pool:
        running = [pool.submit(kill_again_and_again, world, name, tmp_path / name, FEW, 1) for name in SLOW]
    for each in running:
        each.result()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", JOURNEYS)
def test_a_hundred_kills(world: World, name: str, tmp_path: Path) -> None:
    kill_again_and_again(world, name, tmp_path / "work", LONG, 2)


def test_receive_tells_from_which_segment_on_to_send(world: World, tmp_path: Path) -> None:
    """A pipe that broke: what it says is what brings the rest."""
    image = tmp_path / "arrived" / "copy.sqlimage"
    image.parent.mkdir()
    part = tmp_path / "part"
    part.write_bytes(world.stream.read_bytes()[: world.total_bytes // 2])
    told = check_one_line(run_tool("receive", image, stdin=part), 6)
    assert "in the middle of segment" in told
    (number,) = [word.strip("`") for word in told.split("--from ")[1].split()[:1]]
    assert int(number) == 1 + len(here(image)) < len(segments(image))
    with (tmp_path / "rest").open("wb") as out:
        subprocess.run(
            [PROGRAM, "send", world.source, "--segment-size", SEGMENT, "--from", number], stdout=out, check=True
        )
    report = json.loads(run_tool("receive", image, "--json", stdin=tmp_path / "rest").stdout)
    assert report["received_segments"] == report["segments"] - int(number) + 1
    check_copy(image, world.source)
