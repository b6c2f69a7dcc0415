"""ext2, ext3 and ext4 on disk: fields and constants only, in the spelling of the kernel's documentation of ext4. All
integers are little-endian, but those of the journal, which are big-endian."""

from __future__ import annotations

from enum import IntFlag

import numpy as np

SUPERBLOCK_AT = 1024
"""Bytes from the start of the volume; a backup lies at the start of its block group instead."""
SUPERBLOCK_BYTES = 1024
MAGIC = 0xEF53
MAGIC_AT = 0x38

SUPERBLOCK = np.dtype(
    {
        "names": (
            *("s_inodes_count", "s_blocks_count_lo", "s_first_data_block", "s_log_block_size", "s_log_cluster_size"),
            *("s_blocks_per_group", "s_clusters_per_group", "s_inodes_per_group", "s_magic", "s_state"),
            *("s_minor_rev_level", "s_rev_level", "s_first_ino", "s_inode_size", "s_block_group_nr"),
            *("s_feature_compat", "s_feature_incompat", "s_feature_ro_compat", "s_uuid", "s_volume_name"),
            *("s_reserved_gdt_blocks", "s_journal_inum", "s_desc_size", "s_first_meta_bg", "s_blocks_count_hi"),
            *("s_usr_quota_inum", "s_grp_quota_inum", "s_backup_bgs", "s_prj_quota_inum", "s_checksum_seed"),
            *("s_orphan_file_inum", "s_checksum"),
        ),
        "formats": (
            *("<u4", "<u4", "<u4", "<u4", "<u4"),
            *("<u4", "<u4", "<u4", "<u2", "<u2"),
            *("<u2", "<u4", "<u4", "<u2", "<u2"),
            *("<u4", "<u4", "<u4", "V16", "V16"),
            *("<u2", "<u4", "<u2", "<u4", "<u4"),
            *("<u4", "<u4", "(2,)<u4", "<u4", "<u4"),
            *("<u4", "<u4"),
        ),
        "offsets": (
            *(0x0, 0x4, 0x14, 0x18, 0x1C),
            *(0x20, 0x24, 0x28, 0x38, 0x3A),
            *(0x3E, 0x4C, 0x54, 0x58, 0x5A),
            *(0x5C, 0x60, 0x64, 0x68, 0x78),
            *(0xCE, 0xE0, 0xFE, 0x104, 0x150),
            *(0x240, 0x244, 0x24C, 0x26C, 0x270),
            *(0x280, 0x3FC),
        ),
        "itemsize": SUPERBLOCK_BYTES,
    }
)
SUPERBLOCK_CHECKSUM_AT = 0x3FC
STATE_VALID, STATE_ERROR = 1, 2
OLD_INODE_BYTES, OLD_FIRST_INODE = 128, 11
LARGEST_BLOCK = 64 << 10
LEAST_BLOCKS_PER_GROUP = 256
GROUPS_MAX = 1 << 19
"""A volume of 64 TiB of blocks of 4 KiB has so many."""
LOGICAL_BLOCKS_MAX = 1 << 32
"""Of a file."""


class Compat(IntFlag):
    HAS_JOURNAL = 0x4
    RESIZE_INODE = 0x10
    SPARSE_SUPER2 = 0x200
    FAST_COMMIT = 0x400
    ORPHAN_FILE = 0x1000


class Incompat(IntFlag):
    """What a reader must know, or it cannot read the volume."""

    FILETYPE = 0x2
    RECOVER = 0x4
    JOURNAL_DEV = 0x8
    META_BG = 0x10
    EXTENTS = 0x40
    BIT64 = 0x80
    MMP = 0x100
    FLEX_BG = 0x200
    EA_INODE = 0x400
    DIRDATA = 0x1000
    CSUM_SEED = 0x2000
    LARGEDIR = 0x4000
    INLINE_DATA = 0x8000
    ENCRYPT = 0x10000
    CASEFOLD = 0x20000


class RoCompat(IntFlag):
    SPARSE_SUPER = 0x1
    LARGE_FILE = 0x2
    BTREE_DIR = 0x4
    GDT_CSUM = 0x10
    BIGALLOC = 0x200
    METADATA_CSUM = 0x400
    SHARED_BLOCKS = 0x4000


# Block group descriptor; the upper halves only where it has 64 bytes
DESCRIPTOR_BYTES, DESCRIPTOR_64_BYTES, DESCRIPTOR_BYTES_MAX = 32, 64, 1024
BG_BLOCK_BITMAP_AT, BG_INODE_BITMAP_AT, BG_INODE_TABLE_AT = 0x0, 0x4, 0x8  # u32
BG_FLAGS_AT = 0x12  # u16
BG_BLOCK_BITMAP_CSUM_AT, BG_INODE_BITMAP_CSUM_AT = 0x18, 0x1A  # u16
BG_ITABLE_UNUSED_AT = 0x1C  # u16
BG_CHECKSUM_AT = 0x1E  # u16
BG_HI = 0x20
"""What lies at N has its upper half at ``N + 0x20``, but the checksums of the bitmaps."""
BG_BLOCK_BITMAP_CSUM_HI_AT, BG_INODE_BITMAP_CSUM_HI_AT = 0x38, 0x3A  # u16
BG_INODE_UNINIT, BG_BLOCK_UNINIT = 0x1, 0x2

# Inode
INODE = np.dtype(
    {
        "names": (
            *("i_mode", "i_size_lo", "i_dtime", "i_mtime", "i_links_count", "i_blocks_lo", "i_flags", "i_block"),
            *("i_generation", "i_file_acl_lo", "i_size_high", "l_i_blocks_high", "l_i_file_acl_high"),
            "l_i_checksum_lo",
        ),
        "formats": (
            *("<u2", "<u4", "<u4", "<i4", "<u2", "<u4", "<u4", "V60"),
            *("<u4", "<u4", "<u4", "<u2", "<u2"),
            "<u2",
        ),
        "offsets": (
            *(0x0, 0x4, 0x14, 0x10, 0x1A, 0x1C, 0x20, 0x28),
            *(0x64, 0x68, 0x6C, 0x74, 0x76),
            0x7C,
        ),
        "itemsize": OLD_INODE_BYTES,
    }
)
BLOCK_FIELD_AT, BLOCK_FIELD_BYTES = 0x28, 60
DIRECT_BLOCKS = 12
EXTRA_ISIZE_AT = 0x80  # u16
CHECKSUM_LO_AT, CHECKSUM_HI_AT = 0x7C, 0x82  # u16
CHECKSUM_HI_END, MTIME_EXTRA_END = 0x84 - 0x80, 0x8C - 0x80
"""How large i_extra_isize must be for a field to be there."""
MTIME_EXTRA_AT = 0x88  # u32
BAD_INODE, ROOT_INODE, USER_QUOTA_INODE, GROUP_QUOTA_INODE, RESIZE_INODE, JOURNAL_INODE = 1, 2, 3, 4, 7, 8
TYPE_MASK, FIFO, CHARACTER, DIRECTORY, BLOCK, REGULAR, SYMLINK, SOCKET = (
    *(0xF000, 0x1000, 0x2000, 0x4000),
    *(0x6000, 0x8000, 0xA000, 0xC000),
)
ENCRYPT_FLAG, INDEX_FLAG, EXTENTS_FLAG, EA_INODE_FLAG, INLINE_DATA_FLAG = 0x800, 0x1000, 0x80000, 0x200000, 0x10000000

# Extent tree
EXTENT_MAGIC = 0xF30A
EXTENT_HEADER = np.dtype(
    [("eh_magic", "<u2"), ("eh_entries", "<u2"), ("eh_max", "<u2"), ("eh_depth", "<u2"), ("eh_generation", "<u4")]
)
EXTENT = np.dtype([("ee_block", "<u4"), ("ee_len", "<u2"), ("ee_start_hi", "<u2"), ("ee_start_lo", "<u4")])
EXTENT_INDEX = np.dtype([("ei_block", "<u4"), ("ei_leaf_lo", "<u4"), ("ei_leaf_hi", "<u2"), ("ei_unused", "<u2")])
EXTENT_BYTES = 12
EXTENTS_IN_INODE = 4
LARGEST_WRITTEN = 32768
"""A longer ``ee_len`` is that of an unwritten extent, which reads as zeros, and counts from here."""
EXTENT_DEPTH_MAX = 10

# Directory
DIRENT_BYTES = 8
NAME_BYTES_MAX = 255
TAIL_BYTES = 12
TAIL_FILE_TYPE = 0xDE

# Extended attributes
XATTR_MAGIC = 0xEA020000
XATTR_HEADER_BYTES = 32
XATTR_CHECKSUM_AT = 0x10
XATTR_ENTRY_BYTES = 16
XATTR_INDEX_SYSTEM = 7

# Journal (jbd2)
JOURNAL_BLOCKS_MAX, JOURNAL_REVOKES_MAX = 1 << 19, 1 << 23
"""No longer one is followed."""
JOURNAL_MAGIC = 0xC03B3998
JOURNAL_DESCRIPTOR, JOURNAL_COMMIT, JOURNAL_SUPERBLOCK_1, JOURNAL_SUPERBLOCK_2, JOURNAL_REVOKE = 1, 2, 3, 4, 5
JOURNAL_COMPAT_CHECKSUM = 0x1
JOURNAL_INCOMPAT_64BIT, JOURNAL_INCOMPAT_CSUM_V2, JOURNAL_INCOMPAT_CSUM_V3 = 0x2, 0x8, 0x10
JOURNAL_INCOMPAT_FAST_COMMIT = 0x20
JOURNAL_INCOMPAT_KNOWN = 0x3F
JOURNAL_FLAG_ESCAPE, JOURNAL_FLAG_SAME_UUID, JOURNAL_FLAG_LAST_TAG = 0x1, 0x2, 0x8
JOURNAL_FAST_COMMIT_BLOCKS = 256
"""Where the superblock says none."""
FAST_COMMIT_HEAD = 9
