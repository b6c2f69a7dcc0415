"""MFT records with new run lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import pack_into, unpack_from

import numpy as np

from sqlimage.extent import Int64s
from sqlimage.filesystem.content import ContentRuns
from sqlimage.filesystem.ntfs import layout
from sqlimage.filesystem.ntfs.reader import RecordReader
from sqlimage.filesystem.ntfs.record import damaged, fixed_up
from sqlimage.filesystem.ntfs.relocate_fixups import differences_in
from sqlimage.filesystem.ntfs.relocate_table import Moved, parts_clusters
from sqlimage.filesystem.ntfs.runlist import encode_many
from sqlimage.filesystem.ntfs.tables import Bools, Parts
from sqlimage.fixup import Fixup

_SLAB_BYTES = 4 << 20
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class RunLists:
    """The mapping pairs of the parts that change, by their places in the MFT."""

    part: Int64s
    place: Int64s
    pairs: bytes
    start: Int64s
    """Of each list in ``pairs``, and where the last one ends."""
    highest_vcn: Int64s
    growth: Int64s
    """Bytes by which each attribute becomes longer."""

    @classmethod
    def of(cls, moved: Moved, parts: Parts) -> RunLists:
        """The lists of the parts that ``moved`` changes."""
        part = np.flatnonzero(moved.changed)
        part = part[np.argsort(parts.place[part], kind="stable")]
        table = moved.table
        nth = np.full(len(parts) + 1, -1, dtype=np.int64)
        nth[part] = np.arange(len(part))
        list_of = nth[table.part]
        runs = np.flatnonzero(list_of >= 0)
        runs = runs[np.argsort(list_of[runs], kind="stable")]
        count = np.bincount(list_of[runs], minlength=len(part))
        pairs, start = encode_many(count, table.lcn[runs], table.length[runs])
        highest = parts.lowest_vcn[part] + parts_clusters(table, len(parts))[part] - 1
        length = -(-(parts.pairs_at[part] + np.diff(start)) // _ALIGNMENT) * _ALIGNMENT
        return cls(part, parts.place[part], pairs.tobytes(), start, highest, length - parts.length[part])

    def too_long(self, parts: Parts, bytes_per_record: int) -> Int64s:
        """The parts that grow in records that have no room for that."""
        record, which = np.unique(self.place // bytes_per_record, return_inverse=True)
        growth = np.zeros(len(record), dtype=np.int64)
        np.add.at(growth, which, self.growth)
        over: Bools = (growth[which] > parts.room[self.part]) & (self.growth > 0)
        return self.part[over]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a stream, in bytes."""

    allocated: int
    file_size: int
    valid: int


class RecordWriter:
    """New records from old ones, as fix-ups at their new places."""

    def __init__(
        self, reader: RecordReader, lists: RunLists, sizes: dict[int, Sizes], labels: list[str], mft: ContentRuns
    ) -> None:
        """``sizes`` are new sizes by part, ``labels`` the streams' names by list, ``mft`` where $MFT will lie."""
        self._reader = reader
        self._lists = lists
        self._sizes = sizes
        self._labels = labels
        self._mft = mft
        self._bytes = reader.geometry.bytes_per_record

    def fixups(self, first_records: list[bytes]) -> Iterator[Fixup]:
        """In the order of the records. ``first_records``, given as they are, become what they will be."""
        lists, size = self._lists, self._bytes
        number = lists.place // size
        begin = np.flatnonzero(np.diff(number, prepend=-1))
        end = np.append(begin, len(number))[1:]
        block = _Blocks(self._reader)
        for record, low, high in zip(number[begin].tolist(), begin.tolist(), end.tolist(), strict=True):
            old = block.read(record)
            new = self._rewritten(record, old, low, high)
            if record < len(first_records):
                first_records[record] = new
            names = ", ".join(self._labels[low:high])
            reason = f"MFT record {record}: run list{'s' if high - low > 1 else ''} of {names}"
            yield from differences_in(old, new, record * size, self._mft, reason)

    def _rewritten(self, number: int, block: bytes, low: int, high: int) -> bytes:
        """The record with the lists from ``low`` to ``high``, protected with the sequence number it has."""
        fixed = fixed_up(block, layout.SIGNATURE_FILE)
        if fixed is None:
            raise damaged(number, "its update sequence array does not fit its sectors")
        lists, data = self._lists, bytearray(fixed)
        for i in range(high - 1, low - 1, -1):
            self._put_list(number, data, int(lists.place[i]) - number * self._bytes, i)
        growth = int(lists.growth[low:high].sum())
        if growth:
            (free,) = unpack_from("<I", data, layout.FIRST_FREE_BYTE_AT)
            pack_into("<I", data, layout.FIRST_FREE_BYTE_AT, free + growth)
            data[free + growth :] = bytes(len(block) - free - growth)
        return protected(data)

    def _put_list(self, number: int, data: bytearray, at: int, i: int) -> None:
        """Put list ``i`` into the attribute at ``at``, which may move everything behind it."""
        lists = self._lists
        (length,) = unpack_from("<I", data, at + layout.RECORD_LENGTH_AT)
        (pairs_at,) = unpack_from("<H", data, at + layout.MAPPING_PAIRS_OFFSET_AT)
        units, name_at = unpack_from("<BH", data, at + layout.NAME_LENGTH_AT)
        if units and name_at + 2 * units > pairs_at:
            raise damaged(number, "the name of an attribute lies behind its mapping pairs")
        pairs = lists.pairs[int(lists.start[i]) : int(lists.start[i + 1])]
        new_length = length + int(lists.growth[i])
        attribute = data[at : at + pairs_at] + pairs.ljust(new_length - pairs_at, b"\0")
        pack_into("<I", attribute, layout.RECORD_LENGTH_AT, new_length)
        pack_into("<q", attribute, layout.HIGHEST_VCN_AT, int(lists.highest_vcn[i]))
        sizes = self._sizes.get(int(lists.part[i]))
        if sizes:
            new = sizes.allocated, sizes.file_size, sizes.valid
            pack_into("<qqq", attribute, layout.ALLOCATED_LENGTH_AT, *new)
        data[at : at + length] = attribute


class _Blocks:
    """Records as they lie, read in slabs."""

    def __init__(self, reader: RecordReader) -> None:
        self._reader = reader
        self._size = reader.geometry.bytes_per_record
        self._first, self._count = 0, 0
        self._slab = b""

    def read(self, number: int) -> bytes:
        if not self._first <= number < self._first + self._count:
            self._first, self._count = number, min(_SLAB_BYTES // self._size, self._reader.count - number)
            slab = bytearray(self._count * self._size)
            self._reader.mft.runs.read_into(self._reader.device, number * self._size, memoryview(slab))
            self._slab = bytes(slab)
        at = (number - self._first) * self._size
        return self._slab[at : at + self._size]


def protected(data: bytearray) -> bytes:
    """A multi-sector block whose update sequence array takes the last bytes of each stride again."""
    array_at, words = unpack_from("<HH", data, layout.UPDATE_SEQUENCE_ARRAY_OFFSET_AT)
    number = data[array_at : array_at + 2]
    for i in range(1, words):
        end = i * layout.SEQUENCE_NUMBER_STRIDE
        data[array_at + 2 * i : array_at + 2 * i + 2] = data[end - 2 : end]
        data[end - 2 : end] = number
    return bytes(data)
