"""What SQLite's modes promise under power cuts, on databases with nothing of ours in them. The images stand on this."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import apsw
import pytest

from tests.faults.events import History
from tests.faults.powercut import cuts
from tests.faults.trace import traced

CUTS = 300
COMMITS = 12


def twelve_commits(directory: Path, mode: str, synchronous: str) -> History:
    """Each sets a number and a value of many pages, and adds a row; two connections in turn, a third one reads."""
    path = str(directory / "x.db")
    connection = apsw.Connection(path)
    connection.execute("CREATE TABLE turn(n, value); INSERT INTO turn VALUES (0, zeroblob(9000)); CREATE TABLE row(b)")
    connection.close()
    with traced(directory) as trace:
        connections = [apsw.Connection(path) for _ in range(3)]
        for connection in connections:
            connection.execute(f"PRAGMA journal_mode = {mode}")
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            connection.execute("PRAGMA wal_autocheckpoint = 12")  # several in the trace, and the log begun anew
        for n in range(1, COMMITS + 1):
            with connections[n % 2] as writer:
                writer.execute("UPDATE turn SET n = ?, value = randomblob(?)", [n, 9000 + n * 500])
                writer.execute("INSERT INTO row VALUES (randomblob(3000))")
            trace.mark(n)
            connections[2].execute("SELECT * FROM turn").fetchall()
        for connection in connections:
            connection.close()
    return trace


def outcome(state: Path, acknowledged: int) -> str:
    """``right``, ``lost`` (an acknowledged commit is not there) or ``corrupt``."""
    connection = apsw.Connection(str(state / "x.db"))
    try:
        if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            return "corrupt"
        n, rows = connection.execute("SELECT n, (SELECT count(*) FROM row) FROM turn").fetchone() or (0, 0)
        if n != rows or n > acknowledged + 1:
            return "corrupt"
        return "lost" if n < acknowledged else "right"
    except (apsw.CorruptError, apsw.NotADBError):
        return "corrupt"
    finally:
        connection.close()


def outcomes(history: History, seed: int) -> Counter[str]:
    return Counter(outcome(state, len(marks)) for state, marks in cuts(history, CUTS, seed))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("mode", "synchronous"), [("WAL", "FULL"), ("DELETE", "EXTRA"), ("TRUNCATE", "FULL")])
def test_nothing_is_corrupt_and_nothing_acknowledged_is_lost(
    tmp_path: Path, mode: str, synchronous: str, seed: int
) -> None:
    assert outcomes(twelve_commits(tmp_path, mode, synchronous), seed) == {"right": CUTS}


def test_a_deleted_journal_comes_back_unless_its_directory_is_synced(tmp_path: Path) -> None:
    """FULL does not sync the directory after the removal that is the commit: EXTRA does, and that is all it adds."""
    told = outcomes(twelve_commits(tmp_path, "DELETE", "FULL"), 1)
    assert told["corrupt"] == 0
    assert told["lost"] > 0


def test_a_log_that_is_not_synced_at_each_commit_loses_commits_and_nothing_else(tmp_path: Path) -> None:
    told = outcomes(twelve_commits(tmp_path, "WAL", "NORMAL"), 1)
    assert told["corrupt"] == 0
    assert told["lost"] > 0


@pytest.mark.parametrize(("mode", "synchronous"), [("DELETE", "OFF"), ("WAL", "OFF"), ("TRUNCATE", "NORMAL")])
def test_with_fewer_syncs_the_power_cuts_do_corrupt(tmp_path: Path, mode: str, synchronous: str) -> None:
    """The control: were this to pass unharmed, the tests above would prove nothing."""
    assert outcomes(twelve_commits(tmp_path, mode, synchronous), 1)["corrupt"] > 0
