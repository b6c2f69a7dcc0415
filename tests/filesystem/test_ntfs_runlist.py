"""Mapping pairs: literal lists, and the decoder of many against the decoder of one."""

from __future__ import annotations

import random

import numpy as np
import pytest

from sqlimage.filesystem.contract import HOLE
from sqlimage.filesystem.ntfs.runlist import READ_AHEAD_BYTES, MappingPairsError, decode, decode_many

VOLUME = 1 << 20
MALFORMED = {
    "no end": (b"\x11\x01\x05", 1),
    "nothing at all": (b"", 0),
    "a length of no bytes": (b"\x10\x05\x00", 1),
    "a length of nine bytes": (b"\x19" + b"\x01" + bytes(8) + b"\x05\x00", 1),
    "a place of nine bytes": (b"\x91\x01\x05" + bytes(8) + b"\x00", 1),
    "a pair beyond the end": (b"\x41\x01\x05\x00", 1),
    "a length of zero": (b"\x11\x00\x05\x00", 0),
    "a negative length": (b"\x11\xff\x05\x00", 1),
    "a length beyond 63 bits": (b"\x18" + b"\xff" * 7 + b"\x7f\x05\x00", 1),
    "a run before the volume": (b"\x11\x01\xff\x00", 1),
    "a run behind the volume": (b"\x31\x01\x00\x00\x10\x00", 1),
    "a run across the end": (b"\x31\x02\xff\xff\x0f\x00", 2),
    "a place that overflows": (b"\x11\x01\x05\x81\x01\xff\xff\xff\xff\xff\xff\xff\x7f\x00", 2),
    "too few clusters": (b"\x11\x01\x05\x00", 2),
    "too many clusters": (b"\x11\x03\x05\x00", 2),
    "a hole beyond HighestVcn": (b"\x11\x01\x05\x01\x7f\x00", 2),
}


def test_places_are_differences_to_the_last_run_and_holes_have_none() -> None:
    pairs = bytes.fromhex("21 18 34 56  01 10  11 08 f0  31 04 01 00 01 00")
    assert decode(pairs, 0x34, VOLUME) == [(0x5634, 0x18), (HOLE, 0x10), (0x5624, 8), (0x15625, 4)]


def test_no_run_is_an_empty_list() -> None:
    assert decode(b"\0", 0, VOLUME) == []


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_list_is_refused(name: str) -> None:
    pairs, clusters = MALFORMED[name]
    with pytest.raises(MappingPairsError):
        decode(pairs, clusters, VOLUME)


@pytest.mark.parametrize("beside", [0, 100])
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_list_among_many_is_refused_by_its_number(name: str, beside: int) -> None:
    pairs, clusters = MALFORMED[name]
    good = (b"\x11\x01\x05\x11\x02\x10\x01\x01\x00", 4)
    with pytest.raises(MappingPairsError) as caught:
        decoded_together([good] * beside + [(pairs, clusters)] + [good] * beside)
    assert caught.value.index == beside


@pytest.mark.parametrize("count", [0, 1, 20, 500])
def test_many_lists_together_give_what_each_gives_alone(count: int) -> None:
    chance = random.Random(count)
    lists = [random_list(chance) for _ in range(count)]
    assert decoded_together(lists) == [decode(pairs, clusters, VOLUME) for pairs, clusters in lists]


def decoded_together(lists: list[tuple[bytes, int]]) -> list[list[tuple[int, int]]]:
    ends = np.cumsum([0, *(len(pairs) for pairs, _ in lists)])
    data = b"".join(pairs for pairs, _ in lists) + bytes(READ_AHEAD_BYTES)
    clusters = np.array([clusters for _, clusters in lists], dtype=np.int64)
    count, lcn, length = decode_many(np.frombuffer(data, dtype=np.uint8), ends[:-1], ends[1:], clusters, VOLUME)
    runs = iter(zip(lcn.tolist(), length.tolist(), strict=True))
    result = [[next(runs) for _ in range(n)] for n in count.tolist()]
    assert next(runs, None) is None
    return result


def random_list(chance: random.Random) -> tuple[bytes, int]:
    """Up to 60 runs, as some NTFS driver might have written them: numbers of more bytes than needed are legal."""
    out, last, vcn = bytearray(), 0, 0
    for _ in range(chance.choice([0, 1, 1, 2, 3, 60])):
        length = chance.randint(1, 1 << chance.randint(0, 16))
        lcn = chance.randrange(VOLUME - length)
        length_bytes = length.to_bytes(chance.randint(3, 8), "little")
        lcn_bytes = b"" if chance.random() < 0.2 else (lcn - last).to_bytes(chance.randint(3, 8), "little", signed=True)
        last = lcn if lcn_bytes else last
        vcn += length
        out += bytes([len(lcn_bytes) << 4 | len(length_bytes)]) + length_bytes + lcn_bytes
    return bytes(out) + bytes(chance.randint(1, 3)), vcn
