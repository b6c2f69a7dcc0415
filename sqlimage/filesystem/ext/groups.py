"""Block groups: their descriptors as columns, and what of the volume is allocated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s, Runs, first_overlap
from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.ext import layout
from sqlimage.filesystem.ext.layout import Compat, Incompat
from sqlimage.filesystem.ext.superblock import Geometry

_BITMAP_BYTES_AT_ONCE = 1 << 18
_PIECES_MAX = 6_000_000
_DESCRIPTOR_BLOCKS_AT_ONCE = 256
_CRC16_TABLE = np.zeros(256, dtype=np.uint16)
for _byte in range(256):
    _register = _byte
    for _ in range(8):
        _register = _register >> 1 ^ (0xA001 if _register & 1 else 0)
    _CRC16_TABLE[_byte] = _register


@dataclass(frozen=True, slots=True)
class Groups:
    """One row a block group."""

    block_bitmap: Int64s
    inode_bitmap: Int64s
    inode_table: Int64s
    flags: NDArray[np.uint16]
    block_bitmap_csum: NDArray[np.uint32]
    inode_bitmap_csum: NDArray[np.uint32]
    is_stale: bool = False
    """Whether only the places can be trusted: flags are cleared, and the bitmaps' checksums may be old ones."""

    def __len__(self) -> int:
        return len(self.flags)

    def without_state(self) -> Groups:
        return replace(self, flags=np.zeros_like(self.flags), is_stale=True)


def read_groups(device: BlockDevice, geometry: Geometry, *, as_they_lie: bool = False) -> Groups:
    """The descriptors of all groups, their checksums checked, and their places inside the volume and apart.

    With a backup of the superblock, those behind the first one are taken where they are right: no driver keeps the
    backups of descriptors up to date. ``as_they_lie``: without regard to checksums, as while a journal is to be
    recovered. Raises :class:`~sqlimage.errors.InconsistentVolume`.
    """
    if geometry.copy_in_group:
        try:
            return read_groups(device, replace(geometry, copy_in_group=0), as_they_lie=as_they_lie)
        except InconsistentVolume:
            groups = _read_groups(device, geometry, is_checked=True)
            return groups.without_state() if geometry.has_group_flags else groups
    groups = _read_groups(device, geometry, is_checked=not as_they_lie)
    return replace(groups, is_stale=True) if as_they_lie else groups


def _read_groups(device: BlockDevice, geometry: Geometry, *, is_checked: bool) -> Groups:
    parts = [_parse(geometry, first, raw, is_checked) for first, raw in _descriptor_bytes(device, geometry)]
    groups = Groups(*(np.concatenate(column) for column in zip(*parts, strict=True)))  # type: ignore[arg-type]
    table_blocks = geometry.inode_table_blocks
    for name, place, length in (
        ("bg_block_bitmap", groups.block_bitmap, 1),
        ("bg_inode_bitmap", groups.inode_bitmap, 1),
        ("bg_inode_table", groups.inode_table, table_blocks),
    ):
        wrong = np.flatnonzero((place < geometry.first_data_block) | (place > geometry.blocks_count - length))
        if len(wrong):
            group = int(wrong[0])
            raise InconsistentVolume(
                f"group descriptor {group}, {name}",
                f"is block {place[group]}, the volume has {geometry.blocks_count}",
            )
    if (shared := first_overlap(*_places(geometry, groups))) is not None:
        raise InconsistentVolume("group descriptors", f"two bitmaps or inode tables lie at block {shared}")
    return groups


def _places(geometry: Geometry, groups: Groups) -> tuple[Int64s, Int64s]:
    """Where the bitmaps and inode tables lie, and how many blocks each has."""
    one = np.ones(len(groups), dtype=np.int64)
    return (
        np.concatenate((groups.block_bitmap, groups.inode_bitmap, groups.inode_table)),
        np.concatenate((one, one, one * geometry.inode_table_blocks)),
    )


def _descriptor_bytes(device: BlockDevice, geometry: Geometry) -> Iterator[tuple[int, bytes]]:
    """First group, and the descriptors from there on, as they lie."""
    per_block, block = geometry.descriptors_per_block, geometry.bytes_per_block
    number = 0
    while number < geometry.descriptor_blocks:
        at = geometry.descriptor_block(number)
        count = 1
        while (
            count < _DESCRIPTOR_BLOCKS_AT_ONCE
            and number + count < geometry.descriptor_blocks
            and geometry.descriptor_block(number + count) == at + count
        ):
            count += 1
        if (at + count) * block > geometry.size_bytes:
            raise InconsistentVolume("group descriptors", f"lie at block {at}, beyond the end of the volume")
        first = number * per_block
        wanted = min(count * per_block, geometry.groups - first) * geometry.bytes_per_descriptor
        yield first, device.read(at * block, wanted)
        number += count


def _parse(
    geometry: Geometry, first: int, raw: bytes, is_checked: bool
) -> tuple[NDArray[np.int64] | NDArray[np.uint32], ...]:
    table = np.frombuffer(raw, dtype=np.uint8).reshape(-1, geometry.bytes_per_descriptor)
    has_upper = bool(geometry.incompat & Incompat.BIT64)

    def u16(at: int) -> NDArray[np.int64]:
        return table[:, at].astype(np.int64) | table[:, at + 1].astype(np.int64) << 8

    def u32(at: int) -> NDArray[np.int64]:
        return u16(at) | u16(at + 2) << 16

    def block(at: int) -> NDArray[np.int64]:
        low = u32(at)
        return low | (u32(at + layout.BG_HI) & 0x7FFFFFFF) << 32 if has_upper else low

    def bitmap_csum(at: int, upper_at: int) -> NDArray[np.int64]:
        return u16(at) | u16(upper_at) << 16 if has_upper else u16(at)

    flags = u16(layout.BG_FLAGS_AT)
    if geometry.has_group_flags and is_checked:
        found = u16(layout.BG_CHECKSUM_AT)
        right = _checksums(geometry, first, table)
        wrong = np.flatnonzero(found != right)
        if len(wrong):
            group = int(wrong[0])
            raise InconsistentVolume(
                f"group descriptor {first + group}, bg_checksum", f"is {found[group]:#x}, should be {right[group]:#x}"
            )
    if not geometry.has_group_flags:
        flags = np.zeros_like(flags)
    return (
        block(layout.BG_BLOCK_BITMAP_AT),
        block(layout.BG_INODE_BITMAP_AT),
        block(layout.BG_INODE_TABLE_AT),
        flags,
        bitmap_csum(layout.BG_BLOCK_BITMAP_CSUM_AT, layout.BG_BLOCK_BITMAP_CSUM_HI_AT),
        bitmap_csum(layout.BG_INODE_BITMAP_CSUM_AT, layout.BG_INODE_BITMAP_CSUM_HI_AT),
    )


def _checksums(geometry: Geometry, first: int, table: NDArray[np.uint8]) -> NDArray[np.int64]:
    """What bg_checksum should be: a CRC-32C, or without metadata_csum a CRC-16, over the group's number too."""
    at = layout.BG_CHECKSUM_AT
    numbers = np.arange(first, first + len(table), dtype="<u4")
    if geometry.has_checksums:
        plain = table.copy()
        plain[:, at : at + 2] = 0
        rows = np.concatenate((numbers.view(np.uint8).reshape(-1, 4), plain), axis=1)
        return np.array([crc32c(geometry.checksum_seed, row.tobytes()) & 0xFFFF for row in rows], dtype=np.int64)
    register = np.full(len(table), 0xFFFF, dtype=np.uint16)
    parts = [
        np.broadcast_to(np.frombuffer(geometry.uuid, dtype=np.uint8), (len(table), 16)),
        numbers.view(np.uint8).reshape(-1, 4),
        table[:, :at],
    ]
    if geometry.incompat & Incompat.BIT64:
        parts.append(table[:, at + 2 :])
    for part in parts:
        for column in range(part.shape[1]):
            register = register >> 8 ^ _CRC16_TABLE[(register ^ part[:, column]) & 0xFF]
    return register.astype(np.int64)


def allocated_blocks(device: BlockDevice, geometry: Geometry, groups: Groups) -> Runs:
    """Blocks in use: the set bits of the bitmaps, and what a group whose bitmap was never written holds of metadata.

    What lies before the first group (the boot block) counts. Where free space is in more than
    ``_PIECES_MAX`` pieces, the rest of the groups is told as in use. Raises
    :class:`~sqlimage.errors.InconsistentVolume`.
    """
    ratio, per_group, first_block = geometry.blocks_per_cluster, geometry.clusters_per_group, geometry.first_data_block
    clusters = -(-(geometry.blocks_count - first_block) // ratio)
    starts, ends, pieces = [], [], 0
    initialised = np.flatnonzero((groups.flags & layout.BG_BLOCK_UNINIT) == 0)
    for some, bits in _bitmaps(device, geometry, groups.block_bitmap, initialised, per_group):
        _check(geometry, groups, some, bits, groups.block_bitmap_csum, "block bitmap")
        if not bits.any():
            continue
        mask = np.zeros((len(some), per_group + 2), dtype=np.uint8)
        mask[:, 1:-1] = np.unpackbits(bits, axis=1, count=per_group, bitorder="little")
        row, edge = np.nonzero(mask[:, 1:] != mask[:, :-1])
        pieces += len(row) // 2
        if pieces > _PIECES_MAX:
            row, edge = np.repeat(np.arange(len(some)), 2), np.tile([0, per_group], len(some))
        place = np.minimum(some[row] * per_group + edge, clusters)
        starts.append(place[::2])
        ends.append(place[1::2])
    start = np.concatenate([np.empty(0, dtype=np.int64), *starts])
    length = np.concatenate([np.empty(0, dtype=np.int64), *ends]) - start
    place, count = _places(geometry, groups)
    copies = np.array([(0, first_block), *_copies(geometry)], dtype=np.int64)
    runs = Runs.from_arrays(
        np.concatenate((start * ratio + first_block, place, copies[:, 0])),
        np.concatenate((length * ratio, count, copies[:, 1])),
    )
    if ratio > 1:  # a cluster is in use as a whole
        runs = runs.clip(first_block, geometry.blocks_count).shift(-first_block).widen(ratio)
        runs = runs.shift(first_block).union(Runs.of([(0, first_block)]))
    return runs.clip(0, geometry.blocks_count)


def inodes_in_use(device: BlockDevice, geometry: Geometry, groups: Groups) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """For each group with inodes in use: its number, and which they are."""
    initialised = np.flatnonzero((groups.flags & layout.BG_INODE_UNINIT) == 0)
    per_group = geometry.inodes_per_group
    for some, bits in _bitmaps(device, geometry, groups.inode_bitmap, initialised, per_group):
        _check(geometry, groups, some, bits, groups.inode_bitmap_csum, "inode bitmap")
        for row in np.flatnonzero(bits.any(axis=1)).tolist():
            mask = np.unpackbits(bits[row], count=per_group, bitorder="little").astype(np.bool_)
            if mask.any():
                yield int(some[row]), mask


def _bitmaps(
    device: BlockDevice, geometry: Geometry, places: Int64s, wanted: Int64s, per_group: int
) -> Iterator[tuple[Int64s, NDArray[np.uint8]]]:
    """Numbers of groups and their bitmaps, a row each, some at a time; those that lie side by side are read as one."""
    size, used = geometry.bytes_per_block, -(-per_group // 8)
    step = max(1, _BITMAP_BYTES_AT_ONCE // size)
    for at in range(0, len(wanted), step):
        some = wanted[at : at + step]
        place = places[some]
        breaks = (np.flatnonzero(np.diff(place) != 1) + 1).tolist()
        raw = b"".join(
            device.read(int(place[low]) * size, (high - low) * size)
            for low, high in zip([0, *breaks], [*breaks, len(some)], strict=True)
        )
        yield some, np.frombuffer(raw, dtype=np.uint8).reshape(len(some), size)[:, :used]


def _check(
    geometry: Geometry, groups: Groups, some: Int64s, bits: NDArray[np.uint8], checksums: NDArray[np.uint32], what: str
) -> None:
    if not geometry.has_checksums or groups.is_stale:
        return
    mask = 0xFFFFFFFF if geometry.incompat & Incompat.BIT64 else 0xFFFF
    for group, row in zip(some.tolist(), bits, strict=True):
        if crc32c(geometry.checksum_seed, row.tobytes()) & mask != checksums[group]:
            raise InconsistentVolume(f"{what} of group {group}", "does not match its checksum")


def _copies(geometry: Geometry) -> Iterator[tuple[int, int]]:
    """Where the superblocks and descriptors and their copies lie, in blocks."""
    per_block, tables = geometry.descriptors_per_block, geometry.meta_bg_from
    reserved = geometry.reserved_gdt_blocks if geometry.compat & Compat.RESIZE_INODE else 0
    for group in geometry.superblock_groups():
        behind = tables + reserved if group // per_block < tables else 0
        yield geometry.first_block(group) + geometry.superblock_offset(group), 1 + behind
    for first in range(tables * per_block, geometry.groups, per_block):
        for group in (first, first + 1, first + per_block - 1):
            if group < geometry.groups:
                at = geometry.first_block(group) + geometry.superblock_offset(group)
                yield at + int(geometry.has_superblock(group)), 1
