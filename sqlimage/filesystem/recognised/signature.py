"""A kind of volume by its signature: some bytes at a known place, and what the superblock around them tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlimage.device import BlockDevice
from sqlimage.filesystem.recognised.volume import Superblock, Told, WholeVolume, facts_of
from sqlimage.units import SECTOR_BYTES

Place = int | Callable[[int], int]
"""Bytes from the start of the device, or told by its size in bytes."""


def nothing_told(superblock: Superblock) -> Told | None:
    return Told()


@dataclass(frozen=True, slots=True)
class Signature:
    """One row of a table of signatures. Called with a device, it answers with the volume or None."""

    name: str
    """As ``blkid`` has it, in lower case."""
    reason: str
    """Why its files are not here; ``{version}`` stands for the version found."""
    magic: bytes
    places: tuple[Place, ...] = (0,)
    """Where its superblock may begin."""
    magic_at: int = 0
    """In the superblock."""
    parse: Callable[[Superblock], Told | None] = nothing_told
    """What the superblock tells; None where it cannot be one, which short signatures need."""

    def __call__(self, device: BlockDevice) -> WholeVolume | None:
        """Raises :class:`~sqlimage.errors.InconsistentVolume` where the volume is larger than the device."""
        size = device.size_bytes
        for place in self.places:
            at = place if isinstance(place, int) else place(size)
            magic_at = at + self.magic_at
            if at < 0 or max(magic_at + len(self.magic), at + SECTOR_BYTES) > size:
                continue
            if device.read(magic_at, len(self.magic)) != self.magic:
                continue
            told = self.parse(Superblock(device, at))
            if told is not None:
                return WholeVolume(facts_of(self.name, told, device, at), self.reason.format(version=told.version))
        return None
