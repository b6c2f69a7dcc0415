"""Segments that arrive, under power cuts and on a failing disk: what was put is there, what is called here has its
contents, and what could not be written comes another time."""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import sqlimage
from sqlimage.streams.database import Database
from sqlimage.transfer.arrive import First, Incoming, make_image
from sqlimage.transfer.pipe import receive, send
from sqlimage.transfer.pull import pull
from sqlimage.transfer.segment import HEADER_BYTES, read_header
from sqlimage.transfer.stores.contract import SEGMENTS
from sqlimage.transfer.stores.memory import MemoryStore
from tests.faults.calls import Kind
from tests.faults.events import History, Mark
from tests.faults.failing import SHORT, every_fault
from tests.faults.powercut import cuts
from tests.faults.trace import Trace, traced
from tests.images import noise
from tests.transfer.made import check_partial, medium_digest, segments

NAME = "i.sqlimage"
SEGMENT_BYTES = 64 << 10
UNIT = 4096
CLUSTERS = 150


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of many small contents, as scattered writes make them."""
    path = tmp_path_factory.mktemp("source") / NAME
    sqlimage.capture(sqlimage.MemoryDevice(bytes(CLUSTERS * UNIT)), path, preset="fast")
    with sqlimage.open(str(path), writable=True) as image, image.edit() as edit:
        for n in range(CLUSTERS):
            edit.driver.write(n * UNIT, noise(n, UNIT))
            if n % 4 == 3:
                edit.driver.flush()
    return path


@pytest.fixture(scope="module")
def parts(source: Path) -> list[bytes]:
    """Its segments, as they come out of a pipe."""
    out = io.BytesIO()
    send(str(source), None, out, segment_bytes=SEGMENT_BYTES)
    stream, found = memoryview(out.getvalue()), []
    while stream:
        length = read_header("stream", stream[:HEADER_BYTES]).length_bytes
        found.append(bytes(stream[:length]))
        stream = stream[length:]
    assert len(found) > 8
    return found


def arrive(place: Path, parts: list[bytes], trace: Trace, *, is_synced: bool = True) -> None:
    """The first segment makes the image; all of them are put, in two sittings, each acknowledged."""
    path = str(place / NAME)
    make_image(path, First.from_segment("here", parts[0]))
    trace.mark("made")
    half = len(parts) // 2
    for first, last in ((0, half), (half, len(parts))):
        with Incoming(path) as incoming:
            if not is_synced:
                incoming.database.run("PRAGMA synchronous = OFF")
            for n in range(first, last):
                incoming.put(n + 1, parts[n])
                trace.mark(n + 1)


def arrive_by_pull(place: Path, parts: list[bytes], trace: Trace) -> None:
    store = MemoryStore()
    for part in parts:
        store.put(SEGMENTS + hashlib.sha256(part).hexdigest(), part)
    store.publish(NAME, SEGMENTS + hashlib.sha256(parts[0]).hexdigest())
    pull(store, NAME, str(place / NAME))
    trace.mark(len(parts))


def arrive_by_pipe(place: Path, parts: list[bytes], trace: Trace) -> None:
    receive(io.BytesIO(b"".join(parts)), str(place / NAME))
    trace.mark(len(parts))


WAYS: dict[str, Callable[[Path, list[bytes], Trace], None]] = {
    "put": arrive,
    "pull": arrive_by_pull,
    "receive": arrive_by_pipe,
}


def history(place: Path, parts: list[bytes], way: Callable[[Path, list[bytes], Trace], None]) -> History:
    trace: Trace
    with traced(place) as trace:
        way(place, parts, trace)
    return trace


@pytest.fixture(scope="module", params=WAYS)
def arrival(request: pytest.FixtureRequest, parts: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> History:
    return history(tmp_path_factory.mktemp("traced"), parts, WAYS[request.param])


def put_by(marks: tuple[object, ...]) -> set[int]:
    """The segments that were acknowledged, which come in order."""
    return set(range(1, 1 + max((mark for mark in marks if isinstance(mark, int)), default=0)))


def look(
    path: Path, put: set[int], parts: list[bytes], source: Path, *, is_made: bool, may_be_ahead: bool = False
) -> int:
    """Everything that must hold: what was put is here, nothing is corrupt or half; how many segments are here. Commands
    ``may_be_ahead`` of what they have said."""
    if not path.exists():
        assert not is_made and not put
        return 0
    check_partial(path)
    found = {one.number for one in segments(path) if one.is_here}
    assert put <= found, (put, found)
    assert may_be_ahead or found <= put | {max(put, default=0) + 1}, (put, found)
    if len(found) == len(parts):
        check_whole(path, source)
    return len(found)


def check_whole(path: Path, source: Path) -> None:
    with sqlimage.open(str(path)) as image:
        assert sqlimage.verify(image).is_whole
    assert medium_digest(path) == medium_digest(source)
    with Database.open(str(path)) as database:
        assert database.row("SELECT count(*) FROM main.place") == (0,)


def survive(history: History, count: int, seed: int, parts: list[bytes], source: Path) -> None:
    """Every cut leaves what was put, and what is missing then can be put."""
    seen: set[int] = set()
    may_be_ahead = sum(isinstance(event, Mark) for event in history.events) == 1
    for turn, (state, marks) in enumerate(cuts(history, count, seed)):
        put = put_by(marks)
        seen.add(look(state / NAME, put, parts, source, is_made="made" in marks, may_be_ahead=may_be_ahead))
        if turn % 20 == 0 and (state / NAME).exists():
            with Incoming(str(state / NAME)) as incoming:
                for row in incoming.missing():
                    incoming.put(row.number, parts[row.number - 1])
            assert [one.name for one in state.iterdir()] == [NAME]
            check_whole(state / NAME, source)
    assert {0, len(parts)} <= seen and (may_be_ahead or len(seen) > len(parts) // 2)


def test_a_segment_that_was_put_survives_a_power_cut(arrival: History, parts: list[bytes], source: Path) -> None:
    survive(arrival, 100, 1, parts, source)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 107))
def test_ten_thousand_power_cuts(arrival: History, parts: list[bytes], source: Path, seed: int) -> None:
    survive(arrival, 500, seed, parts, source)


def test_without_syncs_the_same_cuts_lose_what_was_put(parts: list[bytes], source: Path, tmp_path: Path) -> None:
    """So it is the syncs that the test above sees."""
    lost = 0
    for state, marks in cuts(history(tmp_path, parts, functools.partial(arrive, is_synced=False)), 60, 2):
        put = put_by(marks)
        try:
            look(state / NAME, put, parts, source, is_made="made" in marks)
        except (AssertionError, sqlimage.SqlimageError):
            lost += 1
    assert lost > 5


FAILURES = [
    (Kind.WRITE, errno.ENOSPC),
    (Kind.WRITE, errno.EIO),
    (Kind.SYNC, errno.EIO),
    (Kind.READ, errno.EIO),
    (Kind.READ, SHORT),
    (Kind.WRITE, SHORT),
    (Kind.TRUNCATE, errno.EIO),
    (Kind.UNLINK, errno.EIO),
    (Kind.OPEN, errno.EACCES),
]


EVERY_DAY = [(Kind.WRITE, errno.ENOSPC, True), (Kind.SYNC, errno.EIO, False), (Kind.READ, errno.EIO, False)]
"""Of these, with whether they last."""
NOT_IN_MAKING = (Kind.TRUNCATE, Kind.UNLINK)
"""A file without a name and without a journal has nothing of the kind."""


@pytest.fixture(scope="module")
def begun(parts: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of which the first two segments are here."""
    path = tmp_path_factory.mktemp("begun") / NAME
    make_image(str(path), First.from_segment("here", parts[0]))
    with Incoming(str(path)) as incoming:
        for n in (0, 1):
            incoming.put(n + 1, parts[n])
    return path


def put_next(path: Path, parts: list[bytes], put: set[int]) -> None:
    with Incoming(str(path)) as incoming:
        for number in (3, 4):
            incoming.put(number, parts[number - 1])
            put.add(number)


@pytest.mark.parametrize(
    ("kind", "error", "forever"),
    [
        case if case in EVERY_DAY else pytest.param(*case, marks=pytest.mark.slow)
        for case in [(*failure, forever) for failure in FAILURES for forever in (False, True)]
    ],
)
def test_a_segment_that_cannot_be_written_is_one_error_and_comes_again(
    begun: Path, parts: list[bytes], source: Path, kind: Kind, error: int, forever: bool, tmp_path: Path
) -> None:
    for fault in every_fault(tmp_path, kind, error, forever=forever):
        path = fresh(begun, tmp_path)
        put = {1, 2}
        raised: sqlimage.SqlimageError | None = None
        with fault:
            try:
                put_next(path, parts, put)
            except sqlimage.SqlimageError as problem:
                raised = problem
        assert raised is None or str(path) in str(raised), raised
        assert raised is not None or put == {1, 2, 3, 4}
        assert error != SHORT or raised is None, "a call that moves less than it was asked to is no failure"
        look(path, put, parts, source, is_made=True)
        put_next(path, parts, put)
        assert look(path, put, parts, source, is_made=True) == 4


def fresh(begun: Path, place: Path) -> Path:
    for left in place.iterdir():
        left.unlink()
    return Path(shutil.copy(begun, place / NAME))


@pytest.mark.slow
@pytest.mark.parametrize("forever", [False, True], ids=["once", "forever"])
@pytest.mark.parametrize(("kind", "error"), [one for one in FAILURES if one[0] not in NOT_IN_MAKING])
def test_an_image_that_cannot_be_made_is_not_there_or_whole(
    parts: list[bytes], source: Path, kind: Kind, error: int, forever: bool, tmp_path: Path
) -> None:
    first = First.from_segment("here", parts[0])
    path = tmp_path / NAME
    for fault in every_fault(tmp_path, kind, error, forever=forever):
        path.unlink(missing_ok=True)
        raised: sqlimage.SqlimageError | None = None
        with fault:
            try:
                make_image(str(path), first)
            except sqlimage.SqlimageError as problem:
                raised = problem
        assert raised is not None or path.exists()
        assert {one.name for one in tmp_path.iterdir()} <= {NAME}
        look(path, set(), parts, source, is_made=raised is None)
