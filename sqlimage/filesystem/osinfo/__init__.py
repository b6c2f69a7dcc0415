"""Which operating system lives on a volume, by a few of its files: :func:`find_system`."""

from sqlimage.filesystem.osinfo.find import find_system
from sqlimage.filesystem.osinfo.system import OperatingSystem

__all__ = ["OperatingSystem", "find_system"]
