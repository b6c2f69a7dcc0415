"""The boot regions: parsed, checked, then validated into the geometry that everything else counts by.

Microsoft exFAT file system specification, "Main and Backup Boot Regions".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.exfat import layout
from sqlimage.filesystem.exfat.checksum import rotated_sum
from sqlimage.units import power_of_two_in


@dataclass(frozen=True, slots=True)
class BootSector:
    """The fields as they lie on disk, unchecked."""

    PartitionOffset: int
    VolumeLength: int
    FatOffset: int
    FatLength: int
    ClusterHeapOffset: int
    ClusterCount: int
    FirstClusterOfRootDirectory: int
    VolumeSerialNumber: int
    FileSystemRevision: int
    VolumeFlags: int
    BytesPerSectorShift: int
    SectorsPerClusterShift: int
    NumberOfFats: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where everything lies, validated: all offsets are bytes from the start of the volume."""

    bytes_per_sector: int
    bytes_per_cluster: int
    total_clusters: int
    """Clusters are numbered 2 to ``total_clusters + 1``."""
    active: int
    """Which FAT and Allocation Bitmap are current: 0 or, on a TexFAT volume, 1."""
    fat_offset: int
    """Of the active FAT."""
    heap_offset: int
    """Of cluster 2."""
    root_cluster: int
    size_bytes: int

    @property
    def end_cluster(self) -> int:
        """The first number that is no cluster's."""
        return self.total_clusters + layout.FIRST_CLUSTER

    @property
    def heap_bytes(self) -> int:
        return self.total_clusters * self.bytes_per_cluster

    @property
    def heap_end(self) -> int:
        return self.heap_offset + self.heap_bytes

    @property
    def alignment_bytes(self) -> int:
        """The largest power of two that divides every border of the heap, of a cluster and of the volume."""
        return power_of_two_in(self.heap_offset | self.bytes_per_cluster | self.size_bytes)

    def offset_of(self, cluster: int) -> int:
        return self.heap_offset + (cluster - layout.FIRST_CLUSTER) * self.bytes_per_cluster

    def clusters_for(self, size_bytes: int) -> int:
        """How many clusters hold so many bytes."""
        return -(-size_bytes // self.bytes_per_cluster)


@dataclass(frozen=True, slots=True)
class Boot:
    """A boot sector that holds, its geometry, and what had to be put up with."""

    sector: BootSector
    geometry: Geometry
    volume_flags: int
    """Of the main boot sector where that can be told, for only those are current."""
    notes: tuple[str, ...]


def is_exfat(head: bytes) -> bool:
    """Whether the first bytes of a volume, 512 at least, say that it is exFAT. Nothing else is asked of them."""
    return len(head) >= layout.BOOT_SECTOR_BYTES and _names_exfat(head)


def read_boot(device: BlockDevice) -> Boot:
    """The main boot region, or the backup where that is damaged.

    Raises :class:`InconsistentVolume`, which names what is wrong with the main one, where neither holds.
    """
    head = device.read(0, min(device.size_bytes, layout.BOOT_SECTOR_BYTES))
    if len(head) < layout.BOOT_SECTOR_BYTES:
        raise InconsistentVolume("boot sector", f"the volume has {len(head)} bytes, a boot sector has 512")
    (flags,) = struct.unpack_from("<H", head, layout.VOLUME_FLAGS_AT)
    try:
        sector = _checked_region(device, 0, head, "Main")
        return Boot(sector, geometry_of(sector, flags, device.size_bytes), flags, ())
    except InconsistentVolume as damage:
        for shift in layout.SECTOR_SHIFTS:
            offset = layout.BOOT_REGION_SECTORS << shift
            if offset + layout.BOOT_SECTOR_BYTES > device.size_bytes:
                break
            backup = device.read(offset, layout.BOOT_SECTOR_BYTES)
            try:
                sector = _checked_region(device, offset, backup, "Backup")
                current = flags if _names_exfat(head) else sector.VolumeFlags
                geometry = geometry_of(sector, current, device.size_bytes)
            except InconsistentVolume:
                continue
            if sector.BytesPerSectorShift == shift:
                note = f"its main boot region is damaged ({damage}); the backup boot region was used"
                return Boot(sector, geometry, current, (note,))
        raise


def _names_exfat(boot_sector: bytes) -> bool:
    return boot_sector.startswith(layout.FILE_SYSTEM_NAME, layout.FILE_SYSTEM_NAME_AT)


def _checked_region(device: BlockDevice, offset: int, boot_sector: bytes, which: str) -> BootSector:
    """The fields of the boot region that lies at ``offset``, whose checksum is right."""
    structure = f"{which} Boot Sector"
    if not _names_exfat(boot_sector):
        raise InconsistentVolume(structure, "FileSystemName is not EXFAT", offset_bytes=offset)
    if any(boot_sector[layout.MUST_BE_ZERO]):
        raise InconsistentVolume(structure, "MustBeZero is not zero", offset_bytes=offset)
    if boot_sector[layout.BOOT_SIGNATURE_AT :][:2] != layout.BOOT_SIGNATURE:
        raise InconsistentVolume(structure, "BootSignature is not 0xAA55", offset_bytes=offset)
    sector = BootSector(*layout.FIELDS.unpack_from(boot_sector, layout.FIELDS_AT))
    if sector.BytesPerSectorShift not in layout.SECTOR_SHIFTS:
        raise _out_of_range("BytesPerSectorShift", sector.BytesPerSectorShift, "9 to 12")
    size = 1 << sector.BytesPerSectorShift
    length = (layout.BOOT_REGION_SECTORS - 1) * size
    if offset + length + size > device.size_bytes:
        raise InconsistentVolume(structure, "the boot region reaches beyond the medium", offset_bytes=offset)
    region = bytearray(device.read(offset, length))
    for place in sorted(layout.UNCHECKED, reverse=True):
        del region[place]
    expected = rotated_sum(bytes(region), 32)
    if device.read(offset + length, size) != struct.pack("<I", expected) * (size // 4):
        raise InconsistentVolume(f"{which} Boot Checksum", f"is not 0x{expected:08X}", offset_bytes=offset + length)
    return sector


def geometry_of(sector: BootSector, volume_flags: int, medium_bytes: int) -> Geometry:
    """Validate. Raises :class:`InconsistentVolume`, which names the field, its value and what is allowed.

    Volumes of less than 1 MiB are tolerated, as are cluster heaps that leave room behind them.
    """
    if sector.FileSystemRevision >> 8 != layout.MAJOR_REVISION:
        raise InconsistentVolume(
            "FileSystemRevision", f"is 0x{sector.FileSystemRevision:04X}, only major revision 1 is known"
        )
    largest = layout.CLUSTER_SHIFT_MAX - sector.BytesPerSectorShift
    if sector.SectorsPerClusterShift > largest:
        raise _out_of_range("SectorsPerClusterShift", sector.SectorsPerClusterShift, f"0 to {largest}")
    if sector.NumberOfFats not in (1, 2):
        raise _out_of_range("NumberOfFats", sector.NumberOfFats, "1 and 2")
    active = volume_flags & layout.ACTIVE_FAT
    if active >= sector.NumberOfFats:
        raise InconsistentVolume("VolumeFlags", "ActiveFat names the second FAT, there is only one")
    bytes_per_sector = 1 << sector.BytesPerSectorShift
    size_bytes = sector.VolumeLength * bytes_per_sector
    if size_bytes > medium_bytes:
        raise InconsistentVolume("VolumeLength", f"says {size_bytes} bytes, the medium has {medium_bytes}")
    _check_regions(sector)
    last = sector.ClusterCount + 1
    if not layout.FIRST_CLUSTER <= sector.FirstClusterOfRootDirectory <= last:
        raise _out_of_range("FirstClusterOfRootDirectory", sector.FirstClusterOfRootDirectory, f"2 to {last}")
    return Geometry(
        bytes_per_sector=bytes_per_sector,
        bytes_per_cluster=bytes_per_sector << sector.SectorsPerClusterShift,
        total_clusters=sector.ClusterCount,
        active=active,
        fat_offset=(sector.FatOffset + active * sector.FatLength) * bytes_per_sector,
        heap_offset=sector.ClusterHeapOffset * bytes_per_sector,
        root_cluster=sector.FirstClusterOfRootDirectory,
        size_bytes=size_bytes,
    )


def _check_regions(sector: BootSector) -> None:
    """The FATs lie behind the boot regions, the cluster heap behind the FATs, and the volume holds it."""
    if sector.FatOffset < layout.FAT_OFFSET_MIN:
        raise _out_of_range("FatOffset", sector.FatOffset, f"{layout.FAT_OFFSET_MIN} and more")
    fats_end = sector.FatOffset + sector.FatLength * sector.NumberOfFats
    if sector.ClusterHeapOffset < fats_end:
        raise InconsistentVolume(
            "ClusterHeapOffset", f"is {sector.ClusterHeapOffset}, but the FATs end at sector {fats_end}"
        )
    if sector.VolumeLength <= sector.ClusterHeapOffset:
        raise InconsistentVolume(
            "ClusterHeapOffset", f"is {sector.ClusterHeapOffset}, but the volume has {sector.VolumeLength} sectors"
        )
    room = sector.VolumeLength - sector.ClusterHeapOffset >> sector.SectorsPerClusterShift
    most = min(room, layout.CLUSTERS_MAX)
    if not 1 <= sector.ClusterCount <= most:
        raise _out_of_range("ClusterCount", sector.ClusterCount, f"1 to {most}")
    needed = (sector.ClusterCount + layout.FIRST_CLUSTER) * layout.FAT_ENTRY_BYTES
    if sector.FatLength << sector.BytesPerSectorShift < needed:
        raise InconsistentVolume(
            "FatLength", f"is {sector.FatLength} sectors, too few for {sector.ClusterCount} clusters"
        )


def _out_of_range(field: str, value: object, allowed: str) -> InconsistentVolume:
    return InconsistentVolume(field, f"is {value}, allowed are {allowed}")
