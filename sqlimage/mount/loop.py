"""Loop devices over the device files of a mount."""

from __future__ import annotations

import os
import time

from sqlimage.errors import DeviceError
from sqlimage.mount.program import last_line, run_program

_WAIT_S = 10.0


def attach(path: str, *, writable: bool, bytes_per_sector: int = 512) -> str:
    """A new loop device over a file: its path. Needs root. Raises :class:`~sqlimage.errors.DeviceError`."""
    options = [] if writable else ["--read-only"]
    if bytes_per_sector != 512:
        options += ["--sector-size", str(bytes_per_sector)]
    done = run_program(["losetup", "--find", "--show", *options, "--", path], package="util-linux")
    if done.returncode != 0:
        raise DeviceError(f"no loop device over {path} can be made ({last_line(done.stderr)})")
    return done.stdout.decode().strip()


def detach(name: str, path: str) -> bool:
    """Take a loop device off its file; what was written to it has reached the file afterwards.

    True when it is free; False where something uses it still: then it goes as soon as nobody does.
    """
    if backing_file(name) == path:
        # once only: as soon as it is free another process may take it, and would lose it to a second one
        run_program(["losetup", "--detach", name], package="util-linux")
    end = time.monotonic() + _WAIT_S
    while backing_file(name) == path:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def backing_file(name: str) -> str | None:
    """The file a loop device lies over; None where it is free."""
    try:
        with open(f"/sys/block/{os.path.basename(name)}/loop/backing_file", encoding="utf-8") as file:
            return file.read().rstrip("\n").removesuffix(" (deleted)")
    except OSError:
        return None


def over_files_in(directory: str) -> list[tuple[str, str]]:
    """The loop devices over files directly in a directory: name and file."""
    found = []
    for entry in os.listdir("/sys/block"):
        path = backing_file(entry) if entry.startswith("loop") else None
        if path is not None and os.path.dirname(path) == directory:
            found.append((f"/dev/{entry}", path))
    return found
