"""On-disk fields of ISO 9660 and what stands on it, in the spelling of their specifications.

ECMA-119 (4th edition), Joliet (1995), SUSP 1.12 and RRIP 1.12 (Rock Ridge), El Torito 1.0, zisofs. Constants only.
Offsets and lengths are bytes. Numbers are recorded twice, little-endian first; the second half is skipped here.
"""

from __future__ import annotations

from struct import Struct

SECTOR_BYTES = 2048
"""The Logical Sector: descriptors fill one, and a Directory Record does not cross from one into the next."""
SYSTEM_AREA_SECTORS = 16
STANDARD_IDENTIFIER = b"CD001"
DESCRIPTORS_MAX = 84
"""Volume descriptors looked at, as many as Linux does; a set has no more than a handful."""
BLOCK_SIZES = (512, 1024, 2048)

UDF_IDENTIFIERS = (b"NSR02", b"NSR03")
UDF_DESCRIPTORS_MAX = 4
"""How far behind the set to look: the terminator, the beginning of the extended area, and one to spare."""

DESCRIPTOR_HEAD = Struct("<B5sB")
"""Volume Descriptor Type, Standard Identifier, Volume Descriptor Version."""
TYPE_BOOT, TYPE_PRIMARY, TYPE_SUPPLEMENTARY, TYPE_TERMINATOR = 0, 1, 2, 255
VERSION_ENHANCED = 2
"""Volume Descriptor Version of the supplementary one of ISO 9660:1999, there called enhanced."""

VOLUME_FLAGS = 7
VOLUME_FLAG_UNREGISTERED = 0x01
"""The Escape Sequences name a character set that is not registered: not Joliet."""
VOLUME_IDENTIFIER = slice(40, 72)
VOLUME_SPACE_SIZE = (80, "<I", ">I")
"""Logical Blocks. Where a both-byte-order field begins, and how its halves read; they follow each other."""
ESCAPE_SEQUENCES = slice(88, 120)
JOLIET_ESCAPES = (b"%/@", b"%/C", b"%/E")
"""UCS-2 levels 1, 2 and 3."""
VOLUME_SET_SIZE = (120, "<H", ">H")
VOLUME_SEQUENCE_NUMBER = (124, "<H", ">H")
LOGICAL_BLOCK_SIZE = (128, "<H", ">H")
ROOT_RECORD = 156
CREATION_TIME = slice(813, 830)
MODIFICATION_TIME = slice(830, 847)
FILE_STRUCTURE_VERSION = 881

BOOT_SYSTEM_IDENTIFIER = slice(7, 39)
EL_TORITO = b"EL TORITO SPECIFICATION"
BOOT_CATALOG = Struct("<I")
BOOT_CATALOG_OFFSET = 71
"""Of a Boot Record: the sector of 2,048 bytes in which the boot catalog begins."""

RECORD = Struct("<BBI4xI4x7sBBBH2xB")
"""Length of Directory Record, Extended Attribute Record Length (blocks), Location of Extent (block), Data Length
(bytes), Recording Date and Time, File Flags, File Unit Size, Interleave Gap Size, Volume Sequence Number, Length of
File Identifier."""
RECORD_BYTES_MIN = 34
FLAG_DIRECTORY, FLAG_ASSOCIATED, FLAG_MULTI_EXTENT = 0x02, 0x04, 0x80
SELF, PARENT = b"\x00", b"\x01"
"""File Identifiers of a directory's first two records."""

SUSP_HEAD_BYTES = 4
"""Signature (2), Length, Version."""
SP_BYTES = 7
SP_CHECK = b"\xbe\xef"
PX_BYTES_MIN = 12
NM_HEAD_BYTES = 5
ER_HEAD_BYTES = 4
"""Of its data: three lengths and a version, before the Extension Identifier."""
XA_BYTES = 14
XA_SIGNATURE = b"XA"
XA_SIGNATURE_OFFSET = 6
"""CD-ROM XA keeps 14 bytes of its own before the System Use entries."""
CE = Struct("<I4xI4xI4x")
"""Block, offset in it, length: where a Continuation Area lies."""
RRIP_IDENTIFIERS = (b"RRIP_1991A", b"IEEE_P1282", b"IEEE_1282")
"""ER: Extension Identifiers of Rock Ridge."""
NM_CONTINUE, NM_CURRENT, NM_PARENT = 0x01, 0x02, 0x04
SL_CONTINUE = 0x01
COMPONENT_CONTINUE, COMPONENT_CURRENT, COMPONENT_PARENT, COMPONENT_ROOT = 0x01, 0x02, 0x04, 0x08
TF_CREATION, TF_MODIFY, TF_LONG_FORM = 0x01, 0x02, 0x80
SHORT_TIME_BYTES, LONG_TIME_BYTES = 7, 17
ZF = Struct("<2sBBI4x")
"""Algorithm, header size / 4, base 2 logarithm of the block size, uncompressed size (bytes)."""
ZF_DEFLATE = b"pz"

CATALOG_ENTRY_BYTES = 32
VALIDATION_HEADER_ID = 1
VALIDATION_KEY = b"\x55\xaa"
SECTION_ENTRY = Struct("<BBHBBHI")
"""Boot Indicator, Boot Media Type, Load Segment, System Type, unused, Sector Count (of 512 bytes), Load RBA (sector of
2,048 bytes)."""
SECTION_HEADER = Struct("<BBH")
"""Header Indicator, Platform ID, number of section entries that follow."""
BOOTABLE, NOT_BOOTABLE = 0x88, 0x00
SECTION_MORE, SECTION_FINAL = 0x90, 0x91
ENTRY_EXTENSION = 0x44
MEDIA_MASK = 0x0F
MEDIA_FLOPPY_BYTES = {1: 1200 << 10, 2: 1440 << 10, 3: 2880 << 10}
MEDIA_HARD_DISK = 4
PLATFORMS = {0x00: "bios", 0x01: "powerpc", 0x02: "mac", 0xEF: "efi"}
VIRTUAL_SECTOR_BYTES = 512

ZISOFS_MAGIC = bytes.fromhex("37e45396c9dbd607")
ZISOFS_HEADER = Struct("<8sIBBH")
"""Magic, uncompressed size (bytes), header size / 4, base 2 logarithm of the block size, reserved."""
ZISOFS_BLOCK_LOGARITHMS = (15, 16, 17)
ZISOFS_POINTER_BYTES = 4
