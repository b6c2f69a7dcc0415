"""The result of a scan in the making: lists that become the arrays of the contract."""

from __future__ import annotations

from hashlib import sha256

import numpy as np

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.contract import ContentFlag, Contents, Entries, EntryKind, Scan
from sqlimage.filesystem.iso9660 import layout
from sqlimage.filesystem.iso9660.times import long_time, short_times
from sqlimage.units import MIB

PATH_LENGTH_MAX = 32767
PATHS_LENGTH_BASE, PATHS_LENGTH_MEAN = 64 * MIB, 1024
"""All paths together: so many characters, and so many more for each entry: deep trees of long names are legal, but grow
with the square."""
_NO_STAMP = bytes(layout.SHORT_TIME_BYTES)


class Columns:
    """Entries and contents, added one by one. Raises :class:`InconsistentVolume` where paths are too long."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._paths_length = 0
        self._kinds = bytearray()
        self._content_of: list[int] = []
        self._entry_record: list[int] = []
        self._stamps = bytearray()
        self._long_stamps: dict[int, bytes] = {}
        self._modes: list[int] = []

        self._record: list[int] = []
        self._stream: list[str] = []
        self._size: list[int] = []
        self._flags = bytearray()
        self._first_run = [0]
        self._run_offset: list[int] = []
        self._run_length: list[int] = []
        self._inline_digest: dict[int, bytes] = {}
        self._row_at: dict[int, int] = {}
        """The first file of those that begin in a place."""
        self._row_of: dict[tuple[int, int, tuple[tuple[int, int], ...]], int] = {}

    def add_entry(self, path: str, kind: EntryKind, content: int, record: int, stamp: bytes, mode: int) -> None:
        """A name. ``content`` is a row, whose record counts then, or -1; ``stamp`` has 7 or 17 bytes."""
        self._paths_length += len(path)
        count = len(self._paths)
        if len(path) > PATH_LENGTH_MAX or self._paths_length > PATHS_LENGTH_BASE + PATHS_LENGTH_MEAN * count:
            raise InconsistentVolume("directories", "they are nested so deeply that paths outgrow the volume")
        if len(stamp) != layout.SHORT_TIME_BYTES:
            self._long_stamps[count] = stamp
            stamp = _NO_STAMP
        self._paths.append(path)
        self._kinds.append(kind)
        self._content_of.append(content)
        self._entry_record.append(self._record[content] if content >= 0 else record)
        self._stamps += stamp
        self._modes.append(mode)

    def add_content(self, record: int, size: int, runs: list[tuple[int, int]], flags: int = 0, stream: str = "") -> int:
        """The row of a content of its own."""
        row = len(self._record)
        self._record.append(record)
        self._stream.append(stream)
        self._size.append(size)
        self._flags.append(flags)
        for place, length in runs:
            self._run_offset.append(place)
            self._run_length.append(length)
        self._first_run.append(len(self._run_offset))
        return row

    def link_content(self, record: int, target: bytes) -> int:
        """The row of a symbolic link's target."""
        row = self.add_content(record, len(target), [], int(ContentFlag.INLINE))
        self._inline_digest[row] = sha256(target).digest()
        return row

    def file_content(self, record: int, size: int, runs: list[tuple[int, int]], flags: int) -> int:
        """The row of a file's content: one for all files that are the same bytes in the same place."""
        if not runs:
            return self.add_content(record, size, runs, flags)
        place = runs[0][0]
        row = self._row_at.get(place)
        if row is None:
            row = self._row_at[place] = self.add_content(record, size, runs, flags)
            return row
        if self._is_row(row, size, runs, flags):
            return row
        key = (size, flags, tuple(runs))  # rare: another file that begins in the same place
        row = self._row_of.get(key)
        if row is None:
            row = self._row_of[key] = self.add_content(record, size, runs, flags)
        return row

    def file_at(self, place: int) -> int | None:
        """The row of a file that begins at byte ``place`` of the volume and is read as it lies."""
        row = self._row_at.get(place)
        return None if row is None or self._flags[row] else row

    def _is_row(self, row: int, size: int, runs: list[tuple[int, int]], flags: int) -> bool:
        if self._size[row] != size or self._flags[row] != flags:
            return False
        low, high = self._first_run[row], self._first_run[row + 1]
        return runs == list(zip(self._run_offset[low:high], self._run_length[low:high], strict=True))

    def holds(self, path: str) -> bool:
        """Whether a path is taken. Slow."""
        return path in self._paths

    def finish(self) -> Scan:
        modified = short_times(self._stamps)
        for row, stamp in self._long_stamps.items():
            modified[row] = long_time(stamp)
        size = np.array(self._size, dtype=np.int64)
        entries = Entries(
            path=self._paths,
            kind=np.frombuffer(bytes(self._kinds), dtype=np.uint8),
            content=np.array(self._content_of, dtype=np.int64),
            record=np.array(self._entry_record, dtype=np.int64),
            modified_ns=modified,
            attributes=np.array(self._modes, dtype=np.uint32),
        )
        contents = Contents(
            record=np.array(self._record, dtype=np.int64),
            stream=self._stream,
            size_bytes=size,
            valid_bytes=size,
            flags=np.frombuffer(bytes(self._flags), dtype=np.uint8),
            first_run=np.array(self._first_run, dtype=np.int64),
            run_offset=np.array(self._run_offset, dtype=np.int64),
            run_length=np.array(self._run_length, dtype=np.int64),
            inline_digest=self._inline_digest,
        )
        return Scan(entries, contents)
