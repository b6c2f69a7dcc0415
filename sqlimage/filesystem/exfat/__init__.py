"""exFAT."""

from sqlimage.filesystem.exfat.boot import is_exfat
from sqlimage.filesystem.exfat.volume import ExfatVolume

__all__ = ["ExfatVolume", "is_exfat"]
