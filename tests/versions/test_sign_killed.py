"""A command that signs many versions and is killed has signed all of them or none."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import sqlimage
from tests.image.edits import check_whole
from tests.images import noise
from tests.make.signing import KEY

PROGRAM = Path(sys.executable).with_name("sqlimage")
VERSIONS = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("killed") / "family"
    place.mkdir()
    for number in range(VERSIONS):
        medium = sqlimage.MemoryDevice(noise(number, 200_000) + noise("same", 1 << 20))
        sqlimage.capture(medium, place / "i.sqlimage", append=number > 0, preset="fast")
    sqlimage.SigningKey.make(place / "key")
    return place


def kill_again_and_again(place: Path, work: Path, times: int, dice: random.Random) -> Counter[int]:
    """How many versions are signed after each kill, and how often."""
    seconds, became = undisturbed(place, work), Counter[int]()
    for turn in range(times):
        family = Path(shutil.copytree(place, work / str(turn)))
        process = started(family)
        time.sleep(dice.uniform(seconds * 0.3, seconds))
        process.kill()
        process.wait()
        image = family / "i.sqlimage"
        sqlimage.recover(str(image))
        with sqlimage.open(str(image)) as opened:
            told = [row.action for row in opened.audit()].count("sign")
            key = sqlimage.read_public_key(str(family / "key.pub"))
            assert len(sqlimage.verify_signatures(opened, [key]).signatures) == told
        assert told in (0, VERSIONS)
        check_whole(image)
        assert len(sqlimage.sign(image, KEY, every=True).versions) == VERSIONS  # nothing is in the way of the next
        became[told] += 1
        shutil.rmtree(family)
    return became


def started(family: Path) -> subprocess.Popen[bytes]:
    words = [str(PROGRAM), "sign", "i.sqlimage", "--all", "--key", "key"]
    return subprocess.Popen(words, cwd=family, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def undisturbed(place: Path, work: Path) -> float:
    family = Path(shutil.copytree(place, work / "undisturbed"))
    begin = time.monotonic()
    assert started(family).wait() == 0
    return time.monotonic() - begin


def test_a_command_that_is_killed_has_signed_all_or_none(place: Path, tmp_path: Path) -> None:
    kill_again_and_again(place, tmp_path, 3, random.Random(1))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_kills(place: Path, tmp_path: Path) -> None:
    became = kill_again_and_again(place, tmp_path, 100, random.Random(2))
    assert set(became) == {0, VERSIONS}
