"""What can be put around any store: asking again, checking, a limit to its speed, counting."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from sqlimage.errors import FormatError
from sqlimage.transfer.stores.contract import Bytes, Content, Store, StoreError, digest_in

_Result = TypeVar("_Result")
_MOST_DELAY_S = 30.0


class Wrapped:
    """A store that hands everything on to another."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def where(self) -> str:
        return self._store.where

    def put(self, name: str, content: Bytes) -> bool:
        return self._store.put(name, content)

    def get(self, name: str, most_bytes: int) -> Content:
        return self._store.get(name, most_bytes)

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        return self._store.get_range(name, offset_bytes, length_bytes)

    def head(self, name: str) -> int | None:
        return self._store.head(name)

    def list(self, prefix: str = "") -> Iterator[str]:
        return self._store.list(prefix)

    def publish(self, name: str, segment: str, keep: Sequence[str] = ()) -> None:
        self._store.publish(name, segment, keep)

    def first(self, name: str) -> str:
        return self._store.first(name)

    def close(self) -> None:
        self._store.close()


class Retrying(Wrapped):
    """Asks again after a transient error, up to ``attempts`` times in all, each time after twice the delay (and a part
    of it left to chance, so that many who failed together do not come back together), or after what the server said."""

    def __init__(
        self,
        store: Store,
        attempts: int = 6,
        first_delay_s: float = 0.2,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(store)
        self._attempts = attempts
        self._first_delay_s = first_delay_s
        self._sleep = sleep

    def put(self, name: str, content: Bytes) -> bool:
        return self._again(lambda: self._store.put(name, content))

    def get(self, name: str, most_bytes: int) -> Content:
        return self._again(lambda: self._store.get(name, most_bytes))

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        return self._again(lambda: self._store.get_range(name, offset_bytes, length_bytes))

    def head(self, name: str) -> int | None:
        return self._again(lambda: self._store.head(name))

    def list(self, prefix: str = "") -> Iterator[str]:
        # all before the first is told: half a listing cannot be taken back
        return iter(self._again(lambda: [*self._store.list(prefix)]))

    def publish(self, name: str, segment: str, keep: Sequence[str] = ()) -> None:
        self._again(lambda: self._store.publish(name, segment, keep))

    def first(self, name: str) -> str:
        return self._again(lambda: self._store.first(name))

    def _again(self, ask: Callable[[], _Result]) -> _Result:
        for attempt in range(1, self._attempts):
            try:
                return ask()
            except StoreError as problem:
                if not problem.is_transient:
                    raise
                delay = min(self._first_delay_s * 2 ** (attempt - 1), _MOST_DELAY_S)
                self._sleep(max(delay * random.uniform(0.5, 1.0), problem.retry_after_s))
        return ask()


class WrongBytes(StoreError):
    """A segment does not have the digest that its name says. Another copy of it, or the same once more, may have it."""

    exit_code = FormatError.exit_code

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, is_transient=True)

    def of_segment(self, number: int, count: int) -> WrongBytes:
        """The same, told by the segment's number."""
        return WrongBytes(f"{self.message} (segment {number} of {count})", hint=self.hint)


class Checked(Wrapped):
    """A segment that is read whole has the digest that its name says, or it is told by :class:`WrongBytes`.
    Parts cannot be checked here: their reader does that, chunk by chunk."""

    def get(self, name: str, most_bytes: int) -> Content:
        content = super().get(name, most_bytes)
        expected = digest_in(name)
        if expected and hashlib.sha256(content).hexdigest() != expected:
            raise WrongBytes(
                f"{self.where}/{name}: what comes does not match its digest",
                hint="run the command again; where it stays so, remove it there and push or split the image once more",
            )
        return content


class Limited(Wrapped):
    """No more than so many bytes a second on average, over all threads and both ways.

    Who has moved an object waits until a line of that speed would have; time that nobody used is not saved up.
    """

    def __init__(
        self,
        store: Store,
        bytes_per_second: float,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(store)
        self._bytes_per_second = bytes_per_second
        self._sleep = sleep
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock()

    def put(self, name: str, content: Bytes) -> bool:
        began = self._clock()
        was_sent = super().put(name, content)
        if was_sent:
            self._pay(began, len(content))
        return was_sent

    def get(self, name: str, most_bytes: int) -> Content:
        began = self._clock()
        content = super().get(name, most_bytes)
        self._pay(began, len(content))
        return content

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        began = self._clock()
        content = super().get_range(name, offset_bytes, length_bytes)
        self._pay(began, len(content))
        return content

    def _pay(self, began: float, length_bytes: int) -> None:
        """Wait until the line could have moved so much: what an object costs is known when it is there."""
        with self._lock:
            self._free_at = max(self._free_at, began) + length_bytes / self._bytes_per_second
            wait = self._free_at - self._clock()
        if wait > 0:
            self._sleep(wait)


class Counted(Wrapped):
    """Calls ``on_bytes(sent, received)`` for what was moved, from the thread that moved it."""

    def __init__(self, store: Store, on_bytes: Callable[[int, int], object]) -> None:
        super().__init__(store)
        self._on_bytes = on_bytes

    def put(self, name: str, content: Bytes) -> bool:
        was_sent = super().put(name, content)
        self._on_bytes(len(content) if was_sent else 0, 0)
        return was_sent

    def get(self, name: str, most_bytes: int) -> Content:
        content = super().get(name, most_bytes)
        self._on_bytes(0, len(content))
        return content

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        content = super().get_range(name, offset_bytes, length_bytes)
        self._on_bytes(0, len(content))
        return content
