"""What is known of a volume whose files are not read: a few bytes of its superblock, and the facts made of them."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from uuid import UUID

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import VolumeFacts
from sqlimage.units import SECTOR_BYTES, power_of_two_in

SUPERBLOCK_BYTES = 4096


class Superblock:
    """The 4 KiB of a device from ``at``, filled with zeros where the device ends earlier, so that every field in them
    can be read."""

    def __init__(self, device: BlockDevice, at: int) -> None:
        self.device, self.at = device, at
        self.raw = self.read(SUPERBLOCK_BYTES)

    def read(self, length_bytes: int) -> bytes:
        """Bytes from the beginning, filled likewise."""
        there = max(min(length_bytes, self.device.size_bytes - self.at), 0)
        return self.device.read(self.at, there).ljust(length_bytes, b"\0") if there else bytes(length_bytes)

    def numbers(self, form: str, offset: int) -> tuple[int, ...]:
        """Integers by a form of :mod:`struct`, its byte order first."""
        return struct.unpack_from(form, self.raw, offset)

    def number(self, form: str, offset: int) -> int:
        return self.numbers(form, offset)[0]

    def text(self, offset: int, length: int, encoding: str = "utf-8") -> str | None:
        return text_of(self.raw[offset : offset + length], encoding)

    def uuid(self, offset: int) -> str | None:
        return uuid_text(self.raw[offset : offset + 16])


@dataclass(frozen=True, slots=True)
class Told:
    """What a superblock tells of its volume; None where it does not tell."""

    label: str | None = None
    serial: str | None = None
    version: str | None = None
    size_bytes: int | None = None
    sector_bytes: int = SECTOR_BYTES
    block_bytes: int | None = None
    dirty: bool = False


@dataclass(frozen=True, slots=True)
class WholeVolume:
    """A :class:`~sqlimage.filesystem.contract.Recognised` volume all of which counts."""

    facts: VolumeFacts
    reason: str

    def allocated(self) -> Runs | None:
        return None

    def left_out(self) -> Runs:
        return Runs.empty()


def facts_of(name: str, told: Told, device: BlockDevice, at: int) -> VolumeFacts:
    """The facts of a volume by its superblock at ``at``.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where the volume is larger than the device.
    """
    size = told.size_bytes or device.size_bytes
    if size > device.size_bytes:
        raise longer_than_medium(f"{name} superblock", size, device, at)
    size = min(-(-size // SECTOR_BYTES), device.size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    block = told.block_bytes or told.sector_bytes
    return VolumeFacts(
        file_system=name,
        size_bytes=size,
        bytes_per_sector=told.sector_bytes,
        bytes_per_cluster=block,
        total_clusters=size // block,
        alignment_bytes=power_of_two_in(size),
        label=told.label,
        serial=told.serial,
        format_version=told.version,
        dirty=told.dirty,
    )


def longer_than_medium(structure: str, size: int, device: BlockDevice, at: int) -> InconsistentVolume:
    return InconsistentVolume(
        structure, f"says the volume has {size} bytes, the medium has {device.size_bytes}", offset_bytes=at
    )


def text_of(raw: bytes, encoding: str = "utf-8") -> str | None:
    """A label: it ends at the first NUL or with its field, and trailing spaces are no part of it."""
    return raw.decode(encoding, "replace").split("\0")[0].rstrip() or None


def uuid_text(raw: bytes) -> str | None:
    """In lower case with dashes; None where there is none."""
    return str(UUID(bytes=raw)) if len(raw) == 16 and any(raw) else None


def is_power_of_two(number: int, least: int, most: int) -> bool:
    return least <= number <= most and number & (number - 1) == 0


def crc32(register: int, data: bytes) -> int:
    """CRC-32 as a register that is carried on, without inversion at either end."""
    return zlib.crc32(data, register ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
