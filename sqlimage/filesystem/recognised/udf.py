"""UDF (ECMA-167, OSTA UDF 2.60): known by its volume recognition sequence, told of by the volume descriptors that its
anchor points to."""

from __future__ import annotations

from collections.abc import Iterator

from sqlimage.device import BlockDevice
from sqlimage.filesystem.recognised.volume import Superblock, Told, WholeVolume, facts_of, text_of
from sqlimage.units import KIB

_SEQUENCE_AT = 32 * KIB
_SEQUENCE_STEPS = (2048, 4096)
_SEQUENCE_MAX = 64
_NSR = (b"NSR02", b"NSR03")
_IDENTIFIERS = (*_NSR, b"BEA01", b"TEA01", b"BOOT2", b"CD001", b"CDW02")
_BLOCKS = (2048, 512, 1024, 4096, 8192, 16384, 32768)
_PRIMARY, _ANCHOR, _LOGICAL, _TERMINATING = 1, 2, 6, 8
_DESCRIPTORS_MAX = 64
REASON = "the files of UDF are not read"


def udf(device: BlockDevice) -> WholeVolume | None:
    """The volume with what its descriptors tell, or None where none of ECMA-167 stands."""
    if not _is_announced(device):
        return None
    told = next((_described(device, anchor, block) for block, anchor in _anchors(device)), Told())
    return WholeVolume(facts_of("udf", told, device, _SEQUENCE_AT), REASON)


def _is_announced(device: BlockDevice) -> bool:
    for step in _SEQUENCE_STEPS:
        for at in range(_SEQUENCE_AT + 1, _SEQUENCE_AT + _SEQUENCE_MAX * step, step):
            identifier = device.read(at, 5) if at + 5 <= device.size_bytes else b""
            if identifier in _NSR:
                return True
            if identifier not in _IDENTIFIERS:
                break
    return False


def _anchors(device: BlockDevice) -> Iterator[tuple[int, Superblock]]:
    """Anchors at their places, with the size of a block by which each is at its place."""
    for block in _BLOCKS:
        last = device.size_bytes // block - 1
        for sector in (256, 512, last, last - 256):
            anchor = _descriptor(device, sector, block)
            if anchor is not None and anchor.number("<H", 0) == _ANCHOR:
                yield block, anchor


def _descriptor(device: BlockDevice, sector: int, block: int) -> Superblock | None:
    """The descriptor that a tag at the sector announces: tag checksum and location must be right."""
    if sector < 0 or (sector + 1) * block > device.size_bytes:
        return None
    found = Superblock(device, sector * block)
    tag = found.raw[:16]
    right = any(tag) and tag[4] == sum(tag[:4] + tag[5:]) & 0xFF and found.number("<I", 12) == sector
    return found if right else None


def _described(device: BlockDevice, anchor: Superblock, block: int) -> Told:
    length, first = anchor.numbers("<II", 16)
    label = serial = version = None
    for sector in range(first, first + min(length // block, _DESCRIPTORS_MAX)):
        found = _descriptor(device, sector, block)
        kind = found.number("<H", 0) if found else _TERMINATING
        if found is None or kind == _TERMINATING:
            break
        if kind == _PRIMARY:
            serial = _serial(_dstring(found.raw[72:200]))
        elif kind == _LOGICAL:
            label = text_of(_dstring(found.raw[84:212]).encode())
            revision = found.number("<H", 240)
            version = f"{revision >> 8:x}.{revision & 0xFF:02x}"
    return Told(label, serial, version, sector_bytes=block, block_bytes=block)


def _dstring(field: bytes) -> str:
    """OSTA compressed Unicode of a fixed field, its length in the last byte."""
    encoding = {8: "latin-1", 16: "utf-16-be"}.get(field[0])
    return field[1 : min(field[-1], len(field) - 1)].decode(encoding, "replace") if encoding else ""


def _serial(volume_set: str) -> str | None:
    """Sixteen digits of the volume set identifier, which is to begin with eight that are unique; as ``blkid`` makes
    them where it begins with other characters."""
    name = volume_set.encode()
    if len(name) < 8:
        return None
    name = name[:16].ljust(16, b"\0")
    digits = next((n for n, code in enumerate(name) if chr(code) not in "0123456789abcdefABCDEF"), 16)
    if digits < 8:
        return name[:8].hex()
    if digits < 16:
        return name[:8].decode().lower() + name[8:12].hex()
    return name.decode().lower()
