"""The volume descriptor set, parsed and validated against itself and its medium (ECMA-119 section 8, Joliet)."""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import calcsize, unpack_from

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.iso9660 import layout
from sqlimage.filesystem.iso9660.record import Record, record_at
from sqlimage.filesystem.iso9660.times import uuid_text

_AT_ONCE = 4
"""Descriptors read with one request: more than most volumes have."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the Primary Volume Descriptor says of the volume's extent."""

    bytes_per_block: int
    total_blocks: int
    """Volume Space Size."""
    size_bytes: int
    """Whole blocks that the volume has and the medium too."""
    set_size: int
    sequence_number: int


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A primary, supplementary or enhanced Volume Descriptor."""

    offset_bytes: int
    content: bytes
    root: Record


@dataclass(slots=True)
class Descriptors:
    """The descriptors that count: of each kind the first."""

    geometry: Geometry
    primary: Descriptor
    joliet: Descriptor | None = None
    enhanced: Descriptor | None = None
    boot_records: list[int] = field(default_factory=list)
    """Byte offsets of the Boot Records of El Torito."""
    notes: list[str] = field(default_factory=list)

    @property
    def label(self) -> str | None:
        """The Volume Identifier, in which Joliet's short one and the long but poor primary one complete each other."""
        poor = self.primary.content[layout.VOLUME_IDENTIFIER].decode("utf-8", "replace")
        if self.joliet is None:
            return _stripped(poor)
        rich = self.joliet.content[layout.VOLUME_IDENTIFIER].decode("utf-16-be", "replace")
        return _stripped(_merged(rich, poor) or rich) or _stripped(poor)

    @property
    def serial(self) -> str | None:
        primary = self.primary.content
        return uuid_text(primary[layout.MODIFICATION_TIME], primary[layout.CREATION_TIME])

    @property
    def format_version(self) -> str:
        """Of the standard: ``1999`` where there is an enhanced descriptor, else the File Structure Version."""
        return "1999" if self.enhanced else str(self.primary.content[layout.FILE_STRUCTURE_VERSION])


def is_iso9660(device: BlockDevice) -> bool:
    """Whether a volume descriptor stands where the first one has to; says nothing about its being right."""
    at = layout.SYSTEM_AREA_SECTORS * layout.SECTOR_BYTES
    if device.size_bytes < at + layout.SECTOR_BYTES:
        return False
    head = device.read(at, layout.DESCRIPTOR_HEAD.size)
    return head[1:6] == layout.STANDARD_IDENTIFIER


def read_descriptors(device: BlockDevice) -> Descriptors:
    """The descriptor set. Of numbers recorded in both byte orders the little-endian half counts, as on other systems;
    where the other half of one differs, a note says so.

    Raises :class:`InconsistentVolume` where there is no primary descriptor or it cannot be.
    """
    found: Descriptors | None = None
    boot_records = []
    supplementary: list[Descriptor] = []
    descriptors = _each(device)
    for offset, content in descriptors:
        kind, _, version = layout.DESCRIPTOR_HEAD.unpack_from(content)
        if kind == layout.TYPE_BOOT:
            if content[layout.BOOT_SYSTEM_IDENTIFIER].rstrip(b"\0 ") == layout.EL_TORITO:
                boot_records.append(offset)
        elif kind == layout.TYPE_PRIMARY and found is None:
            found = _primary(offset, content, device.size_bytes)
        elif kind == layout.TYPE_SUPPLEMENTARY and (version == layout.VERSION_ENHANCED or _is_joliet(content)):
            supplementary.append(Descriptor(offset, content, _root(offset, content)))
    if found is None:
        raise InconsistentVolume("Volume Descriptor Set", "has no Primary Volume Descriptor")
    found.boot_records = boot_records
    if _is_bridge(device, descriptors[-1][0] + layout.SECTOR_BYTES):
        found.notes.append("it is a UDF volume too, whose files are not listed and may be others")
    for descriptor in reversed(supplementary):
        if _halves(descriptor, layout.LOGICAL_BLOCK_SIZE)[0] != found.geometry.bytes_per_block:
            raise InconsistentVolume(
                "Logical Block Size",
                "differs from the Primary Volume Descriptor's",
                offset_bytes=descriptor.offset_bytes + layout.LOGICAL_BLOCK_SIZE[0],
            )
        if descriptor.content[6] == layout.VERSION_ENHANCED:
            found.enhanced = descriptor
        else:
            found.joliet = descriptor
    return found


def _each(device: BlockDevice) -> list[tuple[int, bytes]]:
    """Byte offset and content of every descriptor before the terminator, or before what is none."""
    descriptors = []
    sector, held = layout.SECTOR_BYTES, b""
    for number in range(layout.DESCRIPTORS_MAX):
        offset = (layout.SYSTEM_AREA_SECTORS + number) * sector
        if number % _AT_ONCE == 0:
            length = min(_AT_ONCE * sector, device.size_bytes - offset)
            held = device.read(offset, length) if length > 0 else b""
        at = number % _AT_ONCE * sector
        content = held[at : at + sector]
        if len(content) < sector or content[1:6] != layout.STANDARD_IDENTIFIER:
            break
        if content[0] == layout.TYPE_TERMINATOR:
            break
        descriptors.append((offset, content))
    return descriptors


def _is_bridge(device: BlockDevice, end: int) -> bool:
    """Whether descriptors of UDF follow those of ISO 9660 (ECMA-167 2/8)."""
    for offset in range(end, end + layout.UDF_DESCRIPTORS_MAX * layout.SECTOR_BYTES, layout.SECTOR_BYTES):
        if offset + layout.SECTOR_BYTES > device.size_bytes:
            return False
        if device.read(offset, layout.DESCRIPTOR_HEAD.size)[1:6] in layout.UDF_IDENTIFIERS:
            return True
    return False


def _primary(offset: int, content: bytes, medium_bytes: int) -> Descriptors:
    descriptor = Descriptor(offset, content, _root(offset, content))
    notes = []
    values = {}
    for name, spec in (
        ("Volume Space Size", layout.VOLUME_SPACE_SIZE),
        ("Volume Set Size", layout.VOLUME_SET_SIZE),
        ("Volume Sequence Number", layout.VOLUME_SEQUENCE_NUMBER),
        ("Logical Block Size", layout.LOGICAL_BLOCK_SIZE),
    ):
        little, big = _halves(descriptor, spec)
        values[name] = little
        if little != big:
            notes.append(f"its {name} is recorded as {little} and as {big}; {little} was used")
    block, blocks = values["Logical Block Size"], values["Volume Space Size"]
    if block not in layout.BLOCK_SIZES:
        raise InconsistentVolume(
            "Logical Block Size",
            f"is {block}; allowed are 512, 1024 and 2048",
            offset_bytes=offset + layout.LOGICAL_BLOCK_SIZE[0],
        )
    if blocks * block <= offset:
        raise InconsistentVolume(
            "Volume Space Size",
            f"is {blocks} blocks, so the descriptor lies outside",
            offset_bytes=offset + layout.VOLUME_SPACE_SIZE[0],
        )
    size = min(blocks * block, medium_bytes // block * block)
    if size < blocks * block:
        notes.append(f"it should have {blocks * block} bytes, but its medium ends after {medium_bytes}")
    geometry = Geometry(block, blocks, size, values["Volume Set Size"], values["Volume Sequence Number"])
    return Descriptors(geometry, descriptor, notes=notes)


def _halves(descriptor: Descriptor, spec: tuple[int, str, str]) -> tuple[int, int]:
    """A number as its two halves tell it: little-endian, big-endian."""
    at, little, big = spec
    content = descriptor.content
    return unpack_from(little, content, at)[0], unpack_from(big, content, at + calcsize(little))[0]


def _root(offset: int, content: bytes) -> Record:
    return record_at(content, layout.ROOT_RECORD, offset + layout.ROOT_RECORD)


def _is_joliet(content: bytes) -> bool:
    if content[layout.VOLUME_FLAGS] & layout.VOLUME_FLAG_UNREGISTERED:
        return False
    return content[layout.ESCAPE_SEQUENCES].startswith(layout.JOLIET_ESCAPES)


def _merged(rich: str, poor: str) -> str:
    """A label of up to 32 characters whose first 16 were recorded better elsewhere; empty where they are another."""
    merged = []
    for one, other in zip(rich, poor, strict=False):
        if other == "_":
            merged.append(one)
        elif one == "_":
            merged.append(other)
        elif one.upper() == other.upper():
            merged.append(one if other.isupper() else other)
        else:
            return ""
    return "".join(merged) + poor[len(rich) :]


def _stripped(label: str) -> str | None:
    return label.partition("\0")[0].strip() or None
