"""On-disk fields of XFS, in the spelling of "XFS Algorithms & Data Structures" (3rd edition) and of the kernel's
``xfs_format.h``. Constants only. Numbers are big-endian, but for checksums; "blocks" are ``sb_blocksize`` bytes."""

from __future__ import annotations

from sqlimage.filesystem.recognised.structure import structure

SB_MAGIC = b"XFSB"
SB_BYTES = 512
"""All fields lie in these; the checksum covers the whole sector, ``sb_sectsize`` bytes."""
SECTOR_BYTES_MAX = 32768
SUPERBLOCK = structure(
    SB_BYTES,
    {
        "sb_magicnum": (0, "S4"),
        "sb_blocksize": (4, ">u4"),  # bytes
        "sb_dblocks": (8, ">u8"),  # blocks
        "sb_rblocks": (16, ">u8"),
        "sb_uuid": (32, "V16"),
        "sb_logstart": (48, ">u8"),  # file system block: the group above sb_agblklog bits, the block in it below
        "sb_agblocks": (84, ">u4"),  # blocks
        "sb_agcount": (88, ">u4"),
        "sb_logblocks": (96, ">u4"),  # blocks
        "sb_versionnum": (100, ">u2"),
        "sb_sectsize": (102, ">u2"),  # bytes
        "sb_inodesize": (104, ">u2"),
        "sb_fname": (108, "V12"),
        "sb_blocklog": (120, "u1"),
        "sb_sectlog": (121, "u1"),
        "sb_agblklog": (124, "u1"),
        "sb_inprogress": (126, "u1"),
        "sb_fdblocks": (144, ">u8"),  # free blocks
        "sb_features2": (200, ">u4"),
        "sb_features_ro_compat": (212, ">u4"),
        "sb_features_incompat": (216, ">u4"),
        "sb_crc": (224, "<u4"),
        "sb_meta_uuid": (248, "V16"),
        "sb_rtstart": (288, ">u8"),
    },
)
SB_CRC_AT = 224

VERSION_MASK = 0x000F
VERSION2_LAZYSBCOUNT = 0x02
"""``sb_features2``: ``sb_fdblocks`` is right on a clean volume. Version 5 always has it."""
INCOMPAT_META_UUID, INCOMPAT_NEEDSREPAIR, INCOMPAT_ZONED = 0x04, 0x10, 0x200
INCOMPAT_KNOWN = 0x7FF
"""FTYPE, SPINODES, META_UUID, BIGTIME, NEEDSREPAIR, NREXT64, EXCHRANGE, PARENT, METADIR, ZONED, ZONE_GAPS."""
RO_COMPAT_KNOWN = 0xF
"""FINOBT, RMAPBT, REFLINK, INOBTCNT."""

AG_BYTES_MIN, AG_BYTES_MAX = 1 << 24, 1 << 40
AG_BLOCKS_MIN = 64
"""Of the last group; what is less is not used."""
AG_HEADER_SECTORS = 4
"""Superblock, AGF, AGI, AGFL."""

AGF_SECTOR = 1
AGF = structure(
    224,
    {
        "agf_magicnum": (0, "S4"),
        "agf_versionnum": (4, ">u4"),
        "agf_seqno": (8, ">u4"),
        "agf_length": (12, ">u4"),  # blocks
        "agf_bno_root": (16, ">u4"),
        "agf_cnt_root": (20, ">u4"),
        "agf_bno_level": (28, ">u4"),
        "agf_cnt_level": (32, ">u4"),
        "agf_flcount": (48, ">u4"),  # blocks
        "agf_freeblks": (52, ">u4"),  # blocks
        "agf_btreeblks": (60, ">u4"),  # blocks
        "agf_uuid": (64, "V16"),
        "agf_crc": (216, "<u4"),
    },
)
AGF_MAGIC = b"XAGF"
AGF_CRC_AT = 216

BTREE_MAGIC = {("bnobt", 4): b"ABTB", ("bnobt", 5): b"AB3B", ("cntbt", 4): b"ABTC", ("cntbt", 5): b"AB3C"}
BTREE_BLOCK = structure(
    56,
    {
        "bb_magic": (0, "S4"),
        "bb_level": (4, ">u2"),
        "bb_numrecs": (6, ">u2"),
        "bb_leftsib": (8, ">u4"),  # block of the group
        "bb_rightsib": (12, ">u4"),
        "bb_blkno": (16, ">u8"),  # 512 bytes, from here on version 5 only
        "bb_uuid": (32, "V16"),
        "bb_owner": (48, ">u4"),
        "bb_crc": (52, "<u4"),
    },
)
BTREE_HEADER_BYTES = {4: 16, 5: 56}
BTREE_CRC_AT = 52
BTREE_RECORD_BYTES, BTREE_POINTER_BYTES = 8, 4
"""A record, as a key, is ``ar_startblock`` and ``ar_blockcount``."""
BTREE_LEVELS_MAX = 9
NULL_BLOCK = 0xFFFFFFFF

LOG_BLOCK_BYTES = 512
XLOG_HEADER_MAGIC = 0xFEEDBABE
XLOG_HEADER = structure(
    512,
    {
        "h_magicno": (0, ">u4"),
        "h_cycle": (4, ">u4"),
        "h_version": (8, ">u4"),
        "h_len": (12, ">u4"),
        "h_lsn": (16, ">u8"),
        "h_num_logops": (40, ">u4"),
        "h_fs_uuid": (304, "V16"),
        "h_size": (320, ">u4"),
    },
)
XLOG_VERSION_2 = 2
XLOG_HEADER_CYCLE_BYTES = 32768
"""A record of more has a header of several log blocks."""
XLOG_OP_FLAGS_AT = 9
XLOG_UNMOUNT_TRANS = 0x20
"""``oh_flags``: this record is the last thing that unmounting writes."""
XLOG_SCAN_BLOCKS = 4096
"""Records that were written side by side lie within so many log blocks."""
