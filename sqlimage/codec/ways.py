"""Ways to a data key, as whoever encrypts an image gives them: each becomes a key slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlimage.codec import slots
from sqlimage.codec.slots import Cost, KeySlot
from sqlimage.codec.vault import Vault, new_data_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

LEAST_KEY_FILE_BYTES, MOST_KEY_FILE_BYTES = 16, 8 << 20


@dataclass(frozen=True, slots=True)
class Passphrase:
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyFile:
    content: bytes = field(repr=False)
    """All that the file holds, 16 bytes to 8 MiB."""


@dataclass(frozen=True, slots=True)
class Recipient:
    public_key: X25519PublicKey


Way = Passphrase | KeyFile | Recipient


def slot_for(way: Way, number: int, vault: Vault, cost: Cost | None = None) -> KeySlot:
    """A slot that opens with ``way``; ``cost`` is what a passphrase is stretched with, calibrated unless told."""
    if isinstance(way, Passphrase):
        return slots.passphrase_slot(number, vault.key_id, vault.data_key, way.secret, cost or slots.calibrated())
    if isinstance(way, KeyFile):
        return slots.key_file_slot(number, vault.key_id, vault.data_key, way.content)
    return slots.x25519_slot(number, vault.key_id, vault.data_key, way.public_key)


def new_slots(ways: Sequence[Way], vault: Vault) -> list[KeySlot]:
    """A slot for each way, numbered from 1."""
    return [slot_for(way, number, vault) for number, way in enumerate(ways, 1)]


def new_vault(*, is_whole: bool = False) -> Vault:
    return Vault(new_data_key(), is_whole=is_whole)
