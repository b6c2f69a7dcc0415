"""A volume's files as a read-only FUSE mount, by the reader of its file system: no driver touches a hostile volume."""

from __future__ import annotations

import errno
import os
import stat
import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from sqlimage.errors import NotFoundError
from sqlimage.filesystem.contract import WITH_MODES, Content, EntryKind, FileSystem
from sqlimage.mount.fuse import FuseServer, Problem, answering, to_stderr
from sqlimage.mount.names import SYNTHETIC, Names
from sqlimage.units import NO_TIME

MOST_STREAM_BYTES = 64 << 10
"""linux/limits.h: XATTR_SIZE_MAX. A longer named stream is not listed."""
_MOST_LIST_BYTES = 64 << 10
_MOST_LINK_BYTES = 4095
_MOST_OPEN = 64
_TOP_INODE = 1


class VolumeTree:
    """What one volume shows. Scanned once, when it is made; bytes are read when they are asked for.

    ``number`` makes inodes differ between volumes of one mount: they are ``number + 1`` in the upper 16 bits and the
    record below, so that hard links share one and a second mount has the same.
    """

    def __init__(self, file_system: FileSystem, number: int = 0) -> None:
        scan = file_system.scan()
        self.facts = file_system.facts
        self.names = Names(scan)
        self._file_system = file_system
        self._entries = scan.entries
        contents = scan.contents  # without their runs, which are most of it
        self._record, self._stream, self._size_bytes = contents.record, contents.stream, contents.size_bytes
        self._inode_base = (number + 1) << 48
        self._open: OrderedDict[tuple[int, str], tuple[Content, threading.Lock]] = OrderedDict()
        self._lock = threading.Lock()

    def attributes(self, path: str) -> dict[str, int]:
        """As stat(2) has them. Raises :class:`OSError` with ENOENT."""
        row = self._row(path)
        owner = {"st_uid": os.geteuid(), "st_gid": os.getegid()}
        if row == SYNTHETIC:
            inode = self._inode_base | 1 << 47 | zlib.crc32(path.encode())
            return {"st_mode": stat.S_IFDIR | 0o555, "st_nlink": 2, "st_ino": inode, **owner}
        record, modified_ns = int(self._entries.record[row]), int(self._entries.modified_ns[row])
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), 0 if modified_ns == NO_TIME else modified_ns)
        inode = self._inode_base | (record if 0 <= record < 1 << 46 else 1 << 46 | row)
        if path in self.names.children:
            return {"st_mode": stat.S_IFDIR | 0o555, "st_nlink": 2, "st_ino": inode, **owner, **times}
        size = self._size_of(row)
        mode = stat.S_IFLNK | 0o777 if self._is_link(row) else stat.S_IFREG | self._permissions(row)
        links = {"st_nlink": self.names.links[record], "st_ino": inode, "st_blocks": -(-size // 512)}
        return {"st_mode": mode, "st_size": size, **links, **owner, **times}

    def list(self, path: str) -> list[str]:
        """The names in a directory."""
        if path not in self.names.children:
            raise OSError(errno.ENOTDIR if path in self.names.row else errno.ENOENT, path)
        return self.names.children[path]

    def read(self, path: str, offset_bytes: int, length_bytes: int) -> bytes:
        """A file's bytes, cut at its end."""
        row = self._row(path)
        size = self._size_of(row)
        length_bytes = max(0, min(length_bytes, size - offset_bytes))
        return self._read(int(self._entries.content[row]), offset_bytes, length_bytes)

    def link_target(self, path: str) -> str:
        """Where a symbolic link leads, as the volume has it."""
        row = self._row(path)
        if row == SYNTHETIC or not self._is_link(row):
            raise OSError(errno.EINVAL, path)
        return self.read(path, 0, _MOST_LINK_BYTES).partition(b"\0")[0].decode("utf-8", "surrogateescape")

    def streams(self, path: str) -> dict[str, int]:
        """The named streams of a file or directory that fit an extended attribute: its name to a row."""
        row = self._row(path)
        if row == SYNTHETIC:
            return {}
        found = self.names.streams.get(int(self._entries.record[row]), {})
        return {name: content for name, content in found.items() if self._size_bytes[content] <= MOST_STREAM_BYTES}

    def stream(self, path: str, attribute: str) -> bytes:
        """One named stream. Raises :class:`OSError` with ENODATA where the file has none of that name."""
        content = self.streams(path).get(attribute)
        if content is None:
            raise OSError(errno.ENODATA, attribute)
        return self._read(content, 0, int(self._size_bytes[content]))

    def _row(self, path: str) -> int:
        row = self.names.row.get(path)
        if row is None:
            raise OSError(errno.ENOENT, path)
        return row

    def _size_of(self, row: int) -> int:
        content = int(self._entries.content[row]) if row != SYNTHETIC else -1
        return int(self._size_bytes[content]) if content >= 0 else 0

    def _permissions(self, row: int) -> int:
        """What of a file may be done with it, but for writing."""
        mode = int(self._entries.attributes[row]) & 0o555 if self.facts.file_system in WITH_MODES else 0
        return mode or 0o444

    def _is_link(self, row: int) -> bool:
        """A link whose target is its content. NTFS keeps targets elsewhere: there a link shows as the file it is."""
        return self._entries.kind[row] == EntryKind.SYMLINK and 0 < self._size_of(row) <= _MOST_LINK_BYTES

    def _read(self, row: int, offset_bytes: int, length_bytes: int) -> bytes:
        if row < 0 or not length_bytes:
            return b""
        content, lock = self._opened(row)
        with lock:  # a compressed content keeps what it decoded last
            return content.read(offset_bytes, length_bytes)[:length_bytes]

    def _opened(self, row: int) -> tuple[Content, threading.Lock]:
        key = (int(self._record[row]), self._stream[row])
        with self._lock:
            found = self._open.get(key)
            if found is not None:
                self._open.move_to_end(key)
                return found
        try:
            opened = (self._file_system.open(*key), threading.Lock())
        except NotFoundError:
            raise OSError(errno.EIO, "the volume has no such content") from None
        with self._lock:
            self._open[key] = opened
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        return opened


class TreeFiles:
    """FUSE operations over one volume, or over several as the directories of the top, named by their keys; a None is
    an empty directory, on which something else can be mounted. A None cannot stand for the only volume."""

    use_ns = True

    def __init__(self, volumes: VolumeTree | Mapping[str, VolumeTree | None], on_problem: Problem = to_stderr) -> None:
        self.on_problem = on_problem
        self._only = volumes if isinstance(volumes, VolumeTree) else None
        self._volumes = {} if isinstance(volumes, VolumeTree) else dict(volumes)

    def _split(self, path: str) -> tuple[VolumeTree | None, str]:
        """The volume and the path on it; None for the top, and for a directory that only something else fills."""
        if self._only is not None:
            return self._only, path
        name, _, rest = path[1:].partition("/")
        if name and (name not in self._volumes or (rest and self._volumes[name] is None)):
            raise OSError(errno.ENOENT, path)
        return self._volumes.get(name), "/" + rest

    @answering
    def getattr(self, path: str, _handle: object = None) -> dict[str, int]:
        return self._attributes(path)

    def _attributes(self, path: str) -> dict[str, int]:
        volume, inside = self._split(path)
        if volume is not None:
            return volume.attributes(inside)
        inode = _TOP_INODE if path == "/" else _TOP_INODE + 1 + list(self._volumes).index(path[1:])
        owner = {"st_uid": os.geteuid(), "st_gid": os.getegid()}
        return {"st_mode": stat.S_IFDIR | 0o555, "st_nlink": 2, "st_ino": inode, **owner}

    @answering
    def readdir(self, path: str, _handle: int) -> list[tuple[str, dict[str, int], int]]:
        volume, inside = self._split(path)
        volumes = list(self._volumes) if path == "/" else []
        names = volumes if volume is None else volume.list(inside)
        before = path.rstrip("/") + "/"
        # with its inode each: one without is no entry to the C library
        listed = [(".", path), ("..", path.rpartition("/")[0] or "/"), *((name, before + name) for name in names)]
        return [(name, self._attributes(place), 0) for name, place in listed]

    @answering
    def open(self, path: str, info: Any) -> int:
        if info.flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, path)
        info.keep_cache = 1  # nothing here ever changes
        return 0

    @answering
    def read(self, path: str, length: int, offset: int, _info: object) -> bytes:
        volume, inside = self._split(path)
        return volume.read(inside, offset, length) if volume is not None else b""

    @answering
    def readlink(self, path: str) -> str:
        volume, inside = self._split(path)
        if volume is None:
            raise OSError(errno.EINVAL, path)
        return volume.link_target(inside)

    @answering
    def listxattr(self, path: str) -> list[str]:
        volume, inside = self._split(path)
        listed, left = [], _MOST_LIST_BYTES
        for name in volume.streams(inside) if volume is not None else ():
            left -= len(name.encode()) + 1
            if left < 0:
                break
            listed.append(name)
        return listed

    @answering
    def getxattr(self, path: str, name: str) -> bytes:
        volume, inside = self._split(path)
        if volume is None:
            raise OSError(errno.ENODATA, name)
        return volume.stream(inside, name)

    @answering
    def statfs(self, path: str) -> dict[str, int]:
        volume = self._split(path)[0]
        if volume is None:
            return {"f_bsize": 512, "f_frsize": 512, "f_namemax": 255}
        facts = volume.facts
        return {
            "f_bsize": facts.bytes_per_cluster,
            "f_frsize": facts.bytes_per_cluster,
            "f_blocks": facts.total_clusters,
            "f_files": len(volume.names.row),
            "f_namemax": 255,
        }


def serve_tree(
    volumes: VolumeTree | Mapping[str, VolumeTree | None], directory: str, *, on_problem: Problem = to_stderr
) -> FuseServer:
    """Mount :class:`TreeFiles` on an empty directory; unmount it to end."""
    hour = "3600"
    operations = TreeFiles(volumes, on_problem)
    return FuseServer(operations, directory, read_only=True, use_ino=True, attr_timeout=hour, entry_timeout=hour)
