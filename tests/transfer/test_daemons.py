"""Work that nobody waits for at the end."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sqlimage.transfer.daemons import Daemons
from sqlimage.transfer.push import push
from sqlimage.transfer.stores.contract import SEGMENTS, Bytes, StoreError
from sqlimage.transfer.stores.memory import MemoryStore
from tests.make import travelling


def test_calls_give_what_they_give_and_raise_what_they_raise() -> None:
    daemons = Daemons(2, "test")
    try:
        assert [daemons.submit(pow, 2, n).result(60) for n in range(20)] == [2**n for n in range(20)]
        with pytest.raises(ZeroDivisionError):
            daemons.submit(divmod, 1, 0).result(60)
    finally:
        daemons.abandon()


def test_who_abandons_them_waits_for_nothing_and_nothing_more_is_begun() -> None:
    daemons, begun, free, made = Daemons(1, "test"), threading.Event(), threading.Event(), threading.Event()

    def waiting() -> bool:
        begun.set()
        return free.wait()

    first = daemons.submit(waiting)
    daemons.submit(made.set)
    begun.wait()
    daemons.abandon()
    assert not first.done()
    free.set()
    assert first.result(60)
    assert not made.wait(0.1)


def test_a_push_that_fails_does_not_wait_for_what_is_on_its_way(tmp_path: Path) -> None:
    free = threading.Event()

    class Half(MemoryStore):
        """Refuses the first segment that comes, and is silent on all others."""

        refused = False
        lock = threading.Lock()

        def put(self, name: str, content: Bytes) -> bool:
            with self.lock:
                is_first, self.refused = not self.refused, True
            if name.startswith(SEGMENTS) and is_first:
                raise StoreError("the disk of the server is full")
            return free.wait()

    image = travelling.image(tmp_path)
    try:
        with pytest.raises(StoreError, match="is full"):
            push(str(image), None, Half(), "base.sqlimage", segment_bytes=travelling.SEGMENT_BYTES)
        assert not free.is_set()
    finally:
        free.set()
