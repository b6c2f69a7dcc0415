"""Where contents of images come from that are not in their files yet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol


class Origin(Protocol):
    """A place that holds what is missing of one image. MUST be safe to call from several threads at once."""

    def fetch(self, data: int, length_bytes: int, is_unwanted: Callable[[], bool] = lambda: False) -> bytes | None:
        """The stored bytes of a content, by its number in the image; None where it is not there either. Nothing of it
        has been verified. Whoever asks may lose interest while it waits: ``is_unwanted``.

        Raises :class:`~sqlimage.errors.DeviceError` where the place cannot be reached, and when it was given up."""
        ...

    def forget(self, data: int) -> None:
        """What was fetched turned out to be damaged: the next fetch asks the place itself."""
        ...

    def close(self) -> None: ...


_origins: dict[str, Origin | None] = {}
_finders: list[Callable[[str], Origin | None]] = []
_lock = threading.Lock()


def find_with(finder: Callable[[str], Origin | None]) -> None:
    """Have ``finder`` asked for the origin of an image that nobody registered, when something of it is missing."""
    _finders.append(finder)


def register(path: str, origin: Origin) -> None:
    """From now on what is missing of the image ``path`` (a real path) is fetched from there."""
    with _lock:
        before, _origins[path] = _origins.get(path), origin
    if before is not None and before is not origin:
        before.close()


def of(path: str) -> Origin | None:
    """Where what is missing of an image can be had; None where nobody knows."""
    if path not in _origins:
        found = next((origin for origin in (finder(path) for finder in _finders) if origin is not None), None)
        with _lock:  # not before: the place may be slow to answer
            if path not in _origins:
                _origins[path] = found
                return found
        if found is not None:
            found.close()
    return _origins[path]


def forget(path: str) -> None:
    """The image is no longer of interest."""
    with _lock:
        origin = _origins.pop(path, None)
    if origin is not None:
        origin.close()
