"""Power cuts in an image that is encrypted as a whole: what is sealed is of one time, and there is always a key."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sqlimage
from tests.faults.events import History
from tests.faults.powercut import cuts
from tests.faults.trace import Trace, traced
from tests.image.edits import whole
from tests.images import noise
from tests.make.encrypted import KEY, with_key, without_keys

UNIT, CLUSTERS = 4096, 40
NAME = "i.sqlimage"
OTHER = sqlimage.KeyFile(b"the key that comes after it")
BEFORE = noise("before", CLUSTERS * UNIT)
AFTER = BEFORE[: 10 * UNIT] + noise("after", 20 * UNIT) + BEFORE[30 * UNIT :]


def edit(place: Path) -> None:
    with sqlimage.open(str(place / NAME)) as opened, opened.edit(label="after") as begun:
        for n in range(10, 30):
            begun.driver.write(n * UNIT, AFTER[n * UNIT : (n + 1) * UNIT])
            if n % 5 == 0:
                begun.driver.flush()


def append(place: Path) -> None:
    sqlimage.capture(sqlimage.MemoryDevice(AFTER), place / NAME, append=True, label="after")


def property_(place: Path) -> None:
    with sqlimage.Image.open(place / NAME, writable=True) as opened:
        opened.version().set_property("when", "after")


def key(place: Path) -> None:
    sqlimage.change_slot(place / NAME, 1, OTHER)


WORK: dict[str, Callable[[Path], None]] = {"edit": edit, "append": append, "property": property_, "key": key}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("template") / NAME
    sqlimage.capture(sqlimage.MemoryDevice(BEFORE), place, encrypt_all=True, ways=[KEY], label="before")
    return place


@pytest.fixture(autouse=True)
def the_key_is_known() -> Iterator[None]:
    with_key()
    yield
    without_keys()


def look(state: Path, work: str, marks: tuple[object, ...]) -> bool:
    """Everything that must hold, after recovery; whether the work is done."""
    image = state / NAME
    without_keys()
    sqlimage.recover(str(image))
    opening = [way for way in (KEY, OTHER) if opens(image, way)]
    assert len(opening) == 1, (state, "no key, or two")
    with_key(opening[0])
    with sqlimage.open(str(image)) as opened:
        assert sqlimage.verify(opened).is_whole, state
        states = {version.control.label: version.control.state for version in opened.versions()}
        assert whole(opened.driver("before")) == BEFORE
        is_done = {
            "edit": states.get("after") == "sealed",
            "append": states.get("after") == "sealed",
            "property": opened.version().properties().get("when") == "after",
            "key": opening == [OTHER],
        }[work]
        if states.get("after") == "sealed":
            assert whole(opened.driver("after")) == AFTER
    assert is_done or "done" not in marks, state
    return is_done


def opens(image: Path, way: sqlimage.KeyFile) -> bool:
    with_key(way)
    try:
        sqlimage.open(str(image)).close()
    except sqlimage.LockedError:
        return False
    return True


@pytest.mark.parametrize("work", WORK)
def test_after_a_power_cut_it_is_done_or_not_begun(template: Path, work: str, tmp_path: Path) -> None:
    assert {look(state, work, marks) for state, marks in cuts(history(template, tmp_path, work), 40, 1)} == {
        True,
        False,
    }


@pytest.mark.slow
@pytest.mark.parametrize("work", WORK)
def test_a_thousand_power_cuts(template: Path, work: str, tmp_path: Path) -> None:
    for state, marks in cuts(history(template, tmp_path, work), 1000, 2):
        look(state, work, marks)


def history(template: Path, place: Path, work: str) -> History:
    shutil.copy(template, place)
    trace: Trace
    with traced(place) as trace:
        WORK[work](place)
        trace.mark("done")
    return trace
