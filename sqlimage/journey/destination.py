"""What a destination is before anything is written to it: in use or not, how large, and where on its disk."""

from __future__ import annotations

import glob
import os
import stat
from contextlib import suppress

from sqlimage.errors import NotFoundError, RefusedError
from sqlimage.media.file import FileDevice
from sqlimage.media.partition import find_partition
from sqlimage.units import SECTOR_BYTES


def begins_at(device: FileDevice, partition: int | None) -> int | None:
    """Before how many sectors of its disk a partition begins; None for what is not known to be one."""
    if partition is not None:
        return find_partition(device, partition).offset_bytes // device.bytes_per_sector
    if not device.is_block_device:
        return None
    number = os.stat(device.path).st_rdev
    place = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
    try:
        if not os.path.exists(f"{place}/partition"):
            return None
        with open(f"{place}/start", encoding="ascii") as file:
            return int(file.read()) * SECTOR_BYTES // device.bytes_per_sector
    except (OSError, ValueError):
        return None


def is_block_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def refuse_taken(path: str, *, force: bool) -> None:
    """A file that holds something is not replaced unless told. Raises :class:`~sqlimage.errors.RefusedError`."""
    is_empty_file = os.path.isfile(path) and os.path.getsize(path) == 0
    if os.path.lexists(path) and not (force or is_empty_file or os.path.isdir(path)):
        raise RefusedError(f"{path}: exists and is not empty", hint="use --force to replace it")


def check_destination(destination: str, *, partition: int | None = None, force: bool = False) -> None:
    """What of a destination can be refused before anything is known of the image: a file that holds something, a
    directory that is not there, what is in use. For those who first have to fetch it.

    Raises :class:`~sqlimage.errors.RefusedError` and :class:`~sqlimage.errors.NotFoundError`.
    """
    path = os.path.realpath(destination)
    refuse_mounted(path)
    if partition is None and not is_block_device(path):
        refuse_taken(path, force=force)
        if not os.path.isdir(os.path.dirname(path)):
            raise NotFoundError(f"{os.path.dirname(path)}: no such directory")
    elif not os.path.exists(path):
        raise NotFoundError(f"{path}: no such file or device")


def refuse_mounted(path: str) -> None:
    """A file behind a loop device is in use, and writing under a mounted file system destroys it."""
    for backing in glob.glob("/sys/block/loop*/loop/backing_file"):
        with suppress(OSError), open(backing, encoding="utf-8", errors="surrogateescape") as file:
            if file.read().rstrip("\n") == path:
                device = backing.split("/")[3]
                raise RefusedError(f"{path}: is in use as /dev/{device}", hint=f"run `losetup -d /dev/{device}` first")
