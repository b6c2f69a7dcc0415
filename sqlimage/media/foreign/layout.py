"""Where the fields lie by which containers are recognised, and by which they name other files. Constants only.

Offsets and lengths in bytes. Documents: QEMU's ``docs/interop/qcow2.txt``, ``qed_spec.txt`` and ``parallels.txt``;
"Virtual Hard Disk Image Format Specification" 1.0 (Microsoft); [MS-VHDX] 7.0; "Virtual Disk Format" 5.0 (VMware);
VirtualBox's ``VDICore.h``; the sources of Bochs and of cloop; for UDIF, which has none, the header of its trailer.
"""

from __future__ import annotations

import struct
from uuid import UUID

HEAD_BYTES = 4096
"""All that is recognised by its beginning is recognised by this much of it."""
TAIL_BYTES = 512

# qcow and qcow2, big-endian
QCOW_MAGIC = b"QFI\xfb"
QCOW_VERSION = 4
"""1 for qcow; 2 and 3 for qcow2."""
QCOW_BACKING_FILE_OFFSET = 8
QCOW_SIZE = 24
QCOW_L1_TABLE_OFFSET = 40
QCOW1_CLUSTER_BITS = 32
"""One byte, and then one of l2_bits."""
QCOW1_CRYPT_METHOD = 36
QCOW2_CLUSTER_BITS = 20
QCOW2_CRYPT_METHOD = 32
QCOW2_L1_SIZE = 36
QCOW2_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
"""Of an entry of the L1 table, and of one of an L2 table whose cluster is not compressed."""
QCOW2_COMPRESSED = 1 << 62
QCOW2_INCOMPATIBLE_FEATURES = 72
QCOW2_EXTERNAL_DATA = 1 << 2
QCOW2_COMPRESSION_TYPE_BIT = 1 << 3
"""Another compression than deflate is used."""
QCOW2_EXTENDED_L2 = 1 << 4
"""Entries of L2 tables have 16 bytes, and clusters have parts."""

# QED, little-endian
QED_MAGIC = b"QED\0"
QED_FEATURES = 16
QED_F_BACKING_FILE = 1 << 0

# Virtual Hard Disk, big-endian; the footer
VHD_COOKIE = b"conectix"
VHD_FOOTER_BYTES = 512
VHD_CURRENT_SIZE = 48
VHD_DISK_TYPE = 60
VHD_CHECKSUM = 64
VHD_FIXED, VHD_DYNAMIC, VHD_DIFFERENCING = 2, 3, 4

# VHDX, little-endian
VHDX_SIGNATURE = b"vhdxfile"
VHDX_REGION_TABLE = 192 << 10
VHDX_REGION_SIGNATURE = b"regi"
VHDX_REGION_TABLE_BYTES = 64 << 10
VHDX_REGION_COUNT = 8
VHDX_REGION_ENTRIES = 16
VHDX_REGION_ENTRY = struct.Struct("<16sQII")
"""Guid, FileOffset, Length, Required."""
VHDX_REGIONS_MAXIMUM = 2047
VHDX_BAT_REGION = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
VHDX_METADATA_REGION = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
VHDX_METADATA_SIGNATURE = b"metadata"
VHDX_METADATA_TABLE_BYTES = 64 << 10
VHDX_METADATA_COUNT = 10
VHDX_METADATA_ENTRIES = 32
VHDX_METADATA_ENTRY = struct.Struct("<16sIIII")
"""ItemId, Offset from the start of the region, Length, flags, reserved."""
VHDX_METADATA_MAXIMUM = 2047
VHDX_FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
VHDX_VIRTUAL_DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
VHDX_LOGICAL_SECTOR_SIZE = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f").bytes_le
VHDX_HAS_PARENT = 1 << 1
"""Flag of the file parameters."""
VHDX_BLOCK_MINIMUM, VHDX_BLOCK_MAXIMUM = 1 << 20, 256 << 20
VHDX_DISK_MAXIMUM = 64 << 40
VHDX_SECTORS_PER_BITMAP_BLOCK = 1 << 23
"""Times the logical sector size: what one sector bitmap block tells of, "chunk" in the specification."""
VHDX_STATE_MASK = 7
PAYLOAD_BLOCK_NOT_PRESENT = 0
PAYLOAD_BLOCK_UNDEFINED = 1
PAYLOAD_BLOCK_ZERO = 2
PAYLOAD_BLOCK_UNMAPPED = 3
PAYLOAD_BLOCK_FULLY_PRESENT = 6
PAYLOAD_BLOCK_PARTIALLY_PRESENT = 7

# VMDK, little-endian
VMDK_SPARSE_MAGIC = b"KDMV"
VMDK_FLAGS = 8
VMDK_COMPRESSED = 1 << 16
VMDK_CAPACITY = 12
"""Then the grain size; like all of them in sectors of 512 bytes."""
VMDK_DESCRIPTOR_OFFSET = 28
VMDK_DESCRIPTOR_SIZE = 36
VMDK_GTES = 44
"""numGTEsPerGT: entries of a grain table."""
VMDK_DIRECTORY = 56
"""gdOffset."""
VMDK_VMFS_SPARSE_MAGIC = b"COWD"
VMDK_VMFS_SPARSE_PARENT = 44
"""parentFileName, up to a NUL; empty where there is none."""
VMDK_DESCRIPTOR_MAGIC = b"# disk descriptorfile"
"""In any case of letters."""
VMDK_SESPARSE_MAGIC = bytes.fromhex("bebafeca00000000")
VMDK_NO_PARENT = "ffffffff"
"""The CID of no parent."""

# VirtualBox Disk Image, little-endian
VDI_SIGNATURE_OFFSET = 64
VDI_SIGNATURE = bytes.fromhex("7f10dabe")
VDI_IMAGE_TYPE = 76
VDI_UNDO, VDI_DIFFERENCING = 3, 4
VDI_MAP = 340
"""offBlocks, offData."""
VDI_DISK_SIZE = 368
VDI_BLOCK_SIZE = 376
"""cbBlock, cbBlockExtra, cBlocks."""
VDI_ABSENT = 0xFFFFFFFE
"""This and the number after it stand for blocks that are not there."""
VDI_UUID_LINK = 424
"""The UUID of the parent, 16 bytes; zeros where there is none."""

# Parallels, little-endian
PARALLELS_MAGICS = (b"WithoutFreeSpace", b"WithouFreSpacExt")
"""The table of the first counts in sectors, that of the second in clusters."""
PARALLELS_TRACKS = 28
"""Sectors of a cluster; then the number of entries of the table."""
PARALLELS_SECTORS = 36
PARALLELS_TABLE = 64

# Bochs: magic, type and subtype, each filled up with zeros
BOCHS_MAGIC = b"Bochs Virtual HD Image".ljust(32, b"\0") + b"Redolog".ljust(16, b"\0") + b"Growing".ljust(16, b"\0")
BOCHS_TYPES = 32
BOCHS_NEEDS_PARENT = (b"Undoable", b"Volatile")
"""Subtypes that hold only what differs from another image."""
BOCHS_SUBTYPE = 48

# cloop 2.0
CLOOP_MAGIC = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop "

# UDIF (Apple disk image), big-endian: the trailer
UDIF_SIGNATURE = b"koly"
UDIF_VERSION = 4
UDIF_HEADER_SIZE = 8
UDIF_TRAILER_BYTES = 512

# What is recognised only to be refused by name
EWF_SIGNATURES = (
    b"EVF\x09\r\n\xff\x00",
    b"EVF2\r\n\x81\x00",
    b"LVF\x09\r\n\xff\x00",
    b"LEF2\r\n\x81\x00",
)
AFF_SIGNATURE = b"AFF10\r\n\x00"
