"""File systems that are known by their superblock alone, each in the spelling of its own headers."""

from __future__ import annotations

from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.recognised.signature import Signature
from sqlimage.filesystem.recognised.volume import Superblock, Told, crc32, is_power_of_two
from sqlimage.units import KIB

_ALL = 0xFFFFFFFF


def _squashfs(order: str) -> Signature:
    def parse(sb: Superblock) -> Told | None:
        block, _, _, block_log, _, _, major, minor = sb.numbers(f"{order}IIHHHHHH", 12)
        if not 1 <= major <= 4:
            return None
        if major < 4:  # its superblock is another one but for the version
            return Told(version=f"{major}.{minor}")
        if not 12 <= block_log <= 20 or block != 1 << block_log:
            return None
        return Told(version=f"{major}.{minor}", size_bytes=sb.number(f"{order}Q", 40) or None)

    return Signature("squashfs", _unread("SquashFS"), b"hsqs" if order == "<" else b"sqsh", parse=parse)


def _erofs(sb: Superblock) -> Told | None:
    checksum, compatible, block_log = sb.numbers("<IIB", 4)
    if not 9 <= block_log <= 16:
        return None
    block = 1 << block_log
    if compatible & 1:  # the rest of its block is covered too
        covered = sb.read(block - sb.at if block > sb.at else block)
        if crc32c(_ALL, covered[:4] + bytes(4) + covered[8:]) != checksum:
            return None
    return Told(sb.text(64, 16), sb.uuid(48), size_bytes=(sb.number("<I", 36) << block_log) or None, block_bytes=block)


def _cramfs(order: str) -> Signature:
    def parse(sb: Superblock) -> Told | None:
        size, flags = sb.numbers(f"{order}II", 4)
        if sb.raw[16:32] != b"Compressed ROMFS":
            return None
        version, block = ("2", 4096) if flags & 1 else ("1", None)
        return Told(sb.text(48, 16, "latin-1"), None, version, size or None, block_bytes=block)

    magic = 0x28CD3D45.to_bytes(4, "little" if order == "<" else "big")
    return Signature("cramfs", _unread("cramfs"), magic, (0, 512), parse=parse)


def _romfs(sb: Superblock) -> Told | None:
    size = sb.number(">I", 8)
    covered = min(size, 512) & ~3
    if covered < 32 or sum(sb.numbers(f">{covered // 4}I", 0)) & _ALL:
        return None
    return Told(sb.text(16, 240, "latin-1"), size_bytes=size)


def _f2fs(sb: Superblock) -> Told | None:
    major, minor, sector_log, per_block_log, block_log = sb.numbers("<HHIII", 4)
    if not 9 <= sector_log <= 16 or not 9 <= block_log <= 16 or sector_log + per_block_log != block_log:
        return None
    return Told(
        sb.text(124, 1024, "utf-16-le"),
        sb.uuid(108),
        f"{major}.{minor}",
        (sb.number("<Q", 36) << block_log) or None,
        1 << sector_log,
        1 << block_log,
    )


def _jfs(sb: Superblock) -> Told | None:
    """Its size does not hold the log and the work space of its checker, which lie behind: none is told."""
    version = sb.number("<I", 4)
    block, block_log = sb.numbers("<IH", 16)
    sector, sector_log = sb.numbers("<IH", 24)
    if not (9 <= block_log <= 12 and block == 1 << block_log and 9 <= sector_log <= 12 and sector == 1 << sector_log):
        return None
    label = sb.text(152, 16) if version > 1 else sb.text(101, 11)
    return Told(label, sb.uuid(136), str(version), None, sector, block, sb.number("<I", 40) != 0)


def _reiserfs(magic: bytes, version: str) -> Signature:
    def parse(sb: Superblock) -> Told | None:
        blocks, _, root, journal = sb.numbers("<4I", 0)
        block, state = sb.number("<H", 44), sb.number("<H", 50)
        if not is_power_of_two(block, 512, 8192) or root == 0:
            return None
        if sb.at // block > journal:  # a copy that was logged
            return None
        told = (None, None) if version == "3.5" else (sb.text(100, 16), sb.uuid(84))
        return Told(*told, version, blocks * block, block_bytes=block, dirty=state != 1)

    return Signature("reiserfs", _unread("ReiserFS"), magic, (64 * KIB, 8 * KIB), 52, parse)


def _reiser4(sb: Superblock) -> Told | None:
    block = sb.number("<H", 18)
    if not is_power_of_two(block, 512, 32768):
        return None
    return Told(sb.text(36, 16), sb.uuid(20), "4", block_bytes=block)


def _nilfs2(sb: Superblock) -> Told | None:
    version, covered = sb.number("<I", 0), sb.number("<H", 8)
    seed, checksum, block_log = sb.numbers("<III", 12)
    if not 240 <= covered <= 1024 or block_log > 6:
        return None
    if crc32(seed, sb.raw[:16] + bytes(4) + sb.raw[20:covered]) != checksum:
        return None
    block = 1024 << block_log
    size, state = sb.number("<Q", 32), sb.number("<H", 116)
    return Told(sb.text(168, 80), sb.uuid(152), str(version), size // block * block or None, 512, block, not state & 1)


def _ocfs2(sb: Superblock) -> Told | None:
    block_log, cluster_log = sb.numbers("<II", 248)
    if not 9 <= block_log <= 12 or sb.at != 2 << block_log or not 12 <= cluster_log <= 20:
        return None
    major, minor = sb.numbers("<HH", 192)
    return Told(
        sb.text(272, 64),
        sb.uuid(336),
        f"{major}.{minor:02}",
        (sb.number("<I", 20) << cluster_log) or None,
        1 << block_log,
        1 << cluster_log,
    )


def _gfs2(sb: Superblock) -> Told | None:
    version, multihost = sb.numbers(">II", 24)
    block, block_log = sb.numbers(">II", 36)
    if multihost // 100 != 19 or not is_power_of_two(block, 512, 65536) or block != 1 << block_log:
        return None
    return Told(sb.text(160, 64), sb.uuid(256), str(version), block_bytes=block)


def _zonefs(sb: Superblock) -> Told | None:
    if crc32(_ALL, sb.raw[:4] + bytes(4) + sb.raw[8:]) != sb.number("<I", 4):
        return None
    return Told(sb.text(8, 64), sb.uuid(72), block_bytes=4096)


def _refs(sb: Superblock) -> Told | None:
    sectors, sector, per_cluster = sb.numbers("<QII", 24)
    if not is_power_of_two(sector, 512, 4096) or not is_power_of_two(per_cluster, 1, 4096):
        return None
    version, serial = f"{sb.raw[40]}.{sb.raw[41]}", f"{sb.number('<Q', 56):016X}"
    return Told(None, serial, version, sectors * sector or None, sector, sector * per_cluster)


def _unread(name: str) -> str:
    return f"the files of {name} are not read"


SIGNATURES = (
    _squashfs("<"),
    _squashfs(">"),
    Signature("erofs", _unread("EROFS"), b"\xe2\xe1\xf5\xe0", (1024,), parse=_erofs),
    _cramfs("<"),
    _cramfs(">"),
    Signature("romfs", _unread("romfs"), b"-rom1fs-", parse=_romfs),
    Signature("f2fs", _unread("F2FS"), b"\x10\x20\xf5\xf2", (1024,), parse=_f2fs),
    Signature("jfs", _unread("JFS"), b"JFS1", (32 * KIB,), parse=_jfs),
    _reiserfs(b"ReIsErFs", "3.5"),
    _reiserfs(b"ReIsEr2Fs", "3.6"),
    _reiserfs(b"ReIsEr3Fs", "JR"),
    Signature("reiser4", _unread("Reiser4"), b"ReIsEr4", (64 * KIB,), parse=_reiser4),
    Signature("nilfs2", _unread("NILFS2"), b"\x34\x34", (1024,), 6, _nilfs2),
    Signature("ocfs2", _unread("OCFS2"), b"OCFSV2", (1024, 2048, 4096, 8192), parse=_ocfs2),
    Signature("gfs2", _unread("GFS2"), bytes.fromhex("0116197000000001"), (64 * KIB,), parse=_gfs2),
    Signature("zonefs", _unread("zonefs"), b"SFOZ", parse=_zonefs),
    Signature("refs", _unread("ReFS"), b"ReFS\0\0\0\0", (0,), 3, _refs),
)
