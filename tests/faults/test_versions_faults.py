"""Append, merge, squash, rebase, prune, compact and sign under power cuts and on a failing disk: every version that was
there reads its bytes, what was acknowledged stays, and nothing is half done."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import sqlimage
from tests.faults.calls import Kind
from tests.faults.events import History
from tests.faults.failing import every_fault
from tests.faults.powercut import cuts
from tests.faults.trace import Trace, traced
from tests.image.edits import whole
from tests.images import noise
from tests.make.signing import KEY

UNIT = 4096
CLUSTERS = 40
NAME, CHILD = "i.sqlimage", "child.sqlimage"
FIRST = noise("first", CLUSTERS * UNIT)


def changed(content: bytes, turn: int) -> bytes:
    """A medium that differs in every third cluster, and in one that is moved."""
    new = bytearray(content)
    for n in range(turn % 3, CLUSTERS - 1, 3):
        new[n * UNIT : (n + 1) * UNIT] = noise((turn, n), UNIT)
    new[-UNIT:] = content[turn * UNIT : (turn + 1) * UNIT]
    return bytes(new)


CONTENTS = [FIRST]
for _turn in range(1, 6):
    CONTENTS.append(changed(CONTENTS[-1], _turn))


def append(place: Path) -> None:
    sqlimage.capture(sqlimage.MemoryDevice(CONTENTS[4]), place / NAME, append=True, label="v4")


def merge(place: Path) -> None:
    sqlimage.merge(place / CHILD, place / NAME)


def squash(place: Path) -> None:
    sqlimage.squash(place / NAME, "1", "2")


def rebase(place: Path) -> None:
    sqlimage.rebase(place / NAME, place / NAME, version="3", onto_version="1")


def prune(place: Path) -> None:
    sqlimage.prune(place / NAME, ["3"])


def compact(place: Path) -> None:
    sqlimage.compact(place / NAME)


def sign(place: Path) -> None:
    sqlimage.sign(place / NAME, KEY, every=True)


WORK: dict[str, Callable[[Path], None]] = {
    "append": append,
    "merge": merge,
    "squash": squash,
    "rebase": rebase,
    "prune": prune,
    "compact": compact,
    "sign": sign,
}
GONE = {"squash": "v0", "prune": "v3"}
"""The label of the version that the work removes."""
NEW = {"append": "v4", "merge": "child"}
"""The label of the one that it brings."""
LABELS = {"v0": CONTENTS[0], "v1": CONTENTS[1], "v3": CONTENTS[3], "v4": CONTENTS[4], "child": CONTENTS[5]}


def prepare(place: Path, work: str) -> None:
    """Versions 0, 1 and 3 in one file, each on top of the one before, the last one written in small pieces."""
    image = place / NAME
    sqlimage.capture(sqlimage.MemoryDevice(CONTENTS[0]), image, label="v0")
    sqlimage.capture(sqlimage.MemoryDevice(CONTENTS[1]), image, append=True, label="v1")
    with sqlimage.open(str(image), writable=True) as opened, opened.edit(label="v3") as edit:
        for n in range(CLUSTERS):
            edit.driver.write(n * UNIT, CONTENTS[3][n * UNIT : (n + 1) * UNIT])
            if n % 4 == 3:
                edit.driver.flush()
    if work == "merge":
        child = sqlimage.MemoryDevice(CONTENTS[5])
        sqlimage.capture(child, place / CHILD, parent=image, parent_version="1", label="child")


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for work in WORK:
        found[work] = tmp_path_factory.mktemp(work)
        prepare(found[work], work)
    return found


def look(state: Path, work: str, marks: tuple[object, ...]) -> bool:
    """Everything that must hold, after recovery; whether the work is done."""
    sqlimage.recover(str(state / NAME))
    with sqlimage.open(str(state / NAME)) as opened:
        report = sqlimage.verify(opened)
        assert report.is_whole, (state, report.problems)
        labels = {version.control.label for version in opened.versions()}
        if work == "sign":
            return are_signed(opened, marks)
        is_done = GONE[work] not in labels if work in GONE else NEW[work] in labels if work in NEW else "done" in marks
        assert is_done or "done" not in marks, state
        expected = {"v0", "v1", "v3"} - ({GONE[work]} if work in GONE and is_done else set())
        assert labels == expected | ({NEW[work]} if work in NEW and is_done else set()), state
        for label in labels:
            assert label is not None
            assert whole(opened.driver(label)) == LABELS[label], (state, label)
        told = [row.action for row in opened.audit()].count("capture" if work == "append" else work)
        if work in GONE or work in NEW:
            assert told == is_done + (2 if work == "append" else 0), state
    return is_done


def are_signed(opened: sqlimage.Image, marks: tuple[object, ...]) -> bool:
    """All versions are signed and the trail says so, or none is."""
    told = [row.action for row in opened.audit()].count("sign")
    trust = sqlimage.verify_signatures(opened, [KEY.public])
    assert told == len(trust.signatures) and len(trust.signatures) + len(trust.problems) == 3
    assert told in ((3,) if "done" in marks else (0, 3))
    return told == 3


@pytest.mark.parametrize("work", WORK)
def test_after_a_power_cut_it_is_done_or_not_begun(templates: dict[str, Path], work: str, tmp_path: Path) -> None:
    _cut_again_and_again(_history(templates[work], tmp_path, work), work, 50, 1)


@pytest.mark.slow
@pytest.mark.parametrize("work", WORK)
def test_a_thousand_power_cuts(templates: dict[str, Path], work: str, tmp_path: Path) -> None:
    _cut_again_and_again(_history(templates[work], tmp_path, work), work, 1000, 2)


def _history(template: Path, place: Path, work: str) -> History:
    for path in template.iterdir():
        shutil.copy(path, place)
    trace: Trace
    with traced(place) as trace:
        WORK[work](place)
        trace.mark("done")
    return trace


def _cut_again_and_again(trace: History, work: str, count: int, seed: int) -> None:
    seen = {look(state, work, marks) for state, marks in cuts(trace, count, seed)}
    assert seen == {True, False}


_MANY_WRITES = ("merge", "compact", "append")


@pytest.mark.parametrize(
    ("work", "kind", "error"),
    [
        *((work, Kind.SYNC, errno.EIO) for work in WORK),
        *((work, Kind.WRITE, errno.ENOSPC) for work in WORK if work not in _MANY_WRITES),
        *(pytest.param(work, Kind.WRITE, errno.ENOSPC, marks=pytest.mark.slow) for work in _MANY_WRITES),
        *(pytest.param(work, Kind.READ, errno.EIO, marks=pytest.mark.slow) for work in WORK),
    ],
)
def test_on_a_failing_disk_it_says_so_and_can_be_done_again(
    templates: dict[str, Path], work: str, kind: Kind, error: int, tmp_path: Path
) -> None:
    raised = 0
    place = tmp_path / "place"
    for fault in every_fault(tmp_path, kind, error, forever=True):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(templates[work], place)
        marks: tuple[object, ...] = ()
        with fault:
            try:
                WORK[work](place)
                marks = ("done",)
            except sqlimage.SqlimageError:
                raised += 1
        if not look(place, work, marks) and work not in ("rebase", "compact"):
            with contextlib.suppress(sqlimage.RefusedError):
                WORK[work](place)
            assert look(place, work, ("done",))
    assert raised
