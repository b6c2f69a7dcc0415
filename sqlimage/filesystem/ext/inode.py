"""Inodes, some thousand at once: what each is, how large, and where its bytes lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import unpack_from

import numpy as np
from numpy.typing import NDArray

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s
from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.ext import layout
from sqlimage.filesystem.ext.groups import Groups, inodes_in_use
from sqlimage.filesystem.ext.layout import Incompat
from sqlimage.filesystem.ext.mapping import Mapped, Mapper
from sqlimage.filesystem.ext.superblock import Geometry
from sqlimage.units import MIB, NO_TIME

_SLAB_BYTES = 4 * MIB
_LAST_SECOND = ((1 << 63) - 1) // 1_000_000_000 - 1
_WITH_CONTENT = (layout.REGULAR, layout.DIRECTORY, layout.SYMLINK)


@dataclass(frozen=True, slots=True)
class Inodes:
    """One row an inode in use; ``runs`` are those of rows."""

    number: Int64s
    mode: NDArray[np.uint16]
    size_bytes: Int64s
    links: NDArray[np.uint16]
    flags: NDArray[np.uint32]
    generation: Int64s
    file_acl: Int64s
    """The block of extended attributes, 0 where there is none."""
    modified_ns: Int64s
    runs: Mapped
    inline: dict[int, bytes]
    """The bytes of those that need no blocks, by row."""

    @property
    def type(self) -> NDArray[np.uint16]:
        return self.mode & np.uint16(layout.TYPE_MASK)

    @property
    def has_content(self) -> NDArray[np.bool_]:
        return np.isin(self.type, _WITH_CONTENT)


def read_all(device: BlockDevice, geometry: Geometry, groups: Groups) -> Inodes:
    """Every inode in use, by number. Raises :class:`~sqlimage.errors.InconsistentVolume`."""
    mapper = Mapper(device, geometry)
    slabs = []
    for numbers, raw in _slabs(device, geometry, groups):
        if len(numbers):
            slabs.append(parse(mapper, geometry, numbers, raw))
    return _joined(slabs)


def read_one(device: BlockDevice, geometry: Geometry, groups: Groups, number: int) -> Inodes | None:
    """One inode by itself, or None where there is no such one in use."""
    if not 0 < number <= geometry.inodes_count:
        return None
    group, index = divmod(number - 1, geometry.inodes_per_group)
    if groups.flags[group] & layout.BG_INODE_UNINIT:
        return None
    bit = int(groups.inode_bitmap[group]) * geometry.bytes_per_block + index // 8
    if not device.read(bit, 1)[0] >> index % 8 & 1:
        return None
    at = int(groups.inode_table[group]) * geometry.bytes_per_block + index * geometry.bytes_per_inode
    raw = np.frombuffer(device.read(at, geometry.bytes_per_inode), dtype=np.uint8).reshape(1, -1)
    found = parse(Mapper(device, geometry), geometry, np.array([number], dtype=np.int64), raw)
    return found if len(found.number) else None


def _slabs(device: BlockDevice, geometry: Geometry, groups: Groups) -> Iterator[tuple[Int64s, NDArray[np.uint8]]]:
    """Numbers and bytes of the inodes in use, some at a time."""
    size = geometry.bytes_per_inode
    step = max(1, _SLAB_BYTES // size)
    numbers: list[Int64s] = []
    rows: list[NDArray[np.uint8]] = []
    held = 0
    for group, mask in inodes_in_use(device, geometry, groups):
        table = int(groups.inode_table[group]) * geometry.bytes_per_block
        used = np.flatnonzero(mask)
        for low in range(int(used[0]), int(used[-1]) + 1, step):
            some = used[(used >= low) & (used < low + step)]
            if not len(some):
                continue
            first, last = int(some[0]), int(some[-1])
            raw = np.frombuffer(device.read(table + first * size, (last - first + 1) * size), dtype=np.uint8)
            numbers.append(some + group * geometry.inodes_per_group + 1)
            rows.append(raw.reshape(-1, size)[some - first])
            held += len(some)
            if held >= step:
                yield np.concatenate(numbers), np.concatenate(rows)
                numbers, rows, held = [], [], 0
    if held:
        yield np.concatenate(numbers), np.concatenate(rows)


def parse(mapper: Mapper, geometry: Geometry, number: Int64s, raw: NDArray[np.uint8]) -> Inodes:
    """The inodes ``number``, whose bytes are the rows of ``raw``. Reserved ones that are blank are left out."""
    head = np.ascontiguousarray(raw[:, : layout.OLD_INODE_BYTES]).view(layout.INODE)[:, 0]
    blank = head["i_mode"] == 0
    if (wrong := blank & (number >= geometry.first_inode)).any():
        raise InconsistentVolume(f"inode {number[wrong][0]}", "is blank, but the bitmap says that it is in use")
    if blank.any():
        number, raw, head = number[~blank], raw[~blank], head[~blank]
    extra = _extra_isize(geometry, number, raw)
    if geometry.has_checksums:
        _check(geometry, number, head["i_generation"], extra, raw)
    mode, flags = head["i_mode"], head["i_flags"]
    type_ = mode & layout.TYPE_MASK
    size = head["i_size_lo"].astype(np.int64)
    is_large = (type_ == layout.REGULAR) | bool(geometry.incompat & Incompat.LARGEDIR)
    if geometry.revision.startswith("1"):
        size |= np.where(is_large, head["i_size_high"], 0).astype(np.int64) << 32
    if (wrong := (size < 0) | (size > layout.LOGICAL_BLOCKS_MAX * geometry.bytes_per_block)).any():
        raise InconsistentVolume(f"inode {number[wrong][0]}", f"its size of {size[wrong][0]} bytes cannot be")
    acl = head["i_file_acl_lo"].astype(np.int64) | head["l_i_file_acl_high"].astype(np.int64) << 32
    if not geometry.incompat & Incompat.BIT64:
        acl &= 0xFFFFFFFF
    field = raw[:, layout.BLOCK_FIELD_AT : layout.BLOCK_FIELD_AT + layout.BLOCK_FIELD_BYTES]
    generation = head["i_generation"].astype(np.int64)
    is_inline = (flags & layout.INLINE_DATA_FLAG) != 0 if geometry.incompat & Incompat.INLINE_DATA else flags != flags
    inline = {}
    is_fast = (type_ == layout.SYMLINK) & ~is_inline & _has_no_blocks(geometry, head, size, acl)
    for row in np.flatnonzero(is_fast).tolist():
        inline[row] = field[row, : int(size[row])].tobytes()
    with_content = np.isin(type_, _WITH_CONTENT) & ~is_fast
    for row in np.flatnonzero(with_content & is_inline).tolist():
        inline[row] = _inline_data(int(number[row]), int(size[row]), int(extra[row]), raw[row])
    has_runs = with_content & ~is_inline & (number != layout.RESIZE_INODE)
    has_tree = (flags & layout.EXTENTS_FLAG) != 0
    parts = []
    for rows, with_tree in ((np.flatnonzero(has_runs & has_tree), True), (np.flatnonzero(has_runs & ~has_tree), False)):
        if len(rows):
            if with_tree:
                mapped = mapper.extents(number[rows], generation[rows], field[rows])
            else:
                mapped = mapper.block_maps(number[rows], field[rows])
            parts.append(Mapped(rows[mapped.owner], mapped.logical, mapped.start, mapped.count, mapped.unwritten))
    return Inodes(
        number,
        mode,
        size,
        head["i_links_count"],
        flags,
        generation,
        acl,
        _modified(head, extra, raw),
        Mapped.joined(parts),
        inline,
    )


def _extra_isize(geometry: Geometry, number: Int64s, raw: NDArray[np.uint8]) -> Int64s:
    """How many bytes of each inode behind the first 128 are fields."""
    room = geometry.bytes_per_inode - layout.OLD_INODE_BYTES
    if not room:
        return np.zeros(len(raw), dtype=np.int64)
    at = layout.EXTRA_ISIZE_AT
    extra = raw[:, at].astype(np.int64) | raw[:, at + 1].astype(np.int64) << 8
    if (wrong := (extra > room) | (extra % 4 != 0)).any():
        raise InconsistentVolume(f"inode {number[wrong][0]}, i_extra_isize", f"is {extra[wrong][0]}, at most {room}")
    return extra


def _check(
    geometry: Geometry, number: Int64s, generation: NDArray[np.uint32], extra: Int64s, raw: NDArray[np.uint8]
) -> None:
    low, high = layout.CHECKSUM_LO_AT, layout.CHECKSUM_HI_AT
    plain = raw.copy()
    plain[:, low : low + 2] = 0
    found = raw[:, low].astype(np.int64) | raw[:, low + 1].astype(np.int64) << 8
    has_high = extra >= layout.CHECKSUM_HI_END
    if geometry.bytes_per_inode > layout.OLD_INODE_BYTES:
        plain[has_high, high : high + 2] = 0
        upper = raw[:, high].astype(np.int64) | raw[:, high + 1].astype(np.int64) << 8
        found |= np.where(has_high, upper, 0) << 16
    head = np.stack((number.astype("<u4"), generation.astype("<u4")), axis=1).view(np.uint8)
    rows = np.concatenate((head, plain), axis=1).tobytes()
    size, seed = 8 + geometry.bytes_per_inode, geometry.checksum_seed
    right = np.array([crc32c(seed, rows[at : at + size]) for at in range(0, len(rows), size)], dtype=np.int64)
    right = np.where(has_high, right, right & 0xFFFF)
    if (wrong := found != right).any():
        raise InconsistentVolume(f"inode {number[wrong][0]}", "does not match its checksum")


def _has_no_blocks(geometry: Geometry, head: NDArray[np.void], size: Int64s, acl: Int64s) -> NDArray[np.bool_]:
    """Of symbolic links: whether the target stands in i_block itself."""
    is_short = (size > 0) & (size < layout.BLOCK_FIELD_BYTES)
    if geometry.incompat & Incompat.EA_INODE:
        return is_short
    own = np.where(acl != 0, geometry.bytes_per_cluster >> 9, 0)
    blocks = head["i_blocks_lo"].astype(np.int64) | head["l_i_blocks_high"].astype(np.int64) << 32
    return is_short & (blocks <= own)


def _modified(head: NDArray[np.void], extra: Int64s, raw: NDArray[np.uint8]) -> Int64s:
    seconds = head["i_mtime"].astype(np.int64)
    nanoseconds = np.zeros(len(seconds), dtype=np.int64)
    if raw.shape[1] > layout.OLD_INODE_BYTES:
        at = layout.MTIME_EXTRA_AT
        field = np.ascontiguousarray(raw[:, at : at + 4]).view("<u4")[:, 0].astype(np.int64)
        field = np.where(extra >= layout.MTIME_EXTRA_END, field, 0)
        seconds = seconds + ((field & 3) << 32)
        nanoseconds = np.minimum(field >> 2, 999_999_999)
    told = np.abs(seconds) <= _LAST_SECOND
    return np.where(told, np.where(told, seconds, 0) * 1_000_000_000 + nanoseconds, NO_TIME)


def _inline_data(number: int, size: int, extra: int, raw: NDArray[np.uint8]) -> bytes:
    """What an inode with inline data holds: i_block, and the rest in the attribute system.data behind its fields."""
    at = layout.BLOCK_FIELD_AT
    data = raw[at : at + layout.BLOCK_FIELD_BYTES].tobytes()
    if size > len(data):
        data += _system_data(number, raw[layout.OLD_INODE_BYTES + extra :].tobytes())
    if size > len(data):
        raise InconsistentVolume(f"inode {number}", f"has {len(data)} bytes of inline data, and a size of {size}")
    return data[:size]


def _system_data(number: int, area: bytes) -> bytes:
    if len(area) >= 4 and int.from_bytes(area[:4], "little") == layout.XATTR_MAGIC:
        entries = area[4:]
        at = 0
        while at + layout.XATTR_ENTRY_BYTES <= len(entries) and entries[at : at + 4] != bytes(4):
            length, index, offset, inode, size = unpack_from("<BBHII", entries, at)
            name = entries[at + layout.XATTR_ENTRY_BYTES : at + layout.XATTR_ENTRY_BYTES + length]
            if index == layout.XATTR_INDEX_SYSTEM and name == b"data" and not inode:
                if offset + size > len(entries):
                    break
                return entries[offset : offset + size]
            at += (layout.XATTR_ENTRY_BYTES + length + 3) & ~3
    return b""


def _joined(slabs: list[Inodes]) -> Inodes:
    if not slabs:
        raise InconsistentVolume("inode bitmaps", "no inode is in use")
    shift, runs, inline = 0, [], {}
    for slab in slabs:
        part = slab.runs
        runs.append(Mapped(part.owner + shift, part.logical, part.start, part.count, part.unwritten))
        inline.update({row + shift: data for row, data in slab.inline.items()})
        shift += len(slab.number)
    return Inodes(
        np.concatenate([slab.number for slab in slabs]),
        np.concatenate([slab.mode for slab in slabs]),
        np.concatenate([slab.size_bytes for slab in slabs]),
        np.concatenate([slab.links for slab in slabs]),
        np.concatenate([slab.flags for slab in slabs]),
        np.concatenate([slab.generation for slab in slabs]),
        np.concatenate([slab.file_acl for slab in slabs]),
        np.concatenate([slab.modified_ns for slab in slabs]),
        Mapped.joined(runs),
        inline,
    )
