"""The journal (jbd2): which blocks a recovery would write, so that the volume is read as it will be after it.

Nothing is changed: what the journal holds is laid over the device when metadata is read.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import unpack_from
from typing import NamedTuple

import numpy as np

from sqlimage.device import BlockDevice, Buffer, DeviceExtent
from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s, first_overlap
from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.ext import layout
from sqlimage.filesystem.ext.mapping import Mapped
from sqlimage.filesystem.ext.superblock import CRC_START, Geometry

_HEADER_BYTES = 12
_TAIL_BYTES = 4
_REVOKE_HEADER_BYTES = 16
_COMMIT_CHECKSUM_AT, _COMMIT_SECONDS_AT = 0x10, 0x30
_WRAPS = 1 << 32
_REVERSED = bytes(int(f"{n:08b}"[::-1], 2) for n in range(256))


@dataclass(frozen=True, slots=True)
class Recovery:
    """What recovering would do: block of the volume to its bytes' place, in bytes of the volume."""

    places: dict[int, int]
    escaped: frozenset[int]
    """Blocks whose first four bytes are not in the journal: they are the journal's own magic."""
    is_pending: bool
    """Whether the journal says that there is something to recover."""
    has_fast_commits: bool
    """Whether changes are pending that are not told as blocks."""


class Recovered:
    """A volume as its journal would leave it, read-only."""

    def __init__(self, device: BlockDevice, geometry: Geometry, recovery: Recovery) -> None:
        self._device = device
        self._block = geometry.bytes_per_block
        self._recovery = recovery
        self._blocks = sorted(recovery.places)

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    @property
    def bytes_per_sector(self) -> int:
        return self._device.bytes_per_sector

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        self._device.read_into(offset_bytes, buffer)
        view, size = memoryview(buffer), self._block
        end = offset_bytes + len(view)
        for n in range(bisect_left(self._blocks, offset_bytes // size), len(self._blocks)):
            block = self._blocks[n]
            low, high = max(block * size, offset_bytes), min((block + 1) * size, end)
            if low >= high:
                break
            data = self._device.read(self._recovery.places[block], size)
            if block in self._recovery.escaped:
                data = layout.JOURNAL_MAGIC.to_bytes(4, "big") + data[4:]
            view[low - offset_bytes : high - offset_bytes] = data[low - block * size : high - block * size]

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        data = bytearray(length_bytes)
        self.read_into(offset_bytes, data)
        return bytes(data)

    def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
        yield DeviceExtent(offset_bytes, length_bytes, True)

    def close(self) -> None:
        """The device below is its owner's."""


def read_journal(device: BlockDevice, geometry: Geometry, runs: Mapped, size_bytes: int) -> Recovery:
    """The recovery that a journal with these runs asks for.

    As a driver does, it stops before the first transaction that is not finished. Raises
    :class:`~sqlimage.errors.InconsistentVolume` where the journal is damaged, so that a driver would not recover it.
    """
    return _Log(device, geometry, runs, size_bytes).recovery()


class _Tag(NamedTuple):
    """A block that follows a descriptor."""

    block: int
    flags: int
    checksum: int


class _Copy(NamedTuple):
    """The newest copy of a block."""

    turn: int
    """Of its transaction, from 0."""
    place: int
    """A block of the journal."""
    tag: _Tag
    sequence: int


@dataclass(slots=True)
class _Transaction:
    """What has been read of the one that is not finished yet."""

    copies: list[tuple[_Tag, int]] = field(default_factory=list)
    revoked: list[Int64s] = field(default_factory=list)
    crc: int = 0
    is_suspect: bool = False
    """Whether a block of it does not match its checksum: it may be one of an earlier use of the journal."""


class _Log:
    def __init__(self, device: BlockDevice, geometry: Geometry, runs: Mapped, size_bytes: int) -> None:
        self._device = device
        self._block = geometry.bytes_per_block
        self._volume_blocks = geometry.blocks_count
        self._runs = runs
        self._revokes_left = layout.JOURNAL_REVOKES_MAX
        if first_overlap(runs.start, runs.count) is not None:
            raise _damaged("its blocks lie in the same place")
        raw = self._read(0)
        magic, kind, _ = unpack_from(">III", raw, 0)
        size, self._length, first, self._sequence, self._start = unpack_from(">IIIII", raw, 0x0C)
        if magic != layout.JOURNAL_MAGIC or kind not in (layout.JOURNAL_SUPERBLOCK_1, layout.JOURNAL_SUPERBLOCK_2):
            raise _damaged("its superblock is not one")
        compat, incompat = unpack_from(">II", raw, 0x24) if kind == layout.JOURNAL_SUPERBLOCK_2 else (0, 0)
        if incompat & ~layout.JOURNAL_INCOMPAT_KNOWN:
            raise _damaged(f"its superblock has features that are not known ({incompat:#x})")
        self._is_64 = bool(incompat & layout.JOURNAL_INCOMPAT_64BIT)
        self._is_v3 = bool(incompat & layout.JOURNAL_INCOMPAT_CSUM_V3)
        self._has_checksums = self._is_v3 or bool(incompat & layout.JOURNAL_INCOMPAT_CSUM_V2)
        self._has_commit_crc = bool(compat & layout.JOURNAL_COMPAT_CHECKSUM)
        self._seed = crc32c(CRC_START, raw[0x30:0x40])
        longest = min(size_bytes // self._block, layout.JOURNAL_BLOCKS_MAX)
        if size != self._block or not 1 <= first < self._length <= longest:
            raise _damaged(f"its superblock tells of {self._length} blocks of {size} bytes from {first}")
        self._first: int = first
        self._end: int = self._length
        self._fast: int = 0
        if incompat & layout.JOURNAL_INCOMPAT_FAST_COMMIT:
            fast = unpack_from(">I", raw, 0x54)[0] or layout.JOURNAL_FAST_COMMIT_BLOCKS
            if not 1 < fast < self._length - first:
                raise _damaged(f"its superblock tells of {fast} blocks of fast commits")
            self._end = self._length - fast
            self._fast = self._end + 1
        if self._has_checksums:
            plain = raw[:0xFC] + bytes(4) + raw[0x100:0x400]
            if crc32c(CRC_START, plain) != int.from_bytes(raw[0xFC:0x100], "big"):
                raise _damaged("its superblock does not match its checksum")
        if self._start and not first <= self._start < self._end:
            raise _damaged(f"its superblock tells of a log that begins at block {self._start} of {self._end}")

    def recovery(self) -> Recovery:
        if not self._start:
            return Recovery({}, frozenset(), is_pending=False, has_fast_commits=False)
        found: dict[int, _Copy] = {}
        revoked: list[tuple[int, Int64s]] = []
        sequence = self._sequence
        for turn, transaction in enumerate(self._transactions()):
            for tag, place in transaction.copies:
                found[tag.block] = _Copy(turn, place, tag, sequence)
            revoked += [(turn, blocks) for blocks in transaction.revoked]
            sequence = (sequence + 1) % _WRAPS
        if found and max(found) >= self._volume_blocks:
            raise _damaged(f"it holds block {max(found)} of {self._volume_blocks}")
        for block in _withdrawn(found, revoked):
            del found[block]
        for copy in found.values():
            self._check_copy(copy)
        escaped = frozenset(b for b, copy in found.items() if copy.tag.flags & layout.JOURNAL_FLAG_ESCAPE)
        places = {block: self._place(copy.place) for block, copy in found.items()}
        return Recovery(places, escaped, is_pending=True, has_fast_commits=self._has_fast_commits(sequence))

    def _transactions(self) -> Iterator[_Transaction]:
        """Those that are finished, in order."""
        at, budget, sequence = self._start, self._end - self._first, self._sequence
        present, last_time = _Transaction(), 0
        while budget > 0:
            raw = self._read(at)
            magic, kind, own = unpack_from(">III", raw, 0)
            if magic != layout.JOURNAL_MAGIC or own != sequence:
                return
            used = 1
            if kind == layout.JOURNAL_DESCRIPTOR:
                tags = self._tags(raw)
                used += len(tags)
                if used > budget:
                    return
                places = [self._after(at, n) for n in range(1, used)]
                present.is_suspect |= not self._is_intact(raw, self._block - _TAIL_BYTES)
                present.copies += zip(tags, places, strict=True)
                if self._has_commit_crc:
                    for data in (raw, *map(self._read, places)):
                        present.crc = zlib.crc32(data.translate(_REVERSED), present.crc)
            elif kind == layout.JOURNAL_REVOKE:
                present.is_suspect |= not self._is_intact(raw, self._block - _TAIL_BYTES)
                present.revoked.append(self._revoked(raw))
            elif kind == layout.JOURNAL_COMMIT:
                time = int.from_bytes(raw[_COMMIT_SECONDS_AT : _COMMIT_SECONDS_AT + 8], "big")
                if present.is_suspect and time >= last_time:
                    raise _damaged(f"transaction {sequence} does not match its checksum")
                if present.is_suspect or not self._is_committed(raw, present):
                    return
                yield present
                present, last_time, sequence = _Transaction(), time, (sequence + 1) % _WRAPS
            else:
                return
            at, budget = self._after(at, used), budget - used

    def _is_committed(self, raw: bytes, transaction: _Transaction) -> bool:
        """Whether a commit block matches its checksum, or that of its transaction in journals of the first kind."""
        if self._has_checksums:
            return self._is_intact(raw, _COMMIT_CHECKSUM_AT)
        if not self._has_commit_crc:
            return True
        kind, size, value = unpack_from(">BBxxI", raw, _HEADER_BYTES)
        right = int(f"{transaction.crc ^ 0xFFFFFFFF:032b}"[::-1], 2)
        return (kind, size, value) in ((0, 0, 0), (1, 4, right))

    def _tags(self, raw: bytes) -> list[_Tag]:
        """Those of the blocks that follow a descriptor."""
        tags = []
        at, end = _HEADER_BYTES, self._block - (_TAIL_BYTES if self._has_checksums else 0)
        size = 16 if self._is_v3 else 8 + 2 * self._has_checksums + 4 * self._is_64
        while at + size <= end:
            if self._is_v3:
                block, flags, upper, checksum = unpack_from(">IIII", raw, at)
            else:
                block, checksum, flags = unpack_from(">IHH", raw, at)
                upper = unpack_from(">I", raw, at + 8)[0] if self._is_64 else 0
            block |= upper << 32 if self._is_64 else 0
            tags.append(_Tag(block, flags, checksum))
            at += size
            if not flags & layout.JOURNAL_FLAG_SAME_UUID:
                at += 16
            if flags & layout.JOURNAL_FLAG_LAST_TAG:
                break
        return tags

    def _revoked(self, raw: bytes) -> Int64s:
        """Blocks of the volume that a revoke block names."""
        (used,) = unpack_from(">I", raw, _HEADER_BYTES)
        dtype = np.dtype(">u8" if self._is_64 else ">u4")
        used = min(used, self._block - (_TAIL_BYTES if self._has_checksums else 0))
        count = max(0, used - _REVOKE_HEADER_BYTES) // dtype.itemsize
        self._revokes_left -= count
        if self._revokes_left < 0:
            raise _damaged("it revokes more blocks than are followed")
        blocks = np.frombuffer(raw, dtype=dtype, count=count, offset=_REVOKE_HEADER_BYTES)
        return np.unique(blocks[blocks < self._volume_blocks].astype(np.int64))

    def _check_copy(self, copy: _Copy) -> None:
        if not self._has_checksums:
            return
        own = crc32c(crc32c(self._seed, copy.sequence.to_bytes(4, "big")), self._read(copy.place))
        if copy.tag.checksum != (own if self._is_v3 else own & 0xFFFF):
            raise _damaged(f"its copy of block {copy.tag.block} does not match its checksum")

    def _is_intact(self, raw: bytes, at: int) -> bool:
        """Whether a block matches the checksum it has at a place."""
        if not self._has_checksums:
            return True
        plain = raw[:at] + bytes(4) + raw[at + 4 :]
        return crc32c(self._seed, plain) == int.from_bytes(raw[at : at + 4], "big")

    def _has_fast_commits(self, sequence: int) -> bool:
        if not self._fast:
            return False
        tag, _, _, transaction = unpack_from("<HHII", self._read(self._fast), 0)
        return bool(tag == layout.FAST_COMMIT_HEAD and transaction == sequence)

    def _after(self, at: int, count: int) -> int:
        """The block of the journal ``count`` after another; behind the last comes the first."""
        return self._first + (at - self._first + count) % (self._end - self._first)

    def _place(self, block: int) -> int:
        """Where a block of the journal lies, in bytes of the volume."""
        runs = self._runs
        n = int(np.searchsorted(runs.logical, block, side="right")) - 1
        if n < 0 or block >= runs.logical[n] + runs.count[n]:
            raise _damaged(f"its block {block} is nowhere")
        place = int(runs.start[n]) + block - int(runs.logical[n])
        return place * self._block

    def _read(self, block: int) -> bytes:
        return self._device.read(self._place(block), self._block)


def _withdrawn(found: dict[int, _Copy], revoked: list[tuple[int, Int64s]]) -> list[int]:
    """Blocks whose newest copy is no newer than their last revocation, given as turns and blocks."""
    if not found or not revoked:
        return []
    block = np.array(sorted(found), dtype=np.int64)
    turn = np.array([found[b].turn for b in block.tolist()], dtype=np.int64)
    last = np.full(len(block), -1, dtype=np.int64)
    blocks = np.concatenate([some for _, some in revoked])
    turns = np.repeat([when for when, _ in revoked], [len(some) for _, some in revoked])
    at = np.minimum(np.searchsorted(block, blocks), len(block) - 1)
    hit = block[at] == blocks
    np.maximum.at(last, at[hit], turns[hit])
    return block[last >= turn].tolist()  # type: ignore[no-any-return]


def _damaged(problem: str) -> InconsistentVolume:
    return InconsistentVolume("journal", problem)
