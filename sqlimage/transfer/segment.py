"""A segment as it travels: a header that tells which piece of which image it is, and contents; in the first, all the
other streams as well."""

from __future__ import annotations

import hashlib
import struct
import uuid
from dataclasses import dataclass

from sqlimage.errors import FormatError
from sqlimage.units import GIB, MIB

HEADER_BYTES = 256
SMALLEST_BYTES, LARGEST_BYTES, USUAL_BYTES = 4 << 10, GIB, 64 * MIB
"""Of segments, in bytes: what may be chosen, and what is where nothing is."""
MOST_SEGMENTS = 1 << 20
_MAGIC = b"sqlimage segment"
_VERSION = 1
_HEAD = struct.Struct("<16sHH16sIIQQ")
_PART = struct.Struct("<QQ32s")
_DATA = struct.Struct("<Q32s")
_PARTS_AT = 64
_DATA_AT = _PARTS_AT + 3 * _PART.size
_NO_DIGEST = bytes(32)


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the first segment, in bytes from its beginning."""

    offset_bytes: int
    length_bytes: int
    digest: bytes
    """SHA-256 of it."""

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.length_bytes


_NONE = Part(0, 0, _NO_DIGEST)


@dataclass(frozen=True, slots=True)
class Header:
    """The first 256 bytes of a segment. That of the first one vouches for the whole image, by the digests of its parts:
    its own SHA-256 is the identity of the transfer."""

    image: str
    """UUID of the newest version in the image."""
    number: int
    """From 1, among the ``count`` segments that were cut together."""
    count: int
    segment_bytes: int
    """How long segments are, but for the last."""
    length_bytes: int
    """How long this one is."""
    contents: Part = _NONE
    """Of the first: where each content lies."""
    streams: Part = _NONE
    """Of the first: rows that must be there before anything can be read."""
    rest: Part = _NONE
    """Of the first: the other rows."""
    data_offset_bytes: int = HEADER_BYTES
    """Where contents begin."""
    data_digest: bytes = _NO_DIGEST
    """Of the first: SHA-256 of all from there to the rest."""

    @property
    def is_first(self) -> bool:
        return self.number == 1

    def pack(self) -> bytes:
        head = _HEAD.pack(
            _MAGIC, _VERSION, 0, uuid.UUID(self.image).bytes,
            self.number, self.count, self.segment_bytes, self.length_bytes,
        )  # fmt: skip
        parts = b"".join(
            _PART.pack(part.offset_bytes, part.length_bytes, part.digest)
            for part in (self.contents, self.streams, self.rest)
        )
        packed = head.ljust(_PARTS_AT, b"\0") + parts + _DATA.pack(self.data_offset_bytes, self.data_digest)
        return packed.ljust(HEADER_BYTES, b"\0")

    @property
    def identity(self) -> str:
        """Which transfer this first segment begins."""
        return hashlib.sha256(self.pack()).hexdigest()

    def vouches_for(self, segment: bytes | memoryview) -> bool:
        """Whether a first segment with this header is, to the last byte, what its digests say."""
        view = memoryview(segment)
        begin, end = self.data_offset_bytes, self.rest.offset_bytes
        parts = (self.contents, self.streams, Part(begin, end - begin, self.data_digest), self.rest)
        return len(view) == self.length_bytes and all(
            hashlib.sha256(view[part.offset_bytes : part.end_bytes]).digest() == part.digest for part in parts
        )


def read_header(where: str, packed: bytes | memoryview) -> Header:
    """The header at the beginning of a segment.

    Raises :class:`~sqlimage.errors.FormatError`, beginning with ``where``, for what is none, and where its numbers
    cannot be.
    """
    packed = bytes(packed[:HEADER_BYTES])
    if len(packed) < HEADER_BYTES or not packed.startswith(_MAGIC):
        raise FormatError(f"{where}: is not a segment of an image", hint="`sqlimage push` and `split` make them")
    _, version, _, image, number, count, segment_bytes, length_bytes = _HEAD.unpack_from(packed)
    if version != _VERSION:
        raise FormatError(
            f"{where}: a segment of version {version}; this reader knows {_VERSION}", hint="use a newer sqlimage"
        )
    contents, streams, rest = (Part(*_PART.unpack_from(packed, _PARTS_AT + _PART.size * n)) for n in range(3))
    data = _DATA.unpack_from(packed, _DATA_AT)
    uuid_ = str(uuid.UUID(bytes=image))
    header = Header(uuid_, number, count, segment_bytes, length_bytes, contents, streams, rest, *data)
    if header.pack() != packed or not _is_possible(header):
        raise FormatError(f"{where}: the header of the segment contradicts itself; it is damaged")
    return header


def _is_possible(header: Header) -> bool:
    if not SMALLEST_BYTES <= header.segment_bytes <= LARGEST_BYTES or not 1 <= header.number <= header.count:
        return False
    if not HEADER_BYTES <= header.data_offset_bytes <= header.length_bytes <= header.segment_bytes:
        return False
    if header.count > MOST_SEGMENTS:
        return False
    parts = (header.contents, header.streams, header.rest)
    if not header.is_first:
        return parts == (_NONE, _NONE, _NONE) and header.data_digest == _NO_DIGEST
    contents, streams, rest = parts
    follows = contents.offset_bytes == HEADER_BYTES and streams.offset_bytes == contents.end_bytes
    fits = header.data_offset_bytes == streams.end_bytes <= rest.offset_bytes
    return follows and fits and rest.end_bytes == header.length_bytes


def most_contents_bytes(segment_bytes: int) -> int:
    """How much of contents a segment after the first has room for."""
    return segment_bytes - HEADER_BYTES
