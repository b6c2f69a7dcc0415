"""An interrupted capture or restore leaves its target absent or whole, and nothing else."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sqlimage
from sqlimage.streams.database import Database
from tests.conftest import run
from tests.images import noise, run_tool, tool

TOOL = Path(sys.executable).with_name("sqlimage")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "raw.img"
    path.write_bytes(b"".join(noise(n, 1 << 20) + bytes(1 << 20) for n in range(8)))
    return path


def started(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(TOOL), *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def seconds_it_takes(*arguments: object) -> float:
    begin = time.monotonic()
    assert started(*arguments).wait() == 0
    return time.monotonic() - begin


def kill_at_random_moments(target: Path, tries: int, seed: int, *arguments: object) -> list[bool]:
    """Run a command again and again, kill it -9 at a random moment; whether the target was there each time."""
    whole = 3600.0
    for _ in range(3):
        whole = min(whole, seconds_it_takes(*arguments))
        target.unlink()
    dice, there = random.Random(seed), []
    for _ in range(tries):
        process = started(*arguments)
        time.sleep(dice.uniform(0.2, 1.1) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert set(os.listdir(target.parent)) <= {target.name}, (seed, os.listdir(target.parent))
        there.append(target.exists())
        if target.exists():
            if target.suffix == ".sqlimage":
                with sqlimage.open(str(target)) as image:
                    assert sqlimage.verify(image).is_whole, seed
            target.unlink()
    return there


def test_a_capture_killed_at_random_moments_leaves_no_image_or_a_whole_one_and_no_litter(
    source: Path, tmp_path: Path
) -> None:
    there = kill_at_random_moments(tmp_path / "i.sqlimage", 12, 1, "capture", source, tmp_path / "i.sqlimage")
    assert not all(there), "every capture finished before it was killed"


@pytest.mark.slow
def test_a_hundred_kills_of_a_capture(source: Path, tmp_path: Path) -> None:
    there = kill_at_random_moments(tmp_path / "i.sqlimage", 100, 2, "capture", source, tmp_path / "i.sqlimage")
    assert any(there)
    assert not all(there)


def test_a_restore_killed_at_random_moments_leaves_no_file_or_a_whole_one_and_no_litter(
    source: Path, tmp_path: Path
) -> None:
    image, place = tmp_path / "i.sqlimage", tmp_path / "to"
    place.mkdir()
    tool("capture", source, image)
    there = kill_at_random_moments(place / "copy.img", 8, 3, "restore", image, place / "copy.img")
    assert not all(there)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_interruption_ends_with_130_and_leaves_no_image_or_a_whole_one(
    source: Path, tmp_path: Path, how: int
) -> None:
    target = tmp_path / "i.sqlimage"
    whole = seconds_it_takes("capture", source, target)
    target.unlink()
    process = started("capture", source, target)
    time.sleep(whole * 0.7)
    process.send_signal(how)
    # Before the program has heard of signals at all, the signal itself ends it.
    assert process.wait(timeout=20) in (0, 130, -how)
    assert set(os.listdir(tmp_path)) <= {"i.sqlimage"}
    assert target.exists() or process.returncode != 0
    if target.exists():
        tool("verify", target)


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """A file size limit stands in for the full disk where no small file system can be mounted."""
    done = subprocess.run(
        ["sh", "-c", f"trap '' XFSZ; ulimit -f 4096; exec '{TOOL}' capture '{source}' '{tmp_path}/i.sqlimage'"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 6, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("megabytes", [1, 3, 6])
def test_a_file_system_that_fills_up_loses_nothing(source: Path, tmp_path: Path, megabytes: int) -> None:
    place, image = tmp_path / "small", tmp_path / "whole.sqlimage"
    place.mkdir()
    tool("capture", source, image)
    run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place)
    try:
        for command in (
            ("capture", source, place / "i.sqlimage"),
            ("restore", image, place / "copy.img"),
        ):
            done = run_tool(*command)
            assert done.returncode == 6, done
            assert "No space left" in done.stderr or "no space left" in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1
            assert os.listdir(place) == []
    finally:
        run("umount", place)


def test_a_property_that_finds_no_room_leaves_the_image_as_it_was(tmp_path: Path) -> None:
    place, image = tmp_path / "small", tmp_path / "small" / "i.sqlimage"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place)
    try:
        (tmp_path / "raw").write_bytes(noise("x", 300_000))
        tool("capture", tmp_path / "raw", image)
        with (place / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        before = image.read_bytes()
        done = run_tool("property", "set", image, "note=" + "n" * 100_000)
        assert done.returncode == 6, done
        assert image.read_bytes() == before
        (place / "filler").unlink()
        tool("verify", image, "--recover")
        tool("property", "set", image, "note=short")
    finally:
        run("umount", place)


def test_a_transaction_of_which_a_part_was_written_when_the_disk_was_full_is_taken_back(tmp_path: Path) -> None:
    place, image = tmp_path / "small", tmp_path / "small" / "i.sqlimage"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place)
    try:
        (tmp_path / "raw").write_bytes(noise("z", 100_000))
        tool("capture", tmp_path / "raw", image)
        before = image.read_bytes()
        with (
            contextlib.closing(Database.open(str(image), writable=True)) as database,
            pytest.raises(sqlimage.DeviceError, match="no space left"),
            database.transaction(),
        ):
            for number in range(400):
                database.run("INSERT INTO property VALUES (1, ?, zeroblob(20000))", [f"p{number}"])
        assert os.listdir(place) == [image.name]
        assert image.read_bytes() == before
        tool("verify", image)
    finally:
        run("umount", place)


@pytest.mark.slow
def test_a_property_command_killed_at_random_moments_leaves_the_old_value_or_the_new(tmp_path: Path) -> None:
    image = tmp_path / "i.sqlimage"
    (tmp_path / "raw").write_bytes(noise("y", 100_000))
    tool("capture", tmp_path / "raw", image, "--property", "turn=0")
    whole = seconds_it_takes("property", "set", image, "turn=0")
    dice, seen = random.Random(4), set()
    for turn in range(1, 21):
        process = started("property", "set", image, f"turn={turn}", "note=" + "n" * 50_000)
        time.sleep(dice.uniform(0.5, 1.1) * whole)
        process.kill()
        process.wait()
        tool("verify", image, "--recover")
        with sqlimage.open(str(image)) as opened:
            value = opened.version().properties()["turn"]
            seen.add(value == turn)
            audited = [row for row in opened.audit() if row.action == "property" and f'"after":{turn},' in row.detail]
            assert len(audited) == (value == turn), "the change and its audit row are written together"
        assert set(os.listdir(tmp_path)) == {"raw", "i.sqlimage"}
    assert seen
