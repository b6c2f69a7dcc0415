"""One chunk of content: digest, compress, and back with every claim checked before it costs anything."""

from __future__ import annotations

import hashlib
import threading
from enum import IntFlag

import zstandard

from sqlimage.errors import DamagedError

MAX_CHUNK_BYTES = 8 << 20
MIN_LEVEL, MAX_LEVEL = 1, 22


class ChunkFlag(IntFlag):
    """Column ``flags`` of ``data``; 0 means the bytes are stored as they are."""

    ZSTD = 1


class _Local(threading.local):
    """zstd contexts may not be shared between threads; making one a chunk would cost more than a small chunk."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_CHUNK_BYTES)


_local = _Local()


def digest(content: bytes | bytearray | memoryview) -> bytes:
    """SHA-256, the identity of a content."""
    return hashlib.sha256(content).digest()


def encode(content: bytes | bytearray | memoryview, level: int | None) -> tuple[int, bytes]:
    """Flags and stored bytes of a content: one zstd frame, or the content itself where that is not larger.

    ``level`` None stores without trying.
    """
    if level is not None:
        compressor = _local.compressors.get(level)
        if compressor is None:
            compressor = _local.compressors[level] = zstandard.ZstdCompressor(
                level=level, write_content_size=True, write_checksum=False
            )
        packed = compressor.compress(content)
        if len(packed) < len(content):
            return ChunkFlag.ZSTD, packed
    return 0, bytes(content)


def decode(stored: bytes, flags: int, length: int, expected_digest: bytes | None, *, data: int | None = None) -> bytes:
    """The content of a stored chunk, verified.

    ``length`` is what the row claims (bytes); a frame that claims anything else is refused before it is opened.
    ``expected_digest`` None: the caller compares the digests of the files in it instead.
    Raises :class:`~sqlimage.errors.DamagedError`, which carries ``data``.
    """
    if not 1 <= length <= MAX_CHUNK_BYTES:
        raise DamagedError(f"data {data}: a length of {length} bytes; allowed are 1 to {MAX_CHUNK_BYTES}", data=data)
    if flags == ChunkFlag.ZSTD:
        content = _decompress(stored, length, data)
    elif flags == 0:
        content = stored
    else:
        raise DamagedError(f"data {data}: flags {flags:#x} are not known", data=data)
    if len(content) != length:
        raise DamagedError(f"data {data}: {len(content)} bytes where {length} were promised", data=data)
    if expected_digest is not None and digest(content) != expected_digest:
        raise DamagedError(f"data {data}: the bytes do not match their digest", data=data)
    return content


def _decompress(stored: bytes, length: int, data: int | None) -> bytes:
    try:
        claimed = zstandard.get_frame_parameters(stored).content_size
        if claimed != length:
            raise DamagedError(f"data {data}: the frame claims {claimed} bytes, the row {length}", data=data)
        return _local.decompressor.decompress(stored, max_output_size=length)
    except zstandard.ZstdError as problem:
        raise DamagedError(f"data {data}: cannot be decompressed ({problem})", data=data) from None
