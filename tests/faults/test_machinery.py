"""The power cuts and failures are what they claim to be: otherwise the tests that stand on them prove nothing."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import apsw
import pytest

from sqlimage.nameless import NamelessFile
from tests.faults.calls import Kind
from tests.faults.events import DirectorySync, Event, History, Sync, Truncate, Write
from tests.faults.failing import SHORT, Fault, every_fault
from tests.faults.powercut import SECTOR_BYTES, cuts, replayed
from tests.faults.trace import traced


def database(path: Path, *pragmas: str) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}")
    return connection


def write(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a whole file by the calls that are watched."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    os.write(fd, data)
    if sync:
        os.fsync(fd)
    os.close(fd)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def found(history: History, name: str, count: int = 60) -> set[bytes | None]:
    """What a file holds after cuts at the end of the trace; None where it is not there."""
    held: set[bytes | None] = set()
    for state, marks in cuts(history, count * (len(history.events) + 1), 1):
        if "end" in marks:
            held.add((state / name).read_bytes() if (state / name).exists() else None)
    return held


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_trace_replayed_to_its_end_is_the_directory(tmp_path: Path, mode: str) -> None:
    database(tmp_path / "x.db").execute("CREATE TABLE t(b)")
    with traced(tmp_path) as trace:
        first, second = database(tmp_path / "x.db", f"journal_mode={mode}"), database(tmp_path / "x.db")
        for connection in (first, second, first):
            connection.execute("INSERT INTO t VALUES (randomblob(50000))")
        second.execute("DELETE FROM t")
        second.execute("VACUUM")
        second.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        held = {p.name: p.read_bytes() for p in tmp_path.iterdir() if not p.name.endswith("-shm")}
        assert replayed(trace) == held
    assert {type(event) for event in trace.events} >= {Write, Sync, DirectorySync, Truncate}


def test_writes_from_many_threads_are_all_recorded(tmp_path: Path) -> None:
    database(tmp_path / "x.db", "journal_mode=WAL").execute("CREATE TABLE t(b)")

    def work() -> None:
        connection = apsw.Connection(str(tmp_path / "x.db"))
        connection.set_busy_timeout(20_000)
        for _ in range(20):
            connection.execute("INSERT INTO t VALUES (randomblob(5000))")
        connection.close()

    with traced(tmp_path) as trace:  # which compares at its end
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert apsw.Connection(str(tmp_path / "x.db")).execute("SELECT count(*) FROM t").fetchone() == (80,)
    assert sum(isinstance(event, Sync) for event in trace.events) >= 80


def test_a_change_that_is_not_watched_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not watched: \\['sneaked'\\]"), traced(tmp_path):
        (tmp_path / "sneaked").write_bytes(b"in")


def test_what_was_synced_is_there_and_what_was_not_may_be_old_new_or_torn_between_sectors(tmp_path: Path) -> None:
    write(tmp_path / "f", b"a" * 2048)
    with traced(tmp_path) as trace:
        fd = os.open(tmp_path / "f", os.O_RDWR)
        os.pwrite(fd, b"b" * 1024, 0)
        os.fsync(fd)
        os.pwrite(fd, b"c" * 1024, 100)
        os.close(fd)
        trace.mark("end")
    held = {content for content in found(trace, "f") if content is not None}
    synced = b"b" * 1024 + b"a" * 1024
    assert {synced, synced[:100] + b"c" * 1024 + synced[1124:]} < held
    for content in held:
        at_boundaries = [n for n in range(1, 2048) if (content[n] == ord("c")) != (content[n - 1] == ord("c"))]
        assert all(n in (100, 1124) or n % SECTOR_BYTES == 0 for n in at_boundaries)
        assert all(byte == ord("c") or byte == old for byte, old in zip(content, synced, strict=True))


def test_a_later_write_may_reach_the_disk_before_an_earlier_one(tmp_path: Path) -> None:
    write(tmp_path / "f", b"--")
    with traced(tmp_path) as trace:
        fd = os.open(tmp_path / "f", os.O_RDWR)
        os.pwrite(fd, b"1", 0)
        os.pwrite(fd, b"2", 1)
        os.close(fd)
        trace.mark("end")
    assert found(trace, "f") == {b"--", b"1-", b"-2", b"12"}


def test_a_name_is_certain_only_when_its_directory_was_synced(tmp_path: Path) -> None:
    write(tmp_path / "removed", b"x")
    with traced(tmp_path) as trace:
        write(tmp_path / "made", b"y")
        os.unlink(tmp_path / "removed")
        trace.mark("end")
    assert found(trace, "made") == {b"y", None}
    assert found(trace, "removed") == {b"x", None}
    with traced(tmp_path) as trace:
        write(tmp_path / "made too", b"z")
        os.replace(tmp_path / "made too", tmp_path / "made")
        sync_directory(tmp_path)
        trace.mark("end")
    assert found(trace, "made") == {b"z"}
    assert found(trace, "made too") == {None}


def test_a_nameless_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with traced(tmp_path) as trace:
        with NamelessFile(tmp_path / "f") as file:
            os.pwrite(file.fd, b"whole", 0)
            file.publish()
        trace.mark("end")
    assert found(trace, "f") == {b"whole"}
    anywhere = {p.read_bytes() for state, _ in cuts(trace, 200, 3) for p in state.iterdir()}
    assert anywhere == {b"whole"}


def test_a_sync_does_not_cover_what_was_written_while_it_ran() -> None:
    one, two = Write(0, 0, b"1"), Write(0, 1, b"2")
    events: list[Event] = [one, two, Sync(0, covers=1)]
    history = History(events, [b"--"], {"f": 0})
    at_the_end = {(s / "f").read_bytes() for s, _ in cuts(history, 300, 1) if "event-3-" in s.name}
    assert at_the_end == {b"1-", b"12"}


def test_the_same_seed_gives_the_same_states() -> None:
    history = History([Write(0, n, b"%d" % n) for n in range(9)], [b"-" * 9], {"f": 0})
    one, same, other = ([(s / "f").read_bytes() for s, _ in cuts(history, 50, seed)] for seed in (1, 1, 2))
    assert one == same != other


def test_the_calls_are_the_real_ones_again_after_a_trace(tmp_path: Path) -> None:
    functions = (os.open, os.fsync, os.unlink)
    with traced(tmp_path), traced(tmp_path) as trace:
        database(tmp_path / "x.db").execute("CREATE TABLE t(b)")
    count = len(trace.events)
    database(tmp_path / "x.db").execute("INSERT INTO t VALUES (1)")
    assert count == len(trace.events) > 0
    assert (os.open, os.fsync, os.unlink) == functions


@pytest.mark.parametrize(
    ("kind", "code"), [(Kind.WRITE, apsw.SQLITE_IOERR_WRITE), (Kind.SYNC, apsw.SQLITE_IOERR_FSYNC)]
)
def test_a_failing_call_fails_as_sqlite_tells_it(tmp_path: Path, kind: Kind, code: int) -> None:
    connection = database(tmp_path / "x.db")
    connection.execute("CREATE TABLE t(b)")
    with Fault(tmp_path, kind, errno.EIO, 1) as fault, pytest.raises(apsw.IOError) as raised:
        connection.execute("INSERT INTO t VALUES (1)")
    assert getattr(raised.value, "extendedresult", None) == code
    assert fault.is_hit
    connection.execute("INSERT INTO t VALUES (2)")
    assert connection.execute("SELECT * FROM t").fetchall() == [(2,)]


def test_every_call_fails_once_in_turn_and_other_directories_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    here, there = database(tmp_path / "here" / "x.db"), database(tmp_path / "there" / "x.db")
    here.execute("CREATE TABLE t(b)")
    there.execute("CREATE TABLE t(b)")
    outcomes = []
    for fault in every_fault(tmp_path / "here", Kind.WRITE, errno.ENOSPC):
        with fault:
            there.execute("INSERT INTO t VALUES (1)")
            try:
                here.execute("INSERT INTO t VALUES (1)")
                outcomes.append("done")
            except apsw.FullError:
                outcomes.append("full")
    assert outcomes == ["full"] * (len(outcomes) - 1) + ["done"]
    assert len(outcomes) > 3


def test_a_short_write_is_gone_on_with(tmp_path: Path) -> None:
    connection = database(tmp_path / "x.db")
    connection.execute("CREATE TABLE t(b)")
    with Fault(tmp_path, Kind.WRITE, SHORT, 1, forever=True) as fault:
        connection.execute("INSERT INTO t VALUES (zeroblob(20000))")
    assert fault.is_hit
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_work_that_makes_no_such_call_is_not_passed_off_as_tested(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="makes no call of this kind"):
        for fault in every_fault(tmp_path, Kind.TRUNCATE, errno.EIO):
            with fault:
                pass
