"""Any requests in any pieces, against a ``bytearray``; and any bytes at all."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.media.memory import MemoryDevice
from sqlimage.nbd.transmission import Session, check_request
from sqlimage.units import KIB
from tests.images import noise
from tests.nbd.client import (
    BLOCK_STATUS,
    CACHE,
    DF,
    FLUSH,
    FUA,
    NO_HOLE,
    READ,
    REQ_ONE,
    SECONDS,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Client,
    Reply,
    TroubledDevice,
    answering,
    request,
)

MODEL_BYTES = 200_000


@dataclass(frozen=True)
class Step:
    command: int
    flags: int
    offset: int
    length: int

    def data(self) -> bytes:
        return noise((self.offset, self.length), self.length) if self.command == WRITE else b""


STEPS = st.builds(
    Step,
    st.sampled_from([READ, READ, WRITE, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, 9]),
    st.sampled_from([0, 0, 0, FUA, NO_HOLE, DF, REQ_ONE, 32]),
    st.one_of(st.integers(0, MODEL_BYTES), st.sampled_from([0, 4096, MODEL_BYTES - 1, (1 << 64) - 1])),
    st.one_of(st.integers(0, 9000), st.integers(0, MODEL_BYTES)),
)


@settings(deadline=None, max_examples=150)
@given(st.booleans(), st.lists(STEPS, max_size=25), st.integers(1, 100_000))
def test_any_sequence_of_requests_does_what_a_bytearray_does(structured: bool, steps: list[Step], piece: int) -> None:
    """Sent without waiting, in pieces that end anywhere."""
    model = bytearray(noise("model", MODEL_BYTES))
    device = MemoryDevice(bytearray(model))
    session = Session(0, MODEL_BYTES, True, structured, structured)
    stream, expected = b"", {}
    for cookie, step in enumerate(steps):
        stream += request(step.command, step.offset, step.length, flags=step.flags, cookie=cookie) + step.data()
        error = check_request(session, step.flags, step.command, step.offset, step.length)
        end = step.offset + step.length
        if not error and step.command == WRITE:
            model[step.offset : end] = step.data()
        elif not error and step.command in (TRIM, WRITE_ZEROES):
            model[step.offset : end] = bytes(step.length)
        expected[cookie] = (error, bytes(model[step.offset : end]) if step.command == READ and not error else b"")
    with answering(device, structured=structured) as client:

        def send() -> None:
            for at in range(0, len(stream), piece):
                client.send(stream[at : at + piece])

        sender = threading.Thread(target=send)
        sender.start()
        waiting = [cookie for cookie in expected if steps[cookie].command == READ]
        for _ in steps:
            # reads are answered in their order here, so the next one tells how long a simple answer is
            answer = _next(client, waiting, expected, steps)
            error, data = expected.pop(answer.cookie)
            assert answer.error == error
            if steps[answer.cookie].command == READ and not error:
                assert answer.bytes_from(steps[answer.cookie].offset) == data
        sender.join()
    assert not expected
    assert device.content == model


def _next(client: Client, waiting: list[int], expected: dict[int, tuple[int, bytes]], steps: list[Step]) -> Reply:
    head = client.socket.recv(16, socket.MSG_PEEK | socket.MSG_WAITALL)
    cookie = int.from_bytes(head[8:16], "big")
    if waiting and waiting[0] == cookie and head[:4] == bytes.fromhex("67446698"):
        waiting.pop(0)
        return client.reply(len(expected[cookie][1]), steps[cookie].offset)
    return client.reply()


@settings(deadline=None, max_examples=200)
@given(
    st.booleans(),
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.builds(
                lambda command, flags, offset, length: request(command, offset, length, flags=flags),
                st.integers(0, 9),
                st.integers(0, 65535) | st.sampled_from([0, FUA, DF]),
                st.integers(0, (1 << 64) - 1) | st.integers(0, 1 << 17),
                st.integers(0, (1 << 32) - 1) | st.integers(0, 1 << 17),
            ),
        ),
        max_size=12,
    ),
)
def test_whatever_a_client_sends_the_server_ends_in_order(structured: bool, said: list[bytes]) -> None:
    with answering(TroubledDevice(bytes(128 * KIB), not_ready_from=64 * KIB), structured=structured) as client:
        drain = threading.Thread(target=client.closed)
        drain.start()
        try:
            client.send(b"".join(said))
            client.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has closed already
        drain.join(SECONDS)
        assert not drain.is_alive()
