"""LZNT1: literal chunks, and what a malformed one must not do."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from sqlimage.filesystem.ntfs.lznt1 import Lznt1Error, decompress

COMPRESSED_TUNE = bytes.fromhex(
    "38b08846232000204720410010a24701a045204400084501507900c045200524"
    "138805b4024a44ef0358028c091601484500be009e000401189000"
)
"""After the LZNT1 example of [MS-XCA]."""
TUNE = (
    b"F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E F# D E F# G F# D E F# G F# E D E A F# "
    b"F# G A A G F# E D D E F# E D D\0"
)


def test_a_tune_is_decompressed() -> None:
    assert decompress(COMPRESSED_TUNE, len(TUNE)) == TUNE


def test_a_run_of_one_byte_is_a_reference_to_itself() -> None:
    chunk = b"\x02a\xfc\x0f"  # a literal, then 4,095 bytes from one byte back
    assert decompress(header(chunk) + chunk, 4096) == b"a" * 4096


def test_a_chunk_stored_as_it_is() -> None:
    data = random.Random(1).randbytes(4096)
    assert decompress(b"\xff\x3f" + data, 4096) == data


def test_what_the_chunks_do_not_give_is_zeros() -> None:
    chunk = b"\x00abc"
    twice = (header(chunk) + chunk) * 2
    assert decompress(twice, 8192) == b"abc".ljust(4096, b"\0") * 2
    assert decompress(b"\0\0", 100) == bytes(100)


def test_no_more_is_given_than_asked_for() -> None:
    chunk = b"\x02a\xfc\x0f"
    assert len(decompress((header(chunk) + chunk) * 1000, 10_000)) == 10_000


@pytest.mark.parametrize(
    "chunk",
    [
        b"\x01\x00\x00",  # nothing to refer to yet
        b"\x02a\x00\x10",  # two bytes back, one is there
        b"\x02a\x00",  # half a reference
        b"\x02a\xfd\x0f",  # one byte more than a chunk holds
        b"\x02a\xfc\x0f\x00bc",  # literals after a full chunk
    ],
    ids=["nothing", "too far", "half", "too long", "too many"],
)
def test_a_malformed_chunk_is_refused(chunk: bytes) -> None:
    with pytest.raises(Lznt1Error):
        decompress(header(chunk) + chunk, 65536)


def test_a_chunk_that_ends_beyond_the_data_is_refused() -> None:
    with pytest.raises(Lznt1Error):
        decompress(b"\x05\xb0\x00ab", 4096)


def test_a_chunk_without_its_signature_is_refused() -> None:
    with pytest.raises(Lznt1Error):
        decompress(b"\x03\x80\x00abc", 4096)


def test_random_bytes_give_no_more_than_asked_for_or_an_error() -> None:
    chance = random.Random(7)
    for _ in range(2000):
        data = bytearray(chance.randbytes(chance.randint(0, 300)))
        data[1:2] = bytes([0xB0 | chance.randint(0, 1)])
        with suppress(Lznt1Error):
            assert len(decompress(bytes(data), 65536)) == 65536


def header(chunk: bytes) -> bytes:
    return (0xB000 | len(chunk) - 1).to_bytes(2, "little")
