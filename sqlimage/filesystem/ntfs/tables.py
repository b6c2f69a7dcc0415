"""What a scan of the MFT collects, as columns: streams and names by extent, and what is known of each record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqlimage.extent import Int64s
from sqlimage.filesystem.contract import EntryKind
from sqlimage.filesystem.ntfs import layout
from sqlimage.filesystem.ntfs.record import decode_name
from sqlimage.units import NO_TIME

Bools = NDArray[np.bool_]
UNNAMED, DIRECTORY_INDEX = 0, 1
"""Numbers that every :class:`NameTable` gives to no name and to ``$I30``."""
_LINK_TAGS = (
    layout.IO_REPARSE_TAG_MOUNT_POINT,
    layout.IO_REPARSE_TAG_SYMLINK,
    layout.IO_REPARSE_TAG_LX_SYMLINK,
)
_SPECIAL_TAGS = (
    layout.IO_REPARSE_TAG_AF_UNIX,
    layout.IO_REPARSE_TAG_LX_FIFO,
    layout.IO_REPARSE_TAG_LX_CHR,
    layout.IO_REPARSE_TAG_LX_BLK,
)


def special_kind(tag: int) -> int:
    """The :class:`EntryKind` a reparse tag makes of its file; 0 where it stays what it is."""
    if tag in _LINK_TAGS:
        return EntryKind.SYMLINK
    return EntryKind.SPECIAL if tag in _SPECIAL_TAGS else 0


class NameTable:
    """Attribute names as small numbers, equal for names that read the same."""

    def __init__(self) -> None:
        self.text = ["", layout.DIRECTORY_INDEX]
        self._number = {text: number for number, text in enumerate(self.text)}

    def number(self, units: bytes) -> int:
        text = decode_name(units)
        number = self._number.setdefault(text, len(self.text))
        if number == len(self.text):
            self.text.append(text)
        return number


@dataclass(frozen=True, slots=True)
class Streams:
    """Attributes that are contents, or own clusters: a row for each extent, before they are put together."""

    holder: Int64s
    """The record that holds the attribute; ``owner`` is the file's base record."""
    owner: Int64s
    type_code: NDArray[np.uint32]
    name: Int64s
    """In the :class:`NameTable`."""
    instance: NDArray[np.uint16]
    flags: NDArray[np.uint16]
    resident: Bools
    lowest_vcn: Int64s
    next_vcn: Int64s
    """HighestVcn + 1."""
    size_bytes: Int64s
    valid_bytes: Int64s
    compression_unit: NDArray[np.uint8]
    place: Int64s
    """Bytes from the start of the MFT to the attribute; its length, and where in it the mapping pairs begin."""
    length: Int64s
    pairs_at: Int64s
    run_count: Int64s
    run_lcn: Int64s
    run_clusters: Int64s
    digest: list[bytes]
    """Of each resident row, in order."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The nonresident attributes that own clusters, a row for each extent, in the order of their runs in
    :class:`~sqlimage.filesystem.contract.Contents`: what it takes to write their run lists anew."""

    content: Int64s
    """The row in the contents."""
    lowest_vcn: Int64s
    next_vcn: Int64s
    place: Int64s
    """As in :class:`Streams`."""
    length: Int64s
    pairs_at: Int64s
    room: Int64s
    """Bytes that the record has left behind FirstFreeByte."""
    run_count: Int64s

    def __len__(self) -> int:
        return len(self.content)


@dataclass(frozen=True, slots=True)
class Names:
    """$FILE_NAME attributes, the 8.3 aliases of others left out."""

    holder: Int64s
    owner: Int64s
    instance: NDArray[np.uint16]
    parent: Int64s
    parent_sequence: Int64s
    text: list[str]


@dataclass(frozen=True, slots=True)
class Attributes:
    """Every attribute of the records that an $ATTRIBUTE_LIST may name."""

    holder: Int64s
    instance: NDArray[np.uint16]
    type_code: NDArray[np.uint32]
    lowest_vcn: Int64s


@dataclass(frozen=True, slots=True)
class Records:
    """What is known of each record of the MFT, by its number."""

    in_use: Bools
    sequence: NDArray[np.uint16]
    base: NDArray[np.uint64]
    """MFT_SEGMENT_REFERENCE of an extension record's base record; 0 in base records."""
    is_directory: Bools
    room: NDArray[np.uint32]
    """Bytes behind FirstFreeByte that attributes could take."""
    special: NDArray[np.uint8]
    """The :class:`EntryKind` that a reparse point or Interix makes of the file, or 0."""
    modified_ns: Int64s
    attributes: NDArray[np.uint32]

    @classmethod
    def empty(cls, count: int) -> Records:
        return cls(
            np.zeros(count, dtype=np.bool_),
            np.zeros(count, dtype=np.uint16),
            np.zeros(count, dtype=np.uint64),
            np.zeros(count, dtype=np.bool_),
            np.zeros(count, dtype=np.uint32),
            np.zeros(count, dtype=np.uint8),
            np.full(count, NO_TIME, dtype=np.int64),
            np.zeros(count, dtype=np.uint32),
        )
