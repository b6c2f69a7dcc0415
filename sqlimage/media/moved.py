"""A volume as it looks from another place on a disk: its boot sectors say how many sectors lie before it.

Boot code of FAT and NTFS adds that number to what it reads, so a volume that is shown elsewhere only boots with the
number changed. It is changed in what is read, never in what is stored::

    stored        |...| 63 0 0 0 |...        an image keeps its own value,
    shown         |...| 0 8 0 0  |...        a guest sees the place it is shown at;
    written back  |...| 63 0 0 0 |...        whoever writes what it has read changes nothing
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock

from sqlimage.device import BlockDevice, Buffer, DeviceExtent, Prefetching, Readiness, WritableDevice, check_range
from sqlimage.media import bootcode, layout
from sqlimage.units import SECTOR_BYTES

_FIELD_BYTES = bootcode.BPB_HIDDSEC.stop - bootcode.BPB_HIDDSEC.start


@dataclass(slots=True)
class _Field:
    """One BPB_HiddSec; ``is_replaced`` until a guest writes another number there."""

    offset_bytes: int
    stored: bytes
    shown: bytes
    is_replaced: bool = True

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + _FIELD_BYTES


class MovedVolume:
    """A volume of the file system ``fat12``, ``fat16``, ``fat32`` or ``ntfs`` whose boot sector, and its backup (FAT32,
    NTFS), show ``hidden_sectors``; any other volume as it is. Closing it leaves the volume open.
    """

    def __init__(self, volume: BlockDevice, file_system: str | None, hidden_sectors: int) -> None:
        self._volume = volume
        self._lock = Lock()
        shown = hidden_sectors.to_bytes(_FIELD_BYTES, "little")
        self._fields = [
            _Field(place, stored, shown)
            for place, stored in _fields(volume, file_system)
            if hidden_sectors and stored != shown
        ]

    @property
    def size_bytes(self) -> int:
        return self._volume.size_bytes

    @property
    def bytes_per_sector(self) -> int:
        return self._volume.bytes_per_sector

    @property
    def fields_offset_bytes(self) -> tuple[int, ...]:
        """Where numbers are shown that are not the stored ones."""
        return tuple(field.offset_bytes for field in self._fields if field.is_replaced)

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        check_range(offset_bytes, len(buffer), self.size_bytes, "moved volume")
        touched = self._touched(offset_bytes, len(buffer))
        if not touched:
            self._volume.read_into(offset_bytes, buffer)
            return
        with self._lock:
            self._volume.read_into(offset_bytes, buffer)
            for field in touched:
                if field.is_replaced:
                    _overlay(buffer, offset_bytes, field.shown, field.offset_bytes)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        check_range(offset_bytes, length_bytes, self.size_bytes, "moved volume")
        if not self._touched(offset_bytes, length_bytes):
            return self._volume.read(offset_bytes, length_bytes)
        buffer = bytearray(length_bytes)
        self.read_into(offset_bytes, buffer)
        return bytes(buffer)

    def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
        check_range(offset_bytes, length_bytes, self.size_bytes, "moved volume")
        for extent in self._volume.extents(offset_bytes, length_bytes):
            yield from (extent,) if extent.is_data else self._hole(extent)

    def _hole(self, hole: DeviceExtent) -> Iterator[DeviceExtent]:
        """A hole of the volume, less the sectors where a number is shown that is not stored."""
        at, end = hole.offset_bytes, hole.offset_bytes + hole.length_bytes
        for field in self._touched(at, hole.length_bytes):
            sector = field.offset_bytes // SECTOR_BYTES * SECTOR_BYTES
            low, high = max(at, sector), min(end, sector + SECTOR_BYTES)
            if field.is_replaced and low < high:
                if at < low:
                    yield DeviceExtent(at, low - at, is_data=False)
                yield DeviceExtent(low, high - low, is_data=True)
                at = high
        if at < end:
            yield DeviceExtent(at, end - at, is_data=False)

    def _touched(self, offset_bytes: int, length_bytes: int) -> list[_Field]:
        end = offset_bytes + length_bytes
        return [field for field in self._fields if field.offset_bytes < end and offset_bytes < field.end_bytes]

    def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        if isinstance(self._volume, Prefetching):
            self._volume.prefetch(offset_bytes, length_bytes)

    def is_ready(self, offset_bytes: int, length_bytes: int) -> bool:
        return not isinstance(self._volume, Readiness) or self._volume.is_ready(offset_bytes, length_bytes)

    def close(self) -> None:
        """The volume belongs to whoever opened it."""


class WritableMovedVolume(MovedVolume):
    """A moved volume that writes through. A boot sector that is written with the number that is shown keeps the stored
    one; with any other number it is written as it is, and shown so from then on."""

    def __init__(self, volume: WritableDevice, file_system: str | None, hidden_sectors: int) -> None:
        super().__init__(volume, file_system, hidden_sectors)
        self._target = volume

    def write(self, offset_bytes: int, data: bytes | Buffer) -> None:
        check_range(offset_bytes, len(data), self.size_bytes, "moved volume")
        touched = self._touched(offset_bytes, len(data))
        if not touched:
            self._target.write(offset_bytes, data)
            return
        with self._lock:
            changed = bytearray(data)
            after = [(field, *self._after(field, offset_bytes, data)) for field in touched]
            for field, _, stored in after:
                _overlay(changed, offset_bytes, stored, field.offset_bytes)
            self._target.write(offset_bytes, changed)
            self._settle(after)

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        check_range(offset_bytes, length_bytes, self.size_bytes, "moved volume")
        touched = self._touched(offset_bytes, length_bytes)
        if not touched:
            self._target.zero(offset_bytes, length_bytes)
            return
        with self._lock:
            after = []
            for field in touched:
                low = max(offset_bytes, field.offset_bytes)
                zeros = bytes(min(offset_bytes + length_bytes, field.end_bytes) - low)
                after.append((field, *self._after(field, low, zeros)))
            self._target.zero(offset_bytes, length_bytes)
            self._settle(after)

    def _after(self, field: _Field, offset_bytes: int, data: bytes | Buffer) -> tuple[bool, bytes]:
        """Whether the field is still replaced once ``data`` is written, and what is to be stored in it then."""
        wanted = bytearray(field.shown if field.is_replaced else self._target.read(field.offset_bytes, _FIELD_BYTES))
        _overlay(wanted, field.offset_bytes, data, offset_bytes)
        is_replaced = wanted == field.shown
        return is_replaced, field.stored if is_replaced else bytes(wanted)

    def _settle(self, after: list[tuple[_Field, bool, bytes]]) -> None:
        for field, is_replaced, stored in after:
            # a write of a part of the field can change what the rest of it has to be
            if self._target.read(field.offset_bytes, _FIELD_BYTES) != stored:
                self._target.write(field.offset_bytes, stored)
            field.is_replaced = is_replaced

    def flush(self) -> None:
        self._target.flush()


def _overlay(under: Buffer, under_offset: int, over: bytes | Buffer, over_offset: int) -> None:
    """Copy the part of ``over`` that lies within ``under``, each given with its place."""
    low = max(under_offset, over_offset)
    high = min(under_offset + len(under), over_offset + len(over))
    if low < high:
        under[low - under_offset : high - under_offset] = over[low - over_offset : high - over_offset]


def _fields(volume: BlockDevice, file_system: str | None) -> Iterator[tuple[int, bytes]]:
    """Every BPB_HiddSec of a volume: its place in bytes and what is stored there."""
    boot = _boot_sector(volume, 0)
    if file_system not in bootcode.FILE_SYSTEMS_WITH_HIDDSEC or boot is None:
        return
    field = boot[bootcode.BPB_HIDDSEC]
    yield bootcode.BPB_HIDDSEC.start, field
    place = _backup_offset_bytes(boot, file_system)
    backup = None if place is None else _boot_sector(volume, place)
    # what does not begin as the boot sector does is a file's, however plausible the number that leads to it
    if (
        place is not None
        and backup is not None
        and backup[: bootcode.BPB_HIDDSEC.stop] == boot[: bootcode.BPB_HIDDSEC.stop]
    ):
        yield place + bootcode.BPB_HIDDSEC.start, field


def _boot_sector(volume: BlockDevice, offset_bytes: int) -> bytes | None:
    if offset_bytes + SECTOR_BYTES > volume.size_bytes:
        return None
    sector = volume.read(offset_bytes, SECTOR_BYTES)
    return sector if sector[layout.MBR_SIGNATURE_OFFSET :] == layout.MBR_SIGNATURE else None


def _backup_offset_bytes(boot: bytes, file_system: str) -> int | None:
    bytes_per_sector, _, reserved = layout.BPB_FAT.unpack_from(boot, layout.BPB_FAT_OFFSET)[:3]
    if bytes_per_sector not in layout.BPB_BYTES_PER_SECTOR:
        return None
    if file_system == "fat32":
        at = bootcode.FAT32_BKBOOTSEC_OFFSET
        sector = int.from_bytes(boot[at : at + 2], "little")
        return sector * bytes_per_sector if 0 < sector < reserved else None
    if file_system == "ntfs":
        at = bootcode.NTFS_TOTAL_SECTORS_OFFSET
        sector = int.from_bytes(boot[at : at + 8], "little")
        return sector * bytes_per_sector if sector else None
    return None
