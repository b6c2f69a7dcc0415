"""What every file system answers to capture, extraction and SQL, in arrays.

All places are **bytes from the start of the volume** (the device the file system was opened on), never clusters:
file systems count clusters from different origins, bytes have one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sqlimage.extent import Int64s, Runs

HOLE = -1
"""In ``Contents.run_offset``: the run is not backed by clusters and reads as zeros."""


WITH_MODES = frozenset({"ext2", "ext3", "ext4", "iso9660"})
"""File systems whose symbolic links hold a target, and whose ``Entries.attributes`` are modes, or 0."""


class EntryKind(IntEnum):
    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    STREAM = 4
    """A named stream beside a file's main content: its path ends in ``:name``."""
    SPECIAL = 5
    """A device, a pipe, a socket, or a reparse point whose meaning is not a link."""
    METADATA = 6
    """A file by which the file system keeps itself, as ``/$MFT``; never extracted with a tree."""


class ContentFlag(IntFlag):
    INLINE = 1
    """The bytes lie inside control information (a resident attribute); there are no runs."""
    SPARSE = 2
    COMPRESSED = 4
    """The runs hold the file system's own compressed form."""
    ENCRYPTED = 8
    """The runs hold cipher text of the file system's own encryption; it is read as it lies."""
    INDEX = 16
    """The bytes are a directory's, not a file's."""


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """The control information of one volume, as its boot sector or superblock has it."""

    file_system: str
    """``fat12``, ``fat16``, ``fat32``, ``exfat``, ``ntfs``, ``ext2``, ``ext3``, ``ext4``, ``iso9660``, ..."""
    size_bytes: int
    """What the file system says it spans, its backup boot sector included."""
    bytes_per_sector: int
    bytes_per_cluster: int
    total_clusters: int
    alignment_bytes: int
    """The largest power of two that divides every place and length a run of this volume can have."""
    clusters_per_record: int | None = None
    """NTFS: as in the boot sector, where -10 means records of 2**10 bytes."""
    hidden_sectors: int = 0
    sectors_per_track: int | None = None
    tracks_per_cylinder: int | None = None
    """The field calls them heads."""
    label: str | None = None
    serial: str | None = None
    """As the system that formatted it prints it: upper-case hexadecimal, or a UUID in lower case with dashes."""
    format_version: str | None = None
    dirty: bool = False
    hibernated: bool = False
    may_share: bool = False
    """Whether several contents may lie in the same place without contradiction, as on ISO 9660."""
    notes: tuple[str, ...] = ()
    """What whoever captures the volume should know, a sentence each: that its journal is to be recovered, ..."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Every stream of bytes on the volume, one row each; ``run_*`` hold the runs of row i from ``first_run[i]`` to
    ``first_run[i + 1]``, in file order, gapless from file offset 0 (holes are rows with ``HOLE``)."""

    record: Int64s
    stream: list[str]
    """Empty for a file's main content; an NTFS stream's name; ``$I30`` for a directory's index."""
    size_bytes: Int64s
    valid_bytes: Int64s
    """Beyond this the content reads as zeros whatever its runs hold. At most ``size_bytes``."""
    flags: NDArray[np.uint8]
    first_run: Int64s
    run_offset: Int64s
    run_length: Int64s
    inline_digest: dict[int, bytes]
    """SHA-256 of each INLINE content, by row: capture never sees those bytes as a file of their own."""
    run_unwritten: NDArray[np.bool_] | None = None
    """Runs that are the content's but read as zeros, whatever lies there; None where there are none."""
    inline_holder: dict[int, int] = field(default_factory=dict)
    """NTFS: the number of the MFT record that holds each INLINE content, by row."""

    def __len__(self) -> int:
        return len(self.record)

    def reads_as_zeros(self) -> NDArray[np.bool_]:
        """Of every run: a hole, or unwritten."""
        holes: NDArray[np.bool_] = self.run_offset == HOLE
        return holes if self.run_unwritten is None else holes | self.run_unwritten

    def zero_bytes(self) -> Int64s:
        """Of every content, how much of it lies in runs that read as zeros."""
        zero = self.reads_as_zeros()
        total = np.bincount(self.run_owner()[zero], weights=self.run_length[zero], minlength=len(self))
        return total.astype(np.int64)

    def covered_bytes(self) -> Int64s:
        """Of every content, how much of it its runs hold, holes among them."""
        end = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(self.run_length)))
        return end[self.first_run[1:]] - end[self.first_run[:-1]]

    def sharing(self) -> NDArray[np.bool_]:
        """Contents that lie, in part at least, where another one begins before them."""
        backed = np.flatnonzero(self.run_offset != HOLE)
        order = backed[np.argsort(self.run_offset[backed], kind="stable")]
        shared = np.zeros(len(self), dtype=np.bool_)
        if len(order) > 1:
            reach = np.maximum.accumulate(self.run_offset[order] + self.run_length[order])
            shared[self.run_owner()[order[1:][self.run_offset[order[1:]] < reach[:-1]]]] = True
        return shared

    def run_owner(self) -> Int64s:
        """For every run, the row of the content it belongs to."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.first_run))

    def run_place(self) -> Int64s:
        """For every run, how many bytes of its content lie before it."""
        end = np.cumsum(self.run_length)
        before = np.concatenate((np.zeros(1, dtype=np.int64), end))
        return end - self.run_length - np.repeat(before[self.first_run[:-1]], np.diff(self.first_run))


@dataclass(frozen=True, slots=True)
class Entries:
    """Every name on the volume, one row each; hard links share a row of :class:`Contents`."""

    path: list[str]
    """Absolute, ``/``-separated, unique; ``/`` is the root directory."""
    kind: NDArray[np.uint8]
    content: Int64s
    """Row in :class:`Contents`; -1 where there is none."""
    record: Int64s
    modified_ns: Int64s
    """Unix nanoseconds, UTC (FAT: the local time it has, taken as UTC), or ``units.NO_TIME``."""
    attributes: NDArray[np.uint32]
    """FAT, exFAT, NTFS: the DOS attribute bits. ext, ISO 9660 with Rock Ridge: the mode, type and permission bits."""

    def __len__(self) -> int:
        return len(self.path)


@dataclass(frozen=True, slots=True)
class Scan:
    entries: Entries
    contents: Contents


class Content(Protocol):
    """One stream of bytes, opened for reading by position."""

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """The bytes of the range, cut at the end of the content; empty beyond it. Decompressed where needed.

        Raises :class:`~sqlimage.errors.InconsistentVolume` where the volume contradicts itself.
        """
        ...


class FileSystem(Protocol):
    """An opened, untrusted volume. Constructing one reads and validates the boot sector or superblock only.

    Any method MAY raise :class:`~sqlimage.errors.InconsistentVolume`; none may loop, allocate or read more than the
    volume can justify, whatever it holds.
    """

    @property
    def facts(self) -> VolumeFacts: ...

    def allocated(self) -> Runs:
        """Bytes that matter: allocated clusters and everything outside the cluster heap (boot sectors, FATs,
        reserved areas, backup boot sector), within ``0 .. facts.size_bytes``, aligned to ``alignment_bytes``."""
        ...

    def scan(self) -> Scan:
        """Every name and every content. Runs MUST lie inside the volume; whether they overlap or lie in free
        clusters is the caller's to check."""
        ...

    def open(self, record: int, stream: str = "") -> Content:
        """The content of a record, without scanning the volume.

        Raises :class:`~sqlimage.errors.NotFoundError` where the record or the stream does not exist.
        """
        ...


class Recognised(Protocol):
    """A volume whose kind is known but whose files are not read. The same rules hold as for a :class:`FileSystem`."""

    @property
    def facts(self) -> VolumeFacts: ...

    @property
    def reason(self) -> str:
        """Why it has no files here, as ``the files of XFS are not read`` or ``LUKS2: its content is encrypted``."""
        ...

    def allocated(self) -> Runs | None:
        """As :meth:`FileSystem.allocated`, where it can be told safely; None: all of the volume counts."""
        ...

    def left_out(self) -> Runs:
        """Bytes of the volume whose content is not worth keeping, as the pages of a swap area."""
        ...


def read_all(content: Content, block_bytes: int = 1 << 20) -> Iterator[bytes]:
    """A content's bytes in order, in blocks."""
    for offset in range(0, content.size_bytes, block_bytes):
        yield content.read(offset, min(block_bytes, content.size_bytes - offset))
