"""Mount points: what is mounted where, waiting for it, taking it away, and clearing what a killed process left."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass

from sqlimage.errors import DeviceError, NotFoundError, RefusedError, UsageError

MOUNTINFO = "/proc/self/mountinfo"
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
"""linux/fs.h, for umount2(2)."""
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
"""What stat(2) answers on a FUSE mount whose process is gone."""
_OCTAL = re.compile(r"\\([0-7]{3})")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of ``/proc/self/mountinfo`` (proc(5))."""

    directory: str
    file_system: str
    source: str
    writable: bool


def mounts() -> list[Mount]:
    """Everything that is mounted, in the order it was mounted; of two on one directory the later hides the other."""
    found = []
    with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields, _, rest = line.rstrip("\n").partition(" - ")
            mounted, described = fields.split(" "), rest.split(" ")
            # both say "ro" for themselves: the mount, and the file system that is behind all its mounts
            options = {*mounted[5].split(","), *described[2].split(",")}
            found.append(Mount(_plain(mounted[4]), described[0], _plain(described[1]), "ro" not in options))
    return found


def mounted_at(directory: str) -> Mount | None:
    """What is mounted on exactly this directory, the topmost; None where nothing is."""
    wanted = os.path.realpath(directory)
    return next((mount for mount in reversed(mounts()) if mount.directory == wanted), None)


def is_stale(directory: str) -> bool:
    """Whether a FUSE mount is left on the directory whose process is gone."""
    try:
        os.stat(directory)
    except OSError as problem:
        return problem.errno in _DEAD
    return False


def wait_until_mounted(directory: str, timeout_s: float = 20.0) -> Mount | None:
    """What is mounted on the directory, once it is and answers; None when that takes longer."""
    end = time.monotonic() + timeout_s
    while True:
        found = mounted_at(directory)
        if found is not None and not is_stale(directory):
            return found
        if time.monotonic() >= end:
            return None
        time.sleep(0.01)


def unmount(directory: str, *, timeout_s: float = 0.0, lazy: bool = False) -> None:
    """Take away the topmost mount of a directory; nothing happens where there is none.

    While it is in use this is tried again for ``timeout_s`` seconds. ``lazy`` takes it out of the tree at once and
    leaves it to those that still use it. Raises :class:`~sqlimage.errors.RefusedError` where it stays in use and
    :class:`~sqlimage.errors.DeviceError` where the system refuses.
    """
    end = time.monotonic() + timeout_s
    while True:
        number = _umount(directory, lazy)
        if number in (0, errno.EINVAL, errno.ENOENT):
            return
        if number != errno.EBUSY:
            raise DeviceError(f"{directory}: cannot be unmounted ({os.strerror(number)})")
        if time.monotonic() >= end:
            raise RefusedError(
                f"{directory}: is in use", hint=f"close what is open below it (fuser -vm {directory} names it)"
            )
        time.sleep(0.05)


def clear_stale(directory: str) -> bool:
    """Take a dead FUSE mount off a directory. True where there was one."""
    found = False
    for _ in range(16):  # dead ones can lie on each other
        if not is_stale(directory):
            break
        unmount(directory, lazy=True)
        found = True
    return found


def check_mount_point(directory: str | os.PathLike[str]) -> str:
    """The real path of a directory on which can be mounted: it is there, is empty, and nothing is mounted on it.

    A dead mount of a killed process is cleared. Raises :class:`~sqlimage.errors.NotFoundError`,
    :class:`~sqlimage.errors.UsageError`, :class:`~sqlimage.errors.RefusedError`.
    """
    shown = os.fspath(directory)
    clear_stale(shown)
    path = os.path.realpath(shown)
    try:
        entries = os.scandir(path)
    except FileNotFoundError:
        raise NotFoundError(f"{shown}: no such directory", hint="make it first: mkdir") from None
    except NotADirectoryError:
        raise UsageError(f"{shown}: is not a directory", hint="name an empty directory") from None
    except OSError as problem:
        raise DeviceError(f"{shown}: {problem.strerror}") from None
    with entries:
        empty = next(entries, None) is None
    if (already := mounted_at(path)) is not None:
        raise RefusedError(f"{shown}: {already.source} is mounted there already", hint="unmount it, or name another")
    if not empty:
        raise RefusedError(f"{shown}: is not empty", hint="name an empty directory")
    return path


def _umount(directory: str, lazy: bool) -> int:
    """The error number, 0 for done."""
    if os.geteuid() == 0:
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
        return 0 if _libc.umount2(os.fsencode(directory), flags) == 0 else ctypes.get_errno()
    if mounted_at(directory) is None:
        return errno.EINVAL
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        return errno.EPERM
    argv = [program, "-u", *(["-z"] if lazy else []), "--", directory]
    done = subprocess.run(argv, capture_output=True, check=False)
    if done.returncode == 0:
        return 0
    return errno.EBUSY if b"busy" in done.stderr else errno.EPERM


def _plain(field: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), field)


def unmount_as_listed(directories: list[str], top: str) -> None:
    """Unmount the directory ``top`` and before it those of a list that lie below it, the last first.

    Raises what :func:`unmount` raises; then those before are unmounted.
    """
    for directory in reversed(directories):
        if directory == top or directory.startswith(top.rstrip("/") + "/"):
            unmount(directory)
