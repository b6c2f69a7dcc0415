"""The boot code of a composed disk's master boot record. Constants only.

Documents: UEFI Specification 2.10 section 5.2.1 for the record it lies in; BIOS Enhanced Disk Drive specification for
INT 13h functions 41h and 42h. Its source is ``tests/boot/mbr.s``; a test assembles that and compares.
"""

from __future__ import annotations

MBR_BOOT_CODE = bytes.fromhex(
    "fa31c08ed0bc007c8ed88ec089e6bf0006b90001fcf3a5ea1c060000fbbebe07b104f60480750a83c610e2f6bea506eb6389d5bb"
    "aa55b441cd13722f81fb55aa7529f6c101742489ea56666a0066ff74086668007c000066681000010089e6b442cd13678d642410"
    "5eeb1089ea8a74018b4c02bb007cb80102cd13bfca067212bfbb06813efe7d55aa750789eaea007c000089feac84c07409b40ebb"
    "0700cd10ebf2f4ebfd6e6f2061637469766520706172746974696f6e0d0a006e6f7420626f6f7461626c650d0a00726561642065"
    "72726f720d0a00"
)
"""Starts the first sector of the active partition at 0000:7C00, with DL as the firmware gave it and DS:SI at the
partition record; otherwise prints "no active partition", "not bootable" or "read error" and stops. Runs on a 386."""

MBR_BOOT_CODE_BYTES_MAXIMUM = 440
"""Up to UniqueMBRDiskSignature."""
OS_TYPES = {"fat12": 0x01, "fat16": 0x06, "fat32": 0x0C, "ntfs": 0x07, "exfat": 0x07}
"""OSType by the name of the file system."""
OS_TYPE_FAT16_LBA = 0x0E
"""FAT16 that ends beyond what the three bytes of EndingCHS can say; DOS before 7 knows only the type above."""
OS_TYPE_LINUX = 0x83
"""For ext2 to ext4, and for whatever has no type of its own."""

FILE_SYSTEMS_WITH_HIDDSEC = ("fat12", "fat16", "fat32", "ntfs")
"""exFAT has PartitionOffset instead, which no boot code may rely on and a checksum covers."""
BPB_HIDDSEC = slice(28, 32)
"""BPB_HiddSec, sectors before the volume, in the boot sectors of FAT and NTFS."""
BPB_SECPERTRK_NUMHEADS_OFFSET = 24
"""BPB_SecPerTrk and BPB_NumHeads, 2 bytes each."""
FAT32_BKBOOTSEC_OFFSET = 50
"""BPB_BkBootSec, 2 bytes, in sectors of the volume."""
NTFS_TOTAL_SECTORS_OFFSET = 40
"""8 bytes; the backup of the boot sector is the sector with this number, the first that the count leaves out."""
SERIALS = {
    "fat12": slice(39, 43),
    "fat16": slice(39, 43),
    "fat32": slice(67, 71),
    "ntfs": slice(72, 80),
    "exfat": slice(100, 104),
}
"""Where the first sector holds the serial number of the volume."""
EXT_UUID = slice(1024 + 104, 1024 + 120)
"""s_uuid of the superblock, from the start of the volume."""
