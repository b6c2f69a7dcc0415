"""What our own look at a container tells, before any other program is let near it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from sqlimage.errors import FormatError, RefusedError
from sqlimage.extent import Runs
from sqlimage.media.file import FileDevice
from sqlimage.media.foreign.formats import Format
from sqlimage.units import SECTOR_BYTES


@dataclass(frozen=True, slots=True)
class Extent:
    """A piece of a VMDK disk in a file of its own, which is open and checked."""

    sectors: int
    kind: str
    """FLAT, SPARSE, ..., as the descriptor says."""
    offset_sectors: int | None
    file: FileDevice


@dataclass(frozen=True, slots=True)
class Found:
    """A container that needs no other file but those that are told here."""

    format: Format
    bytes_per_sector: int = SECTOR_BYTES
    zeros: Runs = field(default_factory=Runs.empty)
    """Bytes of the disk that are known to read as zeros, whatever QEMU tells of them."""
    most_expansion: int | None = None
    extents: tuple[Extent, ...] = ()
    create_type: str = ""
    """Of a VMDK descriptor."""

    def close(self) -> None:
        for extent in self.extents:
            extent.file.close()


def head(file: FileDevice, length_bytes: int, offset_bytes: int = 0) -> bytes:
    """So many bytes of a file, with zeros where it has fewer."""
    there = max(0, min(length_bytes, file.size_bytes - offset_bytes))
    return (file.read(offset_bytes, there) if there else b"").ljust(length_bytes, b"\0")


def needs_parent(file: FileDevice, kind: Format, name: bytes = b"") -> NoReturn:
    """Raise: the container holds only what differs from another one, which it calls by ``name``."""
    shown = "".join(c if c.isprintable() else "?" for c in name.decode("utf-8", "replace"))[:200]
    raise RefusedError(
        f"{file.path}: this {kind.name} file needs its parent{f' ({shown})' if shown else ''}, and none is opened "
        "because a file names it",
        hint="flatten it first with `qemu-img convert`",
    )


def encrypted(file: FileDevice, kind: Format) -> NoReturn:
    """Raise: the container is encrypted."""
    raise RefusedError(f"{file.path}: this {kind.name} file is encrypted", hint="decrypt it first with qemu-img")


def corrupt(file: FileDevice, kind: Format, structure: str, problem: str) -> NoReturn:
    """Raise: the container contradicts itself."""
    raise FormatError(f"{file.path}: is not a sound {kind.name} file: {structure}: {problem}")
