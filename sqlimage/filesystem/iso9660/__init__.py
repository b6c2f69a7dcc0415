"""ISO 9660 with Rock Ridge, Joliet, El Torito and zisofs."""

from sqlimage.filesystem.iso9660.descriptor import is_iso9660
from sqlimage.filesystem.iso9660.volume import IsoVolume

__all__ = ["IsoVolume", "is_iso9660"]
