"""What every disk-like thing is to the rest of the library: a device of bytes, read and written by position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sqlimage.errors import DeviceError

Buffer = bytearray | memoryview
"""A writable, contiguous, byte-wide buffer."""


@dataclass(frozen=True, slots=True)
class DeviceExtent:
    """A stretch of a device. ``is_data`` False means: known to read as zeros, without reading it."""

    offset_bytes: int
    length_bytes: int
    is_data: bool


@runtime_checkable
class BlockDevice(Protocol):
    """The read side. Implementations MUST be safe to call from several threads at once.

    ``read_into`` MUST fill the whole buffer or raise :class:`DeviceError`; it never reads short. A request that
    leaves ``0 .. size_bytes`` raises and touches nothing. ``extents`` MUST cover exactly the range asked for, in
    order, without gaps or overlap; it may call zeros data, never data zeros.
    """

    @property
    def size_bytes(self) -> int: ...

    @property
    def bytes_per_sector(self) -> int:
        """Logical sector size, a power of two from 512 to 65,536."""
        ...

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None: ...

    def read(self, offset_bytes: int, length_bytes: int) -> bytes: ...

    def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]: ...

    def close(self) -> None:
        """Release what is held. Closing twice is allowed."""
        ...


@runtime_checkable
class WritableDevice(BlockDevice, Protocol):
    """The write side. After ``flush`` returns, everything written before it survives a power cut."""

    def write(self, offset_bytes: int, data: bytes | Buffer) -> None: ...

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        """Make a range read as zeros, giving its space back where the device can."""
        ...

    def flush(self) -> None: ...


@runtime_checkable
class Prefetching(Protocol):
    """A device that can be told what will be read, so that it comes in the order of the medium and not one by one."""

    def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        """Begin to read a range into a cache. Never fails; may do nothing."""
        ...


def check_range(offset_bytes: int, length_bytes: int, size_bytes: int, what: str) -> None:
    """Raise :class:`DeviceError` unless the range lies within ``0 .. size_bytes``."""
    if offset_bytes < 0 or length_bytes < 0 or offset_bytes + length_bytes > size_bytes:
        raise DeviceError(
            f"{what}: bytes {offset_bytes} to {offset_bytes + length_bytes} were asked for, the device has {size_bytes}"
        )


@runtime_checkable
class Readiness(Protocol):
    """A device whose reads differ in cost, and that can tell which are cheap."""

    def is_ready(self, offset_bytes: int, length_bytes: int) -> bool:
        """Whether a read of this range will find everything decoded. A hint: it MUST answer at once and never raise
        for a range within the device, but what was ready may be gone by the time of the read."""
        ...
