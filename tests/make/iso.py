"""Makers of ISO 9660 volumes: real ones by genisoimage and xorriso, and bare ones built field by field for hostile
cases and for what no writer makes."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import run

SECTOR = 2048
DIRECTORY, ASSOCIATED, MULTI_EXTENT = 0x02, 0x04, 0x80
STAMP = bytes((124, 2, 29, 12, 30, 45, 4))
"""2024-02-29 12:30:45, an hour before Greenwich's noon: 11:30:45 UTC."""
STAMP_SECONDS = 1709206245


def genisoimage(target: Path, tree: Path, *options: str | Path) -> Path:
    run("genisoimage", "-quiet", *options, "-o", target, tree)
    return target


def mkisofs(target: Path, tree: Path, *options: str | Path) -> Path:
    """By xorriso in the manner of mkisofs: Rock Ridge unless ``--norock`` is among the options."""
    run("xorriso", "-report_about", "FAILURE", "-as", "mkisofs", *options, "-o", target, tree)
    return target


def xorriso(target: Path, *commands: str | Path) -> Path:
    """By xorriso's own commands; ``target`` is written, and kept where it is a volume already."""
    run("xorriso", "-report_about", "FAILURE", "-dev", target, *commands, "-commit")
    return target


def make_tree(base: Path) -> Path:
    """A tree with everything that Rock Ridge can tell, for root: devices need it."""
    deep = base / "one" / "two" / "three" / "four" / "five" / "six" / "seven" / "eight" / "nine" / "ten"
    deep.mkdir(parents=True)
    (deep / "deep.txt").write_text("far down")
    (base / "text").write_bytes(b"all work and no play\n" * 9000)
    (base / "README.TXT").write_bytes(os.urandom(5000))
    os.link(base / "README.TXT", base / "hard link")
    (base / "empty").touch()
    (base / "two.dots.x").write_text("2")
    (base / "naïve ☃.txt").write_text("snow")
    (base / ("n" * 240)).write_text("long")
    os.symlink("README.TXT", base / "link")
    os.symlink("/usr//lib/../x/./" + "q" * 90 + "/" + "r" * 80, base / "long link")
    os.symlink("../..", base / "one" / "up")
    os.mknod(base / "null", 0o20666, os.makedev(1, 3))
    os.mkfifo(base / "fifo")
    (base / "text").chmod(0o4751)
    os.utime(base / "text", (1_000_000_000, 1_234_567_890))
    os.utime(base / "two.dots.x", (1_000_000_000, -86_400_000))
    return base


def both16(number: int) -> bytes:
    return struct.pack("<H", number & 0xFFFF) + struct.pack(">H", number & 0xFFFF)


def both32(number: int) -> bytes:
    return struct.pack("<I", number & 0xFFFFFFFF) + struct.pack(">I", number & 0xFFFFFFFF)


def record(
    name: bytes,
    block: int = 0,
    size: int = 0,
    flags: int = 0,
    system_use: bytes = b"",
    *,
    attribute_blocks: int = 0,
    unit: int = 0,
    gap: int = 0,
    sequence: int = 1,
    stamp: bytes = STAMP,
) -> bytes:
    """A Directory Record."""
    padding = b"" if len(name) % 2 else b"\0"
    rest = bytes((attribute_blocks,)) + both32(block) + both32(size) + stamp + bytes((flags, unit, gap))
    rest += both16(sequence) + bytes((len(name),)) + name + padding + system_use
    rest += b"" if len(rest) % 2 else b"\0"
    return bytes((len(rest) + 1,)) + rest


def susp(signature: bytes, body: bytes = b"") -> bytes:
    return signature + bytes((4 + len(body), 1)) + body


SP = susp(b"SP", b"\xbe\xef\0")
ER = susp(b"ER", bytes((10, 0, 0, 1)) + b"RRIP_1991A")


def px(mode: int) -> bytes:
    return susp(b"PX", both32(mode) + both32(1) + both32(0) + both32(0) + both32(7))


def nm(name: bytes, flags: int = 0) -> bytes:
    return susp(b"NM", bytes((flags,)) + name)


def sl(*components: tuple[int, bytes], flags: int = 0) -> bytes:
    """Components are flags and text."""
    return susp(b"SL", bytes((flags,)) + b"".join(bytes((kind, len(text))) + text for kind, text in components))


def ce(block: int, offset: int, length: int) -> bytes:
    return susp(b"CE", both32(block) + both32(offset) + both32(length))


def cl(block: int) -> bytes:
    return susp(b"CL", both32(block))


def zf(size: int, *, algorithm: bytes = b"pz", header: int = 4, logarithm: int = 15) -> bytes:
    return susp(b"ZF", algorithm + bytes((header, logarithm)) + both32(size))


def zisofs(size: int, blocks: Sequence[bytes], *, header: int = 4, logarithm: int = 15) -> bytes:
    """A compressed file of these deflated blocks."""
    data = bytes.fromhex("37e45396c9dbd607") + struct.pack("<IBBH", size, header, logarithm, 0)
    at = len(data) + 4 * (len(blocks) + 1)
    pointers = [at]
    for block in blocks:
        pointers.append(pointers[-1] + len(block))
    return data + struct.pack(f"<{len(pointers)}I", *pointers) + b"".join(blocks)


class BareIso:
    """A volume in memory, built field by field: nothing stops a test from contradicting itself.

    The root directory takes ``root_blocks`` sectors from sector 20 on. ``rock_ridge`` puts SP and ER into its first
    record.
    """

    def __init__(
        self, blocks: int = 64, *, block_bytes: int = SECTOR, root_blocks: int = 1, rock_ridge: bool = False
    ) -> None:
        self.block_bytes = block_bytes
        self.blocks = blocks
        self.root = 20 * SECTOR // block_bytes
        self.root_bytes = root_blocks * SECTOR
        self.content = bytearray(blocks * block_bytes)
        self.root_system_use = SP + px(0o40755) + ER if rock_ridge else b""
        self.put_descriptor(0, 1)
        self.put_sector(17, b"\xffCD001\x01")
        self.put_root()

    def put_descriptor(
        self, number: int, kind: int, *, version: int = 1, escape: bytes = b"", label: bytes = b"BARE", root: int = 0
    ) -> None:
        """Descriptor ``number``: primary or supplementary."""
        at = (16 + number) * SECTOR
        head = bytes((kind,)) + b"CD001" + bytes((version, 0)) + b" " * 32 + label.ljust(32)
        self.content[at : at + len(head)] = head
        for offset, field in (
            (80, both32(self.blocks)),
            (88, escape),
            (120, both16(1) + both16(1) + both16(self.block_bytes)),
            (156, record(b"\0", root or self.root, self.root_bytes, DIRECTORY)),
            (813, b"2024022912304507\x04" * 2),
            (881, b"\x01"),
        ):
            self.content[at + offset : at + offset + len(field)] = field

    def patch(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data

    def put_sector(self, sector: int, data: bytes) -> None:
        """From 2,048-byte sector ``sector`` on."""
        self.patch(sector * SECTOR, data)

    def put(self, block: int, data: bytes) -> None:
        self.patch(block * self.block_bytes, data)

    def put_root(self, *records: bytes) -> None:
        self.put_directory(self.root, *records, size=self.root_bytes, system_use=self.root_system_use)

    def put_directory(self, block: int, *records: bytes, size: int = SECTOR, system_use: bytes = b"") -> bytes:
        """A directory at ``block``; gives back the data that was written. No record crosses a sector."""
        dots = (record(b"\0", block, size, DIRECTORY, system_use), record(b"\1", block, size, DIRECTORY))
        data = bytearray()
        for one in (*dots, *records):
            if len(data) % SECTOR + len(one) > SECTOR:
                data += bytes(-len(data) % SECTOR)
            data += one
        self.put(block, bytes(data))
        return bytes(data)
