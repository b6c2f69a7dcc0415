"""A disk that fills up while an image arrives: one line, nothing lost, and the same command goes on when there is room.
A cache that is full is no reason to stop."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import run
from tests.images import noise, run_tool, tool
from tests.make.misbehaving import misbehaving
from tests.session.use import full_tmpfs, needs_root
from tests.transfer.made import (
    FILE_BYTES,
    NAME,
    SEGMENT,
    SEGMENT_BYTES,
    World,
    check_beside,
    check_copy,
    check_one_line,
    check_partial,
    here,
    here_bytes,
    make_world,
)

pytestmark = needs_root
DISK = "64m"
ROOM_BYTES = 2 << 20
"""What is left of it: the image has more."""
BEGUN = 7
"""Segments that came while there was room."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB."""
    with full_tmpfs(tmp_path / "disk", DISK) as place:
        yield place


def fill(place: Path, room_bytes: int) -> None:
    found = os.statvfs(place)
    ballast = place / "ballast" / "of lead"
    ballast.parent.mkdir()
    ballast.write_bytes(bytes(found.f_bavail * found.f_frsize - room_bytes))


def check_full(image: Path, least: int) -> int:
    """What is here of an image that found no room: what was before, and nothing half."""
    check_partial(image)
    check_beside(image)
    found = here_bytes(image)
    assert found % SEGMENT_BYTES == 0 and least * SEGMENT_BYTES <= found
    return found


@pytest.mark.parametrize("command", ["pull", "join", "receive"])
def test_what_finds_no_room_is_told_in_one_line_and_goes_on_later(
    world: World, disk: Path, tmp_path: Path, command: str
) -> None:
    image = disk / "here" / "copy.sqlimage"
    image.parent.mkdir()
    stdin = tmp_path / "stream"
    words: tuple[object, ...] = {
        "pull": ("pull", f"file://{world.shelf}/{NAME}", image),
        "join": ("join", world.shelf, image),
        "receive": ("receive", image),
    }[command]
    stream = b"".join(world.content[name] for name in in_order(world))
    stdin.write_bytes(stream[: BEGUN * SEGMENT_BYTES + 1000])
    check_one_line(run_tool("receive", image, stdin=stdin), 6)
    assert len(here(image)) == BEGUN
    stdin.write_bytes(stream)
    fill(disk, ROOM_BYTES)
    told = check_one_line(run_tool(*words, stdin=stdin), 6)
    assert str(image) in told and "no space left" in told.lower()
    was_here = check_full(image, BEGUN)
    told = check_one_line(run_tool(*words, stdin=stdin), 6)
    assert was_here <= check_full(image, BEGUN), "and again, without losing anything"
    was_here = here_bytes(image)
    run("mount", "-o", "remount,size=96m", disk)
    report = json.loads(run_tool(*words, "--json", stdin=stdin).stdout)
    assert report["received_bytes" if command == "receive" else "fetched_bytes"] == world.total_bytes - was_here
    check_copy(image, world.source)
    assert [path.name for path in image.parent.iterdir()] == [image.name]


def in_order(world: World) -> list[str]:
    """The names of the segments, by the numbers in their headers."""
    names = [name for name in world.content if name.startswith("segments/")]
    return sorted(names, key=lambda name: int.from_bytes(world.content[name][36:40], "little"))


def test_a_first_segment_that_finds_no_room_leaves_nothing(world: World, tmp_path: Path) -> None:
    with full_tmpfs(tmp_path / "disk", DISK) as place:
        (place / "here").mkdir()
        fill(place, 16 << 10)
        image = place / "here" / "copy.sqlimage"
        told = check_one_line(run_tool("pull", f"file://{world.shelf}/{NAME}", image), 6)
        assert "no space left" in told.lower()
        assert not [*image.parent.iterdir()]


def test_a_push_into_a_full_directory_keeps_what_is_whole(world: World, disk: Path) -> None:
    fill(disk, ROOM_BYTES)
    url = f"file://{disk}/shelf/{NAME}"
    told = check_one_line(run_tool("push", world.source, url, "--segment-size", SEGMENT), 6)
    assert "no space left" in told.lower()
    there = {f"segments/{path.name}": path.read_bytes() for path in (disk / "shelf" / "segments").iterdir()}
    assert there and all(world.content[name] == content for name, content in there.items())
    assert not (disk / "shelf" / NAME).exists()
    run("mount", "-o", "remount,size=96m", disk)
    report = json.loads(tool("push", world.source, url, "--segment-size", SEGMENT, "--json"))
    assert report["there_bytes"] == sum(map(len, there.values()))


@pytest.mark.parametrize("room_bytes", [0, 64 << 10, 1 << 20])
def test_reading_on_demand_goes_on_when_the_cache_can_keep_no_more(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_bytes: int
) -> None:
    with full_tmpfs(tmp_path / "disk", DISK) as place, misbehaving(world.content) as web:
        monkeypatch.setenv("SQLIMAGE_CACHE", str(place / "cache"))
        url = f"{web.url}/{NAME}"
        tool("info", url)  # the streams must have a place, the contents need none
        fill(place, room_bytes)
        for n in (40, 3, 40):
            web.requests.clear()
            done = run_tool("get", url, f"/file-{n:03}", tmp_path / f"got-{n}")
            assert done.returncode == 0, done.stderr
            assert not done.stderr
            assert (tmp_path / f"got-{n}").read_bytes() == noise((0, n), FILE_BYTES)
            (tmp_path / f"got-{n}").unlink()
        if not room_bytes:
            assert any("/segments/" in path for path, _ in web.requests), "nothing was kept"


def test_a_cache_without_room_for_the_streams_is_told_in_one_line(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with full_tmpfs(tmp_path / "disk", DISK) as place:
        monkeypatch.setenv("SQLIMAGE_CACHE", str(place / "cache"))
        fill(place, 16 << 10)
        told = check_one_line(run_tool("ls", f"file://{world.shelf}/{NAME}"), 6)
        assert str(place) in told
