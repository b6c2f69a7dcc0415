"""The superblock of XFS, or the copy of it in another allocation group: parsed, and validated against itself and its
medium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.recognised.volume import text_of
from sqlimage.filesystem.recognised.xfs import layout

_ALL = 0xFFFFFFFF
_TOO_LONG = "superblock, sb_dblocks"
_GUESSED_AG_COUNTS = (4, 2, 3, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a valid superblock says; blocks count within their allocation group (AG)."""

    version: int
    """4 or 5; the latter has checksums."""
    block_bytes: int
    sector_bytes: int
    blocks: int
    ag_blocks: int
    ag_count: int
    log_ag: int
    log_start: int
    log_blocks: int
    """0 where the log lies on another device."""
    free_blocks: int | None
    """None where the superblock does not keep it up."""
    uuid: bytes
    meta_uuid: bytes
    """What the metadata has; another than ``uuid`` where that was changed."""
    label: str | None
    size_bytes: int
    unusable: str | None
    """Why free space is not looked at, whatever the log says."""
    copy_in_ag: int

    def length_of(self, ag: int) -> int:
        """Blocks of an allocation group; the last may be shorter."""
        return min(self.ag_blocks, self.blocks - ag * self.ag_blocks)

    def place_of(self, ag: int, block: int = 0) -> int:
        """Bytes from the start of the volume."""
        return (ag * self.ag_blocks + block) * self.block_bytes


def is_xfs(head: bytes) -> bool:
    return head[:4] == layout.SB_MAGIC


def read_geometry(device: BlockDevice) -> tuple[Geometry, InconsistentVolume | None]:
    """What the superblock says, or the copy in the second allocation group where the first is damaged; then also what
    is wrong with it.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where neither is right or the volume is longer than the device.
    """
    try:
        return validate(_read(device, 0), device.size_bytes, 0), None
    except InconsistentVolume as problem:
        if problem.structure == _TOO_LONG:
            raise
        for at in _places_of_copies(device):
            try:
                geometry = validate(_read(device, at), device.size_bytes, 1)
            except InconsistentVolume:
                continue
            if geometry.place_of(1) == at:
                return geometry, problem
        raise


def _places_of_copies(device: BlockDevice) -> Iterator[int]:
    """Where the second allocation group may begin: as the damaged superblock says, or as formatting divides."""
    field = np.frombuffer(_read(device, 0), dtype=layout.SUPERBLOCK, count=1)[0]
    yield int(field["sb_agblocks"]) * int(field["sb_blocksize"])
    for block_log in range(9, 17):
        blocks = device.size_bytes >> block_log
        yield from (-(-blocks // count) << block_log for count in _GUESSED_AG_COUNTS)
        yield layout.AG_BYTES_MAX - 1 >> block_log << block_log


def _read(device: BlockDevice, at: int) -> bytes:
    there = min(layout.SECTOR_BYTES_MAX, device.size_bytes - at)
    if there < layout.SB_BYTES:
        raise InconsistentVolume("superblock", f"the medium has {device.size_bytes} bytes", offset_bytes=at)
    return device.read(at, there)


def validate(raw: bytes, device_bytes: int, ag: int) -> Geometry:
    """The geometry by the superblock ``raw`` of an allocation group, as far as it counts here.

    Raises :class:`~sqlimage.errors.InconsistentVolume` naming the field where one is out of its range.
    """
    field = np.frombuffer(raw, dtype=layout.SUPERBLOCK, count=1)[0]

    def number(name: str) -> int:
        return int(field[name])

    def check(holds: bool, name: str, allowed: str) -> None:
        if not holds:
            raise InconsistentVolume(f"superblock, {name}", f"is {number(name)}, must be {allowed}")

    if not is_xfs(raw):
        raise InconsistentVolume("superblock, sb_magicnum", "is not XFSB")
    version = number("sb_versionnum") & layout.VERSION_MASK
    check(version in (4, 5), "sb_versionnum", "of version 4 or 5")
    sector, block = number("sb_sectsize"), number("sb_blocksize")
    check(9 <= number("sb_sectlog") <= 15 and sector == 1 << number("sb_sectlog"), "sb_sectsize", "1 << sb_sectlog")
    check(9 <= number("sb_blocklog") <= 16 and block == 1 << number("sb_blocklog"), "sb_blocksize", "1 << sb_blocklog")
    if version == 5:
        covered = raw[:sector]
        check(len(covered) == sector, "sb_sectsize", f"at most the {len(raw)} bytes that are there")
        right = checksum(covered, layout.SB_CRC_AT)
        check(number("sb_crc") == right, "sb_crc", f"{right}")
    ag_blocks, ag_count, blocks = number("sb_agblocks"), number("sb_agcount"), number("sb_dblocks")
    check(layout.AG_BYTES_MIN <= ag_blocks * block < layout.AG_BYTES_MAX, "sb_agblocks", "16 MiB to 1 TiB")
    check((ag_blocks - 1).bit_length() == number("sb_agblklog"), "sb_agblocks", "of sb_agblklog bits")
    check(ag_count > 0, "sb_agcount", "at least 1")
    check(
        (ag_count - 1) * ag_blocks + layout.AG_BLOCKS_MIN <= blocks <= ag_count * ag_blocks,
        "sb_agcount",
        f"that which {blocks} blocks in groups of {ag_blocks} have",
    )
    incompat = number("sb_features_incompat") if version == 5 else 0
    size = blocks * block
    if incompat & layout.INCOMPAT_ZONED and number("sb_rtstart"):
        size = (number("sb_rtstart") + number("sb_rblocks")) * block
    if size > device_bytes:
        raise InconsistentVolume(_TOO_LONG, f"says the volume has {size} bytes, the medium has {device_bytes}")
    log_ag, log_start = divmod(number("sb_logstart"), 1 << number("sb_agblklog"))
    log_blocks = number("sb_logblocks") if number("sb_logstart") else 0
    check(log_ag < ag_count, "sb_logstart", f"in one of {ag_count} groups")
    check(log_start + log_blocks <= ag_blocks, "sb_logblocks", f"at most the {ag_blocks} of a group")
    uuid = field["sb_uuid"].tobytes()
    lazy = version == 5 or number("sb_features2") & layout.VERSION2_LAZYSBCOUNT
    return Geometry(
        version=version,
        block_bytes=block,
        sector_bytes=sector,
        blocks=blocks,
        ag_blocks=ag_blocks,
        ag_count=ag_count,
        log_ag=log_ag,
        log_start=log_start,
        log_blocks=log_blocks,
        free_blocks=number("sb_fdblocks") if lazy else None,
        uuid=uuid,
        meta_uuid=field["sb_meta_uuid"].tobytes() if incompat & layout.INCOMPAT_META_UUID else uuid,
        label=text_of(field["sb_fname"].tobytes()),
        size_bytes=size,
        unusable=_why_unusable(incompat, number("sb_features_ro_compat") if version == 5 else 0, number),
        copy_in_ag=ag,
    )


def _why_unusable(incompat: int, ro_compat: int, number: Callable[[str], int]) -> str | None:
    if number("sb_inprogress"):
        return "its making was not finished"
    if incompat & layout.INCOMPAT_NEEDSREPAIR:
        return "it is marked as needing repair"
    if incompat & layout.INCOMPAT_ZONED:
        return "it is zoned"
    if unknown := incompat & ~layout.INCOMPAT_KNOWN | ro_compat & ~layout.RO_COMPAT_KNOWN:
        return f"it has features that are not known ({unknown:#x})"
    return None


def checksum(raw: bytes, at: int) -> int:
    """CRC-32C of a structure, its own field at ``at`` taken as zeros."""
    return crc32c(_ALL, raw[:at] + bytes(4) + raw[at + 4 :]) ^ _ALL
