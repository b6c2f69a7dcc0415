"""ext2, ext3 and ext4."""

from sqlimage.filesystem.ext.superblock import find_backup, is_ext
from sqlimage.filesystem.ext.volume import ExtVolume

__all__ = ["ExtVolume", "find_backup", "is_ext"]
