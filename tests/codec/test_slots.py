"""Key slots: each opens with its own secret and nothing else, and asks for no more work than is allowed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sqlimage.codec import slots
from sqlimage.codec.keyfiles import read_recipient
from sqlimage.codec.keyring import Keyring
from sqlimage.codec.slots import Cost, KeySlot, SlotProblem
from sqlimage.codec.vault import Vault
from sqlimage.codec.ways import KeyFile, Passphrase, Recipient, Way, slot_for
from sqlimage.errors import FormatError, LockedError, UsageError

VAULT = Vault(bytes(range(32)))
CHEAP = Cost(19 << 10, 1, 1)
IDENTITY = X25519PrivateKey.from_private_bytes(b"i" * 32)
WAYS: list[Way] = [Passphrase(b"correct horse"), KeyFile(b"k" * 40), Recipient(IDENTITY.public_key())]


def ring(*given: Passphrase | KeyFile, identity: X25519PrivateKey | None = None) -> Keyring:
    made = Keyring()
    for way in given:
        made.add(way)
    if identity:
        made.add_identity(identity)
    return made


def opened(keyring: Keyring, *known: KeySlot) -> Vault:
    return keyring.unlock("x.sqlimage", VAULT.key_id, known)


def slot(way: Way, number: int = 1) -> KeySlot:
    return slot_for(way, number, VAULT, CHEAP)


def test_each_way_opens_its_slot() -> None:
    for way in WAYS:
        keyring = ring(identity=IDENTITY) if isinstance(way, Recipient) else ring(way)
        assert opened(keyring, *(slot(one, n) for n, one in enumerate(WAYS, 1))).data_key == VAULT.data_key


def test_what_does_not_fit_is_refused() -> None:
    wrong = ring(Passphrase(b"correct horsE"), KeyFile(b"k" * 41), identity=X25519PrivateKey.generate())
    for way in WAYS:
        with pytest.raises(LockedError, match="none of the keys that were given opens it"):
            opened(wrong, slot(way))
    with pytest.raises(LockedError, match="needs a passphrase or a key file or an X25519 identity"):
        opened(ring(), *map(slot, WAYS))


@given(st.sampled_from(range(len(WAYS))), st.data())
def test_any_flipped_bit_of_a_slot_is_refused(n: int, data: st.DataObject) -> None:
    way = WAYS[n]
    keyring = ring(identity=IDENTITY) if isinstance(way, Recipient) else ring(way)
    good = SLOTS[n]
    text, wrapped = bytearray(good.parameters.encode()), bytearray(good.wrapped_key)
    part = data.draw(st.sampled_from([text, wrapped]))
    bit = data.draw(st.integers(0, len(part) * 8 - 1))
    part[bit // 8] ^= 1 << bit % 8
    flipped = replace(good, parameters=text.decode("utf-8", "replace"), wrapped_key=bytes(wrapped))
    with pytest.raises((LockedError, FormatError)):
        opened(keyring, flipped)


SLOTS = [slot(way) for way in WAYS]


def test_a_slot_of_another_kind_or_key_is_refused() -> None:
    good = slot(WAYS[1])
    with pytest.raises(FormatError, match="is of the kind 'magic'"):
        opened(ring(KeyFile(b"k" * 40)), replace(good, kind="magic"))
    with pytest.raises(LockedError):
        ring(KeyFile(b"k" * 40)).unlock("x.sqlimage", Vault(bytes(32)).key_id, [good])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_kib", 1 << 30),
        ("memory_kib", 512),
        ("memory_kib", -1),
        ("memory_kib", 1e9),
        ("memory_kib", True),
        ("passes", 0),
        ("passes", 1 << 40),
        ("passes", 64),
        ("lanes", 0),
        ("lanes", 17),
        ("salt", "00"),
        ("salt", 7),
        ("kdf", "scrypt"),
    ],
)
def test_absurd_costs_are_refused_before_anything_is_stretched(name: str, value: object) -> None:
    good = slot_for(WAYS[0], 1, VAULT, Cost(64 << 10, 1, 1))
    told = {**json.loads(good.parameters), name: value}
    with pytest.raises(FormatError, match="key slot 1"):
        opened(ring(Passphrase(b"correct horse")), replace(good, parameters=json.dumps(told)))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 900, "x" * 5000])
def test_parameters_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(SlotProblem):
        slots.parameters(replace(slot(WAYS[0]), parameters=text))


def test_very_many_slots_together_are_refused() -> None:
    dear = slot_for(WAYS[0], 1, VAULT, Cost(64 << 10, 1, 1))
    told = json.dumps({**json.loads(dear.parameters), "memory_kib": slots.MOST_MEMORY_KIB, "passes": 4})
    many = [replace(dear, id=n, parameters=told) for n in range(5)]
    with pytest.raises(FormatError, match="ask for"):
        opened(ring(Passphrase(b"x")), *many)
    with pytest.raises(FormatError, match="33 key slots"):
        opened(ring(KeyFile(b"x" * 16)), *(replace(slot(WAYS[1]), id=n) for n in range(33)))


def test_a_point_of_small_order_is_no_key() -> None:
    good = slot(WAYS[2])
    told = {**json.loads(good.parameters), "ephemeral": "00" * 32}
    with pytest.raises(FormatError, match="an ephemeral key that is none"):
        opened(ring(identity=IDENTITY), replace(good, parameters=json.dumps(told)))


def test_nobody_is_asked_twice_for_a_passphrase_nor_is_one_stretched_twice() -> None:
    asked: list[str] = []

    def ask(path: str) -> bytes:
        asked.append(path)
        return b"correct horse"

    keyring = ring()
    keyring.ask_with(ask)
    assert opened(keyring, slot(WAYS[0])) is opened(keyring, slot(WAYS[0]))
    assert asked == ["x.sqlimage"]


def test_secrets_are_not_shown() -> None:
    assert "correct" not in repr(WAYS[0]) and "kkkk" not in repr(WAYS[1])


def test_a_calibrated_cost_is_one_that_readers_accept() -> None:
    cost = slots.calibrated()
    assert cost.passes >= 3 and cost.memory_kib * cost.passes <= slots.MOST_COST_KIB


@pytest.mark.parametrize("point", ["00" * 32, "01" + "00" * 31, "ec" + "ff" * 30 + "7f"])
def test_a_recipient_with_whom_nothing_secret_is_agreed_on_is_refused(point: str) -> None:
    with pytest.raises(UsageError, match="is no public key that anybody has"):
        read_recipient(point)
