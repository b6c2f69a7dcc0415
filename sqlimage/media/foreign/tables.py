"""How far a container's tables reach. QEMU reads what lies behind the end of a file as zeros: of one that was cut, as
by a download that broke off, it would read less than was in it without a word.

Each function answers with the first byte that no table and no block needs, or 0 where the header is not one that QEMU
opens. Of the last block, what lies behind the end of the disk need not be there. A table is read once, however often it
is named.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sqlimage.media.file import FileDevice
from sqlimage.media.foreign import layout
from sqlimage.media.foreign.formats import Format
from sqlimage.media.foreign.found import corrupt, head
from sqlimage.units import SECTOR_BYTES

_MOST_TABLES = 1 << 18
_MOST_TABLES_BYTES = 1 << 30
"""More of them take too long to read, and are not: that is 8 TiB of data where the format's defaults are kept."""
_MOST_TABLE_BYTES = 128 << 20
"""In one table."""

Numbers = NDArray[np.uint64]


def check_reach(file: FileDevice, kind: Format, reach: int) -> None:
    """Raise where the file ends before."""
    if reach > file.size_bytes:
        problem = f"name data up to byte {reach}, but the file ends at byte {file.size_bytes}: it has been cut"
        corrupt(file, kind, "tables", problem)


def reach_of_qcow(file: FileDevice) -> int:
    start = head(file, layout.HEAD_BYTES)
    cluster_bits, l2_bits = start[layout.QCOW1_CLUSTER_BITS], start[layout.QCOW1_CLUSTER_BITS + 1]
    if not (9 <= cluster_bits <= 16 and 6 <= l2_bits <= 13):
        return 0
    size = int.from_bytes(start[layout.QCOW_SIZE :][:8], "big")
    l1_entries = -(-size >> (cluster_bits + l2_bits))
    l1, reach = _table(file, int.from_bytes(start[layout.QCOW_L1_TABLE_OFFSET :][:8], "big"), l1_entries, ">u8")
    for offset in _offsets(l1, 8 << l2_bits):
        entry, end = _table(file, offset, 1 << l2_bits, ">u8")
        is_compressed = entry >> np.uint64(63) == 1
        plain = entry[~is_compressed & (entry != 0)]
        packed = entry[is_compressed]
        place = packed & np.uint64((1 << (63 - cluster_bits)) - 1)
        length = (packed >> np.uint64(63 - cluster_bits)) & np.uint64((1 << cluster_bits) - 1)
        tail = -size % (1 << cluster_bits)
        reach = max(reach, end, _last(plain, (1 << cluster_bits) - tail), _last(place + length, 0))
    return reach


def reach_of_qcow2(file: FileDevice) -> int:
    start = head(file, layout.HEAD_BYTES)
    cluster_bits = int.from_bytes(start[layout.QCOW2_CLUSTER_BITS :][:4], "big")
    if not 9 <= cluster_bits <= 21:
        return 0
    cluster = 1 << cluster_bits
    version = int.from_bytes(start[layout.QCOW_VERSION :][:4], "big")
    features = int.from_bytes(start[layout.QCOW2_INCOMPATIBLE_FEATURES :][:8], "big") if version == 3 else 0
    words = 2 if features & layout.QCOW2_EXTENDED_L2 else 1
    l1_entries = int.from_bytes(start[layout.QCOW2_L1_SIZE :][:4], "big")
    l1, reach = _table(file, int.from_bytes(start[layout.QCOW_L1_TABLE_OFFSET :][:8], "big"), l1_entries, ">u8")
    tail = -int.from_bytes(start[layout.QCOW_SIZE :][:8], "big") % cluster
    size_bits = cluster_bits - 8
    for offset in _offsets(l1 & np.uint64(layout.QCOW2_OFFSET_MASK), cluster):
        table, end = _table(file, offset, cluster // 8, ">u8")
        entry = table[::words]
        is_compressed = entry & np.uint64(layout.QCOW2_COMPRESSED) != 0
        is_zero = entry & np.uint64(1) != 0  # what is meant by it is another thing where entries are extended
        plain = entry[~is_compressed & (~is_zero | (words == 2))] & np.uint64(layout.QCOW2_OFFSET_MASK)
        # of a cluster in parts those at its end may never have been written
        reach = max(reach, end, _last(plain[plain != 0], cluster - tail if words == 1 else 1))
        packed = entry[is_compressed] & np.uint64(layout.QCOW2_COMPRESSED - 1)
        place = packed & np.uint64((1 << (62 - size_bits)) - 1)
        sectors = packed >> np.uint64(62 - size_bits)
        reach = max(reach, _last(place // SECTOR_BYTES + sectors, 0) * SECTOR_BYTES + 1 if len(packed) else 0)
    return reach


def reach_of_vdi(file: FileDevice) -> int:
    start = head(file, layout.HEAD_BYTES)
    table, data = (int.from_bytes(start[at:][:4], "little") for at in (layout.VDI_MAP, layout.VDI_MAP + 4))
    size = int.from_bytes(start[layout.VDI_DISK_SIZE :][:8], "little")
    block, extra, blocks = (
        int.from_bytes(start[at:][:4], "little")
        for at in (layout.VDI_BLOCK_SIZE, layout.VDI_BLOCK_SIZE + 4, layout.VDI_BLOCK_SIZE + 8)
    )
    number, reach = _table(file, table, blocks, "<u4")
    number = number[number < layout.VDI_ABSENT]
    if len(number) and block:
        reach = max(reach, data + _last(number * np.uint64(block + extra), block + extra - -size % block))
    return reach


def reach_of_parallels(file: FileDevice) -> int:
    start = head(file, layout.HEAD_BYTES)
    tracks, entries = (int.from_bytes(start[at:][:4], "little") for at in (layout.PARALLELS_TRACKS, 32))
    size = int.from_bytes(start[layout.PARALLELS_SECTORS :][:8], "little") * SECTOR_BYTES
    unit = SECTOR_BYTES * (tracks if start.startswith(layout.PARALLELS_MAGICS[1]) else 1)
    number, reach = _table(file, layout.PARALLELS_TABLE, entries, "<u4")
    number = number[number != 0]
    cluster = tracks * SECTOR_BYTES
    return max(reach, _last(number * np.uint64(unit), cluster - -size % cluster)) if cluster else 0


def reach_of_vmdk(file: FileDevice) -> int:
    """Of one whose grains are not compressed; in those that are, QEMU finds no sense where they were cut."""
    start = head(file, layout.HEAD_BYTES)
    capacity, grain = (int.from_bytes(start[at:][:8], "little") for at in (layout.VMDK_CAPACITY, 20))
    in_table = int.from_bytes(start[layout.VMDK_GTES :][:4], "little")
    directory = int.from_bytes(start[layout.VMDK_DIRECTORY :][:8], "little")
    flags = int.from_bytes(start[layout.VMDK_FLAGS :][:4], "little")
    if flags & layout.VMDK_COMPRESSED or not 0 < in_table <= 512 or not 0 < grain <= 1 << 20:
        return 0
    tables, reach = _table(file, directory * SECTOR_BYTES, -(-capacity // (in_table * grain)), "<u4")
    tail = -capacity % grain
    for sector in _offsets(tables, 4 * in_table):
        number, end = _table(file, sector * SECTOR_BYTES, in_table, "<u4")
        reach = max(reach, end, _last(number[number > 1] * np.uint64(SECTOR_BYTES), (grain - tail) * SECTOR_BYTES))
    return reach


def _table(file: FileDevice, offset: int, entries: int, kind: str) -> tuple[Numbers, int]:
    """A table of numbers, what of it lies behind the end of the file left away; and where all of it ends."""
    width = int(kind[-1])
    there = max(0, min(entries, (file.size_bytes - offset) // width))
    if there * width > _MOST_TABLE_BYTES:
        there = 0
    numbers = np.frombuffer(file.read(offset, there * width), dtype=kind).astype(np.uint64) if there else _NONE
    return numbers, offset + entries * width


def _offsets(table: Numbers, length: int) -> list[int]:
    """The places of other tables of this length, each once, 0 being none."""
    places = np.unique(table[table != 0])
    return [int(place) for place in places] if len(places) <= min(_MOST_TABLES, _MOST_TABLES_BYTES // length) else []


def _last(places: Numbers, length: int) -> int:
    return int(places.max()) + length if len(places) else 0


_NONE: Numbers = np.empty(0, dtype=np.uint64)
