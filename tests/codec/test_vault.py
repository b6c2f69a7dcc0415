"""The vault: what is encrypted comes back for its place and nobody else's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlimage.codec.chunk import ChunkFlag, decode, digest, encode, name_of
from sqlimage.codec.vault import OVERHEAD_BYTES, NotAuthentic, Vault, new_data_key
from sqlimage.errors import DamagedError

VAULT, OTHER = Vault(bytes(range(32))), Vault(bytes(32))
CONTENTS = st.binary(min_size=1, max_size=3000)


@given(CONTENTS, st.sampled_from([None, 1, 3]))
def test_an_encrypted_chunk_is_decoded_to_what_it_was(content: bytes, level: int | None) -> None:
    name = name_of(content, VAULT)
    flags, stored = encode(content, level, VAULT, name)
    assert flags & ChunkFlag.ENCRYPTED
    assert len(stored) <= len(content) + OVERHEAD_BYTES
    assert decode(stored, flags, len(content), name, vault=VAULT) == content


@given(CONTENTS, st.data())
def test_any_flipped_bit_is_refused(content: bytes, data: st.DataObject) -> None:
    name = name_of(content, VAULT)
    flags, stored = encode(content, 3, VAULT, name)
    bit = data.draw(st.integers(0, len(stored) * 8 - 1))
    flipped = bytearray(stored)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DamagedError, match="is not what was encrypted under its digest"):
        decode(bytes(flipped), flags, len(content), name, vault=VAULT)


@given(CONTENTS, CONTENTS)
def test_a_chunk_does_not_pass_for_another_one(one: bytes, other: bytes) -> None:
    flags, stored = encode(one, 3, VAULT, name_of(one, VAULT))
    if one != other:
        with pytest.raises(DamagedError):
            decode(stored, flags, len(one), name_of(other, VAULT), vault=VAULT)
    for length in (len(one) + 1, len(one) - 1):
        with pytest.raises(DamagedError):
            decode(stored, flags, length, name_of(one, VAULT), vault=VAULT)
    with pytest.raises(DamagedError):
        decode(stored, flags ^ ChunkFlag.ZSTD, len(one), name_of(one, VAULT), vault=VAULT)
    with pytest.raises(DamagedError):
        decode(stored, flags, len(one), name_of(one, VAULT), vault=OTHER)
    with pytest.raises(DamagedError, match="in an image without a key"):
        decode(stored, flags, len(one), name_of(one, VAULT))


@given(CONTENTS, st.integers(0, 60))
def test_a_truncated_chunk_is_refused(content: bytes, kept: int) -> None:
    name = name_of(content, VAULT)
    flags, stored = encode(content, None, VAULT, name)
    with pytest.raises(DamagedError):
        decode(stored[: min(kept, len(stored) - 1)], flags, len(content), name, vault=VAULT)


def test_the_same_content_is_never_encrypted_the_same_way_twice() -> None:
    name = name_of(b"content", VAULT)
    assert len({encode(b"content", None, VAULT, name)[1] for _ in range(1000)}) == 1000
    assert len({encode(b"content", None, VAULT, name)[1][:24] for _ in range(1000)}) == 1000


def test_the_name_of_a_content_tells_nobody_else_what_it_is() -> None:
    assert name_of(b"content", VAULT) == name_of(b"content", VAULT)
    assert name_of(b"content", VAULT) not in (digest(b"content"), name_of(b"content", OTHER))


@given(st.binary(max_size=100), st.binary(max_size=20), st.binary(max_size=20))
def test_a_sealed_part_is_bound_to_its_place(content: bytes, place: bytes, other: bytes) -> None:
    sealed = VAULT.encrypt_stream(content, place)
    assert VAULT.decrypt_stream(sealed, place) == content
    if place != other:
        with pytest.raises(NotAuthentic):
            VAULT.decrypt_stream(sealed, other)
    with pytest.raises(NotAuthentic):
        OTHER.decrypt_stream(sealed, place)


def test_a_key_is_told_by_its_id_and_never_shown() -> None:
    key = new_data_key()
    vault = Vault(key)
    assert vault.key_id == Vault(key).key_id != Vault(new_data_key()).key_id
    assert key.hex() not in repr(vault) and vault.key_id not in key.hex()
    with pytest.raises(ValueError, match="a data key of 31 bytes"):
        Vault(bytes(31))


def test_the_name_of_a_key_tells_whether_all_of_an_image_is_encrypted_with_it() -> None:
    key = new_data_key()
    assert Vault(key).key_id != Vault(key, is_whole=True).key_id
