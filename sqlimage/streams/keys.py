"""Key stream: what an image that is encrypted is made with, and its key slots one by one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from sqlimage.codec.slots import KeySlot
from sqlimage.codec.vault import Vault

INSERT_SLOT = "INSERT INTO key_slot (id, kind, parameters, wrapped_key) VALUES (?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Keys:
    """The data key of an image to be made, and the ways to it."""

    vault: Vault
    slots: Sequence[KeySlot]
    is_whole: bool
    """Encrypted as a whole, with all that tells what is on the medium."""


def new_identity() -> str:
    """What tells a file from all others: 16 bytes in hexadecimal."""
    return os.urandom(16).hex()
