"""What is put around a store: asking again, checking, a limit to its speed, counting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from sqlimage.errors import NotFoundError, RefusedError
from sqlimage.transfer.stores.contract import Bytes, Content, Store, StoreError
from sqlimage.transfer.stores.memory import MemoryStore
from sqlimage.transfer.stores.wrappers import Checked, Counted, Limited, Retrying, Wrapped
from tests.transfer.stores.shelves import noise, segment_of

_CONTENT = noise(1000)
_NAME = segment_of(_CONTENT)


class Failing(Wrapped):
    """Raises what it is given, one error for each request, before it does what it should."""

    def __init__(self, *problems: Exception) -> None:
        super().__init__(MemoryStore())
        self.problems = list(problems)
        self.asked = 0

    def _ask(self) -> Store:
        self.asked += 1
        if self.problems:
            raise self.problems.pop(0)
        return self._store

    def put(self, name: str, content: Bytes) -> bool:
        return self._ask().put(name, content)

    def get(self, name: str, most_bytes: int) -> Content:
        return self._ask().get(name, most_bytes)

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        return self._ask().get_range(name, offset_bytes, length_bytes)

    def head(self, name: str) -> int | None:
        return self._ask().head(name)

    def list(self, prefix: str = "") -> Iterator[str]:
        yield from self._store.list(prefix)
        self._ask()


def passing(retry_after_s: float = 0) -> StoreError:
    return StoreError("for now", is_transient=True, retry_after_s=retry_after_s)


_REQUESTS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put(_NAME, _CONTENT),
    "get": lambda store: store.get(_NAME, 1000),
    "get_range": lambda store: store.get_range(_NAME, 0, 10),
    "head": lambda store: store.head(_NAME),
    "list": lambda store: list(store.list()),
}


@pytest.fixture(params=_REQUESTS.values(), ids=list(_REQUESTS))
def ask(request: pytest.FixtureRequest) -> Callable[[Store], object]:
    found: Callable[[Store], object] = request.param
    return found


def test_a_transient_error_is_asked_again_about(ask: Callable[[Store], object]) -> None:
    failing = Failing()
    failing.put(_NAME, _CONTENT)
    expected = ask(failing)
    failing.problems, failing.asked = [passing()] * 5, 0
    waits: list[float] = []
    assert ask(Retrying(failing, sleep=waits.append)) == expected
    assert failing.asked == 6
    assert len(waits) == 5


def test_the_last_error_is_told(ask: Callable[[Store], object]) -> None:
    failing = Failing(*[passing()] * 3)
    with pytest.raises(StoreError, match="for now"):
        ask(Retrying(failing, attempts=3, sleep=lambda _: None))
    assert failing.asked == 3


@pytest.mark.parametrize("problem", [StoreError("for good"), NotFoundError("gone"), RefusedError("no"), KeyError("x")])
def test_other_errors_are_told_at_once(ask: Callable[[Store], object], problem: Exception) -> None:
    failing = Failing(problem)
    with pytest.raises(type(problem)):
        ask(Retrying(failing, sleep=lambda _: pytest.fail("waited")))
    assert failing.asked == 1


def test_a_wait_is_twice_the_last_and_as_long_as_the_server_says() -> None:
    failing = Failing(passing(), passing(), passing(60), passing(0.001), passing())
    failing.problems, problems = [], failing.problems
    failing.put(_NAME, _CONTENT)
    failing.problems = problems
    waits: list[float] = []
    Retrying(failing, sleep=waits.append, first_delay_s=1).head(_NAME)
    assert waits[2] == 60
    for wait, most in zip([*waits[:2], *waits[3:]], (1, 2, 8, 16), strict=True):
        assert most / 2 <= wait <= most


def test_a_segment_that_is_not_what_its_name_says_is_refused() -> None:
    inner = MemoryStore()
    inner.put(_NAME, _CONTENT)
    store = Checked(inner)
    assert store.get(_NAME, 1000) == _CONTENT
    inner.put(_NAME, _CONTENT[:-1])
    with pytest.raises(StoreError, match=f"{_NAME}: what comes does not match its digest") as raised:
        store.get(_NAME, 1000)
    assert raised.value.is_transient
    assert raised.value.exit_code == 5, "it is damaged, whoever did it"
    inner.put("image", _CONTENT[:-1])
    assert store.get("image", 1000) == _CONTENT[:-1]


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_no_more_than_so_many_bytes_a_second_are_moved() -> None:
    clock = Clock()
    store = Limited(MemoryStore(), 100, sleep=clock.sleep, clock=clock)
    store.put(_NAME, _CONTENT)
    assert clock.now == 110
    store.get(_NAME, 1000)
    assert clock.now == 120
    store.get_range(_NAME, 0, 50)
    assert clock.now == 120.5
    assert store.head(_NAME) == 1000
    assert clock.now == 120.5


def test_time_that_nobody_used_is_not_saved_up() -> None:
    clock = Clock()
    store = Limited(MemoryStore(), 100, sleep=clock.sleep, clock=clock)
    clock.now += 1000
    store.put(_NAME, _CONTENT)
    assert clock.now == 1110


def test_time_that_moving_took_counts() -> None:
    clock = Clock()

    class Slow(MemoryStore):
        def get(self, name: str, most_bytes: int) -> bytes:
            clock.sleep(4)
            return super().get(name, most_bytes)

    slow = Slow()
    slow.put(_NAME, _CONTENT)
    Limited(slow, 100, sleep=clock.sleep, clock=clock).get(_NAME, 1000)
    assert clock.now == 110


def test_the_limit_is_that_of_all_threads_together() -> None:
    waits: list[float] = []
    store = Limited(MemoryStore(), 100, sleep=waits.append, clock=lambda: 0.0)
    threads = [threading.Thread(target=store.put, args=(f"image{n}", _CONTENT)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(waits) == [10, 20, 30, 40, 50]


def test_what_was_moved_is_counted() -> None:
    told: list[tuple[int, int]] = []
    store = Counted(MemoryStore(), lambda sent, received: told.append((sent, received)))
    store.put(_NAME, _CONTENT)
    store.publish("image", _NAME)
    store.head("image")
    store.get(_NAME, 1000)
    store.get_range(_NAME, 990, 100)
    with pytest.raises(NotFoundError):
        store.get("other", 1)
    assert told == [(1000, 0), (0, 1000), (0, 10)]


def test_what_is_around_a_store_hands_everything_on() -> None:
    inner = MemoryStore("mem:inner")
    store = Counted(Limited(Checked(Retrying(Wrapped(inner))), 1e9), lambda sent, received: None)
    store.put(_NAME, _CONTENT)
    store.publish("image", _NAME)
    assert store.first("image") == _NAME
    assert store.where == "mem:inner"
    assert set(store.list()) == {_NAME, "image"}
    assert store.get_range(_NAME, 10, 10) == _CONTENT[10:20]
    store.close()
