"""What a capture encrypts, and with which key: as it is asked for, and as its parent was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlimage.codec.keyring import keyring
from sqlimage.codec.vault import Vault
from sqlimage.codec.ways import Way, new_slots, new_vault
from sqlimage.errors import RefusedError, UsageError
from sqlimage.image.image import Version
from sqlimage.image.medium import Medium
from sqlimage.image.secrecy import PROPERTY, check_globs, globs_of, secret_files, told, wholly_secret
from sqlimage.streams.keys import Keys
from sqlimage.streams.properties import Value

CIPHER = "aes-256-gcm"
"""In ``control.encryption`` of versions of which anything is encrypted."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the caller asked for."""

    globs: Sequence[str] = ()
    is_whole: bool = False
    ways: Sequence[Way] | Callable[[], Sequence[Way]] = ()
    """To the data key of an image that has none yet; a callable is asked only then."""

    def check(self) -> None:
        """Raise :class:`~sqlimage.errors.UsageError` where it contradicts itself."""
        check_globs(self.globs)
        if self.globs and self.is_whole:
            raise UsageError("all files are encrypted already", hint="give --encrypt-all or --encrypt, not both")
        if self.ways and not callable(self.ways) and not self.globs and not self.is_whole:
            raise UsageError("a key was given, but nothing is to be encrypted", hint="add --encrypt-all or --encrypt")


@dataclass(frozen=True, slots=True)
class Encryption:
    """What a capture does about it."""

    keys: Keys | None = None
    globs: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()

    @property
    def vault(self) -> Vault | None:
        return self.keys.vault if self.keys else None

    @property
    def properties(self) -> dict[str, Value]:
        return {PROPERTY: told(self.globs)} if self.globs else {}

    @property
    def cipher(self) -> str:
        return CIPHER if self.keys else "none"

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(f"no file matches --encrypt {glob}" for glob in self.unmatched)

    def conceal(self, medium: Medium) -> tuple[Encryption, Medium]:
        """The medium, with what is to be encrypted of it; and what of the globs was in vain."""
        if self.keys is None:
            return self, medium
        if self.keys.is_whole:
            return self, wholly_secret(medium)
        concealed, unmatched = secret_files(medium, self.globs)
        return dataclasses.replace(self, unmatched=tuple(unmatched)), concealed


def for_first(wanted: Wanted) -> Encryption:
    """For a file that is made, of a version without a parent."""
    wanted.check()
    if not wanted.globs and not wanted.is_whole:
        return Encryption()
    globs = () if wanted.is_whole else tuple(wanted.globs)
    return Encryption(_new_keys(wanted), globs)


def for_child(wanted: Wanted, parent: Version) -> Encryption:
    """For a version on top of another one: what was encrypted stays so, under the same key.

    Raises :class:`~sqlimage.errors.LockedError` where the parent's key is needed and not at hand.
    """
    database = parent.image.database
    keys = database.keys()
    if keys is None:
        if wanted.is_whole:
            wanted.check()
            raise RefusedError(
                f"{database.path}: is not encrypted, and what a child has from its parent stays as it is",
                hint="capture it as an image of its own, without a parent",
            )
        return for_first(wanted)
    check_globs(wanted.globs)
    if keys.is_whole:
        return Encryption(keys)
    if wanted.is_whole:
        raise RefusedError(
            f"{database.path}: is encrypted in parts, and its children are too", hint="--encrypt '*' takes all files"
        )
    inherited = globs_of(parent.properties().get(PROPERTY))
    return Encryption(keys, tuple(dict.fromkeys((*inherited, *wanted.globs))))


def _new_keys(wanted: Wanted) -> Keys:
    ways = wanted.ways() if callable(wanted.ways) else wanted.ways
    if not ways:
        raise UsageError("what is encrypted needs a key", hint="give --passphrase-file, --key-file or --recipient")
    vault = new_vault(is_whole=wanted.is_whole)
    keyring.add_vault(vault)
    return Keys(vault, new_slots(ways, vault), wanted.is_whole)
