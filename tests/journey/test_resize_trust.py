"""What a restore to another size proves before the file gets its name: whatever is written wrong, it is not there."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sqlimage
from sqlimage.device import Buffer, WritableDevice
from sqlimage.fixup import Fixup
from sqlimage.journey import e2fsprogs
from sqlimage.journey import restore as journey
from sqlimage.journey.relaid import apply_fixups
from sqlimage.journey.resizable import Size, Target
from sqlimage.journey.resized import Plan, planned
from sqlimage.journey.unpack import Part
from sqlimage.media.file import WritableFileDevice
from sqlimage.nameless import NamelessFile
from sqlimage.units import MIB
from tests.images import tool
from tests.journey.test_interruption import kill_at_random_moments
from tests.make import resized, resized_disk
from tests.make.ext import needs_mount
from tests.make.ext_oracle import checked
from tests.make.resized import captured, contents, explained, noise, restored

slow = pytest.mark.slow
Tamper = Callable[[int, int, memoryview], Buffer | None]
"""What becomes of a write, by its number and place; None: nothing is written."""
VOLUMES = [
    "ntfs",
    pytest.param("fat12", marks=slow),
    pytest.param("fat32", marks=slow),
    pytest.param("ext4", marks=[slow, needs_mount]),
]
DISK = "label: gpt\nsize=4MiB\nsize=12MiB\nsize=1MiB\n"
SIZES = {"ntfs": 10 * MIB, "fat12": 4 * MIB, "fat32": 36 * MIB, "ext4": 14 * MIB, "disk": 16 * MIB}


@dataclass
class Medium:
    """A device of whose writes some go wrong."""

    monkeypatch: pytest.MonkeyPatch
    writes: int = 0

    def run(self, image: Path, target: Path, size: Size, tamper: Tamper | None) -> bytes | None:
        """What a restore gives through it; None where it is refused as damaged, and nothing is there then."""
        medium, lock = self, threading.Lock()
        self.writes = 0

        class Tampered(WritableFileDevice):
            def write(self, offset_bytes: int, data: bytes | Buffer) -> None:
                with lock:
                    number, medium.writes = medium.writes, medium.writes + 1
                changed = data if tamper is None else tamper(number, offset_bytes, memoryview(data).cast("B"))
                if changed is not None:
                    super().write(offset_bytes, changed)

        with self.monkeypatch.context() as patch:
            patch.setattr(journey, "WritableFileDevice", Tampered)
            try:
                restored(image, target, size=size, threads=1)
            except sqlimage.DamagedError:
                assert os.listdir(target.parent) == []
                return None
        content = target.read_bytes()
        target.unlink()
        return content


@pytest.fixture
def medium(monkeypatch: pytest.MonkeyPatch) -> Medium:
    return Medium(monkeypatch)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trust")


def image_of(kind: str, place: Path) -> Path:
    image = place / f"{kind}.sqlimage"
    if not image.exists():
        if kind == "disk":
            resized_disk.make(place / kind, DISK, ("fat12", "ntfs", "raw"), 20 * MIB)
        else:
            resized.make(kind, place / kind)
        captured(place / kind, image)
    return image


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "to").mkdir()
    return tmp_path / "to" / "file"


@pytest.mark.parametrize("kind", VOLUMES)
def test_a_bit_of_a_file_that_is_written_wrong_is_found(kind: str, place: Path, target: Path, medium: Medium) -> None:
    image, wanted = image_of(kind, place), noise((1, "large"), 100)

    def flip(_number: int, _offset: int, data: memoryview) -> Buffer:
        at = bytes(data).find(wanted)
        changed = bytearray(data)
        if at >= 0:
            changed[at + 77] ^= 1
        return changed

    assert medium.run(image, target, SIZES[kind], None) is not None
    assert medium.run(image, target, SIZES[kind], flip) is None


def some(count: int, everyday: int, seed: int) -> list[int]:
    """A few of so many numbers."""
    return sorted(random.Random(seed).sample(range(count), min(everyday, count)))


def without_write(n: int) -> Tamper:
    return lambda number, _, data: None if number == n else data


def check_dropped(kind: str, place: Path, target: Path, medium: Medium, number_of_tries: int) -> None:
    image = image_of(kind, place)
    for size in ("minimum", SIZES[kind]):
        whole = medium.run(image, target, size, None)
        found = 0
        for n in some(medium.writes, number_of_tries, seed=1):
            got = medium.run(image, target, size, without_write(n))
            found += got is None
            assert got is None or is_as_good(kind, got, whole, place), (size, n)
        assert found


def is_as_good(kind: str, got: bytes, whole: bytes | None, place: Path) -> bool:
    """The same; or for ext, of which resize2fs writes the time down, and whose journal may keep what it has done: in
    order, with the same files."""
    if got == whole or kind != "ext4":
        return got == whole
    (place / "got").write_bytes(got)
    return checked(place / "got") == 0 and contents(place / "got") == contents(place / kind)


@pytest.mark.parametrize("kind", ["fat12", *(pytest.param(kind, marks=slow) for kind in ("ntfs", "ext4"))])
def test_a_write_that_never_happened_is_found(kind: str, place: Path, target: Path, medium: Medium) -> None:
    check_dropped(kind, place, target, medium, 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ntfs", "fat12", "fat32", "ext4"])
def test_every_write_that_never_happened_is_found(kind: str, place: Path, target: Path, medium: Medium) -> None:
    check_dropped(kind, place, target, medium, 200)


def check_dropped_fixups(
    kind: str, place: Path, target: Path, monkeypatch: pytest.MonkeyPatch, tries: int, **options: Any
) -> None:
    image = image_of(kind, place)
    count = len(explained(image, target, **options).fixups)
    for n in some(count, tries, seed=2):

        def without(device: WritableDevice, fixups: Sequence[Fixup], n: int = n) -> None:
            apply_fixups(device, [*fixups[:n], *fixups[n + 1 :]])

        with monkeypatch.context() as patch:
            patch.setattr(journey, "apply_fixups", without)
            with pytest.raises(sqlimage.DamagedError):
                restored(image, target, **options)
        assert os.listdir(target.parent) == []


@pytest.mark.parametrize("kind", ["ntfs", "fat12", "disk"])
def test_a_fixup_that_never_happened_is_found(
    kind: str, place: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_dropped_fixups(kind, place, target, monkeypatch, 5, size="minimum")
    if kind != "disk":
        check_dropped_fixups(kind, place, target, monkeypatch, 5, hidden_sectors=99)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["minimum", "other"])
@pytest.mark.parametrize("kind", ["ntfs", "fat12", "fat32", "disk"])
def test_every_fixup_that_never_happened_is_found(
    kind: str, size: str, place: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_dropped_fixups(
        kind, place, target, monkeypatch, 150, size="minimum" if size == "minimum" else SIZES[kind] * 2
    )


@pytest.mark.parametrize("kind", ["ntfs", pytest.param("ext4", marks=[slow, needs_mount])])
def test_a_restore_killed_at_any_write_or_before_the_file_has_its_name_leaves_nothing(
    kind: str, place: Path, target: Path, medium: Medium, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_of(kind, place)
    assert medium.run(image, target, "minimum", None) is not None

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def die_at(n: int) -> Tamper:
        return lambda number, _, data: die() if number == n else data

    for n in some(medium.writes, 8, seed=3):
        assert killed(medium.run, image, target, "minimum", die_at(n))
    for name, function in (("publish", NamelessFile), ("prove", Plan)):
        with monkeypatch.context() as patch:
            patch.setattr(function, name, die)
            assert killed(medium.run, image, target, "minimum", None)
    assert os.listdir(target.parent) == []


def killed(work: Callable[..., object], *arguments: object) -> bool:
    """Whether a process that does some work is killed over it."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ntfs", "ext4"])
def test_a_restore_killed_at_random_moments_leaves_no_file_or_a_whole_one(kind: str, place: Path, target: Path) -> None:
    arguments = "restore", image_of(kind, place), target, "--size", "minimum"
    there = kill_at_random_moments(target, 12, 3, *arguments)
    assert not all(there)
    tool(*arguments)
    resized.check(kind, target, contents(place / kind))


@pytest.mark.parametrize("kind", ["ntfs", "disk", *(pytest.param(kind, marks=slow) for kind in ("fat12", "fat32"))])
@pytest.mark.parametrize("size", ["minimum", pytest.param("other", marks=slow)])
def test_what_explain_tells_done_by_hand_gives_the_same(kind: str, size: str, place: Path, target: Path) -> None:
    image = image_of(kind, place)
    wanted: Size = "minimum" if size == "minimum" else SIZES[kind] * 2
    told = explained(image, target, size=wanted)
    assert os.listdir(target.parent) == []
    with sqlimage.open(str(image)) as opened, closing(opened.driver()) as source:
        version = opened.version()
        content = bytearray(told.size_bytes)
        with planned(version, None, Part.of(version, None), Target(size=wanted)) as plan:
            moves = plan.layout.moves
            assert sum(volume.moved_bytes for volume in told.volumes) <= moves.length.sum()
        for old, new, length in zip(moves.old.tolist(), moves.new.tolist(), moves.length.tolist(), strict=True):
            content[new : new + length] = source.read(old, length)
    for fixup in told.fixups:
        here = slice(fixup.offset_bytes, fixup.offset_bytes + len(fixup.original))
        assert content[here] == fixup.original, fixup.reason
        content[here] = fixup.replacement
    restored(image, target, size=wanted)
    assert content == target.read_bytes()


def test_explain_tells_of_ext_volumes_what_is_moved(place: Path, target: Path) -> None:
    told = explained(image_of("ext4", place), target, size="minimum")
    (volume,) = told.volumes
    assert (volume.file_system, volume.length_before, volume.length_bytes) == ("ext4", 16 * MIB, told.size_bytes)
    assert volume.moved_bytes > 0 and told.fixups == ()
    assert os.listdir(target.parent) == []


@needs_mount
@pytest.mark.parametrize("program", ["resize2fs", pytest.param("e2fsck", marks=slow)])
def test_without_e2fsprogs_the_package_is_named_and_what_needs_it_not_is_done(
    program: str, place: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = place / "both.sqlimage"
    if not both.exists():
        script = "label: gpt\nsize=12MiB\nsize=8MiB\n"
        captured(resized_disk.make(place / "both", script, ("ntfs", "ext4"), 24 * MIB).path, both)

    def which(name: str, path: str | None = None) -> str | None:
        return None if name == program else shutil.which(name, path=path)

    monkeypatch.setattr(e2fsprogs, "shutil", SimpleNamespace(which=which))
    for image in (image_of("ext4", place), both):
        with pytest.raises(sqlimage.NotFoundError, match=f"{program} is missing.*install the package e2fsprogs"):
            restored(image, target, size="minimum")
        assert os.listdir(target.parent) == []
    with pytest.raises(sqlimage.NotFoundError):
        restored(image_of("ext4", place), target, size=30 * MIB)
    report = restored(both, target, size=40 * MIB)  # the NTFS volume grows, the other one is moved
    assert [length for _, length in resized_disk.places(target)] == [28 * MIB, 8 * MIB]
    assert report.files_compared > 20
