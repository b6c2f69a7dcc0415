"""Images in use, through the command line: servers and mounts in processes of their own, clients that talk to them, and
what must hold of the image afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sqlimage.errors import SqlimageError
from sqlimage.mount import loop, records
from sqlimage.mount.mountpoint import mounts, unmount
from tests.conftest import run
from tests.images import run_tool, tool

PROGRAM = str(Path(sys.executable).with_name("sqlimage"))
SECONDS = 30.0
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
needs_fuse = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="mounting needs root and /dev/fuse"
)


def clear(below: Path) -> None:
    """End every mount below a directory and the processes that serve them."""
    ours = [record for record in records.running() if record.directory.startswith(f"{below}/")]
    for mount in reversed(mounts()):
        if mount.directory.startswith(f"{below}/"):
            for name, _ in loop.over_files_in(mount.directory):
                subprocess.run(["losetup", "--detach", name], check=False)
            with contextlib.suppress(SqlimageError):
                unmount(mount.directory, lazy=True)
    for record in ours:
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGKILL)


def told(*arguments: object) -> Any:
    """What a command answers in JSON."""
    return json.loads(tool(*arguments, "--json"))


def refused(code: int, says: str, *arguments: object) -> str:
    """A command that must fail: with this exit code, one line on stderr, and nothing on stdout. That line."""
    done = run_tool(*arguments)
    assert (done.returncode, done.stdout) == (code, ""), done
    assert says in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def beside(image: Path) -> list[str]:
    """What lies beside an image and belongs to it."""
    return sorted(path.name for path in image.parent.iterdir() if path.name.startswith(image.name + "-"))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def states(image: Path) -> list[tuple[int, str]]:
    """Number and state of each version."""
    rows = told("sql", image, "SELECT version, state FROM control ORDER BY version")
    return [(row["version"], row["state"]) for row in rows]


def actions(image: Path) -> list[tuple[str, str | None]]:
    """What the audit trail tells of edits: action and path, in order."""
    rows = told("audit", image)
    return [(row["action"], row["path"]) for row in rows if row["action"] not in ("capture", "property")]


def restored(image: object, target: Path) -> bytes:
    tool("restore", image, target)
    return target.read_bytes()


def check_at_rest(image: Path) -> None:
    """One file, nothing beside it, and ``verify`` finds it whole."""
    assert beside(image) == []
    assert told("verify", image, "--files")["problems"] == []


class Served:
    """``sqlimage serve`` in a process of its own, on a Unix socket in its image's directory or as its options say."""

    def __init__(self, image: object, *options: object, sock: Path | None) -> None:
        where = () if sock is None else ("--socket", sock)
        self.sock = sock
        self.process = subprocess.Popen(
            [PROGRAM, "serve", *map(str, (image, *where, *options))],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.said = ""
        self.complained = ""

    def wait_until_ready(self) -> None:
        assert self.sock is not None
        end = time.monotonic() + SECONDS
        while True:
            with socket.socket(socket.AF_UNIX) as client:
                if client.connect_ex(str(self.sock)) == 0:
                    return
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)

    def uri(self, export: str = "") -> str:
        return f"nbd+unix:///{export}?socket={self.sock}"

    def io(self, *commands: str, export: str = "", code: int | None = 0, writable: bool = True) -> str:
        """qemu-io commands; ``code`` None where they may fail."""
        how = ("-f", "raw") if writable else ("-r", "-f", "raw")
        argv = ["qemu-io", *how, *(word for command in commands for word in ("-c", command)), self.uri(export)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        assert code is None or done.returncode == code, (done.stdout, done.stderr)
        return done.stdout + done.stderr

    def end(self, number: int = signal.SIGTERM, *, code: int = 0) -> str:
        """Signal it and wait: what it said on stdout. On stderr, nothing or notes, must be no traceback."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        said, complained = self.process.communicate(timeout=SECONDS)
        self.said, self.complained = said or "", complained or ""
        assert self.process.returncode == code, (self.process.returncode, self.said, self.complained)
        assert "Traceback" not in self.complained, self.complained
        return self.said


@contextlib.contextmanager
def served(image: object, *options: object, sock: Path | None = None) -> Iterator[Served]:
    """A server that listens on a Unix socket beside the image; killed where the block has not ended it."""
    file = Path(str(image).partition("@")[0])
    server = Served(image, *options, sock=sock or file.with_suffix(".sock"))
    try:
        server.wait_until_ready()
        yield server
    finally:
        with server.process:
            server.process.kill()


@contextlib.contextmanager
def full_tmpfs(place: Path, size: str) -> Iterator[Path]:
    """A small file system in memory."""
    place.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
    try:
        yield place
    finally:
        run("umount", "--lazy", place)


def mount_record(directory: Path) -> records.MountRecord:
    """Who serves the mount on a directory."""
    record = records.find(str(directory))
    assert record is not None and record.is_running
    return record


def kill_mount(directory: Path) -> None:
    """Kill the process that serves a mount, as a crash would, and wait until it is gone."""
    record = mount_record(directory)
    os.kill(record.pid, signal.SIGKILL)
    end = time.monotonic() + SECONDS
    while record.is_running:
        assert time.monotonic() < end
        time.sleep(0.01)
