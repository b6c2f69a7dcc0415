"""Which segments an image consists of, and where in them each of its contents lies."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import zstandard
from numpy.typing import NDArray

from sqlimage.errors import FormatError
from sqlimage.transfer.segment import HEADER_BYTES, LARGEST_BYTES, MOST_SEGMENTS
from sqlimage.transfer.stores.contract import segment_name

_COUNTS = struct.Struct("<II")
_SEGMENT = struct.Struct("<32sQ")
_WIDTHS = (8, 4, 4, 4)
_PLACE_BYTES = sum(_WIDTHS)
_LEAST_BYTES = 16
"""What a digest of 32 bytes certainly takes when it is compressed."""
_LEVEL = 9
OWN = bytes(32)
"""In place of the digest of the first segment, which cannot tell its own."""


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """One segment of an image; number 1 is the first of the list."""

    digest: bytes
    """SHA-256 of all of it; of the first ``OWN``."""
    length_bytes: int

    @property
    def name(self) -> str:
        """Under which it lies in a store."""
        return segment_name(self.digest)


Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Contents:
    """Where the contents of an image lie, in the order in which a restore or a boot reads them. One that goes over the
    end of a segment lies in several pieces, which follow each other here."""

    segments: Sequence[SegmentInfo]
    data: Numbers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Numbers in the data stream."""
    segment: Numbers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """The number of the segment of each, from 1."""
    offset: Numbers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Bytes from the beginning of it; in the first, from where contents begin in that, for what lies before them
    tells of them."""
    length: Numbers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Bytes of each piece."""

    def places(self) -> tuple[Numbers, Numbers, Numbers, Numbers]:
        """Content, segment, offset and length of each piece."""
        return self.data, self.segment, self.offset, self.length

    def starts(self) -> Numbers:
        """Which byte of its content each piece begins with."""
        ends = np.cumsum(self.length)
        begins = ends - self.length
        is_new = np.ones(len(self.data), dtype=bool)
        is_new[1:] = self.data[1:] != self.data[:-1]
        return begins - begins[np.maximum.accumulate(np.where(is_new, np.arange(len(self.data)), 0))]

    def pack(self) -> bytes:
        told = [column.astype(f"<u{width}") for column, width in zip(self.places(), _WIDTHS, strict=True)]
        places = [np.ascontiguousarray(c.view(np.uint8).reshape(len(c), c.itemsize).T).tobytes() for c in told]
        listed = [_SEGMENT.pack(one.digest, one.length_bytes) for one in self.segments]
        raw = b"".join([_COUNTS.pack(len(self.segments), len(self.data)), *listed, *places])
        return zstandard.ZstdCompressor(level=_LEVEL).compress(raw)


def most_packed_bytes(segments: int, places: int) -> int:
    """More than :meth:`Contents.pack` ever needs."""
    raw = _COUNTS.size + segments * _SEGMENT.size + places * _PLACE_BYTES
    return raw + (raw >> 8) + 64 + 1024


def unpack_contents(where: str, packed: bytes | memoryview, streams_bytes: int) -> Contents:
    """What :meth:`Contents.pack` made, of an image whose streams come to so many bytes. Raises
    :class:`~sqlimage.errors.FormatError` for what it never makes.

    Nothing takes memory here that was not sent: each segment has a digest in this, each content one in the streams, and
    no compressor makes digests shorter.
    """
    try:
        size = zstandard.get_frame_parameters(packed).content_size
        most_segments = min(MOST_SEGMENTS, 1 + len(packed) // _LEAST_BYTES)
        most_places = most_segments + streams_bytes // _LEAST_BYTES
        most = _COUNTS.size + most_segments * _SEGMENT.size + most_places * _PLACE_BYTES
        if not _COUNTS.size <= size <= most:
            raise ValueError
        raw = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
        segments, places = _COUNTS.unpack_from(raw)
        at = _COUNTS.size + segments * _SEGMENT.size
        if len(raw) != at + places * _PLACE_BYTES or not 1 <= segments <= MOST_SEGMENTS:
            raise ValueError
        listed = [SegmentInfo(*_SEGMENT.unpack_from(raw, _COUNTS.size + n * _SEGMENT.size)) for n in range(segments)]
        columns = []
        for width in _WIDTHS:
            planes = np.frombuffer(raw, dtype=np.uint8, count=places * width, offset=at).reshape(width, places)
            columns.append(np.ascontiguousarray(planes.T).view(f"<u{width}").reshape(places).astype(np.int64))
            at += places * width
        contents = Contents(listed, *columns)
        if not _is_possible(contents):
            raise ValueError
    except (zstandard.ZstdError, ValueError, struct.error):
        raise FormatError(f"{where}: the list of its segments is not of the form it should be") from None
    return contents


def _is_possible(contents: Contents) -> bool:
    digests = {one.digest for one in contents.segments}
    if contents.segments[0].digest != OWN or len(digests) != len(contents.segments):
        return False
    if any(not HEADER_BYTES <= one.length_bytes <= LARGEST_BYTES for one in contents.segments):
        return False
    if not len(contents.data):
        return True
    within = contents.segment.min() >= 1 and contents.segment.max() <= len(contents.segments)
    positive = contents.data.min() > 0 and contents.length.min() > 0
    if not within or not positive:
        return False
    found, which = np.unique(contents.data, return_inverse=True)
    follows = 1 + np.count_nonzero(contents.data[1:] != contents.data[:-1])
    pieces = which.astype(np.int64) * (MOST_SEGMENTS + 1) + contents.segment
    return len(found) == follows and len(np.unique(pieces)) == len(pieces) and _are_apart(contents)


def _are_apart(contents: Contents) -> bool:
    """Whether no byte of a segment is told to be part of two contents: a few bytes would fill any disk."""
    order = np.lexsort((contents.offset, contents.segment))
    segment, begins = contents.segment[order], contents.offset[order]
    ends = begins + contents.length[order]
    lengths = np.array([one.length_bytes for one in contents.segments], dtype=np.int64)
    is_apart = (segment[1:] != segment[:-1]) | (ends[:-1] <= begins[1:])
    return bool(is_apart.all() and (ends <= lengths[segment - 1]).all())
