"""What a partition table says, whichever scheme wrote it down, and the rule all schemes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sqlimage.errors import InconsistentVolume


@dataclass(frozen=True, slots=True)
class Partition:
    """A stretch of a disk that holds a volume. The containers of logical partitions (MBR types 0x05, 0x0F, 0x85)
    hold none and are not listed: listed partitions never overlap."""

    number: int
    """As Linux counts: MBR primaries 1 to 4, logicals from 5 in the order of their chain; GPT entry index + 1."""
    offset_bytes: int
    length_bytes: int
    type: str
    """MBR: OSType as ``0x07``; GPT: PartitionTypeGUID in upper case."""
    name: str
    """GPT: PartitionName; MBR: empty."""
    uuid: str | None
    """GPT: UniquePartitionGUID in upper case; MBR: ``1234abcd-05``, Linux' PARTUUID, None where the disk has no
    signature."""
    bootable: bool
    """MBR: BootIndicator 0x80; GPT: the attribute Legacy BIOS Bootable."""

    @property
    def end_bytes(self) -> int:
        """The first byte after the partition."""
        return self.offset_bytes + self.length_bytes


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """A partition table that was found consistent with itself and with its disk."""

    scheme: str
    """``mbr`` or ``gpt``."""
    bytes_per_sector: int
    """The unit the table counts in."""
    disk_id: str | None
    """MBR: UniqueMBRDiskSignature as 8 lower-case hexadecimal digits, None where it is 0; GPT: DiskGUID in
    upper case."""
    partitions: tuple[Partition, ...]
    """Sorted by offset, disjoint, within the disk. May be empty (GPT)."""
    problems: tuple[str, ...]
    """What was wrong but could be mended or passed over, for the user to read."""


def check_disjoint(structure: str, partitions: Sequence[Partition], offset_bytes: int) -> tuple[Partition, ...]:
    """The partitions sorted by offset.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where two overlap; ``structure`` and ``offset_bytes`` say
    which table claims so.
    """
    ordered = tuple(sorted(partitions, key=lambda partition: partition.offset_bytes))
    for before, after in pairwise(ordered):
        if after.offset_bytes < before.end_bytes:
            raise InconsistentVolume(
                structure,
                f"partition {after.number} starts at byte {after.offset_bytes}, inside partition {before.number}, "
                f"which reaches to byte {before.end_bytes}",
                offset_bytes=offset_bytes,
            )
    return ordered
