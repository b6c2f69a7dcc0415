"""What lives on a device: asked of its first sectors, answered by the reader that knows it."""

from __future__ import annotations

from contextlib import suppress

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.contract import FileSystem, Recognised
from sqlimage.filesystem.exfat import ExfatVolume, is_exfat
from sqlimage.filesystem.ext import ExtVolume, find_backup, is_ext
from sqlimage.filesystem.fat import FatVolume, is_fat
from sqlimage.filesystem.iso9660 import IsoVolume, is_iso9660
from sqlimage.filesystem.ntfs.volume import NtfsVolume, is_ntfs
from sqlimage.filesystem.recognised import recognise, recognise_member
from sqlimage.filesystem.recognised.members import ELSEWHERE

_BEHIND_A_FILE_SYSTEM = "linux_raid_member"
"""Its superblock may stand at the end of the volume, behind a file system that is in use."""


def look_at(device: BlockDevice) -> tuple[FileSystem | None, Recognised | None]:
    """The file system on a volume, or else what is known to lie there; neither where nothing is.

    What begins with a header of its own (an encrypted volume, a member of an array) comes before any file system,
    since the superblock of an older one may still stand behind it; an ext whose first superblock is gone comes last.
    Raises :class:`~sqlimage.errors.InconsistentVolume` where a signature is there but what it stands in cannot be.
    """
    if device.size_bytes < 512:
        return None, None
    if (member := recognise_member(device)) is not None:
        return None, member
    if (file_system := _file_system(device)) is not None:
        return file_system, None
    if (recognised := recognise(device)) is not None:
        return None, recognised
    return (ExtVolume(device) if find_backup(device) is not None else None), None


def pool_beside(device: BlockDevice) -> Recognised | None:
    """The member of a pool or cache on a volume that has a file system too: they leave the first sectors alone, so that
    the superblock of an older file system may still stand there. Which of the two is in use cannot be told."""
    for detect in ELSEWHERE:
        with suppress(InconsistentVolume):
            found = detect(device)
            if found is not None and found.facts.file_system != _BEHIND_A_FILE_SYSTEM:
                return found
    return None


def open_file_system(device: BlockDevice) -> FileSystem | None:
    """The file system on a volume, or None where no reader knows it; raises as :func:`look_at`."""
    return look_at(device)[0]


def _file_system(device: BlockDevice) -> FileSystem | None:
    head = device.read(0, min(device.size_bytes, 4096))
    if is_ntfs(head):
        return NtfsVolume(device)
    if is_exfat(head):
        return ExfatVolume(device)
    if is_fat(head):
        return FatVolume(device)
    if is_ext(head):
        return ExtVolume(device)
    if is_iso9660(device):
        return IsoVolume(device)
    return None
