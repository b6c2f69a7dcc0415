"""All that is done with an image of a stranger, in a process of its own for each: it may say what is wrong, or give
what is right, and nothing else. ``python -m tests.image.judge BASES FIRST COUNT STEP`` tells of each that
did not.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import io
import itertools
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import typer.main

import sqlimage
from sqlimage.units import GIB
from tests.image.mutations import DAMAGE, FORGERY, PROVEN, Case, Mutation, truncate
from tests.image.strangers import Base, tree_of
from tests.make.cost import PATIENCE
from tests.make.encrypted import with_key

CPU_SECONDS = 10
"""More than this on one image is a hang."""
MEMORY_BYTES = GIB
LARGEST_COMPARED = 64 << 20
_HARMFUL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_COMMANDS = (("info",), ("versions",), ("ls", "-ra"), ("audit",), ("verify",), ("property", "list"))
_QUERIES = (
    "SELECT * FROM owner",
    "SELECT * FROM effective_file",
    "SELECT path, length(content(volume, path)) FROM effective_file WHERE kind = 'file'",
    "SELECT * FROM effective_cluster_map",
    "SELECT name, value FROM effective_property",
)


class Wrong(AssertionError):
    """Something was given that is not right, or left where it does not belong."""


def chosen(bases: list[Base], seed: int) -> tuple[Base, Mutation, random.Random]:
    """What a seed stands for."""
    chance = random.Random(f"stranger {seed}")
    every = (*DAMAGE, *FORGERY, *FORGERY)
    return bases[seed % len(bases)], every[seed // len(bases) % len(every)], chance


def spoil(bases: list[Base], seed: int, place: Path) -> tuple[Base, Mutation, random.Random]:
    """Write the files of a case into a directory, one of them changed."""
    base, mutation, chance = chosen(bases, seed)
    name = chance.choice(base.attacked)
    work = place / "work"
    work.mkdir()
    case = Case(base, name, bytearray(base.files[name]), work, chance, tuple(bases))
    mutation(case)
    shutil.rmtree(work)
    for each, content in base.files.items():
        (place / each).write_bytes(case.content if each == name else content)
    return base, mutation, chance


def judge(base: Base, place: Path, mutation: Mutation, chance: random.Random) -> None:
    """Use an image as people do, each time in some of the ways there are. Raises what is not a
    :class:`~sqlimage.errors.SqlimageError`."""

    def say(*words: str) -> None:
        _say([*words, *chance.choice([(), ("--json",)])])

    image = place / base.opened
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    for words in chance.sample(_COMMANDS, 4):
        say(*words, str(image))
    for query in chance.sample(_QUERIES, 2):
        say("sql", str(image), query)
    restored: set[str] = set()
    with contextlib.suppress(sqlimage.SqlimageError), sqlimage.open(str(image)) as opened:
        is_proven = _is_whole(opened, mutation)
        versions = opened.versions()
        for version in versions[:4]:
            _restore(base, version, place, is_proven)
            _extract(base, version, place, is_proven)
            restored |= {f"medium{version.number}", f"tree{version.number}"}
        for one, other in itertools.pairwise(versions[:4]):
            names = [f"{image}@{number}" for number in (one.number, other.number)]
            say("diff", *names, *chance.choice([(), ("--clusters",)]))
    left = {path.name for path in place.iterdir()} - restored
    if left != set(before):
        raise Wrong(f"files beside the image: {sorted(left ^ set(before))}")
    if any((place / name).read_bytes() != content for name, content in before.items()):
        raise Wrong("reading changed the image")


def _is_whole(image: sqlimage.Image, mutation: Mutation) -> bool:
    """Whether what is read must be right: everything that is proven was looked at, and held."""
    report = sqlimage.verify(image, threads=2)
    if not report.is_whole:
        return False
    problems = [found for version in image.versions()[:4] for found in sqlimage.verify_files(version)]
    return not problems and mutation in PROVEN


def _restore(base: Base, version: sqlimage.Version, place: Path, is_proven: bool) -> None:
    target = place / f"medium{version.number}"
    with contextlib.suppress(sqlimage.SqlimageError):
        sqlimage.restore(version, target, threads=2)
        expected = base.media.get(version.control.uuid)
        if is_proven and expected is not None and _content(target) != expected:
            raise Wrong(f"version {version.number} was restored as something else")


def _extract(base: Base, version: sqlimage.Version, place: Path, is_proven: bool) -> None:
    target = place / f"tree{version.number}"
    with contextlib.suppress(sqlimage.SqlimageError):
        report = sqlimage.extract(version, "/", target)
        expected = base.trees.get(version.control.uuid)
        if is_proven and expected is not None and not report.damaged and tree_of(target) != expected:
            raise Wrong(f"the files of version {version.number} came out as something else")


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.stat().st_size <= LARGEST_COMPARED else b""


def _say(words: list[str]) -> None:
    """A command: what it prints harms no terminal, and what is called JSON is."""
    said, complained = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(complained),
        contextlib.suppress(sqlimage.SqlimageError),
    ):
        _command()(words, standalone_mode=False)
    harmful = _HARMFUL.search(said.getvalue()) or _HARMFUL.search(complained.getvalue())
    if harmful:
        raise Wrong(f"{words}: printed {harmful[0]!r}")
    if words[-1] == "--json" and said.getvalue():
        json.loads(said.getvalue())


@functools.cache
def _command() -> Callable[..., object]:
    """The command line, put together once."""
    from sqlimage.cli.main import app  # type: ignore[import-not-found]

    return typer.main.get_command(app).main


def run_one(bases: list[Base], seed: int, room: Path) -> str:
    """One case in a process of its own; what is wrong, or nothing."""
    around = room / f"case{seed}"
    place = around / "in" / "here"
    place.mkdir(parents=True)
    with tempfile.TemporaryFile() as told:
        pid = os.fork()
        if pid == 0:
            _become_judge(bases, seed, place, told.fileno())
        status = os.waitpid(pid, 0)[1]
        told.seek(0)
        problem = told.read().decode("utf-8", "replace")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        why = "hung" if number in (signal.SIGXCPU, signal.SIGALRM) else f"ended by {signal.Signals(number).name}"
        problem = f"{why}\n{problem}"
    if sorted(os.listdir(around)) != ["in"] or sorted(os.listdir(around / "in")) != ["here"]:
        problem += f"written outside: {sorted(os.listdir(around))} {sorted(os.listdir(around / 'in'))}"
    try:
        shutil.rmtree(around)
    except (OSError, RecursionError):  # a tree as deep as a stranger wants
        subprocess.run(["rm", "-rf", "--", around], check=False)
    return problem


def _become_judge(bases: list[Base], seed: int, place: Path, told: int) -> NoReturn:
    code = 1
    try:
        base, mutation, chance = spoil(bases, seed, place)
        _bound(told)
        os.cpu_count = lambda: 2  # each thread has an arena and a stack of addresses, which are counted
        judge(base, place, mutation, chance)
        code = 0
    except BaseException:
        os.write(told, traceback.format_exc().encode("utf-8", "backslashreplace"))
    os._exit(code)


def _bound(told: int) -> None:
    """From here on, no more than an image of a stranger may cost; what hangs tells where."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, used + CPU_SECONDS + 1))
    for number in (signal.SIGXCPU, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
        faulthandler.register(number, file=told, chain=True)
    signal.alarm(CPU_SECONDS * PATIENCE)


def main(bases_file: str, first: str, count: str, step: str) -> None:
    """Tell of every seed of ``first``, ``first + step``, ... that is not as it must be, a line of JSON each."""
    bases: list[Base] = pickle.loads(Path(bases_file).read_bytes())
    with_key()
    with tempfile.TemporaryDirectory(dir=Path(bases_file).parent) as room:
        for base in bases:
            _warm_up(base, room)
        gc.freeze()
        for seed in range(int(first), int(first) + int(count), int(step)):
            problem = run_one(bases, seed, Path(room))
            if problem:
                base, mutation, _ = chosen(bases, seed)
                print(json.dumps([seed, base.name, mutation.__name__, problem]), flush=True)
        print(json.dumps("done"))


def _warm_up(base: Base, room: str) -> None:
    """Judge what is right, so that whatever is imported and remembered on first use is there for all cases."""
    place = Path(room) / f"right {base.name}"
    place.mkdir()
    for name, content in base.files.items():
        (place / name).write_bytes(content)
    judge(base, place, truncate, random.Random(0))


if __name__ == "__main__":
    ask: Callable[..., None] = main
    ask(*sys.argv[1:])
