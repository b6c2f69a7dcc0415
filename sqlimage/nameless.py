"""A new file that has no name until it is whole, so that an interruption at any moment leaves nothing behind.

On Linux the file is made with ``O_TMPFILE`` and gets its name by one ``linkat``. Where the directory's file system
knows no nameless files, a hidden name of its own stands in, which is removed when the work fails; only there, a
``kill -9`` leaves a file behind, ``.sqlimage-...partial``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import stat
import threading
from concurrent.futures import Future

from sqlimage.errors import DeviceError, NotFoundError, RefusedError

_libc = ctypes.CDLL(None)
_SYNC_FILE_RANGE_WRITE = 2


def start_writeback(fd: int) -> None:
    """Let the kernel begin to write what is dirty of a file, without waiting for it."""
    _libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


class NamelessFile:
    """A file in the making, open as :attr:`fd`. Use as a context manager: what is not published is gone afterwards.

    Raises :class:`~sqlimage.errors.RefusedError` where the target exists already (unless ``replace``),
    :class:`~sqlimage.errors.NotFoundError` where its directory does not, and
    :class:`~sqlimage.errors.DeviceError` where that cannot be written.
    """

    def __init__(self, target: str | os.PathLike[str], *, replace: bool = False) -> None:
        self.target = os.path.abspath(target)
        self._replace = replace
        directory, self._name = os.path.split(self.target)
        if os.path.isdir(self.target):
            raise RefusedError(f"{self.target}: is a directory", hint="name a file in it")
        if os.path.lexists(self.target):
            if not replace:
                raise self._exists()
            if not stat.S_ISREG(os.stat(self.target).st_mode):
                raise RefusedError(f"{self.target}: is neither a file nor a block device", hint="name another place")
        try:
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundError(f"{directory}: no such directory") from None
        except OSError as problem:
            raise DeviceError(f"{directory}: {problem.strerror}") from None
        self.stand_in = os.path.join(directory, f".sqlimage-{secrets.token_hex(8)}.partial")
        """A name beside the target under which nothing lies, or where there are no nameless files, this file."""
        self._is_named = False
        self._syncing: Future[None] | None = None
        try:
            self.fd = self._make(directory)
        except OSError as problem:
            os.close(self._directory)
            raise DeviceError(f"{self.target}: cannot be made ({problem.strerror})") from None

    @property
    def path(self) -> str:
        """A path by which this process can open the file once more."""
        return self.stand_in if self._is_named else f"/proc/self/fd/{self.fd}"

    @property
    def size_bytes(self) -> int:
        """What has been written so far."""
        return os.fstat(self.fd).st_size

    def start_writeback(self) -> None:
        """Let the kernel begin to write what is dirty, without waiting, so that the sync at the end is short."""
        start_writeback(self.fd)

    def sync_meanwhile(self) -> None:
        """Make durable what is there so far, beside whatever the caller goes on with, which is no more writing."""
        if self._syncing is None:
            self._syncing = Future()
            threading.Thread(target=self._sync, args=(self._syncing,), name="sync", daemon=True).start()

    def _sync(self, done: Future[None]) -> None:
        try:
            os.fdatasync(self.fd)
            done.set_result(None)
        except OSError as problem:  # the system tells each only once: to whoever publishes
            done.set_exception(problem)

    def publish(self) -> None:
        """Make the file durable and give it its name, at once.

        Raises :class:`~sqlimage.errors.RefusedError` where the name was taken in the meantime.
        """
        try:
            if self._syncing is not None:
                self._syncing.result()
            os.fsync(self.fd)
            if self._replace:
                self._name_it(between := f".sqlimage-{secrets.token_hex(8)}.whole")
                try:
                    os.replace(between, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
                except OSError:
                    os.unlink(between, dir_fd=self._directory)
                    raise
            else:
                self._name_it(self._name)
            os.fsync(self._directory)
        except FileExistsError:
            raise self._exists() from None
        except OSError as problem:
            raise DeviceError(f"{self.target}: cannot be written ({problem.strerror})") from None

    def close(self) -> None:
        """Let go; without :meth:`publish` nothing of the file stays."""
        if self.fd >= 0:
            if self._syncing is not None:
                self._syncing.exception()
            if self._is_named:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.stand_in)
            os.close(self.fd)
            os.close(self._directory)
            self.fd = -1

    def __enter__(self) -> NamelessFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self, directory: str) -> int:
        try:
            return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except OSError:
            self._is_named = True
        return os.open(self.stand_in, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)

    def _name_it(self, name: str) -> None:
        # An explicit directory makes Python follow the link in /proc to the file, as linkat does when told to.
        try:
            os.link(self.path, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except FileExistsError:
            raise
        except OSError:
            # Where there are no nameless files there may be no hard links either (FAT, some network file systems).
            if not self._is_named or os.path.lexists(os.path.join(os.path.dirname(self.target), name)):
                raise
            os.rename(self.stand_in, name, dst_dir_fd=self._directory)

    def _exists(self) -> RefusedError:
        return RefusedError(f"{self.target}: exists already", hint="choose another name or remove it")
