"""A file system of a few files in memory, as the contract has it: for what only needs names and their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sqlimage.errors import InconsistentVolume, NotFoundError
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import Content, Contents, Entries, EntryKind, Scan, VolumeFacts
from sqlimage.units import NO_TIME


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


class Damaged:
    """A file whose bytes cannot be read; with ``opens`` False not even its record can."""

    size_bytes = 1 << 40

    def __init__(self, *, opens: bool = True) -> None:
        self.opens = opens

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        raise InconsistentVolume("run list", "leads out of the volume")


class Counted:
    """A file of any size, zeros behind its bytes, that counts what is read of it."""

    def __init__(self, content: bytes | bytearray, size_bytes: int | None = None) -> None:
        self.content = content
        self.size_bytes = len(content) if size_bytes is None else size_bytes
        self.bytes_read = 0

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        length = max(min(length_bytes, self.size_bytes - offset_bytes), 0)
        self.bytes_read += length
        data = bytes(self.content[offset_bytes : offset_bytes + length])
        return data + bytes(length - len(data))


File = bytes | bytearray | str | Link | Content | None
"""What lies under a path: bytes, text, a link, a content of the test's own, or None for an empty directory."""


class MemoryVolume:
    """The directories above the paths are there without being named."""

    def __init__(self, files: Mapping[str, File]) -> None:
        above = {path.rsplit("/", depth)[0] for path in files for depth in range(path.count("/"))}
        self._paths: dict[str, File] = {"/": None, **dict.fromkeys(sorted(above - {"", *files})), **files}
        self._files = list(self._paths.values())
        self.facts = VolumeFacts("memory", 0, 512, 512, 0, 512)

    def allocated(self) -> Runs:
        return Runs.empty()

    def scan(self) -> Scan:
        count = len(self._files)
        row, none = np.arange(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        kinds = [
            EntryKind.DIRECTORY if file is None else EntryKind.SYMLINK if isinstance(file, Link) else EntryKind.FILE
            for file in self._files
        ]
        no_time, no_attributes = np.full(count, NO_TIME, dtype=np.int64), np.zeros(count, dtype=np.uint32)
        entries = Entries(list(self._paths), np.array(kinds, dtype=np.uint8), row, row, no_time, no_attributes)
        runs = np.zeros(count + 1, dtype=np.int64)
        flags, empty = np.zeros(count, dtype=np.uint8), np.empty(0, dtype=np.int64)
        return Scan(entries, Contents(row, [""] * count, none, none, flags, runs, empty, empty, {}))

    def open(self, record: int, stream: str = "") -> Content:
        file = self._files[record]
        if file is None or stream:
            raise NotFoundError(f"record {record} has no stream {stream!r}")
        if isinstance(file, Damaged) and not file.opens:
            raise InconsistentVolume(f"record {record}", "is not there")
        if isinstance(file, Link):
            return Counted(file.target.encode())
        if isinstance(file, str):
            return Counted(file.encode("utf-8", "surrogateescape"))
        return Counted(file) if isinstance(file, bytes | bytearray) else file
