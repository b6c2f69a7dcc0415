"""File directory entry sets, taken from many directories at once.

Microsoft exFAT file system specification, "Directory Structure" and "Directory Entry Definitions". A set that its
checksum covers but that breaks a rule is refused like one that is damaged: nothing says which half of it to believe.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqlimage.errors import InconsistentVolume
from sqlimage.extent import Int64s
from sqlimage.filesystem.exfat import layout
from sqlimage.filesystem.exfat.boot import Geometry
from sqlimage.filesystem.exfat.checksum import rotated_sums
from sqlimage.filesystem.exfat.names import decode_name
from sqlimage.filesystem.fat.directory import times
from sqlimage.units import NO_TIME

Bools = NDArray[np.bool_]
Structured = NDArray[np.void]
UpCase = NDArray[np.uint16]

_ROOT_ONLY = (layout.ALLOCATION_BITMAP, layout.UP_CASE_TABLE, layout.VOLUME_LABEL)


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """The files and directories that some directories name, one row each, in the order they lie in."""

    directory: Int64s
    """Which of the directories, by number."""
    offset: Int64s
    """Of the File directory entry, bytes from the start of the volume."""
    name: list[str]
    attributes: NDArray[np.uint16]
    first_cluster: Int64s
    """0 where the content has no cluster."""
    size_bytes: Int64s
    valid_bytes: Int64s
    contiguous: Bools
    """NoFatChain: its clusters follow each other, and the FAT is not asked."""
    modified_ns: Int64s
    encrypted: Bools

    @property
    def is_directory(self) -> Bools:
        wanted: Bools = (self.attributes & layout.ATTRIBUTE_DIRECTORY) != 0
        return wanted


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Directory entries as they were read, none of them behind the end of its directory."""

    raw: bytes
    directory: Int64s
    """For each entry, in which directory it lies; 0 is the root."""
    offset: Int64s
    """For each entry, bytes from the start of the volume."""

    def view(self, dtype: np.dtype[np.void]) -> Structured:
        return np.frombuffer(self.raw, dtype=dtype)


def list_entries(batch: Batch, geometry: Geometry, up_case: UpCase | None, *, more: bool) -> tuple[Listing, int]:
    """What the entries name, and how many of them were used up.

    With ``more`` the last directory goes on behind the batch, and a set that may do so too is left. Without
    ``up_case`` the hashes of names are not checked. Raises :class:`InconsistentVolume`.
    """
    kind = batch.view(layout.ENTRY)["EntryType"].copy()
    secondary = kind >= layout.IN_USE | layout.SECONDARY
    begins = np.ones(len(kind), dtype=np.bool_)
    begins[1:] = batch.directory[1:] != batch.directory[:-1]
    _refuse(secondary & begins, batch.offset, "Directory Entry", "a secondary entry begins a directory")
    head = np.flatnonzero(~secondary)
    follow = np.diff(np.append(head, len(kind))) - 1
    consumed = len(kind)
    if more and len(head) and kind[head[-1]] >= layout.IN_USE and follow[-1] <= layout.SECONDARY_COUNT_MAX:
        consumed = int(head[-1])
        head, follow = head[:-1], follow[:-1]
    _check_heads(batch, kind, head, follow)
    is_file = kind[head] == layout.FILE
    return _files(batch, kind, head[is_file], follow[is_file], geometry, up_case), consumed


def _check_heads(batch: Batch, kind: NDArray[np.uint8], head: Int64s, follow: Int64s) -> None:
    """Primary entries are of known kinds and stand where they may; benign ones of any kind are passed over."""
    first, offset = kind[head], batch.offset[head]
    in_use = first >= layout.IN_USE
    benign = in_use & ((first & layout.BENIGN) != 0)
    root_only = np.isin(first, _ROOT_ONLY)
    unknown = in_use & ~benign & ~root_only & (first != layout.FILE)
    _refuse(unknown, offset, "Directory Entry", "a critical primary entry of a type that is not known")
    _refuse(root_only & (batch.directory[head] != 0), offset, "Directory Entry", "only the root may hold this type")
    has_own = benign | (first == layout.FILE)
    _refuse(~has_own & (follow > 0), offset, "Directory Entry", "secondary entries without a primary one follow")


def _files(
    batch: Batch, kind: NDArray[np.uint8], head: Int64s, follow: Int64s, geometry: Geometry, up_case: UpCase | None
) -> Listing:
    """The sets of File directory entries at ``head``, each with so many secondary entries behind it."""
    file, offset = batch.view(layout.FILE_ENTRY)[head], batch.offset[head]
    problem = "SecondaryCount is another number than that of the secondary entries that follow"
    _refuse(file["SecondaryCount"] != follow, offset, "File Directory Entry", problem)
    _refuse(follow < 2, offset, "File Directory Entry", "it has no stream or no name")
    size = layout.ENTRY_BYTES
    flat = np.frombuffer(batch.raw, dtype=np.uint8)
    found = rotated_sums(flat, head * size, (follow + 1) * size, layout.SET_CHECKSUM_AT)
    _refuse(file["SetChecksum"] != found, offset, "File Directory Entry", "SetChecksum is not that of its set")
    _refuse(kind[head + 1] != layout.STREAM_EXTENSION, offset, "File Directory Entry", "no stream extension follows")
    stream = batch.view(layout.STREAM_ENTRY)[head + 1]
    name = _names(batch, kind, head, follow, stream, up_case)
    attributes = file["FileAttributes"].copy()
    is_directory = (attributes & layout.ATTRIBUTE_DIRECTORY) != 0
    _check_streams(stream, is_directory, offset, geometry)
    size_bytes = stream["DataLength"].astype(np.int64)
    valid_bytes = np.where(is_directory, size_bytes, stream["ValidDataLength"].astype(np.int64))
    encrypted = ~is_directory & ((file["Reserved1"] & layout.ENCRYPTED) != 0)
    header_bytes = stream["EncryptionHeaders"].astype(np.int64) * layout.ENCRYPTION_HEADER_BYTES
    valid_bytes = np.maximum(valid_bytes, np.where(encrypted, np.minimum(header_bytes, size_bytes), 0))
    return Listing(
        directory=batch.directory[head],
        offset=offset,
        name=name,
        attributes=attributes,
        first_cluster=stream["FirstCluster"].astype(np.int64),
        size_bytes=size_bytes,
        valid_bytes=valid_bytes,
        contiguous=(stream["GeneralSecondaryFlags"] & layout.NO_FAT_CHAIN) != 0,
        modified_ns=_modified(file),
        encrypted=encrypted,
    )


def _names(
    batch: Batch,
    kind: NDArray[np.uint8],
    head: Int64s,
    follow: Int64s,
    stream: Structured,
    up_case: UpCase | None,
) -> list[str]:
    """The name of each set. NameLength has no room for 256, and is 0 then."""
    offset = batch.offset[head]
    length = stream["NameLength"].astype(np.int64)
    length[length == 0] = layout.NAME_UNITS_MAX
    pieces = -(-length // layout.UNITS_PER_NAME_ENTRY)
    problem = "NameLength needs more File Name directory entries than there are"
    _refuse(pieces > follow - 1, offset, "Stream Extension Directory Entry", problem)
    where = _ranges(head + 2, pieces)
    other = kind[where] != layout.FILE_NAME
    _refuse(other, batch.offset[where], "Directory Entry", "it stands where a piece of a name is expected")
    rest = _ranges(head + 2 + pieces, follow - 1 - pieces)
    critical = (kind[rest] & layout.BENIGN) == 0
    _refuse(critical, batch.offset[rest], "Directory Entry", "a critical secondary entry that its set cannot have")
    units = np.ascontiguousarray(batch.view(layout.NAME_ENTRY)["FileName"][where]).reshape(-1)
    begin = (np.cumsum(pieces) - pieces) * layout.UNITS_PER_NAME_ENTRY * 2
    if up_case is not None:
        upper = up_case[units].astype("<u2").view(np.uint8)
        wrong = rotated_sums(upper, begin, length * 2) != stream["NameHash"]
        _refuse(wrong, offset, "Stream Extension Directory Entry", "NameHash is not that of its name")
    raw = units.tobytes()
    return [decode_name(raw[low:high]) for low, high in zip(begin.tolist(), (begin + length * 2).tolist(), strict=True)]


def _check_streams(stream: Structured, is_directory: Bools, offset: Int64s, geometry: Geometry) -> None:
    """Contents lie in the cluster heap, whether their clusters follow each other or not."""
    structure = "Stream Extension Directory Entry"
    first, flags = stream["FirstCluster"].astype(np.int64), stream["GeneralSecondaryFlags"]
    size, valid = stream["DataLength"], stream["ValidDataLength"]
    outside = (first != 0) & ((first < layout.FIRST_CLUSTER) | (first >= geometry.end_cluster))
    _refuse(outside, offset, structure, f"FirstCluster is not 0 and not in 2 to {geometry.end_cluster - 1}")
    _refuse((first == 0) & (size != 0), offset, structure, "DataLength is not 0, but there is no FirstCluster")
    impossible = (flags & layout.ALLOCATION_POSSIBLE) == 0
    _refuse(impossible & (first != 0), offset, structure, "AllocationPossible is 0, but there is a FirstCluster")
    _refuse(size > np.uint64(geometry.heap_bytes), offset, structure, "DataLength exceeds the cluster heap")
    problem = f"DataLength of a directory exceeds {layout.DIRECTORY_BYTES_MAX} bytes"
    _refuse(is_directory & (size > np.uint64(layout.DIRECTORY_BYTES_MAX)), offset, structure, problem)
    _refuse(~is_directory & (valid > size), offset, structure, "ValidDataLength exceeds DataLength")
    clusters = -(-size.astype(np.int64) // geometry.bytes_per_cluster)
    beyond = ((flags & layout.NO_FAT_CHAIN) != 0) & (clusters > 0) & (first + clusters > geometry.end_cluster)
    _refuse(beyond, offset, structure, "its clusters, which follow each other, reach beyond the cluster heap")


def _modified(file: Structured) -> Int64s:
    """LastModifiedTimestamp as Unix nanoseconds. Without a valid UTC offset it is taken as UTC."""
    local = times(file["LastModifiedDate"], file["LastModifiedTime"])
    increment = file["LastModified10msIncrement"].astype(np.int64)
    zone = file["LastModifiedUtcOffset"]
    quarters = (zone << 1).view(np.int8).astype(np.int64) // 2  # the lower seven bits, signed
    quarters[(zone & layout.UTC_OFFSET_VALID) == 0] = 0
    possible = (local != NO_TIME) & (increment <= layout.INCREMENT_10MS_MAX)
    return np.where(possible, local + increment * 10_000_000 - quarters * 900_000_000_000, NO_TIME)


def _ranges(start: Int64s, count: Int64s) -> Int64s:
    """``start[0]``, ``start[0] + 1`` ... ``count[0]`` of them, then those of ``start[1]``, and so on."""
    end = np.cumsum(count)
    return np.repeat(start - (end - count), count) + np.arange(int(end[-1]) if len(end) else 0)


def _refuse(wrong: Bools, offset: Int64s, structure: str, problem: str) -> None:
    """Raise for the first row that is wrong."""
    if wrong.any():
        raise InconsistentVolume(structure, problem, offset_bytes=int(offset[int(wrong.argmax())]))
