"""A part of a device as a device: a partition, or a volume inside an image."""

from __future__ import annotations

from collections.abc import Iterator

from sqlimage.device import BlockDevice, Buffer, DeviceExtent, Prefetching, Readiness, WritableDevice, check_range


class Window:
    """The bytes ``offset_bytes .. offset_bytes + length_bytes`` of a device. Closing it leaves the device open.

    Raises :class:`~sqlimage.errors.DeviceError` where the window does not lie within the device.
    """

    def __init__(self, device: BlockDevice, offset_bytes: int, length_bytes: int) -> None:
        check_range(offset_bytes, length_bytes, device.size_bytes, "window")
        self._device = device
        self._offset_bytes = offset_bytes
        self._length_bytes = length_bytes

    @property
    def size_bytes(self) -> int:
        return self._length_bytes

    @property
    def bytes_per_sector(self) -> int:
        return self._device.bytes_per_sector

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        check_range(offset_bytes, len(buffer), self._length_bytes, "window")
        self._device.read_into(self._offset_bytes + offset_bytes, buffer)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        check_range(offset_bytes, length_bytes, self._length_bytes, "window")
        return self._device.read(self._offset_bytes + offset_bytes, length_bytes)

    def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
        check_range(offset_bytes, length_bytes, self._length_bytes, "window")
        for extent in self._device.extents(self._offset_bytes + offset_bytes, length_bytes):
            yield DeviceExtent(extent.offset_bytes - self._offset_bytes, extent.length_bytes, is_data=extent.is_data)

    def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        if isinstance(self._device, Prefetching):
            self._device.prefetch(self._offset_bytes + offset_bytes, length_bytes)

    def is_ready(self, offset_bytes: int, length_bytes: int) -> bool:
        """Whether a read costs no decoding; a device that cannot tell has nothing to decode."""
        device = self._device
        return not isinstance(device, Readiness) or device.is_ready(self._offset_bytes + offset_bytes, length_bytes)

    def close(self) -> None:
        """The device behind belongs to whoever opened it."""


class WritableWindow(Window):
    """A window that writes through to its device."""

    def __init__(self, device: WritableDevice, offset_bytes: int, length_bytes: int) -> None:
        super().__init__(device, offset_bytes, length_bytes)
        self._target = device

    def write(self, offset_bytes: int, data: bytes | Buffer) -> None:
        check_range(offset_bytes, len(data), self._length_bytes, "window")
        self._target.write(self._offset_bytes + offset_bytes, data)

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        check_range(offset_bytes, length_bytes, self._length_bytes, "window")
        self._target.zero(self._offset_bytes + offset_bytes, length_bytes)

    def flush(self) -> None:
        self._target.flush()
