"""FAT12, FAT16 and FAT32."""

from sqlimage.filesystem.fat.boot import is_fat
from sqlimage.filesystem.fat.volume import FatVolume

__all__ = ["FatVolume", "is_fat"]
