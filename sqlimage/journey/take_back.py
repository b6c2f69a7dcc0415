"""A tree that was begun and is not to stay, however deep a stranger had it made."""

from __future__ import annotations

import os
from contextlib import suppress

_MOVED = "~taken-back-"


def take_back(path: str) -> None:
    """Remove a directory with all that is below it, as far as the system allows; links are not followed.

    What is in a directory is moved up before the directory goes: no path gets long, and nothing calls itself.
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        waiting, moved = os.listdir(top), 0
        while waiting:
            name = waiting.pop()
            with suppress(OSError):
                if _is_removed(name, top):
                    continue
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
                try:
                    for child in os.listdir(below):
                        if not _is_removed(child, below):
                            moved += 1
                            os.rename(child, f"{_MOVED}{moved}", src_dir_fd=below, dst_dir_fd=top)
                            waiting.append(f"{_MOVED}{moved}")
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    with suppress(OSError):
        os.rmdir(path)


def _is_removed(name: str, at: int) -> bool:
    """Whether it was no directory, and is gone."""
    try:
        os.unlink(name, dir_fd=at)
    except IsADirectoryError:
        return False
    return True
