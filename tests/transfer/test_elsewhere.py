"""An image elsewhere is used as if it were here: what is read of it is fetched, and little more."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sqlimage
from sqlimage.image import elsewhere
from sqlimage.transfer import places
from sqlimage.transfer.arrive import First, Incoming, make_image
from sqlimage.transfer.kept import Kept
from sqlimage.transfer.opening import local_image, origin_over
from sqlimage.transfer.remote import PROBE_BYTES
from sqlimage.transfer.stores.memory import MemoryStore
from sqlimage.transfer.stores.wrappers import Counted
from sqlimage.units import KIB, MIB
from tests.conftest import run
from tests.images import kept_bytes, noise, run_tool, tool
from tests.make import travelling
from tests.make.travelling import segments_of
from tests.make.web import Web
from tests.transfer.made import first_segment


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return travelling.image(tmp_path_factory.mktemp("image"), label="golden")


@pytest.fixture(scope="module")
def shelf(image: Path) -> Path:
    """A directory as any web server would serve it."""
    sqlimage.split(str(image), None, str(image.parent / "shelf"), segment_bytes=256 * KIB)
    return image.parent / "shelf"


@pytest.fixture
def web(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """With nothing fetched of it yet."""
    monkeypatch.setenv(places.CACHE_VARIABLE, str(tmp_path / "cache"))
    server = Web(shelf)
    yield server
    server.close()


def url_of(web: Web) -> str:
    return f"{web.url}/base.sqlimage"


def test_everything_that_reads_reads_a_url(web: Web, image: Path) -> None:
    url = url_of(web)
    for command in (
        ("ls", "/a"),
        ("cat", "/README.TXT"),
        ("extent", "/a/file0.bin"),
        ("sql", "SELECT path, hex(digest) FROM file"),
        ("sql", "SELECT length(content('/b/FILE1.BIN'))"),
        ("audit",),
        ("versions",),
    ):
        assert tool(command[0], url, *command[1:]) == tool(command[0], image, *command[1:]), command
    assert "golden" in tool("info", f"{url}@golden")
    assert "no version" in run_tool("info", f"{url}@silver").stderr


def test_the_first_byte_of_a_file_costs_few_requests_and_little_of_the_image(
    web: Web, image: Path, tmp_path: Path
) -> None:
    sqlimage.split(str(image), None, str(tmp_path / "shelf"), segment_bytes=MIB)
    web.directory = tmp_path / "shelf"
    tool("cat", url_of(web), "/README.TXT")
    assert len(web.asked) < 5
    assert web.bytes_given < MIB
    web.asked.clear()
    assert tool("cat", url_of(web), "/README.TXT") == tool("cat", image, "/README.TXT")
    assert web.bytes_given <= PROBE_BYTES + 200, "what was fetched was kept"


def test_nothing_on_a_url_is_changed(web: Web) -> None:
    url = url_of(web)
    for command in (
        ("put", url, "/etc/hostname", "/x"),
        ("edit", "begin", url),
        ("compact", url),
        ("serve", url, "--writable"),
        ("mount", url, "/tmp", "--writable"),
        ("property", "set", url, "a=b"),
    ):
        done = run_tool(*command)
        assert done.returncode in (3, 4) and "Traceback" not in done.stderr, (command, done.stderr)
    assert "only read" in run_tool("put", url, "/etc/hostname", "/x").stderr


def test_trees_come_out_and_volumes_are_restored(web: Web, image: Path, tmp_path: Path) -> None:
    tool("get", url_of(web), "/", tmp_path / "tree")
    assert (tmp_path / "tree" / "a" / "file0.bin").read_bytes() == noise(0, 300_000)
    (tmp_path / "taken.img").write_bytes(b"of somebody")
    assert "is not empty" in run_tool("restore", url_of(web), tmp_path / "taken.img").stderr
    assert not (tmp_path / "cache" / "whole").exists(), "nothing was fetched in vain"
    tool("restore", url_of(web), tmp_path / "back.img")
    source = (image.parent / "volume.img").read_bytes()
    assert (tmp_path / "back.img").read_bytes() == kept_bytes(image, source)
    assert not list((tmp_path / "cache" / "whole").iterdir()), "what was fetched to be restored is gone"


def test_a_child_on_a_url_is_read_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(places.CACHE_VARIABLE, str(tmp_path / "cache"))
    parent = travelling.image(tmp_path)
    child = travelling.child(parent)
    sqlimage.push(str(child), None, f"file://{tmp_path}/shelf/child.sqlimage", segment_bytes=256 * KIB)
    web = Web(tmp_path / "shelf")
    try:
        tool("get", f"{web.url}/child.sqlimage", "/", tmp_path / "tree")
    finally:
        web.close()
    assert (tmp_path / "tree" / "a" / "file4.bin").read_bytes() == noise(4, 300_000)
    assert (tmp_path / "tree" / "added.bin").read_bytes() == (tmp_path / "added.bin").read_bytes()


def test_an_image_that_was_pulled_in_part_fetches_the_rest_from_where_it_came(
    web: Web, shelf: Path, image: Path, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    away.mkdir()
    first = first_segment(shelf, "base.sqlimage")
    held = sorted(path for path in (shelf / "segments").iterdir() if path != first)[:6]
    target = tmp_path / "part.sqlimage"
    for segment in held:
        segment.rename(away / segment.name)
    try:
        assert "are not there" in run_tool("pull", url_of(web), target).stderr
    finally:
        for segment in held:
            (away / segment.name).rename(segment)
    before = target.read_bytes()
    tool("get", target, "/", tmp_path / "tree")
    for n in range(10):
        assert (tmp_path / "tree" / "ab"[n % 2] / f"file{n}.bin").read_bytes() == noise(n, 300_000)
    assert target.read_bytes() == before, "reading never writes"
    asked = len(web.asked)
    tool("pull", "--resume", target)
    assert len(web.asked) > asked
    tool("verify", target, "--files")
    assert "not known where it comes from" in run_tool("pull", "--resume", target).stderr


def test_an_image_never_says_where_to_call(web: Web, shelf: Path, tmp_path: Path) -> None:
    """A stranger's image that is not whole, in the hands of somebody who never pulled it: nobody is asked."""
    target = tmp_path / "strange.sqlimage"
    make_image(str(target), First.from_segment("x", first_segment(shelf, "base.sqlimage").read_bytes()))
    done = run_tool("cat", target, "/README.TXT")
    assert done.returncode == 5 and "are in none of" in done.stderr
    assert web.asked == []


def test_what_arrives_damaged_is_asked_for_again_and_never_shown(web: Web, image: Path) -> None:
    url = url_of(web)
    tool("info", url)
    web.spoil = True
    done = run_tool("cat", url, "/b/FILE9.BIN")
    assert done.returncode == 5 and done.stdout == ""
    web.spoil = False
    assert tool("cat", url, "/README.TXT") == tool("cat", image, "/README.TXT")
    tool("get", url, "/b", str(image.parent / "out"))
    assert (image.parent / "out" / "file9.bin").read_bytes() == noise(9, 300_000)


def test_streams_that_are_not_what_the_header_says_are_refused(web: Web, shelf: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(shelf, bad)
    first = first_segment(bad, "base.sqlimage")
    content = bytearray(first.read_bytes())
    content[1000] ^= 1
    first.write_bytes(content)
    web.directory = bad
    done = run_tool("info", url_of(web))
    assert done.returncode == 5 and "digest" in done.stderr
    for path, told in ((first, "is not a segment"), (bad / "base.sqlimage", "is not an image in segments")):
        path.write_bytes(b"<html>not found, but politely</html>" * 100)
        done = run_tool("info", url_of(web))
        assert done.returncode == 5 and told in done.stderr
    assert run_tool("info", f"{web.url}/nothing").returncode == 3


def _origin(image: Path, kept: Kept) -> tuple[Path, MemoryStore, list[tuple[int, int]]]:
    """An image whose contents are in memory, and the ranges that are asked for."""
    segments = segments_of(image)
    store = MemoryStore()
    names = []
    for segment in segments:
        import hashlib

        names.append(f"segments/{hashlib.sha256(segment).hexdigest()}")
        store.put(names[-1], segment)
    store.publish("base", names[0])
    path = image.parent / f"head-{time.monotonic_ns()}.sqlimage"
    make_image(str(path), First.from_segment("x", segments[0]))
    ranges: list[tuple[int, int]] = []

    class Listening(Counted):
        def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
            ranges.append((offset_bytes, length_bytes))
            return super().get_range(name, offset_bytes, length_bytes)

    origin = origin_over(Listening(store, lambda sent, received: None), str(path))
    origin._kept = kept
    elsewhere.register(str(path), origin)
    return path, store, ranges


def read_whole(path: Path) -> bytes:
    with sqlimage.open(str(path)) as opened:
        driver = opened.version().driver(cache=sqlimage.Cache(memory_bytes=1))
        try:
            return driver.read(0, driver.size_bytes)
        finally:
            driver.close()


def test_what_follows_each_other_is_fetched_in_long_ranges(image: Path, tmp_path: Path) -> None:
    path, _, ranges = _origin(image, Kept(64 * MIB))
    assert read_whole(path) == kept_bytes(image, (image.parent / "volume.img").read_bytes())
    assert sum(length for _, length in ranges) < 3_200_000
    count = len(ranges)
    read_whole(path)
    assert len(ranges) == count, "what is kept is not fetched again"


def test_what_is_kept_is_bounded(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(places.CACHE_VARIABLE, str(tmp_path / "cache"))
    kept = Kept(MIB)
    path, _, _ = _origin(image, kept)
    for _ in range(3):
        read_whole(path)
        assert kept.held_bytes() <= MIB
    files = sum(entry.stat().st_size for entry in (tmp_path / "cache").iterdir())
    assert files < 8 * MIB
    nothing = Kept(0)
    path, _, _ = _origin(image, nothing)
    assert read_whole(path) == kept_bytes(image, (image.parent / "volume.img").read_bytes())


def test_what_is_kept_may_be_damaged_or_gone(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(places.CACHE_VARIABLE, str(tmp_path / "cache"))
    kept = Kept(64 * MIB)
    path, _, ranges = _origin(image, kept)
    expected = read_whole(path)
    count = len(ranges)
    assert kept._connection is not None
    kept._connection.execute("UPDATE kept SET bytes = zeroblob(size) WHERE data % 2")
    assert read_whole(path) == expected
    assert len(ranges) > count
    kept.close()
    assert read_whole(path) == expected
    (tmp_path / "cache" / "contents-1.db").write_bytes(b"no database at all" * 1000)
    again = Kept(MIB)
    again.put("x", [(1, b"abc")])
    assert again.get("x", 1) == b"abc"


def test_everything_comes_by_itself_in_the_order_of_reading(image: Path) -> None:
    kept = Kept(64 * MIB)
    path, _, ranges = _origin(image, kept)
    origin = elsewhere.of(str(path))
    assert origin is not None
    origin.prefetch()  # type: ignore[attr-defined]
    origin._thread.join()  # type: ignore[attr-defined]
    count = len(ranges)
    assert count < 40
    read_whole(path)
    assert len(ranges) == count


def test_many_threads_ask_for_one_content_once(image: Path) -> None:
    path, _, ranges = _origin(image, Kept(64 * MIB))
    with sqlimage.open(str(path)) as opened:
        (data, length), *_ = opened.database.rows("SELECT id, stored_bytes FROM data ORDER BY stored_bytes DESC")
    origin = elsewhere.of(str(path))
    assert origin is not None
    found: list[bytes | None] = []
    threads = [threading.Thread(target=lambda: found.append(origin.fetch(data, length))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 16
    assert len({offset for offset, _ in ranges}) == len(ranges)


def test_a_url_is_served_while_it_is_fetched(web: Web, image: Path, tmp_path: Path) -> None:
    socket = tmp_path / "s.sock"
    program = str(Path(sys.executable).with_name("sqlimage"))
    server = subprocess.Popen([program, "serve", url_of(web), "--socket", str(socket)], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None and server.stdout.readline().startswith(b"nbd+unix")
        run("nbdcopy", f"nbd+unix:///?socket={socket}", tmp_path / "copy.img")
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    assert server.returncode == 0
    assert (tmp_path / "copy.img").read_bytes() == kept_bytes(image, (image.parent / "volume.img").read_bytes())


def test_what_is_on_its_way_is_not_waited_for_at_the_end(web: Web, shelf: Path) -> None:
    """A server that is silent keeps nobody from closing what was opened."""
    path = local_image(url_of(web))
    web.held = {segment.name for segment in (shelf / "segments").iterdir()}
    failed: list[str] = []
    with sqlimage.open(path) as opened:
        driver = opened.version().driver()

        def read() -> None:
            try:
                driver.read(0, driver.size_bytes)
            except sqlimage.SqlimageError as problem:
                failed.append(str(problem))

        reading = threading.Thread(target=read)
        reading.start()
        while not web.waiting:
            time.sleep(0.01)
        driver.close()
        reading.join(60)
    assert len(failed) == 1 and "given up" in failed[0]


def test_a_url_is_mounted(web: Web, tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    where.mkdir()
    tool("mount", url_of(web), where, "--way", "reader")
    try:
        assert (where / "a" / "file2.bin").read_bytes() == noise(2, 300_000)
    finally:
        tool("unmount", where)


def test_a_url_of_an_encrypted_image_is_mounted_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(places.CACHE_VARIABLE, str(tmp_path / "cache"))
    key, image, where = tmp_path / "the.key", tmp_path / "sealed.sqlimage", tmp_path / "mnt"
    key.write_bytes(b"a key that only this test has")
    where.mkdir()
    tool("capture", travelling.volume(tmp_path), image, "--encrypt-all", "--key-file", key)
    tool("split", image, tmp_path / "shelf", "--segment-size", "256KiB")
    url = f"file://{tmp_path}/shelf/sealed.sqlimage"
    done = run_tool("mount", url, where, "--way", "reader")
    assert done.returncode == 7 and url in done.stderr, done
    tool("mount", url, where, "--way", "reader", "--key-file", key)
    try:
        assert (where / "a" / "file2.bin").read_bytes() == noise(2, 300_000)
    finally:
        tool("unmount", where)


def test_a_partial_image_that_is_being_filled_is_read_meanwhile(image: Path, tmp_path: Path) -> None:
    path, _, _ = _origin(image, Kept(64 * MIB))
    segments = segments_of(image)
    expected = read_whole(path)
    with sqlimage.open(str(path)) as opened:
        driver = opened.version().driver(cache=sqlimage.Cache(memory_bytes=1))
        for number, segment in enumerate(segments, 1):
            with Incoming(str(path)) as incoming:
                incoming.put(number, segment)
            assert driver.read(0, driver.size_bytes) == expected
        driver.close()


def test_the_cache_is_nobody_elses(web: Web, tmp_path: Path) -> None:
    local_image(url_of(web))
    assert os.stat(tmp_path / "cache").st_mode & 0o077 == 0
