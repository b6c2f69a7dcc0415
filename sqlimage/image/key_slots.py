"""The key slots of an image: shown without a key, changed by whoever has one. No content is encrypted anew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sqlimage.codec import slots
from sqlimage.codec.slots import KeySlot, SlotProblem
from sqlimage.codec.vault import Vault
from sqlimage.codec.ways import Way, slot_for
from sqlimage.errors import FormatError, LockedError, NotFoundError, RefusedError, UsageError
from sqlimage.image.writing import writing
from sqlimage.streams import audit, unlocking
from sqlimage.streams.database import Database
from sqlimage.streams.keys import INSERT_SLOT
from sqlimage.streams.translation import translated
from sqlimage.tool import TOOL


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """One way to the data key."""

    slot: int
    kind: str
    detail: str
    """A recipient's public key in hexadecimal; what Argon2id takes."""


def unlock(image: str | os.PathLike[str]) -> None:
    """Have the key of an image at hand for this process and those it forks; nothing where nothing is encrypted.

    Raises :class:`~sqlimage.errors.LockedError` where none of the keys that were given opens an image that is encrypted
    as a whole; of one that is encrypted in parts the rest may be all that is wanted.
    """
    with Database.open(image, structure_only=True) as database:
        if database.is_sealed:
            database.vault()
        elif database.key_id is not None:
            with suppress(LockedError):
                database.vault()


def list_slots(image: str | os.PathLike[str]) -> list[SlotInfo]:
    """The key slots of an image, by number; none where nothing in it is encrypted."""
    with Database.open(image, structure_only=True) as database:
        return [_info(database.path, slot) for slot in _slots(database)]


def add_slot(image: str | os.PathLike[str], way: Way, *, user: str | None = None) -> SlotInfo:
    """Let ``way`` open the image, too.

    Raises :class:`~sqlimage.errors.LockedError` where the image is not opened by what was given,
    :class:`~sqlimage.errors.RefusedError` where it has as many slots as there may be.
    """
    with writing(image, "adding a key") as database:
        vault, known = _unlocked(database), _slots(database)
        slot = slot_for(way, max((slot.id for slot in known), default=0) + 1, vault)
        _check_room(database, [*known, slot])
        with database.transaction():
            _insert(database, slot)
            _tell(database, "key-add", slot, user)
        return _info(database.path, slot)


def remove_slot(image: str | os.PathLike[str], number: int, *, user: str | None = None) -> SlotInfo:
    """Take a way to the key away; the last one stays. Whoever had it may have kept the key or a copy of the image."""
    with writing(image, "removing a key") as database:
        _unlocked(database)
        known = _slots(database)
        slot = _chosen(database, known, number)
        if len(known) == 1:
            raise RefusedError(
                f"{database.path}: slot {number} is the last one; without it nobody could read the image",
                hint="`sqlimage key add` another one first",
            )
        with _forgetting(database), database.transaction():
            database.run("DELETE FROM key_slot WHERE id = ?", [number])
            _tell(database, "key-remove", slot, user)
        return _info(database.path, slot)


def change_slot(image: str | os.PathLike[str], number: int, way: Way, *, user: str | None = None) -> SlotInfo:
    """Have a slot open with ``way`` from now on, and no longer with what it did."""
    with writing(image, "changing a key") as database:
        vault, known = _unlocked(database), _slots(database)
        old = _chosen(database, known, number)
        slot = slot_for(way, number, vault)
        _check_room(database, [*(one for one in known if one is not old), slot])
        with _forgetting(database), database.transaction():
            database.run("DELETE FROM key_slot WHERE id = ?", [number])
            _insert(database, slot)
            _tell(database, "key-change", slot, user)
        return _info(database.path, slot)


def _unlocked(database: Database) -> Vault:
    if database.key_id is None:
        raise UsageError(
            f"{database.path}: nothing in it is encrypted, so it has no key",
            hint="`sqlimage capture --encrypt-all` or `--encrypt` makes one that has",
        )
    return database.vault()


def _slots(database: Database) -> list[KeySlot]:
    with translated(database.path):
        return unlocking.read_slots(database.path, database.connection)


def _chosen(database: Database, known: list[KeySlot], number: int) -> KeySlot:
    for slot in known:
        if slot.id == number:
            return slot
    numbers = ", ".join(str(slot.id) for slot in known)
    raise NotFoundError(f"{database.path}: no key slot {number}", hint=f"there are {numbers}")


def _check_room(database: Database, wanted: list[KeySlot]) -> None:
    """Raise :class:`~sqlimage.errors.RefusedError` where readers would refuse the slots."""
    work = sum(slots.cost_kib(slot) for slot in wanted)
    if len(wanted) > slots.MOST_SLOTS or work > slots.MOST_COST_OF_ALL_KIB:
        raise RefusedError(
            f"{database.path}: has as many key slots as readers accept",
            hint="remove one with `sqlimage key remove` first",
        )


def _insert(database: Database, slot: KeySlot) -> None:
    database.run(INSERT_SLOT, [slot.id, slot.kind, slot.parameters, slot.wrapped_key])


def _tell(database: Database, action: str, slot: KeySlot, user: str | None) -> None:
    audit.append(database, action, tool=TOOL, version=None, detail={"slot": slot.id, "kind": slot.kind}, user=user)


@contextmanager
def _forgetting(database: Database) -> Iterator[None]:
    """What is deleted meanwhile is overwritten in the file."""
    database.run("PRAGMA secure_delete = ON")
    try:
        yield
    finally:
        database.run("PRAGMA secure_delete = OFF")


def _info(path: str, slot: KeySlot) -> SlotInfo:
    try:
        told = slots.parameters(slot)
    except SlotProblem as problem:
        raise FormatError(f"{path}: key slot {slot.id} {problem}") from None
    detail = told.recipient.hex()
    if told.cost:
        detail = f"Argon2id, {told.cost.passes} passes over {told.cost.memory_kib >> 10} MiB, {told.cost.lanes} lanes"
    return SlotInfo(slot.id, slot.kind, detail)
