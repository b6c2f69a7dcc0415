"""btrfs: its facts, and what of a device its chunks take."""

from sqlimage.filesystem.recognised.btrfs.superblock import is_btrfs
from sqlimage.filesystem.recognised.btrfs.volume import BtrfsVolume

__all__ = ["BtrfsVolume", "is_btrfs"]
