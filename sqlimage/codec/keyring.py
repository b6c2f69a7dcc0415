"""The keys that the user of this process has given, and the data keys that they have unlocked.

One for the process: an image is unlocked when something in it is needed, wherever in a lineage its file lies, and no
passphrase is asked for, or stretched, twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sqlimage.codec import slots
from sqlimage.codec.slots import KeySlot, SlotProblem
from sqlimage.codec.vault import Vault
from sqlimage.codec.ways import KeyFile, Passphrase
from sqlimage.errors import FormatError, LockedError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

Ask = Callable[[str], bytes | None]
"""Asks a person for the passphrase of the image of that path; None where there is nobody to ask."""

_HINT = "give --passphrase-file, --key-file or --identity, or run it on a terminal to be asked"


class Keyring:
    """Safe from any thread."""

    def __init__(self) -> None:
        self._given: list[Passphrase | KeyFile] = []
        self._identities: list[X25519PrivateKey] = []
        self._ask: Ask | None = None
        self._vaults: dict[str, Vault] = {}
        self._refused: set[str] = set()
        """Keys that nothing given opens; not to be tried again at every look."""
        self._lock = threading.RLock()

    def add(self, way: Passphrase | KeyFile) -> None:
        """What opens images."""
        with self._lock:
            self._given.append(way)
            self._refused.clear()

    def given(self) -> list[Passphrase | KeyFile]:
        """What was added, in that order."""
        with self._lock:
            return list(self._given)

    def add_identity(self, identity: X25519PrivateKey) -> None:
        with self._lock:
            self._identities.append(identity)
            self._refused.clear()

    def add_vault(self, vault: Vault) -> None:
        """A data key that was just made, or is known."""
        with self._lock:
            self._vaults[vault.key_id] = vault
            self._refused.discard(vault.key_id)

    def ask_with(self, ask: Ask | None) -> None:
        """Whom to ask where nothing that was given opens an image."""
        with self._lock:
            self._ask = ask
            self._refused.clear()

    def forget(self) -> None:
        """Everything that was given and unlocked."""
        with self._lock:
            self._given.clear()
            self._identities.clear()
            self._vaults.clear()
            self._refused.clear()
            self._ask = None

    def known(self, key_id: str) -> Vault | None:
        """The vault of a data key that is unlocked already."""
        return self._vaults.get(key_id)

    def unlock(self, path: str, key_id: str, key_slots: Sequence[KeySlot]) -> Vault:
        """The vault of the data key ``key_id``, which the slots of the image ``path`` wrap.

        Raises :class:`~sqlimage.errors.LockedError` where nothing that was given opens one of them, and
        :class:`~sqlimage.errors.FormatError` where a slot is not of a form that is allowed.
        """
        with self._lock:
            found = self._vaults.get(key_id)
            if found is not None:
                return found
            if key_id in self._refused:
                raise _wrong(path)
            _check_cost(path, key_slots)
            data_key = self._by_file(path, key_id, key_slots) or self._by_passphrase(path, key_id, key_slots)
            if data_key is None:
                if not self._has_any(key_slots):
                    raise LockedError(f"{path}: is encrypted; it needs {needs(key_slots)}", hint=_HINT)
                self._refused.add(key_id)
                raise _wrong(path)
            named = [vault for vault in (Vault(data_key), Vault(data_key, is_whole=True)) if vault.key_id == key_id]
            if not named:
                raise FormatError(f"{path}: a key slot wraps another key than the image is encrypted with")
            vault = named[0]
            self._vaults[key_id] = vault
            return vault

    def _by_file(self, path: str, key_id: str, key_slots: Sequence[KeySlot]) -> bytes | None:
        """By what costs nothing to try."""
        for slot in key_slots:
            try:
                if slot.kind == slots.KEY_FILE:
                    files = [way.content for way in self._given if isinstance(way, KeyFile)]
                    tried = (slots.open_with_key_file(slot, key_id, content) for content in files)
                elif slot.kind == slots.X25519:
                    tried = (slots.open_with_identity(slot, key_id, identity) for identity in self._identities)
                else:
                    continue
                found = next((key for key in tried if key is not None), None)
            except SlotProblem as problem:
                raise _odd(path, slot, problem) from None
            if found is not None:
                return found
        return None

    def _by_passphrase(self, path: str, key_id: str, key_slots: Sequence[KeySlot]) -> bytes | None:
        mine = [slot for slot in key_slots if slot.kind == slots.PASSPHRASE]
        if not mine:
            return None
        for way in self._given:
            found = _tried(path, key_id, mine, way.secret) if isinstance(way, Passphrase) else None
            if found is not None:
                return found
        asked = self._ask(path) if self._ask else None
        if not asked:
            return None
        self._given.append(Passphrase(asked))
        return _tried(path, key_id, mine, asked)

    def _has_any(self, key_slots: Sequence[KeySlot]) -> bool:
        """Whether something was given of a kind that the slots take."""
        given = {slots.PASSPHRASE if isinstance(way, Passphrase) else slots.KEY_FILE for way in self._given}
        if self._identities:
            given.add(slots.X25519)
        return any(slot.kind in given for slot in key_slots)


def needs(key_slots: Sequence[KeySlot]) -> str:
    """What unlocks an image, in words."""
    words = {slots.PASSPHRASE: "a passphrase", slots.KEY_FILE: "a key file", slots.X25519: "an X25519 identity"}
    kinds = [words[kind] for kind in slots.KINDS if any(slot.kind == kind for slot in key_slots)]
    return " or ".join(kinds) or "a key, but has no key slot"


def _tried(path: str, key_id: str, key_slots: Sequence[KeySlot], passphrase: bytes) -> bytes | None:
    for slot in key_slots:
        try:
            found = slots.open_with_passphrase(slot, key_id, passphrase)
        except SlotProblem as problem:
            raise _odd(path, slot, problem) from None
        if found is not None:
            return found
    return None


def _check_cost(path: str, key_slots: Sequence[KeySlot]) -> None:
    """Before anything is stretched: what a hostile image may ask for in all."""
    total = 0
    for slot in key_slots:
        try:
            total += slots.cost_kib(slot)
        except SlotProblem as problem:
            raise _odd(path, slot, problem) from None
    if total > slots.MOST_COST_OF_ALL_KIB or len(key_slots) > slots.MOST_SLOTS:
        raise FormatError(
            f"{path}: has {len(key_slots)} key slots that ask for {total} KiB of work; "
            f"allowed are {slots.MOST_SLOTS} and {slots.MOST_COST_OF_ALL_KIB}"
        )


def _odd(path: str, slot: KeySlot, problem: SlotProblem) -> FormatError:
    return FormatError(f"{path}: key slot {slot.id} {problem}")


def _wrong(path: str) -> LockedError:
    return LockedError(f"{path}: none of the keys that were given opens it", hint="`sqlimage key list` shows its slots")


keyring = Keyring()
"""Of this process."""
