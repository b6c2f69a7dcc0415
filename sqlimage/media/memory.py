"""A device in memory: the reference implementation of the contract, and the model in tests."""

from __future__ import annotations

from collections.abc import Iterator

from sqlimage.device import Buffer, DeviceExtent, check_range
from sqlimage.units import SECTOR_BYTES


class MemoryDevice:
    """A writable device over a ``bytearray``, which the caller may look at and change."""

    def __init__(self, content: bytes | bytearray, bytes_per_sector: int = SECTOR_BYTES) -> None:
        self.content = content if isinstance(content, bytearray) else bytearray(content)
        self._bytes_per_sector = bytes_per_sector

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    @property
    def bytes_per_sector(self) -> int:
        return self._bytes_per_sector

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        check_range(offset_bytes, len(buffer), self.size_bytes, "memory device")
        buffer[:] = self.content[offset_bytes : offset_bytes + len(buffer)]

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        check_range(offset_bytes, length_bytes, self.size_bytes, "memory device")
        return bytes(self.content[offset_bytes : offset_bytes + length_bytes])

    def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
        check_range(offset_bytes, length_bytes, self.size_bytes, "memory device")
        if length_bytes:
            yield DeviceExtent(offset_bytes, length_bytes, is_data=True)

    def write(self, offset_bytes: int, data: bytes | Buffer) -> None:
        check_range(offset_bytes, len(data), self.size_bytes, "memory device")
        self.content[offset_bytes : offset_bytes + len(data)] = data

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        check_range(offset_bytes, length_bytes, self.size_bytes, "memory device")
        self.content[offset_bytes : offset_bytes + length_bytes] = bytes(length_bytes)

    def flush(self) -> None:
        """Memory has nothing behind it."""

    def close(self) -> None:
        """Nothing is held."""
