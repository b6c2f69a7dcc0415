"""The control information of an ext volume on a sparse file of its own: all that is allocated but the data of files.

e2fsck and resize2fs read no data of files, and so do on it what they would do on the volume: the data, which they move
as they move anything, are holes and zeros here, and what becomes of them is read off the result::

    volume   |S|G|B|I|data |dir|data        |B|I|ext|data|
    clone    |S|G|B|I|     |dir|            |B|I|ext|    |      S superblock, G descriptors, B bitmaps, I inodes
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sqlimage.device import BlockDevice
from sqlimage.errors import DeviceError
from sqlimage.extent import Runs, stretches
from sqlimage.filesystem.contract import ContentFlag, Contents, EntryKind, Scan, VolumeFacts
from sqlimage.filesystem.ext.layout import OLD_FIRST_INODE
from sqlimage.media.file import WritableFileDevice
from sqlimage.units import MIB, format_size

_PIECE_BYTES = 4096
_AT_ONCE = MIB
_LARGEST_ATTRIBUTE = 64 << 10
"""Values of extended attributes can be files without a name, which e2fsck reads; none is larger."""
_JOURNAL = "/$Journal"
_JOURNAL_START_AT = 0x1C
"""In the journal's superblock, 4 bytes: 0 where there is nothing to recover."""


class Clone:
    """A sparse file without a name in ``directory`` (that for temporary files by default). Use as a context manager.

    Raises :class:`~sqlimage.errors.DeviceError` where it cannot be made.
    """

    def __init__(self, size_bytes: int, directory: str | None = None) -> None:
        self._directory = directory or tempfile.gettempdir()
        name = f"a temporary file in {self._directory}"
        try:
            with tempfile.TemporaryFile(prefix="sqlimage-", dir=self._directory) as file:
                self.device = WritableFileDevice(f"/proc/self/fd/{file.fileno()}", name=name)
        except OSError as problem:
            raise DeviceError(f"{name} cannot be made ({problem.strerror})") from None
        self.set_size(size_bytes)

    @property
    def fd(self) -> int:
        return self.device.fileno()

    def set_size(self, size_bytes: int) -> None:
        """Make it so long, whatever a tool has left."""
        try:
            self.device.resize(size_bytes)
        except BaseException:
            self.close()
            raise

    def need(self, length_bytes: int) -> None:
        """Raise :class:`~sqlimage.errors.DeviceError` unless so much more can be written."""
        found = os.fstatvfs(self.fd)
        free = found.f_bavail * found.f_frsize
        if found.f_blocks and free < length_bytes:
            raise DeviceError(
                f"{self._directory}: has {format_size(free)} free, {format_size(length_bytes)} are needed for a while",
                hint="set TMPDIR to a directory that has more",
            )

    def fill(self, source: BlockDevice, runs: Runs) -> None:
        """Copy some runs of a device, zeros left out."""
        for start, length in runs:
            for extent in source.extents(start, length):
                if extent.is_data:
                    for at in range(0, extent.length_bytes, _AT_ONCE):
                        count = min(_AT_ONCE, extent.length_bytes - at)
                        self._write(extent.offset_bytes + at, source.read(extent.offset_bytes + at, count))

    def _write(self, offset_bytes: int, data: bytes) -> None:
        for low, high in stretches(~_zero_pieces(data)):
            self.device.write(offset_bytes + low * _PIECE_BYTES, data[low * _PIECE_BYTES : high * _PIECE_BYTES])

    def written(self) -> Runs:
        """What of it takes space."""
        size = self.device.size_bytes
        return Runs.of((e.offset_bytes, e.length_bytes) for e in self.device.extents(0, size) if e.is_data)

    def drop_zeros(self, looked_at: Runs) -> None:
        """Give back the space that zeros take outside ``looked_at``, what was only reserved as well."""
        for start, length in Runs.of([(0, self.device.size_bytes)]).subtract(looked_at):
            zeros: list[tuple[int, int]] = []
            for extent in self.device.extents(start, length):
                if extent.is_data:
                    zeros += self._zeros(extent.offset_bytes, extent.offset_bytes + extent.length_bytes)
                else:
                    zeros.append((extent.offset_bytes, extent.length_bytes))
            for place, count in Runs.of(zeros):
                self.device.zero(place, count)

    def _zeros(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        for at in range(start, end, _AT_ONCE):
            for low, high in stretches(_zero_pieces(self.device.read(at, min(_AT_ONCE, end - at)))):
                first, last = at + low * _PIECE_BYTES, min(at + high * _PIECE_BYTES, end)
                yield first, last - first

    def copy(self) -> Clone:
        """Another one that holds the same."""
        other = Clone(self.device.size_bytes, self._directory)
        try:
            other.fill(self.device, Runs.of([(0, self.device.size_bytes)]))
        except BaseException:
            other.close()
            raise
        return other

    def close(self) -> None:
        """Let go of the file, which is gone then. Closing twice is allowed."""
        self.device.close()

    def __enter__(self) -> Clone:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _zero_pieces(data: bytes) -> NDArray[np.bool_]:
    """For each piece of some bytes, the last one cut, whether it is nothing but zeros."""
    padded = np.frombuffer(data + bytes(-len(data) % _PIECE_BYTES), dtype=np.uint64)
    is_zero: NDArray[np.bool_] = padded.reshape(-1, _PIECE_BYTES // 8).max(axis=1) == 0
    return is_zero


def unwritten_of_files(contents: Contents) -> Runs:
    """What is reserved for contents but reads as zeros whatever it holds."""
    if contents.run_unwritten is None:
        return Runs.empty()
    mask, written = contents.run_unwritten, ~contents.reads_as_zeros()
    unwritten = Runs.from_arrays(contents.run_offset[mask], contents.run_length[mask])
    return unwritten.subtract(Runs.from_arrays(contents.run_offset[written], contents.run_length[written]))


def data_of_files(volume: BlockDevice, facts: VolumeFacts, scan: Scan) -> Runs:
    """The bytes of a volume that nothing but a reader of files reads, e2fsck and resize2fs neither."""
    contents, block = scan.contents, facts.alignment_bytes
    owner, place, written = contents.run_owner(), contents.run_place(), ~contents.reads_as_zeros()
    is_data = _read_by_nobody(scan)
    kept = Runs.empty()
    journal = _journal(scan)
    if journal is not None and not facts.dirty:
        head = contents.run_offset[written & (owner == journal) & (place == 0)]
        if len(head) and volume.read(int(head[0]) + _JOURNAL_START_AT, 4) == bytes(4):
            is_data[journal] = True
            kept = Runs.of([(int(head[0]), block)])
    # Where a file is being cut short, e2fsck zeroes what its last block holds beyond the new end.
    end = contents.size_bytes // block * block
    is_cut = (contents.size_bytes > end) & (contents.covered_bytes() > end + block)
    here = end[owner] - place
    cut = is_cut[owner] & written & (here >= 0) & (here < contents.run_length)
    kept = kept.union(Runs.from_arrays((contents.run_offset + here)[cut], np.full(int(cut.sum()), block)))
    others, data = written & ~is_data[owner], written & is_data[owner]
    kept = kept.union(Runs.from_arrays(contents.run_offset[others], contents.run_length[others]))
    return Runs.from_arrays(contents.run_offset[data], contents.run_length[data]).subtract(kept)


def _read_by_nobody(scan: Scan) -> NDArray[np.bool_]:
    """Of contents, whether only a reader of files reads them: those of files, and of files that have been removed."""
    entries, contents = scan.entries, scan.contents
    named, is_file = np.zeros(len(contents), dtype=np.bool_), np.zeros(len(contents), dtype=np.bool_)
    named[entries.content[entries.content >= 0]] = True
    is_file[entries.content[(entries.kind == EntryKind.FILE) & (entries.content >= 0)]] = True
    is_file |= ~named & (contents.size_bytes > _LARGEST_ATTRIBUTE) & (contents.record >= OLD_FIRST_INODE)
    # COMPRESSED: blocks of it are in the journal still
    is_file &= contents.flags & (ContentFlag.INDEX | ContentFlag.COMPRESSED | ContentFlag.INLINE) == 0
    return is_file


def _journal(scan: Scan) -> int | None:
    """The content that is the journal."""
    entries = scan.entries
    for n in np.flatnonzero((entries.kind == EntryKind.METADATA) & (entries.content >= 0)).tolist():
        if entries.path[n].startswith(_JOURNAL):
            return int(entries.content[n])
    return None
