"""Raw image files (sparse ones by their holes) and block devices."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator

from sqlimage.device import Buffer, DeviceExtent, check_range
from sqlimage.errors import DeviceError, NotFoundError, RefusedError
from sqlimage.units import MIB, SECTOR_BYTES

_BLKSSZGET = 0x1268
"""linux/fs.h: logical sector size of a block device."""
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
_ZEROS = bytes(MIB)


class FileDevice:
    """A raw file or a block device, opened for reading; positional I/O only, safe from any thread. ``name`` is what
    messages call it, its path by default.

    Raises :class:`~sqlimage.errors.NotFoundError` where there is no such file and
    :class:`~sqlimage.errors.DeviceError` where it cannot be opened or is neither a file nor a block device.
    """

    _flags = os.O_RDONLY

    def __init__(self, path: str | os.PathLike[str], *, name: str | None = None) -> None:
        self.path = name or os.fspath(path)
        try:
            self._fd = os.open(path, self._flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise NotFoundError(f"{self.path}: no such file or device") from None
        except OSError as problem:
            if problem.errno == errno.EBUSY:
                raise RefusedError(f"{self.path}: the device is mounted or in use", hint="unmount it first") from None
            raise DeviceError(f"{self.path}: cannot be opened ({problem.strerror})") from None
        try:
            mode = os.fstat(self._fd).st_mode
            self.is_block_device = stat.S_ISBLK(mode)
            if not (stat.S_ISREG(mode) or self.is_block_device):
                raise DeviceError(f"{self.path}: neither a file nor a block device")
            self._size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
            self._bytes_per_sector = SECTOR_BYTES
            if self.is_block_device:
                answer = fcntl.ioctl(self._fd, _BLKSSZGET, bytes(4))
                self._bytes_per_sector = struct.unpack("i", answer)[0]
        except BaseException:
            os.close(self._fd)
            raise

    def fileno(self) -> int:
        """The descriptor, which stays this device's."""
        return self._fd

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def bytes_per_sector(self) -> int:
        return self._bytes_per_sector

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        check_range(offset_bytes, len(buffer), self._size_bytes, self.path)
        view = memoryview(buffer)
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done:]], offset_bytes + done)
            except OSError as problem:
                raise DeviceError(
                    f"{self.path}: reading at byte {offset_bytes + done} failed ({problem.strerror})"
                ) from None
            if count == 0:
                raise DeviceError(f"{self.path}: ends at byte {offset_bytes + done}, it was cut while being read")
            done += count

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        check_range(offset_bytes, length_bytes, self._size_bytes, self.path)
        buffer = bytearray(length_bytes)
        self.read_into(offset_bytes, buffer)
        return bytes(buffer)

    def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
        """Data and holes as the file system beneath tells them (``SEEK_DATA``/``SEEK_HOLE``)."""
        check_range(offset_bytes, length_bytes, self._size_bytes, self.path)
        at, end = offset_bytes, offset_bytes + length_bytes
        while at < end:
            data = self._seek(at, os.SEEK_DATA, end)
            if data > at:
                yield DeviceExtent(at, data - at, is_data=False)
            if data < end:
                hole = self._seek(data, os.SEEK_HOLE, end)
                if hole > data:  # not so where someone punches a hole between the two calls
                    yield DeviceExtent(data, hole - data, is_data=True)
                at = hole
            else:
                at = end

    def _seek(self, at: int, whence: int, end: int) -> int:
        try:
            return min(os.lseek(self._fd, at, whence), end)
        except OSError as problem:
            if problem.errno == errno.ENXIO:
                # no data up to the end of the file, which must still be where it was: what is gone is no hole
                if os.fstat(self._fd).st_size < end:
                    raise DeviceError(f"{self.path}: ends before byte {end}, it was cut while being read") from None
                return end
            return at if whence == os.SEEK_DATA else end  # no holes known here: all of it is data

    def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        """Let the kernel read a range ahead."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._fd, offset_bytes, length_bytes, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class WritableFileDevice(FileDevice):
    """A raw file or block device opened for reading and writing. A block device is opened exclusively, which the
    kernel refuses while it is mounted or in use: :class:`~sqlimage.errors.RefusedError`."""

    _flags = os.O_RDWR

    def __init__(self, path: str | os.PathLike[str], *, name: str | None = None) -> None:
        try:
            if stat.S_ISBLK(os.stat(path).st_mode):
                self._flags = os.O_RDWR | os.O_EXCL
        except OSError:
            pass  # the open below says what is wrong
        super().__init__(path, name=name)

    def write(self, offset_bytes: int, data: bytes | Buffer) -> None:
        check_range(offset_bytes, len(data), self._size_bytes, self.path)
        view = memoryview(data)
        done = 0
        while done < len(view):
            try:
                done += os.pwrite(self._fd, view[done:], offset_bytes + done)
            except OSError as problem:
                raise DeviceError(
                    f"{self.path}: writing at byte {offset_bytes + done} failed ({problem.strerror})"
                ) from None

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        """Punch a hole; write zeros where that is not possible."""
        check_range(offset_bytes, length_bytes, self._size_bytes, self.path)
        if length_bytes:
            try:
                _punch_hole(self._fd, offset_bytes, length_bytes)
                return
            except OSError:
                pass  # this file system or block device keeps no holes, or only of whole sectors
        for at in range(offset_bytes, offset_bytes + length_bytes, len(_ZEROS)):
            self.write(at, memoryview(_ZEROS)[: min(len(_ZEROS), offset_bytes + length_bytes - at)].toreadonly())

    def resize(self, size_bytes: int) -> None:
        """Make a regular file this long; what is added is a hole."""
        try:
            os.ftruncate(self._fd, size_bytes)
        except OSError as problem:
            raise DeviceError(f"{self.path}: cannot be made {size_bytes} bytes long ({problem.strerror})") from None
        self._size_bytes = size_bytes

    def flush(self) -> None:
        if self._fd < 0:
            raise DeviceError(f"{self.path}: sync failed (it is closed)")
        try:
            os.fsync(self._fd)
        except OSError as problem:
            raise DeviceError(f"{self.path}: sync failed ({problem.strerror})") from None


def _punch_hole(fd: int, offset_bytes: int, length_bytes: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if libc.fallocate(fd, mode, ctypes.c_int64(offset_bytes), ctypes.c_int64(length_bytes)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")
