"""What commands over images that travel say, and what they leave, where something is not as it should be."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import sqlimage
from sqlimage.units import MIB
from tests.images import noise, run_tool, tool
from tests.make import travelling
from tests.make.cost import PATIENCE
from tests.make.misbehaving import misbehaving
from tests.session.use import full_tmpfs, needs_root
from tests.transfer.made import NAME, SEGMENT, SEGMENT_BYTES, World, check_one_line, first_segment, make_world

PROGRAM = Path(sys.executable).with_name("sqlimage")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def with_more(image: Path, target: Path, name: str) -> Path:
    """A copy with one more version, which holds a file of that name."""
    shutil.copy(image, target)
    (target.parent / name).write_bytes(noise(name, 50_000))
    tool("put", target, target.parent / name, f"/{name}")
    return target


def test_a_push_never_loses_a_version_that_is_there_alone(tmp_path: Path) -> None:
    image, url = travelling.image(tmp_path), f"file://{tmp_path}/shelf/{NAME}"
    one, other = (with_more(image, tmp_path / f"{name}.sqlimage", name) for name in ("one", "other"))
    tool("push", image, url)
    tool("push", one, url)
    for loses in (other, image, f"{one}@1"):
        said = check_one_line(run_tool("push", loses, url), 4)
        assert "has 1 of its 2 versions alone, which would be lost there" in said
        assert "--replace" in said
        assert "one" in tool("ls", url, "/")
    tool("push", one, url)
    tool("push", other, url, "--replace")
    assert "other" in tool("ls", url, "/")


def test_who_pushes_a_child_to_the_name_of_its_parent_is_told_so(tmp_path: Path) -> None:
    image, url = travelling.image(tmp_path), f"file://{tmp_path}/shelf/{NAME}"
    tool("push", image, url)
    said = check_one_line(run_tool("push", travelling.child(image), url), 4)
    assert "is the parent of this image; choose another name" in said


def test_an_image_is_restored_to_several_disks_at_once(world: World, tmp_path: Path) -> None:
    """The first fetches it, the others wait for that and use it."""
    with misbehaving(world.content) as server, ThreadPoolExecutor(3) as pool:
        url = f"{server.url}/{NAME}"
        done = [*pool.map(lambda n: run_tool("restore", url, tmp_path / f"disk{n}"), range(3))]
        assert [one.returncode for one in done] == [0, 0, 0], done
        fetched = [path for path, _ in server.requests if "/segments/" in path]
    assert len({(tmp_path / f"disk{n}").read_bytes() for n in range(3)}) == 1
    assert len(fetched) < 2 * len(world.content), "it was fetched once"
    assert not list((Path(os.environ["SQLIMAGE_CACHE"]) / "whole").iterdir())


def test_of_two_pulls_into_one_file_the_second_is_told_who_writes(world: World, tmp_path: Path) -> None:
    url = f"file://{world.shelf}/{NAME}"
    with ThreadPoolExecutor(4) as pool:
        done = [*pool.map(lambda _: run_tool("pull", url, tmp_path / "copy.sqlimage", "--limit", "2MiB"), range(4))]
    assert any(one.returncode == 0 for one in done)
    for one in done:
        if one.returncode:
            assert "is being written by" in check_one_line(one, 4)
    tool("verify", tmp_path / "copy.sqlimage")


@needs_root
def test_a_receiver_without_room_leaves_an_image_that_can_be_read_and_filled(tmp_path: Path) -> None:
    """So much comes at once that SQLite has written a part of it when the disk is full."""
    image = tmp_path / "source.sqlimage"
    sqlimage.capture(sqlimage.MemoryDevice(noise("large", 16 * MIB)), image)
    with full_tmpfs(tmp_path / "small", "10m") as place, (tmp_path / "stream").open("wb") as stream:
        subprocess.run([PROGRAM, "send", image, "--segment-size", "2MiB"], stdout=stream, check=True)
        said = check_one_line(run_tool("receive", place / "copy.sqlimage", stdin=tmp_path / "stream"), 6)
        assert "no space left" in said
        assert "sqlimage send --from" in said
        assert os.listdir(place) == ["copy.sqlimage"]
        tool("info", place / "copy.sqlimage")
        subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
        assert run_tool("receive", place / "copy.sqlimage", stdin=tmp_path / "stream").returncode == 0
        tool("verify", place / "copy.sqlimage")


def test_who_interrupts_a_pull_is_told_what_stays_and_how_to_go_on(world: World, tmp_path: Path) -> None:
    image = tmp_path / "copy.sqlimage"
    words = [PROGRAM, "pull", f"file://{world.shelf}/{NAME}", image, "--limit", str(SEGMENT_BYTES)]
    with subprocess.Popen([*map(str, words)], stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 6 * PATIENCE
        while not image.exists() and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=6 * PATIENCE)[1]
    assert process.returncode == 130
    assert said == "sqlimage: interrupted; segments that came whole stay; the same command goes on\n"
    assert image.exists()


@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_what_is_wrong_with_a_segment_is_told_by_its_number(world: World, tmp_path: Path, harm: str) -> None:
    shelf, image = Path(shutil.copytree(world.shelf, tmp_path / "shelf")), tmp_path / "copy.sqlimage"
    first = first_segment(shelf)
    other = max((path for path in (shelf / "segments").iterdir() if path != first), key=lambda path: path.name)
    content = other.read_bytes()
    if harm == "changed":
        other.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
        said = check_one_line(run_tool("join", shelf, image), 5)
        assert f"{other.name}: what comes does not match its digest (segment " in said
        assert "remove it there and push or split the image once more" in said
        other.unlink()
    else:
        other.unlink()
        said = check_one_line(run_tool("join", shelf, image), 3)
        assert f": 1 of {len(world.content) - 2} segments are not there (number " in said
        assert f"all others are in {image}" in said
    tool("split", world.source, shelf, "--segment-size", SEGMENT)
    tool("join", shelf, image)
    tool("verify", image)


def test_a_split_that_is_refused_makes_no_directory(world: World, tmp_path: Path) -> None:
    for words in (
        (world.source, "--segment-size", "1"),
        (f"{world.source}@nothing",),
        (tmp_path / "nothing.sqlimage",),
        (PROGRAM,),
    ):
        image, *options = words
        assert run_tool("split", image, tmp_path / "new", *options).returncode in (2, 3, 5)
        assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    said = check_one_line(run_tool("split", world.source, tmp_path / "file"), 4)
    assert said == f"sqlimage: {tmp_path}/file: is no directory; name one, which may be a new one"


def test_where_a_file_is_needed_a_url_is_not_taken_for_one(world: World, tmp_path: Path) -> None:
    url, new = f"file://{world.shelf}/{NAME}", tmp_path / "new.sqlimage"
    for words in (
        ("merge", url, "--into", world.source),
        ("merge", world.source, "--into", url),
        ("rebase", world.source, "--onto", url),
        ("flatten", world.source, url),
        ("capture", world.source, url),
        ("capture", world.source, new, "--parent", url),
    ):
        assert "an image elsewhere is only read; name a file here" in check_one_line(run_tool(*words), 4)
    assert "comes with all its versions; leave out @1" in check_one_line(run_tool("pull", f"{url}@1", new), 2)
    assert "it is a directory there" in check_one_line(run_tool("push", world.source, f"file://{tmp_path}/segments"), 2)
    assert "is a directory; name an image in it" in check_one_line(run_tool("pull", f"file://{tmp_path}", new), 6)


def test_what_follows_a_whole_image_in_a_pipe_is_told_as_that(world: World, tmp_path: Path) -> None:
    with (tmp_path / "stream").open("wb") as stream:
        subprocess.run([PROGRAM, "send", world.source, "--segment-size", SEGMENT], stdout=stream, check=True)
        stream.write(b"and more")
    said = check_one_line(run_tool("receive", tmp_path / "copy.sqlimage", stdin=tmp_path / "stream"), 6)
    assert "the image is whole without it" in said
    tool("verify", tmp_path / "copy.sqlimage")
