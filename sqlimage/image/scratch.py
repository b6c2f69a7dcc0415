"""Decoded chunks that memory has no room for, in a temporary file without a name.

The kernel keeps as much of it in memory as it can spare and takes it back when others need it. A chunk is decoded and
verified once and then read like raw data, however large the volume is that is worked on.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from contextlib import suppress

from sqlimage.image.keys import Key

_PLACES = ("/var/tmp", tempfile.gettempdir())
"""Where it is made, unless TMPDIR says otherwise: /tmp is memory on many systems."""


class Scratch:
    """Up to ``limit_bytes`` of chunks, the oldest overwritten first; safe from any thread. Where no file can be made or
    the disk is full, it holds nothing and nobody is told: everything in it can be had again."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._fd = -1
        self._next_bytes = 0
        self._places: OrderedDict[Key, tuple[int, int, int]] = OrderedDict()
        """Offset and length in the file, and which put it was, by age."""
        self._turn = 0
        self._lock = threading.Lock()
        self._is_broken = limit_bytes <= 0

    @property
    def is_usable(self) -> bool:
        return not self._is_broken

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def put(self, key: Key, content: bytes) -> None:
        """Keep a chunk; it may overwrite the oldest ones."""
        with self._lock:
            if self._is_broken or key in self._places or len(content) > self._limit_bytes:
                return
            try:
                if self._fd < 0:
                    self._fd = _nameless()
                if self._next_bytes + len(content) > self._limit_bytes:
                    # Back to the beginning. What lies between here and the end is the oldest: gone, so that age and
                    # place go on in the same order.
                    self._forget_until(self._limit_bytes, self._next_bytes)
                    self._next_bytes = 0
                begin, end = self._next_bytes, self._next_bytes + len(content)
                # What is overwritten is forgotten first: a reader looks again after it has read.
                self._forget_until(end, begin)
                done = 0
                while done < len(content):
                    done += os.pwrite(self._fd, memoryview(content)[done:], begin + done)
            except OSError:
                self._is_broken = True
                self._forget()
                return
            self._turn += 1
            self._places[key] = (begin, len(content), self._turn)
            self._next_bytes = end

    def _forget_until(self, end: int, begin: int) -> None:
        """Forget the oldest chunks, as long as they lie within a stretch of the file."""
        while self._places:
            oldest, (at, length, _) = next(iter(self._places.items()))
            if at >= end or at + length <= begin:
                break
            del self._places[oldest]

    def read_into(self, key: Key, offset_bytes: int, view: memoryview) -> bool:
        """Fill a buffer from a chunk; False where the chunk is not (or not any more) here, or is shorter."""
        place = self._places.get(key)
        if place is None or offset_bytes < 0 or offset_bytes + len(view) > place[1]:
            return False
        try:
            done = os.preadv(self._fd, [view], place[0] + offset_bytes)
        except OSError:
            return False
        return done == len(view) and self._places.get(key) == place

    def _forget(self) -> None:
        self._places.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        with self._lock:
            self._is_broken = True
            self._forget()


def _nameless() -> int:
    for place in (os.environ.get("TMPDIR"), *_PLACES):
        if place:
            with suppress(OSError):
                return os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
