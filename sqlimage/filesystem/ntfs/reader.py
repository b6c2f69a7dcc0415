"""Random access to files by record number. This is how $MFT itself, $Bitmap, $Volume and an opened file are read."""

from __future__ import annotations

from collections.abc import Iterator

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume, NotFoundError
from sqlimage.filesystem.content import InlineContent, RunContent
from sqlimage.filesystem.contract import HOLE, Content
from sqlimage.filesystem.ntfs import layout
from sqlimage.filesystem.ntfs.boot import Geometry
from sqlimage.filesystem.ntfs.record import (
    Attribute,
    ListEntry,
    Record,
    Stream,
    damaged,
    extend_runs,
    joined_runs,
    parse_attribute_list,
    parse_record,
    put_together,
    refers_to,
    stream_label,
)
from sqlimage.filesystem.ntfs.stream import ClusterRuns, CompressedContent


class RecordReader:
    """Random access to the records of the MFT.

    Constructing one reads record 0 and whatever other records hold parts of $MFT's own run list.
    """

    def __init__(self, device: BlockDevice, geometry: Geometry) -> None:
        self.device = device
        self.geometry = geometry
        size = geometry.bytes_per_record
        at = geometry.boot.mft_lcn * geometry.bytes_per_cluster
        if at + size > geometry.size_bytes:
            raise damaged(0, "it lies beyond the end of the volume")
        first = parse_record(device.read(at, size), 0, geometry)
        if first is None or first.base:
            raise damaged(0, "it is not a base record in use")
        self.mft = self._read_mft(first)
        self.count = self.mft.valid_bytes // size
        if self.count <= layout.EXTEND_RECORD:
            raise damaged(0, f"the MFT has {self.count} records")
        if self.mft.runs.place[0] != at:
            raise damaged(0, "$MFT's first cluster is not where the boot sector says")

    def _read_mft(self, first: Record) -> Stream:
        """$MFT's run list may itself lie in records that only its earlier part can find."""
        parts = [a for a in first.attributes if a.type_code == layout.DATA and not a.name]
        if not parts or any(part.value is not None for part in parts):
            raise damaged(0, "$MFT has no nonresident $DATA")
        known = joined_runs(0, parts, self.geometry)
        entries = [e for e in self._attribute_list(first) if e.type_code == layout.DATA and e.segment]
        for part in self._listed_elsewhere(first, sorted(entries, key=lambda e: e.lowest_vcn), known):
            if not part.name:
                parts.append(part)
                extend_runs(0, known, part, self.geometry)
        whole = put_together(0, parts, self.geometry)
        if HOLE in whole.runs.place:
            raise damaged(0, "$MFT has a hole")
        return whole

    def _attribute_list(self, record: Record) -> list[ListEntry]:
        lists = [a for a in record.attributes if a.type_code == layout.ATTRIBUTE_LIST]
        if not lists:
            return []
        stream = put_together(record.number, lists, self.geometry)
        value = stream.value
        if value is None:
            value = read_attribute_list(self.device, record.number, stream.size_bytes, stream.runs)
        return list(parse_attribute_list(value, record.number))

    def _listed_elsewhere(self, base: Record, entries: list[ListEntry], mft: ClusterRuns) -> Iterator[Attribute]:
        """The attributes that entries of ``base``'s attribute list name, from its extension records."""
        extensions: dict[int, Record] = {}
        yielded = set()
        for entry in entries:
            extension = extensions.get(entry.segment) or self._read(entry.segment, mft)
            if extension is None or entry.sequence not in (0, extension.sequence):
                raise damaged(base.number, f"its attribute list names record {entry.segment}, which is not in use")
            if not refers_to(extension.base, base.number, base.sequence):
                raise damaged(base.number, f"its attribute list names record {entry.segment} of another file")
            if (entry.segment, entry.instance) in yielded:
                raise damaged(base.number, f"its attribute list names an attribute of record {entry.segment} twice")
            yielded.add((entry.segment, entry.instance))
            extensions[entry.segment] = extension
            yield find_listed(base.number, entry, extension)

    def _read(self, number: int, mft: ClusterRuns) -> Record | None:
        size = self.geometry.bytes_per_record
        if (number + 1) * size > mft.end:
            return None
        block = bytearray(size)
        mft.read_into(self.device, number * size, memoryview(block))
        return parse_record(bytes(block), number, self.geometry)

    def read(self, number: int) -> Record:
        """The base record ``number``.

        Raises :class:`~sqlimage.errors.NotFoundError` where there is none in use, and
        :class:`~sqlimage.errors.InconsistentVolume` where it is damaged.
        """
        record = self._read(number, self.mft.runs) if 0 <= number < self.count else None
        if record is None or record.base:
            raise NotFoundError(f"the volume has no file with record number {number}")
        return record

    def streams(self, record: Record) -> list[Stream]:
        """All attributes of a base record but its names, those in its extension records included."""
        entries = self._attribute_list(record)
        for entry in entries:
            if entry.segment == record.number:
                find_listed(record.number, entry, record)
        elsewhere = [entry for entry in entries if entry.segment != record.number]
        groups: dict[tuple[int, str], list[Attribute]] = {}
        for attribute in (*record.attributes, *self._listed_elsewhere(record, elsewhere, self.mft.runs)):
            if attribute.type_code != layout.FILE_NAME:
                groups.setdefault((attribute.type_code, attribute.name), []).append(attribute)
        return [put_together(record.number, parts, self.geometry) for parts in groups.values()]

    def stream(self, number: int, label: str) -> Stream:
        """One attribute of a file, by its label.

        Raises :class:`~sqlimage.errors.NotFoundError` where there is no such record or attribute.
        """
        for stream in self.streams(self.read(number)):
            if stream_label(stream.type_code, stream.name) == label:
                return stream
        raise NotFoundError(f"the file with record number {number} has no stream {label!r}")

    def system_stream(self, number: int, label: str) -> Stream:
        """As :meth:`stream`, for one that every volume has; without it the volume is inconsistent."""
        try:
            return self.stream(number, label)
        except NotFoundError:
            raise damaged(number, f"it has no {label or '$DATA'}") from None

    def content(self, stream: Stream) -> Content:
        """The bytes of a stream, decompressed; what is encrypted is read as it lies."""
        if stream.value is not None:
            return InlineContent(stream.value)
        unit_log2 = stream.compression_unit
        if not stream.flags & layout.ATTRIBUTE_FLAG_COMPRESSION_MASK or unit_log2 == 0:
            return RunContent(self.device, stream.runs, stream.size_bytes, stream.valid_bytes)
        if unit_log2 > layout.LZNT1_CLUSTERS_LOG2_MAX:
            raise InconsistentVolume("CompressionUnit", f"is {unit_log2}, LZNT1 has {layout.LZNT1_CLUSTERS_LOG2_MAX}")
        unit_bytes = self.geometry.bytes_per_cluster << unit_log2
        return CompressedContent(self.device, stream.runs, stream.size_bytes, stream.valid_bytes, unit_bytes)


def find_listed(base: int, entry: ListEntry, holder: Record) -> Attribute:
    """The attribute of ``holder`` that an attribute list's entry means."""
    for attribute in holder.attributes:
        same = attribute.type_code == entry.type_code and attribute.lowest_vcn == entry.lowest_vcn
        if attribute.instance == entry.instance and same:
            return attribute
    raise damaged(base, f"its attribute list names attribute {entry.type_code:#x} that record {holder.number} lacks")


def read_attribute_list(device: BlockDevice, record: int, size_bytes: int, runs: ClusterRuns) -> bytes:
    """The value of a nonresident $ATTRIBUTE_LIST, which Windows limits to 256 KiB."""
    if size_bytes > layout.ATTRIBUTE_LIST_BYTES_MAX:
        raise damaged(record, f"its attribute list has {size_bytes} bytes")
    data = bytearray(size_bytes)
    runs.read_into(device, 0, memoryview(data))
    return bytes(data)
