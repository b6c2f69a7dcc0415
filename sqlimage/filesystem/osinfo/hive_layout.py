"""Windows registry hives on disk, version 1.x: fields and constants only, in the spelling of Windows' configuration
manager. All integers are little-endian; a name that ends in ``_AT`` is an offset in bytes from the start of its
structure. A *place* is a cell's, in bytes from the first hive bin."""

from __future__ import annotations

from typing import NamedTuple

# HBASE_BLOCK, the first 4096 bytes
BASE_BLOCK_BYTES = 4096
BASE_BLOCK_SIGNATURE = b"regf"
MAJOR_AT = 0x14  # u32, then the minor version, u32
MAJOR = 1
ROOT_CELL_AT = 0x24  # u32, place

# cells: the size of the whole cell, s32, negative where it is allocated, then its data
CELL_HEADER_BYTES = 4
CELL_ALIGNMENT = 8
BIN_HEADER_BYTES = 32  # HBIN; no cell lies before the end of the first

# CM_KEY_NODE
SUBKEY_COUNT_AT = 0x14  # u32; then the count of volatile ones, u32, and the place of the list, u32
VALUE_COUNT_AT = 0x24  # u32, then the place of the list, u32: places of values

# CM_KEY_INDEX: a signature, a count, u16, then elements, each with a place first
INDEX_ROOT = b"ri"  # of other lists, none of them a root
INDEX_LEAF = b"li"  # of key nodes, as below
FAST_LEAF = b"lf"  # and the first four characters of the name
HASH_LEAF = b"lh"  # and a hash: for each character of the upper-case name, times 37 plus the character, u32
ELEMENTS_AT = 0x04
ELEMENT_BYTES = {INDEX_ROOT: 4, INDEX_LEAF: 4, FAST_LEAF: 8, HASH_LEAF: 8}

# CM_KEY_VALUE
DATA_LENGTH_AT = 0x04  # u32, bytes; then the data's place, u32, and their type, u32
DATA_RESIDENT = 1 << 31  # in the length: the data lie in place of their place
RESIDENT_BYTES = 4
DATA_AT = 0x08
REG_SZ, REG_EXPAND_SZ, REG_DWORD, REG_QWORD = 1, 2, 4, 11
NUMBER_BYTES = {REG_DWORD: 4, REG_QWORD: 8}

# CM_BIG_DATA: a signature, a count of segments, u16, and the place of their places, u32
BIG_DATA_SIGNATURE = b"db"
BIG_DATA_BYTES = 8
BIG_DATA_MINOR = 4  # the first minor version that has it, for data of more than one segment
SEGMENT_BYTES = 16344  # the data of each segment but the last


class Named(NamedTuple):
    """Where a structure holds its name; the flag says that it has one byte a character, Latin-1, not UTF-16."""

    signature: bytes
    flags_at: int  # u16
    comp_name: int
    name_length_at: int  # u16, bytes
    name_at: int


KEY = Named(b"nk", flags_at=0x02, comp_name=0x0020, name_length_at=0x48, name_at=0x4C)
VALUE = Named(b"vk", flags_at=0x10, comp_name=0x0001, name_length_at=0x02, name_at=0x14)
