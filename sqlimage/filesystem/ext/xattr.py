"""Blocks of extended attributes: where they are, and that they are what they should be."""

from __future__ import annotations

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.ext import layout
from sqlimage.filesystem.ext.inode import Inodes
from sqlimage.filesystem.ext.superblock import Geometry


def check_attribute_blocks(device: BlockDevice, geometry: Geometry, inodes: Inodes) -> None:
    """Every block of attributes that an inode names has its magic and matches its checksum.

    Several inodes may name the same one. Raises :class:`~sqlimage.errors.InconsistentVolume`.
    """
    blocks, first = np.unique(inodes.file_acl, return_index=True)
    for block, row in zip(blocks.tolist(), first.tolist(), strict=True):
        if not block:
            continue
        where = f"inode {inodes.number[row]}, i_file_acl"
        if not geometry.first_data_block < block < geometry.blocks_count:
            raise InconsistentVolume(where, f"is block {block} of {geometry.blocks_count}")
        size = geometry.bytes_per_block
        raw = device.read(block * size, size)
        if int.from_bytes(raw[:4], "little") != layout.XATTR_MAGIC:
            raise InconsistentVolume(where, f"block {block} holds no extended attributes")
        if geometry.has_checksums:
            at = layout.XATTR_CHECKSUM_AT
            plain = raw[:at] + bytes(4) + raw[at + 4 :]
            right = crc32c(crc32c(geometry.checksum_seed, block.to_bytes(8, "little")), plain)
            if right != int.from_bytes(raw[at : at + 4], "little"):
                raise InconsistentVolume(where, f"block {block} does not match its checksum")
