"""The formats that are read and written through QEMU, as users name them and as QEMU does."""

from __future__ import annotations

import os
from dataclasses import dataclass

from sqlimage.errors import UsageError

RAW = "raw"


@dataclass(frozen=True, slots=True)
class Format:
    """One format of containers."""

    name: str
    driver: str
    """QEMU's name of it."""
    suffixes: tuple[str, ...] = ()
    """Of files that are made in this format unless the user says otherwise."""
    create_options: str | None = None
    """What ``qemu-img create`` is told; None where the format can only be read."""
    most_expansion: int | None = None
    """Bytes of a disk that a byte of the file can stand for, holes left aside: 1 where nothing is compressed. More is
    a contradiction, or a bomb. None where holes cannot be told from data."""
    has_backing: bool = False
    """Whether QEMU opens a parent that the file names, unless it is told not to."""
    in_turn: bool = False
    """Whether it is written by one request after the other: of two at once, either may be the last to write down how
    many blocks are allocated, and the next writer would allocate one of them again."""


_DEFLATE = 1100
"""Deflate makes at most 1,032 bytes of one."""

FORMATS = (
    Format("qcow2", "qcow2", (".qcow2",), "compat=1.1", _DEFLATE, has_backing=True),
    Format("qcow", "qcow", (".qcow",), "", _DEFLATE, has_backing=True),
    Format("qed", "qed", (".qed",), "", 1, has_backing=True),
    # without force_size the size is rounded to whole cylinders
    Format("vhd", "vpc", (".vhd",), "subformat=dynamic,force_size=on", 1),
    Format("vhdx", "vhdx", (".vhdx",), "subformat=dynamic", 1),
    Format("vmdk", "vmdk", (".vmdk",), "subformat=monolithicSparse", _DEFLATE, has_backing=True),
    Format("vdi", "vdi", (".vdi",), "", 1, in_turn=True),
    Format("parallels", "parallels", (".hds",), "", 1),
    Format("bochs", "bochs"),
    Format("cloop", "cloop"),
    Format("dmg", "dmg"),
)


def by_name(name: str) -> Format | None:
    """The format that a user names, None for ``raw``. QEMU's own names will do.

    Raises :class:`~sqlimage.errors.UsageError`, listing the names there are.
    """
    wanted = name.lower()
    for one in FORMATS:
        if wanted in (one.name, one.driver):
            return one
    if wanted == RAW:
        return None
    raise UsageError(f"{name}: no such format", hint=f"there are: {', '.join([RAW, *(f.name for f in FORMATS)])}")


def for_destination(path: str, name: str | None) -> Format | None:
    """In which format a file is to be made: as ``name`` says, else as the end of its own name does. None for raw.

    Raises :class:`~sqlimage.errors.UsageError` where there is no such format, or it can only be read.
    """
    if name is None:
        suffix = os.path.splitext(path)[1].lower()
        return next((one for one in FORMATS if suffix in one.suffixes), None)
    found = by_name(name)
    if found is not None and found.create_options is None:
        writable = ", ".join([RAW, *(f.name for f in FORMATS if f.create_options is not None)])
        raise UsageError(f"{found.name} can only be read", hint=f"written are: {writable}")
    return found
