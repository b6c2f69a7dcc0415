"""On-disk fields of exFAT, in the spelling of Microsoft's exFAT file system specification, revision 1.00.

Constants only. Offsets and lengths are bytes, all numbers on disk are little-endian.
"""

from __future__ import annotations

import struct

import numpy as np

# Boot region: 12 sectors, followed by a backup of the same shape.
BOOT_SECTOR_BYTES = 512
"""All fields lie in the first 512 bytes, whatever ``BytesPerSectorShift`` is."""
BOOT_REGION_SECTORS = 12
"""The last one holds the Boot Checksum, repeated, of the others."""
FILE_SYSTEM_NAME_AT = 3
FILE_SYSTEM_NAME = b"EXFAT   "
MUST_BE_ZERO = slice(11, 64)
FIELDS_AT = 64
FIELDS = struct.Struct("<QQIIIIIIHHBBB")
"""PartitionOffset (sectors), VolumeLength (sectors), FatOffset (sector), FatLength (sectors), ClusterHeapOffset
(sector), ClusterCount, FirstClusterOfRootDirectory, VolumeSerialNumber, FileSystemRevision (high byte major),
VolumeFlags, BytesPerSectorShift, SectorsPerClusterShift, NumberOfFats."""
VOLUME_FLAGS_AT = 106
UNCHECKED = (106, 107, 112)
"""Bytes of VolumeFlags and PercentInUse, which the Boot Checksum leaves out."""
BOOT_SIGNATURE_AT = 510
BOOT_SIGNATURE = b"\x55\xaa"

ACTIVE_FAT = 0x0001
VOLUME_DIRTY = 0x0002
MEDIA_FAILURE = 0x0004
"""Bits of VolumeFlags."""
FAT_OFFSET_MIN = 24
"""Sectors: both boot regions."""
SECTOR_SHIFTS = range(9, 13)
CLUSTER_SHIFT_MAX = 25
"""BytesPerSectorShift and SectorsPerClusterShift together: clusters of 32 MiB."""
MAJOR_REVISION = 1

# File Allocation Table
FIRST_CLUSTER = 2
CLUSTERS_MAX = 2**32 - 11
FAT_ENTRY_BYTES = 4
BAD_CLUSTER = 0xFFFFFFF7
END_OF_CHAIN = 0xFFFFFFFF

# Directories
ENTRY_BYTES = 32
DIRECTORY_BYTES_MAX = 256 << 20
IN_USE = 0x80
"""EntryType: the entry is not free. 0x80 itself is invalid."""
SECONDARY = 0x40
BENIGN = 0x20
END_OF_DIRECTORY = 0x00
ALLOCATION_BITMAP = 0x81
UP_CASE_TABLE = 0x82
VOLUME_LABEL = 0x83
FILE = 0x85
STREAM_EXTENSION = 0xC0
FILE_NAME = 0xC1

ENTRY = np.dtype([("EntryType", "u1"), ("CustomDefined", "u1", (31,))])
FILE_ENTRY = np.dtype(
    [
        ("EntryType", "u1"),
        ("SecondaryCount", "u1"),
        ("SetChecksum", "<u2"),
        ("FileAttributes", "<u2"),
        ("Reserved1", "<u2"),  # ENCRYPTED
        ("CreateTimestamp", "<u4"),
        ("LastModifiedTime", "<u2"),  # the lower half of LastModifiedTimestamp
        ("LastModifiedDate", "<u2"),
        ("LastAccessedTimestamp", "<u4"),
        ("Create10msIncrement", "u1"),
        ("LastModified10msIncrement", "u1"),
        ("CreateUtcOffset", "u1"),
        ("LastModifiedUtcOffset", "u1"),
        ("LastAccessedUtcOffset", "u1"),
        ("Reserved2", "u1", (7,)),
    ]
)
STREAM_ENTRY = np.dtype(
    [
        ("EntryType", "u1"),
        ("GeneralSecondaryFlags", "u1"),
        ("Reserved1", "u1"),
        ("NameLength", "u1"),  # UTF-16 units
        ("NameHash", "<u2"),
        ("EncryptionHeaders", "u1"),  # the lower half of Reserved2; units of ENCRYPTION_HEADER_BYTES
        ("Reserved2", "u1"),
        ("ValidDataLength", "<u8"),  # bytes
        ("Reserved3", "<u4"),
        ("FirstCluster", "<u4"),
        ("DataLength", "<u8"),  # bytes
    ]
)
NAME_ENTRY = np.dtype([("EntryType", "u1"), ("GeneralSecondaryFlags", "u1"), ("FileName", "<u2", (15,))])
TABLE_ENTRY = struct.Struct("<BB2sI12sIQ")
"""Allocation Bitmap: EntryType, BitmapFlags, Reserved, Reserved, Reserved, FirstCluster, DataLength.
Up-case Table: EntryType, Reserved1, Reserved1, TableChecksum, Reserved2, FirstCluster, DataLength."""
BITMAP_IDENTIFIER = 0x01
"""BitmapFlags: the bitmap that goes with the second FAT."""
LABEL_AT = 2
LABEL_UNITS_MAX = 15
"""The specification has 11, but Windows 7 and others wrote 15, and Windows reads them."""
UNITS_PER_NAME_ENTRY = 15
NAME_UNITS_MAX = 256
"""The specification has 255, but old versions of exfat-fuse wrote 256, with a NameLength of 0."""
SECONDARY_COUNT_MAX = 255
SET_CHECKSUM_AT = (2, 3)
"""Bytes of a set that its checksum leaves out: the checksum itself."""

ALLOCATION_POSSIBLE = 0x01
NO_FAT_CHAIN = 0x02
"""Bits of GeneralSecondaryFlags."""
ATTRIBUTE_DIRECTORY = 0x10
ENCRYPTED = 0x8000
ENCRYPTION_HEADER_BYTES = 4096
"""Not in the specification; Windows 10 and later: the content is a header, then cipher text of the Encrypting File
System. ValidDataLength is 0 where there is only the header."""
UTC_OFFSET_VALID = 0x80
INCREMENT_10MS_MAX = 199

# Up-case Table
UP_CASE_UNITS = 1 << 16
IDENTITY_RUN = 0xFFFF
"""In a compressed table: the next entry says how many characters stay as they are."""
