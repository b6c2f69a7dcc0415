"""What is given to the workers comes back once, and not before its worker has let go of everything."""

from __future__ import annotations

import os
import threading
import time

import pytest

from sqlimage.nbd.handover import HELD_BYTES_MAXIMUM, Handover
from sqlimage.nbd.resources import BUFFERS_BYTES, Buffers, Resources
from sqlimage.units import KIB, MIB
from tests.nbd.client import SECONDS


def test_a_reply_is_collected_only_after_its_bell_has_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that rang later would ring the bell of whoever has the descriptor by then."""
    resources, ring, may_ring = Resources(None), os.eventfd_write, threading.Event()
    rung: list[int] = []

    def late(descriptor: int, value: int) -> None:
        if rung:
            assert may_ring.wait(SECONDS)
        rung.append(descriptor)
        ring(descriptor, value)

    monkeypatch.setattr(os, "eventfd_write", late)
    resources.start()
    handover = Handover(resources)
    handover.submit(lambda: b"sync", None)
    while not rung:
        time.sleep(0.001)
    buffer = handover.reserve(9)
    handover.submit(lambda: b"read", buffer)
    time.sleep(0.05)
    assert list(handover.collect()) == [b"sync"]
    assert (handover.outstanding, handover.flushing) == (1, False)
    may_ring.set()
    handover.close()
    assert (handover.outstanding, len(rung)) == (0, 2)
    resources.stop()


def test_a_reply_that_could_not_be_sent_does_not_keep_its_buffer() -> None:
    resources = Resources(None)
    resources.start()
    handover = Handover(resources)
    for _ in range(10):
        handover.submit(lambda: b"read", handover.reserve(512 * KIB))
    with pytest.raises(ConnectionError):
        for _ in handover.collect():
            raise ConnectionError
    handover.close()
    assert handover.reserve(HELD_BYTES_MAXIMUM) is not None
    resources.stop()


def test_buffers_are_bounded_and_used_again() -> None:
    buffers = Buffers()
    taken = []
    while (buffer := buffers.take(MIB)) is not None:
        taken.append(buffer)
    assert 60 * MIB < sum(map(len, taken)) <= BUFFERS_BYTES
    assert buffers.take(1) is not None or len(taken) * len(taken[0]) + 68 * KIB > BUFFERS_BYTES
    again = taken.pop()
    buffers.give_back(again)
    assert buffers.take(600 * KIB) is again
    for buffer in taken:
        buffers.give_back(buffer)
    large = buffers.take(32 * MIB)
    assert large is not None
    assert len(large) > 32 * MIB, "those of another size make room"
