"""The boot catalog and the boot images it names (El Torito 1.0, and UEFI's use of it)."""

from __future__ import annotations

from dataclasses import dataclass

from sqlimage.device import BlockDevice
from sqlimage.filesystem.iso9660 import layout
from sqlimage.filesystem.iso9660.descriptor import Descriptors

_SECTOR, _ENTRY = layout.SECTOR_BYTES, layout.CATALOG_ENTRY_BYTES
CATALOG_SECTORS_MAX = 4
"""256 entries; writers make a handful."""


@dataclass(frozen=True, slots=True)
class BootFile:
    """A boot image, or the catalog itself."""

    record: int
    """Byte offset on the volume of what names it: an entry of the catalog, for the catalog the Boot Record."""
    name: str
    place: int
    size_bytes: int
    held_bytes: int
    """Whole blocks of the volume."""

    @property
    def runs(self) -> list[tuple[int, int]]:
        return [(self.place, self.held_bytes)] if self.held_bytes else []


@dataclass(frozen=True, slots=True)
class Boot:
    """What El Torito names on a volume; the catalog comes first."""

    files: tuple[BootFile, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def catalog(self) -> BootFile | None:
        return self.files[0] if self.files else None


def read_boot(device: BlockDevice, descriptors: Descriptors) -> Boot:
    """The boot images that the first Boot Record leads to. What cannot be is left out, and a note says so: it is no
    reason not to read the files."""
    if not descriptors.boot_records:
        return Boot()
    offset = descriptors.boot_records[0]
    size, block = descriptors.geometry.size_bytes, descriptors.geometry.bytes_per_block
    (sector,) = layout.BOOT_CATALOG.unpack(device.read(offset + layout.BOOT_CATALOG_OFFSET, 4))
    place = sector * _SECTOR
    if place + _SECTOR > size:
        return Boot(notes=("its boot catalog lies outside the volume",))
    data = device.read(place, min(CATALOG_SECTORS_MAX * _SECTOR, size - place))
    if not _is_valid(data[:_ENTRY]):
        return Boot(notes=("its boot catalog does not begin with a right Validation Entry",))
    entries, end = _entries(data)
    held = -(-end // _SECTOR) * _SECTOR
    files = [BootFile(offset, "catalog", place, held, held)]
    notes = []
    for number, (at, platform) in enumerate(entries, start=1):
        _, media, _, _, _, count, load = layout.SECTION_ENTRY.unpack_from(data, at)
        media &= layout.MEDIA_MASK
        start = load * _SECTOR
        length = _image_bytes(device, media, count, start, size)
        whole = -(-length // block) * block
        if start + whole > device.size_bytes:
            notes.append(f"its boot image {number} should end at byte {start + whole}, behind the end of the medium")
        if not load or start + whole > size:  # a hybrid image has some in a partition behind the volume
            continue
        files.append(BootFile(place + at, f"{number}-{_platform(platform)}{_kind(media)}.img", start, length, whole))
    return Boot(tuple(files), tuple(notes))


def _is_valid(entry: bytes) -> bool:
    """The Validation Entry: its words sum up to zero."""
    if entry[0] != layout.VALIDATION_HEADER_ID or entry[30:32] != layout.VALIDATION_KEY:
        return False
    return sum(int.from_bytes(entry[at : at + 2], "little") for at in range(0, _ENTRY, 2)) & 0xFFFF == 0


def _entries(data: bytes) -> tuple[list[tuple[int, int]], int]:
    """Where in the catalog an entry of a boot image lies, and for which platform it is; and where the catalog ends."""
    platform = data[1]
    found, at = [(_ENTRY, platform)], 2 * _ENTRY
    while at + _ENTRY <= len(data) and data[at] in (layout.SECTION_MORE, layout.SECTION_FINAL):
        is_final = data[at] == layout.SECTION_FINAL
        _, platform, count = layout.SECTION_HEADER.unpack_from(data, at)
        at += _ENTRY
        while count and at + _ENTRY <= len(data) and data[at] in (layout.BOOTABLE, layout.NOT_BOOTABLE):
            found.append((at, platform))
            count, at = count - 1, at + _ENTRY
            while at + _ENTRY <= len(data) and data[at] == layout.ENTRY_EXTENSION:
                at += _ENTRY
        if is_final:
            break
    return found, at


def _image_bytes(device: BlockDevice, media: int, count: int, start: int, size_bytes: int) -> int:
    """A floppy's size follows from its kind, a hard disk's from its partition table; else the sectors to be loaded."""
    if media in layout.MEDIA_FLOPPY_BYTES:
        return layout.MEDIA_FLOPPY_BYTES[media]
    told = count * layout.VIRTUAL_SECTOR_BYTES
    if media != layout.MEDIA_HARD_DISK or start + layout.VIRTUAL_SECTOR_BYTES > size_bytes:
        return told
    table = device.read(start, layout.VIRTUAL_SECTOR_BYTES)
    if table[510:] != b"\x55\xaa":
        return told
    ends = [int.from_bytes(table[at : at + 4], "little") for at in (454, 470, 486, 502)]
    counts = [int.from_bytes(table[at : at + 4], "little") for at in (458, 474, 490, 506)]
    return max(told, *(layout.VIRTUAL_SECTOR_BYTES * (a + b) for a, b in zip(ends, counts, strict=True)))


def _platform(number: int) -> str:
    return layout.PLATFORMS.get(number, f"platform-{number}")


def _kind(media: int) -> str:
    if media in layout.MEDIA_FLOPPY_BYTES:
        return "-floppy"
    return "-hard-disk" if media == layout.MEDIA_HARD_DISK else ""
