"""Requests over a socket, against a ``bytearray``: every command, batches, long reads and writes, failures."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from sqlimage.device import Buffer, DeviceExtent
from sqlimage.errors import DamagedError, DeviceError
from sqlimage.media.memory import MemoryDevice
from sqlimage.nbd.resources import Buffers, Resources
from sqlimage.units import KIB, MIB
from tests.images import noise
from tests.nbd.client import (
    BLOCK_STATUS,
    CACHE,
    DF,
    DISC,
    EINVAL,
    EIO,
    ENOSPC,
    EPERM,
    ESHUTDOWN,
    FLUSH,
    FUA,
    NO_HOLE,
    READ,
    REQ_ONE,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    SparseDevice,
    TroubledDevice,
    answering,
    request,
)

NOISE = noise("nbd", 4 * MIB)


STRUCTURED = pytest.mark.parametrize("structured", [True, False])


@STRUCTURED
def test_every_command_does_what_it_says(structured: bool) -> None:
    device = TroubledDevice(NOISE)
    model = bytearray(NOISE)
    with answering(device, structured=structured) as client:
        assert client.read(0, 4096) == model[:4096]
        assert client.do(WRITE, 1000, data=b"abc").error == 0
        assert client.do(TRIM, 8192, 8192).error == 0
        assert client.do(WRITE_ZEROES, 100_000, 5).error == 0
        assert client.do(WRITE_ZEROES, 200_000, 3 * MIB, flags=NO_HOLE).error == 0
        model[1000:1003], model[8192:16384], model[100_000:100_005] = b"abc", bytes(8192), bytes(5)
        model[200_000 : 200_000 + 3 * MIB] = bytes(3 * MIB)
        assert client.read(0, 4 * MIB) == model
        assert client.do(FLUSH).error == 0
        assert client.do(CACHE, 4096, 8192).error == 0
    # reads of the whole are cut where memory is short; the rest is one call each
    assert [entry for entry in device.diary if entry != "read"] == [
        "write", "zero", "zero", "write", "write", "write", "flush", "prefetch 4096 8192"
    ]  # fmt: skip


@pytest.mark.parametrize(("command", "length"), [(WRITE, 3), (TRIM, 512), (WRITE_ZEROES, 512)])
def test_fua_is_answered_after_the_flush(command: int, length: int) -> None:
    device = TroubledDevice()
    with answering(device) as client:
        assert client.do(command, 0, length, flags=FUA, data=b"abc" if command == WRITE else b"").error == 0
        assert device.diary[-1] == "flush"
        device.failure = DeviceError("no more")
        assert client.do(command, 0, length, flags=FUA, data=b"abc" if command == WRITE else b"").error == EIO


def test_nothing_at_all_can_be_read_and_written() -> None:
    for structured in (True, False):
        with answering(TroubledDevice(), structured=structured) as client:
            assert client.do(READ, 5, 0).chunks == ([(0, 0)] if structured else [])
            assert [client.do(command, 5, 0).error for command in (WRITE, TRIM, WRITE_ZEROES, CACHE)] == [0] * 4


@STRUCTURED
def test_a_read_only_export_refuses_writes_and_stays_in_step(structured: bool) -> None:
    device = TroubledDevice(NOISE)
    with answering(device, structured=structured, writable=False) as client:
        for length in (1, 4096, 512 * KIB, 512 * KIB + 1, 3 * MIB):
            assert client.do(WRITE, 0, data=bytes(length)).error == EPERM
            assert client.read(7, 9) == NOISE[7:16]
        assert client.do(TRIM, 0, 1).error == EPERM
        assert client.do(FLUSH).error == 0
    assert set(device.diary) == {"read"}


def test_a_write_too_long_or_beyond_the_end_is_drained_and_refused() -> None:
    with answering(TroubledDevice(NOISE)) as client:
        assert client.do(WRITE, 0, data=bytes(32 * MIB + 1)).error == EINVAL
        assert client.do(WRITE, 4 * MIB - 1, data=b"ab").error == ENOSPC
        assert client.do(WRITE, (1 << 64) - 1, data=b"ab").error == EINVAL
        assert client.do(READ, 0, (1 << 32) - 1).error == EINVAL
        assert client.read(0, 4 * MIB) == NOISE


@STRUCTURED
def test_long_reads_and_writes(structured: bool) -> None:
    long = noise("long", 32 * MIB)
    with answering(MemoryDevice(bytearray(33 * MIB)), structured=structured) as client:
        assert client.do(WRITE, 513, data=long).error == 0
        assert client.read(513, len(long)) == long


@pytest.mark.parametrize(("structured", "flags"), [(True, 0), (True, DF), (False, 0)])
def test_long_reads_come_also_when_all_buffers_are_in_use(structured: bool, flags: int) -> None:
    resources = Resources(None)
    resources.buffers = Buffers(0)
    with answering(MemoryDevice(NOISE), structured=structured, resources=resources) as client:
        answer = client.do(READ, 1, 3 * MIB, flags=flags)
        assert answer.bytes_from(1) == NOISE[1 : 1 + 3 * MIB]
        assert len(answer.data) == (6 if structured and not flags else 1)


def test_a_damaged_block_costs_only_the_read_that_touches_it() -> None:
    problems: list[str] = []
    device = TroubledDevice(NOISE)
    device.bad = {70_000, 3 * MIB}
    for structured in (True, False):
        with answering(device, structured=structured, resources=Resources(problems.append)) as client:
            for offset, length in ((69_632, 4096), (0, 128 * KIB), (2 * MIB, 2 * MIB)):
                answer = client.do(READ, offset, length)
                assert (answer.error, answer.data) == (EIO, {})
            assert client.do(READ, 0, 128 * KIB, flags=DF if structured else 0).error == EIO
            assert client.read(0, 70_000) == NOISE[:70_000]
    assert problems == ["chunk 5 does not match its digest"] * 2, "told once for each server"


def test_a_damaged_block_far_into_a_read_for_which_there_is_no_memory() -> None:
    device = TroubledDevice(NOISE)
    device.bad = {2 * MIB}
    resources = Resources(None)
    resources.buffers = Buffers(0)
    with answering(device, resources=resources) as client:
        assert client.do(READ, 0, 3 * MIB).error == EIO
        answer = client.do(READ, 0, 3 * MIB, flags=DF)
        assert (answer.error, [kind for kind, _ in answer.chunks]) == (EIO, [1, 0x8001])
        assert client.do(READ, 2 * MIB, MIB, flags=DF).chunks == [(0x8001, 6)]
        assert client.read(0, 9) == NOISE[:9]
    with answering(device, structured=False, resources=resources) as client:
        assert client.do(READ, 2 * MIB, MIB).error == EIO
        with pytest.raises(EOFError):  # its head said that all was well, and cannot be taken back
            client.do(READ, 0, 3 * MIB)


def full() -> Exception:
    failure = DeviceError("the disk is full")
    failure.__context__ = OSError(errno.ENOSPC, "No space left on device")
    return failure


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (full(), ENOSPC),
        (OSError(errno.EDQUOT, "quota"), ENOSPC),
        (DeviceError("gone"), EIO),
        (OSError(errno.EBADF, "bad"), EIO),
        (ZeroDivisionError("a mistake"), EIO),
    ],
)
def test_failures_of_a_device_become_error_numbers(failure: Exception, error: int) -> None:
    problems: list[str] = []
    device = TroubledDevice(NOISE)
    with answering(device, resources=Resources(problems.append)) as client:
        device.failure = failure
        writes = [client.do(WRITE, 0, data=b"x"), client.do(TRIM, 0, 9), client.do(WRITE_ZEROES, 0, 9, flags=NO_HOLE)]
        assert [answer.error for answer in (*writes, client.do(FLUSH), client.do(READ, 0, 1))] == [error] * 5
        device.failure = None
        assert client.read(0, 9) == NOISE[:9]
    assert len(problems) == 1


def test_writing_zeros_for_long_does_not_outlast_the_server() -> None:
    resources = Resources(None)

    class Last(TroubledDevice):
        def write(self, offset_bytes: int, data: bytes | Buffer) -> None:
            super().write(offset_bytes, data)
            resources.stopping = True

    device = Last()
    with answering(device, resources=resources) as client:
        assert client.do(WRITE_ZEROES, 0, 4 * MIB, flags=NO_HOLE).error == ESHUTDOWN
    assert device.diary == ["write"]


def test_known_holes_are_told_and_not_sent() -> None:
    device = SparseDevice(1 << 40, every_bytes=MIB, data_bytes=64 * KIB)
    with answering(device) as client:
        answer = client.do(READ, 0, 3 * MIB)
        assert answer.bytes_from(0) == (b"\xda" * 64 * KIB + bytes(MIB - 64 * KIB)) * 3
        assert [kind for kind, _ in answer.chunks] == [1, 2] * 3
        assert client.do(READ, 128 * KIB, 128 * KIB).chunks == [(2, 12)]
        status = client.do(BLOCK_STATUS, 0, 3 * MIB).status
        assert status == [(64 * KIB, 0), (MIB - 64 * KIB, 3)] * 3
        assert client.do(BLOCK_STATUS, 64 * KIB, 3 * MIB, flags=REQ_ONE).status == [(MIB - 64 * KIB, 3)]


def test_a_map_that_cannot_be_told_costs_only_the_request() -> None:
    class Lost(TroubledDevice):
        def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
            yield DeviceExtent(offset_bytes, 512, is_data=True)
            raise DamagedError("the cluster map contradicts itself")

    with answering(Lost(NOISE)) as client:
        assert client.do(BLOCK_STATUS, 0, MIB).error == EIO
        assert client.do(READ, 0, MIB).error == EIO
        assert client.read(0, 4096) == NOISE[:4096]


def test_df_is_one_chunk_whatever_the_holes() -> None:
    class Zeros(SparseDevice):
        def read_into(self, offset_bytes: int, buffer: bytearray | memoryview) -> None:
            buffer[:] = bytes(len(buffer))

    with answering(Zeros(1 << 30, MIB, 4096)) as client:
        answer = client.do(READ, 0, 2 * MIB, flags=DF)
        assert [kind for kind, _ in answer.chunks] == [1]


def test_cheap_reads_overtake_one_that_must_decode_and_a_flush() -> None:
    device = TroubledDevice(NOISE, not_ready_from=MIB)
    device.gate.clear()
    with answering(device) as client:
        client.send(
            request(READ, MIB, 300 * KIB, cookie=1)
            + request(FLUSH, cookie=2)
            + request(READ, 0, 4096, cookie=3)
            + request(WRITE, 5, 2, cookie=4)
            + b"ok"
        )
        assert [client.reply().cookie, client.reply().cookie] == [3, 4]
        assert client.read(3, 4) == NOISE[3:5] + b"ok"
        device.gate.set()
        late = sorted((client.reply(), client.reply()), key=lambda answer: answer.cookie)
        assert [answer.cookie for answer in late] == [1, 2]
        assert late[0].bytes_from(MIB) == NOISE[MIB : MIB + 300 * KIB]


def test_a_slow_sync_holds_up_no_reads_of_others() -> None:
    resources = Resources(None)
    syncing, reading = TroubledDevice(NOISE), TroubledDevice(NOISE, not_ready_from=0)
    syncing.gate.clear()
    with ExitStack() as stack:
        slow = [stack.enter_context(answering(syncing, resources=resources)) for _ in range(9)]
        other = stack.enter_context(answering(reading, resources=resources))
        stack.callback(syncing.gate.set)
        for client in slow:
            client.send(request(FLUSH, cookie=1) + request(WRITE, 0, 1, cookie=2, flags=FUA) + b"x")
        other.send(request(READ, 0, 4096, cookie=1) + request(READ, 4096, 4096, cookie=2))
        assert sorted([other.reply().cookie, other.reply().cookie]) == [1, 2]
        syncing.gate.set()
        for client in slow:
            assert sorted([client.reply().cookie, client.reply().cookie]) == [1, 2]


def test_a_flush_covers_every_write_before_it() -> None:
    device = TroubledDevice()
    with answering(device) as client:
        client.send(
            b"".join(request(WRITE, at, 1, cookie=at, flags=FUA) + b"x" for at in range(10)) + request(FLUSH, cookie=10)
        )
        assert sorted(client.reply().cookie for _ in range(11)) == list(range(11))
    assert device.diary == ["write"] * 10 + ["flush"]


def test_reads_beyond_what_the_workers_take_are_answered_too() -> None:
    device = TroubledDevice(NOISE, not_ready_from=0)
    with answering(device) as client:
        wanted = {cookie: (cookie * 4099 % (3 * MIB), 1 + cookie * 997 % (300 * KIB)) for cookie in range(400)}
        sender = threading.Thread(
            target=client.send,
            args=(b"".join(request(READ, *place, cookie=cookie) for cookie, place in wanted.items()),),
        )
        sender.start()
        for _ in range(400):
            answer = client.reply()
            offset, length = wanted.pop(answer.cookie)
            assert answer.bytes_from(offset) == NOISE[offset : offset + length]
        sender.join()
    assert not wanted


def test_one_client_cannot_have_all_buffers() -> None:
    resources = Resources(None)
    device = TroubledDevice(NOISE, not_ready_from=0)
    device.gate.clear()
    with answering(device, resources=resources) as client:
        client.send(request(READ, 0, 512 * KIB) * 200)
        time.sleep(0.1)
        large = resources.buffers.take(32 * MIB)
        device.gate.set()
        assert large is not None
        assert all(client.reply().bytes_from(0) == NOISE[: 512 * KIB] for _ in range(200))


def test_replies_under_way_are_sent_before_the_farewell() -> None:
    device = TroubledDevice(NOISE, not_ready_from=0)
    with answering(device) as client:
        client.send(request(READ, 0, 4096, cookie=1) + request(READ, 4096, 4096, cookie=2) + request(DISC))
        assert sorted([client.reply().cookie, client.reply().cookie]) == [1, 2]
        assert client.socket.recv(1) == b""


def test_a_client_that_hangs_up_in_mid_write_loses_only_that_write() -> None:
    device = TroubledDevice(NOISE)
    with answering(device) as client:
        client.send(request(WRITE, 0, 3) + b"one" + request(WRITE, 4096, 400_000) + bytes(399_999))
        assert client.reply().error == 0
    assert device.content == b"one" + NOISE[3:]


def test_what_is_no_request_ends_the_connection_but_what_came_before_is_answered() -> None:
    with answering(TroubledDevice()) as client:
        client.send(request(FLUSH) + bytes(28))
        assert client.reply().error == 0
        assert client.closed()


def test_requests_may_come_with_the_end_of_the_negotiation() -> None:
    early = request(WRITE, 0, 3) + b"abc" + request(READ, 0, 4)[:10]
    with answering(TroubledDevice(), early=early) as client:
        assert client.reply().error == 0
        client.send(request(READ, 0, 4)[10:])
        assert client.reply().bytes_from(0) == b"abc\0"
