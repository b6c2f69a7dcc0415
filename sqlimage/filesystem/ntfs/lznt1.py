"""LZNT1 decompression ([MS-XCA] 2.5), bounded and strict."""

from __future__ import annotations

from sqlimage.filesystem.ntfs import layout

_CHUNK = layout.LZNT1_CHUNK_BYTES


def _length_bits() -> list[int]:
    """How many low bits of a back reference hold its length, by bytes of the chunk already decompressed."""
    return [16 - max((position - 1).bit_length(), 4) for position in range(1, _CHUNK + 1)]


_LENGTH_BITS = [12, *_length_bits()]


class Lznt1Error(ValueError):
    """The compressed bytes are malformed."""


def decompress(data: bytes, size_bytes: int) -> bytes:
    """Exactly ``size_bytes`` from the chunks of ``data``, padded with zeros where the chunks give less.

    Each chunk but the last stands for 4,096 bytes. Raises :class:`Lznt1Error` on any malformed byte.
    """
    out = bytearray()
    at = 0
    while len(out) < size_bytes and at + 2 <= len(data):
        header = data[at] | data[at + 1] << 8
        if header == 0:
            break
        end = at + 3 + (header & layout.LZNT1_SIZE_MASK)
        if header & layout.LZNT1_SIGNATURE_MASK != layout.LZNT1_SIGNATURE:
            raise Lznt1Error(f"a chunk's header is {header:#06x}")
        if end > len(data):
            raise Lznt1Error(f"a chunk ends at byte {end} of {len(data)}")
        if len(out) % _CHUNK:
            out += bytes(-len(out) % _CHUNK)
        if header & layout.LZNT1_COMPRESSED:
            out += _chunk(data, at + 2, end)
        else:
            out += data[at + 2 : end]
        at = end
    return bytes(out[:size_bytes]) + bytes(max(0, size_bytes - len(out)))


def _chunk(data: bytes, at: int, end: int) -> bytearray:
    out = bytearray()
    while at < end:
        flags = data[at]
        at += 1
        if flags == 0:
            out += data[at : min(at + 8, end)]
            at += 8
            continue
        for bit in range(8):
            if at >= end:
                break
            if not flags >> bit & 1:
                out.append(data[at])
                at += 1
                continue
            position = len(out)
            if at + 2 > end or not 0 < position < _CHUNK:
                raise Lznt1Error(f"a back reference stands at byte {position} of a chunk")
            token = data[at] | data[at + 1] << 8
            at += 2
            shift = _LENGTH_BITS[position]
            distance = (token >> shift) + 1
            length = (token & (1 << shift) - 1) + 3
            start = position - distance
            if start < 0 or position + length > _CHUNK:
                raise Lznt1Error(f"a back reference of {length} bytes goes {distance} back from byte {position}")
            if distance >= length:
                out += out[start : start + length]
            else:
                pattern = out[start:]
                out += (pattern * (length // distance + 1))[:length]
    if len(out) > _CHUNK:
        raise Lznt1Error(f"a chunk gives {len(out)} bytes")
    return out
