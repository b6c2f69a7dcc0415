"""A bare volume as a disk that boots: firmware starts disks, and most images hold a volume.

The disk consists of three parts; only the middle one is stored anywhere::

    | MBR | gap          | volume                                       | padding |
    0     1 sector       partition 1, active                            |         whole MiB
                         at the volume's own hidden sectors, or 1 MiB

What is written to the MBR, the gap and the padding is kept in memory and goes with the disk.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import groupby

from sqlimage.device import BlockDevice, Buffer, DeviceExtent, Prefetching, WritableDevice, check_range
from sqlimage.errors import RefusedError
from sqlimage.media import bootcode, layout
from sqlimage.media.geometry import Geometry
from sqlimage.media.memory import MemoryDevice
from sqlimage.media.moved import MovedVolume, WritableMovedVolume
from sqlimage.units import MIB, SECTOR_BYTES

_CELL_BYTES = 4096


class ComposedDisk:
    """The read side of :func:`compose_disk`. Closing it leaves the volume open."""

    def __init__(self, head: MemoryDevice, volume: MovedVolume, tail: MemoryDevice, geometry: Geometry) -> None:
        self._parts: tuple[MemoryDevice | MovedVolume, ...] = (head, volume, tail)
        self._bytes_per_sector = volume.bytes_per_sector
        self.partition_offset_bytes = head.size_bytes
        self.partition_length_bytes = -(-volume.size_bytes // self._bytes_per_sector) * self._bytes_per_sector
        self.os_type: int = head.content[layout.MBR_PARTITION_RECORD_OFFSET + 4]
        self.geometry = geometry
        """What the partition record counts in; a firmware that reads by CHS must be given the same."""

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self._parts)

    @property
    def bytes_per_sector(self) -> int:
        return self._bytes_per_sector

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        check_range(offset_bytes, len(buffer), self.size_bytes, "composed disk")
        view = memoryview(buffer)
        for part, begin, at, length in self._split(offset_bytes, len(view)):
            place = begin + at - offset_bytes
            part.read_into(at, view[place : place + length])

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        check_range(offset_bytes, length_bytes, self.size_bytes, "composed disk")
        pieces = [part.read(at, length) for part, _, at, length in self._split(offset_bytes, length_bytes)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
        check_range(offset_bytes, length_bytes, self.size_bytes, "composed disk")
        for part, begin, at, length in self._split(offset_bytes, length_bytes):
            inner = part.extents(at, length) if isinstance(part, MovedVolume) else _extents(part.read(at, length), at)
            for extent in inner:
                yield DeviceExtent(begin + extent.offset_bytes, extent.length_bytes, is_data=extent.is_data)

    def _split(
        self, offset_bytes: int, length_bytes: int
    ) -> Iterator[tuple[MemoryDevice | MovedVolume, int, int, int]]:
        """The parts that a range touches: the part, where it begins, and the range within it."""
        begin = 0
        for part in self._parts:
            low = max(offset_bytes, begin)
            high = min(offset_bytes + length_bytes, begin + part.size_bytes)
            if low < high:
                yield part, begin, low - begin, high - low
            begin += part.size_bytes

    def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        for part, _, at, length in self._split(offset_bytes, length_bytes):
            if isinstance(part, Prefetching):
                part.prefetch(at, length)

    def is_ready(self, offset_bytes: int, length_bytes: int) -> bool:
        parts = self._split(offset_bytes, length_bytes)
        return all(part.is_ready(at, length) for part, _, at, length in parts if isinstance(part, MovedVolume))

    def close(self) -> None:
        """The volume belongs to whoever opened it."""


class WritableComposedDisk(ComposedDisk):
    """A composed disk that writes through to its volume."""

    def write(self, offset_bytes: int, data: bytes | Buffer) -> None:
        check_range(offset_bytes, len(data), self.size_bytes, "composed disk")
        view = memoryview(data)
        for part, begin, at, length in self._split(offset_bytes, len(view)):
            assert isinstance(part, WritableDevice)
            place = begin + at - offset_bytes
            part.write(at, view[place : place + length])

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        check_range(offset_bytes, length_bytes, self.size_bytes, "composed disk")
        for part, _, at, length in self._split(offset_bytes, length_bytes):
            assert isinstance(part, WritableDevice)
            part.zero(at, length)

    def flush(self) -> None:
        for part in self._parts:
            assert isinstance(part, WritableDevice)
            part.flush()


def compose_disk(
    volume: BlockDevice,
    *,
    file_system: str | None,
    hidden_sectors: int | None = None,
    geometry: Geometry | None = None,
    alignment_bytes: int = MIB,
) -> ComposedDisk:
    """The volume as the only partition, active, of a disk with a master boot record; a
    :class:`WritableComposedDisk` where the volume can be written.

    ``file_system`` is the name :mod:`sqlimage.filesystem` gives it: it decides the partition's type and whether its
    boot sectors are shown with the partition's place (:mod:`sqlimage.media.moved`). The partition starts at
    ``hidden_sectors`` where that is from 1 sector to 1 MiB, else at 1 MiB. CHS fields count in ``geometry``; without
    one, in that of the boot sector, else 255 heads of 63 sectors. The disk's length is a multiple of
    ``alignment_bytes``, whole sectors and at most 1 MiB.

    Raises :class:`~sqlimage.errors.RefusedError` for a volume of more than 2**32 - 1 sectors, which a master boot
    record cannot hold.
    """
    bytes_per_sector = volume.bytes_per_sector
    start = MIB // bytes_per_sector
    if hidden_sectors is not None and 1 <= hidden_sectors <= start:
        start = hidden_sectors
    sectors = -(-volume.size_bytes // bytes_per_sector)
    if not 1 <= sectors <= layout.MBR_LBA_MAXIMUM:
        raise RefusedError(
            f"a volume of {volume.size_bytes} bytes has {sectors} sectors of {bytes_per_sector} bytes; "
            f"a master boot record can hold 1 to {layout.MBR_LBA_MAXIMUM}",
            hint="boot a medium that has a partition table of its own",
        )
    shape = geometry or _geometry(volume, file_system, start + sectors)
    head = MemoryDevice(bytearray(start * bytes_per_sector), bytes_per_sector)
    head.write(0, _master_boot_record(volume, file_system, start, sectors, shape))
    end = start * bytes_per_sector + volume.size_bytes
    tail = MemoryDevice(bytearray(-end % min(max(alignment_bytes, bytes_per_sector), MIB)), bytes_per_sector)
    if isinstance(volume, WritableDevice):
        return WritableComposedDisk(head, WritableMovedVolume(volume, file_system, start), tail, shape)
    return ComposedDisk(head, MovedVolume(volume, file_system, start), tail, shape)


def _master_boot_record(
    volume: BlockDevice, file_system: str | None, start: int, sectors: int, geometry: Geometry
) -> bytes:
    last = geometry.to_chs(start + sectors - 1)
    os_type = bootcode.OS_TYPES.get(file_system or "", bootcode.OS_TYPE_LINUX)
    if file_system == "fat16" and geometry.to_lba(last) != start + sectors - 1:
        os_type = bootcode.OS_TYPE_FAT16_LBA
    record = layout.MBR_PARTITION_RECORD.pack(
        layout.MBR_BOOT_INDICATORS[1], geometry.to_chs(start).to_bytes(), os_type, last.to_bytes(), start, sectors
    )
    sector = bytearray(layout.MBR_BYTES)
    sector[: len(bootcode.MBR_BOOT_CODE)] = bootcode.MBR_BOOT_CODE
    signature = zlib.crc32(_identity(volume, file_system)) or 1
    at = layout.MBR_UNIQUE_DISK_SIGNATURE_OFFSET
    sector[at : at + 4] = signature.to_bytes(4, "little")
    at = layout.MBR_PARTITION_RECORD_OFFSET
    sector[at : at + len(record)] = record
    sector[layout.MBR_SIGNATURE_OFFSET :] = layout.MBR_SIGNATURE
    return bytes(sector)


def _identity(volume: BlockDevice, file_system: str | None) -> bytes:
    """What names the volume and outlives its use: systems know a disk again by the signature made from it."""
    place = bootcode.SERIALS.get(file_system or "", bootcode.EXT_UUID)
    return volume.read(place.start, place.stop - place.start) if place.stop <= volume.size_bytes else b""


def _geometry(volume: BlockDevice, file_system: str | None, sectors: int) -> Geometry:
    """The shape that the volume was formatted for, where its boot sector tells one that a disk can have."""
    size_bytes = sectors * volume.bytes_per_sector
    bytes_per_sector = volume.bytes_per_sector if volume.bytes_per_sector <= 4096 else SECTOR_BYTES
    if file_system in bootcode.FILE_SYSTEMS_WITH_HIDDSEC and volume.size_bytes >= SECTOR_BYTES:
        fields = volume.read(bootcode.BPB_SECPERTRK_NUMHEADS_OFFSET, 4)
        per_track, heads = int.from_bytes(fields[:2], "little"), int.from_bytes(fields[2:], "little")
        if 1 <= per_track <= 63 and 1 <= heads <= 255:
            return Geometry.for_size(size_bytes, per_track, heads, bytes_per_sector)
    return Geometry.for_size(size_bytes, bytes_per_sector=bytes_per_sector)


def _extents(content: bytes, offset_bytes: int) -> Iterator[DeviceExtent]:
    """The stretches of zeros and of data, in cells; at most 1 MiB is looked through."""
    starts = range(0, len(content), _CELL_BYTES)
    for is_data, cells in groupby(starts, key=lambda at: bool(content[at : at + _CELL_BYTES].strip(b"\0"))):
        first, *more = cells
        end = min(len(content), (more[-1] if more else first) + _CELL_BYTES)
        yield DeviceExtent(offset_bytes + first, end - first, is_data=is_data)
