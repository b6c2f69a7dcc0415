"""Directories of the user's in which transfers keep what they know: what may be lost, and what should not be."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlimage.errors import DeviceError
from sqlimage.nameless import NamelessFile

CACHE_VARIABLE = "SQLIMAGE_CACHE"
"""Directory for what was fetched of images elsewhere; ``~/.cache/sqlimage`` where it is not set."""
_IDENTITY = re.compile("[0-9a-f]{64}")
_MOST_BYTES = 16 << 10


def cache_directory() -> str:
    """Made where it is not there; for nobody but the user.

    Raises :class:`~sqlimage.errors.DeviceError` where it cannot be.
    """
    usual = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "sqlimage")
    return _made(os.environ.get(CACHE_VARIABLE) or usual, CACHE_VARIABLE)


def _state_directory() -> str:
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return _made(os.path.join(base, "sqlimage", "origins"), "XDG_STATE_HOME")


def _made(directory: str, variable: str) -> str:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError as problem:
        raise DeviceError(
            f"{directory}: cannot be made ({problem.strerror})", hint=f"name another directory in {variable}"
        ) from None
    return directory


def remember_origin(identity: str, url: str) -> None:
    """Keep for the user where an image comes from. The image itself never tells: a stranger's file must not make
    anybody call at an address."""
    with NamelessFile(os.path.join(_state_directory(), identity), replace=True) as file:
        os.write(file.fd, json.dumps({"url": url}).encode())
        file.publish()


def origin_of(identity: str) -> str | None:
    """The URL that :func:`remember_origin` was told; None where this user never pulled that image."""
    if not _IDENTITY.fullmatch(identity):
        return None
    try:
        with open(os.path.join(_state_directory(), identity), "rb") as file:
            url = json.loads(file.read(_MOST_BYTES))["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return url if isinstance(url, str) else None


def forget_origin(identity: str) -> None:
    """The image is whole."""
    if _IDENTITY.fullmatch(identity):
        try:
            os.unlink(os.path.join(_state_directory(), identity))
        except OSError:
            return


def hold(directory: str) -> int:
    """A descriptor of a directory, made where it is not there; while it is open, nobody clears that away."""
    while True:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):  # else somebody cleared it away just now
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_SH)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(directory)):
                    os.utime(directory)
                    return fd
            os.close(fd)


@contextmanager
def alone(directory: str) -> Iterator[None]:
    """Be the only one that writes in a directory; whoever is second waits."""
    path = f"{directory}.writer"
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    break
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # whoever was first has removed it
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)
        os.close(fd)


def clear(directory: str) -> None:
    """Remove a directory, unless somebody holds it."""
    with suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(fd)


def forget_oldest(directory: str, most: int) -> None:
    """Of the directories in one, let those go that have not been held for longest and that nobody holds."""
    with suppress(OSError):
        every = sorted((entry.stat().st_mtime, entry.path) for entry in os.scandir(directory) if entry.is_dir())
        for _, path in every[:-most]:
            clear(path)
