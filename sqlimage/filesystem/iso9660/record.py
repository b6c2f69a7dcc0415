"""Directory Records (ECMA-119 section 9.1), taken from directories one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.iso9660 import layout
from sqlimage.units import KIB

PIECE_BYTES = 64 * KIB
_SECTOR = layout.SECTOR_BYTES
_HEAD_BYTES = layout.RECORD.size


class Record(NamedTuple):
    """The fields of one record, the little-endian half of those that have two."""

    offset: int
    """Bytes from the start of the volume."""
    length: int
    attribute_blocks: int
    """Extended Attribute Record Length."""
    block: int
    """Location of Extent."""
    size_bytes: int
    stamp: bytes
    flags: int
    unit_size: int
    gap_size: int
    sequence_number: int
    name: bytes
    system_use: bytes


def record_at(data: bytes, at: int, offset: int) -> Record:
    """The record at ``at`` in ``data``, which lies ``offset`` bytes from the start of the volume.

    Raises :class:`InconsistentVolume` where none fits: its length may be too small, or lead out of ``data`` or of the
    sector.
    """
    length = data[at]
    if length < layout.RECORD_BYTES_MIN or at + length > len(data) or offset % _SECTOR + length > _SECTOR:
        raise InconsistentVolume(
            "Directory Record", f"its length of {length} bytes cannot be there", offset_bytes=offset
        )
    _, attributes, block, size, stamp, flags, unit, gap, number, name_length = layout.RECORD.unpack_from(data, at)
    begin = at + _HEAD_BYTES
    end = begin + name_length
    if not 0 < name_length <= length - _HEAD_BYTES:
        raise InconsistentVolume(
            "Length of File Identifier", f"is {name_length} in a record of {length} bytes", offset_bytes=offset
        )
    system_use = data[end + 1 - (name_length & 1) : at + length]
    return Record(offset, length, attributes, block, size, stamp, flags, unit, gap, number, data[begin:end], system_use)


def read_records(device: BlockDevice, start: int, length: int) -> Iterator[Record]:
    """The records from byte ``start`` of the volume on, within ``length`` bytes. Where a record's length is zero, the
    rest of the sector holds none.

    Raises :class:`InconsistentVolume` as :func:`record_at`.
    """
    end = start + length
    while start < end:
        stop = min((start + PIECE_BYTES) // _SECTOR * _SECTOR, end)
        yield from _records_in(device.read(start, stop - start), start)
        start = stop


def records_from(device: BlockDevice, start: int, end: int) -> Iterator[Record]:
    """The records from byte ``start`` on where it is not known how far the directory goes: to the first sector without
    one, and not beyond ``end``."""
    while start < end:
        stop = min((start // _SECTOR + 1) * _SECTOR, end)
        data = device.read(start, stop - start)
        if data[0] == 0:
            return
        yield from _records_in(data, start)
        start = stop


def _records_in(data: bytes, start: int) -> Iterator[Record]:
    at, size = 0, len(data)
    while at < size:
        if data[at] == 0:
            at += _SECTOR - (start + at) % _SECTOR
            continue
        record = record_at(data, at, start + at)
        yield record
        at += record.length
