"""Blocks of extended attributes: where they are, and that they are what they should be."""

from __future__ import annotations

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.ext import layout
from sqlimage.filesystem.ext.inode import Inodes
from sqlimage.filesystem.ext.superblock import Geometry

_BLOCKS_AT_ONCE = 256


def check_attribute_blocks(device: BlockDevice, geometry: Geometry, inodes: Inodes) -> None:
    """Every block of attributes that an inode names has its magic and matches its checksum.

    Several inodes may name the same one. Raises :class:`~sqlimage.errors.InconsistentVolume`.
    """
    blocks, first = np.unique(inodes.file_acl, return_index=True)
    blocks, first = blocks[blocks != 0], first[blocks != 0]
    outside = (blocks <= geometry.first_data_block) | (blocks >= geometry.blocks_count)
    if outside.any():
        raise _damaged(inodes, first[outside], f"is block {blocks[outside][0]} of {geometry.blocks_count}")
    size = geometry.bytes_per_block
    gaps = np.flatnonzero(np.diff(blocks) != 1) + 1
    for low, end in zip([0, *gaps.tolist()], [*gaps.tolist(), len(blocks)], strict=True):
        for at in range(low, end, _BLOCKS_AT_ONCE):
            count = min(_BLOCKS_AT_ONCE, end - at)
            raw = device.read(int(blocks[at]) * size, count * size)
            for n in range(count):
                block = int(blocks[at + n])
                if problem := _problem_of(geometry, block, raw[n * size : (n + 1) * size]):
                    raise _damaged(inodes, first[at + n :], f"block {block} {problem}")


def _problem_of(geometry: Geometry, block: int, raw: bytes) -> str:
    if int.from_bytes(raw[:4], "little") != layout.XATTR_MAGIC:
        return "holds no extended attributes"
    if geometry.has_checksums:
        at = layout.XATTR_CHECKSUM_AT
        plain = raw[:at] + bytes(4) + raw[at + 4 :]
        right = crc32c(crc32c(geometry.checksum_seed, block.to_bytes(8, "little")), plain)
        if right != int.from_bytes(raw[at : at + 4], "little"):
            return "does not match its checksum"
    return ""


def _damaged(inodes: Inodes, rows: np.ndarray[tuple[int], np.dtype[np.intp]], problem: str) -> InconsistentVolume:
    return InconsistentVolume(f"inode {inodes.number[rows[0]]}, i_file_acl", problem)
