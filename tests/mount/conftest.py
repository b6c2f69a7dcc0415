"""What the tests of the mount room share: places to mount on, which are clear afterwards whatever a test did."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sqlimage.errors import SqlimageError
from sqlimage.mount import loop, records
from sqlimage.mount.mountpoint import mounts, unmount

Place = Callable[[str], Path]


def _clear(below: Path) -> None:
    """Unmount all that is mounted below a directory, and free the loop devices over files there."""
    for mount in reversed(mounts()):
        if mount.directory.startswith(f"{below}/"):
            for name, _ in loop.over_files_in(mount.directory):
                subprocess.run(["losetup", "--detach", name], check=False)
            with contextlib.suppress(SqlimageError):
                unmount(mount.directory, lazy=True)


@pytest.fixture(autouse=True)
def _clear_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and /dev/fuse")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    try:
        yield
    finally:
        ours = [record for record in records.running() if record.directory.startswith(str(tmp_path))]
        _clear(tmp_path)
        for record in ours:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGKILL)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Makes empty directories to mount on."""

    def make(name: str) -> Path:
        path = tmp_path / name
        path.mkdir()
        return path

    return make
