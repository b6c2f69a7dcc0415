"""A directory's index, walked block by block for one name: what a few facts need without scanning the MFT."""

from __future__ import annotations

from collections.abc import Iterator
from struct import unpack_from

from sqlimage.errors import NotFoundError
from sqlimage.filesystem.ntfs import layout
from sqlimage.filesystem.ntfs.reader import RecordReader
from sqlimage.filesystem.ntfs.record import Stream, damaged, decode_name, fixed_up

_INDEX_BYTES_MAX = 64 << 20
_BLOCK_BYTES = (512, 64 << 10)


def find_name(reader: RecordReader, directory: int, name: str) -> int | None:
    """The record of an ASCII name in a directory, whatever its case; None where it is not there.

    Looks at the first 64 MiB of the index. Raises :class:`~sqlimage.errors.InconsistentVolume` where it is damaged.
    """
    root = reader.system_stream(directory, f"$INDEX_ROOT:{layout.DIRECTORY_INDEX}")
    if root.value is None or len(root.value) < layout.INDEX_ROOT_HEADER_AT + layout.INDEX_HEADER_BYTES:
        raise damaged(directory, "its index root is too short")
    for found, record in _entries(root.value, layout.INDEX_ROOT_HEADER_AT, directory):
        if found.lower() == name:
            return record
    (size,) = unpack_from("<I", root.value, layout.INDEX_ROOT_BYTES_PER_BLOCK_AT)
    try:
        blocks = reader.stream(directory, layout.DIRECTORY_INDEX)
    except NotFoundError:
        return None
    if not _BLOCK_BYTES[0] <= size <= _BLOCK_BYTES[1] or size % layout.SEQUENCE_NUMBER_STRIDE:
        raise damaged(directory, f"its index has blocks of {size} bytes")
    for block in _blocks(reader, blocks, size, directory):
        for found, record in _entries(block, layout.INDEX_BLOCK_HEADER_AT, directory):
            if found.lower() == name:
                return record
    return None


def _blocks(reader: RecordReader, stream: Stream, size: int, directory: int) -> Iterator[bytes]:
    content = reader.content(stream)
    for at in range(0, min(content.size_bytes, _INDEX_BYTES_MAX) - size + 1, size):
        block = content.read(at, size)
        if block[:4] != layout.SIGNATURE_INDX:
            continue  # not in use
        fixed = fixed_up(block, layout.SIGNATURE_INDX)
        if fixed is None:
            raise damaged(directory, f"the block at byte {at} of its index is torn")
        yield fixed


def _entries(data: bytes, header_at: int, directory: int) -> Iterator[tuple[str, int]]:
    """Names and their records, from one node."""
    first, free = unpack_from("<II", data, header_at)
    at, end = header_at + first, header_at + free
    if first < layout.INDEX_HEADER_BYTES or end > len(data):
        raise damaged(directory, f"a node of its index has entries from {at} to {end}")
    while at + layout.ENTRY_HEADER_BYTES <= end:
        reference, length, key_bytes, flags = unpack_from("<QHHH", data, at)
        if length < layout.ENTRY_HEADER_BYTES or at + length > end:
            raise damaged(directory, f"an entry of its index has {length} bytes")
        if flags & layout.INDEX_ENTRY_END:
            return
        key = data[at + layout.ENTRY_HEADER_BYTES : at + min(length, layout.ENTRY_HEADER_BYTES + key_bytes)]
        if len(key) >= layout.FILE_NAME_AT:
            name = key[layout.FILE_NAME_AT : layout.FILE_NAME_AT + 2 * key[layout.FILE_NAME_LENGTH_AT]]
            if len(name) != 2 * key[layout.FILE_NAME_LENGTH_AT]:
                raise damaged(directory, f"a name in its index has {len(name)} bytes")
            yield decode_name(name), reference & layout.SEGMENT_NUMBER_MASK
        at += length
