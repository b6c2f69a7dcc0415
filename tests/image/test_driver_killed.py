"""A writer that is killed: what it was told is flushed is there, and an edit is sealed or it is not."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sqlimage
from sqlimage.image.edits import resume
from tests.conftest import CHECKOUT
from tests.image.edits import captured, check_whole, medium
from tests.images import noise
from tests.make.cost import PATIENCE

UNIT = 4096
CLUSTERS = 60

_WRITER = """
import sys
from sqlimage.image.edits import begin, resume
from tests.image.test_driver_killed import CLUSTERS, UNIT, pattern
edit = begin(sys.argv[1], write_back_bytes=16 * UNIT)
print("begun", flush=True)
for turn in range(1, 100_000):
    for cluster in range(turn % 7, CLUSTERS, 7):
        edit.driver.write(cluster * UNIT, pattern(cluster, turn))
    edit.driver.zero((turn % CLUSTERS) * UNIT, UNIT)
    edit.driver.flush()
    print(turn, flush=True)
    if turn % 40 == 0 and sys.argv[2] == "commit":
        edit.commit()
        print("sealed", flush=True)
        edit = begin(sys.argv[1], write_back_bytes=16 * UNIT)
"""


def pattern(cluster: int, turn: int) -> bytes:
    return noise((cluster, turn), 64) * (UNIT // 64)


def after(turns: int) -> list[bytes]:
    """Every cluster of the patterns after so many whole turns."""
    content = medium(UNIT)
    clusters = [content[n * UNIT : (n + 1) * UNIT] for n in range(CLUSTERS)]
    for turn in range(1, turns + 1):
        for cluster in range(turn % 7, CLUSTERS, 7):
            clusters[cluster] = pattern(cluster, turn)
        clusters[turn % CLUSTERS] = bytes(UNIT)
    return clusters


def killed(image: Path, seconds: float, what: str) -> tuple[int, int]:
    """Let the writer work and kill it: flushes that were acknowledged, and commits."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(image), what], stdout=subprocess.PIPE, text=True, cwd=CHECKOUT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    said = process.stdout.read().split()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    turns = [int(word) for word in said if word.isdecimal()]
    return max(turns, default=0), said.count("sealed")


def check_what_is_left(image: Path, acknowledged: int, *, is_sealed_possible: bool) -> None:
    begin = time.monotonic()
    try:
        edit = resume(str(image))
    except sqlimage.NotFoundError:
        assert is_sealed_possible
        edit = None
    assert time.monotonic() - begin < 2 * PATIENCE
    with sqlimage.open(str(image)) as opened:
        newest = opened.versions()[-1]
        driver = edit.driver if edit else newest.driver()
        found = driver.read(0, CLUSTERS * UNIT)
        if not edit:
            driver.close()
    least, next_ = after(acknowledged), after(acknowledged + 1)
    for n in range(CLUSTERS):
        seen = found[n * UNIT : (n + 1) * UNIT]
        # Of the turn under way, each cluster is there or not; it may have been written and then zeroed.
        assert seen in (least[n], next_[n], pattern(n, acknowledged + 1)), (n, acknowledged)
    if edit:
        edit.commit()
    check_whole(image)
    assert sorted(path.name for path in image.parent.iterdir()) == [image.name]


def kill_again_and_again(place: Path, template: Path, times: int, seed: int, what: str) -> tuple[int, int]:
    dice, flushes, commits = random.Random(seed), 0, 0
    for _ in range(times):
        (place / "work").mkdir()
        image = Path(shutil.copy(template, place / "work" / "i.sqlimage"))
        acknowledged, sealed = killed(image, dice.uniform(0, 0.25), what)
        flushes, commits = flushes + acknowledged, commits + sealed
        print(f"seed {seed}: {acknowledged} flushes, {sealed} commits")
        sqlimage.recover(str(image))
        with sqlimage.open(str(image)) as opened:
            states = [version.control.state for version in opened.versions()]
            rows = [row.action for row in opened.audit()]
        assert states[:-1] == ["sealed"] * (len(states) - 1)
        # A version is sealed in the one transaction that tells of it.
        assert rows.count("edit-commit") == states.count("sealed") - 1 >= sealed
        check_what_is_left(image, acknowledged, is_sealed_possible=what == "commit")
        shutil.rmtree(place / "work")
    return flushes, commits


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captured(tmp_path_factory.mktemp("killed") / "template", medium(UNIT), UNIT)


def test_what_a_killed_writer_was_told_is_flushed_is_there(template: Path, tmp_path: Path) -> None:
    flushes, _ = kill_again_and_again(tmp_path, template, 8, 1, "flush")
    assert flushes > 0


def test_a_writer_killed_around_its_commits_leaves_each_version_sealed_or_open(template: Path, tmp_path: Path) -> None:
    flushes, _ = kill_again_and_again(tmp_path, template, 7, 2, "commit")
    assert flushes > 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ["flush", "commit"])
def test_a_hundred_kills(template: Path, tmp_path: Path, what: str) -> None:
    _, commits = kill_again_and_again(tmp_path, template, 100, 3, what)
    assert (commits > 0) == (what == "commit")
