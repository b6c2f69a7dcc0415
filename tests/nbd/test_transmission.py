"""Which requests are allowed, and how answers look on the wire."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlimage.device import DeviceExtent
from sqlimage.nbd.transmission import (
    Session,
    block_status,
    check_request,
    error_reply,
    none_chunk,
    put_data_chunk,
    put_hole_chunk,
    read_pieces,
    simple_reply,
)
from tests.nbd.client import (
    BLOCK_STATUS,
    CACHE,
    DF,
    DISC,
    EINVAL,
    ENOSPC,
    EPERM,
    FAST_ZERO,
    FLUSH,
    FUA,
    NO_HOLE,
    READ,
    REQ_ONE,
    TRIM,
    WRITE,
    WRITE_ZEROES,
)

SIZE = 1 << 30
RICH = Session(0, SIZE, True, True, True)
PLAIN = Session(0, SIZE, True, False, False)
FIXED = Session(0, SIZE, False, True, True)
TOP = (1 << 64) - 1
LONG = (1 << 32) - 1
COOKIE = 0x0102030405060708


@pytest.mark.parametrize(
    ("session", "flags", "command", "offset", "length", "error"),
    [
        (PLAIN, 0, READ, 0, 33_554_432, 0),
        (PLAIN, 0, READ, 0, 33_554_433, EINVAL),
        (PLAIN, 0, READ, 0, LONG, EINVAL),
        (PLAIN, 0, READ, SIZE - 1, 1, 0),
        (PLAIN, 0, READ, SIZE, 0, 0),
        (PLAIN, 0, READ, SIZE, 1, EINVAL),
        (PLAIN, 0, READ, SIZE + 1, 0, EINVAL),
        (PLAIN, 0, READ, TOP, 1, EINVAL),
        (PLAIN, FUA, READ, TOP, LONG, EINVAL),
        (PLAIN, FUA, READ, 0, 1, 0),
        (PLAIN, DF, READ, 0, 1, EINVAL),
        (RICH, DF, READ, 0, 1, 0),
        (RICH, DF, READ, 0, LONG, EINVAL),
        (RICH, NO_HOLE, READ, 0, 1, EINVAL),
        (RICH, 1 << 15, READ, 0, 1, EINVAL),
        (PLAIN, FUA, WRITE, 0, 33_554_432, 0),
        (PLAIN, 0, WRITE, 0, 33_554_433, EINVAL),
        (PLAIN, 0, WRITE, SIZE - 1, 2, ENOSPC),
        (PLAIN, 0, WRITE, TOP, 1, EINVAL),
        (PLAIN, 0, WRITE, TOP, 0, ENOSPC),
        (RICH, DF, WRITE, 0, 1, EINVAL),
        (FIXED, 0, WRITE, 0, 1, EPERM),
        (FIXED, 0, TRIM, 0, 1, EPERM),
        (FIXED, FUA, WRITE_ZEROES, 0, 1, EPERM),
        (FIXED, 0, FLUSH, 0, 0, 0),
        (PLAIN, FUA, TRIM, 0, SIZE, 0),
        (PLAIN, 0, TRIM, 1, SIZE, EINVAL),
        (PLAIN, FUA | NO_HOLE, WRITE_ZEROES, 0, SIZE, 0),
        (PLAIN, FAST_ZERO, WRITE_ZEROES, 0, 1, EINVAL),
        (PLAIN, 0, WRITE_ZEROES, 1, SIZE, ENOSPC),
        (PLAIN, 0, WRITE_ZEROES, TOP, LONG, EINVAL),
        (FIXED, 0, CACHE, 0, SIZE, 0),
        (FIXED, 0, CACHE, 1, SIZE, EINVAL),
        (FIXED, REQ_ONE, BLOCK_STATUS, 0, SIZE, 0),
        (FIXED, 0, BLOCK_STATUS, 0, 0, EINVAL),
        (FIXED, 0, BLOCK_STATUS, SIZE, 1, EINVAL),
        (PLAIN, 0, BLOCK_STATUS, 0, 1, EINVAL),
        (PLAIN, 0, DISC, 0, 0, 0),
        (RICH, 0, 8, 0, 0, EINVAL),
        (RICH, 0, 0xFFFF, 0, 0, EINVAL),
    ],
)
def test_requests_are_allowed_or_refused(
    session: Session, flags: int, command: int, offset: int, length: int, error: int
) -> None:
    assert check_request(session, flags, command, offset, length) == error


@given(
    st.sampled_from([RICH, PLAIN, FIXED]),
    st.integers(0, 31),
    st.integers(0, 9),
    st.integers(0, TOP) | st.integers(0, SIZE),
    st.integers(0, LONG) | st.integers(0, SIZE),
)
def test_nothing_allowed_ever_leaves_the_device(
    session: Session, flags: int, command: int, offset: int, length: int
) -> None:
    if check_request(session, flags, command, offset, length) == 0 and command not in (FLUSH, DISC):
        assert offset + length <= SIZE
        assert session.writable or command in (READ, CACHE, BLOCK_STATUS)


def test_replies_are_these_bytes() -> None:
    assert simple_reply(COOKIE) == bytes.fromhex("67446698 00000000 0102030405060708")
    assert error_reply(PLAIN, READ, COOKIE, 5) == bytes.fromhex("67446698 00000005 0102030405060708")
    assert error_reply(RICH, WRITE, COOKIE, 28) == bytes.fromhex("67446698 0000001c 0102030405060708")
    head = "668e33ef 0001 {} 0102030405060708 {}"
    error = bytes.fromhex(head.format("8001", "00000006") + "00000005 0000")
    assert error_reply(RICH, READ, COOKIE, 5) == error_reply(RICH, BLOCK_STATUS, COOKIE, 5) == error
    assert none_chunk(COOKIE) == bytes.fromhex(head.format("0000", "00000000"))
    target = memoryview(bytearray(64))
    end = put_data_chunk(target, 0, COOKIE, 0x1122334455667788, 0x100, True)
    assert target[:end] == bytes.fromhex(head.format("0001", "00000108") + "1122334455667788")
    end = put_hole_chunk(target, 2, COOKIE, 0x1122334455667788, 0x1000, False)
    hole = head.replace("ef 0001", "ef 0000").format("0002", "0000000c") + "1122334455667788 00001000"
    assert target[2:end] == bytes.fromhex(hole)


def extents(*lengths: int, at: int = 0) -> Iterator[DeviceExtent]:
    """Extents of these lengths; negative ones are holes."""
    for length in lengths:
        yield DeviceExtent(at, abs(length), is_data=length > 0)
        at += abs(length)


def test_block_status_is_these_bytes() -> None:
    head = bytes.fromhex("668e33ef 0001 0005 0102030405060708")
    several = bytes.fromhex("0000001c 00000001 00001000 00000000 00002000 00000003 00000200 00000000")
    assert block_status(COOKIE, extents(0x800, 0x800, -0x1000, -0x1000, 0x200), one=False) == head + several
    one = bytes.fromhex("0000000c 00000001 00001000 00000000")
    assert block_status(COOKIE, extents(0x800, 0x800, -0x1000), one=True) == head + one


def test_block_status_is_bounded_however_broken_up_a_device_is() -> None:
    taken = []

    def endless() -> Iterator[DeviceExtent]:
        for number in range(1 << 20):
            taken.append(number)
            yield DeviceExtent(number, 1, is_data=bool(number & 1))

    assert len(block_status(1, endless(), one=False)) == 20 + 4 + 8 * 4096
    assert len(taken) < 5000
    taken.clear()
    all_alike = (DeviceExtent(number, 1, is_data=True) for number in range(1 << 20) if not taken.append(number))  # type: ignore[func-returns-value]
    assert len(block_status(1, all_alike, one=False)) == 20 + 4 + 8
    assert len(taken) < 70_000


@given(st.lists(st.integers(-20_000, 20_000).filter(bool), max_size=60), st.integers(0, 1 << 40))
def test_pieces_of_a_read_cover_it_and_call_no_data_a_hole(lengths: list[int], offset: int) -> None:
    total = sum(map(abs, lengths))
    data = {extent.offset_bytes: extent for extent in extents(*lengths, at=offset) if extent.is_data}
    at = offset
    pieces = read_pieces(extents(*lengths, at=offset), offset, total)
    for place, length, is_data in pieces:
        assert place == at
        at += length
        assert is_data or (length >= 4096 and not any(place <= start < at for start in data))
    assert at == offset + total
    # what the heads take is never more than what the holes spare
    assert sum(28 + length if is_data else 32 for _, length, is_data in pieces) <= total + 64
