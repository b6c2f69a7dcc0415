"""VHDX ([MS-VHDX]): whether a file needs its parent, and which blocks are there at all, which QEMU does not tell.

Only what is needed for this is read, from the first region table, as QEMU does; checksums and the log are QEMU's part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sqlimage.extent import Runs
from sqlimage.media.file import FileDevice
from sqlimage.media.foreign import layout
from sqlimage.media.foreign.formats import Format
from sqlimage.media.foreign.found import Found, corrupt, head, needs_parent

_ENTRIES_AT_A_TIME = 1 << 20
_READS_AS_ZEROS = np.array(
    [
        layout.PAYLOAD_BLOCK_NOT_PRESENT,
        layout.PAYLOAD_BLOCK_UNDEFINED,
        layout.PAYLOAD_BLOCK_ZERO,
        layout.PAYLOAD_BLOCK_UNMAPPED,
    ],
    dtype=np.uint64,
)
"""Without a parent nothing else can be meant by a block that is not there."""


@dataclass(frozen=True, slots=True)
class _Metadata:
    bytes_per_block: int
    bytes_per_sector: int
    disk_bytes: int
    has_parent: bool


def is_vhdx(_file: FileDevice, start: bytes) -> bool:
    return start.startswith(layout.VHDX_SIGNATURE)


def look_at_vhdx(file: FileDevice, kind: Format) -> Found:
    """Raises FormatError where what is read contradicts itself, RefusedError where there must be a parent."""
    if not is_vhdx(file, head(file, layout.HEAD_BYTES)):
        corrupt(file, kind, "file identifier", "is missing")
    regions = _regions(file, kind)
    metadata = _metadata(file, kind, *regions[layout.VHDX_METADATA_REGION])
    if metadata.has_parent:
        needs_parent(file, kind)
    zeros = _zeros(file, kind, metadata, *regions[layout.VHDX_BAT_REGION])
    return Found(kind, metadata.bytes_per_sector, zeros, kind.most_expansion)


def _regions(file: FileDevice, kind: Format) -> dict[bytes, tuple[int, int]]:
    """Where the block allocation table and the metadata lie: offset and length in bytes, within the file."""
    table = head(file, layout.VHDX_REGION_TABLE_BYTES, layout.VHDX_REGION_TABLE)
    count = int.from_bytes(table[layout.VHDX_REGION_COUNT :][:4], "little")
    if not table.startswith(layout.VHDX_REGION_SIGNATURE) or count > layout.VHDX_REGIONS_MAXIMUM:
        corrupt(file, kind, "region table", "is missing or damaged")
    found: dict[bytes, tuple[int, int]] = {}
    for n in range(count):
        place = layout.VHDX_REGION_ENTRIES + n * layout.VHDX_REGION_ENTRY.size
        guid, offset, length, _ = layout.VHDX_REGION_ENTRY.unpack_from(table, place)
        if guid in (layout.VHDX_BAT_REGION, layout.VHDX_METADATA_REGION):
            if guid in found or offset + length > file.size_bytes:
                corrupt(file, kind, "region table", f"a region at byte {offset} is there twice or beyond the file")
            found[guid] = (offset, length)
    if len(found) != 2:
        corrupt(file, kind, "region table", "block allocation table or metadata are missing")
    return found


def _metadata(file: FileDevice, kind: Format, offset: int, length: int) -> _Metadata:
    table = head(file, layout.VHDX_METADATA_TABLE_BYTES, offset)
    count = int.from_bytes(table[layout.VHDX_METADATA_COUNT :][:2], "little")
    if not table.startswith(layout.VHDX_METADATA_SIGNATURE) or count > layout.VHDX_METADATA_MAXIMUM:
        corrupt(file, kind, "metadata table", "is missing or damaged")
    items: dict[bytes, bytes] = {}
    for n in range(count):
        place = layout.VHDX_METADATA_ENTRIES + n * layout.VHDX_METADATA_ENTRY.size
        item, at, item_bytes, _, _ = layout.VHDX_METADATA_ENTRY.unpack_from(table, place)
        if item in (layout.VHDX_FILE_PARAMETERS, layout.VHDX_VIRTUAL_DISK_SIZE, layout.VHDX_LOGICAL_SECTOR_SIZE):
            if at + item_bytes > length or item_bytes > 8:
                corrupt(file, kind, "metadata table", f"an item at byte {offset + at} lies beyond the region")
            items[item] = head(file, 8, offset + at)
    if len(items) != 3:
        corrupt(file, kind, "metadata table", "block size, disk size or sector size are missing")
    parameters = items[layout.VHDX_FILE_PARAMETERS]
    found = _Metadata(
        int.from_bytes(parameters[:4], "little"),
        int.from_bytes(items[layout.VHDX_LOGICAL_SECTOR_SIZE][:4], "little"),
        int.from_bytes(items[layout.VHDX_VIRTUAL_DISK_SIZE], "little"),
        bool(int.from_bytes(parameters[4:], "little") & layout.VHDX_HAS_PARENT),
    )
    block = found.bytes_per_block
    if not layout.VHDX_BLOCK_MINIMUM <= block <= layout.VHDX_BLOCK_MAXIMUM or block & (block - 1):
        corrupt(file, kind, "file parameters", f"a block of {block} bytes is not allowed")
    if found.bytes_per_sector not in (512, 4096):
        corrupt(file, kind, "logical sector size", f"{found.bytes_per_sector} is neither 512 nor 4096")
    if found.disk_bytes > layout.VHDX_DISK_MAXIMUM or found.disk_bytes % found.bytes_per_sector:
        corrupt(file, kind, "virtual disk size", f"{found.disk_bytes} is not allowed")
    return found


def _zeros(file: FileDevice, kind: Format, metadata: _Metadata, offset: int, length: int) -> Runs:
    """Bytes of the disk whose blocks are not in the file."""
    block = metadata.bytes_per_block
    blocks = -(-metadata.disk_bytes // block)
    # after every so many blocks there is an entry for the bitmap of their sectors
    ratio = layout.VHDX_SECTORS_PER_BITMAP_BLOCK * metadata.bytes_per_sector // block
    entries = blocks + max(0, blocks - 1) // ratio
    if entries * 8 > length:
        corrupt(file, kind, "block allocation table", f"{length} bytes do not hold {entries} entries")
    pieces = []
    for first in range(0, entries, _ENTRIES_AT_A_TIME):
        count = min(_ENTRIES_AT_A_TIME, entries - first)
        state = np.frombuffer(file.read(offset + first * 8, count * 8), dtype="<u8") & layout.VHDX_STATE_MASK
        entry = np.arange(first, first + count, dtype=np.int64)
        is_zero = (entry % (ratio + 1) != ratio) & np.isin(state, _READS_AS_ZEROS)
        number = entry[is_zero] - entry[is_zero] // (ratio + 1)
        pieces.append(Runs.from_arrays(number, np.ones_like(number)))
    if not pieces:
        return Runs.empty()
    absent = Runs.from_arrays(np.concatenate([p.start for p in pieces]), np.concatenate([p.length for p in pieces]))
    return Runs(absent.start * block, absent.length * block).clip(0, metadata.disk_bytes)
