"""Mount points: what is on them, and what a killed process leaves there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sqlimage.errors import NotFoundError, RefusedError, SqlimageError, UsageError
from sqlimage.mount.mountpoint import (
    check_mount_point,
    clear_stale,
    is_stale,
    mounted_at,
    unmount,
    wait_until_mounted,
)
from tests.conftest import CHECKOUT, run
from tests.make.cost import PATIENCE
from tests.mount.conftest import Place

_SERVE_AND_DIE = """
import os, sys
from sqlimage.media.memory import MemoryDevice
from sqlimage.mount.devices import serve_devices
serve_devices({"medium": MemoryDevice(bytes(512))}, sys.argv[1])
os.kill(os.getpid(), 9)
"""


def leave_stale(directory: Path) -> None:
    """A mount whose process was killed."""
    subprocess.run([sys.executable, "-c", _SERVE_AND_DIE, directory], cwd=CHECKOUT, check=False)
    end = time.monotonic() + 60
    while not is_stale(str(directory)) and time.monotonic() < end:
        time.sleep(0.01)
    assert is_stale(str(directory))


def test_the_topmost_mount_of_a_directory_is_found_whatever_its_name(place: Place) -> None:
    directory = place("a b\tc\\d'é")
    assert mounted_at(str(directory)) is None
    run("mount", "-t", "tmpfs", "one", directory)
    run("mount", "-t", "tmpfs", "-o", "ro", "two", directory)
    found = mounted_at(str(directory))
    assert found is not None
    assert (found.source, found.file_system, found.writable) == ("two", "tmpfs", False)
    unmount(str(directory))
    found = mounted_at(str(directory))
    assert found is not None
    assert (found.source, found.writable) == ("one", True)
    unmount(str(directory))
    assert mounted_at(str(directory)) is None
    unmount(str(directory))


def test_a_mount_in_use_stays_and_says_so(place: Place) -> None:
    directory = place("mount")
    run("mount", "-t", "tmpfs", "tmpfs", directory)
    with (directory / "file").open("w"):
        with pytest.raises(RefusedError, match="is in use"):
            unmount(str(directory), timeout_s=0.1)
        assert mounted_at(str(directory)) is not None
        unmount(str(directory), lazy=True)
    assert mounted_at(str(directory)) is None


def test_a_directory_to_mount_on_is_there_empty_and_free(place: Place, tmp_path: Path) -> None:
    directory = place("mount")
    (tmp_path / "link").symlink_to(directory)
    assert check_mount_point(tmp_path / "link") == str(directory)
    (tmp_path / "file").write_text("")
    (place("full") / "file").write_text("")
    run("mount", "-t", "tmpfs", "tmpfs", place("taken"))
    for name, error in (
        ("missing", NotFoundError),
        ("file", UsageError),
        ("full", RefusedError),
        ("taken", RefusedError),
    ):
        with pytest.raises(SqlimageError) as caught:
            check_mount_point(tmp_path / name)
        assert type(caught.value) is error
        assert caught.value.hint


def test_a_dead_mount_is_found_and_cleared(place: Place) -> None:
    directory = place("mount")
    assert not clear_stale(str(directory))
    leave_stale(directory)
    assert check_mount_point(directory) == str(directory)
    assert os.listdir(directory) == []
    leave_stale(directory)
    assert clear_stale(str(directory))
    assert mounted_at(str(directory)) is None


def test_waiting_for_a_mount_that_does_not_come_ends(place: Place) -> None:
    before = time.monotonic()
    assert wait_until_mounted(str(place("mount")), 0.2) is None
    assert 0.2 <= time.monotonic() - before < 5 * PATIENCE
