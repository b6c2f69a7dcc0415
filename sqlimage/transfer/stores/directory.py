"""A directory as a store: an object is a file of its name. Any web server can serve it as it is."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence

from sqlimage.errors import DeviceError, NotFoundError, RefusedError
from sqlimage.nameless import NamelessFile
from sqlimage.transfer.stores.asking import check_part, check_published, is_name, missing, reference, referred, too_long
from sqlimage.transfer.stores.contract import SEGMENTS, VERSIONS, Bytes, StoreError, check_name
from sqlimage.units import MIB

_PIECE_BYTES = 8 * MIB
"""Also what one read or write of Linux is sure to do (it ends a page below 2 GiB)."""


class DirectoryStore:
    """Files under ``path``, which is made by the first ``put``. Nothing outside it is read or written: names of files
    are those that the contract allows, and symbolic links are not followed below it.

    What is put is durable when ``put`` returns.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._root = os.path.abspath(path)

    @property
    def where(self) -> str:
        return self._root

    def put(self, name: str, content: Bytes) -> bool:
        check_name(name)
        self._make_folder(name)
        with self._telling(name), self._new(name) as file:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(file.fd, rest[:_PIECE_BYTES]) :]
            file.publish()
        return True

    def get(self, name: str, most_bytes: int) -> bytes:
        fd, size = self._open(name)
        try:
            if size > most_bytes:
                raise too_long(self.where, name, most_bytes)
            return self._read(fd, name, 0, size)
        finally:
            os.close(fd)

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        check_part(offset_bytes, length_bytes)
        fd, size = self._open(name)
        try:
            return self._read(fd, name, offset_bytes, min(length_bytes, max(0, size - offset_bytes)))
        finally:
            os.close(fd)

    def head(self, name: str) -> int | None:
        try:
            fd, size = self._open(name)
        except NotFoundError:
            return None
        os.close(fd)
        return size

    def list(self, prefix: str = "") -> Iterator[str]:
        for folder in ("", SEGMENTS, VERSIONS):
            if folder and not (folder.startswith(prefix) or prefix.startswith(folder)):
                continue
            for leaf in self._leaves(folder):
                name = folder + leaf
                if name.startswith(prefix) and is_name(name):
                    yield name

    def publish(self, name: str, segment: str, keep: Sequence[str] = ()) -> None:
        check_published(name, segment, keep)
        for needed in (segment, *keep):
            if self.head(needed) is None:
                raise missing(self.where, needed)
        self.put(name, reference(segment))

    def first(self, name: str) -> str:
        return referred(self, name)

    def close(self) -> None:
        pass

    def _new(self, name: str) -> NamelessFile:
        return NamelessFile(self._path(name), replace=True)

    def _open(self, name: str) -> tuple[int, int]:
        """A descriptor of an object, and its length."""
        check_name(name)
        folder, leaf = os.path.split(self._path(name))
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            # the place itself may be reached by links, for its owner chose it
            parent = os.open(folder, flags if folder == self._root else flags | os.O_NOFOLLOW)
            try:
                fd = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
            finally:
                os.close(parent)
        except FileNotFoundError:
            raise missing(self.where, name) from None
        except OSError as problem:
            raise StoreError(f"{self._path(name)}: cannot be opened ({problem.strerror})") from None
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            if stat.S_ISDIR(found.st_mode):
                raise StoreError(f"{self._path(name)}: is a directory", hint="name an image in it")
            raise StoreError(f"{self._path(name)}: is not a regular file")
        return fd, found.st_size

    def _read(self, fd: int, name: str, offset: int, length: int) -> bytes:
        pieces = []
        try:
            while length:
                piece = os.pread(fd, min(length, 1 << 30), offset)
                if not piece:
                    raise StoreError(f"{self._path(name)}: was cut while it was read")
                pieces.append(piece)
                offset += len(piece)
                length -= len(piece)
        except OSError as problem:
            if isinstance(problem, StoreError):
                raise
            raise StoreError(f"{self._path(name)}: cannot be read ({problem.strerror})") from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _leaves(self, folder: str) -> tuple[str, ...]:
        place = f"{self._root}/{folder}".rstrip("/")
        try:
            if folder and os.path.islink(place):
                raise StoreError(f"{place}: is not a directory")
            with os.scandir(place) as entries:
                return tuple(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
        except FileNotFoundError:
            return ()
        except OSError as problem:
            if isinstance(problem, StoreError):
                raise
            raise StoreError(f"{place}: cannot be read ({problem.strerror})") from None

    def _make_folder(self, name: str) -> None:
        folder = os.path.dirname(self._path(name))
        if os.path.isdir(folder) and (folder == self._root or not os.path.islink(folder)):
            return
        try:
            os.makedirs(self._root, exist_ok=True)
            if folder != self._root:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder)
                if os.path.islink(folder) or not os.path.isdir(folder):
                    raise StoreError(f"{folder}: is not a directory")
            self._sync(self._root)
        except OSError as problem:
            if isinstance(problem, StoreError):
                raise
            raise StoreError(f"{folder}: cannot be made ({problem.strerror})") from None

    def _sync(self, folder: str) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        """Have what goes wrong below told as the contract says."""
        try:
            yield
        except StoreError:
            raise
        except (DeviceError, RefusedError, NotFoundError) as problem:
            raise StoreError(problem.message, hint=problem.hint) from None
        except OSError as problem:
            raise StoreError(f"{self._path(name)}: cannot be written ({problem.strerror})") from None
