"""The journal (jbd2): which blocks a recovery would write, so that the volume is read as it will be after it.

Nothing is changed: what the journal holds is laid over the device when metadata is read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from struct import unpack_from

import numpy as np

from sqlimage.device import BlockDevice, Buffer, DeviceExtent
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.ext import layout
from sqlimage.filesystem.ext.mapping import Mapped
from sqlimage.filesystem.ext.superblock import CRC_START, Geometry

_HEADER_BYTES = 12
_TAIL_BYTES = 4
_REVOKE_HEADER_BYTES = 16
_WRAPS = 1 << 32


@dataclass(frozen=True, slots=True)
class Recovery:
    """What recovering would do: block of the volume to its bytes' place, in bytes of the volume."""

    places: dict[int, int]
    escaped: frozenset[int]
    """Blocks whose first four bytes are not in the journal: they are the journal's own magic."""
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

    As a driver does, it stops before the first transaction that is not finished or not intact. Raises
    :class:`~sqlimage.errors.InconsistentVolume` where its superblock cannot be, or what it holds lies nowhere.
    """
    return _Log(device, geometry, runs, size_bytes).recovery()


class _Log:
    def __init__(self, device: BlockDevice, geometry: Geometry, runs: Mapped, size_bytes: int) -> None:
        self._device = device
        self._block = geometry.bytes_per_block
        self._volume_blocks = geometry.blocks_count
        self._runs = runs
        raw = self._read(0)
        magic, kind, _ = unpack_from(">III", raw, 0)
        size, self._length, first, self._sequence, self._start = unpack_from(">IIIII", raw, 0x0C)
        if magic != layout.JOURNAL_MAGIC or kind not in (layout.JOURNAL_SUPERBLOCK_1, layout.JOURNAL_SUPERBLOCK_2):
            raise _damaged("its superblock is not one")
        incompat = unpack_from(">I", raw, 0x28)[0] if kind == layout.JOURNAL_SUPERBLOCK_2 else 0
        if incompat & ~layout.JOURNAL_INCOMPAT_KNOWN:
            raise _damaged(f"its superblock has features that are not known ({incompat:#x})")
        self._is_64 = bool(incompat & layout.JOURNAL_INCOMPAT_64BIT)
        self._is_v3 = bool(incompat & layout.JOURNAL_INCOMPAT_CSUM_V3)
        self._has_checksums = self._is_v3 or bool(incompat & layout.JOURNAL_INCOMPAT_CSUM_V2)
        self._seed = crc32c(CRC_START, raw[0x30:0x40])
        if size != self._block or not 1 <= first < self._length <= size_bytes // self._block:
            raise _damaged(f"its superblock tells of {self._length} blocks of {size} bytes from {first}")
        self._first: int = first
        self._end: int = self._length
        self._fast: int = 0
        if incompat & layout.JOURNAL_INCOMPAT_FAST_COMMIT:
            fast = unpack_from(">I", raw, 0x54)[0] or layout.JOURNAL_FAST_COMMIT_BLOCKS
            if fast >= self._length - first:
                raise _damaged(f"its superblock tells of {fast} blocks of fast commits")
            self._end = self._fast = self._length - fast
        if self._has_checksums:
            plain = raw[:0xFC] + bytes(4) + raw[0x100:0x400]
            if crc32c(CRC_START, plain) != int.from_bytes(raw[0xFC:0x100], "big"):
                raise _damaged("its superblock does not match its checksum")
        if self._start and not first <= self._start < self._end:
            raise _damaged(f"its superblock tells of a log that begins at block {self._start} of {self._end}")

    def recovery(self) -> Recovery:
        found: dict[int, tuple[int, int, bool]] = {}  # block: transaction, place in the journal, whether escaped
        revoked: dict[int, int] = {}
        written: list[tuple[int, int, bool]] = []
        withdrawn: list[int] = []
        at, turn, budget = self._start, 0, self._end - self._first
        sequence = self._sequence
        while self._start and budget > 0:
            raw = self._read(at)
            magic, kind, own = unpack_from(">III", raw, 0)
            if magic != layout.JOURNAL_MAGIC or own != sequence:
                break
            used = 1
            if kind == layout.JOURNAL_DESCRIPTOR:
                if not self._is_intact(raw, self._block - _TAIL_BYTES):
                    break
                tags = list(self._tags(raw))
                used += len(tags)
                if used > budget:
                    break
                written += [(block, self._after(at, n), escaped) for n, (block, escaped, _) in enumerate(tags, start=1)]
            elif kind == layout.JOURNAL_REVOKE:
                if not self._is_intact(raw, self._block - _TAIL_BYTES):
                    break
                withdrawn += self._revoked(raw)
            elif kind == layout.JOURNAL_COMMIT:
                if self._has_checksums and not self._is_intact(raw, 0x10):
                    break
                found.update({block: (turn, place, escaped) for block, place, escaped in written})
                revoked.update(dict.fromkeys(withdrawn, turn))
                written, withdrawn = [], []
                sequence, turn = (sequence + 1) % _WRAPS, turn + 1
            else:
                break
            at, budget = self._after(at, used), budget - used
        kept = {
            block: (place, escaped) for block, (turn, place, escaped) in found.items() if revoked.get(block, -1) < turn
        }
        if outside := [block for block in kept if block >= self._volume_blocks]:
            raise _damaged(f"it holds block {outside[0]} of {self._volume_blocks}")
        return Recovery(
            {block: self._place(place) for block, (place, _) in kept.items()},
            frozenset(block for block, (_, escaped) in kept.items() if escaped),
            self._has_fast_commits(sequence),
        )

    def _tags(self, raw: bytes) -> Iterator[tuple[int, bool, int]]:
        """Block, whether it is escaped, and flags of each block that follows a descriptor."""
        at, end = _HEADER_BYTES, self._block - (_TAIL_BYTES if self._has_checksums else 0)
        size = 16 if self._is_v3 else 8 + 2 * self._has_checksums + 4 * self._is_64
        while at + size <= end:
            if self._is_v3:
                block, flags, upper = unpack_from(">III", raw, at)
            else:
                block, flags = unpack_from(">IxxH", raw, at)
                upper = unpack_from(">I", raw, at + 8)[0] if self._is_64 else 0
            block |= upper << 32 if self._is_64 else 0
            yield block, bool(flags & layout.JOURNAL_FLAG_ESCAPE), flags
            at += size
            if not flags & layout.JOURNAL_FLAG_SAME_UUID:
                at += 16
            if flags & layout.JOURNAL_FLAG_LAST_TAG:
                return

    def _revoked(self, raw: bytes) -> list[int]:
        (used,) = unpack_from(">I", raw, _HEADER_BYTES)
        used = min(used, self._block)
        dtype = ">u8" if self._is_64 else ">u4"
        count = max(0, used - _REVOKE_HEADER_BYTES) // np.dtype(dtype).itemsize
        return np.frombuffer(raw, dtype=dtype, count=count, offset=_REVOKE_HEADER_BYTES).tolist()  # type: ignore[no-any-return]

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


def _damaged(problem: str) -> InconsistentVolume:
    return InconsistentVolume("journal", problem)
