"""XFS: its facts, and where its free space lies."""

from sqlimage.filesystem.recognised.xfs.superblock import is_xfs
from sqlimage.filesystem.recognised.xfs.volume import XfsVolume

__all__ = ["XfsVolume", "is_xfs"]
