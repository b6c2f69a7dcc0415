"""Commands over versions that are killed: a file is as it was or holds the whole change, every version reads on, and
whatever else was only read is untouched."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import sqlimage
from tests.image.edits import check_whole, whole
from tests.images import noise, sample_volume
from tests.make.cost import PATIENCE

PROGRAM = Path(sys.executable).with_name("sqlimage")
MOST_SECONDS = 2.0
"""What opening an image again may take."""
EDITS = 6
PIECES = 80
Shape = tuple[tuple[str, str], ...]
"""Digest and parent's digest of every version of a file, in order: what does not change from run to run."""


@dataclass(frozen=True)
class Command:
    """A command line over files of the chain, all named without their directory."""

    words: tuple[str, ...]
    target: str
    """The one file that it writes."""


COMMANDS = {
    "append": Command(("capture", "later.img", "base.sqlimage", "--append"), "base.sqlimage"),
    "child": Command(("capture", "later.img", "new.sqlimage", "--parent", "base.sqlimage"), "new.sqlimage"),
    "merge": Command(("merge", "child.sqlimage", "--into", "base.sqlimage"), "base.sqlimage"),
    "squash": Command(("squash", "base.sqlimage", "--from", "4", "--to", "8"), "base.sqlimage"),
    "prune": Command(("prune", "base.sqlimage", "side"), "base.sqlimage"),
    "rebase": Command(("rebase", "child.sqlimage@1", "--onto", "base.sqlimage@2"), "child.sqlimage"),
    "flatten": Command(("flatten", "grandchild.sqlimage", "new.sqlimage"), "new.sqlimage"),
    "compact": Command(("compact", "base.sqlimage"), "base.sqlimage"),
}


@dataclass(frozen=True)
class Chain:
    """A family of images in a directory, and what they are."""

    place: Path
    digests: dict[str, str]
    """Of the whole medium of each version, by UUID."""
    _known: dict[str, tuple[float, float, Shape]] = field(default_factory=dict)

    def undisturbed(self, name: str) -> tuple[float, float, Shape]:
        """When a command, undisturbed, begins to work, when it ends, and what it makes of its target."""
        if name not in self._known:
            work, command = Path(shutil.copytree(self.place, self.place.parent / "work")), COMMANDS[name]
            self._known[name] = (*undisturbed(work, command), shape(work / command.target))
            shutil.rmtree(work)
        return self._known[name]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The sample volume with a line of edits, a branch, a child with edits of its own and a child of that."""
    place = tmp_path_factory.mktemp("chain") / "family"
    place.mkdir()
    raw = bytearray(sample_volume(place / "later.img").read_bytes())
    base, child = place / "base.sqlimage", place / "child.sqlimage"
    sqlimage.capture(sqlimage.MemoryDevice(bytes(raw)), base, preset="fast")
    dice = random.Random(1)
    for _ in range(EDITS):
        scatter(base, dice)
    with sqlimage.changing(str(base)) as changes:
        changes.make_directory("/made/by/an edit", parents=True)
    scatter(base, dice, into=child)
    for _ in range(EDITS - 1):
        scatter(child, dice)
    scatter(child, dice, into=place / "grandchild.sqlimage")
    scatter(base, dice, version="3", label="side")
    raw[3 << 20 : 4 << 20] = noise("later", 1 << 20)
    (place / "later.img").write_bytes(raw)
    digests = {uuid: digest for file in place.glob("*.sqlimage") for uuid, digest in digests_of(file).items()}
    return Chain(place, digests)


def scatter(
    file: Path, dice: random.Random, *, version: str | None = None, into: Path | None = None, label: str | None = None
) -> None:
    """An edit that writes small pieces all over the medium."""
    with (
        sqlimage.open(str(file), writable=True) as image,
        image.edit(version, into=into, label=label) as edit,
    ):
        for _ in range(PIECES):
            at = dice.randrange(1 << 20, edit.driver.size_bytes - 8192)
            edit.driver.write(at, noise(dice.random(), 5000))


def digests_of(file: Path) -> dict[str, str]:
    """The digest of the whole medium of every version, by UUID."""
    with sqlimage.open(str(file)) as image:
        return {
            version.control.uuid: hashlib.sha256(whole(version.driver())).hexdigest() for version in image.versions()
        }


def shape(file: Path) -> Shape:
    known = digests_of(file)
    with sqlimage.open(str(file)) as image:
        parents = [(version.control.uuid, version.control.parent_uuid) for version in image.versions()]
    return tuple((known[uuid], known.get(parent or "", parent or "")) for uuid, parent in parents)


def started(place: Path, command: Command) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(PROGRAM), *command.words], cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def undisturbed(place: Path, command: Command) -> tuple[float, float]:
    """Run it to its end: after how many seconds it begins to work on its target, and after how many it ends."""
    begin, before = time.monotonic(), set(os.listdir(place))
    process, first = started(place, command), None
    while process.poll() is None:
        if first is None and set(os.listdir(place)) - before:
            first = time.monotonic() - begin
        time.sleep(0.002)
    assert process.returncode == 0, command
    end = time.monotonic() - begin
    return (first if first and command.target in before else end / 2), end


def kill(chain: Chain, work: Path, name: str, dice: random.Random) -> str:
    """Kill a command at a moment at which it probably works, and check what is left; what became of its target."""
    command = COMMANDS[name]
    place = Path(shutil.copytree(chain.place, work / "family"))
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    first, end, whole_change = chain.undisturbed(name)
    process = started(place, command)
    time.sleep(dice.uniform(first * 0.9, end))
    process.send_signal(signal.SIGKILL)
    process.wait()
    target = place / command.target
    became = check_target(chain, command, target, dice)
    for other in before.keys() - {command.target}:
        assert (place / other).read_bytes() == before[other], other
    # The lock of a writer that was killed means nothing; the next writer takes it over.
    assert {path.name for path in place.iterdir()} - before.keys() <= {command.target, f"{command.target}-edit"}
    if became == "as it was" and dice.random() < 0.3:
        undisturbed(place, command)
        assert shape(target) == whole_change
        assert {path.name for path in place.iterdir()} - before.keys() <= {command.target}
    for file in place.glob("*.sqlimage"):
        known = digests_of(file)
        assert all(chain.digests.get(uuid, digest) == digest for uuid, digest in known.items()), file.name
        check_whole(file)
    shutil.rmtree(place)
    return became


def check_target(chain: Chain, command: Command, target: Path, dice: random.Random) -> str:
    """It is as it was or has the whole change, for who reads it as it was left and for who has recovered it."""
    was_there = (chain.place / command.target).exists()
    if not target.exists():
        assert not was_there
        return "as it was"
    possible = {chain.undisturbed(name_of(command))[2]: "whole"}
    if was_there:
        possible[shape(chain.place / command.target)] = "as it was"
    if dice.random() < 0.3 and not target.with_name(f"{target.name}-journal").exists():
        assert shape(target) in possible
    begin = time.monotonic()
    sqlimage.recover(str(target))
    with sqlimage.open(str(target)) as image:
        driver = image.version().driver()
        driver.read(0, 4096)
        driver.close()
    assert time.monotonic() - begin < MOST_SECONDS * PATIENCE
    found = shape(target)
    assert found in possible
    return possible[found]


def name_of(command: Command) -> str:
    return next(name for name, known in COMMANDS.items() if known is command)


def kill_again_and_again(chain: Chain, work: Path, name: str, times: int, seed: int) -> None:
    became: Counter[str] = Counter()
    for turn in range(times):
        print(f"{name}: seed {seed}, kill {turn}; so far {dict(became)}")
        became[kill(chain, work, name, random.Random(f"{name} {seed} {turn}"))] += 1
    print(f"{name}: {dict(became)}")


EVERY_DAY = ("merge", "squash")


@pytest.mark.parametrize(
    "name", [name if name in EVERY_DAY else pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS]
)
def test_a_command_that_is_killed_leaves_every_version_readable(chain: Chain, tmp_path: Path, name: str) -> None:
    kill_again_and_again(chain, tmp_path, name, 2 + (name in ("append", "merge", "squash", "rebase")), 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", COMMANDS)
def test_two_hundred_kills(chain: Chain, tmp_path: Path, name: str) -> None:
    kill_again_and_again(chain, tmp_path, name, 25, 2)
