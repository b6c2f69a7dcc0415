"""One file record at a time: fix-ups, attributes, and streams put together from several records.

:mod:`.reader` finds records on the volume; :mod:`.slab` reads thousands at once, on arrays, by the same rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import unpack_from

from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.ntfs import layout
from sqlimage.filesystem.ntfs.boot import Geometry
from sqlimage.filesystem.ntfs.runlist import MappingPairsError, decode
from sqlimage.filesystem.ntfs.stream import ClusterRuns


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of one record. ``value`` is None in the nonresident form, ``runs`` are in clusters."""

    type_code: int
    name: str
    flags: int
    instance: int
    value: bytes | None = None
    lowest_vcn: int = 0
    highest_vcn: int = -1
    compression_unit: int = 0
    file_size: int = 0
    valid_data_length: int = 0
    runs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """An in-use file record with its fix-ups applied."""

    number: int
    sequence: int
    flags: int
    base: int
    """MFT_SEGMENT_REFERENCE of the base record; 0 in a base record."""
    attributes: tuple[Attribute, ...]


def damaged(record: int, problem: str) -> InconsistentVolume:
    """The error that says what is wrong with an MFT record."""
    return InconsistentVolume(f"MFT record {record}", problem)


def safe_name(text: str) -> str:
    """A name that cannot be mistaken for a path, and that C strings can hold."""
    return text.replace("/", "\u2215").replace("\0", "\u2400")


def decode_name(units: bytes) -> str:
    """UTF-16 as NTFS has it: any code units, paired or not."""
    return safe_name(units.decode("utf-16-le", "surrogatepass"))


def stream_label(type_code: int, name: str) -> str:
    """How an attribute is called in the contract: plain for a user's stream, ``$TYPE`` or ``$TYPE:name`` for others.

    No two attributes of a record share a label, whatever a hostile volume names them.
    """
    kind = layout.TYPE_NAMES.get(type_code, f"$TYPE_{type_code:X}")
    if type_code == layout.DATA:
        return f"{kind}:{name}" if ":" in name or name in _RESERVED or name.startswith("$TYPE_") else name
    if type_code == layout.INDEX_ALLOCATION and name == layout.DIRECTORY_INDEX:
        return name
    return f"{kind}:{name}" if name else kind


_RESERVED = frozenset(layout.TYPE_NAMES.values()) | {layout.DIRECTORY_INDEX}


def fixed_up(block: bytes, signature: bytes) -> bytes | None:
    """A multi-sector block with the update sequence array put back in place.

    None where signature, array or sequence numbers are wrong: the block was never written, or torn.
    """
    stride = layout.SEQUENCE_NUMBER_STRIDE
    if block[:4] != signature:
        return None
    array_at, array_words = unpack_from("<HH", block, layout.UPDATE_SEQUENCE_ARRAY_OFFSET_AT)
    if array_words != len(block) // stride + 1 or array_at % 2 or array_at + 2 * array_words > stride - 2:
        return None
    number = block[array_at : array_at + 2]
    out = bytearray(block)
    for sector in range(array_words - 1):
        at = (sector + 1) * stride - 2
        if block[at : at + 2] != number:
            return None
        saved = array_at + 2 * (sector + 1)
        out[at : at + 2] = block[saved : saved + 2]
    return bytes(out)


def parse_record(block: bytes, number: int, geometry: Geometry) -> Record | None:
    """The record in ``block``, or None where it is not in use.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where it is in use and damaged.
    """
    (flags,) = unpack_from("<H", block, layout.FLAGS_AT)
    if block[:4] != layout.SIGNATURE_FILE or not flags & layout.FILE_RECORD_SEGMENT_IN_USE:
        return None
    data = fixed_up(block, layout.SIGNATURE_FILE)
    if data is None:
        raise damaged(number, "its update sequence array does not fit its sectors")
    (sequence,) = unpack_from("<H", data, layout.SEQUENCE_NUMBER_AT)
    (base,) = unpack_from("<Q", data, layout.BASE_FILE_RECORD_SEGMENT_AT)
    return Record(number, sequence, flags, base, tuple(_attributes(data, number, geometry)))


def _attributes(data: bytes, number: int, geometry: Geometry) -> Iterator[Attribute]:
    array_at, array_words = unpack_from("<HH", data, layout.UPDATE_SEQUENCE_ARRAY_OFFSET_AT)
    at, _flags, free = unpack_from("<HHI", data, layout.FIRST_ATTRIBUTE_OFFSET_AT)
    if array_at < layout.UPDATE_SEQUENCE_ARRAY_AT_LEAST or at % 8 or at < array_at + 2 * array_words:
        raise damaged(number, f"FirstAttributeOffset is {at}")
    if free > len(data):
        raise damaged(number, f"FirstFreeByte is {free}, records have {len(data)} bytes")
    while True:
        if at + 4 > free:
            raise damaged(number, "its attributes do not end within FirstFreeByte")
        (type_code,) = unpack_from("<I", data, at)
        if type_code == layout.END_OF_ATTRIBUTES:
            return
        (length,) = unpack_from("<I", data, at + layout.RECORD_LENGTH_AT)
        if type_code == 0 or length < layout.RESIDENT_HEADER_BYTES or length % 8 or at + length > free:
            raise damaged(number, f"attribute {type_code:#x} at {at} has length {length}")
        yield _attribute(data[at : at + length], number, geometry)
        at += length


def _attribute(data: bytes, number: int, geometry: Geometry) -> Attribute:
    (type_code,) = unpack_from("<I", data)
    form, name_units, name_at, flags, instance = unpack_from("<BBHHH", data, layout.FORM_CODE_AT)
    name_end = name_at + 2 * name_units
    header = layout.NONRESIDENT_HEADER_BYTES if form else layout.RESIDENT_HEADER_BYTES
    if form > 1 or len(data) < header or (name_units and not header <= name_at <= name_end <= len(data)):
        raise damaged(number, f"attribute {type_code:#x} is longer than its length says")
    name = decode_name(data[name_at:name_end]) if name_units else ""
    if form == layout.RESIDENT_FORM:
        length, at = unpack_from("<IH", data, layout.VALUE_LENGTH_AT)
        if at + length > len(data) or at < header:
            raise damaged(number, f"the value of attribute {type_code:#x} lies at {at}, {length} bytes long")
        return Attribute(type_code, name, flags, instance, data[at : at + length])
    lowest, highest, pairs_at, unit = unpack_from("<qqHB", data, layout.LOWEST_VCN_AT)
    _allocated, size, valid = unpack_from("<qqq", data, layout.ALLOCATED_LENGTH_AT)
    if not 0 <= lowest <= highest + 1 <= geometry.clusters_limit or pairs_at < header:
        raise damaged(number, f"attribute {type_code:#x} has VCNs {lowest} to {highest}, pairs at {pairs_at}")
    try:
        runs = decode(data[pairs_at:], highest + 1 - lowest, geometry.total_clusters)
    except MappingPairsError as error:
        raise damaged(number, f"mapping pairs of attribute {type_code:#x}: {error.problem}") from None
    return Attribute(type_code, name, flags, instance, None, lowest, highest, unit, size, valid, tuple(runs))


@dataclass(frozen=True, slots=True)
class Stream:
    """An attribute put together from all its records. ``value`` is None where ``runs`` (bytes) hold it."""

    type_code: int
    name: str
    flags: int
    compression_unit: int
    size_bytes: int
    valid_bytes: int
    value: bytes | None
    runs: ClusterRuns


@dataclass(frozen=True, slots=True)
class ListEntry:
    """An entry of an $ATTRIBUTE_LIST: which attribute lies in which record."""

    type_code: int
    lowest_vcn: int
    segment: int
    sequence: int
    instance: int


def parse_attribute_list(data: bytes, record: int) -> Iterator[ListEntry]:
    """The entries of an $ATTRIBUTE_LIST's value, one by one: whoever finds one wrong need not see the others."""
    at = 0
    while at + layout.LIST_ENTRY_HEADER_BYTES <= len(data):
        type_code, length = unpack_from("<IH", data, at)
        if length < layout.LIST_ENTRY_HEADER_BYTES or length % 8 or at + length > len(data):
            raise damaged(record, f"an entry of its attribute list has {length} bytes")
        lowest, reference, instance = unpack_from("<qQH", data, at + layout.LIST_LOWEST_VCN_AT)
        segment = reference & layout.SEGMENT_NUMBER_MASK
        yield ListEntry(type_code, lowest, segment, reference >> layout.SEGMENT_NUMBER_BITS, instance)
        at += length
    if at != len(data):
        raise damaged(record, "its attribute list ends within an entry")


def put_together(record: int, parts: list[Attribute], geometry: Geometry) -> Stream:
    """One stream from its extents, in any order; they must cover it from VCN 0 without a gap."""
    parts = sorted(parts, key=lambda part: part.lowest_vcn)
    first = parts[0]
    label = stream_label(first.type_code, first.name) or "$DATA"
    if first.value is not None:
        if len(parts) > 1:
            raise damaged(record, f"{label} is there twice")
        size = len(first.value)
        return Stream(first.type_code, first.name, first.flags, 0, size, size, first.value, ClusterRuns([], [], []))
    runs = joined_runs(record, parts, geometry)
    if not 0 <= first.file_size <= runs.end or first.valid_data_length < 0:
        raise damaged(record, f"{label} has size {first.file_size}, its clusters have {runs.end} bytes")
    valid = min(first.valid_data_length, first.file_size)
    return Stream(first.type_code, first.name, first.flags, first.compression_unit, first.file_size, valid, None, runs)


def joined_runs(record: int, parts: list[Attribute], geometry: Geometry) -> ClusterRuns:
    """The runs of an attribute's extents, which must follow each other from VCN 0."""
    runs = ClusterRuns([], [], [])
    for part in sorted(parts, key=lambda part: part.lowest_vcn):
        if part.lowest_vcn == 0 and part is not parts[0]:
            raise damaged(record, f"attribute {part.type_code:#x} is there twice")
        extend_runs(record, runs, part, geometry)
    return runs


def extend_runs(record: int, runs: ClusterRuns, part: Attribute, geometry: Geometry) -> None:
    """Add an extent's runs to those before it."""
    expected = runs.end // geometry.bytes_per_cluster
    if part.value is not None or part.lowest_vcn != expected:
        raise damaged(
            record, f"attribute {part.type_code:#x} has an extent from VCN {part.lowest_vcn}, expected {expected}"
        )
    for lcn, length in part.runs:
        runs.append(lcn, length, geometry.bytes_per_cluster)


def refers_to(reference: int, number: int, sequence: int) -> bool:
    """Whether an MFT_SEGMENT_REFERENCE means this record in this use of it."""
    wanted = reference >> layout.SEGMENT_NUMBER_BITS
    return reference & layout.SEGMENT_NUMBER_MASK == number and wanted in (0, sequence)
