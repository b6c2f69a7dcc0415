"""HFS, HFS+, HFSX and APFS. All numbers of HFS are big-endian."""

from __future__ import annotations

from functools import partial
from hashlib import md5

from sqlimage.filesystem.recognised.signature import Signature
from sqlimage.filesystem.recognised.volume import Superblock, Told, is_power_of_two, uuid_text

_VOLUME_HEADER_AT = 1024
_UNMOUNTED = 1 << 8
"""kHFSVolumeUnmounted, in the attributes of both."""
_NAMESPACE = bytes.fromhex("b3e20f39f29211d697a400306543ecac")
"""Of the UUID version 3 that is made of the eight bytes in the Finder's information."""


def _hfs(wraps: bool, sb: Superblock) -> Told | None:
    """HFS, the master directory block, by whether HFS+ is wrapped in it."""
    attributes, bitmap_at = sb.number(">H", 10), sb.number(">H", 14)
    blocks, block = sb.numbers(">HI", 18)
    first_sector, name_bytes = sb.number(">H", 28), sb.raw[36]
    if bitmap_at != 3 or blocks == 0 or block == 0 or block % 512 or first_sector <= 3 or not 1 <= name_bytes <= 27:
        return None
    size = first_sector * 512 + blocks * block + 1024
    wrapped = {b"H+": "HFS+", b"HX": "HFSX"}.get(sb.raw[124:126])
    if (wrapped is not None) is not wraps:
        return None
    label = sb.raw[37 : 37 + name_bytes].decode("mac-roman").rstrip("\0 ") or None
    return Told(label, _serial(sb.raw[116:124]), wrapped, size, 512, block, not attributes & _UNMOUNTED)


def _hfs_plus(sb: Superblock) -> Told | None:
    """HFS+ and HFSX, the volume header. The label lies in the catalog, which is not read."""
    version, attributes = sb.numbers(">HI", 2)
    block, blocks, free = sb.numbers(">III", 40)
    if version not in (4, 5) or not is_power_of_two(block, 512, 1 << 24) or not 0 < blocks >= free:
        return None
    told_version = "HFSX" if sb.raw[:2] == b"HX" else "HFS+"
    return Told(None, _serial(sb.raw[104:112]), told_version, blocks * block, 512, block, not attributes & _UNMOUNTED)


def _apfs(sb: Superblock) -> Told | None:
    """APFS, nx_superblock_t."""
    kind = sb.number("<I", 24) & 0xFFFF
    block, blocks = sb.numbers("<IQ", 36)
    if kind != 1 or not is_power_of_two(block, 4096, 65536) or blocks == 0:
        return None
    return Told(serial=sb.uuid(72), size_bytes=blocks * block, block_bytes=block)


def _serial(identity: bytes) -> str | None:
    if not any(identity):
        return None
    digest = bytearray(md5(_NAMESPACE + identity, usedforsecurity=False).digest())
    digest[6] = 0x30 | digest[6] & 0x0F
    digest[8] = 0x80 | digest[8] & 0x3F
    return uuid_text(bytes(digest))


_UNREAD_PLUS = "the files of {version} are not read"
SIGNATURES = (
    Signature("hfsplus", _UNREAD_PLUS, b"H+", (_VOLUME_HEADER_AT,), parse=_hfs_plus),
    Signature("hfsplus", _UNREAD_PLUS, b"HX", (_VOLUME_HEADER_AT,), parse=_hfs_plus),
    Signature("hfsplus", _UNREAD_PLUS, b"BD", (_VOLUME_HEADER_AT,), parse=partial(_hfs, True)),
    Signature("hfs", "the files of HFS are not read", b"BD", (_VOLUME_HEADER_AT,), parse=partial(_hfs, False)),
    Signature("apfs", "the files of APFS are not read", b"NXSB", (0,), 32, _apfs),
)
