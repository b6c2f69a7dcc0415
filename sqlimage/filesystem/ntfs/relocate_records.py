"""MFT records with new run lists."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sqlimage.extent import Int64s
from sqlimage.filesystem.content import ContentRuns
from sqlimage.filesystem.ntfs.reader import RecordReader
from sqlimage.filesystem.ntfs.relocate_fixups import RecordDifferences
from sqlimage.filesystem.ntfs.relocate_slab import RecordSlab, RunLists, Sizes
from sqlimage.filesystem.ntfs.relocate_table import Moved, parts_clusters
from sqlimage.filesystem.ntfs.runlist import encode_many
from sqlimage.filesystem.ntfs.tables import Bools, Parts
from sqlimage.fixup import Fixup

_SLAB_BYTES = 1 << 20
_ALIGNMENT = 8


def lists_of(moved: Moved, parts: Parts) -> RunLists:
    """The run lists of the parts that ``moved`` changes."""
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
    place, length, pairs_at = parts.place[part], parts.length[part], parts.pairs_at[part]
    new_length = -(-(pairs_at + np.diff(start)) // _ALIGNMENT) * _ALIGNMENT
    highest = parts.lowest_vcn[part] + parts_clusters(table, len(parts))[part] - 1
    return RunLists(part, place, length, pairs_at, new_length - length, highest, pairs, start)


def too_long(lists: RunLists, parts: Parts, bytes_per_record: int) -> Int64s:
    """The parts that grow in records that have no room for that."""
    record, which = np.unique(lists.place // bytes_per_record, return_inverse=True)
    growth = np.zeros(len(record), dtype=np.int64)
    np.add.at(growth, which, lists.growth)
    over: Bools = (growth[which] > parts.room[lists.part]) & (lists.growth > 0)
    return lists.part[over]


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
        self._bytes = reader.geometry.bytes_per_record
        self._number = lists.place // self._bytes
        self._differences = RecordDifferences(mft, self._bytes)

    def fixups(self, first_records: list[bytes]) -> Iterator[Fixup]:
        """In the order of the records. ``first_records``, given as they are, become what they will be."""
        low = 0
        while low < len(self._lists):
            first = int(self._number[low])
            high = int(np.searchsorted(self._number, first + _SLAB_BYTES // self._bytes))
            old = self._read(first, int(self._number[high - 1]) + 1 - first)
            new = np.frombuffer(old, dtype=np.uint8).copy()
            RecordSlab(new, first, self._bytes, self._lists.between(low, high), self._sizes)
            for number in range(first, min(len(first_records), first + len(old) // self._bytes)):
                at = (number - first) * self._bytes
                first_records[number] = new[at : at + self._bytes].tobytes()
            yield from self._differences.fixups(old, new.tobytes(), first, self._reasons(low, high))
            low = high

    def _read(self, first: int, count: int) -> bytes:
        """Records as they lie."""
        block = bytearray(count * self._bytes)
        self._reader.mft.runs.read_into(self._reader.device, first * self._bytes, memoryview(block))
        return bytes(block)

    def _reasons(self, low: int, high: int) -> dict[int, str]:
        """By record."""
        number = self._number[low:high]
        begin = np.flatnonzero(np.diff(number, prepend=-1))
        rows = [*(low + begin).tolist(), high]
        reasons = {}
        for i, record in enumerate(number[begin].tolist()):
            labels = self._labels[rows[i] : rows[i + 1]]
            reasons[record] = f"MFT record {record}: run list{'s' if len(labels) > 1 else ''} of {', '.join(labels)}"
        return reasons
