"""On-disk fields of btrfs, in the spelling of the kernel's ``btrfs_tree.h``. Constants only. Numbers are little-endian;
"logical" addresses are those of the whole file system, which chunks lay out over its devices."""

from __future__ import annotations

import struct

import numpy as np

from sqlimage.filesystem.recognised.structure import structure

SUPERBLOCK_BYTES = 4096
SUPERBLOCKS_AT = (64 << 10, 64 << 20, 256 << 30)
RESERVED_BYTES = 1 << 20
"""Below this no chunk lies: boot loaders have it."""
MAGIC = b"_BHRfS_M"
MAGIC_AT = 64
SUPERBLOCK = structure(
    SUPERBLOCK_BYTES,
    {
        "fsid": (0x20, "V16"),
        "bytenr": (0x30, "<u8"),  # where this copy lies, bytes
        "flags": (0x38, "<u8"),
        "magic": (0x40, "S8"),
        "chunk_root": (0x58, "<u8"),  # logical
        "log_root": (0x60, "<u8"),  # logical; 0 where there is no log tree
        "num_devices": (0x88, "<u8"),
        "sectorsize": (0x90, "<u4"),  # bytes
        "nodesize": (0x94, "<u4"),  # bytes
        "sys_chunk_array_size": (0xA0, "<u4"),  # bytes
        "chunk_root_generation": (0xA4, "<u8"),
        "incompat_flags": (0xBC, "<u8"),
        "csum_type": (0xC4, "<u2"),
        "chunk_root_level": (0xC7, "u1"),
        "devid": (0xC9, "<u8"),  # from here on dev_item
        "total_bytes": (0xD1, "<u8"),
        "bytes_used": (0xD9, "<u8"),
        "dev_uuid": (0x10B, "V16"),
        "label": (0x12B, "V256"),
        "metadata_uuid": (0x23B, "V16"),
    },
)
SYS_CHUNK_ARRAY = slice(0x32B, 0x32B + 2048)

CSUM_BYTES = 32
"""The field; what a checksum does not fill is zeros. It covers all that follows it."""
CSUM_CRC32C, CSUM_XXHASH, CSUM_SHA256, CSUM_BLAKE2 = range(4)

INCOMPAT_METADATA_UUID = 1 << 10
INCOMPAT_KNOWN = 0xFFF | 1 << 16
"""MIXED_BACKREF to RAID1C34, SIMPLE_QUOTA. Not: ZONED, EXTENT_TREE_V2, RAID_STRIPE_TREE."""
SUPER_FLAGS_UNFINISHED = 0b1111 << 33
"""METADUMP, METADUMP_V2, CHANGING_FSID, CHANGING_FSID_V2."""

HEADER = structure(
    101,
    {
        "fsid": (0x20, "V16"),
        "bytenr": (0x30, "<u8"),
        "generation": (0x50, "<u8"),
        "owner": (0x58, "<u8"),
        "nritems": (0x60, "<u4"),
        "level": (0x64, "u1"),
    },
)
HEADER_BYTES = 101
KEY = [("objectid", "<u8"), ("type", "u1"), ("offset", "<u8")]
KEY_BYTES = 17
ITEM = np.dtype([*KEY, ("data_offset", "<u4"), ("data_size", "<u4")])
"""``data_offset`` counts from the end of the header."""
KEY_POINTER = np.dtype([*KEY, ("blockptr", "<u8"), ("generation", "<u8")])
CHUNK_TREE = 3
LEVELS_MAX = 8

FIRST_CHUNK_TREE_OBJECTID = 256
CHUNK_ITEM_KEY = 228
CHUNK = struct.Struct("<QQQQIIIHH")
"""length (logical bytes), owner, stripe_len, type, io_align, io_width, sector_size, num_stripes, sub_stripes."""
STRIPE = struct.Struct("<QQ16s")
"""devid, offset (bytes of the device), dev_uuid."""
BLOCK_GROUP_SYSTEM = 1 << 1
RAID0, RAID1, DUP, RAID10, RAID5, RAID6, RAID1C3, RAID1C4 = (1 << n for n in range(3, 11))
COPIES = RAID1 | DUP | RAID1C3 | RAID1C4
PROFILES = RAID0 | RAID10 | RAID5 | RAID6 | COPIES
