"""The boot sector, its backup and FSINFO of the new volume. Boot code and all other fields stay as they are.

Microsoft FAT specification (2005), "Boot Sector and BPB" and "FAT32 FSInfo Sector Structure and Backup Boot Sector".
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume, RefusedError
from sqlimage.filesystem.fat import layout
from sqlimage.filesystem.fat.boot import BootSector, Geometry, geometry_of, parse
from sqlimage.filesystem.fat.relocate_layout import ClusterMoves
from sqlimage.filesystem.fat.relocate_ledger import Ledger
from sqlimage.filesystem.relocation import Wish

FSINFO_COUNTS = slice(layout.FSI_Free_Count_OFFSET, layout.FSI_Free_Count_OFFSET + layout.FSI_Free_Count.size)


def new_fields(boot: BootSector, old: Geometry, new: Geometry, wish: Wish) -> dict[str, int]:
    """The fields of the BPB that change, by name."""
    sector, fat32 = old.bytes_per_sector, old.fat_bits == 32
    fields: dict[str, int | None] = {
        "BPB_SecPerTrk": wish.sectors_per_track,
        "BPB_NumHeads": wish.tracks_per_cylinder,
        "BPB_HiddSec": wish.hidden_sectors,
        "BPB_FATSz32" if fat32 else "BPB_FATSz16": new.fat_bytes // sector,
    }
    if new.size_bytes != old.size_bytes:
        total = new.size_bytes // sector
        short = not fat32 and total < 1 << 16
        fields |= {"BPB_TotSec16": total if short else 0, "BPB_TotSec32": 0 if short else total}
    if fat32:
        fields["BPB_RootClus"] = new.root_cluster
    return {name: value for name, value in fields.items() if value is not None and value != getattr(boot, name)}


def with_fields(boot_sector: bytes, fields: Mapping[str, int]) -> bytes:
    """Raises :class:`RefusedError` where a field cannot hold its value, or boot code lies where it would be."""
    changed = bytearray(boot_sector)
    code = _code_offset(boot_sector)
    for name, value in fields.items():
        offset, length = layout.BPB_FIELD[name]
        held = min(length, max(code - offset, 0))  # DOS 3.0 had a BPB_HiddSec of 16 bits, DOS 2 none
        if not 0 <= value < 1 << 8 * held:
            end = "" if held == length else f": the boot code begins at byte {code}"
            raise RefusedError(f"{name} cannot be {value}, it holds {held} bytes{end}")
        changed[offset : offset + held] = value.to_bytes(held, "little")
    return bytes(changed)


def fix_boot_sectors(
    device: BlockDevice,
    boot: BootSector,
    old: Geometry,
    boot_sector: bytes,
    fields: Mapping[str, int],
    ledger: Ledger,
) -> None:
    """The boot sector, and its backup where that says the same of the volume as it does."""
    named = ", ".join(fields)
    ledger.add(0, boot_sector, with_fields(boot_sector, fields), f"boot sector: {named}")
    if (offset := _in_reserved(boot, old, boot.BPB_BkBootSec)) is not None:
        backup = device.read(offset, layout.BOOT_SECTOR_BYTES)
        if _says_the_same(backup, old):
            ledger.add(offset, backup, with_fields(backup, fields), f"backup boot sector: {named}")


def fix_fsinfo(
    device: BlockDevice, boot: BootSector, old: Geometry, new: Geometry, moves: ClusterMoves, ledger: Ledger
) -> None:
    """FSINFO and its backup: how many clusters are free, and the first of them."""
    taken = moves.taken()
    free = new.total_clusters - taken.total
    first = layout.FIRST_CLUSTER
    if len(taken) and taken.start[0] == first:
        first = int(taken.end[0])
    counts = layout.FSI_Free_Count.pack(free, first if free else layout.FSI_UNKNOWN)
    places = {boot.BPB_FSInfo: "FSINFO"}
    places.setdefault(boot.BPB_BkBootSec + boot.BPB_FSInfo, "backup of FSINFO")
    for sector, name in places.items():
        if (offset := _in_reserved(boot, old, sector)) is None:
            continue
        found = device.read(offset, layout.FSINFO_BYTES)
        if all(found[at : at + 4] == value for at, value in layout.FSI_SIGNATURES):
            changed = found[: FSINFO_COUNTS.start] + counts + found[FSINFO_COUNTS.stop :]
            ledger.add(offset, found, changed, f"{name}: FSI_Free_Count, FSI_Nxt_Free")


def _in_reserved(boot: BootSector, old: Geometry, sector: int) -> int | None:
    """The place of a sector behind the first, within the reserved ones of FAT32."""
    inside = old.fat_bits == 32 and 0 < sector < boot.BPB_RsvdSecCnt
    return sector * old.bytes_per_sector if inside else None


def _says_the_same(backup: bytes, geometry: Geometry) -> bool:
    try:
        return geometry_of(parse(backup)) == geometry
    except InconsistentVolume:
        return False


def _code_offset(boot_sector: bytes) -> int:
    """Where the boot code begins, if that is within the BPB as later systems have it; else the end of the sector."""
    old = boot_sector[22:24] != b"\0\0"  # BPB_FATSz16: FAT32 has all of the BPB
    target = 2 + boot_sector[1] if boot_sector[0] == layout.JUMPS[0] else 3 + boot_sector[1] + 256 * boot_sector[2]
    return target if old and layout.BPB_DOS2_END <= target < layout.BPB_FAT16_END else layout.BOOT_SECTOR_BYTES
