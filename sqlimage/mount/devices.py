"""Block devices as files of a FUSE mount, so that programs which know files can work on what lies in an image."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from sqlimage.device import BlockDevice, WritableDevice
from sqlimage.errors import UsageError
from sqlimage.mount.fuse import FuseServer, Problem, answering, to_stderr

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10
"""linux/falloc.h"""
_MOST_STEP_BYTES = 1 << 30
"""A device is asked to zero no more than this at a time, so that others get their turn."""


class DeviceFiles:
    """FUSE operations over a fixed set of devices: one directory with one file each.

    A file is as long as its device and stays so. It has mode 0600 where the device can be written, else 0400. What is
    written goes to the device at once; fsync(2), and the close of a descriptor after something was written, flush it.
    Punching a hole and zeroing a range become :meth:`~sqlimage.device.WritableDevice.zero`. An error of a device is EIO
    to the program (ENOSPC where the device ran out of space) and one line to ``on_problem``.

    Raises :class:`~sqlimage.errors.UsageError` for a name that no file can have.
    """

    use_ns = True

    def __init__(self, devices: Mapping[str, BlockDevice], on_problem: Problem = to_stderr) -> None:
        for name in devices:
            if not name or name in (".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > 255:
                raise UsageError(f"{name!r} cannot be the name of a file")
        self.on_problem = on_problem
        self._devices = dict(devices)
        self._inode = {name: number for number, name in enumerate(self._devices, 2)}
        now = time.time_ns()
        self._modified_ns = dict.fromkeys(self._devices, now)
        self._made_ns = now
        self._unflushed: set[str] = set()
        self._lock = threading.Lock()
        self.has_lost = False
        """Whether something that was written could not be kept."""

    def _device(self, path: str) -> BlockDevice:
        device = self._devices.get(path[1:])
        if device is None:
            raise OSError(errno.ENOENT, path)
        return device

    def _writable(self, path: str) -> WritableDevice:
        device = self._device(path)
        if not isinstance(device, WritableDevice):
            raise OSError(errno.EROFS, path)
        return device

    @answering
    def getattr(self, path: str, _handle: object = None) -> dict[str, int]:
        owner = {"st_uid": os.geteuid(), "st_gid": os.getegid(), "st_blksize": 4096}
        if path == "/":
            times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), self._made_ns)
            return {"st_mode": stat.S_IFDIR | 0o700, "st_ino": 1, "st_nlink": 2, **owner, **times}
        device = self._device(path)
        mode = 0o600 if isinstance(device, WritableDevice) else 0o400
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), self._modified_ns[path[1:]])
        return {
            "st_mode": stat.S_IFREG | mode,
            "st_ino": self._inode[path[1:]],
            "st_nlink": 1,
            "st_size": device.size_bytes,
            "st_blocks": -(-device.size_bytes // 512),
            **owner,
            **times,
        }

    @answering
    def readdir(self, path: str, _handle: int) -> list[str]:
        if path != "/":
            raise OSError(errno.ENOTDIR, path)
        return [".", "..", *self._devices]

    @answering
    def create(self, path: str, _mode: int, _info: object) -> int:
        raise OSError(errno.EPERM, path)

    @answering
    def open(self, path: str, info: Any) -> int:
        if info.flags & os.O_ACCMODE != os.O_RDONLY:
            self._writable(path)
        else:
            self._device(path)
        if info.flags & os.O_TRUNC:
            raise OSError(errno.EPERM, path)
        info.keep_cache = 1  # nobody but this mount changes a device: what the kernel read stays true
        return 0

    @answering
    def read(self, path: str, length: int, offset: int, _info: object) -> bytes:
        device = self._device(path)
        length = max(0, min(length, device.size_bytes - offset))
        return device.read(offset, length) if length else b""

    @answering
    def write(self, path: str, data: bytes, offset: int, _info: object) -> int:
        device = self._writable(path)
        # a block device takes what fits and refuses what begins behind its end
        data = data[: max(0, device.size_bytes - offset)]
        if not data:
            raise OSError(errno.ENOSPC, path)
        with self._changing(path[1:]):
            device.write(offset, data)
        return len(data)

    @answering
    def truncate(self, path: str, length: int, _info: object = None) -> int:
        if length != self._writable(path).size_bytes:
            raise OSError(errno.EPERM, path)
        return 0

    @answering
    def fallocate(self, path: str, mode: int, offset: int, length: int, _info: object) -> int:
        device = self._writable(path)
        if mode not in (_PUNCH_HOLE | _KEEP_SIZE, _ZERO_RANGE, _ZERO_RANGE | _KEEP_SIZE, 0, _KEEP_SIZE):
            raise OSError(errno.EOPNOTSUPP, path)
        if not mode & _KEEP_SIZE and offset + length > device.size_bytes:
            raise OSError(errno.EPERM, path)
        if not mode & (_PUNCH_HOLE | _ZERO_RANGE):
            return 0
        end = min(offset + length, device.size_bytes)
        with self._changing(path[1:]):
            for at in range(offset, end, _MOST_STEP_BYTES):
                device.zero(at, min(_MOST_STEP_BYTES, end - at))
        return 0

    @answering
    def fsync(self, path: str, _data_only: int, _info: object) -> int:
        self._flush(path[1:])
        return 0

    @answering
    def flush(self, path: str, _info: object) -> int:
        if path[1:] in self._unflushed:
            self._flush(path[1:])
        return 0

    @answering
    def release(self, path: str, _info: object) -> int:
        if path[1:] in self._unflushed:
            self._flush(path[1:])
        return 0

    @answering
    def statfs(self, _path: str) -> dict[str, int]:
        blocks = sum(device.size_bytes for device in self._devices.values()) // 4096
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": blocks, "f_files": len(self._devices), "f_namemax": 255}

    @contextlib.contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.has_lost = True
            raise
        finally:
            with self._lock:
                self._unflushed.add(name)
                self._modified_ns[name] = time.time_ns()

    def _flush(self, name: str) -> None:
        device = self._device("/" + name)
        if not isinstance(device, WritableDevice):
            return
        with self._lock:
            self._unflushed.discard(name)
        try:
            device.flush()
        except BaseException:
            self.has_lost = True
            self._unflushed.add(name)
            raise


def serve_devices(devices: Mapping[str, BlockDevice], directory: str, *, on_problem: Problem = to_stderr) -> FuseServer:
    """Mount :class:`DeviceFiles` on an empty directory; unmount it to end."""
    read_only = not any(isinstance(device, WritableDevice) for device in devices.values())
    return FuseServer(DeviceFiles(devices, on_problem), directory, read_only=read_only)
