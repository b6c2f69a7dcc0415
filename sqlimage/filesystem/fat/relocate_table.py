"""The FAT written anew, slab by slab, in all its copies: where it differs from the copy that was moved are fix-ups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s, stretches
from sqlimage.filesystem.fat import layout
from sqlimage.filesystem.fat.boot import BootSector, Geometry
from sqlimage.filesystem.fat.relocate_layout import ClusterMoves
from sqlimage.filesystem.fat.relocate_ledger import Ledger
from sqlimage.filesystem.fat.table import unpack_entries

SLAB_ENTRIES = 1 << 18
"""An even number: slabs of FAT12 begin at whole bytes. At most 1 MiB, which also bounds a fix-up."""
BLOCK_BYTES = 4096
"""A fix-up covers whole blocks of the FAT: changes come close together, and each fix-up costs something."""

Entries = NDArray[np.uint32]


class NewTable:
    """The entries of the new FAT, made when they are asked for."""

    def __init__(self, moves: ClusterMoves, end_mark: Int64s, fat_bits: int) -> None:
        ends = np.append(moves.begins()[1:], True)[: len(moves.chain)]
        following = np.where(ends, end_mark[moves.chain], np.roll(moves.new, -1))
        order = np.argsort(moves.new)
        self._start = moves.new[order]
        self._last = self._start + moves.length[order] - 1
        self._following = following[order]
        self._bad = moves.bad
        self._bad_mark = layout.BAD_CLUSTER[fat_bits]

    def entries(self, first: int, count: int) -> Entries | None:
        """Those of some clusters; None where all are zero."""
        low, high = np.searchsorted(self._last, first), np.searchsorted(self._start, first + count)
        bad = self._bad.clip(first, first + count).shift(-first)
        if low == high and len(bad) == 0:
            return None
        start, last = self._start[low:high] - first, self._last[low:high] - first
        values = np.arange(first + 1, first + count + 1, dtype=np.uint32)
        values[~_mask(start.clip(min=0), last.clip(max=count - 1) + 1, count)] = 0
        ends = np.flatnonzero(last < count)
        values[last[ends]] = self._following[low:high][ends]
        values[_mask(bad.start, bad.end, count)] = self._bad_mark
        return values


def fix_tables(
    device: BlockDevice, boot: BootSector, old: Geometry, new: Geometry, table: NewTable, ledger: Ledger
) -> None:
    """The changes of every FAT that is kept.

    Raises :class:`InconsistentVolume` where FATs that are to be alike are not.
    """
    kept = range(boot.BPB_NumFATs) if boot.active_fat is None else (boot.active_fat,)
    reserved = boot.BPB_RsvdSecCnt * old.bytes_per_sector
    end = max(old.end_cluster, new.end_cluster)
    for first in range(0, end, SLAB_ENTRIES):
        count = min(SLAB_ENTRIES, end - first)
        values = table.entries(first, count)
        low, high = first * old.fat_bits // 8, -(-(first + count) * old.fat_bits // 8)
        zeros = bytes(high - low)
        model: bytes | None = None
        changes: list[tuple[int, bytes, bytes]] = []
        for number in kept:
            raw = _read(device, reserved + number * old.fat_bytes, low, min(high, old.fat_bytes), zeros)
            shared = raw == model
            if not shared:
                if model is not None:
                    _check_alike(model, raw, first, old, number)
                changes = _changes(raw, zeros, values, first, count, old.fat_bits)
                model = model or raw
            for at, original, replacement in changes:
                place = reserved + number * new.fat_bytes + low + at
                ledger.add(place, original, replacement, f"FAT {number + 1}: chains", shared=shared)


def _read(device: BlockDevice, fat_offset: int, low: int, high: int, zeros: bytes) -> bytes:
    """Bytes of an old FAT, zeros beyond it; ``zeros`` itself where that is known without reading."""
    if high <= low or not any(extent.is_data for extent in device.extents(fat_offset + low, high - low)):
        return zeros
    return device.read(fat_offset + low, high - low).ljust(len(zeros), b"\0")


def _check_alike(model: bytes, raw: bytes, first: int, old: Geometry, number: int) -> None:
    count = min(max(old.end_cluster - first, 0), len(raw) * 8 // old.fat_bits)
    length = -(-count * old.fat_bits // 8)
    pair = [unpack_entries(fat[:length], old.fat_bits, first, count) for fat in (model, raw)]
    differs = np.flatnonzero(pair[0] != pair[1]) + first
    differs = differs[differs >= layout.FIRST_CLUSTER]
    if len(differs):
        one, other = (int(entries[differs[0] - first]) for entries in pair)
        raise InconsistentVolume(
            "FAT", f"FAT 1 and FAT {number + 1} differ: the entry of cluster {differs[0]} is 0x{one:X} and 0x{other:X}"
        )


def _changes(
    raw: bytes, zeros: bytes, values: Entries | None, first: int, count: int, fat_bits: int
) -> list[tuple[int, bytes, bytes]]:
    """(place in the slab, original, replacement) of every stretch of blocks that changes."""
    if values is None:
        if raw == zeros:
            return []
        values = np.zeros(count, dtype=np.uint32)
    values = values.copy()
    if first == 0:
        values[: layout.FIRST_CLUSTER] = unpack_entries(raw, fat_bits, 0, count)[: layout.FIRST_CLUSTER]
    new = _pack(raw, values, fat_bits)
    differs = np.zeros(-(-len(raw) // BLOCK_BYTES) * BLOCK_BYTES, dtype=np.bool_)
    differs[: len(raw)] = np.frombuffer(raw, dtype=np.uint8) != np.frombuffer(new, dtype=np.uint8)
    block: NDArray[np.bool_] = np.logical_or.reduce(differs.reshape(-1, BLOCK_BYTES), axis=1)
    cuts = [(start * BLOCK_BYTES, end * BLOCK_BYTES) for start, end in stretches(block)]
    return [(start, raw[start:end], new[start:end]) for start, end in cuts]


def _pack(raw: bytes, values: Entries, fat_bits: int) -> bytes:
    """The bytes of the entries. What of ``raw`` is not theirs stays: reserved bits, the half byte behind the last."""
    if fat_bits == 16:
        return values.astype("<u2").tobytes()
    if fat_bits == 32:
        reserved = np.frombuffer(raw, dtype="<u4") & np.uint32(~layout.ENTRY_MASK_FAT32 & 0xFFFFFFFF)
        return (reserved | values).astype("<u4").tobytes()
    even, odd = values[0::2], values[1::2]
    if len(odd) < len(even):
        odd = np.append(odd, np.uint32(raw[-1] >> 4))
    packed = np.column_stack((even & 0xFF, even >> 8 | (odd & 0xF) << 4, odd >> 4))
    return packed.astype(np.uint8).tobytes()[: len(raw)]


def _mask(start: Int64s, end: Int64s, count: int) -> NDArray[np.bool_]:
    """Which of ``count`` places lie in one of the disjoint runs."""
    edges = np.zeros(count + 1, dtype=np.int8)
    edges[start] += 1
    edges[end] -= 1
    mask: NDArray[np.bool_] = np.cumsum(edges[:-1], dtype=np.int8) > 0
    return mask
