"""Which file system lives on a device, for choosing a driver: told by magic numbers, far more than our readers read."""

from __future__ import annotations

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.probe import open_file_system

_MAGIC = (
    # (offset in bytes, magic, file system); ext says nothing on 2, 3 or 4: one driver knows them all
    (0, b"XFSB", "xfs"),  # sb_magicnum
    (0, b"hsqs", "squashfs"),
    (3, b"NTFS    ", "ntfs"),  # OEM ID
    (3, b"EXFAT   ", "exfat"),  # FileSystemName
    (1024, b"\xe2\xe1\xf5\xe0", "erofs"),  # EROFS_SUPER_MAGIC_V1
    (1080, b"\x53\xef", "ext"),  # s_magic
    (65536 + 64, b"_BHRfS_M", "btrfs"),
    (32768 + 1, b"CD001", "iso9660"),
)


def file_system_kind(device: BlockDevice) -> str | None:
    """``ext``, ``xfs``, ``btrfs``, ``squashfs``, ``erofs``, ``iso9660``, ``ntfs``, ``exfat`` or ``fat``; None where
    none of them is there."""
    try:
        # first, because every number of a FAT boot sector must agree, while a magic number may be left from before
        found = open_file_system(device)
    except InconsistentVolume:
        found = None
    if found is not None:
        name = found.facts.file_system
        return name.rstrip("0123456789") if name.startswith(("ext", "fat")) else name
    for offset, magic, kind in _MAGIC:
        if offset + len(magic) <= device.size_bytes and device.read(offset, len(magic)) == magic:
            return kind
    return None
