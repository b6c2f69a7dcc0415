"""Which file system lives on a device: asked of its first sector, answered by the reader that knows it."""

from __future__ import annotations

from sqlimage.device import BlockDevice
from sqlimage.filesystem.contract import FileSystem
from sqlimage.filesystem.ext import ExtVolume, is_ext
from sqlimage.filesystem.fat import FatVolume, is_fat
from sqlimage.filesystem.ntfs.volume import NtfsVolume, is_ntfs


def open_file_system(device: BlockDevice) -> FileSystem | None:
    """The file system on a volume, or None where no reader knows it.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where its signature is there but its boot sector cannot be.
    """
    if device.size_bytes < 512:
        return None
    head = device.read(0, min(device.size_bytes, 4096))
    if is_ntfs(head):
        return NtfsVolume(device)
    if is_fat(head):
        return FatVolume(device)
    if is_ext(head):
        return ExtVolume(device)
    return None
