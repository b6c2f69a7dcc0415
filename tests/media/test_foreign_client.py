"""The NBD client against servers that answer well, badly, late and never."""

from __future__ import annotations

import socket
import struct
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlimage.media.foreign import client as module
from sqlimage.media.foreign.client import Client, ServerRefusal
from sqlimage.media.foreign.connection import BrokenConnection, Connection
from tests.make.cost import PATIENCE
from tests.media.foreign import (
    ACK,
    GREETING,
    INFO,
    chunk,
    client_of,
    data_chunk,
    error_chunk,
    export,
    hole_chunk,
    option_reply,
    simple_reply,
    status_chunk,
)

PLACE = 4096


def test_the_size_and_the_flags_of_the_export_are_known() -> None:
    with client_of(export(123 << 40, 0b101)) as (client, _):
        assert (client.size_bytes, client.flags) == (123 << 40, 0b101)


def test_what_is_asked_is_what_the_protocol_says() -> None:
    with client_of(export(flags=0b1110_0101), data_chunk(PLACE, b"x" * 512, done=True)) as (client, server):
        client.read_into(PLACE, memoryview(bytearray(512)))
        client.disconnect()
        said = b"".join(iter(lambda: server.recv(1 << 16), b""))
    assert said == (
        struct.pack(">I", 3)
        + b"IHAVEOPT" + struct.pack(">II", 8, 0)
        + b"IHAVEOPT" + struct.pack(">II", 10, 27) + struct.pack(">III", 0, 1, 15) + b"base:allocation"
        + b"IHAVEOPT" + struct.pack(">IIIH", 7, 6, 0, 0)
        + struct.pack(">IHHQQI", 0x25609513, 4, 0, 1, PLACE, 512)
        + struct.pack(">IHHQQI", 0x25609513, 0, 2, 2, 0, 0)
    )  # fmt: skip


@given(pieces=st.lists(st.tuples(st.integers(1, 5000), st.booleans()), min_size=1, max_size=12), ends=st.booleans())
@settings(max_examples=60, deadline=None)
def test_data_and_holes_in_order_fill_the_buffer(pieces: list[tuple[int, bool]], ends: bool) -> None:
    said, expected = [], b""
    for number, (length, is_hole) in enumerate(pieces):
        done = number == len(pieces) - 1 and not ends
        at, data = PLACE + len(expected), bytes(length) if is_hole else bytes([number + 1]) * length
        said.append(hole_chunk(at, length, done=done) if is_hole else data_chunk(at, data, done=done))
        expected += data
    with client_of(export(), *said, chunk(0, done=True) if ends else b"") as (client, _):
        buffer = bytearray(b"\xaa" * len(expected))
        client.read_into(PLACE, memoryview(buffer))
    assert buffer == expected


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(data_chunk(PLACE, b"x" * 511, done=True), id="too little"),
        pytest.param(data_chunk(PLACE, b"x" * 513, done=True), id="too much"),
        pytest.param(data_chunk(PLACE, b"x" * 256) + data_chunk(PLACE, b"x" * 256, done=True), id="the same twice"),
        pytest.param(data_chunk(PLACE + 256, b"x" * 256) + data_chunk(PLACE, b"x" * 256, done=True), id="out of order"),
        pytest.param(data_chunk(0, b"x" * 512, done=True), id="another place"),
        pytest.param(data_chunk(PLACE, b"x" * 512, done=True, cookie=2), id="another request"),
        pytest.param(data_chunk(PLACE, b"", done=True), id="empty data"),
        pytest.param(chunk(1, done=True, length=0xFFFFFFFF), id="4 GiB of data"),
        pytest.param(chunk(1, b"1234", done=True), id="no offset"),
        pytest.param(hole_chunk(PLACE, 513, done=True), id="a hole beyond the end"),
        pytest.param(hole_chunk(PLACE, 0, done=True), id="an empty hole"),
        pytest.param(hole_chunk(PLACE, 0xFFFFFFFF, done=True), id="a hole of 4 GiB"),
        pytest.param(chunk(2, b"12345678", done=True), id="a short hole"),
        pytest.param(chunk(0, done=False), id="nothing, but not the end"),
        pytest.param(chunk(0, done=True), id="nothing"),
        pytest.param(chunk(0, b"x", done=True), id="nothing, with something"),
        pytest.param(chunk(3, b"x" * 512, done=True), id="an unknown chunk"),
        pytest.param(status_chunk((512, 0)), id="a block status"),
        pytest.param(simple_reply() + b"x" * 512, id="a simple reply"),
        pytest.param(b"\0" * 600, id="zeros"),
        pytest.param(error_chunk(5, done=False) * 1000, id="errors without end"),
        pytest.param(chunk(0x8001, b"12345", done=True), id="a short error"),
        pytest.param(chunk(0x8001, done=True, length=0xFFFFFFFF), id="an error of 4 GiB"),
        pytest.param(b"", id="it hangs up"),
        pytest.param(data_chunk(PLACE, b"x" * 512, done=True)[:-1], id="it hangs up a byte too early"),
    ],
)
def test_a_read_that_is_answered_wrongly_breaks_the_connection(answer: bytes) -> None:
    with client_of(export(), answer) as (client, _), pytest.raises(BrokenConnection):
        client.read_into(PLACE, memoryview(bytearray(512)))


@pytest.mark.parametrize("before", [b"", data_chunk(PLACE, b"x" * 100)])
def test_an_error_is_told_and_the_connection_goes_on(before: bytes) -> None:
    after = data_chunk(0, b"good", done=True, cookie=2)
    with client_of(export(), before, error_chunk(5, b"the disk is bad"), after) as (client, _):
        with pytest.raises(ServerRefusal, match="Input/output error"):
            client.read_into(PLACE, memoryview(bytearray(512)))
        buffer = bytearray(4)
        client.read_into(0, memoryview(buffer))
        assert buffer == b"good"


@given(
    noise=st.binary(max_size=300), start=st.sampled_from([b"", bytes.fromhex("668e33ef"), bytes.fromhex("67446698")])
)
@settings(max_examples=150, deadline=None)
def test_noise_breaks_the_connection_and_nothing_else(noise: bytes, start: bytes) -> None:
    for ask in ("read", "status", "write", "flush"):
        with client_of(export(), start + noise) as (client, _), pytest.raises((BrokenConnection, ServerRefusal)):
            _ask(client, ask)


def _ask(client: Client, what: str) -> None:
    match what:
        case "read":
            client.read_into(0, memoryview(bytearray(512)))
        case "status":
            client.block_status(0, 512)
        case "write":
            client.write(0, b"x" * 512)
        case _:
            client.flush()
    raise ServerRefusal(0, "noise that is an answer")


# Block status


@given(st.lists(st.tuples(st.integers(1, 1 << 20), st.sampled_from([0, 1, 2, 3])), min_size=1, max_size=50))
@settings(max_examples=60, deadline=None)
def test_a_hole_is_what_reads_as_zeros(extents: list[tuple[int, int]]) -> None:
    asked = sum(length for length, _ in extents)
    with client_of(export(), status_chunk(*extents)) as (client, _):
        assert client.block_status(0, asked) == [(length, not state & 2) for length, state in extents]


def test_the_last_extent_is_cut_at_the_end_of_the_question() -> None:
    with client_of(export(), status_chunk((512, 3), (0xFFFFFFFF, 0))) as (client, _):
        assert client.block_status(0, 4096) == [(512, False), (3584, True)]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(status_chunk(), id="no extent"),
        pytest.param(status_chunk((0, 0)), id="an empty extent"),
        pytest.param(status_chunk((4096, 0), (1, 0)), id="more than was asked"),
        pytest.param(status_chunk((4096, 0), context=1), id="another context"),
        pytest.param(chunk(5, b"1234" + b"x" * 9, done=True), id="half an extent"),
        pytest.param(chunk(5, done=True, length=0xFFFFFFF4), id="4 GiB of extents"),
        pytest.param(chunk(0, done=True), id="nothing"),
        pytest.param(chunk(0) * 1000, id="nothing without end"),
        pytest.param(chunk(5, status_chunk((1, 0))[20:]) + status_chunk((1, 0)), id="twice"),
        pytest.param(data_chunk(0, b"x", done=True), id="data"),
    ],
)
def test_a_block_status_that_is_wrong_breaks_the_connection(answer: bytes) -> None:
    with client_of(export(), answer) as (client, _), pytest.raises(BrokenConnection):
        client.block_status(0, 4096)


def test_without_a_context_all_is_data() -> None:
    without = (
        GREETING
        + option_reply(8, ACK)
        + option_reply(10, ACK)
        + option_reply(7, INFO, struct.pack(">HQH", 0, 5, 1))
        + option_reply(7, ACK)
    )
    with client_of(without) as (client, _):
        assert client.block_status(0, 4096) == [(4096, True)]


# Writing


@pytest.mark.parametrize("answer", [simple_reply(), chunk(0, done=True)])
def test_writes_are_acknowledged_simply_or_in_structure(answer: bytes) -> None:
    with client_of(export(), answer) as (client, server):
        client.write(PLACE, b"content")
        client.close()
        assert b"".join(iter(lambda: server.recv(1 << 16), b"")).endswith(
            struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, PLACE, 7) + b"content"
        )


@pytest.mark.parametrize(("answer", "said"), [(simple_reply(28), "No space"), (error_chunk(1), "not permitted")])
def test_a_write_that_fails_says_why(answer: bytes, said: str) -> None:
    with client_of(export(), answer) as (client, _), pytest.raises(ServerRefusal, match=said):
        client.write(PLACE, b"content")


@pytest.mark.parametrize("answer", [simple_reply(cookie=9), data_chunk(0, b"x", done=True), chunk(0)])
def test_a_write_that_is_answered_wrongly_breaks_the_connection(answer: bytes) -> None:
    with client_of(export(), answer) as (client, _), pytest.raises(BrokenConnection):
        client.write_zeroes(0, 4096)


# The handshake

_NEGOTIATED = GREETING + option_reply(8, ACK) + option_reply(10, ACK)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="another protocol"),
        pytest.param(GREETING[:16] + b"\0\0", id="old style"),
        pytest.param(GREETING[:8] + bytes.fromhex("0000420281861253") + bytes(200), id="older style"),
        pytest.param(GREETING + b"\0" * 20, id="no magic"),
        pytest.param(GREETING + option_reply(7, ACK), id="the reply to another option"),
        pytest.param(GREETING + bytes.fromhex("0003e889045565a9") + struct.pack(">III", 8, 1, 1 << 31), id="2 GiB"),
        pytest.param(_NEGOTIATED + option_reply(7, INFO, b"\0\3") * 1000, id="informations without end"),
        pytest.param(_NEGOTIATED + option_reply(7, ACK), id="no size"),
        pytest.param(_NEGOTIATED + option_reply(7, INFO, b"\0\0\0") + option_reply(7, ACK), id="half a size"),
        pytest.param(export(1 << 63), id="8 EiB"),
        pytest.param(
            _NEGOTIATED + option_reply(7, INFO, struct.pack(">HIII", 3, 512, 4096, 1 << 25)) + option_reply(7, ACK),
            id="only whole sectors",
        ),
    ],
)
def test_a_handshake_that_is_wrong_breaks_the_connection(said: bytes) -> None:
    with pytest.raises(BrokenConnection), client_of(said):
        pass


@pytest.mark.parametrize("option", [8, 10, 7])
def test_an_option_that_is_refused_is_told_with_what_the_server_says(option: int) -> None:
    said = GREETING
    for other in (8, 10, 7):
        if other == option:
            said += option_reply(other, 0x80000006, b"no export of this name")
            break
        said += option_reply(other, ACK)
    with pytest.raises(ServerRefusal, match=f"option {option} is refused: no export of this name"), client_of(said):
        pass


def test_another_context_than_the_one_that_was_asked_for_is_not_taken_for_it() -> None:
    said = export().replace(b"base:allocation", b"qemu:allocation")
    with client_of(said) as (client, _):
        assert client.block_status(0, 10) == [(10, True)]


# Silence


def test_a_server_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_S", 0.2)
    monkeypatch.setattr(module, "REQUEST_S", 0.2)
    started = time.monotonic()
    with pytest.raises(BrokenConnection, match="no answer within"), client_of(GREETING, stays=True):
        pass
    half = chunk(1, b"\0" * 8, length=520)
    with (
        client_of(export(), half, stays=True) as (client, _),
        pytest.raises(BrokenConnection, match="no answer within"),
    ):
        client.read_into(0, memoryview(bytearray(512)))
    assert time.monotonic() - started < 5 * PATIENCE


def test_a_server_that_says_a_byte_at_a_time_is_given_up_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_S", 0.4)
    with client_of(export(), chunk(1, b"\0" * 8, length=8 + 5000), stays=True) as (client, server):
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.02):
                server.send(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            started = time.monotonic()
            with pytest.raises(BrokenConnection, match="no answer within"):
                client.read_into(0, memoryview(bytearray(5000)))
            assert time.monotonic() - started < 5 * PATIENCE
        finally:
            stop.set()
            thread.join()


def test_a_server_that_does_not_take_what_is_written_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_S", 0.3)
    with client_of(export(), stays=True) as (client, _), pytest.raises(BrokenConnection, match="no answer within"):
        client.write(0, bytes(4 << 20))


def test_large_answers_come_whole_whatever_the_pieces() -> None:
    ours, theirs = socket.socketpair()
    content = bytes(range(256)) * (12 << 10)

    def serve() -> None:
        theirs.sendall(export())
        theirs.sendall(data_chunk(0, content, done=True))

    thread = threading.Thread(target=serve)
    thread.start()
    client = Client(Connection(ours))
    buffer = bytearray(len(content))
    client.read_into(0, memoryview(buffer))
    thread.join()
    client.close()
    theirs.close()
    assert buffer == content
