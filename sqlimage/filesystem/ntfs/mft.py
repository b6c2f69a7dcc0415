"""The whole MFT, scanned in slabs: every stream with its runs, every name, and which records belong together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sqlimage.extent import Int64s
from sqlimage.filesystem.contract import HOLE, ContentFlag, Contents
from sqlimage.filesystem.ntfs import layout
from sqlimage.filesystem.ntfs.reader import RecordReader, read_attribute_list
from sqlimage.filesystem.ntfs.record import ListEntry, damaged, parse_attribute_list, refers_to, stream_label
from sqlimage.filesystem.ntfs.slab import PADDING_BYTES, Slab
from sqlimage.filesystem.ntfs.stream import ClusterRuns
from sqlimage.filesystem.ntfs.tables import (
    DIRECTORY_INDEX,
    UNNAMED,
    Attributes,
    Bools,
    Names,
    NameTable,
    Parts,
    Records,
    Streams,
    special_kind,
)

_SLAB_BYTES = 4 << 20
_Table = TypeVar("_Table", Streams, Names, Attributes)


@dataclass(frozen=True, slots=True)
class Scanned:
    """The MFT, every attribute assigned to its file."""

    records: Records
    names: Names
    own_names: Int64s
    """The rows of ``names`` that their files own."""
    contents: Contents
    data_row: Int64s
    """The row in ``contents`` of each record's unnamed $DATA, or -1; ``index_row`` of its $I30 index."""
    index_row: Int64s
    user_streams: list[tuple[int, int, str]]
    """Row in ``contents``, record and name of each named $DATA."""
    parts: Parts
    strays: Int64s
    """Records with clusters that belong to no file: extension records that no attribute list names."""


def scan_mft(reader: RecordReader) -> Scanned:
    """Read all records of an opened MFT.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where any record in use is damaged.
    """
    records, table = Records.empty(reader.count), NameTable()
    streams, names, attributes = [], [], []
    lists: dict[int, bytes] = {}
    for slab in _slabs(reader, records, table):
        slab.take_standard_information()
        slab.take_special_files()
        streams.append(slab.streams())
        names.append(slab.names())
        attributes.append(slab.listable())
        lists |= slab.attribute_lists()
    return _assign(reader, records, table, _joined(streams), _joined(names), _joined(attributes), lists)


def _slabs(reader: RecordReader, records: Records, table: NameTable) -> Iterator[Slab]:
    size = reader.geometry.bytes_per_record
    per_slab = _SLAB_BYTES // size
    bitmap = reader.content(reader.system_stream(layout.MFT_RECORD, "$BITMAP"))
    buffer = np.zeros(min(per_slab, reader.count) * size + PADDING_BYTES, dtype=np.uint8)
    view = buffer.data
    for first in range(0, reader.count, per_slab):
        count = min(per_slab, reader.count - first)
        reader.mft.runs.read_into(reader.device, first * size, view[: count * size])
        used = np.zeros(count, dtype=np.bool_)
        bits = np.frombuffer(bitmap.read(first // 8, -(-count // 8)), dtype=np.uint8)
        told = np.unpackbits(bits, bitorder="little")[:count]
        used[: len(told)] = told
        yield Slab(buffer, first, count, used, records, table, reader.geometry)


def _joined(tables: list[_Table]) -> _Table:
    """Tables of the same columns, one after the other."""
    columns: list[Any] = []
    for field in fields(tables[0]):
        parts = [getattr(table, field.name) for table in tables]
        columns.append(list(chain(*parts)) if isinstance(parts[0], list) else np.concatenate(parts))
    return type(tables[0])(*columns)


def _assign(
    reader: RecordReader,
    records: Records,
    table: NameTable,
    streams: Streams,
    names: Names,
    attributes: Attributes,
    lists: dict[int, bytes],
) -> Scanned:
    listed = _listed(records, attributes, chain(lists.items(), _nonresident_lists(reader, streams)))
    belongs = _belongs(streams, listed)
    rows = _Rows(streams, belongs, reader.geometry.bytes_per_cluster)
    contents = rows.contents(table.text)
    _take_long_reparse_points(reader, records, rows, contents)
    data_row, index_row = np.full((2, reader.count), -1, dtype=np.int64)
    is_data = rows.type_code == layout.DATA
    main = np.flatnonzero(is_data & (rows.name == UNNAMED))
    data_row[contents.record[main]] = main
    index = np.flatnonzero(contents.flags & ContentFlag.INDEX)
    index_row[contents.record[index]] = index
    named = np.flatnonzero(is_data & (rows.name != UNNAMED)).tolist()
    user = [(row, int(contents.record[row]), table.text[rows.name[row]]) for row in named]
    own_names = np.flatnonzero(_belongs(names, listed))
    strays = streams.holder[~belongs & (streams.run_count > 0)]
    return Scanned(records, names, own_names, contents, data_row, index_row, user, rows.parts(records), strays)


def _nonresident_lists(reader: RecordReader, streams: Streams) -> Iterator[tuple[int, bytes]]:
    """The $ATTRIBUTE_LIST values that lie in clusters, with their records."""
    wanted = (streams.type_code == layout.ATTRIBUTE_LIST) & (streams.holder == streams.owner)
    if not wanted.any():
        return
    first_run = np.cumsum(streams.run_count) - streams.run_count
    for i in np.flatnonzero(wanted).tolist():
        record = int(streams.owner[i])
        runs = ClusterRuns([], [], [])
        for run in range(int(first_run[i]), int(first_run[i] + streams.run_count[i])):
            lcn, clusters = int(streams.run_lcn[run]), int(streams.run_clusters[run])
            runs.append(lcn, clusters, reader.geometry.bytes_per_cluster)
        size = int(streams.size_bytes[i])
        if streams.lowest_vcn[i] != 0 or not 0 <= size <= runs.end:
            raise damaged(record, f"its attribute list has {size} bytes in clusters of {runs.end}")
        yield record, read_attribute_list(reader.device, record, size, runs)


def _listed(records: Records, attributes: Attributes, lists: Iterable[tuple[int, bytes]]) -> set[tuple[int, int]]:
    """The attributes in extension records that their files own, as (record, instance).

    Each entry must name another attribute that is there, so lists cost no more than attributes, however many share
    their clusters.
    """
    columns = (attributes.holder, attributes.instance, attributes.type_code, attributes.lowest_vcn)
    unlisted = set(zip(*(column.tolist() for column in columns), strict=True))
    listed: set[tuple[int, int]] = set()
    with_list: set[int] = set()
    for base, value in lists:
        if base in with_list:
            raise damaged(base, "it has two attribute lists")
        with_list.add(base)
        for entry in parse_attribute_list(value, base):
            segment = entry.segment
            if segment != base:
                _check_extension(records, base, entry)
                listed.add((segment, entry.instance))
            key = segment, entry.instance, entry.type_code, entry.lowest_vcn
            if key not in unlisted:
                raise damaged(
                    base,
                    f"its attribute list names attribute {entry.type_code:#x} of record {segment} twice, or in vain",
                )
            unlisted.remove(key)
    return listed


def _check_extension(records: Records, base: int, entry: ListEntry) -> None:
    """An attribute list may name records in use that belong to its file."""
    segment = entry.segment
    exists = segment < len(records.in_use) and records.in_use[segment]
    if not exists or entry.sequence not in (0, int(records.sequence[segment])):
        raise damaged(base, f"its attribute list names record {segment}, which is not in use")
    if not refers_to(int(records.base[segment]), base, int(records.sequence[base])):
        raise damaged(base, f"its attribute list names record {segment} of another file")


def _belongs(table: Streams | Names, listed: set[tuple[int, int]]) -> Bools:
    """Which rows are their file's: those in its base record, and those its $ATTRIBUTE_LIST names."""
    belongs: Bools = table.holder == table.owner
    elsewhere = np.flatnonzero(~belongs)
    keys = zip(table.holder[elsewhere].tolist(), table.instance[elsewhere].tolist(), strict=True)
    belongs[elsewhere] = [key in listed for key in keys]
    return belongs


class _Rows:
    """Extents sorted and put together: one row for each stream of each file."""

    def __init__(self, streams: Streams, keep: Bools, bytes_per_cluster: int) -> None:
        self._streams = streams
        self._bytes_per_cluster = bytes_per_cluster
        kept = np.flatnonzero(keep)
        keys = (streams.lowest_vcn, streams.name, streams.type_code, streams.owner)
        self._order = order = kept[np.lexsort(tuple(key[kept] for key in keys))]
        owner, type_code, name = streams.owner[order], streams.type_code[order], streams.name[order]
        new = np.ones(len(order), dtype=np.bool_)
        new[1:] = (owner[1:] != owner[:-1]) | (type_code[1:] != type_code[:-1]) | (name[1:] != name[:-1])
        self._check_extents(new)
        self._first = np.flatnonzero(new)
        self._row = np.cumsum(new) - 1
        self._head = order[self._first]
        self.type_code = streams.type_code[self._head]
        self.name = streams.name[self._head]

    def _check_extents(self, new: Bools) -> None:
        """Each stream starts at VCN 0, each further extent where the one before it ended."""
        s, order = self._streams, self._order
        lowest, resident = s.lowest_vcn[order], s.resident[order]
        expected = np.zeros_like(lowest)
        expected[1:] = s.next_vcn[order[:-1]]
        expected[new] = 0
        twice = ~new & (resident | (lowest == 0))
        twice[1:] |= ~new[1:] & resident[:-1]
        wrong = twice | (lowest != expected)
        if wrong.any():
            at = int(np.argmax(wrong))
            label = layout.TYPE_NAMES.get(int(s.type_code[order[at]]), "a stream")
            raise damaged(
                int(s.owner[order[at]]),
                f"{label} is there twice" if twice[at] else
                f"an extent of {label} starts at VCN {int(lowest[at])}, expected {int(expected[at])}",
            )  # fmt: skip

    def contents(self, names: list[str]) -> Contents:
        """The contract's table of the rows."""
        s, head = self._streams, self._head
        last = np.append(self._first[1:], len(self._order)) - 1
        size, resident = s.size_bytes[head], s.resident[head]
        covered = s.next_vcn[self._order[last]] * self._bytes_per_cluster if len(last) else size
        wrong = ~resident & ((size < 0) | (size > covered) | (s.valid_bytes[head] < 0))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise damaged(int(s.owner[head[at]]), f"a stream has size {int(size[at])}, its clusters {int(covered[at])}")
        first_run, run_offset, run_length = self._runs()
        labels = [""] * len(head)
        code = {}
        for row in np.flatnonzero((self.type_code != layout.DATA) | (self.name != UNNAMED)).tolist():
            key = int(self.type_code[row]), int(self.name[row])
            if key not in code:
                code[key] = stream_label(key[0], names[key[1]])
            labels[row] = code[key]
        return Contents(
            s.owner[head], labels, size, np.minimum(s.valid_bytes[head], size), self._flags(), first_run,
            run_offset, run_length, self._digests(), inline_holder=self._holders(),
        )  # fmt: skip

    def parts(self, records: Records) -> Parts:
        """The nonresident extents, as they follow each other in the contents."""
        s = self._streams
        in_clusters = ~s.resident[self._order]
        order = self._order[in_clusters]
        return Parts(
            self._row[in_clusters], s.lowest_vcn[order], s.next_vcn[order], s.place[order], s.length[order],
            s.pairs_at[order], records.room[s.holder[order]].astype(np.int64), s.run_count[order],
        )  # fmt: skip

    def _runs(self) -> tuple[Int64s, Int64s, Int64s]:
        """First run of each row, then all runs in bytes."""
        s, order = self._streams, self._order
        count = s.run_count[order]
        end = np.cumsum(count)
        start_before = (np.cumsum(s.run_count) - s.run_count)[order]
        total = int(end[-1]) if len(end) else 0
        take = np.repeat(start_before - (end - count), count) + np.arange(total)
        lcn = s.run_lcn[take]
        first_run = np.append((end - count)[self._first], total)
        offset = np.where(lcn == HOLE, HOLE, lcn * self._bytes_per_cluster)
        return first_run, offset, s.run_clusters[take] * self._bytes_per_cluster

    def _flags(self) -> NDArray[np.uint8]:
        s, head = self._streams, self._head
        stored = s.flags[head]
        compressed = (stored & layout.ATTRIBUTE_FLAG_COMPRESSION_MASK != 0) & (s.compression_unit[head] != 0)
        index = (self.type_code == layout.INDEX_ALLOCATION) & (self.name == DIRECTORY_INDEX)
        flags = np.zeros(len(head), dtype=np.uint8)
        flags[stored & layout.ATTRIBUTE_FLAG_SPARSE != 0] |= np.uint8(ContentFlag.SPARSE)
        flags[compressed] |= np.uint8(ContentFlag.COMPRESSED)
        flags[stored & layout.ATTRIBUTE_FLAG_ENCRYPTED != 0] |= np.uint8(ContentFlag.ENCRYPTED)
        flags[index] |= np.uint8(ContentFlag.INDEX)
        flags[s.resident[head]] = ContentFlag.INLINE
        return flags

    def _digests(self) -> dict[int, bytes]:
        s = self._streams
        number = np.cumsum(s.resident) - 1
        rows = np.flatnonzero(s.resident[self._head])
        return {row: s.digest[i] for row, i in zip(rows.tolist(), number[self._head[rows]].tolist(), strict=True)}

    def _holders(self) -> dict[int, int]:
        """The record in which each resident content lies."""
        rows = np.flatnonzero(self._streams.resident[self._head])
        return dict(zip(rows.tolist(), self._streams.holder[self._head[rows]].tolist(), strict=True))


def _take_long_reparse_points(reader: RecordReader, records: Records, rows: _Rows, contents: Contents) -> None:
    """What the reparse points make of their files whose values are too long to be resident."""
    for row in np.flatnonzero(rows.type_code == layout.REPARSE_POINT).tolist():
        run = int(contents.first_run[row])
        if contents.size_bytes[row] >= 8 and contents.run_offset[run] != HOLE:
            tag = int.from_bytes(reader.device.read(int(contents.run_offset[run]), 4), "little")
            records.special[contents.record[row]] = special_kind(tag)
