"""On-disk layout of partition tables and of the boot sectors that must not be taken for them. Constants only.

Documents: UEFI Specification 2.10 section 5.2.1 (legacy MBR) and 5.3 (GPT), whose names are used here; Microsoft
FAT specification (August 2005) and exFAT specification for the boot sectors. All numbers are little-endian.
"""

from __future__ import annotations

import struct

MBR_BYTES = 512
MBR_SIGNATURE_OFFSET = 510
MBR_SIGNATURE = b"\x55\xaa"
MBR_UNIQUE_DISK_SIGNATURE_OFFSET = 440
"""UniqueMBRDiskSignature, 4 bytes."""
MBR_PARTITION_RECORD_OFFSET = 446
MBR_PARTITION_RECORDS = 4
MBR_PARTITION_RECORD = struct.Struct("<B3sB3sII")
"""BootIndicator, StartingCHS, OSType, EndingCHS, StartingLBA (sectors), SizeInLBA (sectors)."""
MBR_LBA_MAXIMUM = (1 << 32) - 1
"""Of StartingLBA and SizeInLBA."""
MBR_BOOT_INDICATORS = (0x00, 0x80)
OS_TYPES_EXTENDED = (0x05, 0x0F, 0x85)
"""Extended partition with CHS addressing, with LBA, and Linux' own."""
OS_TYPE_GPT_PROTECTIVE = 0xEE
EBR_MAXIMUM = 128
"""How many extended boot records are followed on one disk; Linux stops at 255 partitions, others at 60."""

GPT_SIGNATURE = b"EFI PART"
GPT_REVISION = 0x00010000
GPT_PRIMARY_LBA = 1
GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
"""Signature, Revision, HeaderSize (bytes), HeaderCRC32, Reserved, MyLBA, AlternateLBA, FirstUsableLBA, LastUsableLBA,
DiskGUID, PartitionEntryLBA, NumberOfPartitionEntries, SizeOfPartitionEntry (bytes), PartitionEntryArrayCRC32."""
GPT_HEADER_CRC32_OFFSET = 16
GPT_ENTRIES_MAXIMUM = 1024
GPT_ENTRY_BYTES_MINIMUM = 128
GPT_ENTRY_BYTES_MAXIMUM = 4096
GPT_ENTRY = struct.Struct("<16s16sQQQ72s")
"""PartitionTypeGUID, UniquePartitionGUID, StartingLBA, EndingLBA (inclusive), Attributes,
PartitionName (UTF-16LE)."""
GPT_ATTRIBUTE_LEGACY_BIOS_BOOTABLE = 1 << 2

BPB_OEM_NAME = slice(3, 11)
BPB_FAT = struct.Struct("<HBHBHHBH")
"""BPB_BytsPerSec, BPB_SecPerClus, BPB_RsvdSecCnt, BPB_NumFATs, BPB_RootEntCnt, BPB_TotSec16, BPB_Media,
BPB_FATSz16."""
BPB_FAT_OFFSET = 11
BPB_TOT_SEC32_OFFSET = 32
BPB_FATSZ32_OFFSET = 36
BPB_MEDIA = (0xF0, *range(0xF8, 0x100))
BPB_BYTES_PER_SECTOR = (512, 1024, 2048, 4096)
OEM_NAMES_OF_VOLUMES = (b"NTFS    ", b"EXFAT   ", b"-FVE-FS-")
"""NTFS, exFAT and BitLocker; FAT's field holds whatever its maker liked."""
