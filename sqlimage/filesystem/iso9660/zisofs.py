"""Files compressed block by block: version 1 of zisofs."""

from __future__ import annotations

import zlib

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.content import ContentRuns
from sqlimage.filesystem.iso9660 import layout
from sqlimage.filesystem.iso9660.rockridge import Zisofs

_HEADER, _POINTER = layout.ZISOFS_HEADER.size, layout.ZISOFS_POINTER_BYTES


class ZisofsContent:
    """The bytes of a compressed file. ``stored_bytes`` is how much of the runs is the file's.

    Opening reads the header, and raises :class:`InconsistentVolume` where it is none, differs from the ZF entry, or
    tells of more blocks than the file has pointers for. A block is never inflated beyond the size it must have.
    """

    def __init__(self, device: BlockDevice, runs: ContentRuns, stored_bytes: int, told: Zisofs, record: int) -> None:
        self._device = device
        self._runs = runs
        self._stored_bytes = stored_bytes
        self._size_bytes = told.size_bytes
        self._record = record
        self._last: tuple[int, bytes] = (-1, b"")
        if stored_bytes < _HEADER:
            raise self._problem(f"has {stored_bytes} bytes, too few for a header")
        magic, size, quarters, logarithm, _ = layout.ZISOFS_HEADER.unpack(self._stored(0, _HEADER))
        if magic != layout.ZISOFS_MAGIC:
            raise self._problem("has no header of a compressed file")
        if (size, quarters * 4, logarithm) != (told.size_bytes, told.header_bytes, told.block_logarithm):
            raise self._problem("has a header that differs from its ZF entry")
        if logarithm not in layout.ZISOFS_BLOCK_LOGARITHMS or told.header_bytes < _HEADER:
            raise self._problem(f"has blocks of 2 ** {logarithm} bytes behind a header of {told.header_bytes}")
        self._block_bytes = 1 << logarithm
        self._pointers = told.header_bytes
        blocks = -(-size // self._block_bytes)
        self._data = self._pointers + (blocks + 1) * _POINTER
        if self._data > stored_bytes:
            raise self._problem(f"should have {blocks} blocks, whose pointers do not fit its {stored_bytes} bytes")

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        at, end = max(offset_bytes, 0), min(offset_bytes + length_bytes, self._size_bytes)
        parts = []
        while at < end:
            number, within = divmod(at, self._block_bytes)
            part = self._block(number)[within : within + end - at]
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        held, block = self._last
        if held != number:
            block = self._inflate(number)
            self._last = (number, block)
        return block

    def _inflate(self, number: int) -> bytes:
        pair = self._stored(self._pointers + number * _POINTER, 2 * _POINTER)
        begin, end = int.from_bytes(pair[:4], "little"), int.from_bytes(pair[4:], "little")
        size = min(self._block_bytes, self._size_bytes - number * self._block_bytes)
        if begin == end:
            return bytes(size)
        if not self._data <= begin < end <= self._stored_bytes or end - begin > 2 * self._block_bytes:
            raise self._problem(f"has block {number} at bytes {begin} to {end} of {self._stored_bytes}")
        try:
            block = zlib.decompressobj().decompress(self._stored(begin, end - begin), size)
        except zlib.error as problem:
            raise self._problem(f"has a block {number} that cannot be inflated ({problem})") from None
        if len(block) != size:
            raise self._problem(f"has {len(block)} bytes in block {number} instead of {size}")
        return block

    def _stored(self, at: int, length: int) -> bytes:
        data = bytearray(length)
        self._runs.read_into(self._device, at, memoryview(data))
        return bytes(data)

    def _problem(self, problem: str) -> InconsistentVolume:
        return InconsistentVolume("zisofs", f"the file {problem}", offset_bytes=self._record)
