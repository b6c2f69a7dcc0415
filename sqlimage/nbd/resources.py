"""What all connections of a server share, each of it bounded: memory for replies, threads that decode, a place to
say what went wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from sqlimage.errors import SqlimageError
from sqlimage.nbd_layout import NBD_EIO, NBD_ENOSPC
from sqlimage.units import KIB, MIB

BUFFERS_BYTES = 64 * MIB
"""All payload buffers of a server together."""
ROOM_BYTES = 4 * KIB
"""What a buffer has beyond the payload asked for: place for the heads of a reply."""
_SMALLEST_BYTES = 64 * KIB
_CAUSES_MAXIMUM = 8


class Buffers:
    """Buffers that are used again, for to get fresh memory from the kernel costs more than to fill it."""

    def __init__(self, most_bytes: int = BUFFERS_BYTES) -> None:
        self._most_bytes = most_bytes
        self._made_bytes = 0
        self._idle: dict[int, deque[bytearray]] = {}
        self._lock = threading.Lock()

    def take(self, payload_bytes: int) -> bytearray | None:
        """A buffer for a payload and the heads around it, with whatever content, or None where all memory is in use:
        then the caller must do with what it has. It never waits, for those who hold the rest may never give it back."""
        size = max(_SMALLEST_BYTES, 1 << max(0, payload_bytes - 1).bit_length()) + ROOM_BYTES
        with self._lock:
            if self._idle.get(size):
                return self._idle[size].pop()
            for other in sorted(self._idle, reverse=True):
                while self._idle[other] and self._made_bytes + size > self._most_bytes:
                    self._idle[other].pop()
                    self._made_bytes -= other
            if self._made_bytes + size > self._most_bytes:
                return None
            self._made_bytes += size
        return bytearray(size)

    def give_back(self, buffer: bytearray) -> None:
        with self._lock:
            self._idle.setdefault(len(buffer), deque()).append(buffer)


class Workers:
    """Threads for work that releases the interpreter. Jobs are bounded by whoever submits them, and must neither raise
    nor wait for a client."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for number in range(self._count - len(self._threads)):
            thread = threading.Thread(target=self._work, name=f"nbd-worker-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def submit(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)

    def stop(self) -> None:
        """Let the threads end after what has been submitted. Does not wait for them."""
        for _ in self._threads:
            self._jobs.put(None)
        self._threads.clear()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class Resources:
    """``decoders`` are as many as there are processors. ``syncs`` is one thread beside them: a disk that takes its time
    to sync must not hold up reads. ``stopping`` becomes True once and for all."""

    def __init__(self, on_problem: Callable[[str], None] | None) -> None:
        self.buffers = Buffers()
        self.decoders = Workers(os.cpu_count() or 1)
        self.syncs = Workers(1)
        self.looking = threading.Lock()
        """Held by the one connection that looks for its next request instead of sleeping."""
        self.stopping = False
        self._on_problem = on_problem
        self._last = ""

    def start(self) -> None:
        self.decoders.start()
        self.syncs.start()

    def stop(self) -> None:
        self.decoders.stop()
        self.syncs.stop()

    def note(self, message: str) -> None:
        """Tell a problem, but not the same one again and again: a client can ask for a damaged block for ever."""
        if self._on_problem is not None and message != self._last:
            self._last = message
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more; the clients are served on
                self._on_problem(message)

    def attempt(self, operation: Callable[..., object], *arguments: Any) -> int:
        """Do something to a device; returns the error number for the client, or 0."""
        try:
            operation(*arguments)
        except Exception as problem:
            return self.error_number(problem)
        return 0

    def error_number(self, problem: BaseException) -> int:
        """What a client is told. One bad block, or a mistake in a device, must not take the server down."""
        known = isinstance(problem, SqlimageError)
        self.note(str(problem) if known else f"{type(problem).__name__}: {problem}")
        cause: BaseException | None = problem
        for _ in range(_CAUSES_MAXIMUM):
            if cause is None:
                break
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
                return NBD_ENOSPC
            cause = cause.__cause__ or cause.__context__
        return NBD_EIO
