"""The boot sector: parsed, then validated into the geometry that everything else counts by.

Microsoft FAT specification (2005), "Boot Sector and BPB" and "FAT Type Determination".
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.fat import layout
from sqlimage.units import power_of_two_in

FOREIGN_NAMES = (b"NTFS    ", b"EXFAT   ", b"-FVE-FS-")
"""BS_OEMName of other file systems whose boot sectors have a BPB of the same shape."""


@dataclass(frozen=True, slots=True)
class BootSector:
    """The fields as they lie on disk, unchecked. ``BPB_FATSz32`` and what follows are 0 where FATSz16 is not."""

    BS_jmpBoot: bytes
    BS_OEMName: bytes
    signed: bool
    """0x55 0xAA at byte 510."""
    BPB_BytsPerSec: int
    BPB_SecPerClus: int
    BPB_RsvdSecCnt: int
    BPB_NumFATs: int
    BPB_RootEntCnt: int
    BPB_TotSec16: int
    BPB_Media: int
    BPB_FATSz16: int
    BPB_SecPerTrk: int
    BPB_NumHeads: int
    BPB_HiddSec: int
    BPB_TotSec32: int
    BPB_FATSz32: int
    BPB_ExtFlags: int
    BPB_FSVer: int
    BPB_RootClus: int
    BPB_FSInfo: int
    BPB_BkBootSec: int
    BS_Reserved1: int
    BS_BootSig: int
    BS_VolID: int
    BS_VolLab: bytes
    BS_FilSysType: bytes

    @property
    def serial(self) -> str | None:
        return f"{self.BS_VolID:08X}" if self.BS_BootSig in layout.BOOT_SIGNATURES else None

    @property
    def label(self) -> bytes | None:
        """``BS_VolLab``, unless it says that there is none."""
        told = self.BS_BootSig == layout.BOOT_SIGNATURE_WITH_LABEL and self.BS_VolLab != layout.NO_NAME
        return self.BS_VolLab if told else None

    @property
    def active_fat(self) -> int | None:
        """The only FAT that is kept, by number; None: all are, and are alike."""
        single = self.BPB_FATSz16 == 0 and self.BPB_ExtFlags & layout.EXT_FLAGS_ONE_FAT_ACTIVE
        return self.BPB_ExtFlags & layout.EXT_FLAGS_ACTIVE_FAT if single else None

    @property
    def dirty(self) -> bool:
        return self.BS_BootSig in layout.BOOT_SIGNATURES and bool(self.BS_Reserved1 & layout.RESERVED1_DIRTY)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where everything lies, validated: all offsets are bytes from the start of the volume."""

    fat_bits: int
    """12, 16 or 32."""
    bytes_per_sector: int
    bytes_per_cluster: int
    total_clusters: int
    """Clusters are numbered 2 to ``total_clusters + 1``."""
    fat_offset: int
    """Of the FAT that is kept: the first, unless ``BPB_ExtFlags`` names another."""
    fat_bytes: int
    root_offset: int
    root_bytes: int
    """The fixed root directory of FAT12 and FAT16, in whole sectors."""
    root_entries: int
    root_cluster: int
    """FAT32; 0 otherwise."""
    heap_offset: int
    """Of cluster 2."""
    size_bytes: int

    @property
    def end_cluster(self) -> int:
        """The first number that is no cluster's."""
        return self.total_clusters + layout.FIRST_CLUSTER

    @property
    def heap_end(self) -> int:
        return self.heap_offset + self.total_clusters * self.bytes_per_cluster

    @property
    def alignment_bytes(self) -> int:
        """The largest power of two that divides every border of a region, cluster or volume."""
        return power_of_two_in(self.root_offset | self.heap_offset | self.bytes_per_cluster | self.size_bytes)

    def offset_of(self, cluster: int) -> int:
        return self.heap_offset + (cluster - layout.FIRST_CLUSTER) * self.bytes_per_cluster


def is_fat(boot_sector: bytes) -> bool:
    """Whether the first 512 bytes of a volume are a FAT boot sector; more bytes are ignored.

    Every number of the BPB must be possible and agree with the others, so no name has to be trusted. A boot record
    of partitions, NTFS, exFAT, HPFS and ISO 9660 are not FAT.
    """
    try:
        geometry_of(parse(boot_sector))
    except InconsistentVolume:
        return False
    return True


def parse(boot_sector: bytes) -> BootSector:
    """The fields of the first 512 bytes. Raises :class:`InconsistentVolume` where there are fewer."""
    if len(boot_sector) < layout.BOOT_SECTOR_BYTES:
        raise InconsistentVolume("boot sector", f"the volume has {len(boot_sector)} bytes, a boot sector has 512")
    common = layout.BPB.unpack_from(boot_sector, layout.BPB_OFFSET)
    fat32: tuple[int, ...] = (0, 0, 0, 0, 0, 0)
    extended_at = layout.BS_EXTENDED_OFFSET_FAT16
    if common[7] == 0:  # BPB_FATSz16
        fat32 = layout.BPB_FAT32.unpack_from(boot_sector, layout.BPB_FAT32_OFFSET)
        extended_at = layout.BS_EXTENDED_OFFSET_FAT32
    extended = layout.BS_EXTENDED.unpack_from(boot_sector, extended_at)
    signed = boot_sector[layout.SIGNATURE_OFFSET :][:2] == layout.SIGNATURE
    return BootSector(boot_sector[:3], boot_sector[layout.BS_OEMName], signed, *common, *fat32, *extended[1:])


def geometry_of(boot: BootSector) -> Geometry:
    """Validate. Raises :class:`InconsistentVolume`, which names the field, its value and what is allowed."""
    _check_kind(boot)
    _check_fields(boot)
    sector = boot.BPB_BytsPerSec
    fat_sectors = boot.BPB_FATSz16 or boot.BPB_FATSz32
    total_sectors = boot.BPB_TotSec16 or boot.BPB_TotSec32
    root_sector = boot.BPB_RsvdSecCnt + boot.BPB_NumFATs * fat_sectors
    heap_sector = root_sector - -boot.BPB_RootEntCnt * layout.ENTRY_BYTES // sector
    if heap_sector >= total_sectors:
        raise InconsistentVolume(
            "BPB_TotSec16/32", f"is {total_sectors}, but the clusters begin at sector {heap_sector}"
        )
    clusters = (total_sectors - heap_sector) // boot.BPB_SecPerClus
    bits = _fat_bits(boot, clusters)
    if fat_sectors * sector * 8 // bits < clusters + layout.FIRST_CLUSTER:
        raise InconsistentVolume(
            "BPB_FATSz16/32", f"is {fat_sectors} sectors, too few for the {clusters} clusters of {bits} bits"
        )
    active = 0
    if bits == 32:
        active = boot.active_fat or 0
        if active >= boot.BPB_NumFATs:
            raise InconsistentVolume("BPB_ExtFlags", f"names FAT {active}, BPB_NumFATs is {boot.BPB_NumFATs}")
        if not layout.FIRST_CLUSTER <= boot.BPB_RootClus < clusters + layout.FIRST_CLUSTER:
            raise InconsistentVolume("BPB_RootClus", f"is {boot.BPB_RootClus}, allowed are 2 to {clusters + 1}")
    return Geometry(
        fat_bits=bits,
        bytes_per_sector=sector,
        bytes_per_cluster=sector * boot.BPB_SecPerClus,
        total_clusters=clusters,
        fat_offset=(boot.BPB_RsvdSecCnt + active * fat_sectors) * sector,
        fat_bytes=fat_sectors * sector,
        root_offset=root_sector * sector,
        root_bytes=(heap_sector - root_sector) * sector,
        root_entries=boot.BPB_RootEntCnt,
        root_cluster=boot.BPB_RootClus if bits == 32 else 0,
        heap_offset=heap_sector * sector,
        size_bytes=total_sectors * sector,
    )


def _check_kind(boot: BootSector) -> None:
    """Whether somebody wrote a FAT boot sector here at all."""
    if boot.BS_OEMName in FOREIGN_NAMES or boot.BS_FilSysType.startswith((b"HPFS", b"NTFS")):
        raise InconsistentVolume("BS_OEMName", "names another file system", offset_bytes=3)
    if not (boot.signed or boot.BS_jmpBoot[0] in layout.JUMPS or boot.BS_FilSysType.startswith(b"FAT")):
        raise InconsistentVolume("BS_jmpBoot", "no jump, no 0x55 0xAA and no name of a FAT", offset_bytes=0)


def _check_fields(boot: BootSector) -> None:
    """Each field for itself."""
    if boot.BPB_BytsPerSec not in (512, 1024, 2048, 4096):
        raise InconsistentVolume("BPB_BytsPerSec", f"is {boot.BPB_BytsPerSec}, allowed are 512, 1024, 2048 and 4096")
    if boot.BPB_SecPerClus.bit_count() != 1:
        raise InconsistentVolume("BPB_SecPerClus", f"is {boot.BPB_SecPerClus}, allowed are powers of two to 128")
    if not (boot.BPB_Media == 0xF0 or boot.BPB_Media >= 0xF8):
        raise InconsistentVolume("BPB_Media", f"is 0x{boot.BPB_Media:02X}, allowed are 0xF0 and 0xF8 to 0xFF")
    for name, value in (
        ("BPB_RsvdSecCnt", boot.BPB_RsvdSecCnt),
        ("BPB_NumFATs", boot.BPB_NumFATs),
        ("BPB_FATSz16/32", boot.BPB_FATSz16 or boot.BPB_FATSz32),
        ("BPB_TotSec16/32", boot.BPB_TotSec16 or boot.BPB_TotSec32),
    ):
        if value == 0:
            raise InconsistentVolume(name, "is 0, at least 1 is needed")
    if boot.BPB_FSVer:
        raise InconsistentVolume("BPB_FSVer", f"is 0x{boot.BPB_FSVer:04X}, only version 0 is known")
    if boot.BPB_FATSz16 and boot.BPB_RootEntCnt == 0:
        raise InconsistentVolume("BPB_RootEntCnt", "is 0, which only FAT32 allows")


def _fat_bits(boot: BootSector, clusters: int) -> int:
    """The type, by the number of clusters alone; formatters also make small FAT32, which only BPB_FATSz16 tells."""
    limit = layout.CLUSTERS_FAT32_MAX if boot.BPB_FATSz16 == 0 else layout.CLUSTERS_FAT32_MIN - 1
    if not 1 <= clusters <= limit:
        raise InconsistentVolume("BPB_SecPerClus", f"gives {clusters} clusters, allowed are 1 to {limit}")
    if boot.BPB_FATSz16 == 0:
        return 32
    return 12 if clusters < layout.CLUSTERS_FAT16_MIN else 16
