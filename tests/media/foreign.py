"""Disks in other formats for tests: made by QEMU, or by hand where QEMU only reads them; and what a server of NBD says,
with an idea of the wire of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from sqlimage.media.foreign.client import Client
from sqlimage.media.foreign.connection import Connection
from sqlimage.media.foreign.device import ForeignDevice
from sqlimage.media.foreign.source import open_source
from tests.conftest import run
from tests.images import noise

DISK_BYTES = 3 << 20
_CELL = 64 << 10
DATA_CELLS = (0, 3, 9, 20, 40, 47)
WRITABLE = {
    "qcow2": "qcow2",
    "qcow": "qcow",
    "qed": "qed",
    "vhd": "vpc",
    "vhdx": "vhdx",
    "vmdk": "vmdk",
    "vdi": "vdi",
    "parallels": "parallels",
}
"""Formats that QEMU writes, and what it calls them."""
SIZED = {"vhd": ["-o", "force_size=on"]}
"""What QEMU must be told to make a disk of exactly the size of its source."""


def disk() -> bytes:
    """3 MiB with noise in some cells of 64 KiB, of which one ends in zeros and one is text, and holes between."""
    content = bytearray(DISK_BYTES)
    for cell in DATA_CELLS:
        content[cell * _CELL : (cell + 1) * _CELL] = noise(cell, _CELL)
    content[9 * _CELL + 4096 : 10 * _CELL] = bytes(_CELL - 4096)
    content[20 * _CELL : 21 * _CELL] = (b"all work and no play " * _CELL)[:_CELL]
    return bytes(content)


def convert(raw: Path, target: Path, driver: str, *options: str) -> Path:
    """The disk in another format, by QEMU."""
    command = ["qemu-img", "convert", "-f", "raw", "-O", driver, *options, str(raw), str(target)]
    if (driver, options) == ("qcow", ("-c",)):
        subprocess.run(command, check=False)  # QEMU says that it fails, and does not
    else:
        run(*command)
    return target


@contextlib.contextmanager
def opened(path: Path | str, name: str | None = None) -> Iterator[ForeignDevice]:
    foreign = open_source(path, name)
    assert isinstance(foreign, ForeignDevice)
    try:
        yield foreign
    finally:
        foreign.close()


def bochs(content: bytes) -> bytes:
    """A growing Bochs image of extents of 4 KiB, those of zeros left out."""
    extents = [content[at : at + 4096] for at in range(0, len(content), 4096)]
    catalog, body = b"", b""
    for extent in extents:
        catalog += struct.pack("<I", len(body) // 4608 if any(extent) else 0xFFFFFFFF)
        body += b"\xff" * 512 + extent if any(extent) else b""
    header = b"Bochs Virtual HD Image".ljust(32, b"\0") + b"Redolog".ljust(16, b"\0") + b"Growing".ljust(16, b"\0")
    header += struct.pack("<IIIIIIQ", 0x20000, 512, len(extents), 512, 4096, 0, len(content))
    return header.ljust(512, b"\0") + catalog + body


def cloop(content: bytes, block: int = 65536) -> bytes:
    """A compressed loop image."""
    blocks = [zlib.compress(content[at : at + block].ljust(block, b"\0")) for at in range(0, len(content), block)]
    script = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
    place = 136 + 8 * (len(blocks) + 1)
    offsets = [place]
    for one in blocks:
        offsets.append(offsets[-1] + len(one))
    table = b"".join(struct.pack(">Q", offset) for offset in offsets)
    return script.ljust(128, b"\0") + struct.pack(">II", block, len(blocks)) + table + b"".join(blocks)


def dmg(content: bytes) -> bytes:
    """An Apple disk image of deflated and empty chunks of 256 sectors, with its block list in the resource fork."""
    chunks, body = b"", b""
    for at in range(0, len(content), 256 * 512):
        piece = content[at : at + 256 * 512]
        packed = zlib.compress(piece) if any(piece) else b""
        kind = 0x80000005 if packed else 0
        chunks += struct.pack(">IIQQQQ", kind, 0, at // 512, len(piece) // 512, len(body), len(packed))
        body += packed
    chunks += struct.pack(">IIQQQQ", 0xFFFFFFFF, 0, len(content) // 512, 0, 0, 0)
    mish = b"mish" + struct.pack(">IQQQII", 1, 0, len(content) // 512, 0, 0, 0)
    mish = mish.ljust(200, b"\0") + struct.pack(">I", len(chunks) // 40) + chunks
    data = struct.pack(">I", len(mish)) + mish
    fork = struct.pack(">IIII", 256, 256 + len(data), len(data), 50).ljust(256, b"\0") + data
    koly = bytearray(512)
    struct.pack_into(">4sIII", koly, 0, b"koly", 4, 512, 1)
    struct.pack_into(">QQQQQ", koly, 16, 0, 0, len(body), len(body), len(fork))
    struct.pack_into(">Q", koly, 492, len(content) // 512)
    return body + fork + bytes(koly)


def children(pid: int) -> list[int]:
    """Processes below one, zombies too."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                found += [int(name), *children(int(name))]
    return found


def children_when(pid: int, count: int, seconds: float = 30) -> list[int]:
    """Processes below one, as soon as there are so many: a shell that has been started has not yet started its own."""
    end = time.monotonic() + seconds
    while len(found := children(pid)) < count and time.monotonic() < end:
        time.sleep(0.01)
    return found


def gone(pids: list[int], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        states = []
        for pid in pids:
            with contextlib.suppress(OSError):
                states.append(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
        if all(state == "Z" for state in states):
            return True
        time.sleep(0.02)
    return False


# What a server of NBD says

GREETING = bytes.fromhex("4e42444d41474943 49484156454f5054 0003")
ACK, INFO, META = 1, 3, 4
CONTEXT = 77


def option_reply(option: int, kind: int, payload: bytes = b"") -> bytes:
    return bytes.fromhex("0003e889045565a9") + struct.pack(">III", option, kind, len(payload)) + payload


def export(size: int = 1 << 20, flags: int = 0b1110_0101) -> bytes:
    """All that precedes transmission: structured replies, ``base:allocation``, an export of this size."""
    return (
        GREETING
        + option_reply(8, ACK)
        + option_reply(10, META, struct.pack(">I", CONTEXT) + b"base:allocation")
        + option_reply(10, ACK)
        + option_reply(7, INFO, struct.pack(">HQH", 0, size, flags))
        + option_reply(7, ACK)
    )


def chunk(kind: int, payload: bytes = b"", *, done: bool = False, cookie: int = 1, length: int | None = None) -> bytes:
    """One chunk of a structured reply; ``length`` lies about the payload."""
    size = len(payload) if length is None else length
    return struct.pack(">IHHQI", 0x668E33EF, int(done), kind, cookie, size) + payload


def data_chunk(offset: int, data: bytes, *, done: bool = False, cookie: int = 1) -> bytes:
    return chunk(1, struct.pack(">Q", offset) + data, done=done, cookie=cookie)


def hole_chunk(offset: int, length: int, *, done: bool = False) -> bytes:
    return chunk(2, struct.pack(">QI", offset, length), done=done)


def status_chunk(*extents: tuple[int, int], context: int = CONTEXT) -> bytes:
    descriptors = b"".join(struct.pack(">II", *extent) for extent in extents)
    return chunk(5, struct.pack(">I", context) + descriptors, done=True)


def error_chunk(code: int, text: bytes = b"", *, done: bool = True) -> bytes:
    return chunk(0x8001, struct.pack(">IH", code, len(text)) + text, done=done)


def simple_reply(error: int = 0, cookie: int = 1) -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie)


@contextlib.contextmanager
def client_of(*said: bytes, stays: bool = False) -> Iterator[tuple[Client, socket.socket]]:
    """A client whose server has already said all that it will ever say; it hangs up then, unless it ``stays``."""
    ours, theirs = socket.socketpair()
    try:
        theirs.sendall(b"".join(said))
        if not stays:
            theirs.shutdown(socket.SHUT_WR)
        yield Client(Connection(ours)), theirs
    finally:
        ours.close()
        theirs.close()
