"""On-disk fields of FAT12, FAT16 and FAT32, in the spelling of the Microsoft FAT specification (2005).

Constants only. Offsets and lengths are bytes, all numbers on disk are little-endian.
"""

from __future__ import annotations

import struct

import numpy as np

BOOT_SECTOR_BYTES = 512
"""All fields lie in the first 512 bytes, whatever ``BPB_BytsPerSec`` is."""

BS_OEMName = slice(3, 11)
BPB = struct.Struct("<HBHBHHBHHHII")
"""From byte 11: BPB_BytsPerSec (bytes), BPB_SecPerClus (sectors), BPB_RsvdSecCnt (sectors), BPB_NumFATs,
BPB_RootEntCnt (entries), BPB_TotSec16 (sectors), BPB_Media, BPB_FATSz16 (sectors), BPB_SecPerTrk (sectors),
BPB_NumHeads, BPB_HiddSec (sectors), BPB_TotSec32 (sectors)."""
BPB_OFFSET = 11
BPB_FAT32 = struct.Struct("<IHHIHH")
"""From byte 36, FAT32 only: BPB_FATSz32 (sectors), BPB_ExtFlags, BPB_FSVer (high byte major), BPB_RootClus (cluster),
BPB_FSInfo (sector), BPB_BkBootSec (sector)."""
BPB_FAT32_OFFSET = 36
BPB_FIELD = {
    "BPB_TotSec16": (19, 2),
    "BPB_FATSz16": (22, 2),
    "BPB_SecPerTrk": (24, 2),
    "BPB_NumHeads": (26, 2),
    "BPB_HiddSec": (28, 4),
    "BPB_TotSec32": (32, 4),
    "BPB_FATSz32": (36, 4),
    "BPB_RootClus": (44, 4),
}
"""(offset, length) of fields that differ where a volume is laid out anew."""
BPB_DOS2_END, BPB_FAT16_END = 24, 36
"""Where the BPB of DOS 2 ended, and where the fields that all types of FAT have in common end. Boot code may begin
between them on media of that age; BS_jmpBoot tells."""
BS_EXTENDED = struct.Struct("<BBBI11s8s")
"""BS_DrvNum, BS_Reserved1, BS_BootSig, BS_VolID, BS_VolLab, BS_FilSysType."""
BS_EXTENDED_OFFSET_FAT16 = 36
BS_EXTENDED_OFFSET_FAT32 = 64
SIGNATURE_OFFSET = 510
SIGNATURE = b"\x55\xaa"

JUMPS = (0xEB, 0xE9)
"""First byte of BS_jmpBoot."""
BOOT_SIGNATURES = (0x28, 0x29)
"""BS_BootSig: BS_VolID follows; with 0x29 BS_VolLab and BS_FilSysType follow too."""
BOOT_SIGNATURE_WITH_LABEL = 0x29
NO_NAME = b"NO NAME    "
"""BS_VolLab of a volume without a label."""
RESERVED1_DIRTY = 0x01
"""BS_Reserved1: the volume was not unmounted."""
EXT_FLAGS_ACTIVE_FAT = 0x000F
EXT_FLAGS_ONE_FAT_ACTIVE = 0x0080
"""BPB_ExtFlags: no mirroring, only the FAT numbered by EXT_FLAGS_ACTIVE_FAT is kept."""

FIRST_CLUSTER = 2
CLUSTERS_FAT16_MIN = 4085
"""Fewer clusters: FAT12."""
CLUSTERS_FAT32_MIN = 65525
"""Fewer clusters: FAT12 or FAT16."""
CLUSTERS_FAT32_MAX = 0x0FFFFFEF
"""The last few numbers before the bad mark are left alone by those who format."""
ENTRY_MASK_FAT32 = 0x0FFFFFFF
"""The upper 4 bits of a FAT32 entry are reserved."""
BAD_CLUSTER = {12: 0xFF7, 16: 0xFFF7, 32: 0x0FFFFFF7}
END_OF_CHAIN = {12: 0xFF8, 16: 0xFFF8, 32: 0x0FFFFFF8}
"""This and every higher value."""
CLEAN_SHUT_AND_NO_ERROR = {16: 0xC000, 32: 0x0C000000}
"""FAT[1], ClnShutBitMask and HrdErrBitMask: both are set on a volume in order."""

FSINFO_BYTES = 512
FSI_SIGNATURES = ((0, b"RRaA"), (484, b"rrAa"), (508, b"\0\0\x55\xaa"))
"""(offset, value) of FSI_LeadSig, FSI_StrucSig and FSI_TrailSig."""
FSI_Free_Count = struct.Struct("<II")
"""FSI_Free_Count (clusters), FSI_Nxt_Free (cluster)."""
FSI_Free_Count_OFFSET = 488
FSI_UNKNOWN = 0xFFFFFFFF

ENTRY_BYTES = 32
DIRECTORY_BYTES_MAX = 65536 * ENTRY_BYTES
DIRECTORY_ENTRY = np.dtype(
    [
        ("DIR_Name", "u1", (11,)),
        ("DIR_Attr", "u1"),
        ("DIR_NTRes", "u1"),
        ("DIR_CrtTimeTenth", "u1"),
        ("DIR_CrtTime", "<u2"),
        ("DIR_CrtDate", "<u2"),
        ("DIR_LstAccDate", "<u2"),
        ("DIR_FstClusHI", "<u2"),
        ("DIR_WrtTime", "<u2"),
        ("DIR_WrtDate", "<u2"),
        ("DIR_FstClusLO", "<u2"),
        ("DIR_FileSize", "<u4"),  # bytes
    ]
)
LONG_NAME_ENTRY = np.dtype(
    [
        ("LDIR_Ord", "u1"),
        ("LDIR_Name1", "<u2", (5,)),  # UTF-16 units
        ("LDIR_Attr", "u1"),
        ("LDIR_Type", "u1"),
        ("LDIR_Chksum", "u1"),
        ("LDIR_Name2", "<u2", (6,)),
        ("LDIR_FstClusLO", "<u2"),
        ("LDIR_Name3", "<u2", (2,)),
    ]
)

NAME_END = 0x00
"""DIR_Name[0]: this entry and all after it are free."""
NAME_FREE = 0xE5
"""DIR_Name[0]: this entry is free."""
NAME_KANJI = 0x05
"""DIR_Name[0]: stands for 0xE5."""
NAME_DOT = b".          "
NAME_DOTDOT = b"..         "
ATTR_VOLUME_ID = 0x08
ATTR_DIRECTORY = 0x10
ATTR_LONG_NAME = 0x0F
ATTR_LONG_NAME_MASK = 0x3F
LAST_LONG_ENTRY = 0x40
"""LDIR_Ord: the last piece of the name, which lies first on the disk."""
LONG_ORDER_MASK = 0x3F
LONG_ENTRIES_MAX = 20
UNITS_PER_LONG_ENTRY = 13
NTRES_LOWER_BASE = 0x08
NTRES_LOWER_EXTENSION = 0x10
"""DIR_NTRes: not in the specification, written by Windows NT and later for names of one case."""
