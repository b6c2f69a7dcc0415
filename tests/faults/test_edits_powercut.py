"""An edit under power cuts: what was flushed is there, cluster by cluster, and a version is sealed or it is not."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import sqlimage
from sqlimage.image.edits import begin, resume
from sqlimage.streams.database import Database
from tests.faults.events import History
from tests.faults.powercut import cuts
from tests.faults.trace import Trace, traced
from tests.image.edits import check_whole
from tests.images import noise

NAME = "i.sqlimage"
UNIT = 4096
CLUSTERS = 24
CONTENT = noise("power cut", CLUSTERS * UNIT - 100)
Round = dict[int, bytes]
"""What one turn writes, by cluster; empty bytes are zeroed."""


def rounds(count: int) -> list[Round]:
    dice, made = random.Random(1), []
    for turn in range(count):
        clusters = dice.sample(range(CLUSTERS - 1), 6)
        made.append({n: b"" if dice.random() < 0.3 else noise((turn, n % 3), UNIT) for n in clusters})
    return made


ROUNDS = rounds(12)


def after(count: int, content: bytes = CONTENT) -> list[bytes]:
    clusters = [content[n * UNIT : (n + 1) * UNIT] for n in range(CLUSTERS)]
    for one in ROUNDS[:count]:
        for n, written in one.items():
            clusters[n] = written or bytes(UNIT)
    return clusters


def play(edit_path: Path, trace: Trace, *, is_synced: bool = True) -> None:
    """Begin, write and flush in three sittings, commit; then begin and discard; then begin and commit once more."""
    edit = begin(str(edit_path))
    trace.mark("begun")
    for turn, one in enumerate(ROUNDS, 1):
        if not is_synced:
            edit._database.run("PRAGMA synchronous = OFF")
        for n, written in one.items():
            if written:
                edit.driver.write(n * UNIT, written)
            else:
                edit.driver.zero(n * UNIT, UNIT)
        edit.driver.flush()
        trace.mark(turn)
        if turn % 5 == 0:
            edit.close()
            edit = resume(str(edit_path))
    edit.commit()
    trace.mark("sealed")
    edit = begin(str(edit_path))
    edit.driver.write(0, noise("discarded", 9 * UNIT))
    edit.driver.flush()
    edit.discard()
    trace.mark("discarded")
    with begin(str(edit_path)) as edit:
        edit.driver.write(3 * UNIT, noise("last", UNIT))
    trace.mark("sealed again")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("captured")
    sqlimage.capture(sqlimage.MemoryDevice(CONTENT), place / NAME)
    return place / NAME


def history(image: Path, place: Path, *, is_synced: bool = True) -> History:
    shutil.copy(image, place)
    with traced(place) as trace:
        play(place / NAME, trace, is_synced=is_synced)
    return trace


@pytest.fixture(scope="module")
def an_edit(image: Path, tmp_path_factory: pytest.TempPathFactory) -> History:
    return history(image, tmp_path_factory.mktemp("traced"))


def look(state: Path, marks: tuple[object, ...]) -> None:
    """Everything that must hold after a cut, recovered."""
    path = state / NAME
    sqlimage.recover(str(path))
    with sqlimage.open(str(path)) as opened:
        report = sqlimage.verify(opened)
        assert report.is_whole, (state, report.problems)
        driver = opened.driver("1")
        assert driver.read(0, len(CONTENT)) == CONTENT
        driver.close()
        found = {version.number: version.control.state for version in opened.versions()}
        actions = [row.action for row in opened.audit()]
        flushed = max((mark for mark in marks if isinstance(mark, int)), default=0)
        assert actions.count("edit-commit") == sum(known == "sealed" for known in found.values()) - 1
        assert actions.count("edit-discard") + len(found) - 1 == actions.count("edit-begin")
        assert 2 in found or "begun" not in marks
        for mark, action, times in (
            ("sealed", "edit-commit", 1),
            ("discarded", "edit-discard", 1),
            ("sealed again", "edit-commit", 2),
        ):
            assert mark not in marks or actions.count(action) >= times, (state, mark)
        if 2 in found:
            edit = resume(str(path)) if found[2] == "open" else None
            driver = edit.driver if edit else opened.driver("2")
            content = driver.read(0, len(CONTENT))
            if edit is None:
                driver.close()
                assert content == b"".join(after(len(ROUNDS)))[: len(CONTENT)]
            least, more = after(flushed), after(flushed + 1)
            for n in range(CLUSTERS):
                assert content[n * UNIT : (n + 1) * UNIT] in (least[n], more[n]), (state, n)
    if 2 in found and edit:
        edit.commit()
        check_whole(path)


def test_what_was_flushed_is_there_and_what_was_sealed_stays_so(an_edit: History) -> None:
    for state, marks in cuts(an_edit, 300, 1):
        look(state, marks)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_five_thousand_power_cuts(an_edit: History, seed: int) -> None:
    for state, marks in cuts(an_edit, 500, seed):
        look(state, marks)


def test_without_syncs_the_same_cuts_lose_what_was_flushed(image: Path, tmp_path: Path) -> None:
    """So it is the syncs that the test above sees."""
    lost = 0
    for state, marks in cuts(history(image, tmp_path, is_synced=False), 60, 2):
        try:
            look(state, marks)
        except (AssertionError, sqlimage.SqlimageError):
            lost += 1
    assert lost > 5


def test_a_child_file_is_there_whole_or_not_at_all(image: Path, tmp_path: Path) -> None:
    shutil.copy(image, tmp_path / "parent.sqlimage")
    with traced(tmp_path) as trace:
        with begin(str(tmp_path / "parent.sqlimage"), into=tmp_path / "child.sqlimage") as edit:
            trace.mark("begun")
            edit.driver.write(0, noise("child", UNIT))
        trace.mark("sealed")
    there = []
    for state, marks in cuts(trace, 120, 3):
        child = state / "child.sqlimage"
        there.append(child.exists())
        assert child.exists() or not marks
        if child.exists():
            sqlimage.recover(str(child))
            check_whole(child)
            with sqlimage.open(str(child)) as opened:
                assert opened.versions()[0].control.state == "sealed" or "sealed" not in marks
        with Database.open(state / "parent.sqlimage") as parent:
            assert parent.row("PRAGMA integrity_check") == ("ok",)
    assert any(there) and not all(there)
