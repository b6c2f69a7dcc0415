"""The boot sector, its backup behind the last sector, and what lies behind the last cluster."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from sqlimage.device import BlockDevice
from sqlimage.errors import UsageError
from sqlimage.filesystem.ntfs import layout
from sqlimage.filesystem.ntfs.boot import Geometry, is_ntfs
from sqlimage.filesystem.ntfs.relocate_fixups import differences
from sqlimage.filesystem.ntfs.relocate_size import Span
from sqlimage.filesystem.relocation import Wish
from sqlimage.fixup import Fixup

_U16_MAX, _U32_MAX = (1 << 16) - 1, (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class BootFields:
    """What of a boot sector changes."""

    total_sectors: int
    mft_lcn: int
    mft2_lcn: int
    hidden_sectors: int
    sectors_per_track: int
    number_of_heads: int

    def put_into(self, sector: bytes) -> bytes:
        out = bytearray(sector)
        track = self.sectors_per_track, self.number_of_heads, self.hidden_sectors
        struct.pack_into("<HHI", out, layout.SECTORS_PER_TRACK_AT, *track)
        struct.pack_into("<QQQ", out, layout.TOTAL_SECTORS_AT, self.total_sectors, self.mft_lcn, self.mft2_lcn)
        return bytes(out)


def boot_fields(geometry: Geometry, span: Span, mft_lcn: int, mft2_lcn: int, wish: Wish) -> BootFields:
    """The fields as wished. A number of hidden sectors that 32 bits cannot hold becomes 0, as mkntfs has it.

    Raises :class:`~sqlimage.errors.UsageError` where another one is out of its range.
    """
    boot = geometry.boot
    hidden = boot.hidden_sectors if wish.hidden_sectors is None else wish.hidden_sectors
    track = boot.sectors_per_track if wish.sectors_per_track is None else wish.sectors_per_track
    heads = boot.number_of_heads if wish.tracks_per_cylinder is None else wish.tracks_per_cylinder
    for name, value in (("SectorsPerTrack", track), ("NumberOfHeads", heads)):
        if not 0 <= value <= _U16_MAX:
            raise UsageError(f"NTFS: {name} is to be {value}, must be 0 to {_U16_MAX}")
    if hidden < 0:
        raise UsageError(f"NTFS: HiddenSectors is to be {hidden}, must be 0 or more")
    return BootFields(span.total_sectors, mft_lcn, mft2_lcn, hidden if hidden <= _U32_MAX else 0, track, heads)


def boot_fixups(device: BlockDevice, geometry: Geometry, span: Span, fields: BootFields) -> Iterator[Fixup]:
    """Of the boot sector and its backup."""
    size = geometry.boot.bytes_per_sector
    first = device.read(0, size)
    yield from differences(first, fields.put_into(first), 0, "boot sector")
    end = span.total_sectors * size
    if span.size_bytes <= end:
        return
    if _has_backup(geometry):
        backup = device.read(geometry.boot.total_sectors * size, size)
        new = fields.put_into(backup if is_ntfs(backup) else first)
        yield from differences(backup, new, end, "backup boot sector")
    else:
        yield from differences(bytes(size), fields.put_into(first), end, "backup boot sector")


def _has_backup(geometry: Geometry) -> bool:
    return geometry.size_bytes > geometry.boot.total_sectors * geometry.boot.bytes_per_sector


def _uncounted(geometry: Geometry, total_sectors: int) -> int:
    """Bytes of the sectors that make no whole cluster."""
    return total_sectors * geometry.boot.bytes_per_sector % geometry.bytes_per_cluster


def tail_moves(geometry: Geometry, span: Span) -> Iterator[tuple[int, int, int]]:
    """Old place, new place and length of what lies behind the last cluster: sectors that make no cluster, and the
    backup boot sector."""
    size, unit = geometry.boot.bytes_per_sector, geometry.bytes_per_cluster
    kept = min(_uncounted(geometry, geometry.boot.total_sectors), _uncounted(geometry, span.total_sectors))
    if kept:
        yield geometry.total_clusters * unit, span.clusters * unit, kept
    if _has_backup(geometry) and span.size_bytes > span.total_sectors * size:
        yield geometry.boot.total_sectors * size, span.total_sectors * size, size
