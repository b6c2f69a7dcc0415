"""Some thousand consecutive file records at once, on arrays: their run lists are put into them.

What a scan has found of the records holds: attributes begin and end where it says, at multiples of eight bytes, and
those that grow have room.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack_into, unpack_from

import numpy as np
from numpy.typing import NDArray

from sqlimage.extent import Int64s
from sqlimage.filesystem.ntfs import layout
from sqlimage.filesystem.ntfs.record import damaged
from sqlimage.filesystem.ntfs.sequences import UpdateSequences
from sqlimage.filesystem.ntfs.tables import Bools


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a stream, in bytes."""

    allocated: int
    file_size: int
    valid: int


@dataclass(frozen=True, slots=True)
class RunLists:
    """The mapping pairs of the parts that change, by their places in the MFT."""

    part: Int64s
    place: Int64s
    """Of the attribute, in bytes from the start of the MFT; its length, and where in it the pairs begin."""
    length: Int64s
    pairs_at: Int64s
    growth: Int64s
    """Bytes by which the attribute becomes longer."""
    highest_vcn: Int64s
    pairs: NDArray[np.uint8]
    start: Int64s
    """Of each list in ``pairs``, and where the last one ends."""

    def __len__(self) -> int:
        return len(self.part)

    def between(self, low: int, high: int) -> RunLists:
        """The lists from one row up to another."""
        rows, start = slice(low, high), self.start[low : high + 1]
        return RunLists(
            self.part[rows],
            self.place[rows],
            self.length[rows],
            self.pairs_at[rows],
            self.growth[rows],
            self.highest_vcn[rows],
            self.pairs[int(start[0]) : int(start[-1])],
            start - start[0],
        )


class RecordSlab:
    """Records from ``first`` on. ``buffer`` holds them as they lie on the medium and, once this has been constructed,
    as they are to lie there: with ``lists``, protected with the sequence numbers they had.

    ``sizes`` are new sizes by part. Records without a list are not looked at.
    """

    def __init__(
        self, buffer: NDArray[np.uint8], first: int, bytes_per_record: int, lists: RunLists, sizes: dict[int, Sizes]
    ) -> None:
        self._size = bytes_per_record
        self._first = first
        self._lists = lists
        self._u1 = buffer
        self._u2 = buffer.view("<u2")
        self._u4 = buffer.view("<u4")
        self._s8 = buffer.view("<i8")
        self._at = lists.place - first * bytes_per_record
        record = self._at // bytes_per_record
        self._begin = np.flatnonzero(np.diff(record, prepend=-1))
        self._count = np.diff(np.append(self._begin, len(lists)))
        self._start = record[self._begin] * bytes_per_record
        sequences = self._unprotected()
        self._refuse_names_behind()
        self._make_room()
        self._put_lists()
        self._put_sizes(sizes)
        self._protect(sequences)

    def _refuse(self, wrong: Bools, at: Int64s, problem: str) -> None:
        if wrong.any():
            raise damaged(self._first + int(at[np.argmax(wrong)]) // self._size, problem)

    def _unprotected(self) -> UpdateSequences:
        sequences = UpdateSequences(self._u2, self._start, self._size)
        wrong = sequences.ill() | (self._u4[self._start >> 2] != int.from_bytes(layout.SIGNATURE_FILE, "little"))
        self._refuse(wrong, self._start, "its update sequence array does not fit its sectors")
        number = sequences.numbers()
        for end, kept in sequences.sectors():
            self._refuse(self._u2[end] != number, self._start, "its update sequence array does not fit its sectors")
            self._u2[end] = self._u2[kept]
        return sequences

    def _protect(self, sequences: UpdateSequences) -> None:
        number = sequences.numbers()
        for end, kept in sequences.sectors():
            self._u2[kept] = self._u2[end]
            self._u2[end] = number

    def _refuse_names_behind(self) -> None:
        at = self._at
        units = self._u1[at + layout.NAME_LENGTH_AT].astype(np.int64)
        name_at = self._u2[(at + layout.NAME_OFFSET_AT) >> 1].astype(np.int64)
        wrong = (units > 0) & (name_at + 2 * units > self._lists.pairs_at)
        self._refuse(wrong, at, "the name of an attribute lies behind its mapping pairs")

    def _make_room(self) -> None:
        """Move what lies behind attributes that become longer or shorter, record by record."""
        growth = self._lists.growth
        changes = np.logical_or.reduceat(growth != 0, self._begin)
        columns = (self._start[changes], self._begin[changes], (self._begin + self._count)[changes])
        ends, changed_by = (self._at % self._size + self._lists.length).tolist(), growth.tolist()
        buffer = self._u1.data
        for start, low, high in zip(*(column.tolist() for column in columns), strict=True):
            record = buffer[start : start + self._size]
            record[:] = _with_room(record, ends[low:high], changed_by[low:high])
        before = np.cumsum(growth) - growth
        self._at = self._at + before - np.repeat(before[self._begin], self._count)

    def _put_lists(self) -> None:
        lists, at = self._lists, self._at
        length = lists.length + lists.growth
        self._u1[_places(at + lists.pairs_at, length - lists.pairs_at)] = 0
        self._u1[_places(at + lists.pairs_at, np.diff(lists.start))] = lists.pairs
        self._u4[(at + layout.RECORD_LENGTH_AT) >> 2] = length
        self._s8[(at + layout.HIGHEST_VCN_AT) >> 3] = lists.highest_vcn

    def _put_sizes(self, sizes: dict[int, Sizes]) -> None:
        for i in np.flatnonzero(np.isin(self._lists.part, list(sizes))).tolist():
            new = sizes[int(self._lists.part[i])]
            at = (int(self._at[i]) + layout.ALLOCATED_LENGTH_AT) >> 3
            self._s8[at : at + 3] = new.allocated, new.file_size, new.valid


def _with_room(record: memoryview, ends: list[int], growth: list[int]) -> bytearray:
    """A record whose attributes, which end at ``ends``, are longer or shorter at their ends; zeros behind the last."""
    data = bytearray(record)
    for end, change in zip(reversed(ends), reversed(growth), strict=True):
        data[end + min(change, 0) : end] = bytes(max(change, 0))
    total = sum(growth)
    if total:
        (free,) = unpack_from("<I", data, layout.FIRST_FREE_BYTE_AT)
        pack_into("<I", data, layout.FIRST_FREE_BYTE_AT, free + total)
        data[free + total :] = bytes(len(record) - free - total)
    return data


def _places(start: Int64s, count: Int64s) -> Int64s:
    """Every place of ranges, one behind the other."""
    end = np.cumsum(count)
    return np.repeat(start - (end - count), count) + np.arange(int(end[-1]))
