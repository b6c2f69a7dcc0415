"""What is no file system but holds one: encrypted volumes, members of volume groups, arrays and pools."""

from __future__ import annotations

import re
import struct
from itertools import pairwise

from sqlimage.filesystem.recognised.signature import Signature
from sqlimage.filesystem.recognised.volume import Superblock, Told, crc32, is_power_of_two, text_of
from sqlimage.units import KIB, MIB, SECTOR_BYTES

_ALL = 0xFFFFFFFF
_LVM_CRC_START = 0xF597A6CF
_LVM_METADATA_MAGIC = b" LVM2 x[5A%r0N*>"
_VOLUME_GROUP = re.compile(rb"([A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,126}) \{")
_MD_MAGIC = 0xA92B4EFC
_MD_DEVICES_MAX = 1920
_ZFS_NVLIST = slice(16 * KIB, 128 * KIB)
_ZFS_STRING, _ZFS_UINT64 = 9, 8


def _luks(sb: Superblock) -> Told | None:
    version = sb.number(">H", 6)
    if version not in (1, 2):
        return None
    label = sb.text(24, 48) if version == 2 else None
    return Told(label, sb.text(168, 40), str(version))


def _lvm2(sb: Superblock) -> Told | None:
    """LVM2, label_header and pv_header."""
    sector, checksum, header = sb.numbers("<QII", 8)
    if sector * SECTOR_BYTES != sb.at or sb.raw[24:32] != b"LVM2 001":
        return None
    if crc32(_LVM_CRC_START, sb.raw[20:SECTOR_BYTES]) != checksum or not 32 <= header <= SECTOR_BYTES - 72:
        return None
    identity = sb.text(header, 32) or ""
    borders = (0, 6, 10, 14, 18, 22, 26, 32)
    dashed = "-".join(identity[a:b] for a, b in pairwise(borders))
    serial = dashed if len(identity) == 32 else None
    return Told(_volume_group(sb, header), serial, "2", sb.number("<Q", header + 32) or None)


def _volume_group(sb: Superblock, header: int) -> str | None:
    """The name that the first metadata area gives, where it can be had at once."""
    areas = [sb.numbers("<QQ", at) for at in range(header + 40, SECTOR_BYTES - 16, 16)]
    metadata = areas[areas.index((0, 0)) + 1] if (0, 0) in areas[:-1] else (0, 0)
    size = sb.device.size_bytes
    if metadata[0] == 0 or metadata[0] + SECTOR_BYTES > size:
        return None
    area = Superblock(sb.device, metadata[0])
    text_at, text_bytes = area.numbers("<QQ", 40)
    if area.raw[4:20] != _LVM_METADATA_MAGIC or text_bytes < 128 or metadata[0] + text_at + 128 > size:
        return None
    name = _VOLUME_GROUP.match(sb.device.read(metadata[0] + text_at, 128))
    return name[1].decode("ascii") if name else None


def _raid_1(sb: Superblock) -> Told | None:
    """Linux md, struct mdp_superblock_1."""
    if sb.number("<I", 4) != 1 or sb.number("<Q", 144) * SECTOR_BYTES != sb.at:
        return None
    checksum, devices = sb.numbers("<II", 216)
    if devices > _MD_DEVICES_MAX:
        return None
    words = sb.numbers(f"<{64 + devices // 2}I", 0)
    total = sum(words) - checksum + (sb.number("<H", 256 + devices // 2 * 4) if devices % 2 else 0)
    if (total & _ALL) + (total >> 32) & _ALL != checksum:
        return None
    version = {0: "1.1", 4 * KIB: "1.2"}.get(sb.at, "1.0")
    return Told(sb.text(32, 32), sb.uuid(16), version)


def _raid_0_90(order: str) -> Signature:
    """Linux md, struct mdp_superblock_s, in the byte order of the machine that made it."""

    def parse(sb: Superblock) -> Told | None:
        major, minor = sb.numbers(f"{order}II", 4)
        disks = sb.number(f"{order}I", 40)
        if (major, minor) not in ((0, 90), (0, 91)) or not 1 <= disks <= 27:
            return None
        words = (sb.number(f"{order}I", 20), *sb.numbers(f"{order}III", 52))
        identity = struct.pack(">4I", *words).hex()
        serial = "-".join((identity[:8], identity[8:12], identity[12:16], identity[16:20], identity[20:]))
        return Told(serial=serial, version="0.90")

    return Signature(*_RAID, struct.pack(f"{order}I", _MD_MAGIC), (lambda size: (size // 65536 - 1) * 65536,), 0, parse)


def _bitlocker(sb: Superblock) -> Told | None:
    sector, per_cluster = sb.numbers("<HB", 11)
    if not is_power_of_two(sector, 512, 4096) or not is_power_of_two(per_cluster, 1, 128):
        return None
    return Told(sector_bytes=sector, block_bytes=sector * per_cluster)


def _bitlocker_to_go(sb: Superblock) -> Told | None:
    identity = bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")
    return _bitlocker(sb) if sb.raw[424:440] == identity else None


def _bcache(sb: Superblock) -> Told | None:
    return Told(sb.text(72, 32), sb.uuid(40))


def _bcachefs(sb: Superblock) -> Told | None:
    block = sb.number("<H", 120) * SECTOR_BYTES
    if not is_power_of_two(block, 512, 65536):
        return None
    return Told(sb.text(72, 32), sb.uuid(56), block_bytes=block)


def _zfs(sb: Superblock) -> Told | None:
    """A vdev label; what is told lies in an XDR nvlist, whose order and depth do not matter for the first hits."""
    if sb.at + _ZFS_NVLIST.stop > sb.device.size_bytes:
        return None
    pairs = sb.device.read(sb.at + _ZFS_NVLIST.start, _ZFS_NVLIST.stop - _ZFS_NVLIST.start)

    def value(name: bytes, kind: int) -> bytes | None:
        padded = name.ljust(-(-len(name) // 4) * 4, b"\0")
        _, key, after = pairs.partition(struct.pack(">I", len(name)) + padded + struct.pack(">II", kind, 1))
        return after if key else None

    name, guid, version = value(b"name", _ZFS_STRING), value(b"pool_guid", _ZFS_UINT64), value(b"version", _ZFS_UINT64)
    length = int.from_bytes(name[:4], "big") if name else 0
    return Told(
        text_of(name[4 : 4 + min(length, 255)]) if name else None,
        str(int.from_bytes(guid[:8], "big")) if guid else None,
        str(int.from_bytes(version[:8], "big")) if version else None,
    )


def _xfs_log(sb: Superblock) -> Told | None:
    """The record that an external log begins with."""
    version, form = sb.number(">I", 8), sb.number(">I", 300)
    return Told(serial=sb.uuid(304)) if version in (1, 2) and 1 <= form <= 3 else None


def _vmfs(sb: Superblock) -> Told | None:
    a, b, c = sb.numbers("<IIH", 9)
    label = sb.text(29, 128)
    if label and not label.isprintable():
        return None
    return Told(label, f"{a:08x}-{b:08x}-{c:04x}-{sb.raw[19:25].hex()}", str(sb.raw[8]))


_RAID = "linux_raid_member", "a member of a Linux RAID, metadata {version}"
_BITLOCKER = "bitlocker", "BitLocker: its content is encrypted"
_ZFS = "zfs_member", "a member of a ZFS pool"
_ZFS_MAGIC_AT = 128 * KIB - 40
_BCACHE = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")
_BCACHEFS = bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")

AT_THE_START = (
    Signature("luks", "LUKS{version}: its content is encrypted", b"LUKS\xba\xbe", parse=_luks),
    Signature("lvm2_member", "a member of an LVM volume group", b"LABELONE", (0, 512, 1024, 1536), parse=_lvm2),
    Signature(*_RAID, struct.pack("<I", _MD_MAGIC), (0, 4 * KIB), parse=_raid_1),
    Signature(*_BITLOCKER, b"\xeb\x52\x90-FVE-FS-", parse=_bitlocker),
    Signature(*_BITLOCKER, b"\xeb\x58\x90-FVE-FS-", parse=_bitlocker),
    Signature(*_BITLOCKER, b"\xeb\x58\x90MSWIN4.1", parse=_bitlocker_to_go),
)
"""Kinds whose header is checked so well that an older file system's superblock behind it does not count."""

ELSEWHERE = (
    Signature(*_RAID, struct.pack("<I", _MD_MAGIC), (lambda size: size // 512 - 16 >> 3 << 12,), parse=_raid_1),
    _raid_0_90("<"),
    _raid_0_90(">"),
    Signature("xfs_external_log", "the log of an XFS on another device", b"\xfe\xed\xba\xbe", parse=_xfs_log),
    Signature("bcache", "a member of a bcache", _BCACHE, (4096,), 24, _bcache),
    Signature("bcachefs", "the files of bcachefs are not read", _BCACHEFS, (4096,), 24, _bcachefs),
    Signature("vmfs", "the files of VMFS are not read", b"\x5e\xf1\xab\x2f", (2 * MIB,), parse=_vmfs),
    Signature("vmfs_volume_member", "a member of a VMFS volume", b"\x0d\xd0\x01\xc0", (MIB,)),
    Signature(*_ZFS, bytes.fromhex("117a0cb17ada1002"), (0,), _ZFS_MAGIC_AT, _zfs),
    Signature(*_ZFS, bytes.fromhex("0210da7ab10c7a11"), (0,), _ZFS_MAGIC_AT, _zfs),
)
