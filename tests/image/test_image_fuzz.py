"""Whole image files, spoilt at random: bytes, pages, rows, what is packed in them. Each is used in all ways, in a
process of its own: it says what is wrong, or gives what is right. A failure names its seed.

``SQLIMAGE_FUZZ_SEED`` and ``SQLIMAGE_FUZZ_ROUNDS`` choose the first seed and their number: one alone with 1.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import sqlimage
from tests.conftest import CHECKOUT
from tests.image import judge
from tests.image.mutations import extend
from tests.image.strangers import Base, bases
from tests.make.cost import PATIENCE

EVERY_DAY, LONG = 80, 20_000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the judges need."""
    made = tmp_path_factory.mktemp("fuzz")
    (made / "bases").write_bytes(pickle.dumps(bases(made)))
    return made


def failures(place: Path, first: int, count: int) -> list[str]:
    """What is told of the seeds ``first .. first + count - 1``, by a judge on each processor."""
    first = int(os.environ.get("SQLIMAGE_FUZZ_SEED", first))
    count = int(os.environ.get("SQLIMAGE_FUZZ_ROUNDS", count))
    step = os.cpu_count() or 1
    judges = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.image.judge", place / "bases", *map(str, (first + n, count - n, step))],
            stdout=subprocess.PIPE,
            cwd=CHECKOUT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            text=True,
        )
        for n in range(min(step, count))
    ]
    found = []
    for each in judges:
        told = [json.loads(line) for line in each.communicate()[0].splitlines()]
        assert each.returncode == 0 and told and told.pop() == "done", "a judge has ended early"
        found += [f"seed {seed}: {name}, {mutation}: {problem}" for seed, name, mutation, problem in told]
    return found


def test_a_spoilt_image_says_what_is_wrong_or_gives_what_is_right(place: Path) -> None:
    assert failures(place, 0, EVERY_DAY) == []


@pytest.mark.slow
@pytest.mark.timeout(3600 * PATIENCE)
def test_twenty_thousand_spoilt_images_say_what_is_wrong_or_give_what_is_right(place: Path) -> None:
    assert failures(place, 1000, LONG) == []


def _hang(*_: object) -> None:
    while True:
        pass


def _take_memory(*_: object) -> None:
    bytearray(2 * judge.MEMORY_BYTES)


def _write_outside(_base: Base, place: Path, *_: object) -> None:
    (place.parent / "escaped").touch()


def _fail(*_: object) -> None:
    raise ValueError("no error of ours")


@pytest.mark.parametrize(
    ("does", "says"),
    [(_hang, "hung"), (_take_memory, "MemoryError"), (_write_outside, "written outside"), (_fail, "no error of ours")],
)
def test_the_judge_tells_of_what_must_not_be(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: Callable[..., None], says: str
) -> None:
    monkeypatch.setattr(judge, "judge", does)
    monkeypatch.setattr(judge, "CPU_SECONDS", 1)
    assert says in judge.run_one(pickle.loads((place / "bases").read_bytes()), 0, tmp_path)


def test_the_judge_knows_right_from_wrong(place: Path, tmp_path: Path) -> None:
    base: Base = next(base for base in pickle.loads((place / "bases").read_bytes()) if base.name == "both")
    for name, content in base.files.items():
        (tmp_path / name).write_bytes(content)
    with sqlimage.open(str(tmp_path / base.opened)) as image:
        uuid = image.version("golden").control.uuid
    changed = bytearray(base.media[uuid])
    changed[70_000] ^= 1
    wrong = (
        replace(base, media={**base.media, uuid: bytes(changed)}),
        replace(base, trees={**base.trees, uuid: {**base.trees[uuid], "text": b""}}),
    )
    for number, one in enumerate(wrong):
        with pytest.raises(judge.Wrong):
            judge.judge(one, _copy(base, tmp_path / str(number)), extend, random.Random(0))
    judge.judge(base, _copy(base, tmp_path / "right"), extend, random.Random(0))


def _copy(base: Base, place: Path) -> Path:
    place.mkdir()
    for name, content in base.files.items():
        (place / name).write_bytes(content)
    return place
