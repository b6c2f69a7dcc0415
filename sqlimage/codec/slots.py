"""Key slots: the ways in which a data key is wrapped, so that whoever holds one of several secrets can unlock it.

A passphrase goes through Argon2id (RFC 9106), a key file and an X25519 agreement (RFC 7748) through HKDF-SHA256. Every
byte of a slot is bound to what it wraps.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlimage.codec.vault import KEY_BYTES, OVERHEAD_BYTES, NotAuthentic, decrypt, derived, encrypt

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

PASSPHRASE, KEY_FILE, X25519 = "passphrase", "key-file", "x25519"
KINDS = (PASSPHRASE, KEY_FILE, X25519)

MOST_SLOTS = 32
MOST_MEMORY_KIB = 512 << 10
_LEAST_MEMORY_KIB = 19 << 10
MOST_COST_KIB = 2 << 20
"""Memory (KiB) times passes of one passphrase slot: about two seconds."""
MOST_COST_OF_ALL_KIB = 8 << 20
_MOST_LANES = 16
_MOST_PASSES = 64
_MOST_PARAMETERS = 1000
_SALT_BYTES = 16
_WANTED_SECONDS = 0.7
_USUAL_MEMORY_KIB = 128 << 10
_LANES = 4
_LEAST_PASSES = 3
WRAPPED_BYTES = KEY_BYTES + OVERHEAD_BYTES


class SlotProblem(ValueError):
    """A slot is not of a form that is allowed; the text says which."""


@dataclass(frozen=True, slots=True)
class KeySlot:
    """A row of ``key_slot``."""

    id: int
    kind: str
    parameters: str
    """JSON; bound to the wrapped key byte for byte."""
    wrapped_key: bytes


@dataclass(frozen=True, slots=True)
class Cost:
    """What Argon2id takes: memory in KiB, passes over it, lanes."""

    memory_kib: int
    passes: int
    lanes: int


def calibrated() -> Cost:
    """Passes that take this machine about 0.7 s, within what every reader accepts."""
    least = Cost(_USUAL_MEMORY_KIB, 1, _LANES)
    begin = time.perf_counter()
    _stretched(b"calibration", bytes(_SALT_BYTES), least)
    taken = max(time.perf_counter() - begin, 0.001)
    most = MOST_COST_KIB // _USUAL_MEMORY_KIB // 4  # a slower machine shall open it too
    return Cost(_USUAL_MEMORY_KIB, max(_LEAST_PASSES, min(most, round(_WANTED_SECONDS / taken))), _LANES)


def passphrase_slot(number: int, key_id: str, data_key: bytes, passphrase: bytes, cost: Cost) -> KeySlot:
    salt = os.urandom(_SALT_BYTES)
    told: dict[str, int | str] = {
        "kdf": "argon2id",
        "lanes": cost.lanes,
        "memory_kib": cost.memory_kib,
        "passes": cost.passes,
        "salt": salt.hex(),
    }
    return _wrapped(number, key_id, data_key, PASSPHRASE, told, _stretched(passphrase, salt, cost))


def key_file_slot(number: int, key_id: str, data_key: bytes, content: bytes) -> KeySlot:
    salt = os.urandom(_SALT_BYTES)
    return _wrapped(number, key_id, data_key, KEY_FILE, {"salt": salt.hex()}, derived(content, "key file", salt=salt))


def x25519_slot(number: int, key_id: str, data_key: bytes, recipient: X25519PublicKey) -> KeySlot:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    ephemeral = X25519PrivateKey.generate()
    ours, theirs = ephemeral.public_key().public_bytes_raw(), recipient.public_bytes_raw()
    shared = derived(ephemeral.exchange(recipient), "x25519", salt=ours + theirs)
    return _wrapped(number, key_id, data_key, X25519, {"ephemeral": ours.hex(), "recipient": theirs.hex()}, shared)


@dataclass(frozen=True, slots=True)
class Told:
    """What the parameters of a slot say, checked. Which fields are set depends on its kind."""

    salt: bytes = b""
    cost: Cost | None = None
    ephemeral: bytes = b""
    recipient: bytes = b""


def parameters(slot: KeySlot) -> Told:
    """Read the parameters of a slot. Raises :class:`SlotProblem` where they are not of the form of their kind, or would
    cost more than any writer asks for."""
    if len(slot.wrapped_key) != WRAPPED_BYTES:
        raise SlotProblem(f"wraps {len(slot.wrapped_key)} bytes; a key wrapped has {WRAPPED_BYTES}")
    try:
        told = json.loads(slot.parameters) if len(slot.parameters) <= _MOST_PARAMETERS else None
        if not isinstance(told, dict):
            raise SlotProblem("has parameters that are no JSON object")
        if slot.kind == X25519:
            return Told(ephemeral=_hex(told, "ephemeral", 32), recipient=_hex(told, "recipient", 32))
        if slot.kind == KEY_FILE:
            return Told(salt=_hex(told, "salt", _SALT_BYTES))
        if slot.kind != PASSPHRASE or told.get("kdf") != "argon2id":
            raise SlotProblem(f"is of the kind {slot.kind!r}, which is not known")
        cost = Cost(
            _number(told, "memory_kib", _LEAST_MEMORY_KIB, MOST_MEMORY_KIB),
            _number(told, "passes", 1, _MOST_PASSES),
            _number(told, "lanes", 1, _MOST_LANES),
        )
        if cost.memory_kib * cost.passes > MOST_COST_KIB:
            raise SlotProblem(
                f"asks for {cost.passes} passes over {cost.memory_kib} KiB; allowed are {MOST_COST_KIB} KiB in all"
            )
        return Told(salt=_hex(told, "salt", _SALT_BYTES), cost=cost)
    except (RecursionError, UnicodeError, json.JSONDecodeError):
        raise SlotProblem("has parameters that are no JSON object") from None


def cost_kib(slot: KeySlot) -> int:
    """Memory times passes of what opening a slot takes; 0 for all but passphrases. Raises :class:`SlotProblem`."""
    cost = parameters(slot).cost
    return cost.memory_kib * cost.passes if cost else 0


def open_with_passphrase(slot: KeySlot, key_id: str, passphrase: bytes) -> bytes | None:
    """The data key, or None where it is another passphrase. Raises :class:`SlotProblem`."""
    told = parameters(slot)
    assert told.cost is not None
    return _unwrapped(slot, key_id, _stretched(passphrase, told.salt, told.cost))


def open_with_key_file(slot: KeySlot, key_id: str, content: bytes) -> bytes | None:
    """The data key, or None where it is another file. Raises :class:`SlotProblem`."""
    return _unwrapped(slot, key_id, derived(content, "key file", salt=parameters(slot).salt))


def open_with_identity(slot: KeySlot, key_id: str, identity: X25519PrivateKey) -> bytes | None:
    """The data key, or None where the slot is another recipient's. Raises :class:`SlotProblem`."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    told = parameters(slot)
    if told.recipient != identity.public_key().public_bytes_raw():
        return None
    try:
        shared = identity.exchange(X25519PublicKey.from_public_bytes(told.ephemeral))
    except ValueError:  # a point of small order: what is agreed on would be no secret
        raise SlotProblem("has an ephemeral key that is none") from None
    return _unwrapped(slot, key_id, derived(shared, "x25519", salt=told.ephemeral + told.recipient))


def _wrapped(
    number: int, key_id: str, data_key: bytes, kind: str, told: dict[str, int | str], wrapping_key: bytes
) -> KeySlot:
    text = json.dumps(told, sort_keys=True)
    return KeySlot(number, kind, text, encrypt(wrapping_key, data_key, _place(key_id, kind, text)))


def _unwrapped(slot: KeySlot, key_id: str, wrapping_key: bytes) -> bytes | None:
    try:
        return decrypt(wrapping_key, slot.wrapped_key, _place(key_id, slot.kind, slot.parameters))
    except NotAuthentic:
        return None


def _place(key_id: str, kind: str, text: str) -> bytes:
    return b"sqlimage key slot 1\0" + "\0".join((key_id, kind, text)).encode()


def _number(told: dict[str, object], name: str, least: int, most: int) -> int:
    value = told.get(name)
    if type(value) is not int or not least <= value <= most:
        raise SlotProblem(f"has {name} {str(value)[:40]}; allowed are {least} to {most}")
    return value


def _hex(told: dict[str, object], name: str, length: int) -> bytes:
    value = told.get(name)
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{2 * length}}}", value):
        raise SlotProblem(f"has a {name} that is not {length} bytes in hexadecimal")
    return bytes.fromhex(value)


def _stretched(passphrase: bytes, salt: bytes, cost: Cost) -> bytes:
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    return Argon2id(
        salt=salt, length=KEY_BYTES, iterations=cost.passes, lanes=cost.lanes, memory_cost=cost.memory_kib
    ).derive(passphrase)
