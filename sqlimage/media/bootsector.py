"""Telling a volume's boot sector from a master boot record: both end in 55 AA.

A volume boot sector carries a BIOS parameter block where a master boot record has code. Boot loaders that install
into the first sector of a disk keep the parameter block of a volume that was there before, so a block is only taken
at its word where the file allocation table it points to is there as well.
"""

from __future__ import annotations

from enum import Enum, auto

from sqlimage.device import BlockDevice
from sqlimage.media import layout
from sqlimage.units import power_of_two_in


class Sector0(Enum):
    VOLUME = auto()
    """A file system starts here."""
    MAYBE_VOLUME = auto()
    """The fields could be a parameter block; what they point to is not there."""
    OTHER = auto()


def classify(device: BlockDevice, sector: bytes) -> Sector0:
    """What the first sector (512 bytes) of ``device`` is, judged by its BIOS parameter block alone."""
    if sector[layout.BPB_OEM_NAME] in layout.OEM_NAMES_OF_VOLUMES:
        return Sector0.VOLUME
    (sector_bytes, cluster_sectors, reserved, fats, root_entries, total16, media, fat_sectors16) = (
        layout.BPB_FAT.unpack_from(sector, layout.BPB_FAT_OFFSET)
    )
    if (
        sector_bytes not in layout.BPB_BYTES_PER_SECTOR
        or cluster_sectors == 0
        or power_of_two_in(cluster_sectors) != cluster_sectors
        or reserved == 0
        or fats == 0
        or media not in layout.BPB_MEDIA
    ):
        return Sector0.OTHER
    total32 = int.from_bytes(sector[layout.BPB_TOT_SEC32_OFFSET :][:4], "little")
    fat_sectors32 = int.from_bytes(sector[layout.BPB_FATSZ32_OFFSET :][:4], "little")
    total = total16 or total32
    control = reserved + fats * (fat_sectors16 or fat_sectors32) + -(-root_entries * 32 // sector_bytes)
    if not (fat_sectors16 or fat_sectors32) or control > total:
        return Sector0.MAYBE_VOLUME
    fat_offset_bytes = reserved * sector_bytes
    if fat_offset_bytes + 3 > device.size_bytes:
        return Sector0.MAYBE_VOLUME
    # the first entry of every FAT repeats the media byte and is filled up with ones, at any width
    first = device.read(fat_offset_bytes, 3)
    sane = first[0] == media and first[1] | 0xF0 == 0xFF and first[2] == 0xFF
    return Sector0.VOLUME if sane else Sector0.MAYBE_VOLUME
