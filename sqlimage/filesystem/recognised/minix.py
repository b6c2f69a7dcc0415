"""Minix file systems: a signature of two bytes, so everything else must fit too."""

from __future__ import annotations

import struct
from functools import partial

from sqlimage.filesystem.recognised.signature import Signature
from sqlimage.filesystem.recognised.volume import Superblock, Told, is_power_of_two

_SUPERBLOCK_AT = 1024
_ROOT_INODE = 1
_S_IFMT, _S_IFDIR = 0o170000, 0o040000
_MAGICS = {0x137F: (1, 32), 0x138F: (1, 32), 0x2468: (2, 64), 0x2478: (2, 64), 0x4D5A: (3, 64)}
"""Version and bytes of an inode."""


def _minix(order: str, version: int, inode_bytes: int, sb: Superblock) -> Told | None:
    if version == 3:
        inodes, _, imap, zmap, first, zone_log, _, _, zones = sb.numbers(f"{order}IHHHHHHII", 0)
        block = sb.number(f"{order}H", 28)
    else:
        inodes, zones, imap, zmap, first, zone_log = sb.numbers(f"{order}6H", 0)
        zones = sb.number(f"{order}I", 20) if version == 2 else zones
        block = 1024
    if inodes == 0 or zone_log > 10 or not is_power_of_two(block, 1024, 4096):
        return None
    size = zones * block << zone_log
    inode_table = (2 + imap + zmap) * block
    beyond = inode_table + inodes * inode_bytes
    if not beyond <= first * block < size <= sb.device.size_bytes:
        return None
    if not (_bitmap_fits(imap, inodes + 1, block) and _bitmap_fits(zmap, (zones - first) + 1, block)):
        return None
    root = Superblock(sb.device, inode_table + (_ROOT_INODE - 1) * inode_bytes)
    inodes_taken = Superblock(sb.device, 2 * block).raw[0] if order == "<" else 3
    if root.number(f"{order}H", 0) & _S_IFMT != _S_IFDIR or inodes_taken & 3 != 3:
        return None
    return Told(version=str(version), size_bytes=size, block_bytes=block)


def _bitmap_fits(blocks: int, bits: int, block_bytes: int) -> bool:
    """Whether a bitmap is of the size that its formatter would give it, or one block more."""
    needed = -(-bits // (8 * block_bytes))
    return needed <= blocks <= needed + 1


SIGNATURES = tuple(
    Signature(
        "minix",
        "the files of Minix are not read",
        struct.pack(f"{order}H", magic),
        (_SUPERBLOCK_AT,),
        24 if version == 3 else 16,
        partial(_minix, order, version, inode_bytes),
    )
    for order in "<>"
    for magic, (version, inode_bytes) in _MAGICS.items()
)
