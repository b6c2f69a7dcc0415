"""What lies on a volume that no reader knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.contract import Recognised
from sqlimage.filesystem.recognised import apple, filesystems, members, minix
from sqlimage.filesystem.recognised.btrfs import BtrfsVolume, is_btrfs
from sqlimage.filesystem.recognised.swap import swap
from sqlimage.filesystem.recognised.udf import udf
from sqlimage.filesystem.recognised.volume import WholeVolume
from sqlimage.filesystem.recognised.xfs import XfsVolume, is_xfs
from sqlimage.units import SECTOR_BYTES

_Detector = Callable[[BlockDevice], Recognised | None]


def recognise(device: BlockDevice) -> Recognised | None:
    """What lies on a volume, by its superblock. To be asked once the readers of file systems know nothing of it.

    Where something else is found too, nothing of the volume is left out: one of the two is what an older file system
    has left behind.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where a signature is there but its superblock contradicts
    itself or the device, and nothing else is recognised.
    """
    found, problems = _ask(device, _DETECTORS)
    if not found:
        if problems:
            raise problems[0]
        return None
    first, *others = found
    if others and first.facts.file_system in _LEAVING_OUT:
        names = " and ".join(sorted({other.facts.file_system for other in others}))
        return WholeVolume(first.facts, f"{first.facts.file_system}, but {names} too: all of it is kept")
    return first


def recognise_member(device: BlockDevice) -> Recognised | None:
    """What is to be asked before any reader of a file system: encrypted volumes and members of arrays and volume
    groups that begin with a header of their own, behind which the superblock of an older file system may still stand.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where such a header says that the volume is larger than the
    device.
    """
    found, problems = _ask(device, members.AT_THE_START)
    if problems and not found:
        raise problems[0]
    return found[0] if found else None


def _ask(device: BlockDevice, detectors: Iterable[_Detector]) -> tuple[list[Recognised], list[InconsistentVolume]]:
    """All that is found, in the order of the detectors."""
    found, problems = [], []
    for detect in detectors if device.size_bytes >= SECTOR_BYTES else ():
        try:
            volume = detect(device)
        except InconsistentVolume as problem:
            problems.append(problem)
        else:
            if volume is not None:
                found.append(volume)
    return found, problems


def _xfs(device: BlockDevice) -> XfsVolume | None:
    return XfsVolume(device) if is_xfs(device.read(0, SECTOR_BYTES)) else None


def _btrfs(device: BlockDevice) -> BtrfsVolume | None:
    return BtrfsVolume(device) if is_btrfs(device) else None


_LEAVING_OUT = ("xfs", "btrfs", "swap")
_DETECTORS: tuple[_Detector, ...] = (
    *members.AT_THE_START,
    _xfs,
    _btrfs,
    swap,
    *filesystems.SIGNATURES,
    *apple.SIGNATURES,
    *minix.SIGNATURES,
    udf,
    *members.ELSEWHERE,
)
