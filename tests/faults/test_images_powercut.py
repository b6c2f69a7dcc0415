"""An image under power cuts: the change is there with its audit row or neither is, and "done" means done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import sqlimage
from tests.faults.events import History
from tests.faults.powercut import cuts
from tests.faults.trace import traced
from tests.images import noise

NAME = "i.sqlimage"


class Lost(Exception):
    """Changes that were acknowledged are not there, in images that are whole."""


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("captured")
    (place / "raw").write_bytes(noise("power cut", 60_000))
    sqlimage.capture(str(place / "raw"), str(place / NAME))
    return place / NAME


@pytest.fixture(scope="module")
def twelve_properties(captured: Path, tmp_path_factory: pytest.TempPathFactory) -> History:
    """``turn`` is set to 1, 2, ... 12, each acknowledged; the image is opened anew after every third."""
    place = tmp_path_factory.mktemp("traced")
    shutil.copy(captured, place)
    with traced(place) as trace:
        for first in range(1, 13, 3):
            with sqlimage.open(str(place / NAME), writable=True) as image:
                for turn in range(first, first + 3):
                    image.version().set_property("turn", f"{turn} " + "." * (turn % 4 * 5000))
                    trace.mark(turn)
    return trace


def turn_after_recovery(state: Path) -> int:
    """The value that stands in an image that was recovered; all else about it is checked on the way."""
    sqlimage.recover(str(state / NAME))
    assert [path.name for path in state.iterdir()] == [NAME]
    with sqlimage.open(str(state / NAME)) as image:
        report = sqlimage.verify(image)
        assert report.is_whole, (state, report.problems)
        value = str(image.version().properties().get("turn", "0 ")).partition(" ")[0]
        audited = [json.loads(row.detail)["after"] for row in image.audit() if row.action == "property"]
        assert [text.partition(" ")[0] for text in audited] == [str(n) for n in range(1, int(value) + 1)], state
        return int(value)


def survive(history: History, count: int, seed: int) -> None:
    """Every cut leaves a whole image, before or after the change that was under way. :class:`Lost` is told last."""
    lost = []
    for state, marks in cuts(history, count, seed):
        turn = turn_after_recovery(state)
        assert turn <= len(marks) + 1, state
        if turn < len(marks):
            lost.append(f"{state.name}: {len(marks)} acknowledged, {turn} there")
    if lost:
        raise Lost(lost)


def test_a_property_that_was_acknowledged_is_there_and_one_under_way_is_or_is_not(twelve_properties: History) -> None:
    survive(twelve_properties, 300, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_ten_thousand_power_cuts(twelve_properties: History, seed: int) -> None:
    survive(twelve_properties, 500, seed)


def test_a_power_cut_during_recovery_is_recovered_from_as_well(twelve_properties: History, tmp_path: Path) -> None:
    interrupted = 0
    for state, marks in cuts(twelve_properties, 60, 3):
        if not (state / f"{NAME}-journal").exists():
            continue
        interrupted += 1
        before = Path(shutil.copytree(state, tmp_path / state.name))
        turn = turn_after_recovery(state)
        with traced(before) as trace:
            sqlimage.recover(str(before / NAME))
        for once_more, _ in cuts(trace, 6, len(marks)):
            assert turn_after_recovery(once_more) == turn, (state, once_more)
    assert interrupted > 10


def test_a_capture_leaves_no_image_or_a_whole_one(captured: Path, tmp_path: Path) -> None:
    """Its database is written without a journal or syncs, in a file that gets its name when it is on the medium."""
    with traced(tmp_path) as trace:
        sqlimage.capture(str(captured.with_name("raw")), str(tmp_path / NAME))
        trace.mark("done")
    there = {False: 0, True: 0}
    for state, marks in cuts(trace, 300, 4):
        names = [path.name for path in state.iterdir()]
        assert names == [NAME] or (names == [] and not marks), state
        there[bool(names)] += 1
        if names:
            with sqlimage.open(str(state / NAME)) as image:
                assert sqlimage.verify(image).is_whole, state
    assert all(there.values())
