"""Images and places that strangers made, and people in a hurry: nothing takes what was not sent, and nobody is told
what was told in confidence."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard

import sqlimage
from sqlimage.transfer.contents import OWN, Contents, SegmentInfo
from sqlimage.transfer.segment import HEADER_BYTES, Header, Part
from sqlimage.transfer.stores.contract import SEGMENTS, VERSIONS
from sqlimage.transfer.stores.directory import DirectoryStore
from sqlimage.transfer.stores.memory import MemoryStore
from sqlimage.transfer.there import pointer
from sqlimage.units import GIB, MIB
from tests.images import run_tool, tool
from tests.make import misbehaving as bad
from tests.make.misbehaving import Handler, misbehaving
from tests.transfer.made import NAME, SEGMENT, check_one_line, first_segment, make_image, shelf_of

_UUID = "11111111-1111-1111-1111-111111111111"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(tmp_path_factory.mktemp("image"), files=20)


def first_of(streams: bytes, places: Contents | None = None, data: bytes = b"") -> bytes:
    """A first segment whose digests are right, whatever is in it."""
    length = 0
    while True:
        told = places or Contents([SegmentInfo(OWN, length)])
        packed = Contents([SegmentInfo(OWN, length)], *told.places()).pack()
        at = HEADER_BYTES + len(packed)
        begin = at + len(streams)
        end = begin + len(data)
        if end == length:
            break
        length = end
    parts = [_part(HEADER_BYTES, packed), _part(at, streams), _part(end, b"")]
    contents, rows, rest = parts
    header = Header(_UUID, 1, 1, GIB, end, contents, rows, rest, begin, hashlib.sha256(data).digest())
    return header.pack() + packed + streams + data


def _part(at: int, content: bytes) -> Part:
    return Part(at, len(content), hashlib.sha256(content).digest())


def _block(head: dict[str, object], body: bytes = b"") -> bytes:
    packed = zstandard.ZstdCompressor().compress(json.dumps(head).encode() + b"\n" + body)
    return struct.pack("<I", len(packed)) + packed


def _few_bytes_that_claim_much() -> Iterator[tuple[str, bytes]]:
    nothing = {"table": "control", "rows": 65536, "columns": [["", "null", 0]] * 3000}
    yield "columns of NULLs", first_of(_block(nothing))
    lists = b"[" + b"{}," * (10 * MIB) + b"{}]"
    yield (
        "lists of nothing",
        first_of(_block({"table": "control", "rows": 1, "columns": [["a", "any", len(lists)]]}, lists)),
    )
    many = np.arange(1, 4_000_000, dtype=np.int64)
    one = np.ones(len(many), dtype=np.int64)
    yield "places without contents", first_of(b"", Contents([], many, one, many, one), bytes(5_000_000))
    ten = np.arange(1, 11, dtype=np.int64)
    same = Contents([], ten, np.ones(10, dtype=np.int64), np.zeros(10, dtype=np.int64), np.full(10, MIB))
    yield "the same bytes ten times", first_of(bytes(1000), same, bytes(MIB))


@pytest.mark.parametrize(
    "what", ["columns of NULLs", "lists of nothing", "places without contents", "the same bytes ten times"]
)
def test_a_few_bytes_do_not_take_memory_or_a_disk(what: str, tmp_path: Path) -> None:
    """The limit is that of all that the process may map; a pull that succeeds needs less."""
    (tmp_path / "first").write_bytes(dict(_few_bytes_that_claim_much())[what])
    program = Path(sys.executable).with_name("sqlimage")
    done = subprocess.run(
        ["sh", "-c", f'ulimit -v 1000000; exec "{program}" receive "{tmp_path}/copy.sqlimage" < "{tmp_path}/first"'],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 5, done.stderr
    assert "of the form it should be" in done.stderr
    assert not (tmp_path / "copy.sqlimage").exists()


def test_a_pointer_that_is_no_pointer_points_nowhere() -> None:
    store = MemoryStore()
    segment, version = f"{SEGMENTS}{'0' * 64}".encode(), f"{VERSIONS}{_UUID}".encode()
    elsewhere = [b'{"image": "%b"}' % name for name in (segment, version, b"../x", b"a/b")]
    for told in (b"[" * 60_000, b'{"image":' * 6_000, b"[]", b"7", b'"image"', b'["image"]', b"\xff", *elsewhere):
        store.put(VERSIONS + _UUID, told)
        assert pointer(store, _UUID) is None


def test_an_image_in_a_store_that_lacks_columns_is_told_in_one_line(image: Path, tmp_path: Path) -> None:
    block = _block({"table": "data", "rows": 1, "columns": [["id", "any", 3]]}, b"[1]")
    store, content = DirectoryStore(tmp_path / "shelf"), first_of(block)
    segment = SEGMENTS + hashlib.sha256(content).hexdigest()
    store.put(segment, content)
    store.publish(NAME, segment)
    told = check_one_line(run_tool("push", image, f"file://{tmp_path}/shelf/{NAME}"), 5)
    assert "lack columns" in told


@pytest.mark.parametrize(
    ("command", "url"),
    [
        (["send"], "https://user:s3cret@host.invalid/d/NAME"),
        (["ls"], "https://user:s3cret@host.invalid"),
        (["ls"], "https://user:s3cret@host.invalid/"),
        (["verify"], "s3://user:s3cret@bucket/d/NAME"),
    ],
)
def test_no_message_shows_a_password(command: list[str], url: str) -> None:
    done = run_tool(*command, url)
    assert done.returncode in (2, 4)
    assert "s3cret" not in done.stderr + done.stdout


def test_segments_are_not_split_into_a_directory_that_is_called_like_a_url(image: Path, tmp_path: Path) -> None:
    with pytest.raises(sqlimage.UsageError, match="no directory"):
        sqlimage.split(str(image), None, "s3://bucket/dir")


def test_an_image_that_is_restored_twice_is_cleared_away_by_the_last(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQLIMAGE_CACHE", str(tmp_path / "cache"))
    tool("split", image, tmp_path / "shelf", "--segment-size", SEGMENT)
    url = f"file://{tmp_path}/shelf/{NAME}"
    with sqlimage.fetched(url) as one:
        with sqlimage.fetched(url) as other:
            assert one == other
        assert Path(one).exists(), "somebody still reads it"
    assert not Path(one).exists()
    with sqlimage.fetched(url) as again:
        assert Path(again).exists()


def test_who_interrupts_a_pull_does_not_wait_for_a_silent_server(image: Path, tmp_path: Path) -> None:
    content = shelf_of(image, tmp_path / "shelf")
    program = str(Path(sys.executable).with_name("sqlimage"))
    with misbehaving(content) as server:
        asked: list[str] = []

        def silent_on_segments(handler: Handler) -> None:
            if "/segments/" in handler.path:
                asked.append(handler.path)
                bad.silent(handler)
            else:
                bad.behave(handler)

        server.always = silent_on_segments
        command = [program, "pull", f"{server.url}/{NAME}", str(tmp_path / "copy.sqlimage")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            while not asked and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            try:
                told = process.communicate(timeout=50)[1]  # the line would be silent for 60 s, six times
            finally:
                process.kill()
    assert process.returncode == 130, told


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE segment SET number = -number",
        "DELETE FROM segment WHERE number = 1",
        "INSERT INTO segment SELECT 'x', number, bytes, digest, state FROM segment",
        "UPDATE place SET segment = 99",
        "UPDATE place SET segment = -3",
    ],
)
def test_an_image_that_contradicts_itself_on_its_segments_is_not_filled(
    image: Path, tmp_path: Path, change: str
) -> None:
    tool("split", image, tmp_path / "shelf", "--segment-size", SEGMENT)
    first = first_segment(tmp_path / "shelf", image.name)
    held = next(one for one in (tmp_path / "shelf" / "segments").iterdir() if one != first)
    held.rename(tmp_path / "away")
    tool("join", tmp_path / "shelf", tmp_path / "copy.sqlimage", code=3)
    with contextlib.closing(sqlite3.connect(tmp_path / "copy.sqlimage", isolation_level=None)) as connection:
        connection.execute(change)
    told = check_one_line(run_tool("join", tmp_path / "shelf", tmp_path / "copy.sqlimage"), 5)
    assert "contradicts itself" in told
