"""One chunk of content: digest, compress, encrypt, and back with every claim checked before it costs anything."""

from __future__ import annotations

import hashlib
import threading
from enum import IntFlag

import zstandard

from sqlimage.codec.vault import OVERHEAD_BYTES, NotAuthentic, Vault
from sqlimage.errors import DamagedError

MAX_CHUNK_BYTES = 8 << 20
MIN_LEVEL, MAX_LEVEL = 1, 22


class ChunkFlag(IntFlag):
    """Column ``flags`` of ``data``; 0 means the bytes are stored as they are."""

    ZSTD = 1
    ENCRYPTED = 2
    """After that: AES-256-GCM, and the digest is the keyed one."""


_KNOWN = int(ChunkFlag.ZSTD | ChunkFlag.ENCRYPTED)


class _Local(threading.local):
    """zstd contexts may not be shared between threads; making one a chunk would cost more than a small chunk."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_CHUNK_BYTES)


_local = _Local()


def digest(content: bytes | bytearray | memoryview) -> bytes:
    """SHA-256, the identity of a content."""
    return hashlib.sha256(content).digest()


def name_of(content: bytes | bytearray | memoryview, vault: Vault | None = None) -> bytes:
    """The identity under which a content is stored: its digest, or the keyed one where it is encrypted."""
    return digest(content) if vault is None else vault.name(digest(content))


def encode(
    content: bytes | bytearray | memoryview, level: int | None, vault: Vault | None = None, name: bytes = b""
) -> tuple[int, bytes]:
    """Flags and stored bytes of a content: one zstd frame, or the content itself where that is not larger; with
    ``vault`` either of them encrypted and bound to ``name``, its keyed digest.

    ``level`` None stores without trying.
    """
    flags, stored = _compress(content, level)
    if vault is None:
        return flags, bytes(stored)
    flags |= ChunkFlag.ENCRYPTED
    return flags, vault.encrypt_content(stored, name, len(content), flags)


def _compress(content: bytes | bytearray | memoryview, level: int | None) -> tuple[int, bytes | bytearray | memoryview]:
    if level is not None:
        compressor = _local.compressors.get(level)
        if compressor is None:
            compressor = _local.compressors[level] = zstandard.ZstdCompressor(
                level=level, write_content_size=True, write_checksum=False
            )
        packed = compressor.compress(content)
        if len(packed) < len(content):
            return int(ChunkFlag.ZSTD), packed
    return 0, content


def decode(
    stored: bytes,
    flags: int,
    length: int,
    name: bytes,
    *,
    vault: Vault | None = None,
    is_digested_elsewhere: bool = False,
    data: int | None = None,
) -> bytes:
    """The content of a stored chunk, verified.

    ``length`` is what the row claims (bytes); a frame that claims anything else is refused before it is opened.
    ``name`` is its digest; what is encrypted was bound to that, and is not digested again. ``is_digested_elsewhere``:
    the caller compares the digests of the files in it instead.
    Raises :class:`~sqlimage.errors.DamagedError`, which carries ``data``.
    """
    if not 1 <= length <= MAX_CHUNK_BYTES:
        raise DamagedError(f"data {data}: a length of {length} bytes; allowed are 1 to {MAX_CHUNK_BYTES}", data=data)
    if not 0 <= flags <= _KNOWN:
        raise DamagedError(f"data {data}: flags {flags:#x} are not known", data=data)
    is_encrypted = flags & ChunkFlag.ENCRYPTED != 0
    if len(stored) > length + OVERHEAD_BYTES:
        raise DamagedError(f"data {data}: {len(stored)} bytes where {length} were promised", data=data)
    if is_encrypted:
        if vault is None:
            raise DamagedError(f"data {data}: is encrypted, in an image without a key", data=data)
        try:
            stored = vault.decrypt_content(stored, name, length, flags)
        except NotAuthentic:
            raise DamagedError(f"data {data}: is not what was encrypted under its digest", data=data) from None
    content = _decompress(stored, length, data) if flags & ChunkFlag.ZSTD else stored
    if len(content) != length:
        raise DamagedError(f"data {data}: {len(content)} bytes where {length} were promised", data=data)
    if not is_encrypted and not is_digested_elsewhere and digest(content) != name:
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
