"""The scratch file: what it gives is what was put there, whatever has been overwritten meanwhile."""

from __future__ import annotations

import threading
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.image.scratch import Scratch


def chunk(number: int, length: int) -> bytes:
    return number.to_bytes(4, "big") * (length // 4 + 1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 90)), max_size=120), st.integers(1, 200))
def test_a_chunk_reads_as_it_was_put_or_is_gone(puts: list[tuple[int, int]], limit: int) -> None:
    scratch = Scratch(limit)
    model: dict[tuple[int, int], bytes] = {}
    try:
        for number, length in puts:
            key = (0, number)
            content = chunk(number, length)[:length]
            if key not in scratch:
                model[key] = content
            scratch.put(key, content)
            for known, expected in model.items():
                view = bytearray(len(expected))
                if scratch.read_into(known, 0, memoryview(view)):
                    assert view == expected
            if key in scratch:
                half = bytearray(len(model[key]) // 2)
                assert scratch.read_into(key, len(half), memoryview(half))
                assert half == model[key][len(half) : 2 * len(half)]
                assert not scratch.read_into(key, len(model[key]), memoryview(bytearray(1)))
        assert sum(len(model[key]) for key in model if key in scratch) <= limit
    finally:
        scratch.close()


def test_readers_beside_a_writer_never_see_another_chunk() -> None:
    scratch, wrong, until = Scratch(40_000), list[int](), time.monotonic() + 1

    def read() -> None:
        view = bytearray(4096)
        while time.monotonic() < until:
            for number in range(20):
                if scratch.read_into((0, number), 0, memoryview(view)) and view != chunk(number, 4096)[:4096]:
                    wrong.append(number)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    while time.monotonic() < until:
        for number in range(20):
            scratch.put((0, number), chunk(number, 4096 + number * 100))
    for reader in readers:
        reader.join()
    scratch.close()
    assert not wrong


def test_without_room_nothing_is_kept_and_nobody_is_told() -> None:
    none = Scratch(0)
    none.put((0, 1), b"content")
    assert (0, 1) not in none
    assert not none.read_into((0, 1), 0, memoryview(bytearray(1)))
    closed = Scratch(100)
    closed.close()
    closed.put((0, 1), b"content")
    assert (0, 1) not in closed
